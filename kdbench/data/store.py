"""The decoded image store: each image is decoded and resized once, for every process of a machine.

A store is a folder of .npy files in the cache, keyed by content, size and rule. It is built under a lock in
a temporary folder and renamed, so it is whole or it is not there; afterwards it is only memory-mapped.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from kdbench import machine
from kdbench.cell import digest_of
from kdbench.data.masks import NOTHING, Remarks, check_blank, read_mask, remarks_of
from kdbench.data.together import Seen, check_together
from kdbench.dataset import Category, Dataset, Sample
from kdbench.files import build_once, cache_folder
from kdbench.metrics.exact import label_regions
from kdbench.metrics.presets import Preset
from kdbench.picture import open_image, read_header, resized

RULE = "rgb8-exif-pil_bilinear-square-v1"  # how a file becomes pixels; another rule is another name
READER = 4  # version of the checks on files: an older store may hold files that are refused now
NAME_BYTES = 100  # of dataset and category in the name of a store; file systems take 255 in all
SATURATING = "saturating.npz"
HIGHEST = "highest.txt"  # of 16-bit values
AT_ONCE = 64  # images that are decoded before they are written

Tick = Callable[[int], None]  # told how many more images are done


@dataclass(frozen=True, kw_only=True)
class Images:
    """Decoded images of one category, uint8 [N,S,S,3], memory-mapped.

    `highest` is the highest value of its files of 16 bit, of 65535; 0 without any.
    """

    train: np.ndarray
    test: np.ndarray
    highest: int = 0


@dataclass(frozen=True, kw_only=True)
class Saturating:
    """Defects with saturation areas: how much of each must be found. They may overlap.

    Pixel `pixel[q]`, an index into `Truth.regions`, belongs to region `region[q]`, which counts from 1; a
    region counts as found once `area[region - 1]` of its pixels are found.
    """

    pixel: np.ndarray  # int64 [Q]
    region: np.ndarray  # int32 [Q]
    area: np.ndarray  # float64 [R]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Ground truth of the test images: label [N] bool, and int32 regions if the dataset has masks.

    `regions` [P] holds all images one after another, image i from `starts[i]` to `starts[i + 1]` with the
    shape `shapes[i]`: at their original sizes images need not be equal. `marked` [N] bool says which images
    count for pixel metrics: all but defective ones whose published mask is empty.
    """

    label: np.ndarray
    marked: np.ndarray
    regions: np.ndarray | None
    shapes: np.ndarray  # [N,2]
    remarks: Remarks = NOTHING
    saturating: Saturating | None = None  # of a dataset whose `saturations` says it

    @property
    def starts(self) -> np.ndarray:
        """[N+1], where each image's pixels begin."""
        return np.concatenate([[0], np.cumsum(self.shapes.prod(1))])


def open_images(
    dataset: Dataset, category: Category, fingerprint: str, size: int, tick: Tick | None = None
) -> Images:
    """The category's images at `size`, decoded now if no process did before; DataError names a bad file."""

    def build(folder: Path) -> None:
        train = _decode_all(category.train, size, folder / "train.npy", tick)
        test = _decode_all([s.path for s in category.test], size, folder / "test.npy", tick)
        check_together(category, train, test)
        (folder / HIGHEST).write_text(str(max(seen.highest for seen in (*train, *test))))

    folder = build_once(_key(dataset, category, fingerprint, RULE, size), build)
    return Images(
        train=np.load(folder / "train.npy", "r"),
        test=np.load(folder / "test.npy", "r"),
        highest=int((folder / HIGHEST).read_text()),
    )


def images_ready(dataset: Dataset, category: Category, fingerprint: str, size: int) -> bool:
    """Whether `open_images` would find the store without decoding."""
    return _key(dataset, category, fingerprint, RULE, size).is_dir()


def store_name(dataset: Dataset, category: Category, fingerprint: str, size: int) -> str:
    """A name that stands for the pixels of `open_images`."""
    return _key(dataset, category, fingerprint, RULE, size).name


def open_truth(dataset: Dataset, category: Category, fingerprint: str, preset: Preset) -> Truth:
    """Labels and labelled defect regions at the preset's evaluation size; DataError names a bad mask."""
    label = np.array([sample.label for sample in category.test])
    if not category.has_masks:
        none = np.zeros((len(label), 2), int)
        return Truth(label=label, marked=np.zeros_like(label), regions=None, shapes=none)

    folder = build_once(
        _key(dataset, category, fingerprint, preset.mask_rule, preset.evaluation_size),
        lambda folder: _build_truth(dataset, category, preset, folder),
    )
    return Truth(
        label=label,
        marked=np.load(folder / "marked.npy"),
        regions=np.load(folder / "regions.npy", "r"),
        shapes=np.load(folder / "shapes.npy"),
        remarks=Remarks(**json.loads((folder / "remarks.json").read_bytes())),
        saturating=_saturating(folder / SATURATING),
    )


def _saturating(file: Path) -> Saturating | None:
    if not file.is_file():
        return None
    with np.load(file) as arrays:
        return Saturating(**{field.name: arrays[field.name] for field in fields(Saturating)})


def _build_truth(dataset: Dataset, category: Category, preset: Preset, folder: Path) -> None:
    """Read all masks and write what `open_truth` reads."""

    def read(sample: Sample) -> tuple[np.ndarray, bool, Remarks]:
        """The mask at the preset's size, whether it marks anything originally, and its remarks."""
        if sample.mask is None:
            return _empty(sample, preset), False, NOTHING
        mask = read_mask(dataset, sample)
        marked, remarks = _at_size(mask.marked, preset), remarks_of(category, sample, mask)
        lost = mask.share > 0 and not marked.any()
        return marked, mask.share > 0, replace(remarks, lost=[category.relative(sample.mask)] if lost else [])

    with ThreadPoolExecutor(machine.cores()) as pool:
        masks, filled, remarks = zip(*pool.map(read, category.test), strict=True)
        list(pool.map(lambda mask: check_blank(dataset, mask), category.blank))
    regions, count = [], 0
    for mask in masks:
        own = label_regions(mask[None])[0]
        regions.append(np.where(own > 0, own + count, 0).ravel().astype(np.int32))
        count += int(own.max())
    normal = [not sample.label for sample in category.test]
    np.save(folder / "regions.npy", np.concatenate(regions))
    np.save(folder / "shapes.npy", np.array([mask.shape for mask in masks]))
    np.save(folder / "marked.npy", np.array(filled) | np.array(normal))
    (folder / "remarks.json").write_text(json.dumps(asdict(sum(remarks, NOTHING))))
    areas = dataset.saturations(category)
    if areas is not None:
        starts = np.concatenate([[0], np.cumsum([mask.size for mask in masks])])
        found = _defects(dataset, category, areas, preset, starts)
        np.savez(folder / SATURATING, pixel=found.pixel, region=found.region, area=found.area)


def _defects(
    dataset: Dataset, category: Category, areas: Mapping[Path, float], preset: Preset, starts: np.ndarray
) -> Saturating:
    """One region for each mask. If a mask is made smaller, so is the area that must be found."""
    pixels, regions, saturation = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], []
    for sample, start in zip(category.test, starts, strict=False):
        for path in sample.masks:
            marked = read_mask(dataset, replace(sample, mask=path, more_masks=())).marked
            inside = np.flatnonzero(_at_size(marked, preset))
            if not len(inside):
                continue  # the remarks name it
            saturation.append(max(1.0, areas[path] * len(inside) / marked.sum()))
            pixels.append(start + inside)
            regions.append(np.full(len(inside), len(saturation), np.int32))
    return Saturating(
        pixel=np.concatenate(pixels), region=np.concatenate(regions), area=np.array(saturation, np.float64)
    )


def decode(image: Path | np.ndarray, size: int) -> np.ndarray:
    """A file, or an RGB array uint8 [H,W,3], as uint8 [S,S,3]: as images of a dataset are."""
    return look(image, size)[0] if isinstance(image, Path) else resized(Image.fromarray(image), size)


def look(path: Path, size: int) -> tuple[np.ndarray, Seen]:
    """The pixels of a file, and the facts that compare the image with others, at its original size."""
    picture = open_image(path)
    pixels = resized(picture.image, size)
    seen = Seen(
        content=picture.content(),
        transparent=picture.transparent,
        profile=picture.profile,
        flat=picture.flat,
        highest=picture.highest,
    )
    return pixels, seen


def _empty(sample: Sample, preset: Preset) -> np.ndarray:
    """The mask of an image without one, at the preset's size."""
    size = preset.evaluation_size
    return np.zeros((size, size) if size else read_header(sample.path).size[::-1], bool)


def _at_size(marked: np.ndarray, preset: Preset) -> np.ndarray:
    """A mask at the preset's evaluation size, by its rule."""
    size = (preset.evaluation_size, preset.evaluation_size)
    if not preset.evaluation_size:
        return marked
    if preset.mask_rule == "nearest":
        return np.asarray(Image.fromarray(marked).resize(size, Image.Resampling.NEAREST))
    if preset.mask_rule == "two-tap bilinear > 0":
        return _two_tap(marked, size) > 0.5 / 255  # what is not 0 once it is rounded to 8 bits
    soft = Image.fromarray(marked.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(soft) > 0.5


def _two_tap(marked: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear between the two nearest pixels of each axis, as OpenCV does; PIL averages all between."""
    from skimage.transform import resize

    found: np.ndarray = resize(
        marked.astype(np.float32), size[::-1], order=1, mode="edge", anti_aliasing=False
    )
    return found


def _decode_all(paths: Sequence[Path], size: int, target: Path, tick: Tick | None) -> list[Seen]:
    """Decode in parallel and write in order: writing, unlike mapping, says when the disk is full."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), size, size, 3)}
    seen: list[Seen] = []
    with target.open("wb") as file, ThreadPoolExecutor(machine.cores()) as pool:  # PIL lets other threads run
        np.lib.format.write_array_header_2_0(file, header)
        for first in range(0, len(paths), AT_ONCE):  # bounds what waits to be written
            for pixels, one in pool.map(lambda path: look(path, size), paths[first : first + AT_ONCE]):
                file.write(pixels.tobytes())
                seen.append(one)
                if tick:
                    tick(1)
    return seen


def _key(dataset: Dataset, category: Category, fingerprint: str, rule: str, size: int) -> Path:
    digest = digest_of([fingerprint, rule, size, READER])[:12]
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{dataset.name}-{category.name}")
    short = name.encode()[:NAME_BYTES].decode(errors="ignore")  # what follows tells categories apart
    name = f"{short}-{size}"
    return cache_folder() / "images" / f"{name}-{digest}"
