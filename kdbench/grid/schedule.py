"""Execute cells, in this process or by Ray."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from kdbench.cell import ELSEWHERE, Outcome
from kdbench.errors import RequestError
from kdbench.grid.cluster import Cluster, LostError
from kdbench.grid.execution import TICK_S, Execution, Executor, Running
from kdbench.grid.lease import leased, remove_void
from kdbench.grid.plan import Job
from kdbench.grid.with_ray import run_with_ray
from kdbench.results.store import Results


def choose_executor(asked: Executor | None, jobs: Sequence[Job], cluster: Cluster) -> Executor:
    """The executor: `ray` if more than one cell is to run and can run at once, unless the user chose one."""
    if asked is not None:
        return asked
    if any(":" in job.place.device for job in jobs):  # one GPU was chosen; Ray chooses by itself
        return "local"
    together = min((cluster.fits(job.need) for job in jobs), default=0)
    return "ray" if len(jobs) > 1 and together > 1 else "local"


def execute(execution: Execution) -> Iterator[Outcome]:
    """Run every job and yield its outcome when it has finished; its rows are on disk by then.

    The executor `ray` needs an open session. If somebody asks to stop, the running cells leave checkpoints,
    their outcomes are `stopped`, and no other cell begins. Raises ResultsError if rows cannot be written,
    RequestError for a cell that no node can run.
    """
    run_all = run_with_ray if execution.executor == "ray" else _run_here
    storage = execution.storage
    try:
        with execution.stop.patience():
            yield from run_all(execution)
    finally:
        with suppress(OSError):  # the next run can do it, and an earlier error matters more
            remove_void(storage)
            unfinished = {job.cell.id for job in execution.jobs} - leased(storage)
            Results(storage).remove_unfinished(unfinished)


def _run_here(execution: Execution) -> Iterator[Outcome]:
    """Run one cell after another in this process."""
    waiting, stop = deque(execution.jobs), execution.stop
    notify = stop.obeyed(execution.notify)
    while waiting and not stop.asked_by:
        elsewhere = deque[Job]()
        for job in waiting:
            if stop.asked_by:
                return
            place = replace(job.place, gpu_share=1.0, cache="auto")  # nothing runs beside it
            try:
                outcome = execution.work(job.cell, place, execution.run_id, notify, execution.timeout_s)
            except LostError as error:
                kept = "What has finished is kept; the same command goes on"
                raise RequestError([f"{error}. {kept}"]) from error
            if outcome.status == ELSEWHERE:
                elsewhere.append(job)
            else:
                yield outcome
        waiting = elsewhere
        if waiting:
            ids = {job.cell.id for job in waiting}
            now = execution.look() or []
            others = [h for h in now if h.cell_id in ids and h.run_id != execution.run_id]
            execution.watch(Running(holders=[], num_waiting=len(waiting), elsewhere=others))
            time.sleep(TICK_S)
