"""Code that datasets share: the layout of MVTec AD, masks beside images, links, splits of our own."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdbench.dataset import NORMAL, Category, Dataset, Sample
from kdbench.datasets._foreign import renamed_masks, renamed_normal
from kdbench.errors import DataError, number_of
from kdbench.files import IMAGE_SUFFIXES, entries, folded, image_files
from kdbench.picture import read_mask

# An image of a defect -> its masks, at least one.
MasksOf = Callable[[Path], Sequence[Path]]

AGAIN = "The archive may be half unpacked; unpack it again"
UNITE = "Unite them in one file, or move one away"


def again(dataset: Dataset) -> str:
    """Advice if files are missing: the archive may be half unpacked; "" for a dataset without archives."""
    return AGAIN if dataset.archives else ""


def scan_layout(
    dataset: Dataset,
    root: Path,
    name: str,
    *,
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES,
    masks_required: bool = True,
    normal: str = "good",
    tested: str = "test",
    truth: str = "ground_truth",
    masks_of: MasksOf | None = None,
) -> Category:
    """List ROOT/NAME (train/good, test/KIND, ground_truth/KIND); DataError for missing and superfluous files.

    `normal` is the name of the folders of normal images; KIND lies in `tested` and in `truth`. `masks_of`
    lists the masks of an image if they do not all lie in ground_truth/KIND.
    """
    folder = root / name
    train = image_files(_normal_images(dataset, folder / "train" / normal), suffixes)
    if not train:
        raise DataError(f"{folder / 'train' / normal} has no images")
    for other in entries(folder / "train"):
        if other.name != normal:
            raise DataError(f"{other} lies beside the normal images for training. Move it away")
    kinds = [path for path in entries(existing(folder / tested, again(dataset))) if path != folder / truth]
    _refuse_masks_of_no_kind(folder / truth, folder / tested, {kind.name for kind in kinds} | {normal})
    test: list[Sample] = []
    for kind in kinds:
        if not kind.is_dir():
            raise DataError(f"{kind} lies beside the folders of test images. Move it away")
        images = image_files(kind, suffixes)
        if not images:
            raise DataError(f"{kind} has no images")
        good = kind.name == normal
        if not good and folded(kind.name) in NORMAL:
            raise DataError(f"{kind} would count as defects: normal images lie in {kind.with_name(normal)}")
        if masks_of and not good:
            test += [_with_masks(path, kind.name, masks_of(path)) for path in images]
            continue
        masks = (
            {}
            if good
            else _masks(dataset, kind, folder / truth / kind.name, images, suffixes, masks_required)
        )
        test += [
            Sample(path=path, label=not good, defect="good" if good else kind.name, mask=masks.get(path))
            for path in images
        ]
    found = Category(name=name, root=root, train=tuple(train), test=tuple(test))
    checked(found, folder, tested=folder / tested, normal=f"normal ({tested}/{normal})")
    unmarked = [s.path for s in test if s.label and not s.mask]
    if unmarked and any(s.mask for s in test):
        lacking = number_of(len(unmarked), "defective image")
        raise DataError(f"{name}: {lacking} without a mask, others have one, first: {unmarked[0]}")
    return found


def _with_masks(path: Path, defect: str, masks: Sequence[Path]) -> Sample:
    return Sample(path=path, label=True, defect=defect, mask=masks[0], more_masks=tuple(masks[1:]))


def checked(
    category: Category, folder: Path, *, tested: Path | None = None, normal: str = "normal"
) -> Category:
    """The category, if it can be trained and tested and all its files lie in `folder`; else DataError."""
    if not category.train:
        raise DataError(f"{folder} has no images for training")
    for label, what in ((False, normal), (True, "defective")):
        if not any(sample.label == label for sample in category.test):
            raise DataError(f"{tested or folder} has no {what} images: no metric can be computed")
    masks = [mask for sample in category.test for mask in sample.masks]
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


def existing(path: Path, advice: str = "") -> Path:
    """The folder, if it is there; else DataError with what to do."""
    if not path.is_dir():
        raise DataError(". ".join(filter(None, (f"no folder {path}", advice))))
    return path


def _normal_images(dataset: Dataset, folder: Path) -> Path:
    """The folder of normal images, if it is there; else DataError, with a folder that may be it."""
    return existing(folder, ". ".join(filter(None, (again(dataset), renamed_normal(folder)))))


def masks_beside(
    folder: Path,
    image: str,
    mask: str,
    *,
    ending: str = "",
    advice: str = "",
    besides: Collection[str] = (),
) -> dict[Path, Path | None]:
    """Image -> its mask in the same folder, STEM + `ending` + suffix `mask`, or None; by name.

    `advice` is part of the error if there is no such folder; files with a name in `besides` are left out.
    """
    files = image_files(existing(folder, advice), (image, mask), besides=besides)
    found = [path for path in files if path.suffix.lower() == mask]
    if image == mask:
        found = [path for path in found if path.stem.endswith(ending)]
    masks = {path.stem.removesuffix(ending): path for path in found}
    images = [path for path in files if path not in masks.values()]
    if not images:
        raise DataError(f"{folder} has no images ({image})")
    for stem in sorted(set(masks) - {path.stem for path in images}):
        raise DataError(f"{masks[stem]} is a mask without an image beside it")
    return {path: masks.get(path.stem) for path in images}


def marked_images(masks: Mapping[Path, Path | None], advice: str) -> dict[Path, Path]:
    """Image -> mask, where the mask marks anything; DataError with `advice` for an image without a mask."""
    for path, mask in masks.items():
        if mask is None:
            raise DataError(f"{path} has no mask. {advice}")
    with ThreadPoolExecutor(4) as pool:
        marks = pool.map(lambda mask: bool(read_mask(mask).any()), filter(None, masks.values()))
        return {path: mask for (path, mask), some in zip(masks.items(), marks, strict=True) if mask and some}


def by_hash(paths: Iterable[Path]) -> list[Path]:
    """The paths in the order of the SHA-256 of their names: mixed, and the same everywhere."""
    return sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path.name)).hexdigest())


def _refuse_masks_of_no_kind(truth: Path, tested: Path, kinds: set[str]) -> None:
    for path in entries(truth) if truth.is_dir() else []:
        if path.name not in kinds:
            raise DataError(f"{path} has no folder of test images {tested / path.name}")


def _masks(
    dataset: Dataset,
    kind: Path,
    folder: Path,
    images: list[Path],
    suffixes: tuple[str, ...],
    required: bool,
) -> dict[Path, Path]:
    """Image -> mask in `folder`, named 000_mask.png or 000.png; complete or (if not required) empty."""
    if not folder.is_dir() and not required:
        return {}
    files = image_files(existing(folder, again(dataset)), suffixes)
    masks: dict[str, Path] = {}
    for path in files:
        other = masks.setdefault(_shown(path.stem).removesuffix("_mask"), path)
        if other != path:
            raise DataError(f"{other} and {path} are masks of the same image. {UNITE}")
    named: dict[str, Path] = {}
    for path in images:
        other = named.setdefault(_shown(path.stem), path)
        if other != path:
            raise DataError(f"{other} and {path} would share a mask. Rename one")
    missing = [path for stem, path in named.items() if stem not in masks]
    if missing:
        advice = [again(dataset), renamed_masks(folder, files, [path.stem for path in images])]
        raise DataError(
            f"{kind.parents[1].name}: {len(missing)} of {len(images)} masks of {kind.name!r} missing, first: "
            f"{folder / (missing[0].stem + '_mask.png')}. {'. '.join(filter(None, advice))}"
        )
    for stem in sorted(set(masks) - set(named)):
        raise DataError(_without_image(masks, stem, kind))
    return {path: masks[stem] for stem, path in named.items()}


def _without_image(masks: Mapping[str, Path], stem: str, kind: Path) -> str:
    """The complaint about a mask whose image `stem` is missing: another image may have two masks."""
    first = next((mask for name, mask in masks.items() if stem.startswith(f"{name}_mask")), None)
    if first:
        return f"{first} and {masks[stem]} are masks of the same image. {UNITE}"
    return f"{masks[stem]} is a mask without an image in {kind}"


def _shown(name: str) -> str:
    """A name as people see it: some systems store an accent as a letter of its own."""
    return unicodedata.normalize("NFC", name)
