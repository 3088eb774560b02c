"""The commands; the only place that prints and that decides on exit codes."""

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from kdbench.cli.datasets import data_app
from kdbench.cli.look import doctor, list_app, new_method_, status
from kdbench.cli.options import OldOut, Out, options_of, report_folder
from kdbench.cli.report import compare, probe
from kdbench.cli.report import report as report_
from kdbench.cli.report import write as _report
from kdbench.cli.results import results_app
from kdbench.cli.terminal import INTERRUPTED, OK, SOME_FAILED, WRONG_REQUEST, complain, out, say
from kdbench.cli.terminal import complained as _complained
from kdbench.cli.terminal import decoding_bar as _decoding_bar
from kdbench.cli.terminal import new_table as _table
from kdbench.cli.terminal import reading as _reading
from kdbench.errors import DataError, RequestError
from kdbench.grid.request import Request
from kdbench.sweeps._request import SweepRequest

app = typer.Typer(
    help="Compare knowledge-distillation anomaly detectors: one command, exact metrics, traceable numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run a command and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run
    try:
        app()
    except (RequestError, DataError) as error:
        for complaint in getattr(error, "complaints", (error,)):
            complain(str(complaint))
        sys.exit(WRONG_REQUEST)
    except BrokenPipeError:  # the reader of our output went away, as in `kdbench list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(SOME_FAILED)


@options_of(Request)
def run(
    request: Request,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and an estimate, run nothing.")
    ] = False,
    report: OldOut = None,
) -> None:
    """Train and evaluate every cell of methods x datasets x settings x seeds that has not finished yet."""
    from kdbench.grid import schedule

    folder = report_folder(out, report)
    if request.address is None:
        request = request.model_copy(update={"address": os.environ.get("RAY_ADDRESS")})
    try:
        _run(request, dry_run, folder)
    finally:
        schedule.stop()


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Modules are no garbage: to look for it among them is a fifth of a command that has nothing to run."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _run(request: Any, dry_run: bool, report_: Path) -> None:
    from kdbench.grid import schedule
    from kdbench.grid.cluster import this_machine
    from kdbench.grid.costs import known_costs, longest_first, with_needs
    from kdbench.grid.request import enough_disk, plan
    from kdbench.results.store import Results

    if "synthetic" in request.dataset:
        _announce_drawing()
    cluster = schedule.connect(request.executor, request.address)
    planned = plan(request, cluster)
    for notice in planned.notices:
        say(f"note: {notice}", style="yellow")
    cluster, store = cluster or this_machine(), Results(request.results)
    with _reading(request.results):
        costs = known_costs(store.storage)
        ends = store.ends(job.cell.id for job in planned.jobs)
    ended = {cell_id: end.status for cell_id, end in ends.items()}
    known = _published(request.published, {job.cell.id for job in planned.jobs} - ended.keys())
    ended |= dict.fromkeys(known, "ok")
    planned.jobs = with_needs(planned.jobs, request, cluster, costs, planned.data)
    # By the ends that were seen: what another run ends from now on nobody asked to run again.
    failed = {cell_id: end for cell_id, end in ends.items() if end.status != "ok"}
    again = {"all": ends, "failed": failed}.get(request.redo or "", {})
    todo = [job for job in planned.jobs if job.cell.id not in ended or job.cell.id in again]
    todo = [_replacing(job, again.get(job.cell.id)) for job in todo]
    schedule.refuse_impossible(todo, cluster)
    todo = longest_first(todo, planned.data, costs)
    asked = "ray" if request.executor is None and request.address else request.executor
    executor = schedule.choose_executor(asked, todo, cluster)
    if todo and request.latency and not request.keep_detectors:
        say("note: detectors that are not kept (--discard-detectors) cannot be timed", style="yellow")
    if dry_run:
        _show_plan(planned, todo, ended, costs, cluster, executor)
        return
    say(f"{len(planned.jobs)} cells: {len(planned.jobs) - len(todo)} ended before, {len(todo)} to run")
    run_id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + uuid4().hex[:6]
    if known or todo:
        with _complained(f"cannot write results in {request.results}"):
            store.check_writable()
    if known:
        with _complained(f"cannot copy rows of {request.published} to {request.results}"):
            store.take_over(request.published, known)
        say(f"{len(known)} cells taken over from {request.published}")
    if todo:
        full = enough_disk(request.results)
        if full:
            raise RequestError([full])
        _prepare(planned, todo)
        ended |= _execute(todo, planned, costs, request, executor, run_id)
    untimed = _measure(planned, ended, request, executor, run_id) if request.latency else 0
    if not any(status == "ok" for status in ended.values()):
        say("no cell ended well: nothing to report")
    else:
        _report(request.results, report_)
    counts = Counter(ended.get(job.cell.id, "not run") for job in planned.jobs)
    out.print("cells: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    if counts.keys() != {"ok"}:
        if len(ended) > counts["ok"]:
            say("run the same command with --redo failed to try those again")
        raise typer.Exit(SOME_FAILED)
    if untimed:
        raise typer.Exit(SOME_FAILED)


def _published(folder: str | None, wanted: Set[str]) -> set[str]:
    """Which of these cells ended well among published rows."""
    from kdbench.results.store import CELLS, read

    if folder is None:
        return set()
    with _reading(folder):
        ends = read(folder, CELLS, columns=["cell_id", "status"]).to_pylist()
    return {end["cell_id"] for end in ends if end["status"] == "ok"} & wanted


def _replacing(job: Any, before: Any) -> Any:
    """The job, knowing which end of its cell it replaces, if any."""
    from dataclasses import replace

    return replace(job, place=replace(job.place, replaces=before.run_id if before else None))


def _execute(
    todo: list[Any], planned: Any, costs: Any, request: Any, executor: str, run_id: str
) -> dict[str, str]:
    from kdbench.cli.view import View
    from kdbench.errors import ResultsError
    from kdbench.grid import schedule
    from kdbench.grid.costs import expected_seconds
    from kdbench.grid.status import RunFile, write_run
    from kdbench.results.store import Results

    ended: dict[str, str] = {}
    expected = expected_seconds(todo, planned.data, costs)
    labels = {job.cell.id: job.cell.label for job in todo}
    replaces = {job.cell.id: job.place.replaces for job in todo if job.place.replaces}
    view = View(out, expected)
    try:
        run = RunFile(run_id=run_id, started=time.time(), cells=expected, labels=labels, replaces=replaces)
        with _complained(f"cannot write results in {request.results}"):
            write_run(Results(request.results), run)
        with view:
            for outcome in schedule.execute(
                todo,
                planned.data,
                executor=executor,
                address=request.address,
                run_id=run_id,
                notify=view.notify,
                watch=lambda now: view.watch(now.holders, now.num_waiting, now.elsewhere),
                timeout_s=request.timeout,
            ):
                ended[outcome.cell_id] = outcome.status
                view.ended(outcome)
    except KeyboardInterrupt:
        out.print(
            f"interrupted: {len(ended)} of {len(todo)} cells ended and are kept; the same command resumes"
        )
        sys.exit(INTERRUPTED)
    except ResultsError as error:
        complain(
            f"cannot write results in {request.results}: {error}. "
            f"{len(ended)} cells ended and are kept; the same command resumes"
        )
        sys.exit(SOME_FAILED)
    return ended


def _measure(planned: Any, ended: dict[str, str], request: Any, executor: str, run_id: str) -> int:
    """Time a detector of each entry that was not timed yet; returns how many could not be timed."""
    import torch

    from kdbench.engine.provenance import device_name
    from kdbench.grid import schedule
    from kdbench.grid.costs import read_timed, to_time, without_timing
    from kdbench.results.store import Results

    good = [job for job in planned.jobs if ended.get(job.cell.id) == "ok"]
    known = good and (executor == "local" or not request.address)  # not what the nodes of a cluster have
    here = device_name(torch.device(good[0].place.device)) if known else None
    with _reading(request.results):
        there = read_timed(Results(request.results))
    jobs = to_time(good, there, here, busy_again=request.redo == "failed")
    lacking = without_timing(good, there)
    if lacking and request.keep_detectors:  # else it was said before
        cell = lacking[0].cell
        first = f"{cell.method} on {cell.dataset}, {cell.setting}"
        say(
            f"note: {len(lacking)} detectors cannot be timed, for they were not kept; first: {first}",
            style="yellow",
        )
    if jobs:
        say(f"timing {len(jobs)} detectors, each alone on the device (--no-latency: not)")
    num_wrong = 0
    timed = schedule.measure(jobs, executor=executor, address=request.address, run_id=run_id)
    for number, (job, error) in enumerate(timed, 1):
        if error:
            complain(f"{job.cell.label} could not be timed: {error}")
            num_wrong += 1
        else:
            say(f"[{number}/{len(jobs)}] {job.cell.method} is timed")
    return num_wrong


def _prepare(planned: Any, todo: list[Any]) -> None:
    """Build each teacher and decode images before the first cell: what is wrong with them is found here."""
    from kdbench.grid.prepare import prepare

    with _decoding_bar() as tick:
        complaints = prepare(todo, planned.data, tick)
    if complaints:
        raise RequestError(complaints)


def _announce_drawing() -> None:
    from kdbench.datasets.synthetic import Synthetic
    from kdbench.files import cache_folder

    if not Synthetic.drawn():
        say(f"drawing the synthetic dataset in {cache_folder()} (once, under half a minute)")


def _show_plan(
    planned: Any, todo: list[Any], ended: dict[str, str], costs: Any, cluster: Any, executor: str
) -> None:
    """The cells in the order in which they start, then those that ended before."""
    from kdbench.cli.view import duration
    from kdbench.grid.cluster import makespan_s
    from kdbench.grid.costs import estimate_seconds

    seconds = estimate_seconds(todo, planned.data, costs)
    table = _table("cell", "method", "dataset", "setting", "category", "seed", "profile", "state", "estimate")
    pending = {job.cell.id for job in todo}
    for job in [*todo, *(job for job in planned.jobs if job.cell.id not in pending)]:
        cell = job.cell
        words = (cell.id[:8], cell.method, cell.dataset, cell.setting, cell.category, str(cell.seed))
        to_run = cell.id in pending
        state = f"to run ({job.need})" if to_run else ended[cell.id]
        expected = seconds.get(cell.id)
        estimate = "unknown" if expected is None else duration(expected)
        table.add_row(*words, cell.profile, state, estimate if to_run else "")
    out.print(table)
    where = f"{executor}: {cluster}"
    known = {cell_id: expected for cell_id, expected in seconds.items() if expected is not None}
    if len(known) < len(seconds):
        say(f"{len(todo)} of {len(planned.jobs)} cells to run with {where}")
        say("how long is unknown: none of the kind has ended, and there is no GPU here to measure a step on")
        return
    total = sum(known.values())
    planned_s = makespan_s([(known[job.cell.id], job.need) for job in todo], cluster)
    took = planned_s if executor == "ray" else total
    say(f"{len(todo)} of {len(planned.jobs)} cells to run, about {duration(took)} with {where}")
    if executor == "ray":
        say(f"about {duration(total)} one after another")


@options_of(SweepRequest)
def sweep(
    request: SweepRequest,
    out: Out = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="When all trials have finished, score them on the test images.")
    ] = False,
    report: OldOut = None,
) -> None:
    """Search a method's configuration on normal images with synthetic defects; no test image is seen."""
    from kdbench.sweeps._plan import plan_sweep

    folder = report_folder(out, report)
    if "synthetic" in request.dataset:
        _announce_drawing()
    planned = plan_sweep(request)
    for notice in planned.notices:
        say(f"note: {notice}", style="yellow")
    sys.exit(_sweep(planned, audit, folder))


def _sweep(planned: Any, audit: bool, folder: Path) -> int:
    """Run a sweep, show what it found and return the exit code."""
    from kdbench.reports.sweep import write_sweeps
    from kdbench.results.store import Results
    from kdbench.sweeps._audit import audit_trials
    from kdbench.sweeps._end import Lines, summary
    from kdbench.sweeps.tune import run_sweep

    store, where = Results(planned.sweep.place.results), planned.request.results
    try:
        store.check_writable()
    except OSError as error:
        raise RequestError([f"cannot write results in {where}: {error.strerror}"]) from error
    _prepare(planned.cells, planned.cells.jobs)
    lines = Lines(planned)
    say(lines.first())
    try:
        end = run_sweep(planned, lambda row: say(lines.of(row)))
        if audit:
            audit_trials(planned, lambda row, value: say(lines.audited(row, value)))
    except KeyboardInterrupt:
        say("interrupted: what ended is kept; the same command resumes")
        return INTERRUPTED
    good = summary(planned, end, say)
    with _complained(f"cannot write the report in {folder}"):
        path, *_ = write_sweeps(planned.sweep.place.results, folder)
    say(f"report: {path}")
    return OK if good else SOME_FAILED


for command in (run, status, sweep, report_, compare, probe):
    app.command()(command)
app.command("new-method")(new_method_)
app.command()(doctor)
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="datasets")
app.add_typer(results_app, name="results")
