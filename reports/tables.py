"""Tables as plain data, each number with the cells behind it; written as Markdown, CSV, LaTeX and HTML.

A body cell is a Value. Whoever writes a table never looks at rows, whoever fills one never escapes anything.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

HOLE = "-"
CSV_HEAD = ("table", "line", "column", "text", "mean", "std", "low", "high", "best", "hole", "cell_ids")


@dataclass(frozen=True, kw_only=True)
class Value:
    """One body cell: what is shown, and the number, interval and cells behind it."""

    text: str
    mean: float | None = None  # in the unit of the row's column (fractions, seconds), not as shown
    std: float | None = None  # over seeds, where there are several
    low: float | None = None  # 95 % interval, where there is one
    high: float | None = None
    best: bool = False  # significantly better than the next
    hole: str = ""  # why there is no number, or why it is not comparable
    cell_ids: tuple[str, ...] = ()  # of the rows that the number was computed from


@dataclass(frozen=True, kw_only=True)
class Table:
    """Head and body; every line of the body has one Value per column."""

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(len(line) == len(self.head) for line in self.body), self.title

    def is_numeric(self, column: int) -> bool:
        """Whether the column holds numbers, which are written right-aligned."""
        return any(line[column].mean is not None for line in self.body)


def text(said: object) -> Value:
    """A body cell that is no number of a row."""
    return Value(text=str(said))


def hole(why: str = "", cell_ids: Sequence[str] = ()) -> Value:
    """A body cell where a number should be."""
    return Value(text=f"{HOLE} ({why})" if why else HOLE, hole=why or "missing", cell_ids=tuple(cell_ids))


def percent(mean: float, std: float | None = None, *, cell_ids: Sequence[str] = (), why: str = "") -> Value:
    """A fraction shown in percent, with its deviation over seeds; NaN as `std` is none."""
    deviation = std if std is not None and math.isfinite(std) else None
    shown = f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if deviation is not None else "")
    return Value(
        text=shown + (f" ({why})" if why else ""),
        mean=float(mean),
        std=None if deviation is None else float(deviation),
        hole=why,
        cell_ids=tuple(cell_ids),
    )


def as_best(value: Value) -> Value:
    """The same cell, marked as significantly better than the next."""
    return replace(value, best=True)


def to_markdown(table: Table) -> str:
    """A GitHub table without its title; best values are bold."""

    def shown(value: Value) -> str:
        plain = _markdown(value.text)
        return f"**{plain}**" if value.best else plain

    lines = ["| " + " | ".join(_markdown(name) for name in table.head) + " |", "|" + "---|" * len(table.head)]
    lines += ["| " + " | ".join(shown(value) for value in line) + " |" for line in table.body]
    return "\n".join(lines) + "\n" + "".join(f"\n{_markdown(note)}\n" for note in table.notes)


def to_csv(tables: Iterable[Table]) -> str:
    """All body cells with a number or a hole, one a line: `pandas.read_csv` and a pivot give any table.

    `line` joins the cells that are no numbers, such as the method; numbers have full precision.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for table in tables:
        for line in table.body:
            name = " / ".join(value.text for value in line if _is_label(value))
            for column, value in zip(table.head, line, strict=True):
                if _is_label(value):
                    continue
                numbers = (
                    "" if n is None else repr(n) for n in (value.mean, value.std, value.low, value.high)
                )
                row = (table.title, name, column, value.text, *numbers, int(value.best), value.hole)
                writer.writerow((*row, " ".join(value.cell_ids)))
    return written.getvalue()


def to_latex(table: Table) -> str:
    r"""A `table` with booktabs rules; needs `\usepackage{booktabs}`, and an engine that reads UTF-8."""

    def shown(value: Value) -> str:
        plain = _latex(value.text)
        return rf"\textbf{{{plain}}}" if value.best else plain

    columns = "".join("r" if table.is_numeric(i) else "l" for i in range(len(table.head)))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(_latex(name) for name in table.head) + r" \\", r"\midrule"]
    lines += [" & ".join(shown(value) for value in line) + r" \\" for line in table.body]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {{\footnotesize {_latex(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def to_html(table: Table) -> str:
    """A `<table>` fragment in ASCII; a number's cells are in `data-cells`, its interval in `title`."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    lines = [f"<table>\n<caption>{escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>"]
    lines += ["<tr>" + "".join(_html_cell(value) for value in line) + "</tr>" for line in table.body]
    lines.append("</tbody>\n</table>")
    lines += [f"<p>{escape(note)}</p>" for note in table.notes]
    return ("\n".join(lines) + "\n").encode("ascii", "xmlcharrefreplace").decode("ascii")


def _html_cell(value: Value) -> str:
    attributes = ""
    if value.mean is not None:
        attributes += ' class="number"'
    elif value.hole:
        attributes += ' class="hole"'
    if value.low is not None and value.high is not None:
        attributes += f' title="95 % interval {100 * value.low:.2f} to {100 * value.high:.2f}"'
    if value.cell_ids:
        attributes += f' data-cells="{escape(" ".join(value.cell_ids))}"'
    shown = escape(value.text)
    return f"<td{attributes}>{f'<strong>{shown}</strong>' if value.best else shown}</td>"


def _is_label(value: Value) -> bool:
    return value.mean is None and not value.hole


def _one_line(said: str) -> str:
    return " ".join(said.split())


def _markdown(said: str) -> str:
    """Escaped for a body cell: no column, tag, emphasis, formula or link can begin in it."""
    return "".join(_MARKDOWN.get(character, character) for character in _one_line(said))


_MARKDOWN = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    **{character: f"\\{character}" for character in "\\|`*[]~$"},
}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(said: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _one_line(said))
