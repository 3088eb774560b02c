"""Find what slows the cells of a run on a busy machine, before they start and while they run.

The threads of a cell wait for one another after each operation. If one of them shares its core with another
program, all are as slow as that one: on two cores beside a busy program, two threads train at a tenth of
their rate, while a single thread keeps its rate.
"""

import os
import time
from collections.abc import Callable, Sequence

import torch

from kdbench import machine
from kdbench.cell import Progress
from kdbench.errors import number_of
from kdbench.grid.execution import Running
from kdbench.grid.plan import Job

FIRST_LOOK_S, LOOK_EVERY_S = 0.5, 30.0  # other programs are watched for so long before each look
WINDOW_S = 20.0  # a rate is taken over so long
FAR_BELOW = 3.0  # a rate has fallen if an earlier one was more than so many times as high
NUM_WINDOWS = 2  # slow windows in a row before a note: the end of an epoch or a checkpoint slows only one
NAMED = 3  # so many programs are named


class Slowness:
    """Watches the cells that run here, and tells `note` once what slows them.

    `at_once` cells run side by side on this machine, each with up to `threads` threads. 0: they run on other
    machines or on a GPU, so that only their rates are watched.
    """

    def __init__(self, note: Callable[[str], None], *, threads: int, at_once: int) -> None:
        self._note, self._threads, self._at_once = note, threads, at_once
        self._others = machine.Others()
        self._paces: dict[str, Pace] = {}
        self._used: list[tuple[str, float]] = []  # by other programs, at the last look
        self._looks_at, self._crowd_is_said = time.monotonic() + FIRST_LOOK_S, False

    def look(self) -> None:
        """Look at other programs, if it is time to; it must be cheap otherwise."""
        now = time.monotonic()
        if not self._at_once or now < self._looks_at:
            return
        self._used, self._others = self._others.used(machine.family()), machine.Others()
        self._looks_at = now + LOOK_EVERY_S
        text = crowded(self._used, shared_cores(), threads=self._threads, at_once=self._at_once)
        if text and not self._crowd_is_said:
            self._crowd_is_said = True
            self._note(text)

    def progress(self, progress: Progress) -> None:
        """Take the progress of the cell in this process; called after every batch."""
        self.look()
        if progress.phase == "train":
            self._seen(progress.cell_id, progress.label, progress.done)

    def running(self, running: Running) -> None:
        """Take the progress of cells that run here or on other machines."""
        self.look()
        for holder in running.holders:
            if holder.progress.get("phase") == "train":
                self._seen(holder.cell_id, f"{holder.host}: {holder.label}", holder.progress["done"])

    def _seen(self, cell_id: str, label: str, done: int) -> None:
        now = time.monotonic()
        pace = self._paces.setdefault(cell_id, Pace(done, now))
        if (rates := pace.fallen(done, now)) is not None:
            self._note(f"{label}: {rates[0]:.0f} images/s now, {rates[1]:.0f} before{self._reason()}")

    def _reason(self) -> str:
        if not self._at_once:
            return ""
        if _sum(self._used) < machine.SOME_CORES:
            return ". No other program uses much of the processor"
        return f". Other programs use {_sum(self._used):.1f} cores ({_names(self._used)})"


class Pace:
    """The images per second of one training, window by window; `now` is a time in seconds."""

    def __init__(self, done: int, now: float) -> None:
        self._done, self._since = done, now
        self._best, self._num_slow, self._is_said = 0.0, 0, False

    def fallen(self, done: int, now: float) -> tuple[float, float] | None:
        """(rate now, best rate before) when it has fallen far below, once; None else."""
        if now - self._since < WINDOW_S or done == self._done:
            return None
        rate = (done - self._done) / (now - self._since)
        self._done, self._since = done, now
        self._num_slow = self._num_slow + 1 if FAR_BELOW * rate < self._best else 0
        self._best = max(self._best, rate)
        if self._num_slow < NUM_WINDOWS or self._is_said:
            return None
        self._is_said = True
        return rate, self._best


def slowness_of(
    jobs: Sequence[Job], note: Callable[[str], None], *, at_once: int, elsewhere: bool
) -> Slowness:
    """A watcher of these jobs, which run `at_once` at a time at most; `elsewhere`: also on other machines."""
    on_cpu = all(job.place.device == "cpu" for job in jobs)
    here = 0 if elsewhere or not on_cpu else min(at_once, len(jobs))
    threads = max((job.place.num_threads or torch.get_num_threads() for job in jobs), default=1)
    return Slowness(note, threads=threads, at_once=here)


def shared_cores() -> int:
    """The cores that this run shares with the programs it sees; in a container, those of its quota."""
    return machine.cores() if machine.core_quota() is not None else os.cpu_count() or 1


def crowded(used: Sequence[tuple[str, float]], cores: int, *, threads: int, at_once: int) -> str:
    """A note if cells have to share their cores with programs that use so much; empty if they need not.

    A cell with a single thread takes turns with them, and no option changes that.
    """
    others = _sum(used)
    left = cores - others
    if threads == 1 or others < machine.SOME_CORES or threads * at_once <= left:
        return ""
    fitting = max(1, min(threads - 1, int(left / at_once + 0.25)))  # 7 where 1.1 of 8 cores are taken
    return (
        f"other programs use {others:.1f} of {number_of(cores, 'core')} ({_names(used)}). The {threads} "
        f"threads of a cell wait for the one that shares its core, so it may take many times as long. "
        f"`--cpus-per-cell {fitting}` avoids it; another number of threads is another draw "
        f"(docs/reproducibility.md)"
    )


def _sum(used: Sequence[tuple[str, float]]) -> float:
    return sum(share for _, share in used)


def _names(used: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:.1f}" for name, share in used[:NAMED] if share >= 0.05)
