"""Plan a run, then carry it out. Nothing here prints or exits: a view hears what happens."""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from socket import gethostname
from uuid import uuid4

import torch

from kdbench import __version__
from kdbench.cell import STOPPED, Outcome, Progress
from kdbench.data.found import Found
from kdbench.engine import provenance
from kdbench.engine.deployed import evaluate_exported
from kdbench.engine.device import unused_gpu
from kdbench.engine.latency import numbers_on_gpu, time_detector
from kdbench.engine.measured import read_measured
from kdbench.errors import RequestError, ResultsError, complained, number_of
from kdbench.grid import schedule
from kdbench.grid.attempt import execute_cell
from kdbench.grid.cluster import Cluster, address_of, cluster_at, session, this_machine
from kdbench.grid.costs import Costs, expected_seconds, known_costs, longest_first, with_needs
from kdbench.grid.execution import Execution, Executor, Running, Work, refuse_impossible
from kdbench.grid.finished import check_identity, of_other_code, reading, succeeded_in
from kdbench.grid.plan import Job, plan
from kdbench.grid.prepare import before_planning, enough_disk, prepare
from kdbench.grid.request import Request
from kdbench.grid.slowness import slowness_of
from kdbench.grid.status import RunFile, write_run
from kdbench.grid.stopping import Stop, Stopped
from kdbench.grid.timing import measure, to_evaluate, to_time, without_timing
from kdbench.grid.view import Log, View
from kdbench.results.store import DEPLOYED, End, Results
from kdbench.results.superseded import RUN_STAMP, runs_ahead

NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A request that can be run; every job knows its place and its need."""

    request: Request
    jobs: tuple[Job, ...]  # all cells of the request, in its order
    todo: tuple[Job, ...]  # those that are to run, in the order in which they start
    finished: Mapping[str, str]  # cell id -> status of those that finished before, or are taken over
    published: frozenset[str]  # cells whose rows are copied from `request.published`
    data: Mapping[str, Found]  # per dataset
    costs: Costs
    cluster: Cluster
    executor: Executor
    notices: tuple[str, ...]  # for the user, before the run begins


@dataclass(frozen=True, kw_only=True)
class GridResult:
    """The outcome of a run; the numbers are in its rows."""

    run_id: str
    statuses: Mapping[str, str]  # cell id -> status of its rows, NOT_RUN if it has none
    num_finished: int  # cells that finished in this run
    num_checkpoints: int = 0  # cells that were asked to stop and left a checkpoint
    num_untimed: int = 0  # detectors that could not be timed
    num_unevaluated: int = 0  # detectors that could not be evaluated as they are exported
    stopped_by: int = 0  # the number of the signal that stopped it; 0: none
    complaints: tuple[str, ...] = field(default=())  # why it stopped early, if no signal stopped it

    @property
    def counts(self) -> Counter[str]:
        """How many cells have which status."""
        return Counter(self.statuses.values())

    @property
    def complete(self) -> bool:
        """Whether every cell succeeded and every detector that was to be measured is measured."""
        unmeasured = self.num_untimed + self.num_unevaluated
        return self.counts.keys() == {"ok"} and not unmeasured and not self.complaints


def plan_grid(request: Request, cluster: Cluster | None = None, view: View | None = None) -> Grid:
    """Plan a request for the machines of `cluster`; tell `view` what the user should know.

    Without one: for the Ray cluster at `request.address` or RAY_ADDRESS, else for this machine. Raises
    RequestError with every complaint at once if any part of the request cannot be run.
    """
    view = view or View()
    before_planning(request.dataset, view)
    request = request.model_copy(update={"address": address_of(request.address)})
    joined = cluster or _joined(request)
    planned, machines = plan(request, joined), joined or this_machine()
    results = Results(request.results)
    cells = {job.cell.id: job.cell for job in planned.jobs}
    with reading(request.results):
        ends = results.ends(cells)
    check_identity(request.results, cells, {cell_id: end.facts for cell_id, end in ends.items()})
    with reading(request.results):
        costs = known_costs(results.storage)
    published = succeeded_in(request.published, {name: cells[name] for name in cells.keys() - ends.keys()})
    # Decided by the outcomes read above; a cell that another run finishes later is not redone.
    failed = {cell_id: end for cell_id, end in ends.items() if end.status != "ok"}
    again = {"all": ends, "failed": failed}.get(request.redo or "", {})
    jobs = with_needs(planned.jobs, request, machines, costs, planned.data)
    jobs = [_replacing(job, again.get(job.cell.id)) for job in jobs]
    finished = {cell_id: end.status for cell_id, end in ends.items()} | dict.fromkeys(published, "ok")
    todo = [job for job in jobs if job.cell.id not in finished or job.cell.id in again]
    refuse_impossible(todo, machines)
    with reading(request.results):
        notices = [*planned.notices, *of_other_code(cells, ends, again), *runs_ahead(results.storage)]
    if request.device == "auto" and not joined and jobs[0].place.device == "cpu" and (why := unused_gpu()):
        notices = [*notices, f"cells run on the CPU: {why}"]
    if todo and request.latency and not request.keep_detectors:
        notices = [*notices, "detectors that are not kept (--discard-detectors) cannot be timed"]
    if request.evaluate_exported and not request.keep_detectors:
        notices = [*notices, "detectors that are not kept (--discard-detectors) cannot be exported"]
    for notice in notices:
        view.note(notice)
    asked = "ray" if request.executor is None and request.address else request.executor
    return Grid(
        request=request,
        jobs=tuple(jobs),
        todo=tuple(longest_first(todo, planned.data, costs)),
        finished=finished,
        published=published,
        data=planned.data,
        costs=costs,
        cluster=machines,
        executor=schedule.choose_executor(asked, todo, machines),
        notices=tuple(notices),
    )


def run_grid(
    grid: Grid, view: View | None = None, work: Work = execute_cell, stop: Stop | None = None
) -> GridResult:
    """Run the cells that are to run, then time one detector of each line of the report.

    An exception in a cell becomes a failed row. A signal or a full disk ends the run early: the result says
    so. Raises RequestError for an error before the first cell, such as an image that cannot be decoded.
    `work` runs one cell. Once `stop` is asked, the running cells leave checkpoints.
    """
    run = _Run(grid, view or View(), work, stop or Stop())
    with run.log.kept():
        return _carry_out(run)


def _carry_out(run: "_Run") -> GridResult:
    """The steps of a run, until one of them is stopped."""
    grid = run.grid
    stopped_by, untimed, unevaluated, complaints = 0, 0, 0, list[str]()
    try:
        with run.resources:
            run.log.say(": ".join(_counted(grid)))
            run.take_over()
            run.log.start(_first_line(run))
            for notice in grid.notices:
                run.log.write(f"note: {notice}")
            if grid.todo:
                run.prepare()
                run.execute()
            else:
                run.record()
            if grid.request.latency:
                untimed = run.time()
            if grid.request.evaluate_exported:
                unevaluated = run.evaluate_exported()
    except Stopped as raised:
        run.stop.leave()
        stopped_by = raised.number
    except KeyboardInterrupt:
        stopped_by = signal.SIGINT
    except ResultsError as error:
        complaints = [f"cannot write results in {grid.request.results}: {error}"]
    result = GridResult(
        run_id=run.id,
        statuses={job.cell.id: run.statuses.get(job.cell.id, NOT_RUN) for job in grid.jobs},
        num_finished=run.num_finished,
        num_checkpoints=run.num_checkpoints,
        num_untimed=untimed,
        num_unevaluated=unevaluated,
        stopped_by=stopped_by,
        complaints=tuple(complaints),
    )
    run.log.write(_last_line(result))
    return result


def _first_line(run: "_Run") -> str:
    where = f"process {os.getpid()} on {gethostname()}, {run.grid.executor}"
    return f"kdbench {__version__}, run {run.id}, {where}: {', '.join(_counted(run.grid))}"


def _counted(grid: Grid) -> tuple[str, str]:
    """How many cells there are, and how many of them are to run."""
    num_before = len(grid.jobs) - len(grid.todo)
    return number_of(len(grid.jobs), "cell"), f"{num_before} finished before, {len(grid.todo)} to run"


def _last_line(result: GridResult) -> str:
    parts = [f"{count} {status}" for status, count in result.counts.most_common()]
    parts += [f"{number_of(result.num_untimed, 'detector')} not timed"] if result.num_untimed else []
    parts += [f"{result.num_unevaluated} not evaluated as exported"] if result.num_unevaluated else []
    parts += [f"stopped by {signal.Signals(result.stopped_by).name}"] if result.stopped_by else []
    return "end: " + ", ".join([*parts, *result.complaints])


class _Run:
    """The steps of one run, and how its cells finished so far."""

    def __init__(self, grid: Grid, view: View, work: Work, stop: Stop) -> None:
        self.grid, self.work, self.stop = grid, work, stop
        self.id = f"{time.strftime(RUN_STAMP, time.gmtime())}-{uuid4().hex[:6]}"
        self.results = Results(grid.request.results)
        self.view = self.log = Log(view, self.results.storage, self.id, len(grid.todo))
        self.statuses = dict(grid.finished)
        self.num_finished = self.num_checkpoints = 0
        self.on_gpu = frozenset[str]()  # this process's numbers on the GPU, if it runs cells itself
        self.resources = ExitStack()  # Ray, from its first use to the end of the run

    def take_over(self) -> None:
        """Copy published rows; RequestError if the results folder cannot be written."""
        published, results = self.grid.request.published, self.grid.request.results
        if self.grid.published or self.grid.todo:
            with complained(f"cannot write results in {results}"):
                self.results.check_writable()
        if self.grid.published and published is not None:
            with complained(f"cannot copy rows of {published} to {results}"):
                self.results.take_over(published, self.grid.published)
            self.view.taken_over(len(self.grid.published), published)

    def prepare(self) -> None:
        """Build each teacher and decode all images before the first cell; RequestError if one is wrong."""
        grid, on_ray = self.grid, self.grid.executor == "ray"
        at_once = min(grid.cluster.fits(job.need) for job in grid.todo) if on_ray else 1
        joined = on_ray and grid.request.address is not None
        self.slowness = slowness_of(grid.todo, self.view.note, at_once=at_once, elsewhere=joined)
        full = enough_disk(self.grid.request.results)
        told = self.view.decoding, self.view.note
        complaints = [full] if full else prepare(self.grid.todo, self.grid.data, *told)
        if complaints:
            raise RequestError(complaints)

    def execute(self) -> None:
        """Run the cells."""
        grid, request = self.grid, self.grid.request
        expected = expected_seconds(grid.todo, grid.data, grid.costs)
        run = RunFile(
            run_id=self.id,
            started=time.time(),
            cells=expected,
            finished=sorted(grid.finished.keys() - expected.keys()),
            labels={job.cell.id: job.cell.label for job in grid.todo},
            replaces={job.cell.id: job.place.replaces for job in grid.todo if job.place.replaces},
        )
        with complained(f"cannot write results in {request.results}"):
            write_run(self.results, run)
        execution = Execution(
            jobs=grid.todo,
            data=grid.data,
            run_id=self.id,
            executor=grid.executor,
            address=request.address,
            notify=self._progress,
            watch=self._running,
            timeout_s=request.timeout,
            work=self.work,
            stop=self.stop,
        )
        self._machines()
        self.slowness.look()
        if grid.executor == "local":
            self.on_gpu = numbers_on_gpu(torch.device(grid.todo[0].place.device))
        self.view.begin(expected)
        try:
            for outcome in schedule.execute(execution):
                self._keep(outcome)
        finally:
            self.view.end()
        self.stop.check()

    def _progress(self, progress: Progress) -> None:
        self.slowness.progress(progress)
        self.view.progress(progress)

    def _running(self, running: Running) -> None:
        self.slowness.running(running)
        self.view.running(running)

    def _keep(self, outcome: Outcome) -> None:
        if outcome.status == STOPPED:
            self.num_checkpoints += not outcome.error
            return
        self.statuses[outcome.cell_id] = outcome.status
        self.num_finished += 1
        self.view.finished(outcome)

    def record(self) -> None:
        """Record which cells this run asked for, though none is to run: if images changed, these count."""
        run = RunFile(run_id=self.id, started=time.time(), cells={}, finished=sorted(self.grid.finished))
        with suppress(OSError):  # a folder that cannot be written has no new rows either
            write_run(self.results, run)

    def time(self) -> int:
        """Time a detector of each entry that was not timed yet; returns how many could not be timed."""
        grid, request = self.grid, self.grid.request
        good = self._good()
        with reading(request.results):
            there = read_measured(self.results)
        jobs = to_time(good, there, self._device_name(good), busy_again=request.redo == "failed")
        lacking = without_timing(good, there)
        if lacking and request.keep_detectors:  # else a notice of the grid says it
            self.view.note(_cannot_be_timed(lacking))
        if jobs:
            self._machines()
            self.view.timing(len(jobs))
        num_wrong = 0
        work = partial(time_detector, trained=self.on_gpu)
        for job, error in measure(jobs, work, executor=grid.executor, run_id=self.id):
            num_wrong += bool(error)
            self.view.timed(job, error)
        return num_wrong

    def evaluate_exported(self) -> int:
        """Compute the metrics of each exported detector that has none; returns how many failed."""
        good = self._good()
        with reading(self.grid.request.results):
            there = read_measured(self.results, DEPLOYED)
        jobs = to_evaluate(good, there, self._device_name(good))
        if jobs:
            self._machines()
            self.view.evaluating(len(jobs))
        num_wrong = 0
        for job, error in measure(jobs, evaluate_exported, executor=self.grid.executor, run_id=self.id):
            num_wrong += bool(error)
            self.view.evaluated(job, error)
        return num_wrong

    def _good(self) -> list[Job]:
        return [job for job in self.grid.jobs if self.statuses.get(job.cell.id) == "ok"]

    def _machines(self) -> None:
        """Start or join Ray, if it is to run the cells and does not run yet."""
        if self.grid.executor == "ray":
            self.resources.enter_context(session(self.grid.request.address))

    def _device_name(self, jobs: Sequence[Job]) -> str | None:
        """The device of the timing on this machine; None for the nodes of a cluster."""
        if not jobs or (self.grid.executor == "ray" and self.grid.request.address):
            return None
        return provenance.device_name(torch.device(jobs[0].place.device))


def _joined(request: Request) -> Cluster | None:
    """The Ray cluster that the request names; None if it names none, or is to run here."""
    if request.executor == "local" or not request.address:
        if request.wait_for_gpus:
            raise RequestError(["--wait-for-gpus waits for nodes of a cluster: name one by --address"])
        return None
    return cluster_at(request.address, request.wait_for_gpus, 60 * request.wait)


def _cannot_be_timed(jobs: Sequence[Job]) -> str:
    cell = jobs[0].cell
    return (
        f"{number_of(len(jobs), 'detector')} not kept, and so not timed; "
        f"first: {cell.method} on {cell.dataset}, {cell.setting}"
    )


def _replacing(job: Job, before: End | None) -> Job:
    """The job with the run whose rows of the cell it replaces, if any."""
    return replace(job, place=replace(job.place, replaces=before.run_id if before else None))
