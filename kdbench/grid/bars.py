"""The view of a run in a terminal or a notebook: moving bars if it can show them, else plain lines."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column

from kdbench.cell import Outcome
from kdbench.cell import Progress as CellProgress
from kdbench.errors import number_of
from kdbench.grid.console import console, duration, print_line, shows_bars
from kdbench.grid.status import part_done, seconds_left
from kdbench.grid.view import View

if TYPE_CHECKING:
    from kdbench.grid.execution import Running
    from kdbench.grid.lease import Holder
    from kdbench.grid.plan import Job

LOG_EVERY_S = 10.0  # without bars, at most one line in this time
WIDE = 130  # columns; a narrower terminal has words only, no bar beside them


class Bars(View):
    """A view with bars: decoding, the queue, running cells, the time that is left, timings.

    It prints on the consoles `out` and `err`, or on new ones. `dropped` says why a stream has lost lines.
    """

    def __init__(
        self,
        out: Console | None = None,
        err: Console | None = None,
        dropped: Callable[[IO[str]], str] = lambda stream: "",
    ) -> None:
        self.console, self.errors = out or console(), err or console(stderr=True)
        self.dropped = dropped
        self.is_live = shows_bars(self.console)
        self.expected: dict[str, float] = {}
        self.finished_ids: set[str] = set()
        self.num_failed, self.num_waiting = 0, 0
        self.num_measured, self.num_to_measure = 0, 0
        self.started, self.logged = time.monotonic(), 0.0
        self.paces: dict[str, _Pace] = {}
        self.parts: dict[str, float] = {}  # running cell -> how much of it is done
        drawn = (BarColumn(bar_width=12), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *(drawn if self.console.width >= WIDE else ()),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True)),  # it is cut first
            console=self.console,
            expand=True,
            transient=True,
        )
        self.all_cells: TaskID | None = None
        self.cells: dict[str, TaskID] = {}
        self.only: TaskID | None = None  # the bar of a task without cells

    def say(self, text: str) -> None:
        """Print a line."""
        self._say(text)

    def note(self, text: str) -> None:
        """Print a yellow line."""
        self._say(f"note: {text}", style="yellow")

    def taken_over(self, count: int, published: str) -> None:
        """Say how many cells need not run."""
        self._say(f"{number_of(count, 'cell')} taken over from {published}")

    def decoding(self, done: int, total: int) -> None:
        """Show a bar until the last image is decoded."""
        self._only_bar("decoding images", done, total)

    def stepping(self, done: int, total: int, loss: float) -> None:
        """Show a bar until the last step is made; without bars, print a line now and then."""
        if self.only is None:
            self.logged = time.monotonic()  # the first steps are no news
        self._only_bar(f"steps, loss {loss:.3f}", done, total)
        self._log([f"step {done} of {total}, loss {loss:.3f}"])

    def begin(self, expected: Mapping[str, float]) -> None:
        """Show a bar of all cells."""
        self.expected, self.started = dict(expected), time.monotonic()
        self.all_cells = self.bars.add_task("cells", total=len(expected), note="")
        self._start()

    def end(self) -> None:
        """Take the bars away."""
        if self.is_live:  # a bar that never started would leave an empty line
            self.bars.stop()

    def progress(self, progress: CellProgress) -> None:
        """Show where the one running cell is; called after every batch, so it must be cheap."""
        self._show({progress.cell_id: (progress.label, progress)})
        self._log([f"{progress.label} · {self._note(progress)}"])

    def running(self, running: "Running") -> None:
        """Show which cells run where, also those that another run is working on."""
        self.num_waiting = running.num_waiting
        cells = {h.cell_id: (f"{h.host}: {h.label}", _progress(h)) for h in running.holders}
        for holder in running.elsewhere:
            label = f"{holder.host}: {holder.label} (run {holder.run_id})"
            cells[holder.cell_id] = (label, _progress(holder))
        self._show(cells)
        lines = [f"{label} · {self._note(progress)}" for label, progress in cells.values()]
        self._log([f"{self._totals()}", *lines])

    def finished(self, outcome: Outcome) -> None:
        """Print a line that stays for every finished cell."""
        self.finished_ids.add(outcome.cell_id)
        self.num_failed += outcome.status != "ok"
        bar = self.cells.pop(outcome.cell_id, None)
        if bar is not None:
            self.bars.remove_task(bar)
        self._update_all()
        text = outcome.summary or outcome.error
        took = f"{outcome.status} in {duration(outcome.seconds)}"
        self._line(
            f"[{len(self.finished_ids)}/{len(self.expected)}] {outcome.label}: {took}"
            + (f" · {text}" if text else ""),
            style="green" if outcome.status == "ok" else "red",
        )

    def timing(self, count: int) -> None:
        """Say how many detectors will be timed."""
        self.num_measured, self.num_to_measure = 0, count
        self._say(f"timing {number_of(count, 'detector')}, each alone on the device (--no-latency: not)")

    def timed(self, job: "Job", error: str) -> None:
        """Print a line for every detector that was timed or could not be."""
        self._measured(job, error, "could not be timed", f"{job.cell.method} is timed")

    def evaluating(self, count: int) -> None:
        """Say how many exported detectors will be evaluated."""
        self.num_measured, self.num_to_measure = 0, count
        self._say(f"evaluating {number_of(count, 'exported detector')}")

    def evaluated(self, job: "Job", error: str) -> None:
        """Print a line for every exported detector that was evaluated or could not be."""
        wrong, right = "could not be evaluated as exported", f"{job.cell.label} is evaluated as exported"
        self._measured(job, error, wrong, right)

    def _measured(self, job: "Job", error: str, wrong: str, right: str) -> None:
        self.num_measured += 1
        if error:
            print_line(self.errors, f"error: {job.cell.label} {wrong}: {error}", style="red")
        else:
            self._say(f"[{self.num_measured}/{self.num_to_measure}] {right}")

    def problem(self) -> str:
        """Why lines were lost, if some were."""
        return self.dropped(self.console.file)

    def _only_bar(self, text: str, done: int, total: int) -> None:
        """Show one bar, until all is done."""
        if self.only is None:
            self.only = self.bars.add_task(text, note="")
            self._start()
        self.bars.update(self.only, description=text, completed=done, total=total)
        if done >= total:
            self.bars.remove_task(self.only)
            self.only = None
            self.end()

    def _start(self) -> None:
        if self.is_live:
            self.bars.start()

    def _say(self, text: str, style: str | None = None) -> None:
        print_line(self.console, text, style)

    def _update_all(self) -> None:
        if self.all_cells is not None:
            self.bars.update(self.all_cells, completed=len(self.finished_ids), note=self._totals())

    def _show(self, cells: Mapping[str, tuple[str, CellProgress]]) -> None:
        self.parts = {i: part_done(p.phase, p.done, p.total) for i, (_, p) in cells.items()}
        for cell_id in self.cells.keys() - cells.keys():
            self.bars.remove_task(self.cells.pop(cell_id))
        for cell_id, (label, progress) in cells.items():
            if cell_id not in self.cells:
                self.cells[cell_id] = self.bars.add_task("", total=None, note="")
            self.bars.update(
                self.cells[cell_id],
                description=escape(label),
                completed=progress.done,
                total=progress.total or None,
                note=self._note(progress),
            )
        self._update_all()

    def _totals(self) -> str:
        elapsed = time.monotonic() - self.started
        left = seconds_left(self.expected, self.finished_ids, self.parts, elapsed)
        parts = [f"{len(self.finished_ids)} of {len(self.expected)} finished"]
        parts += [f"{self.num_failed} failed"] if self.num_failed else []
        parts += [f"{self.num_waiting} waiting"] if self.num_waiting else []
        parts += [f"{duration(left)} left"] if left else []
        return ", ".join(parts)

    def _note(self, progress: CellProgress) -> str:
        """How far a cell is; what matters most comes first, since a narrow terminal cuts the end."""
        pace = self.paces.setdefault(f"{progress.cell_id} {progress.phase}", _Pace(progress.done))
        speed, parts = pace.at(progress.done), [progress.phase]
        if progress.epochs:
            parts.append(f"epoch {progress.epoch}/{progress.epochs}")
        if progress.problem:
            parts.append(progress.problem)
        if speed:
            parts.append(f"{duration((progress.total - progress.done) / speed)} left")
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        if speed:
            parts.append(f"{speed:.0f} images/s")
        return ", ".join(parts)

    def _log(self, lines: Sequence[str]) -> None:
        """Print now and then, without bars, what they would show."""
        now = time.monotonic()
        if not self.is_live and now - self.logged >= LOG_EVERY_S:
            self.logged = now
            for line in lines:
                self._line(line)

    def _line(self, text: str, style: str | None = None) -> None:
        stamp = "" if self.is_live else time.strftime("%H:%M:%S ")
        self._say(stamp + text, style=style)


class _Pace:
    """The images per second of a phase since it was first seen."""

    def __init__(self, done: int) -> None:
        self.since, self.done = time.monotonic(), done

    def at(self, done: int) -> float:
        elapsed = time.monotonic() - self.since
        return (done - self.done) / elapsed if elapsed > 0 else 0.0


def _progress(holder: "Holder") -> CellProgress:
    """How far the cell is by its lease, which has no progress in its first seconds."""
    start = {"cell_id": holder.cell_id, "label": holder.label, "phase": "start"}
    return CellProgress(**(start | holder.progress))
