"""What a person sees while cells run: a live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

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

from kdbench.cell import Outcome
from kdbench.cell import Progress as CellProgress
from kdbench.grid.lease import Holder
from kdbench.grid.status import part_done, seconds_left

LOG_EVERY_S = 10.0  # without a terminal, at most one line in this time


class View:
    """Shows the queue, running cells and the time that is left; a context manager.

    `expected` is cell id -> seconds that each may take, or numbers in proportion to them.
    """

    def __init__(self, console: Console, expected: Mapping[str, float]) -> None:
        self.console, self.expected = console, dict(expected)
        self.ended_ids: set[str] = set()
        self.num_failed, self.num_waiting = 0, 0
        self.started, self.logged = time.monotonic(), 0.0
        self.paces: dict[str, _Pace] = {}
        self.parts: dict[str, float] = {}  # running cell -> how much of it is done
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self.all_cells = self.bars.add_task("cells", total=len(expected), note="")
        self.cells: dict[str, TaskID] = {}

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def notify(self, progress: CellProgress) -> None:
        """Show where the one running cell is; called after every batch, so it must be cheap."""
        self._show({progress.cell_id: (progress.label, progress)})
        self._log([f"{progress.label} · {self._note(progress)}"])

    def watch(self, running: Sequence[Holder], num_waiting: int, elsewhere: Sequence[Holder]) -> None:
        """Show which cells run where; `elsewhere` are cells that another run is working on."""
        self.num_waiting = num_waiting
        cells = {holder.cell_id: (f"{holder.host}: {holder.label}", _progress(holder)) for holder in running}
        for holder in elsewhere:
            label = f"{holder.host}: {holder.label} (run {holder.run_id})"
            cells[holder.cell_id] = (label, _progress(holder))
        self._show(cells)
        lines = [f"{label} · {self._note(progress)}" for label, progress in cells.values()]
        self._log([f"{self._totals()}", *lines])

    def ended(self, outcome: Outcome) -> None:
        """One line that stays for every cell that ended."""
        self.ended_ids.add(outcome.cell_id)
        self.num_failed += outcome.status != "ok"
        bar = self.cells.pop(outcome.cell_id, None)
        if bar is not None:
            self.bars.remove_task(bar)
        self.bars.update(self.all_cells, completed=len(self.ended_ids), note=self._totals())
        said = outcome.summary or outcome.error
        took = f"{outcome.status} in {duration(outcome.seconds)}"
        self._line(
            f"[{len(self.ended_ids)}/{len(self.expected)}] {outcome.label}: {took}"
            + (f" · {said}" if said else ""),
            style="green" if outcome.status == "ok" else "red",
        )

    def _show(self, cells: Mapping[str, tuple[str, CellProgress]]) -> None:
        self.parts = {i: part_done(p.phase, p.done, p.total) for i, (_, p) in cells.items()}
        for cell_id in self.cells.keys() - cells.keys():
            self.bars.remove_task(self.cells.pop(cell_id))
        for cell_id, (label, progress) in cells.items():
            if cell_id not in self.cells:
                self.cells[cell_id] = self.bars.add_task("", total=None, note="")
            self.bars.update(
                self.cells[cell_id],
                description=escape(f"{label} · {progress.phase}"),
                completed=progress.done,
                total=progress.total or None,
                note=self._note(progress),
            )
        self.bars.update(self.all_cells, note=self._totals())

    def _totals(self) -> str:
        elapsed = time.monotonic() - self.started
        left = seconds_left(self.expected, self.ended_ids, self.parts, elapsed)
        parts = [f"{len(self.ended_ids)} of {len(self.expected)} ended"]
        parts += [f"{self.num_failed} not ok"] if self.num_failed else []
        parts += [f"{self.num_waiting} waiting"] if self.num_waiting else []
        parts += [f"{duration(left)} left"] if left else []
        return ", ".join(parts)

    def _note(self, progress: CellProgress) -> str:
        pace = self.paces.setdefault(f"{progress.cell_id} {progress.phase}", _Pace(progress.done))
        speed, parts = pace.at(progress.done), [progress.phase]
        if progress.epochs:
            parts.append(f"epoch {progress.epoch}/{progress.epochs}")
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        if speed:
            parts.append(f"{speed:.0f} images/s")
            parts.append(f"{duration((progress.total - progress.done) / speed)} left")
        if progress.problem:
            parts.append(progress.problem)
        return ", ".join(parts)

    def _log(self, lines: Sequence[str]) -> None:
        """Without a terminal: what the bars would show, now and then."""
        now = time.monotonic()
        if not self.console.is_terminal and now - self.logged >= LOG_EVERY_S:
            self.logged = now
            for line in lines:
                self._line(line)

    def _line(self, text: str, style: str | None = None) -> None:
        stamp = "" if self.console.is_terminal else time.strftime("%H:%M:%S ")
        self.console.print(escape(stamp + text), style=style, highlight=False, soft_wrap=True)


class _Pace:
    """Images per second of a phase, from when it was first seen."""

    def __init__(self, done: int) -> None:
        self.since, self.done = time.monotonic(), done

    def at(self, done: int) -> float:
        elapsed = time.monotonic() - self.since
        return (done - self.done) / elapsed if elapsed > 0 else 0.0


def _progress(holder: Holder) -> CellProgress:
    """Where the cell is by its lease, which says nothing in its first seconds."""
    said: dict[str, Any] = {"cell_id": holder.cell_id, "label": holder.label, "phase": "start"}
    return CellProgress(**(said | holder.progress))


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
