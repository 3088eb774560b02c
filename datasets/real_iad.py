"""Real-IAD: 30 objects from five sides (Wang et al., CVPR 2024), with its lists in JSON and its sizes."""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import ClassVar

from kdbench.dataset import Category, Dataset, Sample
from kdbench.datasets._layout import checked, existing
from kdbench.errors import DataError, number_of, reason
from kdbench.files import LITTER, listed, read_text

LISTS = "realiad_jsons"
DEFECTS = {
    "AK": "pit",
    "BX": "deformation",
    "CH": "abrasion",
    "HS": "scratch",
    "PS": "damage",
    "QS": "missing_parts",
    "YW": "foreign_objects",
    "ZW": "contamination",
}
FIELDS = ("anomaly_class", "image_path", "mask_path")  # of an entry in a list


class RealIAD(Dataset):
    name = "real_iad"
    title = "Real-IAD"
    categories = (
        *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts"),
        *("pcb", "phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator"),
        *("rolled_strip_base", "sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy"),
        *("toy_brick", "transistor1", "u_block", "usb", "usb_adaptor", "vcpill", "wooden_beads"),
        *("woodstick", "zipper"),
    )
    whole = (36_465, 63_256, 51_329)  # 151,050 views
    licence = "CC BY-NC-SA 4.0, not for commercial use; on request from the authors"
    source = "realiad4ad.github.io/Real-IAD"
    notes = (
        "every view counts as an image of its own: no score joins the five views of an object, as the "
        "sample metrics of the paper do",
        "the counts of single categories are not known here: a check compares each with its list, file by "
        "file, and all of them together with the published sums",
        "there are copies of 256, 512 and 1024 pixels and the original one, and their numbers differ: the "
        "fingerprint of the images tells them apart",
        "the codes of defects (AK, BX, ...) are named after the paper's eight kinds",
    )
    split = "multi-view"
    refused_splits: ClassVar[dict[str, str]] = {
        "single-view": "realiad_jsons_sv is not read yet. Use multi-view",
        "fuiad": "it trains on anomalies; kdbench trains on normal images only. Use multi-view",
    }

    def present(self, root: Path) -> tuple[str, ...]:
        images = _images(root)
        return tuple(name for name in self.categories if images and (images / name).is_dir())

    def hint(self, root: Path) -> str:
        sizes = _sizes(root)
        if len(sizes) > 1:
            return f"It holds {listed(sizes)}. Choose one: --root {sizes[-1]}"
        return f"{super().hint(root)} It holds realiad_1024 (or another size) and {LISTS}"

    def split_sha256(self, root: Path) -> str | None:
        digests = []
        for name in self.present(root):
            try:
                digests.append(hashlib.sha256(_list_of(root, name).read_bytes()).hexdigest())
            except OSError as error:
                raise DataError(f"{_list_of(root, name)}: {reason(error)}") from error
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def scan(self, root: Path, category: str) -> Category:
        folder = (_images(root) or root) / category
        file = _list_of(root, category)
        parts = _entries(file)
        train = [_sample(file, folder, entry) for entry in parts["train"]]
        test = [_sample(file, folder, entry) for entry in parts["test"]]
        wrong = next((sample for sample in train if sample.label), None)
        if wrong:
            raise DataError(
                f"{file}: {wrong.path} is an anomaly for training: kdbench trains on normal images"
            )
        files = [path for sample in (*train, *test) for path in (sample.path, *sample.masks)]
        seen = set[Path]()
        for path in files:
            if path in seen:
                raise DataError(f"{file}: {path} is listed twice")
            seen.add(path)
        there = _all_files(existing(folder))
        for missing in sorted(seen - there):
            raise DataError(
                f"{category}: {number_of(len(seen - there), 'file')} of {file} missing, first: {missing}"
            )
        for extra in sorted(there - seen):
            unlisted = number_of(len(there - seen), "file")
            raise DataError(f"{category}: {unlisted} beyond those of {file}, first: {extra}. Move them away")
        found = Category(
            name=category,
            root=root,
            train=tuple(sorted(sample.path for sample in train)),
            test=tuple(sorted(test, key=lambda sample: sample.path)),
        )
        return checked(found, folder)


def _sizes(root: Path) -> list[Path]:
    """The folders of images below `root`, from the smallest to the largest size."""
    found = [path for path in root.glob("realiad_*") if path.is_dir() and not path.name.startswith(LISTS)]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _images(root: Path) -> Path | None:
    """The folder with the folders of categories: `root` itself, or the only one of a size below it."""
    if root.name.startswith("realiad_"):
        return root
    sizes = _sizes(root)
    return sizes[0] if len(sizes) == 1 else None


def _list_of(root: Path, category: str) -> Path:
    """realiad_jsons/realiad_jsons/CATEGORY.json beside the folder of images."""
    top = root.parent if root.name.startswith("realiad_") else root
    return top / LISTS / LISTS / f"{category}.json"


def _entries(file: Path) -> dict[str, list[dict[str, str]]]:
    """The entries of train and test; DataError for a file that does not have the published form."""
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {reason(error)}. It says which images are for training") from error
    parts: dict[str, list[dict[str, str]]] = {}
    for part in ("train", "test"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{file} has no list {part!r}")
        parts[part] = [{key: entry.get(key) or "" for key in FIELDS} for entry in entries]
    return parts


def _sample(file: Path, folder: Path, entry: dict[str, str]) -> Sample:
    kind, image, mask = (str(entry[key]) for key in FIELDS)
    if kind != "OK" and kind not in DEFECTS:
        raise DataError(f"{file}: {image} has the class {kind!r}; known are OK, {', '.join(DEFECTS)}")
    if bool(mask) != (kind != "OK"):
        raise DataError(f"{file}: {image} has the class {kind!r} and the mask {mask!r}")
    for path in filter(None, (image, mask)):
        if (
            ".." in PurePosixPath(path).parts
            or not re.fullmatch(r"[\w./-]+\.(jpg|png)", path)
            or path[0] == "/"
        ):
            raise DataError(f"{file}: {path!r} is no path of a JPEG or PNG below {folder}")
    if not image:
        raise DataError(f"{file}: an entry of the class {kind!r} has no image_path")
    return Sample(
        path=folder / image,
        label=kind != "OK",
        defect=DEFECTS.get(kind, "good"),
        mask=folder / mask if mask else None,
    )


def _all_files(folder: Path) -> set[Path]:
    return {
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in LITTER and not path.name.startswith(".")
    }


DATASET = RealIAD
