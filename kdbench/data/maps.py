"""Find, read and check anomaly maps and image scores of another program.

A map has the path of its test image below the root of the dataset, with another suffix.
"""

import csv
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdbench.dataset import Category
from kdbench.errors import Complaints, DataError, first_line
from kdbench.files import csv_head, csv_rows, read_text
from kdbench.picture import MAX_PIXELS, opened, orientation_of, read_header, refuse_unclear

SUFFIXES = (".tiff", ".tif", ".npy", ".npz", ".png")
GREY = ("F", "I", "I;16", "I;16B", "I;16L", "L")  # Pillow's modes of one channel of numbers
COLUMNS = ("image", "image_score")
SHOWN = 3  # paths that a complaint names


@dataclass(frozen=True, kw_only=True)
class Given:
    """Maps and scores of another program, and the categories that they cover."""

    maps: dict[str, dict[str, Path]] = field(default_factory=dict)  # category -> image -> file
    scores: Mapping[str, float] | None = None  # by image; None: the largest value of each map
    categories: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()  # categories without maps and scores


def find(maps: Path | None, scores: Path | None, categories: Sequence[Category], *, all_of: bool) -> Given:
    """The maps and scores of the categories' test images.

    Categories without any are left out, unless `all_of`. Raises RequestError with a complaint for whatever is
    missing, is there twice or belongs to no image.
    """
    complaints, by_category = Complaints(), dict[str, dict[str, Path]]()
    images = {one.name: [one.relative(sample.path) for sample in one.test] for one in categories}
    values: dict[str, float] | None = None
    if scores is not None:
        with complaints.collecting():
            values = read_scores(scores)
            complaints.add(*_of_no_image(scores, values, images))
    if maps is not None and not maps.is_dir():
        complaints.add(f"no folder of maps {str(maps)!r}")
    elif maps is not None:
        for name, own in images.items():
            with complaints.collecting():
                by_category[name] = _files(maps, own)
    complaints.check()
    there = by_category if maps is not None else {name: values or {} for name in images}
    wanted = [name for name, own in images.items() if all_of or any(image in there[name] for image in own)]
    if not wanted:
        first = next(iter(images.values()))[0]
        complaints.add(f"{maps or scores} has nothing for any test image, such as {first}")
    for name in wanted:
        if maps is not None:
            complaints.add(*_missing(name, "maps", f"in {maps}", images[name], by_category[name]))
        if values is not None:
            complaints.add(*_missing(name, "image scores", f"in {scores}", images[name], values))
    complaints.check()
    return Given(
        maps={name: by_category[name] for name in wanted} if maps is not None else {},
        scores=values,
        categories=tuple(wanted),
        left_out=tuple(name for name in images if name not in wanted),
    )


def read_map(path: Path, image: Path) -> np.ndarray:
    """One anomaly map as float32 [H,W]; DataError with the path if it is unreadable or no map of `image`."""
    values = _array(path) if path.suffix.lower() in (".npy", ".npz") else _picture(path)
    values = values.reshape([side for side in values.shape if side != 1] or [1])  # [1,H,W] and [H,W,1], too
    if values.ndim != 2:
        raise DataError(f"{path} has the shape {list(values.shape)}: an anomaly map is [H,W]")
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path} has values of the type {values.dtype}: an anomaly map has numbers")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        number = int((~finite).sum())
        raise DataError(f"{path} has {number} of {values.size} values that are NaN or infinite in 32 bit")
    if values.min() == values.max():
        raise DataError(f"{path} is constant: all {values.size} values are {values.flat[0]:g}")
    _check_shape(path, values.shape, shape_of(image))
    return values


def read_scores(path: Path) -> dict[str, float]:
    """Image -> score of a CSV file with the columns `image` and `image_score`; others are ignored.

    Raises DataError if it is no such file, RequestError with a complaint for every wrong line.
    """
    try:
        text = read_text(path)
        head = csv_head(text)
        absent = [name for name in COLUMNS if name not in head]
        if absent:
            there = ", ".join(head) or "nothing"
            raise DataError(f"{path} has no column {' and no column '.join(absent)}. Its first line: {there}")
        rows = [(line["image"], line["image_score"], number) for number, line in csv_rows(text)]
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {first_line(error)}") from error
    complaints, values = Complaints(), dict[str, float]()
    for image, written, number in rows:
        try:  # Python's own 1_0 is 10
            value = math.nan if "_" in written else float(written)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            complaints.add(
                f"{path}, line {number}: the score of {image} is {written!r}, which is no finite number"
            )
        if image in values:
            complaints.add(f"{path}, line {number}: {image} has a score already")
        values[image] = value
    if not rows:
        complaints.add(f"{path} has no line below its head")
    complaints.check()
    return values


def _files(maps: Path, images: Sequence[str]) -> dict[str, Path]:
    """Image -> its map; RequestError for two maps of an image, and for maps that belong to no image."""
    complaints, found = Complaints(), dict[str, Path]()
    by_stem = dict[str, str]()
    for image in images:
        other = by_stem.setdefault(image.rpartition(".")[0], image)
        if other != image:
            complaints.add(f"{other} and {image} would share a map. Rename one")
    for folder in sorted({Path(image).parent for image in images}):
        here = maps / folder
        for path in sorted(here.iterdir()) if here.is_dir() else ():
            if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
                continue
            owner = by_stem.get((folder / path.stem).as_posix())
            if owner is None:
                complaints.add(f"{path} is a map of no test image")
            elif owner in found:
                complaints.add(f"{found[owner]} and {path} are maps of the same image")
            else:
                found[owner] = path
    complaints.check()
    return found


def _of_no_image(scores: Path, values: Iterable[str], images: Mapping[str, Sequence[str]]) -> list[str]:
    """A complaint for each score in the folders of these categories that belongs to no test image."""
    known = {image for own in images.values() for image in own}
    tops = {image.partition("/")[0] for image in known}
    wrong = [one for one in values if one not in known and one.partition("/")[0] in tops]
    return [f"{scores}: {one} is no test image" for one in wrong]


def _missing(
    category: str, what: str, where: str, images: Sequence[str], there: Mapping[str, object]
) -> list[str]:
    """A complaint with the first images that are not in `there`; nothing if all are."""
    missing = [image for image in images if image not in there]
    if not missing:
        return []
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    first = ", ".join(missing[:SHOWN])
    return [f"{category}: {len(missing)} of {len(images)} {what} are missing {where}: {first}{more}"]


def _array(path: Path) -> np.ndarray:
    """The array of an NPY file, the only one of an NPZ file."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = loaded.files
            if len(names) == 1:
                return np.asarray(loaded[names[0]])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an anomaly map: {first_line(error)}") from error
    raise DataError(f"{path} has {len(names)} arrays ({', '.join(names)}): an anomaly map is one")


def _picture(path: Path) -> np.ndarray:
    """The values of a TIFF or PNG file with one page and one channel."""
    with opened(path, "an anomaly map") as file:
        pages = int(getattr(file, "n_frames", 1))
        if pages > 1:
            raise ValueError(f"it has {pages} pages")
        if orientation_of(file) != 1:
            raise ValueError("EXIF turns it, and nothing says whether its pixels are turned: save it without")
        if file.mode not in GREY:
            raise ValueError(
                f"it has the channels of {file.mode}: a map is grey, of 16 bit or floating-point"
            )
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"it claims {file.width}x{file.height} pixels")
        refuse_unclear(file)
        return np.array(file)


def shape_of(image: Path) -> tuple[int, int]:
    """Height and width of an upright image."""
    width, height = read_header(image).size
    return height, width


def _check_shape(path: Path, shape: tuple[int, ...], image: tuple[int, int]) -> None:
    """DataError unless a map is square, as methods see images, or has its image's shape, within a pixel."""
    height, width = shape
    off = abs(height * image[1] - width * image[0]) / max(image)  # pixels on the shorter side
    if height != width and off > 1:
        raise DataError(
            f"{path} is {width}x{height}, its image {image[1]}x{image[0]}: a map is square or has the shape "
            "of its image. Was a part cut off?"
        )
