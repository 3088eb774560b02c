"""Recognise the layouts of other tools, and say what to rename so that kdbench reads them."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdbench.dataset import NORMAL, is_category
from kdbench.files import entries, folded, listed

DEFECTIVE = (
    *("abnormal", "anomaly", "anomalies", "anomalous", "bad", "defect", "defects", "defective"),
    *("ko", "ng", "nok", "not_ok", "broken"),
)
MASKS = ("ground_truth", "groundtruth", "gt", "mask", "masks", "label", "labels", "annotations")


def conversion(folder: Path) -> str | None:
    """Advice with the commands that turn normal/, abnormal/ and mask/ (or the like) into the layout here.

    None if the folder holds no such folders.
    """
    if not folder.is_dir() or is_category(folder):
        return None
    folders = {folded(path.name): path for path in entries(folder) if path.is_dir()}
    normal, defective, masks = (_first(folders, names) for names in (NORMAL, DEFECTIVE, MASKS))
    if normal is None or (defective is None and masks is None):
        return None
    kind = shlex.quote(defective.name) if defective else "KIND"
    source = [shlex.quote(path.name) if path else "" for path in (normal, defective, masks)]
    moves = [f"mkdir -p train test{' ground_truth' if masks else ''}", f"mv {source[0]} train/good"]
    moves += [_moved(source[1], defective, "test", kind)] if defective else []
    moves += [_moved(source[2], masks, "ground_truth", kind)] if masks else []
    found = listed([path for path in (normal, defective, masks) if path])
    return (
        f"{folder} holds {found}. kdbench reads train/good, test/good, test/KIND and ground_truth/KIND: "
        f"`cd {shlex.quote(str(folder))} && {' && '.join(moves)}`, "
        f"then move about a fifth of train/good to test/good"
    )


def renamed_normal(missing: Path) -> str:
    """Advice if the folder of normal images is missing: rename one that may be it, else the names there."""
    if not missing.parent.is_dir():
        return ""
    folders = [path for path in entries(missing.parent) if path.is_dir()]
    for path in folders:
        if folded(path.name) in NORMAL:
            return f"There is {path.name}: `mv {shlex.quote(str(path))} {shlex.quote(str(missing))}`"
    return f"{missing.parent} holds {listed(entries(missing.parent))}"


def renamed_masks(folder: Path, masks: Sequence[Path], stems: Iterable[str]) -> str:
    """Advice if masks are missing: rename masks with another ending than `_mask`, else the names there."""
    longest = sorted(stems, key=len, reverse=True)
    endings = set()
    for mask in masks:
        stem = next((stem for stem in longest if mask.stem.startswith(stem)), mask.stem)
        endings.add((mask.stem.removeprefix(stem), mask.suffix))
    ending, suffix = next(iter(endings), ("", ""))
    if len(endings) == 1 and re.fullmatch(r"[\w-]+", ending):
        return (
            f"The masks there end with {ending}: `cd {shlex.quote(str(folder))} && "
            f'for mask in *{ending}{suffix}; do mv "$mask" "${{mask%{ending}{suffix}}}_mask{suffix}"; done`'
        )
    return f"There is {listed(masks)}"


def _moved(name: str, folder: Path, part: str, kind: str) -> str:
    """The command for one folder: what lies in it goes to `part` if that is folders, one for each kind."""
    inside = entries(folder)
    nested = bool(inside) and all(path.is_dir() for path in inside)
    return f"mv {name}/* {part}/" if nested else f"mv {name} {part}/{kind}"


def _first(folders: dict[str, Path], names: Iterable[str]) -> Path | None:
    return next((folders[name] for name in names if name in folders), None)
