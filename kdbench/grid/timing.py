"""Choose the detectors to measure, and measure them one after another, each alone on a machine."""

from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from kdbench.cell import Cell, Place
from kdbench.engine.measured import Measured
from kdbench.grid.cluster import LostError, NotFreeError, ray_cluster, run_alone
from kdbench.grid.costs import device_type
from kdbench.grid.execution import Executor
from kdbench.grid.plan import Job
from kdbench.machine import without_main
from kdbench.results.store import DETECTORS

Measure = Callable[[Cell, Place, str], list[str]]  # (cell, place, run id) -> what went wrong


def to_time(
    jobs: Sequence[Job], there: Measured, device_name: str | None = None, *, busy_again: bool = False
) -> list[Job]:
    """The jobs to time: per entry and section, the first with a kept detector, if a runtime is not timed yet.

    Seed and category change no latency, so one timing serves an entry. The place of each job names the
    runtimes that are left to time.
    """
    done = there.done(device_name, busy_again=busy_again)
    found = []
    for alike in _entries(jobs):
        able = [job for job in alike if DETECTORS.name(job.cell.id) in there.kept]
        if able and (runtimes := _lacking(alike, done, _on_its_device(alike))):
            found.append(_in_runtimes(able[0], runtimes))
    return found


def without_timing(jobs: Sequence[Job], there: Measured) -> list[Job]:
    """One job of each entry and section that has no timing on any device and no detector to time."""
    done: set[tuple[str, ...]] = {(cell_id, *way) for cell_id, _, *way in there.done()}
    return [
        alike[0]
        for alike in _entries(jobs)
        if not any(DETECTORS.name(job.cell.id) in there.kept for job in alike)
        and _lacking(alike, done, {(job.cell.id,) for job in alike})
    ]


def to_evaluate(jobs: Sequence[Job], there: Measured, device_name: str | None = None) -> list[Job]:
    """The jobs whose detector was kept and was not evaluated in each runtime, which their places name."""
    done = there.done(device_name)
    able = [job for job in jobs if DETECTORS.name(job.cell.id) in there.kept]
    return [
        _in_runtimes(job, runtimes)
        for job in able
        if (runtimes := _lacking([job], done, _on_its_device([job])))
    ]


def _on_its_device(jobs: Sequence[Job]) -> set[tuple[str, ...]]:
    return {(job.cell.id, device_type(job)) for job in jobs}


def _lacking(alike: Sequence[Job], done: Set[tuple[str, ...]], keys: Set[tuple[str, ...]]) -> tuple[str, ...]:
    """The runtimes in which no cell of these was measured in all precisions that were asked for.

    Entries of `done` about these cells begin with one of `keys`.
    """
    place = alike[0].place

    def measured(*way: str) -> bool:
        return any((*key, *way) in done for key in keys)

    return tuple(
        runtime
        for runtime in place.runtimes
        if not all(measured(runtime, precision) for precision in place.runtime_precisions)
        or not measured(runtime)
    )


def _in_runtimes(job: Job, runtimes: tuple[str, ...]) -> Job:
    return replace(job, place=replace(job.place, runtimes=runtimes))


def _entries(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs by entry and section of a report: cells of one differ in seed and category only."""
    entries: dict[Hashable, list[Job]] = {}
    for job in jobs:
        cell = job.cell
        key = (cell.section, cell.method, cell.recipe_key, job.place.device)
        entries.setdefault(key, []).append(job)
    return [*entries.values()]


def measure(
    jobs: Sequence[Job], work: Measure, *, executor: Executor, run_id: str
) -> Iterator[tuple[Job, str]]:
    """Measure the detectors of these jobs, one after another, each in a process that owns a whole machine.

    Yields each job with its error, "" if there was none; the rows are on disk by then. The executor `ray`
    needs an open session. Once no machine got free for a job, no later job waits for one.
    """
    not_free = ""
    for job in jobs:
        if executor == "local":
            yield job, _measure_here(job, work, run_id)
            continue
        try:
            yield job, not_free or _measure_with_ray(job, work, run_id)
        except NotFreeError as error:
            not_free = str(error)
            yield job, not_free


def _measure_here(job: Job, work: Measure, run_id: str) -> str:
    # Not forked: CUDA would not work in it, and it would carry what this process has trained. Each detector
    # has a pool of its own: a pool is broken for good when its process is killed.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with without_main():
            measured = pool.submit(work, job.cell, job.place, run_id)
        error = measured.exception()  # a detector that cannot be measured does not end the others
    return "; ".join(measured.result()) if error is None else f"{type(error).__name__}: {error}"


def _measure_with_ray(job: Job, work: Measure, run_id: str) -> str:
    gpus = 1 if job.need.gpus else 0
    fitting = [node for node in ray_cluster().nodes if node.gpus >= gpus and node.cpus]
    if not fitting:
        return "no node is left that it could be measured on"
    # The task has one whole machine for itself: every task of kdbench takes at least one CPU.
    node = min(fitting, key=lambda node: (node.name, node.id))
    try:
        return "; ".join(run_alone(node, gpus, work, job.cell, job.place, run_id))
    except NotFreeError:
        raise
    except LostError as error:
        return str(error)
