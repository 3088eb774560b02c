"""Read the masks of test images, check that they fit, and collect remarks for a person to judge."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbench import picture
from kdbench.dataset import Category, Dataset, Sample
from kdbench.errors import DataError, number_of
from kdbench.picture import read_header

# A mask that marks a larger share of its image may be inverted: a person has to look. We measured 771 masks
# of MVTec AD (bottle, grid, screw, transistor), VisA (capsules) and the magnetic tiles: the largest marks
# 0.492 of its image (transistor, misplaced/008), the next 0.489 and 0.485. Inverted, all of them would be
# above this share.
LARGE_MASK = 0.5
SHOWN = 3  # paths that a remark names


@dataclass(frozen=True, kw_only=True)
class Remarks:
    """Masks of a category that a run and a check remark on, as paths below its root."""

    large: Sequence[str] = ()  # mark more than LARGE_MASK of their image
    turned: Sequence[str] = ()  # are not turned by EXIF, but their image is
    lost: Sequence[str] = ()  # mark nothing at the size at which pixels are judged

    def __add__(self, other: "Remarks") -> "Remarks":
        return Remarks(
            large=(*self.large, *other.large),
            turned=(*self.turned, *other.turned),
            lost=(*self.lost, *other.lost),
        )

    def texts(self, category: str, *, accept_large: bool = False) -> list[str]:
        """One sentence for each kind that occurs, with the first paths."""
        texts = []
        if self.large and not accept_large:
            texts.append(
                f"{category}: {_masks(self.large)} more than {LARGE_MASK:.0%} of the image; no mask does so "
                f"in the published datasets that we measured. Inverted, or saved without its colours? If the "
                f"defects are that large, say --large-masks. {_paths(self.large)}"
            )
        if self.turned:
            texts.append(
                f"{category}: {_masks(self.turned, 'belongs', 'belong')} to an image that EXIF turns, and "
                f"says no orientation: taken as drawn on the upright image. {_paths(self.turned)}"
            )
        if self.lost:
            texts.append(
                f"{category}: {_masks(self.lost)} nothing at the size at which pixels are judged, and their "
                f"defects count as normal there; preset mvtec_original keeps sizes. {_paths(self.lost)}"
            )
        return texts


NOTHING = Remarks()


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The mask of a test image at its original size."""

    marked: np.ndarray  # bool [H,W]
    turned: bool  # EXIF turns the image and not the mask

    @property
    def digest(self) -> str:
        """A hash of what it marks: equal for masks that mark the same pixels."""
        return hashlib.sha256(repr(self.marked.shape).encode() + self.marked.tobytes()).hexdigest()

    @property
    def share(self) -> float:
        """The share of the image that it marks."""
        return float(self.marked.mean())


def read_mask(dataset: Dataset, sample: Sample) -> Mask:
    """The union of the masks of a defective image.

    DataError if one cannot be read, does not fit its image, or marks nothing although the published dataset
    has no empty masks.
    """
    image = read_header(sample.path)
    width, height = image.size
    united, turned = np.zeros((height, width), bool), False
    for path in sample.masks:
        marked = picture.read_mask(path, dataset.mask_above, dataset.max_mask_values)
        turned |= image.orientation != 1 and read_header(path, "a mask").orientation == 1
        if marked.shape != (height, width):
            sizes = f"{marked.shape[1]}x{marked.shape[0]}, its image {width}x{height}"
            hint = ". EXIF turns the image and not the mask: save both upright" if turned else ""
            raise DataError(f"{path} is {sizes}: {sample.path}{hint}")
        if not marked.any() and not dataset.empty_masks:
            raise DataError(f"{path} marks no defect, but {sample.path} is in the folder of defects")
        united |= marked
    return Mask(marked=united, turned=turned)


def copies(category: Category, digests: Mapping[str, str]) -> list[str]:
    """A note on masks that mark exactly the same pixels; `digests` are those of masks by path."""
    first: dict[str, str] = {}
    again = [
        (first[digest], path) for path, digest in digests.items() if first.setdefault(digest, path) != path
    ]
    if not again:
        return []
    one, other = again[0]
    return [
        f"{category.name}: {_masks([path for _, path in again])} exactly the pixels that another one marks. "
        f"Copied to the wrong image? First: {other}, as {one}"
    ]


def check_blank(dataset: Dataset, mask: Path) -> None:
    """DataError for a mask of a normal image that marks something."""
    if picture.read_mask(mask, dataset.mask_above, dataset.max_mask_values).any():
        raise DataError(f"{mask} marks a defect in a normal image: is the image in the wrong folder?")


def remarks_of(category: Category, sample: Sample, mask: Mask) -> Remarks:
    """The remarks on this mask."""
    assert sample.mask is not None
    name = (category.relative(sample.mask),)
    return Remarks(large=name if mask.share > LARGE_MASK else (), turned=name if mask.turned else ())


def _masks(paths: Sequence[str], one: str = "marks", many: str = "mark") -> str:
    return f"{number_of(len(paths), 'mask')} {one if len(paths) == 1 else many}"


def _paths(paths: Sequence[str]) -> str:
    more = len(paths) - SHOWN
    return ", ".join(paths[:SHOWN]) + (f" and {more} more" if more > 0 else "")
