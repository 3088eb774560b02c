"""`kdbench run`: a request becomes a grid, the grid is run, and the report is written."""

import atexit
import gc
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli import documents
from kdbench.cli.options import REPORT, OldOut, Out, options_of, report_folder, unusual
from kdbench.cli.report import write
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.streams import not_needed
from kdbench.cli.tables import Line, show
from kdbench.cli.terminal import OK, SOME_FAILED, bars, complain, say, say_next
from kdbench.errors import number_of
from kdbench.grid.console import duration
from kdbench.grid.request import Request
from kdbench.grid.stopping import Stop, stop_on_signals

if TYPE_CHECKING:
    from kdbench.grid.costs import Estimate
    from kdbench.grid.grid import Grid, GridResult


@for_scripts
@options_of(Request)
def run(
    request: Request,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and an estimate, run nothing.")
    ] = False,
    report: OldOut = None,
) -> Answer:
    """Train and evaluate every cell of methods x datasets x settings x seeds that has not finished yet."""
    folder = report_folder(out, report)
    with leaving_on_signals() as stop:
        with _without_collecting():
            from kdbench.grid.costs import estimate
            from kdbench.grid.grid import NOT_RUN, plan_grid, run_grid

        view = bars()
        grid = plan_grid(request, view=view)
        if dry_run:
            expected = estimate(grid)
            show_plan(grid, expected)
            statuses = {job.cell.id: grid.finished.get(job.cell.id, NOT_RUN) for job in grid.jobs}
            statuses |= dict.fromkeys((job.cell.id for job in grid.todo), NOT_RUN)
            return Answer(document=_document(grid, statuses, expected.cells))
        not_needed(sys.stdout)
        return _finish(grid, run_grid(grid, view, stop=stop), folder)


@contextmanager
def leaving_on_signals() -> Iterator[Stop]:
    """Leave the command with 128 + number if a signal ends it, and say that it can be resumed."""
    with stop_on_signals() as stop:
        try:
            yield stop
        except KeyboardInterrupt:
            stop.leave()
            # Libraries raise a KeyboardInterrupt of their own in place of ours.
            number = stop.asked_by or signal.SIGINT
            raise typer.Exit(_say_stopped(number, "what finished is kept")) from None


def show_plan(grid: "Grid", expected: "Estimate") -> None:
    """Show the cells in the order in which they start, those that finished before, and how long it takes."""
    head = ("cell", "method", "dataset", "setting", "category", "seed", "profile", "state", "estimate")
    lines, pending = [], {job.cell.id for job in grid.todo}
    for job in [*grid.todo, *(job for job in grid.jobs if job.cell.id not in pending)]:
        cell = job.cell
        words = (cell.id[:8], cell.method, cell.dataset, cell.setting, cell.category, str(cell.seed))
        if cell.id in pending:
            seconds = expected.cells[cell.id]
            state = (f"to run ({job.need})", "unknown" if seconds is None else duration(seconds))
        else:
            state = (grid.finished[cell.id], "")
        lines.append(Line(cells=(*words, cell.profile, *state)))
    show(head, lines)
    many = f"{len(grid.todo)} of {number_of(len(grid.jobs), 'cell')} to run"
    where = f"{grid.executor}: {grid.cluster}"
    if expected.together_s is None or expected.one_by_one_s is None:
        say(f"{many} with {where}")
        say("no estimate: no similar cell has finished, and there is no GPU here to time a step on")
    else:
        say(f"{many}, about {duration(expected.together_s)} with {where}")
        if grid.executor == "ray":
            say(f"about {duration(expected.one_by_one_s)} one after another")
    say_gpu_hours(grid)
    say("next: the same command without --dry-run")


def say_gpu_hours(grid: "Grid") -> None:
    """Say how long cells with paper recipes would take on a GPU, if there is none here."""
    from kdbench.grid.gpu_hours import SAYS, gpu_hours

    jobs = [job for job in grid.todo if job.cell.profile == "paper"]
    if jobs and not any(job.place.device.startswith("cuda") for job in jobs):
        say(f"on a GPU about {duration(3600 * gpu_hours(jobs, grid.data))}: {SAYS}")


def _finish(grid: "Grid", result: "GridResult", folder: Path) -> Answer:
    """Write the report and say how the cells finished."""
    page: Path | None = None
    kept = f"{result.num_finished} of {number_of(len(grid.todo), 'cell')} finished and kept"
    if result.stopped_by:
        checkpoints = f", {result.num_checkpoints} left a checkpoint" if result.num_checkpoints else ""
        code = _say_stopped(result.stopped_by, kept + checkpoints)
    elif result.complaints:
        for complaint in result.complaints:
            complain(f"{complaint}. {kept}; the same command resumes")
        code = SOME_FAILED
    else:
        page = _report(grid, result.counts, folder)
        code = OK if result.complete else SOME_FAILED
    document = _document(grid, result.statuses, {}, result=result, page=page)
    return Answer(document=document, code=code, errors=result.complaints)


def _report(grid: "Grid", counts: Counter[str], folder: Path) -> Path | None:
    """Write the leaderboard, if there is anything to rank, and say how the cells ended; returns it."""
    from kdbench.grid.grid import NOT_RUN

    page = None
    if counts["ok"]:
        page, *_ = write(grid.request.results, folder)
    else:
        say("no cell succeeded: nothing to report")
    say("cells: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    if counts.keys() - {"ok", NOT_RUN}:
        say("next: run the same command with --redo failed to try those again")
    if counts["ok"]:
        where = (*unusual("--results", grid.request.results, "results"), *unusual("--out", folder, REPORT))
        say_next("a page with figures and images", "kdbench", "report", *where)
    return page


def _document(
    grid: "Grid",
    statuses: Mapping[str, str],
    expected: Mapping[str, float | None],
    *,
    result: "GridResult | None" = None,
    page: Path | None = None,
) -> documents.Run:
    cells = [
        documents.Cell.of(cell, cell_id=cell.id, status=statuses[cell.id], expected_s=expected.get(cell.id))
        for cell in (job.cell for job in grid.jobs)
    ]
    return documents.Run(
        results=grid.request.results,
        run_id=result.run_id if result else None,
        complete=result.complete if result else not grid.todo,
        counts=Counter(cell.status for cell in cells),
        cells=tuple(cells),
        report=str(page) if page else None,
    )


def _say_stopped(number: int, kept: str) -> int:
    """Say which signal ended the command and what is kept; returns the exit code."""
    name = signal.Signals(number).name
    say(f"{'interrupted' if name == 'SIGINT' else f'stopped by {name}'}: {kept}; the same command resumes")
    return 128 + number


@contextmanager
def _without_collecting() -> Iterator[None]:
    """A context without garbage collection.

    During imports it takes a fifth of the time of a command that runs nothing, and frees nothing.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # Triton, which comes with torch, prints what is not freed at the end
