"""Cells on a Ray cluster: as many at a time as fit. Lost cells are tried again, overdue ones are killed."""

import re
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from socket import gethostname
from typing import TYPE_CHECKING, Any

from kdbench.cell import ELSEWHERE, Outcome, outcome_of
from kdbench.errors import DataError, ResultsError, number_of
from kdbench.grid.attempt import record_end
from kdbench.grid.cluster import RETRIES, LostError, ray_cluster, see_no_gpu
from kdbench.grid.execution import TICK_S, Execution, Running, refuse_impossible
from kdbench.grid.lease import Holder, revoke
from kdbench.grid.plan import Job
from kdbench.grid.prepare import marked, prepare_nodes, unseen
from kdbench.grid.stopping import stop_on_signals
from kdbench.results.store import CELLS, Results

if TYPE_CHECKING:
    import ray

    Reference = ray.ObjectRef["Outcome | Unfit"]

REMOTE_TICK_S = 10.0  # between two looks at what is running, if a look costs requests to an object store
SILENT_S = 30.0  # after so long without a lease and without news from Ray, the node of a cell is lost
GRACE_S = 30.0  # a cell that does not stop by itself when its time is over is killed after so long
STOP_TICK_S = 0.2  # between two looks at cells that were asked to stop
# A cell on a GPU has a fresh process, so that no GPU memory leaks from one to the next. On a CPU nothing is
# kept, and starting one costs seconds. It must be given in the decorator: `.options` does not take it.
CALLS_ON_CPU = 50
NODE_LABEL = "ray.io/node-id"  # under which Ray tells the name of a node to its scheduler
MORE_WAITING = 8  # tasks submitted beyond what fits: the next worker starts early, an autoscaler sees demand


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """What a node says that cannot run a cell, such as one whose GPU does not compute."""

    node: str  # Ray's name of it
    why: str


@dataclass(kw_only=True)
class Attempt:
    """A cell that was handed to Ray."""

    job: Job
    number: int
    unfit: frozenset[str] = frozenset()  # the nodes that could not run it
    running_since: float | None = None  # the time on the clock of this process when its lease was first seen
    killed: bool = False
    silent_since: float | None = None  # since when it has no lease any more, and Ray says nothing


def run_with_ray(execution: Execution) -> Iterator[Outcome]:
    """Run every cell on the cluster of the open session; yields each outcome."""
    cluster = ray_cluster()
    if not execution.address:
        # Ray offers only memory that is free now; a cell that needs more runs alone.
        most = int(cluster.nodes[0].memory_bytes)
        needs = [replace(job.need, memory_bytes=min(job.need.memory_bytes, most)) for job in execution.jobs]
        jobs = [replace(job, need=need) for job, need in zip(execution.jobs, needs, strict=True)]
        execution = replace(execution, jobs=jobs)
    refuse_impossible(execution.jobs, cluster)
    try:
        with marked(execution.storage) as marker:
            prepare_nodes(execution.jobs, execution.data, marker)
            yield from _Queue(execution, marker).outcomes()
    finally:
        with suppress(OSError):  # they expire, and an earlier error matters more
            for holder in execution.own(execution.look() or []):
                revoke(execution.storage, holder.cell_id, execution.run_id)


def settle(execution: Execution, reference: "Reference | None", attempt: Attempt) -> Outcome | None:
    """The outcome of an attempt; None if its worker or node was lost and it is to be tried again.

    Without a reference, because Ray says nothing about the attempt, its files decide.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

    lost = f"lost {number_of(attempt.number, 'worker or node', 'workers or nodes')}"
    status, error = "failed", f"{lost}: nothing is heard of the last one"
    try:
        if reference is not None:
            told: Outcome | Unfit = ray.get(reference)
            if isinstance(told, Outcome):
                return told
            attempt.unfit |= {told.node}
            error = f"{lost}: {told.why}"
    except RayTaskError as raised:
        if isinstance(raised, OSError):  # ResultsError: no later cell could be kept either
            raise
        error = re.sub(r"\x1b\[\d+m", "", str(raised))  # Ray colours it
    except OutOfMemoryError as raised:
        status, error = "oom", f"the machine ran out of memory: {raised}"
    except RayError as raised:
        error = f"{lost}: {type(raised).__name__}: {raised}"
        if attempt.killed:
            status = "timeout"
            error = (
                f"killed {GRACE_S:g} s after its {execution.timeout_s:g} s (--timeout): "
                "it did not stop by itself"
            )
    return _settled_by_files(execution, attempt, status, error)


def _settled_by_files(execution: Execution, attempt: Attempt, status: str, error: str) -> Outcome | None:
    """The outcome by its files; without one, None to try again, or a failure, which is recorded."""
    cell, place, storage = attempt.job.cell, attempt.job.place, execution.storage
    try:
        revoke(storage, cell.id, execution.run_id)
        end = Results(storage).end_of(cell.id)
    except (OSError, DataError) as raised:
        raise ResultsError(str(raised)) from raised
    if end is not None and end.run_id != place.replaces:  # by the lost worker itself, or by another run
        return outcome_of(cell, end.status, 0.0)
    if error.startswith("lost") and attempt.number <= RETRIES:
        return None
    return record_end(cell, place, execution.run_id, status, error)


class _Queue:
    """The cells of a run: waiting, running on Ray, or elsewhere (another run has them)."""

    def __init__(self, execution: Execution, marker: str) -> None:
        self.execution = execution
        self.waiting = deque(Attempt(job=job, number=1) for job in execution.jobs)
        self.running: dict[Reference, Attempt] = {}
        self.elsewhere: list[Attempt] = []
        self.window = 1  # cells to hand to Ray at a time
        self.looked = 0.0
        self.tick_s = TICK_S if execution.storage.local else REMOTE_TICK_S
        self.smallest = min((job.need for job in execution.jobs), key=lambda need: (need.gpus, need.cpus))
        self.run_one = _remote(execution, marker)

    def outcomes(self) -> Iterator[Outcome]:
        """Keep as many cells going as fit, in their order, until each has finished."""
        import ray

        while self.waiting or self.running or self.elsewhere:
            if self.execution.stop.asked_by:
                yield from self._stop()
                return
            self._submit()
            ready, _ = ray.wait([*self.running], timeout=TICK_S) if self.running else ([], [])
            settled: list[tuple[Attempt, Reference | None]] = [(self.running.pop(r), r) for r in ready]
            settled += [(self.running.pop(reference), None) for reference in self._look()]
            for attempt, reference in settled:
                outcome = settle(self.execution, reference, attempt)
                if outcome is None:
                    again = Attempt(job=attempt.job, number=attempt.number + 1, unfit=attempt.unfit)
                    self.waiting.appendleft(again)
                elif outcome.status == ELSEWHERE:
                    self.elsewhere.append(Attempt(job=attempt.job, number=attempt.number))
                else:
                    yield outcome
            if not self.running and not self.waiting and self.elsewhere:
                time.sleep(TICK_S)

    def _submit(self) -> None:
        while self.waiting and len(self.running) < self.window:
            need = self.waiting[0].job.need
            if need.gpus and need.gpus < self._largest_share_in_line():
                return  # Ray would give every share of a GPU that gets free to it, and the larger one starves
            attempt = self.waiting.popleft()
            task = self.run_one.options(
                num_cpus=need.cpus,
                num_gpus=need.gpus,
                memory=need.memory_bytes or None,
                scheduling_strategy=_elsewhere(attempt),
            )
            self.running[task.remote(attempt.job)] = attempt

    def _largest_share_in_line(self) -> float:
        """The largest share of a GPU among the cells that Ray has and that have not begun."""
        return max((a.job.need.gpus for a in self.running.values() if a.running_since is None), default=0.0)

    def _look(self) -> list["Reference"]:
        """Look at the leases now and then: which cells are overdue or lost, and which are free again.

        Returns the references about which Ray will say nothing any more.
        """
        if time.monotonic() - self.looked < self.tick_s:
            return []
        now = self.execution.look()
        if now is None:
            return []
        self.looked, self.window = time.monotonic(), ray_cluster().fits(self.smallest) + MORE_WAITING
        self._kill_overdue(now)
        silent = self._silent(now)
        leased = {holder.cell_id for holder in now}
        self.waiting.extend(a for a in self.elsewhere if a.job.cell.id not in leased)
        self.elsewhere = [a for a in self.elsewhere if a.job.cell.id in leased]
        self._tell(now)
        return silent

    def _tell(self, now: Sequence[Holder]) -> None:
        others = {attempt.job.cell.id for attempt in self.elsewhere}
        own = self.execution.own(now)
        num_waiting = len(self.waiting) + len(self.elsewhere) + max(0, len(self.running) - len(own))
        elsewhere = [holder for holder in now if holder.cell_id in others]
        self.execution.watch(Running(holders=own, num_waiting=num_waiting, elsewhere=elsewhere))

    def _kill_overdue(self, now: Sequence[Holder]) -> None:
        """Kill cells that run long after their time limit; most stop by themselves between two batches."""
        import ray

        leased, timeout_s = {holder.cell_id for holder in self.execution.own(now)}, self.execution.timeout_s
        for reference, attempt in self.running.items():
            if attempt.running_since is None and attempt.job.cell.id in leased:
                attempt.running_since = time.monotonic()
            if timeout_s is None or attempt.running_since is None or attempt.killed:
                continue
            if time.monotonic() - attempt.running_since > timeout_s + GRACE_S:
                attempt.killed = True
                ray.cancel(reference, force=True)

    def _silent(self, now: Sequence[Holder]) -> list["Reference"]:
        """Attempts that ran, have no lease any more, and about which Ray has said nothing for SILENT_S.

        Ray can wait for ever for a node that was cut off while it answered.
        """
        import ray

        leased, lost = {holder.cell_id for holder in self.execution.own(now)}, []
        for reference, attempt in self.running.items():
            ran = attempt.running_since is not None or self._wrote(attempt.job)
            if attempt.job.cell.id in leased or not ran:
                attempt.silent_since = None
            elif attempt.silent_since is None:
                attempt.silent_since = time.monotonic()
            elif time.monotonic() - attempt.silent_since > SILENT_S:
                ray.cancel(reference, force=True)
                lost.append(reference)
        return lost

    def _wrote(self, job: Job) -> bool:
        """Whether a cell that had no rows before has them now: it can end between two looks at the leases."""
        return job.place.replaces is None and self.execution.storage.exists(CELLS.name(job.cell.id))

    def _stop(self) -> Iterator[Outcome]:
        """Ask the running cells to stop and wait till none holds a lease; `stop` limits the time."""
        import ray
        from ray.exceptions import RayError

        for reference in self.running:
            ray.cancel(reference, force=False)  # raises SIGINT in the worker; waiting tasks are dropped
        while self.running or self.execution.own(self.execution.look() or []):
            ready, _ = ray.wait([*self.running], timeout=STOP_TICK_S) if self.running else ([], [])
            for reference in ready:
                del self.running[reference]
                with suppress(RayError):  # a cell that had not begun, or was lost now
                    if isinstance(told := ray.get(reference), Outcome):
                        yield told
            if not ready:
                time.sleep(STOP_TICK_S)


def _elsewhere(attempt: Attempt) -> Any:
    """Where Ray may run an attempt: on no node that could not run it, if there is another one for it.

    A node whose GPU is broken ends each cell at once, so that it is free and Ray would give it the same cell.
    """
    from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

    others = [node for node in ray_cluster().nodes if node.id not in attempt.unfit] if attempt.unfit else []
    if not any(node.fits(attempt.job.need) for node in others):
        return "DEFAULT"
    return NodeLabelSchedulingStrategy(hard={NODE_LABEL: NotIn(*attempt.unfit)})


def _remote(execution: Execution, marker: str) -> Any:
    """The task that runs one job on a worker of Ray that sees the marker."""
    import ray

    run_id, timeout_s, work = execution.run_id, execution.timeout_s, execution.work

    def run_one(job: Job) -> Outcome | Unfit:
        here = ray.get_runtime_context().get_node_id()
        # A node that joined late was not prepared. Rows on a disk of its own would be lost.
        if wrong := unseen([job], marker):
            return Unfit(node=here, why=f"node {gethostname()}: {'; '.join(wrong)}")
        if not job.need.gpus:
            see_no_gpu()
        try:
            with stop_on_signals((signal.SIGINT, signal.SIGTERM)) as stop, stop.patience():
                return work(job.cell, job.place, run_id, stop.obeyed(lambda progress: None), timeout_s)
        except LostError as error:
            return Unfit(node=here, why=str(error))

    # kdbench retries by itself: Ray would also retry a task that ran out of memory.
    calls = 1 if any(job.need.gpus for job in execution.jobs) else CALLS_ON_CPU
    return ray.remote(max_calls=calls, max_retries=0)(run_one)
