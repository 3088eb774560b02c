"""Score images of a user with a detector: a table of scores and decisions, anomaly maps and heat maps."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from kdbench.deploy.metadata import Scale
from kdbench.errors import DataError, RequestError
from kdbench.files import IMAGE_SUFFIXES, entries, expanded, written_aside
from kdbench.picture import open_image, resized

LONGEST_SIDE = 1024  # of a heat map, in pixels
MOST_HEAT = 0.65  # how much of the image the hottest colour covers
HEAT_AT = (0.0, 0.35, 0.5, 0.75, 1.0)  # shares of the range, and the red, green and blue there
HEAT = ((0, 96, 230, 255, 255), (0, 0, 60, 170, 255), (64, 128, 30, 0, 160))
POLL_S = 0.5  # between two looks into a folder that is watched


class Scorer(Protocol):
    """A detector that is ready: a runtime of an exported file, or a cell's detector."""

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Anomaly maps [B,S,S] and image scores [B] of RGB images uint8 [B,S,S,3]; larger is worse."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The result of a detector for one image."""

    anomaly_map: np.ndarray  # float32 [S,S]
    score: float
    decision: str | None  # anomalous or normal; None without a threshold
    milliseconds: float  # of the detector alone


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A detector with its image size, its threshold and the scale of its heat maps."""

    scorer: Scorer
    image_size: int
    threshold: float | None  # an image with a higher score is anomalous
    scale: Scale | None  # of the colours; None: each map has its own

    def scored(self, picture: Image.Image, name: str) -> Scored:
        """Score an RGB image of any size; DataError with its name if the score or the map is not finite."""
        pixels = np.array(resized(picture, self.image_size))[None]
        started = time.perf_counter()
        maps, scores = self.scorer.run(pixels)
        milliseconds = 1000 * (time.perf_counter() - started)
        anomaly_map, score = np.asarray(maps[0], np.float32), float(scores[0])
        if not np.isfinite(score) or not np.isfinite(anomaly_map).all():
            raise DataError(f"{name}: its score is {score:g}, or values of its map are not finite")
        decision = None
        if self.threshold is not None:
            decision = "anomalous" if score > self.threshold else "normal"
        return Scored(anomaly_map=anomaly_map, score=score, decision=decision, milliseconds=milliseconds)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One line of the table; if the image could not be scored, only the path and the error are given."""

    path: str
    score: float | None = None
    decision: str | None = None  # anomalous or normal; None without a threshold
    milliseconds: float | None = None  # of the detector alone, for this image
    map: str | None = None  # files below the folder of the output
    heat_map: str | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """An image to score, and the name below which its files are written."""

    path: Path
    name: str


def find_images(given: Sequence[str]) -> tuple[list[Found], int]:
    """The images of files, folders and globs, each once, and how many other files lie in the folders.

    Raises RequestError with a complaint for each file, folder or glob without an image.
    """
    found: dict[Path, str] = {}
    complaints, others = [], 0
    for text in map(expanded, given):
        path = Path(text)
        if path.is_dir():
            files = [one for one in _files(path) if not is_image(one)]
            others += len(files)
            inside = [one for one in _files(path) if is_image(one)]
            named = {one: one.relative_to(path).as_posix() for one in inside}
            if not inside:
                complaints.append(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
        elif path.exists() or not has_magic(text):
            named = {path: path.name}
            if not path.exists():
                complaints.append(f"there is no file {path}")
        else:
            matched = [one for one in map(Path, sorted(glob(text, recursive=True))) if one.is_file()]  # noqa: PTH207
            named = {one: one.name for one in matched}
            if not matched:
                complaints.append(f"{text} fits no file")
        for one, name in named.items():
            found.setdefault(one, name)
    if complaints:
        raise RequestError(complaints)
    return _distinct(found), others


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image; its content is read later."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _files(folder: Path) -> Iterator[Path]:
    for path in entries(folder):
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _distinct(found: dict[Path, str]) -> list[Found]:
    """A name for each path; files of the same name in several folders get a number."""
    taken: set[str] = set()
    images = []
    for path, name in found.items():
        number, own = 1, name
        while own.casefold() in taken:
            number += 1
            own = f"{number}-{name}" if "/" not in name else f"{number}/{name}"
        taken.add(own.casefold())
        images.append(Found(path=path, name=own))
    return images


def predict(predictor: Predictor, images: Iterable[Found], out: Path) -> Iterator[Prediction]:
    """Score images one by one; write each one's map (float32 TIFF) and heat map (PNG) below `out`.

    A file that cannot be read as an image is a line with its error. Raises RequestError if the output cannot
    be written.
    """
    for image in images:
        try:
            yield _predicted(predictor, image, out)
        except DataError as error:
            yield Prediction(path=str(image.path), error=str(error))


def _predicted(predictor: Predictor, image: Found, out: Path) -> Prediction:
    picture = open_image(image.path).image
    scored = predictor.scored(picture, str(image.path))
    map_file, heat_file = f"maps/{image.name}.tiff", f"heat_maps/{image.name}.png"
    with written_aside(out / map_file) as aside:
        Image.fromarray(scored.anomaly_map).save(aside, "TIFF")
    with written_aside(out / heat_file) as aside:
        heat_map(picture, scored.anomaly_map, predictor.scale).save(aside, "PNG")
    return Prediction(
        path=str(image.path),
        score=scored.score,
        decision=scored.decision,
        milliseconds=scored.milliseconds,
        map=map_file,
        heat_map=heat_file,
    )


def heat_map(picture: Image.Image, anomaly_map: np.ndarray, scale: Scale | None) -> Image.Image:
    """The map in colours over its image, at most LONGEST_SIDE wide.

    With a scale, values that normal images also have stay below the middle colour: a colour means the same in
    all images. Without one, each image has its own range, and the hottest place means nothing.
    """
    shown = picture.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BOX)
    values = np.asarray(Image.fromarray(anomaly_map).resize(shown.size, Image.Resampling.BILINEAR))
    low = scale.low if scale else float(values.min())
    high = scale.low + 2 * (scale.high - scale.low) if scale else float(values.max())
    share = ((values - low) / ((high - low) or 1.0)).clip(0, 1)
    heat = np.stack([np.interp(share, HEAT_AT, channel) for channel in HEAT], -1)
    weight = MOST_HEAT * np.minimum(1, 2 * share)[..., None]
    mixed = (1 - weight) * np.asarray(shown) + weight * heat
    return Image.fromarray(mixed.round().astype(np.uint8))


def write_table(predictions: Sequence[Prediction], out: Path) -> None:
    """Write predictions.parquet and predictions.csv."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    types = {"score": pa.float64(), "milliseconds": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in Prediction.__dataclass_fields__])
    table = pa.Table.from_pylist([asdict(one) for one in predictions], schema=schema)
    with written_aside(out / "predictions.parquet") as aside:
        pa.parquet.write_table(table, aside)
    with written_aside(out / "predictions.csv") as aside:
        pa.csv.write_csv(table, aside)


def watch(folder: Path, pause: Callable[[], None]) -> Iterator[list[Found]]:
    """Yield new images of a folder whenever some are complete, for ever; calls `pause` between two looks.

    A file counts as complete when two looks find the same size and time. A file that is written again is
    yielded again.
    """
    seen: dict[Path, tuple[float, int]] = {}
    done: dict[Path, tuple[float, int]] = {}
    while True:
        now = {}
        for path in (one for one in _files(folder) if is_image(one)):
            try:
                facts = path.stat()
            except FileNotFoundError:  # it went while we looked
                continue
            now[path] = (facts.st_mtime, facts.st_size)
        settled = [path for path, state in now.items() if seen.get(path) == state != done.get(path)]
        if settled:
            done |= {path: now[path] for path in settled}
            yield [Found(path=path, name=path.relative_to(folder).as_posix()) for path in settled]
        seen = now
        pause()
