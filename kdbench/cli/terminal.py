"""Print lines, notes, complaints and bars of all commands; the exit codes."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from kdbench.cli.streams import dropped
from kdbench.errors import complained
from kdbench.files import provide_home
from kdbench.grid.console import console, print_line, shows_bars

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from kdbench.grid.bars import Bars


out, err = console(), console(stderr=True)

OK, SOME_FAILED, WRONG_REQUEST = 0, 1, 2  # and 128 + its number for a signal: 130 for Ctrl-C


def say(text: str, style: str | None = None) -> None:
    """Print a line."""
    print_line(out, text, style)


def note(text: str) -> None:
    """Print a note."""
    say(f"note: {text}", style="yellow")


def say_next(what: str, *words: str) -> None:
    """Print the next command; it stays in one line, to be copied."""
    text = f"next, {what}: {shlex.join(words)}"
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error on standard error."""
    print_line(err, f"error: {text}", style="red")


def warn(text: str) -> None:
    """Print a note on standard error."""
    print_line(err, f"note: {text}", style="yellow")


def bars() -> "Bars":
    """A view of this terminal."""
    from kdbench.grid.bars import Bars

    return Bars(out, err, dropped)


def give_home() -> None:
    """Give this process a home folder if its user has none, and say so."""
    if note := provide_home():
        warn(note)


def reading(results: str) -> AbstractContextManager[None]:
    """Raise a RequestError that names the results folder for an OSError of the block."""
    return complained(f"cannot read results in {results}")


def moving(*columns: "ProgressColumn") -> "Progress":
    """Bars that move where they can; nothing of them stays."""
    from rich.progress import Progress

    return Progress(*columns, console=out, transient=True, disable=not shows_bars(out))


@contextmanager
def decoding_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar; gives a function that takes how many images are decoded, and how many there are."""
    with moving() as bars:
        bar = bars.add_task("decoding images", total=1)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
