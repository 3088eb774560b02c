"""The errors that kdbench tells a user about, and the wording that their messages share."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class DataError(ValueError):
    """A dataset on disk is wrong; the message names the path and what to do."""


class RequestError(ValueError):
    """A request cannot be run; `complaints` are all that is wrong with it."""

    def __init__(self, complaints: Iterable[str]) -> None:
        self.complaints = tuple(complaints)
        super().__init__("\n".join(self.complaints))


def complaints_in(error: RequestError | DataError) -> tuple[str, ...]:
    """The complaints of an error, one by one."""
    return error.complaints if isinstance(error, RequestError) else (str(error),)


class ResultsError(OSError):
    """Rows cannot be written, so no later cell could be kept either."""


class CellStopped(RuntimeError):
    """Somebody asked the cell to stop: it leaves a checkpoint and no rows."""


class CellTimeout(RuntimeError):
    """A cell took longer than its time limit."""


class Complaints:
    """Collects everything that is wrong with a request, so that the user hears all of it at once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, *texts: str) -> None:
        """Keep these complaints."""
        self.texts += texts

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the complaints of a RequestError or DataError that the block raises, and go on after it."""
        try:
            yield
        except RequestError as error:
            self.add(*error.complaints)
        except DataError as error:
            self.add(*str(error).splitlines())

    def check(self) -> None:
        """Raise RequestError with every complaint, each once; do nothing if there is none."""
        if self.texts:
            raise RequestError(dict.fromkeys(self.texts))


@contextmanager
def complained(what: str) -> Iterator[None]:
    """Raise a RequestError that begins with `what` for an OSError of the block, such as a full disk."""
    try:
        yield
    except OSError as error:
        raise RequestError([f"{what}: {error}"]) from error


def unknown(what: str, name: str, names: Iterable[str], plural: str | None = None) -> str:
    """The message for a name that does not exist: the name, the nearest one, and all there are."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {what} {name!r}.{hint} {(plural or what + 's').capitalize()}: {', '.join(names) or 'none'}"


def number_of(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 cell", "2 cells", "0.5 GPUs", "3 categories"."""
    if number == 1:
        return f"1 {noun}"
    ending = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:{'g' if isinstance(number, float) else ''}} {plural or ending}"


def reason(error: BaseException) -> str:
    """What went wrong: the system's words for an OSError (no path), else the message, else the type."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def last_line(text: str) -> str:
    """The last line of a text that is not blank, such as a traceback's message; "" if all of it is blank."""
    return (text.strip().splitlines() or [""])[-1]
