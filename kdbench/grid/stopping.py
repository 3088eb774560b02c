"""A signal asks this process to stop: cells have some time to leave checkpoints, the rest ends at once."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from kdbench.cell import Notify, Progress
from kdbench.errors import CellStopped

# SLURM and Kubernetes kill 30 s after they ask; the remaining time is for writing and for stopping Ray.
GRACE_S = 20.0
AGAIN_S = 1.0  # signals of so short a time are one: a terminal and a program around this one may both send it
# Somebody pressed Ctrl-C; a scheduler takes the machine back; a terminal was closed.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal stops this process."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.asked_by = 0  # the number of the signal; 0: nobody asked
        self._patient, self._time_is_up, self._leaving = False, False, False
        self._asked_at = 0.0
        self._timer: threading.Timer | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise Stopped; inside `patience` remember who asked, and raise after GRACE_S or at a later Ctrl-C.

        A closed terminal and a scheduler may send several signals in a row: the first one counts.
        """
        if self._leaving:
            return
        first, self.asked_by = not self.asked_by, self.asked_by or number
        impatient = number == signal.SIGINT and not first and time.monotonic() - self._asked_at > AGAIN_S
        if not self._patient or self._time_is_up or impatient:
            raise Stopped(self.asked_by)
        if first:
            self._asked_at = time.monotonic()
            self._timer = threading.Timer(GRACE_S, self._end, [number])
            self._timer.daemon = True
            self._timer.start()

    def _end(self, number: int) -> None:
        self._time_is_up = True
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, number)  # also ends its waiting, after which `handle` is called

    @contextmanager
    def patience(self) -> Iterator[None]:
        """A block that looks at `asked_by` and ends by itself: a signal raises nothing in it for GRACE_S."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
            if self._timer is not None:
                self._timer.cancel()

    def leave(self) -> None:
        """Ignore signals from here on: the process only has to say what is kept."""
        self._leaving = True

    def check(self) -> None:
        """Raise Stopped if somebody asked."""
        if self.asked_by:
            raise Stopped(self.asked_by)

    def obeyed(self, notify: Notify) -> Notify:
        """The same `notify`, but once somebody has asked, it raises CellStopped in a cell that trains.

        A cell that is being evaluated goes on: that is short, and a checkpoint would not keep it.
        """

        def notify_or_stop(progress: Progress) -> None:
            if self.asked_by and progress.phase != "evaluate":
                raise CellStopped
            notify(progress)

        return notify_or_stop


@contextmanager
def stop_on_signals(numbers: Sequence[signal.Signals] = ASKING) -> Iterator[Stop]:
    """A Stop for these signals, except those that the process ignores, as `nohup` makes it do."""
    stop, before = Stop(), {}
    for number in numbers:
        handler = signal.getsignal(number)
        if handler is not signal.SIG_IGN:
            before[number] = handler
            signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with suppress(TypeError):  # of a handler that Python did not install
                signal.signal(number, handler)
