"""What every command says to a person: lines, tables, bars, complaints; and the exit codes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdbench.errors import complained
from kdbench.files import provide_home

if TYPE_CHECKING:
    from kdbench.reports.tables import Table as Values

# Without a terminal rich assumes 80 columns and cuts tables; logs and pipes have room.
_terminal = sys.stdout is not None and sys.stdout.isatty()  # None: the command was started without one
out, err = (Console(stderr=e, width=None if _terminal else 160) for e in (False, True))

OK, SOME_FAILED, WRONG_REQUEST = 0, 1, 2  # and 128 + its number for a signal: 130 for Ctrl-C


def shows_bars(console: Console) -> bool:
    """Whether bars can move there: in a terminal, and in a notebook that has ipywidgets."""
    return console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)


@contextmanager
def silenced(really: bool = True) -> Iterator[None]:
    """Print nothing meanwhile, on either stream."""
    before = out.quiet, err.quiet
    out.quiet, err.quiet = really or out.quiet, really or err.quiet
    try:
        yield
    finally:
        out.quiet, err.quiet = before


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: brackets in it are no markup, and it is never cut."""
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error on standard error."""
    err.print(f"error: {text}", style="red", highlight=False, markup=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print on standard error what the user should know, whatever the command."""
    err.print(f"note: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def give_home() -> None:
    """Give this process a home folder if its user has none, and say so."""
    if note := provide_home():
        warn(note)


def new_table(*columns: str, title: str | None = None) -> Table:
    """A table that folds long cells instead of cutting them."""
    table = Table(title=escape(title) if title else None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(table: Table) -> None:
    """Print a table."""
    out.print(table)


def show_values(table: "Values") -> None:
    """Print a table of a report, without its notes."""
    shown = new_table(*map(escape, table.head), title=table.title)
    for line in table.body:
        shown.add_row(*(escape(value.text) for value in line))
    show(shown)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def reading(results: str) -> AbstractContextManager[None]:
    """Raise a RequestError that names the results folder for an OSError of the block."""
    return complained(f"cannot read results in {results}")


@contextmanager
def decoding_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar, as a function that takes how many images are decoded, and of how many."""
    from rich.progress import Progress

    with Progress(console=out, transient=True, disable=not shows_bars(out)) as bars:
        bar = bars.add_task("decoding images", total=1)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
