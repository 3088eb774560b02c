"""The decoded image store: each image is decoded and resized once, for every process of a machine.

A store is a folder of .npy files in the cache, keyed by content, size and rule. It is built under a lock in
a temporary folder and renamed, so it is whole or it is not there; afterwards it is only memory-mapped.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kdbench.cell import canonical_json
from kdbench.dataset import Category, Dataset, Sample
from kdbench.errors import DataError, reason
from kdbench.files import build_once, cache_folder
from kdbench.metrics.exact import label_regions
from kdbench.metrics.presets import Preset

RULE = "rgb8-exif-pil_bilinear-square-v1"  # how a file becomes pixels; another rule is another name

MAX_PIXELS = 178_956_970  # a file that claims more is taken for a decompression bomb; PIL's own limit
Image.MAX_IMAGE_PIXELS = None  # checked here instead, without PIL's zone of warnings below the limit
AT_ONCE = 64  # images that are decoded before they are written

Tick = Callable[[int], None]  # told how many more images are done


@dataclass(frozen=True, kw_only=True)
class Images:
    """Decoded images of one category, uint8 [N,S,S,3], memory-mapped."""

    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth of the test images: label [N] bool, and int32 regions if the dataset has masks.

    `regions` [P] holds all images one after another, image i from `starts[i]` to `starts[i + 1]` with the
    shape `shapes[i]`: at their original sizes images need not be equal. `marked` [N] bool: what counts for
    pixel metrics; not a defect whose published mask is empty.
    """

    label: np.ndarray
    marked: np.ndarray
    regions: np.ndarray | None
    shapes: np.ndarray  # [N,2]

    @property
    def starts(self) -> np.ndarray:
        """[N+1], where each image's pixels begin."""
        return np.concatenate([[0], np.cumsum(self.shapes.prod(1))])


def open_images(
    dataset: Dataset, category: Category, fingerprint: str, size: int, tick: Tick | None = None
) -> Images:
    """The category's images at `size`, decoded now if no process did before; DataError names a bad file."""

    def build(folder: Path) -> None:
        _decode_all(category.train, size, folder / "train.npy", tick)
        _decode_all([s.path for s in category.test], size, folder / "test.npy", tick)

    folder = build_once(_key(dataset, category, fingerprint, RULE, size), build)
    return Images(train=np.load(folder / "train.npy", "r"), test=np.load(folder / "test.npy", "r"))


def images_ready(dataset: Dataset, category: Category, fingerprint: str, size: int) -> bool:
    """Whether `open_images` would find the store without decoding."""
    return _key(dataset, category, fingerprint, RULE, size).is_dir()


def store_name(dataset: Dataset, category: Category, fingerprint: str, size: int) -> str:
    """What identifies the pixels that `open_images` gives."""
    return _key(dataset, category, fingerprint, RULE, size).name


def open_truth(dataset: Dataset, category: Category, fingerprint: str, preset: Preset) -> Truth:
    """Labels and labelled defect regions at the preset's evaluation size; DataError names a bad mask."""
    label = np.array([sample.label for sample in category.test])
    if not category.has_masks:
        none = np.zeros((len(label), 2), int)
        return Truth(label=label, marked=np.zeros_like(label), regions=None, shapes=none)

    def build(folder: Path) -> None:
        with ThreadPoolExecutor() as pool:
            masks, filled = zip(*pool.map(lambda s: _mask(dataset, s, preset), category.test), strict=True)
        regions, count = [], 0
        for mask in masks:
            own = label_regions(mask[None])[0]
            regions.append(np.where(own > 0, own + count, 0).ravel().astype(np.int32))
            count += int(own.max())
        np.save(folder / "regions.npy", np.concatenate(regions))
        np.save(folder / "shapes.npy", np.array([mask.shape for mask in masks]))
        np.save(folder / "marked.npy", np.array(filled) | ~label)

    folder = build_once(_key(dataset, category, fingerprint, preset.mask_rule, preset.evaluation_size), build)
    marked, shapes = np.load(folder / "marked.npy"), np.load(folder / "shapes.npy")
    return Truth(label=label, marked=marked, regions=np.load(folder / "regions.npy", "r"), shapes=shapes)


def decode(path: Path, size: int) -> np.ndarray:
    """A file as uint8 [S,S,3]: upright by EXIF, RGB, bilinear with anti-aliasing, aspect not kept."""
    image = open_upright(path)
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def open_upright(path: Path) -> Image.Image:
    """The upright image in a mode that PIL converts without loss of meaning; DataError with the path."""
    with _reading(path, "an image"), Image.open(path) as file:
        _check_size(file)
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode == "F":
        raise DataError(
            f"{path} has floating-point values, whose white nothing says: save it with 8 or 16 bit"
        )
    if image.mode.startswith("I"):  # PIL's own conversion clips, it does not scale
        values = np.asarray(image, np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"{path} has values from {values.min()} to {values.max()}; 16 bit is 0 to 65535")
        if values.max() < 4096:  # all of it would be black: 8, 10 or 12 bit in a file of more
            raise DataError(f"{path} has no value above {values.max():.0f} of 65535: scale it to all 16 bit")
        return Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever PIL's parsers raise into one DataError with the path."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as {what}: {reason(error)}") from error


def _check_size(file: Image.Image) -> None:
    if file.width * file.height > MAX_PIXELS:
        raise ValueError(f"it claims {file.width}x{file.height} pixels, more than {MAX_PIXELS:,} are refused")


def read_mask(dataset: Dataset, sample: Sample) -> np.ndarray:
    """What the mask marks, bool [H,W] at its original size; DataError if it does not fit its image."""
    assert sample.mask is not None
    grey = _opened_mask(sample.mask, lossless=dataset.mask_above == 0)
    with _reading(sample.path, "an image"), Image.open(sample.path) as file:  # header only
        turned = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        expected = file.size[::-1] if turned else file.size
    if grey.size != expected:
        sizes = f"{grey.size[0]}x{grey.size[1]}, its image {expected[0]}x{expected[1]}"
        raise DataError(f"{sample.mask} is {sizes}: {sample.path}")
    return np.asarray(grey) > dataset.mask_above


def marks_nothing(sample: Sample) -> str:
    """What is wrong with a defect whose mask is empty, where the published data has no such masks."""
    return f"{sample.mask} marks no defect, but {sample.path} is in the folder of defects"


def _mask(dataset: Dataset, sample: Sample, preset: Preset) -> tuple[np.ndarray, bool]:
    """Bool [H,W] by the preset, all False without a mask; and whether the mask marks anything originally."""
    size = (preset.evaluation_size, preset.evaluation_size)
    if sample.mask is None:
        if not preset.evaluation_size:
            with _reading(sample.path, "an image"):
                size = open_upright(sample.path).size
        return np.zeros(size[::-1], bool), False
    marked = read_mask(dataset, sample)
    filled = bool(marked.any())
    if not filled and not dataset.empty_masks:
        raise DataError(marks_nothing(sample))
    if not preset.evaluation_size:
        return marked, filled
    if preset.mask_rule == "nearest":
        return np.asarray(Image.fromarray(marked).resize(size, Image.Resampling.NEAREST)), filled
    if preset.mask_rule == "two-tap bilinear > 0":
        return _two_tap(marked, size) > 0.5 / 255, filled  # what is not 0 once it is rounded to 8 bits
    soft = Image.fromarray(marked.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(soft) > 0.5, filled


def _two_tap(marked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear between the two nearest pixels of each axis, as OpenCV does; PIL averages all between."""
    from skimage.transform import resize

    found: np.ndarray = resize(
        marked.astype(np.float32), size[::-1], order=1, mode="edge", anti_aliasing=False
    )
    return found


def _opened_mask(path: Path, *, lossless: bool) -> Image.Image:
    """The mask's raw values (class ids stay class ids) as a grey image.

    JPEG surrounds a defect with small values, which are defects too, and regions, where all above 0 is one.
    """
    with _reading(path, "a mask"), Image.open(path) as file:
        if lossless and file.format == "JPEG":
            raise ValueError("JPEG blurs what is marked; save masks as PNG")
        _check_size(file)
        file.load()
        alpha = file.mode in ("LA", "PA", "RGBA")
        values = np.asarray(file)
    if values.ndim == 3:
        values = values[..., :-1].max(-1) if alpha else values.max(-1)  # opaque is not defective
    if values.dtype == bool:
        values = values * np.uint8(255)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _decode_all(paths: Sequence[Path], size: int, target: Path, tick: Tick | None) -> None:
    """Decode in parallel and write in order: writing, unlike mapping, says when the disk is full."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), size, size, 3)}
    with target.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL lets other threads run
        np.lib.format.write_array_header_2_0(file, header)
        for first in range(0, len(paths), AT_ONCE):  # bounds what waits to be written
            for pixels in pool.map(lambda path: decode(path, size), paths[first : first + AT_ONCE]):
                file.write(pixels.tobytes())
                if tick:
                    tick(1)


def _key(dataset: Dataset, category: Category, fingerprint: str, rule: str, size: int) -> Path:
    digest = hashlib.sha256(canonical_json([fingerprint, rule, size]).encode()).hexdigest()[:12]
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{dataset.name}-{category.name}-{size}")
    return cache_folder() / "images" / f"{name}-{digest}"
