"""The commands; the only place that prints and that decides on exit codes."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli.datasets import data_app
from kdbench.cli.look import doctor, list_app, new_method_, status
from kdbench.cli.options import OldOut, Out, options_of, report_folder
from kdbench.cli.report import compare, probe
from kdbench.cli.report import report as report_
from kdbench.cli.report import write as _report
from kdbench.cli.results import results_app
from kdbench.cli.terminal import INTERRUPTED, OK, SOME_FAILED, WRONG_REQUEST, complain, err, out, say, warn
from kdbench.cli.terminal import decoding_bar as _decoding_bar
from kdbench.cli.terminal import new_table as _table
from kdbench.cli.terminal import show_values as _show_values
from kdbench.errors import DataError, RequestError
from kdbench.files import provide_home
from kdbench.grid.request import Request
from kdbench.sweeps._request import SweepRequest

if TYPE_CHECKING:
    from kdbench.grid.grid import Estimate, Grid

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
        if note := provide_home():
            warn(note)
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
    code = _run(request, dry_run, report_folder(out, report))
    if code != OK:
        raise typer.Exit(code)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Modules are no garbage: to look for it among them is a fifth of a command that has nothing to run."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _run(request: "Request", dry_run: bool, report_: Path) -> int:
    """Plan and run a grid, say what happens, write the report; returns the exit code."""
    from kdbench.cli.view import View
    from kdbench.grid.grid import NOT_RUN, estimate, plan_grid, run_grid

    if "synthetic" in request.dataset:
        _announce_drawing()
    grid = plan_grid(request)
    for notice in grid.notices:
        say(f"note: {notice}", style="yellow")
    if dry_run:
        show_plan(grid, estimate(grid))
        return OK
    say(f"{len(grid.jobs)} cells: {len(grid.jobs) - len(grid.todo)} ended before, {len(grid.todo)} to run")
    result = run_grid(grid, View(out, err, request.published))
    kept = f"{result.num_finished} of {len(grid.todo)} cells finished and are kept; the same command resumes"
    if result.stopped_by:
        say(f"interrupted: {kept}")
        return INTERRUPTED
    if result.complaints:
        for complaint in result.complaints:
            complain(f"{complaint}. {kept}")
        return SOME_FAILED
    counts = result.counts
    if counts["ok"]:
        _report(request.results, report_)
    else:
        say("no cell succeeded: nothing to report")
    out.print("cells: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    if counts.keys() - {"ok", NOT_RUN}:
        say("run the same command with --redo failed to try those again")
    return OK if result.complete else SOME_FAILED


def _announce_drawing() -> None:
    from kdbench.datasets.synthetic import Synthetic
    from kdbench.files import cache_folder

    if not Synthetic.drawn():
        say(f"drawing the synthetic dataset in {cache_folder()} (once, under half a minute)")


def show_plan(grid: "Grid", expected: "Estimate") -> None:
    """The cells in the order in which they start, then those that ended before; then how long they take."""
    from kdbench.cli.view import duration

    table = _table("cell", "method", "dataset", "setting", "category", "seed", "profile", "state", "estimate")
    pending = {job.cell.id for job in grid.todo}
    for job in [*grid.todo, *(job for job in grid.jobs if job.cell.id not in pending)]:
        cell = job.cell
        words = (cell.id[:8], cell.method, cell.dataset, cell.setting, cell.category, str(cell.seed))
        if cell.id in pending:
            seconds = expected.cells[cell.id]
            state = (f"to run ({job.need})", "unknown" if seconds is None else duration(seconds))
        else:
            state = (grid.finished[cell.id], "")
        table.add_row(*words, cell.profile, *state)
    out.print(table)
    many, where = f"{len(grid.todo)} of {len(grid.jobs)} cells to run", f"{grid.executor}: {grid.cluster}"
    if expected.together_s is None or expected.one_by_one_s is None:
        say(f"{many} with {where}")
        say("no estimate: no similar cell has finished, and there is no GPU here to time a step on")
        return
    say(f"{many}, about {duration(expected.together_s)} with {where}")
    if grid.executor == "ray":
        say(f"about {duration(expected.one_by_one_s)} one after another")


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
    from kdbench.grid.prepare import prepare
    from kdbench.results.store import Results
    from kdbench.sweeps._audit import audit_trials
    from kdbench.sweeps._end import Lines, summary
    from kdbench.sweeps.tune import run_sweep

    store, where = Results(planned.sweep.place.results), planned.request.results
    try:
        store.check_writable()
    except OSError as error:
        raise RequestError([f"cannot write results in {where}: {error.strerror}"]) from error
    with _decoding_bar() as tick:
        complaints = prepare(planned.cells.jobs, planned.cells.data, tick)
    if complaints:
        raise RequestError(complaints)
    lines = Lines(planned)
    say(lines.first())
    try:
        end = run_sweep(planned, lambda row: say(lines.of(row)))
        if audit:
            audit_trials(planned, lambda row, value: say(lines.audited(row, value)))
    except KeyboardInterrupt:
        say("interrupted: what ended is kept; the same command resumes")
        return INTERRUPTED
    good = summary(planned, end, say, _show_values)
    _report(planned.sweep.place.results, folder, page=True)
    return OK if good else SOME_FAILED


for command in (run, status, sweep, report_, compare, probe):
    app.command()(command)
app.command("new-method")(new_method_)
app.command()(doctor)
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="datasets")
app.add_typer(results_app, name="results")
