"""Tables as plain data, each number with the cells behind it; written as Markdown, CSV and LaTeX.

A body cell is a Value. Code that writes a table never looks at rows; code that fills one escapes nothing.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

HOLE = "-"
CSV_HEAD = ("table", "line", "column", "text", "mean", "std", "low", "high", "best", "hole", "cell_ids")


@dataclass(frozen=True, kw_only=True)
class Value:
    """One body cell: what is shown, and the number, interval and cells behind it."""

    text: str
    mean: float | None = None  # in the unit of the row's column (fractions, seconds), not as shown
    std: float | None = None  # over seeds, if there are several
    low: float | None = None  # 95 % interval, if there is one
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
    keys: tuple[str, ...] = ("method",)  # the columns that name a line
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert set(self.keys) <= set(self.head), self.title
        assert all(len(line) == len(self.head) for line in self.body), self.title

    def is_numeric(self, column: int) -> bool:
        """Whether the column holds numbers, which are written right-aligned."""
        return any(line[column].mean is not None for line in self.body)

    @property
    def slug(self) -> str:
        """The title as a name for anchors and labels: ASCII letters, digits and dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def text(shown: object) -> Value:
    """A body cell with words."""
    return Value(text=str(shown))


def number(count: float, shown: str = "", cell_ids: Sequence[str] = ()) -> Value:
    """A number shown as it is, or as `shown`."""
    return Value(text=shown or str(count), mean=count, cell_ids=tuple(cell_ids))


def hole(why: str = "", cell_ids: Sequence[str] = ()) -> Value:
    """A body cell without the number that belongs there."""
    return Value(text=f"{HOLE} ({why})" if why else HOLE, hole=why or "missing", cell_ids=tuple(cell_ids))


def percent(
    mean: float,
    std: float | None = None,
    *,
    cell_ids: Sequence[str] = (),
    why: str = "",
    bounds: tuple[float | None, float | None] = (None, None),
) -> Value:
    """A fraction, shown in percent; its deviation over seeds (NaN: none), and why it is not comparable."""
    deviation = None if std is None or math.isnan(std) else float(std)
    shown = f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")
    return Value(
        text=f"{shown} ({why})" if why else shown,
        mean=float(mean),
        std=deviation,
        low=bounds[0],
        high=bounds[1],
        hole=why,
        cell_ids=tuple(cell_ids),
    )


EMPTY = text("")


def as_best(value: Value) -> Value:
    """The same cell, marked as significantly better than the next."""
    return replace(value, best=True)


def to_markdown(table: Table) -> str:
    """A GitHub table without its title; best values are bold."""

    def shown(value: Value) -> str:
        plain = markdown_line(value.text)
        return f"**{plain}**" if value.best else plain

    notes = [f"{markdown_line(note)}\n" for note in table.notes]
    if not table.body:
        return "\n".join(notes)
    lines = [
        "| " + " | ".join(markdown_line(name) for name in table.head) + " |",
        "|" + "---|" * len(table.head),
    ]
    lines += ["| " + " | ".join(shown(value) for value in line) + " |" for line in table.body]
    return "\n".join(["\n".join(lines) + "\n", *notes])


def to_csv(tables: Iterable[Table]) -> str:
    """Every body cell in a line of its own: `pandas.read_csv` and a pivot give any table.

    `line` joins the columns that name the line, such as the method. Numbers are not rounded.
    """
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for table in tables:
        for line in table.body:
            cells = list(zip(table.head, line, strict=True))
            name = " / ".join(value.text for column, value in cells if column in table.keys)
            for column, value in cells:
                if column not in table.keys and value != EMPTY:
                    writer.writerow((table.title, name, column, *_csv_values(value)))
    return written.getvalue()


def _csv_values(value: Value) -> tuple[object, ...]:
    numbers = ("" if n is None else repr(n) for n in (value.mean, value.std, value.low, value.high))
    return value.text, *numbers, int(value.best), value.hole, " ".join(value.cell_ids)


def to_latex(table: Table) -> str:
    r"""A `table` with booktabs rules; needs `\usepackage{booktabs}`, and an engine that reads UTF-8."""

    def shown(value: Value) -> str:
        plain = _latex(value.text)
        return rf"\textbf{{{plain}}}" if value.best else plain

    if not table.body:
        return "".join(f"% {_one_line(words)}\n" for words in (table.title, *table.notes))
    columns = "".join("r" if table.is_numeric(i) else "l" for i in range(len(table.head)))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}\label{{tab:{table.slug}}}"]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(_latex(name) for name in table.head) + r" \\", r"\midrule"]
    lines += [" & ".join(shown(value) for value in line) + r" \\" for line in table.body]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip {{\footnotesize {_latex(note)}}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _one_line(words: str) -> str:
    return " ".join(words.split())


def markdown_line(words: str) -> str:
    """Text escaped for a heading or a body cell: no column, tag, emphasis, formula or link begins in it."""
    escaped = "".join(_MARKDOWN.get(character, character) for character in _one_line(words))
    return _EMPHASIS.sub(r"\\_", escaped)


_MARKDOWN = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    **{character: f"\\{character}" for character in "\\|`*[]~$"},
}
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # one inside a word is plain text
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _latex(words: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _one_line(words))
