"""The page of a report: one HTML file that opens from disk, with every table, figure and picture in it.

Jinja escapes what comes from rows. The policy of the page allows only our script, and fetches nothing.
"""

import base64
import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

import kdbench
from kdbench.errors import number_of
from kdbench.files import written_aside
from kdbench.reports import (
    budget,
    figures,
    figures_accuracy,
    figures_deployment,
    figures_gallery,
    figures_speed,
    figures_sweep,
    figures_terms,
    gallery,
    heat,
    sweep,
)
from kdbench.reports.cell_list import Links, list_cells
from kdbench.reports.costs import FEW
from kdbench.reports.entries import COLUMNS, TITLES, Entry, Mean, entries
from kdbench.reports.figures import Mark, Sketch
from kdbench.reports.figures_speed import Timing
from kdbench.reports.gallery import Candidate, Exhibit, Shown
from kdbench.reports.leaderboard import Section, assemble, write_tables
from kdbench.reports.rows import Group, Rows, load, sections
from kdbench.reports.tables import Table
from kdbench.results.attempts import read_beside
from kdbench.results.storage import Storage
from kdbench.results.store import CURVES, PICTURES

FOLDER = "figures"
PLOTTED = ("mad", *(name for name in COLUMNS if name != "mad"))  # the metric that ranks comes first


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The content of one section of the page besides its tables."""

    group: Group
    found: list[Entry]
    timed: list[Timing]
    sketches: list[Sketch]
    candidates: list[Candidate]
    exhibits: list[Exhibit]


@dataclass(frozen=True, kw_only=True)
class Written:
    """A report that was written: its page, what the terminal shows of it, and all of its files."""

    page: Path
    headline: str
    files: list[Path]


def write_report(results: str | Path, folder: Path) -> Written:
    """Write leaderboard, page and figures of all rows."""
    rows = load(results)
    found = assemble(rows)
    tables, headline = write_tables(found, folder)
    page, *drawn = write_page(Storage(results), rows, found, folder)
    return Written(page=page, headline=headline, files=[*tables, page, *drawn])


def write_page(results: Storage, rows: Rows, found: Sequence[Section], folder: Path) -> list[Path]:
    """Write `report.html` and the files of its figures; returns the page, then those."""
    look = figures.marks(rows.cells["entry"])
    kept = _kept(results)
    parts = [_part(results, rows, group, cells, look, kept) for group, cells in sections(rows.cells)]
    shared = figures_speed.workers(rows.cells, look)
    links = Links(dict.fromkeys(rows.cells["cell_id"]))
    drawn = {part.group.title: _drawn(part.sketches, part.group.title, folder) for part in parts}
    for one in sweep.sweeps(rows.trials, rows.audits):
        drawn[one.title] = _drawn(figures_sweep.sketches(one), one.title, folder)
    drawn_for_all = _drawn(shared, "", folder)
    galleries = _galleries(parts)
    facts, points = list_cells(rows.cells, links), _points(parts, look)
    text = _template().render(
        version=kdbench.__version__,
        datasets=", ".join(sorted({*rows.cells["dataset"], *rows.trials["dataset"]})),
        summary=_summary(rows),
        plot=bool(points),
        sections=[
            {
                "id": f"section-{i}",
                "title": section.title,
                "tables": [
                    _table(table, section.title) for table in section.tables if table.body or table.notes
                ],
                "figures": drawn.get(section.title, ()),
                "gallery": galleries.get(section.title),
                "conclusion": section.conclusion,
                "standing": section.standing and _table(section.standing, ""),
            }
            for i, section in enumerate(found)
        ],
        shared_figures=drawn_for_all,
        **facts,
        cell_anchor=links.anchor,
        group=links.group,
        data=lambda: _data(points, parts, links),
        scale={"png": _base64(heat.legend()), "ticks": heat.TICKS, "says": heat.SAYS, "coarse": heat.COARSE},
        **_assets(),
    )
    with written_aside(folder / "report.html") as aside:
        aside.write_text(text, encoding="utf-8")
    every = [*itertools.chain(*drawn.values()), *drawn_for_all]
    return [folder / "report.html", *(path for figure in every for path in figure["files"])]


def _part(
    results: Storage,
    rows: Rows,
    group: Group,
    cells: pd.DataFrame,
    look: dict[str, Mark],
    kept: Mapping[str, int],
) -> _Part:
    found = entries(cells)
    timed = figures_speed.timings(found, rows.latencies)
    scores = _pictured(rows, found, kept)
    by_category = [(str(category), own) for category, own in scores.groupby("category", sort=False)]
    candidates = [one for category, own in by_category for one in gallery.candidates(category, own)]
    return _Part(
        group=group,
        found=found,
        timed=timed,
        sketches=_sketches(results, rows, group, cells, found, look, scores),
        candidates=candidates,
        exhibits=list(gallery.exhibits(results, candidates, scores)),
    )


def _kept(results: Storage) -> Counter[str]:
    """How many files for people each cell has kept."""
    return Counter(Path(name).stem for kind in (CURVES, PICTURES) for name in kind.names(results))


def _pictured(rows: Rows, found: Sequence[Entry], kept: Mapping[str, int]) -> pd.DataFrame:
    """The scores of the cells whose pictures are shown, with their `entry`."""
    return rows.scores.merge(figures_accuracy.picture_cells(found, kept), on=["cell_id", "category"])


def all_sketches(results: str | Path) -> Iterator[Sketch]:
    """Every figure of the report, also those that cannot be drawn; FileNotFoundError without rows."""
    rows, storage = load(results), Storage(results)
    look, kept = figures.marks(rows.cells["entry"]), _kept(storage)
    for group, cells in sections(rows.cells):
        found = entries(cells)
        yield from _sketches(storage, rows, group, cells, found, look, _pictured(rows, found, kept))
    yield from figures_speed.workers(rows.cells, look)
    for one in sweep.sweeps(rows.trials, rows.audits):
        yield from figures_sweep.sketches(one)


def _sketches(
    results: Storage,
    rows: Rows,
    group: Group,
    cells: pd.DataFrame,
    found: list[Entry],
    look: dict[str, Mark],
    pictured: pd.DataFrame,
) -> list[Sketch]:
    """The figures of one section; `pictured` has the scores of the cells whose pictures are shown."""
    ended = figures_accuracy.succeeded_cells(found)
    curves = read_beside(results, CURVES, only=set(ended["cell_id"])).to_pandas()
    curves = curves.merge(ended, on=["cell_id", "category"])
    timed = figures_speed.timings(found, rows.latencies)
    by_category = pictured.groupby("category", sort=False)
    middle = [one for name, own in by_category for one in gallery.median(str(name), own)]
    shown = list(gallery.exhibits(results, middle, pictured))
    return [
        *figures_speed.accuracy_latency(group, found, timed, look),
        *figures_speed.latency_distributions(group, found, rows.latencies, look),
        *figures_deployment.runtimes(group, found, rows.latencies),
        figures_accuracy.heat_map(group, found),
        *figures_accuracy.curves(group, found, curves, look),
        figures_accuracy.critical_differences(group, found, look),
        figures_accuracy.training(group, cells, look),
        *budget.courses(group, found, rows, look),
        *figures_terms.drivers(group, cells),
        figures_accuracy.interference(group, found, rows.probes, look),
        figures_gallery.strip(group, [entry.name for entry in found], shown),
    ]


def _drawn(sketches: Iterable[Sketch], section: str, folder: Path) -> list[dict[str, Any]]:
    """Figures for the template; their files are written."""
    drawn = []
    for sketch in sketches:
        shown: dict[str, Any] = {
            "svg": "",
            "name": sketch.name,
            "folder": FOLDER,
            "title": sketch.title,
            "short": sketch.title.removesuffix(f": {section}"),
            "says": sketch.says,
            "why_not": sketch.why_not,
            "files": [],
        }
        if sketch.draw:
            figure = figures.render(sketch)
            for kind, content in (("svg", figure.svg), ("png", figure.png)):
                path = folder / FOLDER / f"{sketch.name}.{kind}"
                with written_aside(path) as aside:
                    aside.write_bytes(content)
                shown["files"].append(path)
            shown |= {"svg": _base64(figure.svg), "width": figure.width, "height": figure.height}
        drawn.append(shown)
    return drawn


def _galleries(parts: Sequence[_Part]) -> dict[str, dict[str, Any]]:
    """Section title -> its categories with pictures. All sections of the page share one budget."""
    groups = [
        (part.group.title, category, list(own))
        for part in parts
        for category, own in groupby(part.exhibits, key=lambda exhibit: exhibit.candidate.category)
    ]
    taken = gallery.within_budget([own for _, _, own in groups])
    shown: dict[str, dict[str, Any]] = {}
    for part in parts:
        title = part.group.title
        categories = [
            {"name": category, "exhibits": [_item(one) for one in own]}
            for (section, category, _), own in zip(groups, taken, strict=True)
            if section == title and own
        ]
        num_shown = sum(len(category["exhibits"]) for category in categories)
        shown[title] = {
            "categories": categories,
            "num_shown": num_shown,
            "num_chosen": len(part.candidates),
            "most": gallery.MOST,
            "megabytes": gallery.BUDGET / 1e6,
            "coarse": any(one.coarse for exhibit in part.exhibits for one in exhibit.maps.values()),
        }
    return shown


def _item(shown: Shown) -> dict[str, Any]:
    exhibit, candidate = shown.exhibit, shown.exhibit.candidate
    return {
        "kind": candidate.kind,
        "why": candidate.why,
        "image": candidate.image,
        "defect": candidate.defect,
        "width": exhibit.width,
        "height": exhibit.height,
        "input": _base64(exhibit.input),
        "truth": heat.outline(exhibit.mask) if exhibit.mask else "",
        "size": exhibit.size,
        "maps": [
            {
                "entry": entry,
                "cell": cell_id,
                "standing": candidate.standing[entry],
                "png": _base64(shown.maps[entry]) if entry in shown.maps else "",
            }
            for entry, cell_id in candidate.cells.items()
        ],
    }


def _table(table: Table, section: str) -> dict[str, Any]:
    return {"table": table, "short": table.title.removesuffix(f": {section}")}


def _summary(rows: Rows) -> str:
    sentences = []
    if len(rows.cells):
        counts = rows.cells.drop_duplicates("cell_id")["status"].value_counts()
        ended = ", ".join(f"{count} {status}" for status, count in counts.items())
        parts = (("entry", "method"), ("dataset", "dataset"), ("seed", "seed"))
        of = ", ".join(number_of(rows.cells[column].nunique(), name) for column, name in parts)
        sentences.append(
            f"{number_of(len(rows.cells), 'row')} of {number_of(counts.sum(), 'cell')} ({ended}): {of}."
        )
    if len(rows.trials):
        sweeps = number_of(rows.trials["sweep_id"].nunique(), "sweep")
        sentences.append(f"{number_of(len(rows.trials), 'trial')} of {sweeps}.")
    return " ".join(sentences)


def _data(points: Sequence[dict[str, Any]], parts: Sequence[_Part], links: Links) -> dict[str, Any]:
    """The data of the script: points of the plot, and the cells behind each set of numbers."""
    return {
        "metrics": [TITLES[metric] for metric in PLOTTED],
        "sections": [part.group.title for part in parts],
        "points": points,
        "few": FEW,
        "groups": [list(group) for group in links.groups],
    }


def _points(parts: Sequence[_Part], look: dict[str, Mark]) -> list[dict[str, Any]]:
    """One per timing of an entry that has a mean; the plot is left out where there are none."""
    points = []
    for number, part in enumerate(parts):
        by_name = {entry.name: entry for entry in part.found}
        for timing in part.timed:
            entry = by_name[timing.entry]
            accuracy = [_percent(entry.means[metric]) for metric in PLOTTED]
            if any(value is not None for value in accuracy):
                points.append(
                    {
                        "section": number,
                        "entry": timing.entry,
                        "mark": look[timing.entry].number,
                        "place": timing.place,
                        "precision": timing.precision,
                        "batch": timing.batch_size,
                        "p50": _short(timing.p50_ms),
                        "p90": _short(timing.p90_ms),
                        "p99": _short(timing.p99_ms),
                        "images_per_s": _short(timing.images_per_s),
                        "off_front": figures_speed.off_front(entry, timing),
                        "accuracy": accuracy,
                    }
                )
    return points


def _percent(mean: Mean | None) -> list[float | None] | None:
    if mean is None:
        return None
    return [round(100 * mean.mean, 4), round(100 * mean.std, 4) if math.isfinite(mean.std) else None]


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja")


def _assets() -> dict[str, str]:
    """Style and script, and their hashes for the policy of the page."""
    assets: dict[str, str] = {}
    for name, file in (("style", "page.css"), ("script", "page.js")):
        text = Path(__file__).with_name(file).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assets |= {name: text, f"{name}_hash": f"sha256-{digest}"}
    return assets
