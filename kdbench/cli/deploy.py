"""`kdbench export` and `kdbench predict`: a detector becomes a file, and scores a user's images."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli import complete, documents
from kdbench.cli.options import Device, Results, Root, Weights, at_home
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.terminal import OK, SOME_FAILED, moving, note, reading, say, say_next
from kdbench.errors import RequestError, complained, number_of, unknown

if TYPE_CHECKING:
    from kdbench.deploy.predict import Found, Prediction, Predictor
    from kdbench.deploy.threshold import Threshold
    from kdbench.engine.detector import Detector

DetectorName = Annotated[
    str,
    typer.Argument(
        help="An exported file (.onnx, .xml, .pt2), or a cell's id of --results.",
        autocompletion=complete.cells,
    ),
]
DecideBy = Annotated[
    float | None,
    typer.Option(help="An image score above it is anomalous. [default: that of the file, or of the cell]"),
]


@for_scripts
def export(
    cells: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CELL...", help="Ids of cells, or how they begin.", autocompletion=complete.cells
        ),
    ] = None,
    best: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="The best cell by METRIC of each dataset, setting and category."),
    ] = None,
    format: Annotated[str, typer.Option(metavar="onnx|openvino|torch", help="Kind of file.")] = "onnx",
    out: Annotated[Path, typer.Option(help="Folder of the files.", callback=at_home)] = Path("detectors"),
    false_alarms: Annotated[
        float,
        typer.Option(help="Share of normal images that may be called anomalous; it chooses the threshold."),
    ] = 0.01,
    results: Results = "results",
    root: Root = None,
    weights: Weights = None,
    device: Device = "auto",
) -> Answer:
    """Write trained detectors as files that run without kdbench, and compare each with torch."""
    if bool(cells) == (best is not None):
        raise RequestError(["name cells, or --best METRIC: one of the two"])
    rows = _best(_rows(results), best) if best else [_one(_rows(results), name) for name in cells or ()]
    if best:
        note(f"{best} is computed on test images, so the best of many cells looks better than it is")
    files = []
    for row in rows:
        with reading(results):
            detector = _detector(results, row, weights, device)
        delivered = detector.delivered(format, out, false_alarms, root)
        say(f"{_label(row)}: {delivered.path}")
        for text in delivered.notes:
            say(f"  {text}")
        threshold = delivered.metadata.threshold
        files.append(
            documents.Exported(
                cell_id=row["cell_id"],
                file=str(delivered.path),
                threshold=threshold.value if threshold else None,
                notes=delivered.notes,
            )
        )
    say_next("score images with it", "kdbench", "predict", files[0].file, "IMAGES")
    return Answer(document=documents.Exports(detectors=tuple(files)))


@for_scripts
def predict(
    detector: DetectorName,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGES...", help="Files, folders and globs.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the output.", callback=at_home)] = Path("predictions"),
    watch: Annotated[
        Path | None,
        typer.Option(help="A folder: score each new image in it, until Ctrl-C.", callback=at_home),
    ] = None,
    threshold: DecideBy = None,
    results: Results = "results",
    weights: Weights = None,
    device: Device = "auto",
) -> Answer:
    """Score images: a table, anomaly maps and heat maps; exit code 1 if an image cannot be read."""
    from kdbench.deploy.predict import POLL_S, find_images
    from kdbench.deploy.predict import watch as watched

    if bool(images) == (watch is not None):
        raise RequestError(["name images, or --watch FOLDER: one of the two"])
    if threshold is not None and not math.isfinite(threshold):  # no score is larger than NaN
        raise RequestError([f"--threshold {threshold}: it is a finite number"])
    if watch is not None and not watch.is_dir():
        raise RequestError([f"--watch {watch}: there is no such folder"])
    found, others = find_images(images or [])
    predictor = predictor_of(detector, threshold, results, weights, device)
    if others:
        note(f"files in the folders without the suffix of an image are left out: {others}")
    predictions: list[Prediction] = []
    with complained(f"cannot write in {out}"):
        if watch is None:
            predictions += _scored(predictor, found, out)
            _tell(predictions, out)
        else:
            say(f"watching {watch} until Ctrl-C")
            try:
                for new in watched(watch, lambda: time.sleep(POLL_S)):
                    predictions += _scored(predictor, new, out)
                    _tell(predictions, out)
            except KeyboardInterrupt:
                say(f"stopped: {number_of(len(predictions), 'image')} in {out}")
    lines = tuple(documents.Image.of(one, image=one.path, image_score=one.score) for one in predictions)
    table = str(out / "predictions.csv")
    document = documents.Predicted(out=str(out), table=table, threshold=predictor.threshold, images=lines)
    return Answer(document=document, code=SOME_FAILED if any(one.error for one in predictions) else OK)


def _scored(predictor: "Predictor", images: Sequence["Found"], out: Path) -> Iterator["Prediction"]:
    """The predictions, with a bar; prints each error at once."""
    from kdbench.deploy.predict import predict as predicted

    with moving() as bars:
        bar = bars.add_task("scoring images", total=len(images))
        for one in predicted(predictor, images, out):
            bars.advance(bar)
            if one.error:
                say(f"not scored: {one.error}", style="red")
            yield one


def _tell(predictions: Sequence["Prediction"], out: Path) -> None:
    """Write the table and print its counts."""
    from kdbench.deploy.predict import write_table

    write_table(predictions, out)
    counts = [f"{number_of(sum(one.score is not None for one in predictions), 'image')} scored"]
    counts += [f"{sum(one.decision == 'anomalous' for one in predictions)} of them anomalous"]
    counts += [f"{sum(one.error is not None for one in predictions)} not read"]
    if not any(one.decision for one in predictions):
        del counts[1]
    say(f"{', '.join(counts)}: {out / 'predictions.csv'}; heat maps in {out / 'heat_maps'}")


def predictor_of(
    name: str, threshold: float | None, results: str, weights: Path | None, device: str
) -> "Predictor":
    """An exported file, or a cell's detector, ready to score images; prints notes on its threshold."""
    from kdbench.deploy.metadata import read_metadata
    from kdbench.deploy.predict import Predictor
    from kdbench.deploy.runtimes import RUNTIME_OF, open_runtime

    path = Path(str(at_home(name)))
    if path.suffix not in RUNTIME_OF:
        found = _detector(results, _one(_rows(results), name), weights, device)
        return Predictor(
            scorer=found,
            image_size=found.image_size,
            threshold=_chosen(threshold, found.threshold()),
            scale=None,
        )
    metadata = read_metadata(path)
    threshold = _chosen(threshold, metadata.threshold)
    place = "cpu" if device == "auto" else device  # every runtime of RUNTIME_OF runs there
    session = open_runtime(path, runtime=RUNTIME_OF[path.suffix], device=place)
    return Predictor(
        scorer=session, image_size=metadata.image_size, threshold=threshold, scale=metadata.scale
    )


def _chosen(given: float | None, stored: "Threshold | None") -> float | None:
    """The threshold of the user, else that of the detector, which is printed."""
    if given is not None:
        return given
    if stored is None:
        note("the detector has no threshold, so nothing is decided: --threshold gives one")
        return None
    say(stored.words)
    return stored.value


def _rows(results: str) -> list[dict[str, Any]]:
    """A row of each cell that succeeded."""
    from kdbench.results.store import CELLS, read

    with reading(results):
        try:
            rows = read(results, CELLS).to_pylist()
        except FileNotFoundError as error:
            raise RequestError([str(error)]) from error
    return [row for row in rows if row["status"] == "ok"]


def _one(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The row of the cell whose id begins so; RequestError if there is none, or several."""
    fits = {row["cell_id"]: row for row in rows if row["cell_id"].startswith(name)}
    if len(fits) != 1:
        what = f"{len(fits)} cells begin with {name!r}" if fits else f"no cell {name!r} succeeded"
        raise RequestError([f"{what}. Ids are in the report, and in the column cell_id of the rows"])
    return next(iter(fits.values()))


def _label(row: dict[str, Any]) -> str:
    return (
        f"{row['method']} {row['dataset']}/{', '.join(row['categories'])} {row['setting']} seed {row['seed']}"
    )


def _best(rows: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """For each dataset, setting and category the row of the cell with the highest metric."""
    from kdbench.results.schema import MEASURED

    if metric not in MEASURED:
        raise RequestError([unknown("metric", metric, MEASURED)])
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["cell_id"], []).append(row)
    best: dict[tuple[str, ...], tuple[float, dict[str, Any]]] = {}
    for of_cell in cells.values():
        values = [row[metric] for row in of_cell if row[metric] is not None]
        if len(values) < len(of_cell):
            continue
        mean, row = sum(values) / len(values), of_cell[0]
        key = (row["dataset"], row["setting"], *row["categories"])
        if key not in best or mean > best[key][0]:
            best[key] = (mean, row)
    if not best:
        raise RequestError([f"no cell has a {metric}"])
    return [row for _, row in best.values()]


def _detector(results: str, row: dict[str, Any], weights: Path | None, device: str) -> "Detector":
    import torch

    from kdbench.engine.detector import Detector
    from kdbench.grid.plan import choose_device
    from kdbench.results.store import Results

    return Detector(Results(results), row, weights=weights, device=torch.device(choose_device(device)))
