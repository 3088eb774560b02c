"""Which detectors are to be timed; and their timing, one after another, each alone on a machine."""

import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from types import ModuleType
from typing import Any

from kdbench.engine.latency import time_detector
from kdbench.grid.cluster import LostError, ray_cluster, run_alone
from kdbench.grid.costs import device_type
from kdbench.grid.execution import Executor
from kdbench.grid.plan import Job
from kdbench.results.store import DETECTORS, LATENCY, Results, read

TIMING_COLUMNS = ("cell_id", "device", "device_name", "busy")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The kept detectors and the timings of a results folder: file names, and TIMING_COLUMNS."""

    kept: Set[str]
    rows: Sequence[Mapping[str, Any]]


def read_timed(results: Results) -> Timed:
    """Read it, which `to_time` and `without_timing` both need."""
    rows = read(results.storage, LATENCY, columns=TIMING_COLUMNS).to_pylist()
    return Timed(kept=set(DETECTORS.names(results.storage)), rows=rows)


def to_time(
    jobs: Sequence[Job], there: Timed, device_name: str | None = None, *, busy_again: bool = False
) -> list[Job]:
    """The jobs to time: per entry and section, the first with a kept detector, if none was timed yet.

    Seed and category change no latency, so one timing serves an entry. A timing counts only if it was made on
    this type of device and, if known, on a device of this name; with `busy_again`, only if nothing else ran.
    """
    done = {
        (row["cell_id"], row["device"])
        for row in there.rows
        if not (busy_again and row["busy"] is not False) and device_name in (None, row["device_name"])
    }
    found = []
    for alike in _entries(jobs):
        able = [job for job in alike if DETECTORS.name(job.cell.id) in there.kept]
        if able and not any((job.cell.id, device_type(job)) in done for job in alike):
            found.append(able[0])
    return found


def without_timing(jobs: Sequence[Job], there: Timed) -> list[Job]:
    """One job of each entry and section of a report that has neither a timing nor a detector to time."""
    done = {row["cell_id"] for row in there.rows}
    return [
        alike[0]
        for alike in _entries(jobs)
        if not any(DETECTORS.name(job.cell.id) in there.kept or job.cell.id in done for job in alike)
    ]


def _entries(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs by entry and section of a report: cells of one differ in seed and category only."""
    entries: dict[Hashable, list[Job]] = {}
    for job in jobs:
        cell = job.cell
        key = (cell.section, cell.method, cell.recipe_key, job.place.device)
        entries.setdefault(key, []).append(job)
    return [*entries.values()]


def measure(jobs: Sequence[Job], *, executor: Executor, run_id: str) -> Iterator[tuple[Job, str]]:
    """Time the detectors of these jobs, one after another, each in a process that owns a whole machine.

    Yields each job with what went wrong, "" if nothing did; the rows are on disk by then. If Ray times them,
    a session must be open.
    """
    for job in jobs:
        yield job, (_measure_with_ray if executor == "ray" else _measure_here)(job, run_id)


def _measure_here(job: Job, run_id: str) -> str:
    # Not forked: CUDA would not work in it, and it would carry what this process has trained. Each detector
    # has a pool of its own: a pool is broken for good when its process is killed.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with _without_main():
            timed = pool.submit(time_detector, job.cell, job.place, run_id)
        error = timed.exception()  # a detector that cannot be timed does not end the others' timing
    return "" if error is None else f"{type(error).__name__}: {error}"


@contextmanager
def _without_main() -> Iterator[None]:
    """Keep a process that starts now from importing the program: a script that calls run would run again."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program


def _measure_with_ray(job: Job, run_id: str) -> str:
    gpus = 1 if job.need.gpus else 0
    fitting = [node for node in ray_cluster().nodes if node.gpus >= gpus]
    if not fitting:
        return "no node is left that it could be timed on"
    # The task has one whole machine for itself: every task of kdbench takes at least one CPU.
    node = min(fitting, key=lambda node: (node.name, node.id))
    try:
        run_alone(node, gpus, time_detector, job.cell, job.place, run_id)
    except LostError as error:
        return str(error)
    return ""
