"""A trained detector as people deploy it: exported, in another runtime, in other precisions."""

import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from kdbench.cell import Cell, Place
from kdbench.deploy.export import Traced, export_onnx, export_torch
from kdbench.deploy.quantise import calibration_images, quantise
from kdbench.deploy.runtimes import INT8, RUNTIMES, TENSORRT, TORCH, Runtime, open_runtime, why_not
from kdbench.engine import provenance
from kdbench.engine.build import kept_state
from kdbench.engine.evaluate import Scored, measure
from kdbench.engine.module import Deployed
from kdbench.engine.ready import Ready, ready_cell
from kdbench.errors import RequestError, first_line
from kdbench.method import Method
from kdbench.metrics.presets import PRESETS
from kdbench.results.schema import CODE, IDENTITY, MACHINE, MEASURED, SCHEMA_VERSION, picked
from kdbench.results.store import CELLS, DEPLOYED, Kind, Results, read

# Columns that a row copies from the row of its category.
OF_CELL = ("cell_id", "attempt_id", *IDENTITY, "preset", "metric_version", "teacher_sha256", "num_test")


class Way(NamedTuple):
    """One way to run a detector."""

    runtime: str
    precision: str


def ways(place: Place, own_precision: str) -> list[Way]:
    """The runtimes and precisions that a detector is measured in; `own_precision` is that of its training."""
    precisions = place.runtime_precisions or dict.fromkeys(("fp32", own_precision))
    return [Way(runtime, precision) for runtime in place.runtimes for precision in precisions]


class Exported:
    """The files of one detector in a folder, each written when a runtime first needs it."""

    def __init__(self, method: Method, folder: Path, normal: Callable[[], np.ndarray]) -> None:
        self._method, self._folder, self._normal = method, folder, normal

    def open(self, way: Way, device: torch.device) -> Runtime:
        """The detector in a runtime, with as many threads as torch has.

        Raises RequestError with the reason if it cannot be exported, or the runtime cannot load it.
        """
        try:
            path = self._file(way)
        except Exception as error:  # of an exporter, which has errors of every type
            what = f"it cannot be exported for {way.runtime} in {way.precision}"
            raise RequestError([f"{what}: {_said(error)}"]) from error
        return open_runtime(
            path,
            runtime=way.runtime,
            precision=way.precision,
            num_threads=torch.get_num_threads(),
            device=str(device),
        )

    @property
    def image_size(self) -> int:
        """The side of the square images that the detector takes, in pixels."""
        return int(self._method.config.image_size)

    @cached_property
    def _traced(self) -> Traced:
        module = Deployed(self._method).cpu()
        return Traced(module, module.image_size)

    @cached_property
    def calibration(self) -> np.ndarray:
        """The normal training images that set the ranges of int8, uint8 [N,S,S,3]."""
        return calibration_images(self._normal())

    def _file(self, way: Way) -> Path:
        # OpenVINO reads ONNX: one file less to export.
        package = RUNTIMES[way.runtime].package
        suffix = ".pt2" if package == "torch" else ".onnx"
        plain = self._folder / f"detector{suffix}"
        if not plain.exists():
            (export_torch if suffix == ".pt2" else export_onnx)(self._traced, plain)
        if way.precision != INT8:
            return plain
        quantised = self._folder / f"int8-{way.runtime}{'.xml' if package == 'openvino' else suffix}"
        if not quantised.exists():
            quantise(plain, quantised, self.calibration, symmetric=way.runtime == TENSORRT)
        return quantised


class Found(NamedTuple):
    """Rows of several ways, and what went wrong, a line for each way that does not work."""

    rows: list[dict[str, Any]]
    complaints: list[str]


Work = Callable[[Exported, Way], list[dict[str, Any]]]
Hole = Callable[[Way, str], list[dict[str, Any]]]


def each_way(files: Exported, place: Place, own_precision: str, work: Work, hole: Hole) -> Found:
    """The rows of every way to run a detector; a way that does not work leaves those of `hole`, and why."""
    rows, complaints = [], []
    for way in ways(place, own_precision):
        if never := why_not(way.runtime, way.precision, place.device):  # no failure: nobody can mend it
            rows += hole(way, never)
            continue
        try:
            rows += work(files, way)
        except Exception as error:  # of a runtime, which has errors of every type
            why = first_line(error) if isinstance(error, RequestError) else _said(error)
            rows += hole(way, why)
            complaints.append(f"{way.runtime} in {way.precision}: {why}")
    return Found(rows, complaints)


def write_beside(results: Results, kind: Kind, rows: list[dict[str, Any]]) -> None:
    """Write the rows of one cell on one device; those of other runtimes and precisions stay.

    Not those of another attempt at the cell.
    """
    first, new = rows[0], {_way(row) for row in rows}
    earlier = [
        row
        for row in read(results.storage, kind, only=[first["cell_id"]]).to_pylist()
        if row["device_name"] == first["device_name"]
        and row.get("attempt_id") == first.get("attempt_id")
        and _way(row) not in new
    ]
    results.write(kind, [*earlier, *rows])


def evaluate_exported(cell: Cell, place: Place, run_id: str) -> list[str]:
    """Compute the metrics of an exported detector in every runtime and precision, and write the rows.

    Returns what went wrong; each of it is a row without numbers, too. Raises DataError if the images changed.
    """
    results, started_at = Results(place.results), datetime.now(UTC).isoformat(timespec="seconds")
    if place.num_threads is not None:
        torch.set_num_threads(place.num_threads)
    ready = ready_cell(cell, place)
    finished = {row["category"]: row for row in read(results.storage, CELLS, only=[cell.id]).to_pylist()}
    attempt_id = finished[cell.categories[0]]["attempt_id"]
    ready.method.load_detector(kept_state(results, cell.id, attempt_id))
    common = {
        **picked(provenance.code_provenance(), *CODE),
        **picked(provenance.machine_provenance(ready.device), *MACHINE),
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "started_at": started_at,
    }

    def row(way: Way, category: str, **found: Any) -> dict[str, Any]:
        return common | picked(finished[category], *OF_CELL) | way._asdict() | found

    def work(files: Exported, way: Way) -> list[dict[str, Any]]:
        runtime = files.open(way, ready.device)
        count = len(files.calibration) if way.precision == INT8 else None
        return [
            row(way, name, runtime_version=runtime.version, num_calibration=count, **found)
            for name, found in _metrics(ready, runtime)
        ]

    def hole(way: Way, why: str) -> list[dict[str, Any]]:
        return [row(way, category, why_not=why) for category in cell.categories]

    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        files = Exported(ready.method.eval(), Path(folder), lambda: normal_images(ready))
        found = each_way(files, place, ready.precision, work, hole)
    write_beside(results, DEPLOYED, found.rows)
    return found.complaints


def normal_images(ready: Ready) -> np.ndarray:
    """The training images of a cell, all of them normal: uint8 [N,S,S,3]."""
    return np.concatenate([store.train for store in ready.stores])


def _metrics(ready: Ready, runtime: Runtime) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each category, with the metrics and image scores of its test images."""
    preset = PRESETS[ready.cell.preset]
    for category, store in zip(ready.categories, ready.stores, strict=True):
        parts = np.array_split(
            store.test, range(ready.config.batch_size, len(store.test), ready.config.batch_size)
        )
        maps, scores = zip(*(runtime.run(np.array(part)) for part in parts), strict=True)
        scored = Scored(maps=np.concatenate(maps), image_score=np.concatenate(scores).astype(np.float64))
        yield (
            category.name,
            {
                **picked(measure(scored, ready.truth(category), preset).metrics, *MEASURED),
                "images": [category.relative(sample.path) for sample in category.test],
                "image_scores": scored.image_score.tolist(),
            },
        )


def _way(row: dict[str, Any]) -> Way:
    return Way(row["runtime"] or TORCH, row["precision"])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
