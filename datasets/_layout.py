"""What the datasets share: the layout of MVTec AD, masks beside images, links, made splits."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from kdbench.dataset import IMAGE_SUFFIXES, LITTER, Category, Sample, image_files
from kdbench.errors import DataError

AGAIN = "The archive may be half unpacked; unpack it again"


def scan_layout(
    root: Path,
    name: str,
    *,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
    masks_required: bool = True,
    normal: str = "good",
) -> Category:
    """List ROOT/NAME (train/good, test/KIND, ground_truth/KIND); DataError for what is missing or too much.

    `normal` is what the folders of normal images are called.
    """
    folder = root / name
    train = image_files(existing(folder / "train" / normal), suffixes)
    if not train:
        raise DataError(f"{folder / 'train' / normal} has no images")
    for other in _entries(folder / "train"):
        if other.name != normal:
            raise DataError(f"{other} lies beside the normal images for training. Move it away")
    kinds = _entries(existing(folder / "test"))
    _refuse_masks_of_no_kind(folder, {kind.name for kind in kinds} | {normal})
    test: list[Sample] = []
    for kind in kinds:
        if not kind.is_dir():
            raise DataError(f"{kind} lies beside the folders of test images. Move it away")
        images = image_files(kind, suffixes)
        if not images:
            raise DataError(f"{kind} has no images")
        good = kind.name == normal
        masks = {} if good else _masks(folder, kind.name, images, suffixes, masks_required)
        test += [
            Sample(path=path, label=not good, defect="good" if good else kind.name, mask=masks.get(path))
            for path in images
        ]
    found = Category(name=name, root=root, train=tuple(train), test=tuple(test))
    checked(found, folder, tested=folder / "test", normal=f"normal (test/{normal})")
    unmarked = [s.path for s in test if s.label and not s.mask]
    if unmarked and any(s.mask for s in test):
        raise DataError(
            f"{name}: {len(unmarked)} defective images have no mask, others do, first: {unmarked[0]}"
        )
    return found


def checked(
    category: Category, folder: Path, *, tested: Path | None = None, normal: str = "normal"
) -> Category:
    """The category, if it can be trained and tested and all its files lie in `folder`; else DataError."""
    if not category.train:
        raise DataError(f"{folder} has no images for training")
    for label, what in ((False, normal), (True, "defective")):
        if not any(sample.label == label for sample in category.test):
            raise DataError(f"{tested or folder} has no {what} images: no metric can be computed")
    masks = [sample.mask for sample in category.test if sample.mask]
    stay_inside(folder, [*category.train, *(sample.path for sample in category.test), *masks])
    return category


def stay_inside(folder: Path, paths: Iterable[Path]) -> None:
    """DataError for a path that a link leads out of `folder`, which may be a link itself."""
    home = folder.resolve()
    parents: dict[Path, Path] = {}
    for path in paths:
        if path.parent not in parents:
            parents[path.parent] = path.parent.resolve()
        real = path.resolve() if path.is_symlink() else parents[path.parent] / path.name
        if not real.is_relative_to(home):
            raise DataError(f"{path} is a link to {real}, outside of {home}. Put the file itself there")


def existing(path: Path) -> Path:
    """The folder, if it is there; else DataError."""
    if not path.is_dir():
        raise DataError(f"no folder {path}. {AGAIN}")
    return path


def masks_beside(folder: Path, image: str, mask: str, ending: str = "") -> dict[Path, Path | None]:
    """Image -> its mask in the same folder, STEM + `ending` + suffix `mask`, or None; by name."""
    files = image_files(existing(folder), (image, mask))
    masks = {path.stem.removesuffix(ending): path for path in files if path.suffix.lower() == mask}
    images = [path for path in files if path.suffix.lower() == image]
    if not images:
        raise DataError(f"{folder} has no images ({image})")
    for stem in sorted(set(masks) - {path.stem for path in images}):
        raise DataError(f"{masks[stem]} is a mask without an image beside it")
    return {path: masks.get(path.stem) for path in images}


def by_hash(paths: Iterable[Path]) -> list[Path]:
    """The paths in the order of the SHA-256 of their names: mixed, and the same everywhere."""
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.name)).hexdigest())


def _entries(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.name not in LITTER and p.name[0] != "."]


def _refuse_masks_of_no_kind(folder: Path, kinds: set[str]) -> None:
    marked = folder / "ground_truth"
    for path in _entries(marked) if marked.is_dir() else []:
        if path.name not in kinds:
            raise DataError(f"{path} has no folder of test images {folder / 'test' / path.name}")


def _masks(
    folder: Path, kind: str, images: list[Path], suffixes: tuple[str, ...], required: bool
) -> dict[Path, Path]:
    """Image -> mask, named 000_mask.png or 000.png; complete or (if not required) empty."""
    marked = folder / "ground_truth" / kind
    if not marked.is_dir() and not required:
        return {}
    found: dict[str, Path] = {}
    for path in image_files(existing(marked), suffixes):
        other = found.setdefault(path.stem.removesuffix("_mask"), path)
        if other != path:
            raise DataError(f"{other} and {path} are masks of the same image. Move one away")
    named: dict[str, Path] = {}
    for path in images:
        if named.setdefault(path.stem, path) != path:
            raise DataError(f"{named[path.stem]} and {path} would share a mask. Rename one")
    missing = [path for path in images if path.stem not in found]
    if missing:
        raise DataError(
            f"{folder.name}: {len(missing)} of {len(images)} masks of {kind!r} missing, first: "
            f"{marked / (missing[0].stem + '_mask.png')}. {AGAIN}"
        )
    extra = sorted(set(found) - set(named))
    if extra:
        raise DataError(f"{found[extra[0]]} is a mask without an image in {folder / 'test' / kind}")
    return {path: found[path.stem] for path in images}
