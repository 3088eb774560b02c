"""One attempt at a cell: takes its lease, runs it, writes its rows whatever happens, returns its outcome."""

import gc
import json
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from socket import gethostname
from typing import Any, NamedTuple

import torch

from kdbench.cell import ELSEWHERE, STOPPED, Cell, Notify, Outcome, Place, Progress, outcome_of
from kdbench.engine import provenance
from kdbench.engine.build import write_detector
from kdbench.engine.checkpoint import remove_checkpoint
from kdbench.engine.device import broken_gpu, cap_memory
from kdbench.engine.run import CellOutput, identity, run_cell, status_of
from kdbench.errors import CellStopped, CellTimeout, DataError, ResultsError, last_line
from kdbench.grid.cluster import LostError
from kdbench.grid.lease import Holder, acquire
from kdbench.registry import get_dataset
from kdbench.results.storage import Storage
from kdbench.results.store import (
    CELLS,
    CHECKPOINTS,
    CURVES,
    EPOCHS,
    INPUTS,
    NORMALS,
    PICTURES,
    SCORES,
    Results,
)


class _Result(NamedTuple):
    status: str  # ok, failed, timeout, oom
    error: str  # one line, empty if ok
    output: CellOutput  # a failure has only rows


def execute_cell(
    cell: Cell, place: Place, run_id: str, notify: Notify, timeout_s: float | None = None
) -> Outcome:
    """Run a cell and write its rows, whatever happens in it.

    Raises only ResultsError, or LostError if the GPU does not compute. The outcome is `elsewhere`, and
    nothing is done, while another process runs the cell. It is `stopped`, and there are no rows, if `notify`
    raised CellStopped: a checkpoint keeps the training, or `error` says that there is none.
    """
    started, last = time.perf_counter(), dict[str, Any]()
    device = torch.device(place.device)
    if device.type == "cuda" and (wrong := broken_gpu(device)):
        raise LostError(f"the GPU of {gethostname()} does not compute: {wrong}")

    def watched(progress: Progress) -> None:
        last.update(asdict(progress))
        if timeout_s is not None and time.perf_counter() - started > timeout_s:
            raise CellTimeout(f"stopped after {timeout_s:g} s (--timeout), in phase {progress.phase!r}")
        notify(progress)

    try:
        return _under_lease(cell, place, run_id, lambda: _attempt(cell, place, watched), lambda: dict(last))
    except CellStopped:
        kept = Storage(place.results).exists(CHECKPOINTS.name(cell.id))
        seconds = time.perf_counter() - started
        return outcome_of(cell, STOPPED, seconds, error="" if kept else "there is no checkpoint of it")


def record_end(cell: Cell, place: Place, run_id: str, status: str, error: str) -> Outcome:
    """Write the rows of a cell whose process is gone: it took too long and was killed, or died too often.

    If another run finished the cell or is running it, nothing is written and the outcome is that run's.
    """
    # This machine may have no such device: the one that it ran on is gone.
    rows = _failed_rows(cell, place, status, error, {"device": torch.device(place.device).type})
    result = _Result(status, last_line(error), CellOutput(rows=rows, scores=[], detector={}))
    return _under_lease(cell, place, run_id, lambda: result, dict)


def _under_lease(
    cell: Cell,
    place: Place,
    run_id: str,
    produce: Callable[[], _Result],
    progress: Callable[[], dict[str, Any]],
) -> Outcome:
    """Write what `produce` returns, unless another process has the cell or its rows are there already.

    `progress` is what other processes read in the lease meanwhile. Raises ResultsError if the folder cannot
    be read or written.
    """
    started, results = time.perf_counter(), Results(place.results)
    try:
        lease = acquire(results.storage, Holder(cell_id=cell.id, run_id=run_id, label=cell.label))
        if lease is None:
            return outcome_of(cell, ELSEWHERE, 0.0)
        with lease.kept(progress):
            earlier = results.end_of(cell.id)
            if earlier is not None and earlier.run_id != place.replaces:
                return outcome_of(cell, earlier.status, 0.0)
            result = produce()
            if not lease.held():  # this process was stopped for so long that another one took over
                return outcome_of(cell, ELSEWHERE, time.perf_counter() - started)
            _write(results, cell, place, run_id, result)
    except (OSError, DataError) as raised:
        raise ResultsError(str(raised)) from raised
    summary = _summary(result.output.rows) if result.status == "ok" else ""
    seconds = time.perf_counter() - started
    return outcome_of(cell, result.status, seconds, error=result.error, summary=summary)


def _attempt(cell: Cell, place: Place, notify: Notify) -> _Result:
    """Run the cell; an exception becomes the rows of a failure."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        cap_memory(torch.device(place.device), place.gpu_share)  # also lifts the cap of the previous cell
        result = _Result("ok", "", run_cell(cell, place, notify))
    except CellStopped:
        raise
    except Exception as raised:
        status = status_of(raised)
        error = _encodable(f"{type(raised).__name__}: {raised}").splitlines()[0][:500]
        rows = _failed_rows(cell, place, status, _encodable(traceback.format_exc()), _machine(place))
        result = _Result(status, error, CellOutput(rows=rows, scores=[], detector={}))
        del raised  # its traceback holds the tensors of the cell
    gc.collect()
    if place.device.startswith("cuda"):
        with suppress(RuntimeError):  # after some errors every call fails: the row matters more
            torch.cuda.empty_cache()
    for row in result.output.rows:
        row["started_at"] = started_at
    return result


def _machine(place: Place) -> dict[str, Any]:
    """The machine of a failed cell; only the type of its device if the device does not answer any more."""
    device = torch.device(place.device)
    try:
        return provenance.machine_provenance(device)
    except (RuntimeError, AssertionError):
        return {"device": device.type}


def _write(results: Results, cell: Cell, place: Place, run_id: str, result: _Result) -> None:
    """Write everything that belongs to the rows, then the rows: they mark the cell as finished."""
    keep_detector = result.status == "ok" and place.keep_detectors
    write_output(results, cell.id, result.output, run_id=run_id, keep_detector=keep_detector)
    if result.status != "timeout":  # a run with more time resumes from the checkpoint
        remove_checkpoint(results.storage, cell.id)


def write_output(
    results: Results, cell_id: str, output: CellOutput, *, run_id: str | None, keep_detector: bool
) -> None:
    """Replace all files of a cell, the rows last; the files say that they belong together."""
    results.discard(cell_id)
    of_attempt = {"attempt_id": os.urandom(8).hex()}
    for rows in output.inputs:  # all cells share them
        results.write(INPUTS, rows)
    parts = (
        (SCORES, output.scores),
        (NORMALS, output.normals),
        (EPOCHS, output.epochs),
        (CURVES, output.curves),
        (PICTURES, output.pictures),
    )
    for kind, rows in parts:
        if rows:
            results.write(kind, [row | of_attempt for row in rows])
    if keep_detector:
        write_detector(results, cell_id, output.detector, **of_attempt)
    results.write(CELLS, [row | of_attempt | {"run_id": run_id} for row in output.rows])


def _failed_rows(
    cell: Cell, place: Place, status: str, error: str, machine: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per category, so that reports show where a number is missing; metrics are null."""
    dataset = get_dataset(cell.dataset)
    common = {
        **identity(cell, place, dataset),
        **provenance.code_provenance(),
        **machine,
        "status": status,
        "error": error,
        "backbone": json.loads(cell.config).get("backbone"),
        "teacher_source": place.weights.source,
    }
    return [common | {"category": name, "texture": name in dataset.textures} for name in cell.categories]


def _encodable(text: str) -> str:
    """The text without characters that UTF-8 cannot encode, such as those of undecodable file names."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _summary(rows: list[dict[str, Any]]) -> str:
    """One line for people: means over the cell's categories, times 100."""
    parts = []
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        values = [row[name] for row in rows if row[name] is not None]
        if len(values) == len(rows):
            parts.append(f"{name} {100 * sum(values) / len(values):.2f}")
    return ", ".join(parts)
