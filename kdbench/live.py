"""What a person sees while cells run: a live view on a terminal, plain lines elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from kdbench.run import Outcome
from kdbench.run import Progress as CellProgress

LOG_EVERY_S = 10.0  # without a terminal, at most one line per cell in this time


class View:
    """Shows cells, epochs, images/s and the time that is left; a context manager."""

    def __init__(self, console: Console, num_cells: int) -> None:
        self.console, self.num_cells, self.num_ended = console, num_cells, 0
        self.started = time.monotonic()
        self.current, self.since, self.since_done, self.logged = ("", ""), 0.0, 0, 0.0
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
        self.all_cells = self.bars.add_task("cells", total=num_cells, note="")
        self.cell = self.bars.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> "View":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def notify(self, progress: CellProgress) -> None:
        """Show where the running cell is; called after every batch, so it must be cheap."""
        now = time.monotonic()
        if self.current != (progress.cell_id, progress.phase):
            self.current = (progress.cell_id, progress.phase)
            self.since, self.since_done = now, progress.done
        speed = (progress.done - self.since_done) / (now - self.since) if now > self.since else 0.0
        note = _note(progress, speed)
        if self.console.is_terminal:
            text = f"{progress.label} · {progress.phase}"
            total = progress.total or None
            self.bars.update(
                self.cell,
                description=escape(text),
                completed=progress.done,
                total=total,
                note=note,
                visible=True,
            )
        elif now - self.logged >= LOG_EVERY_S:
            self.logged = now
            self._line(f"{progress.label} · {progress.phase} {note}")

    def ended(self, outcome: Outcome) -> None:
        """One line that stays for every cell that ended."""
        self.num_ended += 1
        left = (time.monotonic() - self.started) / self.num_ended * (self.num_cells - self.num_ended)
        self.bars.update(
            self.all_cells, completed=self.num_ended, note=f"{duration(left)} left" if left else ""
        )
        self.bars.update(self.cell, visible=False)
        said = outcome.summary or outcome.error
        took = f"{outcome.status} in {duration(outcome.seconds)}"
        self._line(
            f"[{self.num_ended}/{self.num_cells}] {outcome.label}: {took}" + (f" · {said}" if said else ""),
            style="green" if outcome.status == "ok" else "red",
        )

    def _line(self, text: str, style: str | None = None) -> None:
        stamp = "" if self.console.is_terminal else time.strftime("%H:%M:%S ")
        self.console.print(escape(stamp + text), style=style, highlight=False, soft_wrap=True)


def _note(progress: CellProgress, speed: float) -> str:
    parts = []
    if progress.epochs:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if speed:
        parts.append(f"{speed:.0f} images/s")
        parts.append(f"{duration((progress.total - progress.done) / speed)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
