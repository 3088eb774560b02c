"""Lines for people: in a terminal, a pipe or a notebook."""

import sys
import textwrap
from importlib.util import find_spec

from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """What prints on standard output, or on standard error.

    Without a terminal rich assumes 80 columns; logs and pipes have room for 160.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream is not None and stream.isatty() else 160)


def shows_bars(console: Console) -> bool:
    """Whether bars can move there: in a terminal that is not dumb, or in a notebook with ipywidgets."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: brackets in it are no markup. A terminal gets it folded between words."""
    if console.is_terminal:
        text = "\n".join(_folded(line, console.width) for line in text.split("\n"))
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def _folded(line: str, width: int) -> str:
    """A line, folded to this width; later parts are indented by two. Words and paths stay whole."""
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def duration(seconds: float) -> str:
    """Seconds in hours, minutes and seconds, for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
