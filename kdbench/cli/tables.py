"""Print tables in a terminal of any width: no word is cut in two, and equal columns may become a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from kdbench.cli.terminal import out, say

if TYPE_CHECKING:
    from kdbench.reports.tables import Table as Values

BORDERS = 3  # characters of a column beside its text
LONGEST_WORD = 20  # a longer one is an address, a path or a hash, which may be cut


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table: a text for each column, as it is."""

    cells: tuple[str, ...]
    style: str | None = None
    ends_section: bool = False


def show(head: Sequence[str], lines: Sequence[Line], title: str | None = None) -> None:
    """Print a table. Without room, columns that are equal in all lines are printed once; then come lists."""
    widths = _widths(head, lines)
    if title:
        say(title, style="italic")
    if widths is None:
        shared = [i for i in range(len(head)) if len(lines) > 1 and len({one.cells[i] for one in lines}) == 1]
        kept = [i for i in range(len(head)) if i not in shared]
        fewer = [
            Line(cells=tuple(one.cells[i] for i in kept), style=one.style, ends_section=one.ends_section)
            for one in lines
        ]
        for i in shared:
            if lines[0].cells[i]:
                say(f"{head[i]}: {lines[0].cells[i]}")
        head, lines = [head[i] for i in kept], fewer
        widths = _widths(head, lines)
    if widths is None:
        _show_lists(head, lines)
        return
    table = Table()
    for name, width in zip(head, widths, strict=True):
        table.add_column(escape(name), width=width, overflow="fold")
    for one in lines:
        table.add_row(*map(escape, one.cells), style=one.style, end_section=one.ends_section)
    out.print(table)


def show_values(table: "Values") -> None:
    """Print a table of a report, without its notes."""
    lines = [Line(cells=tuple(value.text for value in line)) for line in table.body]
    show(table.head, lines, title=table.title)


def _widths(head: Sequence[str], lines: Sequence[Line]) -> list[int] | None:
    """A width for each column; None if the longest words of all columns do not fit beside one another."""
    columns = [[name, *(one.cells[i] for one in lines)] for i, name in enumerate(head)]
    wanted = [max(map(cell_len, texts)) for texts in columns]
    words = [[cell_len(word) for text in texts for word in text.split()] for texts in columns]
    needed = [min(max(lengths, default=0), LONGEST_WORD) for lengths in words]
    room = out.width - BORDERS * len(head) - 1
    if sum(needed) > room:
        return None
    widths = wanted
    while sum(widths) > room:  # the widest column that can gives way
        shrinkable = [i for i, width in enumerate(widths) if width > needed[i]]
        widths[max(shrinkable, key=lambda i: widths[i])] -= 1
    return widths


def _show_lists(head: Sequence[str], lines: Sequence[Line]) -> None:
    for number, one in enumerate(lines):
        if number:
            say("")
        for name, text in zip(head, one.cells, strict=True):
            if text:
                say(f"{name}: {text}", style=one.style)
