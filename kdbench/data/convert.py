"""Convert images with annotations of other tools to a folder in the layout of the dataset `folder`."""

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from skimage.draw import polygon2mask

from kdbench.data.annotations import Labelled, read_coco, read_csv, read_yolo
from kdbench.dataset import NORMAL
from kdbench.errors import Complaints, RequestError, complained, number_of
from kdbench.files import IMAGE_SUFFIXES, beside, folded

Format = Literal["coco", "yolo", "csv"]
READERS: dict[Format, Callable[[Path, Path | None, Complaints], list[Labelled]]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "csv": read_csv,
}
COMBINED = "combined"  # the kind of an image with defects of several classes, as MVTec AD calls it
SHOWN = 30  # complaints


@dataclass(frozen=True, kw_only=True)
class Converted:
    """The images that were written."""

    num_train: int
    num_good: int  # normal test images
    kinds: dict[str, int]  # kind of defect -> its test images
    masks: bool  # whether masks were written
    boxes: int  # defective images of which at least one annotation is only a box
    left_out: tuple[str, ...]  # images beside those that the source lists
    split_given: bool


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an image goes: train/good, test/good or test/KIND, and its name there."""

    image: Labelled
    part: str
    name: str
    kind: str  # "" if it is normal


def convert(
    source: Path,
    format: Format,
    out: Path,
    *,
    images: Path | None = None,
    train_share: float = 0.8,
    seed: int = 0,
    use_masks: bool = True,
) -> Converted:
    """Write OUT/train/good, test/good, test/KIND and ground_truth/KIND; OUT must not exist.

    The share `train_share` of the normal images is for training, chosen by `seed` and the names, unless the
    source has a split. Raises RequestError with every complaint at once; then nothing is written.
    """
    complaints = Complaints()
    if out.exists():
        complaints.add(
            f"{out} is there already: nothing is overwritten. Name another folder, or move it away"
        )
    if not 0 < train_share < 1:
        complaints.add(f"the share of normal images for training is {train_share:g}: between 0 and 1")
    found = list[Labelled]()
    with complaints.collecting():
        if not source.exists():
            raise RequestError([f"no {source}"])
        found = READERS[format](source, images, complaints)
    places = _places(found, train_share, seed, complaints)
    boxed = [place for place in places if any(shape.is_box for shape in place.image.shapes)]
    defective = [place for place in places if place.kind]
    if use_masks and 0 < len(boxed) < len(defective):
        complaints.add(
            f"{len(boxed)} of {len(defective)} defective images have boxes, first {boxed[0].image.name}: a "
            f"box is no mask, and a category has masks of all defects or of none. Draw outlines, or say "
            f"--no-masks"
        )
    masked = use_masks and not boxed
    if masked:
        for place in defective:
            if not marked(place.image).any():
                complaints.add(f"{place.image.name}: its polygons hold no centre of a pixel")
    _check(complaints)
    with complained(f"cannot write {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = beside(out)
        try:
            _write(aside, places, masked)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Converted(
        num_train=sum(place.part == "train" for place in places),
        num_good=sum(place.part == "test" and not place.kind for place in places),
        kinds={kind: _count(defective, kind) for kind in sorted({place.kind for place in defective})},
        masks=masked,
        boxes=len(boxed),
        left_out=_left_out(found),
        split_given=any(place.image.split for place in places),
    )


def _left_out(found: Sequence[Labelled]) -> tuple[str, ...]:
    """Images in the folders of these that are none of these."""
    listed = {image.path.resolve() for image in found}
    there = sorted(path for folder in {image.path.parent for image in found} for path in folder.iterdir())
    images = [path for path in there if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    return tuple(str(path) for path in images if path.resolve() not in listed)


def marked(image: Labelled) -> np.ndarray:
    """The mask of an image's annotations, bool [H,W]: pixels with their centre in a polygon, or in a mask."""
    width, height = image.size
    united = np.zeros((height, width), bool)
    for shape in image.shapes:
        for polygon in shape.polygons:
            # scikit-image has the centre of the first pixel at 0, annotations have it at 0.5
            united |= polygon2mask((height, width), np.array(polygon)[:, ::-1] - 0.5)
        if shape.mask is not None:
            united |= shape.mask
    return united


def _places(found: Sequence[Labelled], train_share: float, seed: int, complaints: Complaints) -> list[_Place]:
    """Where each image goes, with complaints about what the layout cannot hold."""
    normal = [image for image in found if not image.shapes]
    order = sorted(normal, key=lambda image: hashlib.sha256(f"{seed}/{image.name}".encode()).hexdigest())
    chosen = {id(image) for image in order[: round(train_share * len(order))]}
    places, taken = list[_Place](), dict[tuple[str, str, str], Labelled]()
    for image in found:
        kinds = sorted({shape.kind for shape in image.shapes})
        kind = kinds[0] if len(kinds) == 1 else COMBINED if kinds else ""
        wrong = [name for name in kinds if not re.fullmatch(r"\w[\w .+-]*", name) or folded(name) in NORMAL]
        if wrong:
            complaints.add(
                f"{image.name} has the class {wrong[0]!r}, which cannot name a folder of defects. Rename it"
            )
        part = image.split or ("train" if id(image) in chosen else "test")
        if part == "train" and kind:
            complaints.add(
                f"{image.name} is defective and for training: kdbench trains on normal images only"
            )
        name = image.name.replace("/", "_")
        stem = folded(Path(name).stem)
        other = taken.setdefault((part, kind, stem), image)
        if other is not image:
            complaints.add(f"{other.name} and {image.name} would both be {part}/{kind or 'good'}/{name}")
        places.append(_Place(image=image, part=part, name=name, kind=kind))
    if complaints.texts:
        return places  # with these complaints, a count of the rest may mislead
    if found:
        trained = any(place.part == "train" for place in places)
        good = any(place.part == "test" and not place.kind for place in places)
        for there, what in ((trained, "normal image for training"), (good, "normal image for testing")):
            if not there:
                left = number_of(len(normal), "normal image")
                complaints.add(f"no {what} is left of {left} and {len(found)} in all")
        if len(normal) == len(found):
            complaints.add(f"none of {len(found)} images has a defect: no metric could be computed")
    else:
        complaints.add("there are no images")
    return places


def _write(folder: Path, places: Sequence[_Place], masked: bool) -> None:
    for place in places:
        target = folder / place.part / (place.kind or "good") / place.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place.image.path, target)
        if masked and place.kind:
            truth = folder / "ground_truth" / place.kind / f"{target.stem}_mask.png"
            truth.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 * marked(place.image).astype(np.uint8)).save(truth)


def _check(complaints: Complaints) -> None:
    """Raise RequestError with the first complaints, each once, and the number of the others."""
    texts = list(dict.fromkeys(complaints.texts))
    if len(texts) > SHOWN:
        texts = [*texts[:SHOWN], f"and {len(texts) - SHOWN} more complaints"]
    if texts:
        raise RequestError(texts)


def _count(places: Sequence[_Place], kind: str) -> int:
    return sum(place.kind == kind for place in places)
