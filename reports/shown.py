"""Tables and figures outside of a report: as text for a terminal, as HTML and SVG for a notebook."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from kdbench.files import expanded, written_aside
from kdbench.reports.accuracy import partial, ranking
from kdbench.reports.entries import COLUMNS, Entry, entries, ranked_by, ranks
from kdbench.reports.evidence import Evidence
from kdbench.reports.rows import Group, load, sections
from kdbench.reports.tables import Table

if TYPE_CHECKING:
    from kdbench.reports.figures import Drawn, Sketch

ELSEWHERE = ("fidelity of the method",)  # columns that `kdbench list methods` shows, too


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Tables:
    """Tables that print themselves, and show themselves in a notebook."""

    tables: tuple[Table, ...]
    headline: str = ""

    def __str__(self) -> str:
        return "\n\n".join([*filter(None, [self.headline]), *map(to_text, self.tables)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head = [f"<p>{escape(self.headline)}</p>"] if self.headline else []
        return "\n".join([*head, *map(to_html, self.tables)])


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Leaderboard(Tables):
    """The ranking of each section of a results folder; a section has one dataset, setting, profile, preset.

    `frame` has the same as numbers: a line for each method of each section, with its rank (NaN: not ranked),
    its means over all categories and seeds as fractions (NaN: a hole), and in words what is missing.
    """

    frame: pd.DataFrame


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Compared(Tables):
    """The differences of two results folders; `num_regressions` counts what became worse."""

    num_regressions: int


class Figure:
    """A figure of the report; a notebook shows it."""

    def __init__(self, sketch: "Sketch") -> None:
        self.name, self.title, self.caption = sketch.name, sketch.title, sketch.says
        self._sketch = sketch

    def __repr__(self) -> str:
        return f"<Figure {self.title}>"

    def _repr_svg_(self) -> str:
        return self._drawn.svg.decode()

    def save(self, path: str | Path) -> None:
        """Write an SVG or a PNG, by the end of the name; ValueError for another one."""
        kinds, target = {".svg": self._drawn.svg, ".png": self._drawn.png}, Path(expanded(str(path)))
        suffix = target.suffix.lower()
        if suffix not in kinds:
            raise ValueError(f"{path} ends in {suffix!r}: a figure is {' or '.join(kinds)}")
        with written_aside(target) as aside:
            aside.write_bytes(kinds[suffix])

    @cached_property
    def _drawn(self) -> "Drawn":
        from kdbench.reports.figures import render

        return render(self._sketch)


def all_figures(results: str | Path) -> dict[str, Figure]:
    """The figures of the report that can be drawn, by name; FileNotFoundError without rows."""
    from kdbench.reports.page import all_sketches

    return {sketch.name: Figure(sketch) for sketch in all_sketches(results) if sketch.draw}


def compared(before: str | Path, after: str | Path, tolerance: float) -> Compared:
    """The tables of `kdbench compare`."""
    from kdbench.reports.compare import compare

    found = compare(expanded(str(before)), expanded(str(after)), tolerance)
    tables = (found.origins, found.ends, found.means, found.beyond)
    return Compared(
        tables=tuple(table for table in tables if table.body),
        headline=found.headline,
        num_regressions=found.num_regressions,
    )


def leaderboard(results: str | Path) -> Leaderboard:
    """The rankings of all rows: none if only sweeps ran; FileNotFoundError if nothing ran."""
    rows = load(results)
    evidence = Evidence(rows.scores)
    tables, lines = list[Table](), list[dict[str, object]]()
    for group, cells in sections(rows.cells):
        found = entries(cells)
        tables += [ranking(group, found, evidence), *partial(group, found)]
        lines += _lines(group, found)
    return Leaderboard(
        tables=tuple(map(_narrow, tables)),
        headline="" if tables else "no cell has finished: nothing to rank",
        frame=pd.DataFrame(lines),
    )


def to_text(table: Table) -> str:
    """Title, aligned columns and notes."""
    body = [table.title, _frame(table).to_string(index=False)] if table.body else [table.title]
    return "\n".join([*body, *table.notes])


def to_html(table: Table) -> str:
    """A table with a caption and its notes; everything in it is escaped."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    title = f"<p><strong>{escape(table.title)}</strong></p>"
    with pd.option_context("display.max_colwidth", None, "display.html.use_mathjax", False):
        body = _frame(table).to_html(index=False, border=0) if table.body else ""
    return title + body + notes


def _frame(table: Table) -> pd.DataFrame:
    body = [[" ".join(value.text.split()) for value in line] for line in table.body]
    return pd.DataFrame(body, columns=list(table.head))


def _lines(group: Group, found: Sequence[Entry]) -> Iterator[dict[str, object]]:
    places = ranks(found, ranked_by(found))
    for entry in found:
        means = {metric: entry.means[metric] for metric in COLUMNS}
        yield {
            **{name: getattr(group, name) for name in ("dataset", "setting", "profile", "preset")},
            "method": entry.name,
            "rank": float(places.get(entry.name, "nan")),
            **{metric: mean.mean if mean else float("nan") for metric, mean in means.items()},
            "num_seeds": len(entry.seeds),
            "remarks": "; ".join(entry.remarks),
        }


def _narrow(table: Table) -> Table:
    """The table without columns that are empty or that another command shows: a terminal has little room."""
    kept = [
        i
        for i, name in enumerate(table.head)
        if name not in ELSEWHERE and any(line[i].text for line in table.body)
    ]
    body = tuple(tuple(line[i] for i in kept) for line in table.body)
    return replace(table, head=tuple(table.head[i] for i in kept), body=body)
