"""The leaderboard: which tables a report has, and the files that they are written to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kdbench.dataset import written_aside
from kdbench.metrics import METRICS
from kdbench.registry import method_facts, method_names
from kdbench.reports.rows import Group, Rows, holes, load, load_rows, sections
from kdbench.reports.tables import (
    HOLE,
    Table,
    Value,
    hole,
    percent,
    text,
    to_csv,
    to_html,
    to_latex,
    to_markdown,
)

__all__ = ["Entry", "Section", "assemble", "entries", "load_rows", "write_leaderboard"]

COLUMNS = (*METRICS, "mad")
TITLES = dict(
    zip(
        COLUMNS,
        ("I-AUROC", "I-AP", "I-F1", "P-AUROC", "P-AP", "P-F1", "AUPRO", "AUPRO 5 %", "mAD"),
        strict=True,
    )
)
PER_CATEGORY = ("image_auroc", "pixel_auroc", "aupro")
PROBES = {
    "mixup_image_auroc": "Mixup, I-AUROC",
    "cutpaste_image_auroc": "CutPaste, I-AUROC",
    "cutpaste_pixel_auroc": "CutPaste, P-AUROC",
}
LEGEND = """Percent. A mean is over all categories of the dataset, then over seeds (± standard deviation).
I image, P pixel; AUPRO up to a false positive rate of 30 %, and of 5 %; mAD is the mean of the first seven.
Methods are ranked by mAD, and only where every category of every seed ended well. A - is a hole: no number.
"""

Means = dict[str, tuple[float, float] | None]  # metric -> (mean, deviation) over seeds; None is a hole


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a leaderboard: a method with one recipe."""

    name: str
    rows: pd.DataFrame
    means: Means  # over all categories of the dataset, or holes
    num_seeds: int
    holes: tuple[str, ...]  # what is missing, in words; none: the entry is ranked


@dataclass(frozen=True, kw_only=True)
class Section:
    """The tables of rows that may be compared with each other, or of the whole report."""

    title: str
    tables: tuple[Table, ...]
    headline: str = ""  # what the terminal shows of it


def write_leaderboard(results: Path, folder: Path) -> tuple[Path, str]:
    """Write `leaderboard.md`, `.csv`, `.tex` and `.html` of all rows; returns the first and a headline."""
    found = assemble(load(results))
    tables = [table for section in found for table in section.tables]
    written = {
        "leaderboard.md": f"# Leaderboard\n\n{LEGEND}\n" + "\n".join(_markdown(section) for section in found),
        "leaderboard.csv": to_csv(tables),
        "leaderboard.tex": "\n".join(to_latex(table) for table in tables),
        "leaderboard.html": "\n".join(to_html(table) for table in tables),
    }
    for name, said in written.items():
        with written_aside(folder / name) as aside:
            aside.write_text(said, encoding="utf-8")
    return folder / "leaderboard.md", "\n".join(s.headline for s in found if s.headline)


def assemble(rows: Rows) -> list[Section]:
    """Every section of the report, in order."""
    found = [_section(group, cells, rows) for group, cells in sections(rows.cells)]
    return [
        *found,
        Section(title="How near the methods are to their papers", tables=(_fidelity(rows.cells),)),
    ]


def entries(rows: pd.DataFrame) -> list[Entry]:
    """The entries of one section: ranked ones by falling mAD, then those with holes by name."""
    found = [_entry(str(name), group) for name, group in rows.groupby("entry")]
    return sorted(found, key=lambda e: (bool(e.holes), -(e.means["mad"] or (0.0, 0.0))[0], e.name))


def _entry(name: str, rows: pd.DataFrame) -> Entry:
    missing = holes(rows)
    nothing: Means = dict.fromkeys(COLUMNS)
    means = nothing if missing else _means(rows)
    return Entry(name=name, rows=rows, means=means, num_seeds=rows["seed"].nunique(), holes=missing)


def _means(rows: pd.DataFrame) -> Means:
    """Mean over the categories, then mean and deviation over the seeds; a hole where one value is missing."""
    ok = rows[rows["status"] == "ok"]
    means: Means = {}
    for metric in COLUMNS:
        by_seed = ok.groupby("seed")[metric].mean()
        complete = len(ok) and ok[metric].notna().all()
        means[metric] = (by_seed.mean(), by_seed.std(ddof=1)) if complete else None
    return means


def _section(group: Group, cells: pd.DataFrame, rows: Rows) -> Section:
    found = entries(cells)
    tables = [_ranking(group, found), *_partial(group, found), *_published(group, found)]
    tables += [_per_category(group, found, metric) for metric in PER_CATEGORY]
    tables += _interference(group, cells, rows.probes)
    return Section(title=group.title, tables=tuple(tables), headline=_headline(group, found))


def _ranking(group: Group, found: list[Entry]) -> Table:
    body, rank = [], 0
    for entry in found:
        ranked = not (entry.holes or group.oracle or entry.means["mad"] is None)
        rank += ranked
        values = [text(rank if ranked else HOLE), text(entry.name), *_values(entry.means, entry.rows)]
        body.append((*values, text(entry.num_seeds), text("; ".join(entry.holes))))
    return Table(
        title=f"Ranking: {group.title}",
        head=("rank", "method", *TITLES.values(), "seeds", "holes"),
        body=tuple(body),
    )


def _partial(group: Group, found: list[Entry]) -> Iterator[Table]:
    """Means over the categories that every entry has, where some entry lacks some."""
    common = _common(found)
    if common and any(entry.holes for entry in found):
        body = []
        for entry in found:
            within = entry.rows[entry.rows["category"].isin(common)]
            body.append((text(entry.name), *_values(_means(within), within)))
        yield Table(
            title=f"{_partial_title(found, common)}: {group.title}",
            head=("method", *TITLES.values()),
            body=tuple(body),
        )


def _common(found: list[Entry]) -> list[str]:
    """The categories that ended well for every seed of every entry."""
    common = []
    for category in found[0].rows["dataset_categories"].iloc[0]:
        own = [entry.rows[entry.rows["category"] == category] for entry in found]
        whole = zip(own, found, strict=True)
        if all(len(o) == entry.num_seeds and (o["status"] == "ok").all() for o, entry in whole):
            common.append(category)
    return common


def _partial_title(found: list[Entry], common: list[str]) -> str:
    total = len(found[0].rows["dataset_categories"].iloc[0])
    return f"Not the dataset's mean: over {len(common)} of {total} categories ({', '.join(common)})"


def _published(group: Group, found: list[Entry]) -> Iterator[Table]:
    """Published numbers of these methods beside ours; other epochs, backbones, metrics are in the notes."""
    said = pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)
    said = said[(said["dataset"] == group.dataset) & (said["setting"] == group.setting)]
    body = []
    for entry in found:
        of_method = said[said["method"] == entry.rows["method"].iloc[0]]
        for number in of_method[of_method["category"].isin(["mean", *entry.rows["category"]])].itertuples():
            own = entry.rows[entry.rows["category"] == number.category]
            ours = hole()
            if number.metric in COLUMNS and number.category == "mean":
                ours = _mean(entry.means[number.metric], entry.rows)
            elif number.metric in COLUMNS:
                ours = _of_category(own, number.metric)
            names = (text(entry.name), text(number.category), text(number.metric))
            body.append((*names, percent(number.value), ours, text(number.source), text(number.note)))
    head = ("method", "category", "metric", "published", "ours", "source", "note")
    if body:
        yield Table(title=f"Beside published numbers: {group.title}", head=head, body=tuple(body))


def _per_category(group: Group, found: list[Entry], metric: str) -> Table:
    """One column per entry; the mean of a column only where it is the dataset's mean."""
    expected = list(found[0].rows["dataset_categories"].iloc[0])
    seen = {category for entry in found for category in entry.rows["category"]}
    body = []
    for category in (category for category in expected if category in seen):
        own = [entry.rows[entry.rows["category"] == category] for entry in found]
        body.append((text(category), *(_of_category(rows, metric) for rows in own)))
    if others := ", ".join(category for category in expected if category not in seen):
        body.append((text(f"not run: {others}"), *(hole() for _ in found)))
    body.append((text("mean"), *(_mean(entry.means[metric], entry.rows) for entry in found)))
    return Table(
        title=f"{TITLES[metric]} per category: {group.title}",
        head=("category", *(entry.name for entry in found)),
        body=tuple(body),
    )


def _of_category(rows: pd.DataFrame, metric: str) -> Value:
    """Mean and deviation over the seeds of one category, with what ended badly."""
    ok = rows[(rows["status"] == "ok") & rows[metric].notna()]
    bad = ", ".join(sorted(set(rows["status"]) - {"ok"}))
    if ok.empty:
        return hole(bad, [*rows["cell_id"]])
    return percent(ok[metric].mean(), ok[metric].std(ddof=1), cell_ids=[*ok["cell_id"]], why=bad)


def _interference(group: Group, cells: pd.DataFrame, probes: pd.DataFrame) -> Iterator[Table]:
    """AUROC of composites of two categories against normal images; mean over categories, then over seeds."""
    total = len(cells["dataset_categories"].iloc[0])
    body = []
    for name, own in probes[probes["cell_id"].isin(cells["cell_id"])].groupby("entry"):
        by_seed = own.groupby("seed")[[*PROBES]].mean()
        values = [_mean((by_seed[m].mean(), by_seed[m].std(ddof=1)), own) for m in PROBES]
        tested = text(f"{own['category'].nunique()} of {total}")
        body.append((text(name), *values, tested, text(len(by_seed))))
    if body:
        yield Table(
            title=f"Cross-class interference (normal images only): {group.title}",
            head=("method", *PROBES.values(), "categories", "seeds"),
            body=tuple(body),
        )


def _fidelity(cells: pd.DataFrame) -> Table:
    known = set(method_names())
    facts = [method_facts(name) for name in sorted(cells["method"].unique()) if name in known]
    return Table(
        title="How near the methods are to their papers",
        head=("method", "paper", "fidelity", "departures"),
        body=tuple(
            (text(f.name), text(f.paper), text(f.fidelity), text("; ".join(f.departures))) for f in facts
        ),
    )


def _headline(group: Group, found: list[Entry]) -> str:
    lines, shown = [group.title], (*PER_CATEGORY, "mad")

    def say(name: str, means: Means) -> str:
        return f"  {name}: " + ", ".join(f"{TITLES[m]} {_shown(means[m]).text}" for m in shown)

    lines += [say(entry.name, entry.means) for entry in found if not entry.holes]
    lines += [f"  {entry.name}: no mean, {'; '.join(entry.holes)}" for entry in found if entry.holes]
    common = _common(found)
    if common and any(entry.holes for entry in found):
        lines.append(f"  {_partial_title(found, common)}")
        for entry in found:
            lines.append("  " + say(entry.name, _means(entry.rows[entry.rows["category"].isin(common)])))
    return "\n".join(lines)


def _values(means: Means, rows: pd.DataFrame) -> list[Value]:
    return [_mean(means[metric], rows) for metric in COLUMNS]


def _mean(value: tuple[float, float] | None, rows: pd.DataFrame) -> Value:
    return _shown(value, [*dict.fromkeys(rows["cell_id"])])


def _shown(value: tuple[float, float] | None, cell_ids: Sequence[str] = ()) -> Value:
    return hole(cell_ids=cell_ids) if value is None else percent(*value, cell_ids=cell_ids)


def _markdown(section: Section) -> str:
    parts = [f"## {section.title}\n"]
    for table in section.tables:
        title = table.title.removesuffix(f": {section.title}")
        parts.append(f"### {title}\n\n{to_markdown(table)}" if title != section.title else to_markdown(table))
    return "\n".join(parts)
