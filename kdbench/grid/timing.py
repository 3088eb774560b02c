"""Which detectors are to be timed, and timing them: one after another, each alone on a machine."""

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from kdbench.engine.latency import time_detector
from kdbench.errors import last_line
from kdbench.grid.cluster import this_machine
from kdbench.grid.costs import device_type
from kdbench.grid.plan import Job
from kdbench.grid.schedule import RETRIES, Executor, start_ray
from kdbench.results.store import DETECTORS, LATENCY, Results, read

TIMING_COLUMNS = ("cell_id", "device", "device_name", "busy")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What a results folder has of timings: the files of detectors that were kept, and TIMING_COLUMNS."""

    kept: Set[str]
    rows: Sequence[Mapping[str, Any]]


def read_timed(results: Results) -> Timed:
    """Read it, which `to_time` and `without_timing` both need."""
    rows = read(results.storage, LATENCY, columns=TIMING_COLUMNS).to_pylist()
    return Timed(kept=set(DETECTORS.names(results.storage)), rows=rows)


def to_time(
    jobs: Sequence[Job], there: Timed, device_name: str | None = None, *, busy_again: bool = False
) -> list[Job]:
    """One job of each entry in each section of a report whose detector was kept and none was timed.

    Seed and category change no latency; a report shows a timing where the cell that was timed stands. What
    was timed on another kind of device, or on one of another name where that is known, is timed here, too;
    with `busy_again` also what was timed while something else ran.
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
    """One job of each entry in each section of a report that has neither a timing nor a detector to time."""
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


def measure(
    jobs: Sequence[Job], *, executor: Executor, address: str | None = None, run_id: str
) -> Iterator[tuple[Job, str]]:
    """Time the detectors of these jobs, one after another, each in a process that owns a whole machine.

    Yields each job with what went wrong, "" if nothing did; the rows are on disk by then.
    """
    if executor == "ray":
        yield from _measure_with_ray(jobs, address, run_id)
        return
    for job in jobs:
        # Not forked: CUDA would not work in it, and it would carry what this process has trained. A pool is
        # broken for good when its process is killed, so each detector has its own.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            timed = pool.submit(time_detector, job.cell, job.place, run_id)
            error = timed.exception()  # a detector that cannot be timed does not end the others' timing
        yield job, "" if error is None else f"{type(error).__name__}: {error}"


def _measure_with_ray(jobs: Sequence[Job], address: str | None, run_id: str) -> Iterator[tuple[Job, str]]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    start_ray(address, this_machine())

    @ray.remote(max_calls=1, max_retries=RETRIES)
    def time_one(job: Job) -> None:
        if not job.need.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        time_detector(job.cell, job.place, run_id)

    for job in jobs:
        gpus = 1 if job.need.gpus else 0
        fitting = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU", 0) >= gpus]
        if not fitting:
            yield job, "no node is left that it could be timed on"
            continue
        # All on one machine, which the task has for itself: every task of ours takes at least one CPU.
        node = min(fitting, key=lambda node: (node["NodeManagerHostname"], node["NodeID"]))
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        owning = {"num_cpus": node["Resources"].get("CPU", 1), "num_gpus": gpus}
        try:
            ray.get(time_one.options(scheduling_strategy=there, **owning).remote(job))
        except RayError as error:  # also what was raised in the task
            yield job, last_line(str(error))
        else:
            yield job, ""
