"""Read annotations of other tools, in COCO, YOLO or CSV files: which images have which defects where.

Coordinates are pixels from the upper left corner; the centre of the first pixel is at 0.5. All complaints are
collected; an unclear annotation is a complaint and never left out in silence.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath

import numpy as np

from kdbench.dataset import NORMAL
from kdbench.errors import Complaints, DataError, RequestError, reason
from kdbench.files import IMAGE_SUFFIXES, columns_twice, folded, read_text
from kdbench.picture import read_header

OUTSIDE = 1.0  # pixels by which a point may lie outside of its image: tools round
COLUMNS = ("image", "kind")  # of a CSV; polygon, box and split may follow
KNOWN = (*COLUMNS, "polygon", "box", "split")
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One annotation: a class with polygons, with a mask [H,W], or with neither where it is a box."""

    kind: str
    polygons: Sequence[Sequence[Point]] = ()
    mask: np.ndarray | None = None

    @property
    def is_box(self) -> bool:
        return not self.polygons and self.mask is None


@dataclass(kw_only=True)
class Labelled:
    """An image and its annotations; without any it is normal. `split` is "train", "test" or not given."""

    path: Path
    name: str  # below the folder of images, with forward slashes
    size: tuple[int, int]  # width, height
    shapes: list[Shape] = field(default_factory=list)
    split: str = ""


def read_coco(file: Path, images: Path | None, complaints: Complaints) -> list[Labelled]:
    """A COCO file; its images lie in `images`, or beside it. RequestError if it is no COCO file at all."""
    parts = _coco_parts(file)
    kinds = dict[int | None, str]()
    for entry in parts["categories"]:
        number, called = _number(entry, "id"), str(entry.get("name", ""))
        if kinds.setdefault(number, called) != called:
            complaints.add(f"{file}: two categories have the id {number}: {kinds[number]} and {called}")
    listed, found = dict[int, str](), dict[int, Labelled]()
    for entry in parts["images"]:
        number, name = _number(entry, "id"), entry.get("file_name")
        if number is None or not isinstance(name, str):
            complaints.add(f"{file}: the image {json.dumps(entry)[:100]} has no id or no file_name")
            continue
        if number in listed:
            complaints.add(f"{file}: two images have the id {number}: {listed[number]} and {name}")
        elif name in listed.values():
            complaints.add(f"{file}: the image {name} is listed twice")
        elif image := _image(file, images or file.parent, name, complaints):
            stated = (entry.get("width", image.size[0]), entry.get("height", image.size[1]))
            if stated != image.size:
                complaints.add(f"{file}: {name} is {_by(stated)} there, the file is {_by(image.size)}")
            found[number] = image
        listed.setdefault(number, name)
    for entry in parts["annotations"]:
        where = f"{file}: annotation {entry.get('id')}"
        of, kind = _number(entry, "image_id"), _number(entry, "category_id")
        if of is None or of not in listed:
            complaints.add(f"{where} is of the image {entry.get('image_id')!r}, which is not listed")
        elif kind is None or kind not in kinds:
            complaints.add(f"{where} has the category {entry.get('category_id')!r}, which is not listed")
        elif of in found:
            with complaints.collecting():
                found[of].shapes.append(_coco_shape(where, entry, kinds[kind], found[of]))
    return list(found.values())


def read_yolo(folder: Path, images: Path | None, complaints: Complaints) -> list[Labelled]:
    """A folder with images/ and labels/, and with the names of classes in classes.txt or data.yaml."""
    pictures, labels = images or folder / "images", folder / "labels"
    for path in (pictures, labels):
        if not path.is_dir():
            complaints.add(f"no folder {path}: YOLO has images/NAME.jpg and labels/NAME.txt")
    kinds: Mapping[int, str] = {}
    with complaints.collecting():
        kinds = _yolo_names(folder)
    complaints.check()
    found: dict[str, Labelled] = {}
    for path in sorted(path for path in pictures.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        name = path.relative_to(pictures).as_posix()
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            complaints.add(f"{found[stem].path} and {path} would share {labels / stem}.txt. Rename one")
        elif image := _image(folder, pictures, name, complaints):
            found[stem] = image
    for file in sorted(labels.rglob("*.txt")):
        stem = file.relative_to(labels).with_suffix("").as_posix()
        if file.name == "classes.txt":
            continue
        if stem not in found:
            complaints.add(f"{file} has no image {pictures / stem} with one of {', '.join(IMAGE_SUFFIXES)}")
            continue
        with complaints.collecting():
            lines = list(_lines(file))
            for number, line in enumerate(lines, 1):
                if line.strip():
                    with complaints.collecting():
                        shape = _yolo_shape(f"{file}, line {number}", line, kinds, found[stem].size)
                        found[stem].shapes.append(shape)
    return list(found.values())


def read_csv(file: Path, images: Path | None, complaints: Complaints) -> list[Labelled]:
    """A CSV with the columns image and kind, and perhaps polygon, box and split; a line per annotation.

    `polygon` is "x y x y x y ..."; `box` may hold any text and only labels the image. `kind` is empty or
    "good" if the image is normal. Raises RequestError without the first two columns.
    """
    reader = csv.DictReader(io.StringIO("\n".join(_lines(file)), newline=""))
    absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if wrong := columns_twice(reader.fieldnames or ()):
        complaints.add(f"{file}: {wrong}")
    if absent:
        raise RequestError(
            [f"{file} has no column {', '.join(absent)}. It has {reader.fieldnames or 'none'}"]
        )
    for name in reader.fieldnames or ():
        if name not in KNOWN and name.strip().lower() in KNOWN:
            complaints.add(f"{file}: the column {name!r} is not read. Call it {name.strip().lower()!r}")
    found: dict[str, Labelled] = {}
    normal: set[str] = set()
    for number, row in enumerate(reader, 2):
        where = f"{file}, line {number}"
        if None in row or None in row.values():
            complaints.add(f"{where} has not {len(reader.fieldnames or ())} fields, as the first line has")
            continue
        name, kind, split = (str(row.get(column, "")).strip() for column in ("image", "kind", "split"))
        image = found.get(name) or _image(file, images or file.parent, name, complaints)
        if image is None:
            continue
        if split not in ("train", "test") and "split" in row:
            complaints.add(f"{where}: the split of {name} is {split!r} and not train or test")
        elif name in found and image.split != split:
            complaints.add(f"{where}: {name} is for {split!r} here and for {image.split!r} before")
        found.setdefault(name, image).split = split
        if not kind or folded(kind) in NORMAL:
            normal.add(name)
            if row.get("polygon") or row.get("box"):
                complaints.add(f"{where}: {name} is normal and has a polygon or a box")
        else:
            with complaints.collecting():
                points = _numbers(where, (row.get("polygon") or "").split())
                polygons = [_polygon(where, points, image.size)] if points else []
                image.shapes.append(Shape(kind=kind, polygons=polygons))
        if image.shapes and name in normal:
            complaints.add(f"{where}: {name} is normal in one line and defective in another")
    return list(found.values())


def _number(entry: Mapping[str, object], key: str) -> int | None:
    value = entry.get(key)
    return value if isinstance(value, int) else None


def _coco_parts(file: Path) -> dict[str, list[dict[str, object]]]:
    """The lists of a COCO file; RequestError for what is no COCO file."""
    try:
        content = json.loads("\n".join(_lines(file)))
    except ValueError as error:
        raise RequestError([f"{file} is no JSON: {error}"]) from error
    parts, missing = dict[str, list[dict[str, object]]](), []
    for name in ("images", "annotations", "categories"):
        part = content.get(name) if isinstance(content, dict) else None
        if isinstance(part, list) and all(isinstance(entry, dict) for entry in part):
            parts[name] = part
        else:
            missing.append(f"{file} has no list {name!r} of objects, as a COCO file has")
    if missing:
        raise RequestError(missing)
    return parts


def _coco_shape(where: str, entry: Mapping[str, object], kind: str, image: Labelled) -> Shape:
    """The shape of an annotation; DataError with `where` for what cannot be one."""
    drawn = entry.get("segmentation")
    match drawn:
        case None | []:
            if not entry.get("bbox"):
                raise DataError(f"{where} has neither a segmentation nor a bbox")
            return Shape(kind=kind)
        case list() if all(isinstance(part, list) for part in drawn):
            parts = [_numbers(where, part) for part in drawn]
            return Shape(kind=kind, polygons=[_polygon(where, part, image.size) for part in parts])
        case {"size": [int() as height, int() as width], "counts": counts}:
            if (width, height) != image.size:
                raise DataError(f"{where} is of {width}x{height}, the image {image.name} {_by(image.size)}")
            return Shape(kind=kind, mask=_runs(where, counts, height, width))
        case _:
            raise DataError(
                f"{where} has a segmentation that is neither polygons nor RLE with size and counts"
            )


def _runs(where: str, counts: object, height: int, width: int) -> np.ndarray:
    """The mask [H,W] of run lengths, column by column; the first run is outside of the defect."""
    if isinstance(counts, str):
        try:
            library = import_module("pycocotools.mask")
        except ImportError as error:
            raise DataError(
                f"{where} is compressed RLE, which needs a package: `pip install pycocotools`"
            ) from error
        try:
            marked: np.ndarray = library.decode({"size": [height, width], "counts": counts})
        except ValueError as error:
            raise DataError(f"{where} is compressed RLE that cannot be read: {error}") from error
        return marked.astype(bool)
    lengths = [int(value) for value in _numbers(where, counts if isinstance(counts, list) else ())]
    if min(lengths, default=-1) < 0 or sum(lengths) != height * width:
        raise DataError(f"{where} is RLE of {sum(lengths)} pixels, the image has {height * width}")
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def _yolo_names(folder: Path) -> dict[int, str]:
    """Class number -> name, from classes.txt (a line for each) or from `names` of data.yaml."""
    plain = [path for path in (folder / "classes.txt", folder / "labels/classes.txt") if path.is_file()]
    if plain:
        lines = [line.strip() for line in _lines(plain[0])]
        while lines and not lines[-1]:
            del lines[-1]
        if "" in lines:  # programs disagree about whether it has a number
            raise DataError(f"{plain[0]}: line {lines.index('') + 1} is empty, and lines number the classes")
        return dict(enumerate(lines))
    file = folder / "data.yaml"
    if not file.is_file():
        raise DataError(f"{folder} has neither classes.txt nor data.yaml with the names of the classes")
    import yaml

    try:
        content = yaml.safe_load("\n".join(_lines(file)))
    except yaml.YAMLError as error:
        raise DataError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(number, int) for number in names):
        raise DataError(f"{file} has no `names` of the classes")
    return {number: str(name) for number, name in names.items()}


def _yolo_shape(where: str, line: str, kinds: Mapping[int, str], size: tuple[int, int]) -> Shape:
    """CLASS X Y W H, a box, or CLASS X Y X Y X Y ..., a polygon; all as shares of the image."""
    number, *rest = line.split()
    if not number.isdecimal() or int(number) not in kinds:
        raise DataError(f"{where}: no class {number!r}. Classes: {', '.join(map(str, kinds))}")
    values = _numbers(where, rest)
    if any(not -0.001 <= value <= 1.001 for value in values):
        raise DataError(f"{where} has numbers outside of 0 to 1: YOLO has shares of width and height")
    if len(values) == 4:
        return Shape(kind=kinds[int(number)])
    pixels = [value * side for value, side in zip(values, size * len(values), strict=False)]
    return Shape(kind=kinds[int(number)], polygons=[_polygon(where, pixels, size)])


def _polygon(where: str, values: Sequence[float], size: tuple[int, int]) -> list[Point]:
    """x, y, x, y, ... in pixels as points; DataError if they are no polygon or lie outside of the image."""
    if len(values) < 6 or len(values) % 2:
        raise DataError(f"{where} has {len(values)} numbers: a polygon has x and y of three points or more")
    points = list(zip(values[::2], values[1::2], strict=True))
    if all(0 <= value <= 1 for value in values):
        raise DataError(
            f"{where} lies within the first pixel: its numbers are pixels, not shares of the size"
        )
    for x, y in points:
        if not (-OUTSIDE <= x <= size[0] + OUTSIDE and -OUTSIDE <= y <= size[1] + OUTSIDE):
            raise DataError(f"{where} has the point {x:g}, {y:g} outside of the image, which is {_by(size)}")
    return points


def _numbers(where: str, values: Iterable[object]) -> list[float]:
    numbers = []
    for value in values:
        try:
            number = float(value) if isinstance(value, str | int | float) else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise DataError(f"{where}: {value!r} is no number")
        numbers.append(number)
    return numbers


def _image(file: Path, folder: Path, name: str, complaints: Complaints) -> Labelled | None:
    """The image `name` below `folder`; None and a complaint if it cannot be used."""
    parts = PurePosixPath(name.replace("\\", "/"))
    path = folder / parts
    if not name or parts.is_absolute() or ".." in parts.parts:
        complaints.add(f"{file}: the image {name!r} is no path below {folder}")
    elif not path.is_file():
        complaints.add(f"{file}: no image {path}")
    elif path.suffix.lower() not in IMAGE_SUFFIXES:
        complaints.add(f"{file}: {path} is not an image file ({', '.join(IMAGE_SUFFIXES)})")
    else:
        with complaints.collecting():
            header = read_header(path)
            if header.orientation != 1:
                raise DataError(f"{path} is turned by EXIF: coordinates have two meanings. Save it upright")
            return Labelled(path=path, name=parts.as_posix(), size=header.size)
    return None


def _lines(file: Path) -> Iterator[str]:
    """The lines of a text file; RequestError if it cannot be read."""
    try:
        yield from read_text(file).splitlines()
    except (OSError, ValueError) as error:
        raise RequestError([f"{file}: {reason(error)}"]) from error


def _by(size: tuple[object, object]) -> str:
    return f"{size[0]}x{size[1]}"
