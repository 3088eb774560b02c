"""What every command says to a person: lines, tables, bars, complaints; and the exit codes."""

import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import TextIO

from rich.console import Console

from kdbench.errors import complained
from kdbench.files import provide_home


def _width(stream: TextIO | None) -> int | None:
    """Without a terminal rich assumes 80 columns; logs and pipes have room. None: the terminal's own."""
    return None if stream is not None and stream.isatty() else 160


out, err = Console(width=_width(sys.stdout)), Console(stderr=True, width=_width(sys.stderr))

OK, SOME_FAILED, WRONG_REQUEST = 0, 1, 2  # and 128 + its number for a signal: 130 for Ctrl-C


def shows_bars(console: Console) -> bool:
    """Whether bars can move there: in a terminal that can, and in a notebook that has ipywidgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def silenced(really: bool = True) -> Iterator[None]:
    """Print nothing meanwhile, on either stream."""
    before = out.quiet, err.quiet
    out.quiet, err.quiet = really or out.quiet, really or err.quiet
    try:
        yield
    finally:
        out.quiet, err.quiet = before


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: brackets in it are no markup. A terminal gets it folded between words."""
    if console.is_terminal:
        text = "\n".join(_folded(line, console.width) for line in text.split("\n"))
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _folded(line: str, width: int) -> str:
    """A line in parts of this width, the later ones two columns further in. Words and paths stay whole."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def say(text: str, style: str | None = None) -> None:
    """Print a line."""
    print_line(out, text, style)


def note(text: str) -> None:
    """Print what the user should know."""
    say(f"note: {text}", style="yellow")


def say_next(what: str, *words: str) -> None:
    """Say which command does something now; it stays in one line, to be copied."""
    text = f"next, {what}: {shlex.join(words)}"
    out.print(text, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error on standard error."""
    print_line(err, f"error: {text}", style="red")


def warn(text: str) -> None:
    """Print on standard error what the user should know, whatever the command."""
    print_line(err, f"note: {text}", style="yellow")


def give_home() -> None:
    """Give this process a home folder if its user has none, and say so."""
    if note := provide_home():
        warn(note)


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
