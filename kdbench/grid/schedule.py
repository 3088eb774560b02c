"""One function that executes cells, in this process or by Ray; only sweeps/tune.py knows Ray beside it."""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kdbench.cell import ELSEWHERE, Cell, Notify, Outcome, Place, outcome_of
from kdbench.errors import DataError, RequestError, ResultsError
from kdbench.grid.attempt import execute_cell, record_end
from kdbench.grid.cluster import RETRIES, Cluster, ray_cluster
from kdbench.grid.lease import Holder, holders, leased, remove_void, revoke
from kdbench.grid.plan import Found, Job
from kdbench.grid.prepare import prepare_nodes
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, Results

if TYPE_CHECKING:
    import ray

TICK_S = 1.0  # between two looks at what is running
REMOTE_TICK_S = 10.0  # the same where each look costs requests to an object store
SILENT_S = 30.0  # a cell that nobody holds any more and of which Ray says nothing: its node was cut off
GRACE_S = 30.0  # a cell that does not stop by itself when its time is over is killed after so long
# A cell on a GPU has a fresh process, so that no GPU memory leaks from one to the next. On a CPU nothing is
# kept, and starting one costs seconds. It must be given in the decorator: `.options` does not take it.
CALLS_ON_CPU = 50
MORE_WAITING = 8  # tasks submitted beyond what fits: the next worker starts early, an autoscaler sees demand

Executor = Literal["local", "ray"]
Work = Callable[[Cell, Place, str, Notify, float | None], Outcome]


@dataclass(frozen=True, kw_only=True)
class Running:
    """What is going on, for a person who looks: leases of this run's cells, and how many cells wait."""

    holders: list[Holder]
    num_waiting: int
    elsewhere: list[Holder]  # cells of this run that another run is working on


Watch = Callable[[Running], None]


def refuse_impossible(jobs: Sequence[Job], cluster: Cluster) -> None:
    """Raise RequestError for what no node can run; Ray would let it wait for ever."""
    needs = dict.fromkeys(job.need for job in jobs)
    complaints = [f"no node has {need} for a cell" for need in needs if not cluster.fits(need)]
    if complaints:
        raise RequestError([*complaints, f"the cluster has {cluster}"])


def choose_executor(asked: Executor | None, jobs: Sequence[Job], cluster: Cluster) -> Executor:
    """`ray` where more than one cell is to run and more than one can run at once, unless asked otherwise."""
    if asked is not None:
        return asked
    if any(":" in job.place.device for job in jobs):  # one GPU was chosen; Ray chooses by itself
        return "local"
    together = min((cluster.fits(job.need) for job in jobs), default=0)
    return "ray" if len(jobs) > 1 and together > 1 else "local"


def execute(
    jobs: Sequence[Job],
    data: Mapping[str, Found],
    *,
    executor: Executor,
    address: str | None = None,
    run_id: str,
    notify: Notify,
    watch: Watch,
    timeout_s: float | None = None,
    work: Work = execute_cell,
) -> Iterator[Outcome]:
    """Run every job, yield each outcome as it ends; its rows are on disk by then.

    With Ray a session is open. Raises ResultsError if rows cannot be written, RequestError for what no node
    can run.
    """
    storage = Storage(jobs[0].place.results)
    run_all = _with_ray if executor == "ray" else _in_process
    grid = _Grid(jobs, data, storage, run_id, address, notify, watch, timeout_s, work)
    try:
        yield from run_all(grid)
    finally:
        with suppress(OSError):  # the next run can do it, and what was raised before is what matters
            remove_void(storage)
            Results(storage).remove_unfinished({job.cell.id for job in jobs} - leased(storage))


@dataclass(frozen=True)
class _Grid:
    """What `execute` was asked for."""

    jobs: Sequence[Job]
    data: Mapping[str, Found]
    storage: Storage
    run_id: str
    address: str | None
    notify: Notify
    watch: Watch
    timeout_s: float | None
    work: Work

    def others(self, ids: set[str]) -> list[Holder]:
        """Who of another run has the lease of one of these cells."""
        return [h for h in self.look() or [] if h.cell_id in ids and h.run_id != self.run_id]

    def look(self) -> list[Holder] | None:
        """Who runs a cell now; None where the storage does not say, which may be otherwise a moment later."""
        try:
            return holders(self.storage)
        except OSError:
            return None

    def leased(self, now: Sequence[Holder]) -> set[str]:
        """Cells that this run holds."""
        return {holder.cell_id for holder in now if holder.run_id == self.run_id}


def _in_process(grid: _Grid) -> Iterator[Outcome]:
    waiting = deque(grid.jobs)
    while waiting:
        elsewhere = deque[Job]()
        for job in waiting:
            place = replace(job.place, gpu_share=1.0)  # nothing runs beside it
            outcome = grid.work(job.cell, place, grid.run_id, grid.notify, grid.timeout_s)
            if outcome.status == ELSEWHERE:
                elsewhere.append(job)
            else:
                yield outcome
        waiting = elsewhere
        if waiting:
            others = grid.others({job.cell.id for job in waiting})
            grid.watch(Running(holders=[], num_waiting=len(waiting), elsewhere=others))
            time.sleep(TICK_S)


@dataclass(kw_only=True)
class _Attempt:
    """A cell that was handed to Ray."""

    job: Job
    number: int
    running_since: float | None = None  # this process's clock when its lease was first seen
    killed: bool = False
    silent_since: float | None = None  # when it was first seen to have ended without Ray saying so


def _with_ray(grid: _Grid) -> Iterator[Outcome]:
    cluster = ray_cluster()
    if not grid.address:  # what others use of this machine now Ray does not give: who needs that runs alone
        most = int(cluster.nodes[0].memory_bytes)
        needs = [replace(job.need, memory_bytes=min(job.need.memory_bytes, most)) for job in grid.jobs]
        jobs = [replace(job, need=need) for job, need in zip(grid.jobs, needs, strict=True)]
        grid = replace(grid, jobs=jobs)
    refuse_impossible(grid.jobs, cluster)
    try:
        prepare_nodes(grid.jobs, grid.data)
        yield from _run_all(grid)
    finally:
        with suppress(OSError):  # they expire, and what was raised before is what matters
            for holder in holders(grid.storage):
                if holder.run_id == grid.run_id:
                    revoke(grid.storage, holder.cell_id, grid.run_id)


def _run_all(grid: _Grid) -> Iterator[Outcome]:
    """Keep as many cells going as fit, longest first, until each has ended."""
    import ray

    run_one = _remote(grid)
    waiting = deque(_Attempt(job=job, number=1) for job in grid.jobs)
    elsewhere: list[_Attempt] = []
    running: dict[Any, _Attempt] = {}
    tick_s = TICK_S if grid.storage.local else REMOTE_TICK_S
    smallest = min((job.need for job in grid.jobs), key=lambda need: (need.gpus, need.cpus))
    looked, window = 0.0, 1
    while waiting or running or elsewhere:
        while waiting and len(running) < window:
            attempt = waiting.popleft()
            need = attempt.job.need
            task = run_one.options(num_cpus=need.cpus, num_gpus=need.gpus, memory=need.memory_bytes or None)
            running[task.remote(attempt.job)] = attempt
        ready, _ = ray.wait(list(running), num_returns=1, timeout=TICK_S) if running else ([], [])
        ended = [(running.pop(reference), reference) for reference in ready]
        now = grid.look() if time.monotonic() - looked >= tick_s else None
        if now is not None:
            looked, window = time.monotonic(), ray_cluster().fits(smallest) + MORE_WAITING
            _kill_overdue(grid, running, now)
            ended += [(running.pop(reference), None) for reference in _silent(grid, running, now)]
            free = _released(grid, elsewhere, now)
            elsewhere = [attempt for attempt in elsewhere if attempt not in free]
            waiting.extend(free)
            num_waiting = len(waiting) + len(elsewhere)
            grid.watch(_seen(grid, running, now, num_waiting, elsewhere))
        for attempt, reference in ended:
            outcome = _outcome(grid, reference, attempt)
            if outcome is None:
                waiting.appendleft(_Attempt(job=attempt.job, number=attempt.number + 1))
            elif outcome.status == ELSEWHERE:
                elsewhere.append(_Attempt(job=attempt.job, number=attempt.number))
            else:
                yield outcome
        if not running and not waiting and elsewhere:
            time.sleep(TICK_S)


def _remote(grid: _Grid) -> Any:
    import ray

    run_id, timeout_s, work = grid.run_id, grid.timeout_s, grid.work

    def run_one(job: Job) -> Outcome:
        if not job.need.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves a CPU task all GPUs in sight
        return work(job.cell, job.place, run_id, lambda progress: None, timeout_s)

    # Retries are ours: Ray would also retry what ran out of memory.
    calls = 1 if any(job.need.gpus for job in grid.jobs) else CALLS_ON_CPU
    return ray.remote(max_calls=calls, max_retries=0)(run_one)


def _outcome(grid: _Grid, reference: "ray.ObjectRef[Outcome] | None", attempt: _Attempt) -> Outcome | None:
    """How an attempt ended; None if its worker or node was lost and it is to be tried again.

    Without a reference Ray did not say how: the files do.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    cell, place = attempt.job.cell, attempt.job.place
    status, said = "failed", f"lost {attempt.number} workers or nodes: nothing is heard of the last one"
    try:
        if reference is not None:
            outcome: Outcome = ray.get(reference)
            return outcome
    except RayTaskError as error:
        if isinstance(error, OSError):  # ResultsError: no later cell could be kept either
            raise
        status, said = "failed", re.sub(r"\x1b\[\d+m", "", str(error))  # Ray colours it
    except OutOfMemoryError as error:
        status, said = "oom", f"the machine ran out of memory: {error}"
    except RayError as error:
        status, said = "failed", f"lost {attempt.number} workers or nodes: {type(error).__name__}: {error}"
        if attempt.killed:
            status = "timeout"
            said = (
                f"killed {GRACE_S:g} s after its {grid.timeout_s:g} s (--timeout): it did not stop by itself"
            )
    try:
        revoke(grid.storage, cell.id, grid.run_id)
        ended = Results(grid.storage).end_of(cell.id)
    except (OSError, DataError) as raised:
        raise ResultsError(str(raised)) from raised
    if ended is not None and ended.run_id != place.replaces:  # by the lost worker itself, or by another run
        return outcome_of(cell, ended.status, 0.0)
    if said.startswith("lost") and attempt.number <= RETRIES:
        return None
    return record_end(cell, place, grid.run_id, status, said)


def _silent(grid: _Grid, running: dict[Any, _Attempt], now: Sequence[Holder]) -> list[Any]:
    """Attempts that ran, have no lease any more, and of which Ray has said nothing for SILENT_S.

    Ray can wait for ever for a node that was cut off while it answered.
    """
    import ray

    leased, lost = grid.leased(now), []
    for reference, attempt in running.items():
        cell_id = attempt.job.cell.id
        if cell_id in leased or not (attempt.running_since is not None or _wrote(grid, attempt.job)):
            attempt.silent_since = None
        elif attempt.silent_since is None:
            attempt.silent_since = time.monotonic()
        elif time.monotonic() - attempt.silent_since > SILENT_S:
            ray.cancel(reference, force=True)
            lost.append(reference)
    return lost


def _wrote(grid: _Grid, job: Job) -> bool:
    """Whether a cell that had no rows before has them now: it can end between two looks at the leases."""
    return job.place.replaces is None and grid.storage.exists(CELLS.name(job.cell.id))


def _kill_overdue(grid: _Grid, running: dict[Any, _Attempt], now: Sequence[Holder]) -> None:
    """Kill what runs on long after its time; cells stop by themselves between two batches, if they can."""
    import ray

    leased = grid.leased(now)
    for reference, attempt in running.items():
        if attempt.running_since is None and attempt.job.cell.id in leased:
            attempt.running_since = time.monotonic()
        if grid.timeout_s is None or attempt.running_since is None or attempt.killed:
            continue
        if time.monotonic() - attempt.running_since > grid.timeout_s + GRACE_S:
            attempt.killed = True
            ray.cancel(reference, force=True)


def _released(grid: _Grid, elsewhere: Sequence[_Attempt], now: Sequence[Holder]) -> list[_Attempt]:
    """Those that nobody else is running any more."""
    leased = {holder.cell_id for holder in now}
    return [attempt for attempt in elsewhere if attempt.job.cell.id not in leased]


def _seen(
    grid: _Grid,
    running: dict[Any, _Attempt],
    now: Sequence[Holder],
    num_waiting: int,
    elsewhere: Sequence[_Attempt],
) -> Running:
    others = {attempt.job.cell.id for attempt in elsewhere}
    own = [holder for holder in now if holder.run_id == grid.run_id]
    return Running(
        holders=own,
        num_waiting=num_waiting + max(0, len(running) - len(own)),
        elsewhere=[holder for holder in now if holder.cell_id in others],
    )
