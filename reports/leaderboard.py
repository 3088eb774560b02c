"""The leaderboard in Markdown: means over categories, per-category tables, and every hole shown as one."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kdbench.dataset import written_aside
from kdbench.metrics import METRICS
from kdbench.registry import method_facts, method_names
from kdbench.reports.sweep import sweep_sections
from kdbench.results import read_probes, read_rows

COLUMNS = (*METRICS, "mad")
TITLES = ("I-AUROC", "I-AP", "I-F1", "P-AUROC", "P-AP", "P-F1", "AUPRO", "AUPRO 5 %", "mAD")
PER_CATEGORY = ("image_auroc", "pixel_auroc", "aupro")
# Rows that differ in one of these never share a table.
APART = ["dataset", "setting", "profile", "preset", "metric_version", "oracle"]
HOLE = "-"
LEGEND = """Percent. A mean is over all categories of the dataset, then over seeds (± standard deviation).
I image, P pixel; AUPRO up to a false positive rate of 30 %, and of 5 %; mAD is the mean of the first seven.
Methods are ranked by mAD, and only where every category of every seed ended well. A - is a hole: no number.
"""


Means = dict[str, tuple[float, float] | None]  # metric -> (mean, deviation) over seeds; None is a hole


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of a leaderboard: a method with one configuration."""

    name: str
    means: Means  # over all categories of the dataset, or holes
    num_seeds: int
    holes: tuple[str, ...]  # what is missing, in words; none: the entry is ranked


def write_leaderboard(results: str | Path, folder: Path) -> tuple[Path, str]:
    """Write `leaderboard.md` of all rows in `results`; returns its path and a headline for the terminal."""
    sections = list(_sections(load_rows(results)))
    probes = read_probes(results).to_pandas()
    path = folder / "leaderboard.md"
    with written_aside(path) as aside:
        text = "\n".join(_section(title, rows) + _interference(rows, probes) for title, rows in sections)
        text += f"\n{_fidelity(sections)}\n{sweep_sections(results, folder)}"
        aside.write_text(f"# Leaderboard\n\n{LEGEND}\n{text}", encoding="utf-8")
    return path, "\n".join(_headline(title, rows) for title, rows in sections)


def load_rows(results: str | Path) -> pd.DataFrame:
    """All rows, with `entry` (the method and the keys in which its configurations differ) and `oracle`."""
    rows = read_rows(results).to_pandas()
    rows["oracle"] = rows["selection"] == "test"
    rows["recipe"] = rows["config"] + "\n" + rows["teacher_sha256"].str[:8]
    rows["entry"] = rows["method"]
    for (*_, method), group in rows.groupby([*APART, "method"], dropna=False):
        names = _names(method, group["recipe"].unique())
        rows.loc[group.index, "entry"] = group["recipe"].map(names)
    return rows


def entries(rows: pd.DataFrame) -> list[Entry]:
    """The lines of one table: ranked ones by falling mAD, then those with holes by name."""
    found = [_entry(name, group) for name, group in rows.groupby("entry")]
    return sorted(found, key=lambda e: (bool(e.holes), -(e.means["mad"] or (0.0, 0.0))[0], e.name))


def _entry(name: str, rows: pd.DataFrame) -> Entry:
    expected = list(rows["dataset_categories"].iloc[0])
    num_seeds, tried = rows["seed"].nunique(), rows["category"].nunique()
    holes = []
    if tried < len(expected):
        holes.append(f"{tried} of {len(expected)} categories")
    failed = rows.loc[rows["status"] != "ok", "status"].value_counts()
    holes += [f"{count} {status}" for status, count in failed.items()]
    if len(rows) < num_seeds * tried:
        holes.append(f"{num_seeds * tried - len(rows)} not run")
    nothing: Means = dict.fromkeys(COLUMNS)
    return Entry(name=name, means=nothing if holes else _means(rows), num_seeds=num_seeds, holes=tuple(holes))


def _means(rows: pd.DataFrame) -> Means:
    """Mean over the categories, then mean and deviation over the seeds; a hole where one value is missing."""
    ok = rows[rows["status"] == "ok"]
    means: Means = {}
    for metric in COLUMNS:
        by_seed = ok.groupby("seed")[metric].mean()
        means[metric] = (
            (by_seed.mean(), by_seed.std(ddof=1)) if len(ok) and ok[metric].notna().all() else None
        )
    return means


def _common(rows: pd.DataFrame) -> list[str]:
    """The categories that ended well for every seed of every entry."""
    ended = rows[rows["status"] == "ok"].groupby("category").size()
    asked = rows.groupby("entry")["seed"].nunique().sum()
    return [category for category in rows["dataset_categories"].iloc[0] if ended.get(category, 0) == asked]


def _names(method: str, recipes: Sequence[str]) -> dict[str, str]:
    configs = {}
    for recipe in recipes:
        config, teacher = recipe.split("\n")
        configs[recipe] = json.loads(config) | {"teacher": teacher}
    keys = sorted({key for config in configs.values() for key in config})
    differing = [k for k in keys if len({json.dumps(config.get(k)) for config in configs.values()}) > 1]
    names = {}
    for recipe, config in configs.items():
        said = ", ".join(f"{key}={_plain(config.get(key))}" for key in differing)
        names[recipe] = f"{method} ({said})" if said else method
    return names


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sections(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for (dataset, setting, profile, preset, version, oracle), group in rows.groupby(APART, dropna=False):
        title = f"{dataset}, {setting}, profile {profile}, preset {preset} (metrics v{version})"
        yield title + (", selected on test images: never ranked" if oracle else ""), group


def _section(title: str, rows: pd.DataFrame) -> str:
    lines = entries(rows)
    oracle = bool(rows["oracle"].iloc[0])
    body, rank = [], 0
    for entry in lines:
        ranked = not (entry.holes or oracle or entry.means["mad"] is None)
        rank += ranked
        place = str(rank) if ranked else HOLE
        body.append([place, entry.name, *_values(entry.means), str(entry.num_seeds), "; ".join(entry.holes)])
    parts = [f"## {title}\n", _table(["rank", "method", *TITLES, "seeds", "holes"], body)]
    common = _common(rows)
    if common and any(entry.holes for entry in lines):
        parts.append(f"### {_partial_title(rows, common)}\n")
        partial = [[name, *_values(means)] for name, means in _partial_means(rows, common)]
        parts.append(_table(["method", *TITLES], partial))
    parts.append(_published(rows))
    for metric in PER_CATEGORY:
        parts.append(f"### {TITLES[COLUMNS.index(metric)]} per category\n")
        parts.append(_per_category(rows, lines, metric))
    return "\n".join(parts)


def _published(rows: pd.DataFrame) -> str:
    """Published numbers of these methods beside ours; other epochs, backbones, metrics are in the notes."""
    said = pd.read_csv(Path(__file__).with_name("published.csv"))
    first = rows.iloc[0]
    said = said[(said["dataset"] == first["dataset"]) & (said["setting"] == first["setting"])]
    body = []
    for entry in entries(rows):
        own = rows[rows["entry"] == entry.name]
        tried = ["mean", *own["category"].unique()]
        of_method = said[(said["method"] == own["method"].iloc[0]) & said["category"].isin(tried)]
        for number in of_method.itertuples():
            ours = HOLE
            if number.metric in COLUMNS and number.category == "mean":
                ours = _mean(entry.means[number.metric])
            elif number.metric in COLUMNS:
                ours = _category_cell(own[own["category"] == number.category], number.metric)
            published = _mean((number.value, float("nan")))
            note = "" if pd.isna(number.note) else number.note
            body.append([entry.name, number.category, number.metric, published, ours, number.source, note])
    head = ["method", "category", "metric", "published", "ours", "source", "note"]
    return f"### Beside published numbers\n\n{_table(head, body)}" if body else ""


def _interference(rows: pd.DataFrame, probes: pd.DataFrame) -> str:
    """AUROC of composites of two categories against normal images; mean over categories, then over seeds."""
    metrics = {
        "mixup_image_auroc": "Mixup, I-AUROC",
        "cutpaste_image_auroc": "CutPaste, I-AUROC",
        "cutpaste_pixel_auroc": "CutPaste, P-AUROC",
    }
    body = []
    for name, own in rows.groupby("entry"):
        probed = probes[probes["cell_id"].isin(own["cell_id"])]
        if len(probed):
            by_seed = probed.groupby("seed")[list(metrics)].mean()
            values = [_mean((by_seed[m].mean(), by_seed[m].std(ddof=1))) for m in metrics]
            tested = f"{probed['category'].nunique()} of {len(own['dataset_categories'].iloc[0])}"
            body.append([str(name), *values, tested, str(len(by_seed))])
    if not body:
        return ""
    head = ["method", *metrics.values(), "categories", "seeds"]
    return f"\n### Cross-class interference (normal images only)\n\n{_table(head, body)}"


def _partial_title(rows: pd.DataFrame, common: list[str]) -> str:
    total = len(rows["dataset_categories"].iloc[0])
    return f"Not the dataset's mean: over {len(common)} of {total} categories ({', '.join(common)})"


def _partial_means(rows: pd.DataFrame, common: list[str]) -> list[tuple[str, Means]]:
    within = rows[rows["category"].isin(common)]
    return [(str(name), _means(group)) for name, group in within.groupby("entry")]


def _per_category(rows: pd.DataFrame, lines: list[Entry], metric: str) -> str:
    """One column per entry; the mean of a column only where it is the dataset's mean."""
    expected = list(rows["dataset_categories"].iloc[0])
    tried = [category for category in expected if category in set(rows["category"])]
    body = []
    for category in tried:
        cells = [rows[(rows["entry"] == entry.name) & (rows["category"] == category)] for entry in lines]
        body.append([category, *(_category_cell(cell, metric) for cell in cells)])
    if len(tried) < len(expected):
        others = ", ".join(category for category in expected if category not in tried)
        body.append([f"not run: {others}", *(HOLE for _ in lines)])
    body.append(["**mean**", *(_mean(entry.means[metric]) for entry in lines)])
    return _table(["category", *(entry.name for entry in lines)], body)


def _category_cell(cell: pd.DataFrame, metric: str) -> str:
    values = cell.loc[cell["status"] == "ok", metric].dropna()
    bad = sorted(set(cell["status"]) - {"ok"})
    text = _mean((values.mean(), values.std(ddof=1))) if len(values) else HOLE
    return text + (f" ({', '.join(bad)})" if bad else "")


def _fidelity(sections: list[tuple[str, pd.DataFrame]]) -> str:
    used = sorted({method for _, rows in sections for method in rows["method"]})
    known = method_names()
    body = [
        [name, fact.paper, fact.fidelity, "; ".join(fact.departures)]
        for name in used
        if name in known
        for fact in [method_facts(name)]
    ]
    return "## How near the methods are to their papers\n\n" + _table(
        ["method", "paper", "fidelity", "departures"], body
    )


def _headline(title: str, rows: pd.DataFrame) -> str:
    lines, shown = [title], (*PER_CATEGORY, "mad")
    found = entries(rows)

    def say(name: str, means: Means) -> str:
        return f"  {name}: " + ", ".join(f"{TITLES[COLUMNS.index(m)]} {_mean(means[m])}" for m in shown)

    lines += [say(entry.name, entry.means) for entry in found if not entry.holes]
    lines += [f"  {entry.name}: no mean, {'; '.join(entry.holes)}" for entry in found if entry.holes]
    common = _common(rows)
    if common and any(entry.holes for entry in found):
        lines.append(f"  {_partial_title(rows, common)}")
        lines += ["  " + say(name, means) for name, means in _partial_means(rows, common)]
    return "\n".join(lines)


def _values(means: Means) -> list[str]:
    return [_mean(means[metric]) for metric in COLUMNS]


def _mean(value: tuple[float, float] | None) -> str:
    if value is None:
        return HOLE
    mean, deviation = value
    return f"{100 * mean:.2f}" + (f" ± {100 * deviation:.2f}" if deviation == deviation else "")


def _table(head: list[str], body: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, body)]) + "\n"
