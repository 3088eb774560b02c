"""Views of a run: the events that they hear, and the log that every run writes."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from kdbench.cell import Outcome, Progress
from kdbench.errors import RequestError, number_of, reason
from kdbench.grid.execution import Running
from kdbench.grid.plan import Job
from kdbench.results.storage import Storage
from kdbench.results.store import LOGS

STORED_EVERY_S = 60.0  # in an object store, which can only write a whole file


class View:
    """Somebody who watches a run: a terminal, a notebook, a log. This one shows nothing."""

    def say(self, text: str) -> None:
        """A line on the step that begins."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def taken_over(self, count: int, published: str) -> None:
        """The rows of so many cells were copied from this folder."""

    def decoding(self, done: int, total: int) -> None:
        """`done` of `total` images are decoded."""

    def stepping(self, done: int, total: int, loss: float) -> None:
        """`done` of `total` steps of the only training are made."""

    def begin(self, expected: Mapping[str, float]) -> None:
        """The cells start; `expected` is cell id -> seconds, or numbers in proportion to them."""

    def progress(self, progress: Progress) -> None:
        """How far the cell in this process is; called after every batch, so it must be cheap."""

    def running(self, running: Running) -> None:
        """What runs where, looked up about once a second."""

    def finished(self, outcome: Outcome) -> None:
        """A cell has finished."""

    def end(self) -> None:
        """No cell runs any more, whatever the reason."""

    def timing(self, count: int) -> None:
        """So many detectors will be timed now."""

    def timed(self, job: Job, error: str) -> None:
        """A detector was timed, or could not be: `error` says why."""

    def evaluating(self, count: int) -> None:
        """So many exported detectors will be evaluated now."""

    def evaluated(self, job: Job, error: str) -> None:
        """An exported detector was evaluated, or could not be: `error` says why."""

    def problem(self) -> str:
        """Why nothing can be shown any more; empty as long as something can."""
        return ""


class Log(View):
    """A view that writes what happens to `runs/<run_id>.log`, and shows it to another view.

    The rows are what counts, so the run goes on in both cases: if the view can show nothing any more, the log
    says why; if the log cannot be written, the view says why.
    """

    def __init__(self, view: View, storage: Storage, run_id: str, num_cells: int) -> None:
        self.view, self.storage, self.name = view, storage, LOGS.name(run_id)
        self.num_cells, self.num_finished = num_cells, 0
        self._not_stored, self._stored_at = "", -math.inf
        self._started, self._silent, self._broken = False, False, False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Write what ends the run with an exception, and store the last lines."""
        try:
            yield
        except RequestError as error:
            for complaint in error.complaints:
                self.write(f"error: {complaint}")
            raise
        except BaseException as error:
            self.write(f"error: {type(error).__name__}: {error}")
            raise
        finally:
            self._store(last=True)

    def start(self, text: str) -> None:
        """Write the first line. Nothing is stored before: the folder may turn out to be a wrong one."""
        self._not_stored, self._started = _line(text) + self._not_stored, True
        self._store()

    def write(self, text: str) -> None:
        """Add a line."""
        self._not_stored += _line(text)
        self._store()

    def say(self, text: str) -> None:
        """Tell the view."""
        self._show(lambda: self.view.say(text))

    def note(self, text: str) -> None:
        """Write a line and tell the view."""
        self.write(f"note: {text}")
        self._show(lambda: self.view.note(text))

    def taken_over(self, count: int, published: str) -> None:
        """Write a line and tell the view."""
        self.write(f"{number_of(count, 'cell')} taken over from published rows")
        self._show(lambda: self.view.taken_over(count, published))

    def decoding(self, done: int, total: int) -> None:
        """Tell the view."""
        self._show(lambda: self.view.decoding(done, total))

    def stepping(self, done: int, total: int, loss: float) -> None:
        """Tell the view."""
        self._show(lambda: self.view.stepping(done, total, loss))

    def begin(self, expected: Mapping[str, float]) -> None:
        """Tell the view."""
        self._show(lambda: self.view.begin(expected))

    def progress(self, progress: Progress) -> None:
        """Tell the view."""
        self._show(lambda: self.view.progress(progress))

    def running(self, running: Running) -> None:
        """Tell the view."""
        self._show(lambda: self.view.running(running))

    def finished(self, outcome: Outcome) -> None:
        """Write a line and tell the view."""
        self.num_finished += 1
        text = outcome.summary or outcome.error
        self.write(
            f"[{self.num_finished}/{self.num_cells}] {outcome.cell_id} {outcome.label}: {outcome.status} "
            f"in {outcome.seconds:.1f} s" + (f", {text}" if text else "")
        )
        self._show(lambda: self.view.finished(outcome))

    def end(self) -> None:
        """Tell the view."""
        self._show(self.view.end)

    def timing(self, count: int) -> None:
        """Write a line and tell the view."""
        self.write(f"timing {number_of(count, 'detector')}")
        self._show(lambda: self.view.timing(count))

    def timed(self, job: Job, error: str) -> None:
        """Write a line and tell the view."""
        self.write(f"{job.cell.label}: " + (f"could not be timed: {error}" if error else "timed"))
        self._show(lambda: self.view.timed(job, error))

    def evaluating(self, count: int) -> None:
        """Write a line and tell the view."""
        self.write(f"evaluating {number_of(count, 'exported detector')}")
        self._show(lambda: self.view.evaluating(count))

    def evaluated(self, job: Job, error: str) -> None:
        """Write a line and tell the view."""
        text = f"could not be evaluated as exported: {error}" if error else "evaluated as exported"
        self.write(f"{job.cell.label}: {text}")
        self._show(lambda: self.view.evaluated(job, error))

    def problem(self) -> str:
        """The problem of the view."""
        return self.view.problem()

    def _show(self, show: Callable[[], None]) -> None:
        try:
            show()
            problem = self.view.problem()
        except OSError as error:
            problem, self.view = reason(error), View()
        if problem and not self._silent:
            self._silent = True
            self.write(f"the output cannot be written: {problem}. The run goes on")

    def _store(self, *, last: bool = False) -> None:
        waits = self.storage.local is None and time.monotonic() - self._stored_at < STORED_EVERY_S
        if not self._started or self._broken or not self._not_stored or (waits and not last):
            return
        try:
            self.storage.append(self.name, self._not_stored.encode("utf-8", "backslashreplace"))
            self._not_stored, self._stored_at = "", time.monotonic()
        except OSError as error:
            self._broken = True
            if self.num_cells:  # a folder that cannot be written needs no log: no cell is to run
                text = f"the log of this run cannot be written: {reason(error)}. The run goes on"
                self._show(lambda: self.view.note(text))


def _line(text: str) -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ} {text}\n"
