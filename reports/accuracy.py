"""The tables of accuracy: ranking, overview, categories, settings side by side, published numbers, probes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from kdbench.errors import number_of
from kdbench.registry import method_facts, method_names
from kdbench.reports.coverage import covered_differences
from kdbench.reports.entries import (
    COLUMNS,
    FURTHER,
    KNOWN,
    MAIN,
    TITLES,
    Entry,
    Mean,
    common_categories,
    draws,
    marked_note,
    means,
    percent_of,
    ranked_by,
    ranks,
    shown,
    why_ranked_by,
)
from kdbench.reports.evidence import Evidence
from kdbench.reports.rows import Group, recipe_differences
from kdbench.reports.significance import p_cells, paired_difference
from kdbench.reports.statistics import MIN_PAIRS
from kdbench.reports.tables import HOLE, Table, Value, as_best, hole, number, percent, text

PER_CATEGORY = ("image_auroc", "pixel_auroc", "aupro")
PROBES = {
    "mixup_image_auroc": "Mixup, I-AUROC",
    "cutpaste_image_auroc": "CutPaste, I-AUROC",
    "cutpaste_pixel_auroc": "CutPaste, P-AUROC",
}
Sections = Sequence[tuple[Group, list[Entry]]]


def ranking(group: Group, found: Sequence[Entry], evidence: Evidence) -> Table:
    """Every entry of a section with every metric; only comparable ones have a rank."""
    places = ranks(found, ranked_by(found))
    best = {metric: evidence.best(found, metric) for metric in COLUMNS}
    body = []
    for entry in found:
        values = [_mean_cell(entry, metric, best[metric], evidence) for metric in COLUMNS]
        names, near = (_rank(places, entry), text(entry.name)), text(fidelity(entry))
        body.append((*names, *values, near, number(len(entry.seeds)), text("; ".join(entry.remarks))))
    by = why_ranked_by(found)
    return Table(
        title=f"Ranking: {group.title}",
        head=(
            "rank",
            "method",
            *(TITLES[one] for one in COLUMNS),
            "fidelity of the method",
            "seeds",
            "holes",
        ),
        body=tuple(body),
        notes=(*((by,) if by else ()), *marked_note(body), *draws(found)),
    )


def further(group: Group, found: Sequence[Entry]) -> Iterator[Table]:
    """The metrics that are no part of the ranking; only where rows have them.

    If an entry lacks categories, they are over those that all entries have.
    """
    there = [metric for metric in FURTHER if any(entry.rows[metric].notna().any() for entry in found)]
    over = common_categories(found) if any(entry.holes for entry in found) else []
    if there:
        body = []
        for entry in found:
            values = means(entry.rows[entry.rows["category"].isin(over)]) if over else entry.means
            body.append((text(entry.name), *(shown(values[metric], entry.cell_ids) for metric in there)))
        yield Table(
            title=f"Further metrics: {group.title}",
            head=("method", *(TITLES[metric] for metric in there)),
            body=tuple(body),
            notes=(
                *([f"{partial_title(found, over)}."] if over else []),
                "I-FPR 95: share of normal images above the score that finds 95 % of the defective ones; the "
                "lower, the better. AUPIMO: mean recall of a defective image at false positive rates from "
                "0.001 % to 0.01 % of the pixels of normal images, on a logarithmic axis. sPRO 5 %: AUPRO in "
                "which a defect counts as found once the area is found that its dataset demands.",
            ),
        )


def conditions(group: Group, found: Sequence[Entry]) -> Table:
    """How the detectors of a section were trained; the names of profile and method do not say it."""
    body = []
    for entry in found:
        own = entry.conditions
        values = (own.backbone, own.image_size, own.epochs, own.batch_size, own.precision, own.num_steps)
        body.append((text(entry.name), *(text(one or HOLE) for one in values), text(own.trained_on)))
    return Table(
        title=f"Conditions: {group.title}",
        head=(
            *("method", "backbone", "image size", "epochs", "batch size", "precision"),
            *("optimizer steps", "categories trained on"),
        ),
        body=tuple(body),
        notes=(
            "As the cells of this section ran: options may have overridden the profile and the method's "
            "recipe.",
        ),
    )


def overview(beside: Sections, title: str, evidence: Evidence) -> Iterator[Table]:
    """Methods x (dataset, setting), a table per main metric; all have one profile and preset."""
    names = dict.fromkeys(entry.name for _, found in beside for entry in found)
    for metric in MAIN:
        columns = []
        for group, found in beside:
            best, places = evidence.best(found, metric), ranks(found, metric)
            own = {entry.name: entry for entry in found}
            columns.append((f"{group.dataset}, {group.setting}", own, best, places))
        body = []
        for name in names:
            line = [text(name)]
            for _, own, best, places in columns:
                entry = own.get(name)
                line.append(_marked(entry, metric, best, evidence) if entry else hole("not run"))
                line.append(_rank(places, entry) if entry else text(HOLE))
            body.append(tuple(line))
        head = [part for column, *_ in columns for part in (column, f"rank, {column}")]
        yield Table(
            title=f"{TITLES[metric]}: {title}",
            head=("method", *head),
            body=tuple(body),
            notes=(*marked_note(body), *draws(entry for _, found in beside for entry in found)),
        )


def partial(group: Group, found: Sequence[Entry]) -> Iterator[Table]:
    """Means over the categories that every entry has; only where an entry lacks some."""
    common = common_categories(found)
    if common and any(entry.holes for entry in found):
        body = []
        for entry in found:
            within = entry.rows[entry.rows["category"].isin(common)]
            ids, values = [*dict.fromkeys(within["cell_id"])], means(within)
            cells = (shown(values[metric], ids) for metric in COLUMNS)
            body.append((text(entry.name), *cells, number(len(entry.seeds))))
        title = f"{partial_title(found, common)}: {group.title}"
        yield Table(
            title=title,
            head=("method", *(TITLES[one] for one in COLUMNS), "seeds"),
            body=tuple(body),
            notes=(*marked_note(body), *draws(found)),
        )


def partial_title(found: Sequence[Entry], common: Sequence[str]) -> str:
    """The title of such a table: a mean over `common` is not the mean of the dataset."""
    total = len(found[0].dataset_categories)
    return (
        f"Not the dataset's mean: over {len(common)} of {number_of(total, 'category')} ({', '.join(common)})"
    )


def per_category(group: Group, found: Sequence[Entry], metric: str) -> Table:
    """One column per entry; it has means only if it has all categories of the dataset."""
    seen = {category for entry in found for category in entry.ends}
    expected = found[0].dataset_categories
    body = []
    for category in (category for category in expected if category in seen):
        body.append((text(category), *(entry.of_category(category, metric) for entry in found)))
    if others := ", ".join(category for category in expected if category not in seen):
        body.append((text(f"not run: {others}"), *(replace(hole(), hole="not run") for _ in found)))
    body += _kinds(found, metric)
    means_ = (shown(entry.means[metric], entry.cell_ids) for entry in found)
    why = ("" if entry.holes else "; ".join(entry.unlike) for entry in found)
    body.append((text("mean"), *(_remarked(*pair) for pair in zip(means_, why, strict=True))))
    return Table(
        title=f"{TITLES[metric]} per category: {group.title}",
        head=("category", *(entry.name for entry in found)),
        body=tuple(body),
        keys=("category",),
    )


def settings(found: Sections, evidence: Evidence) -> Iterator[Table]:
    """Oneclass against multiclass of one dataset: what a method loses if one model learns all categories."""
    by_group = {group: {entry.name: entry for entry in entries_} for group, entries_ in found}
    for group, oneclass in by_group.items():
        other = next((g for g in by_group if g.beside(group) and g.setting == "multiclass"), None)
        if group.setting != "oneclass" or group.oracle or other is None:
            continue
        both = [name for name in oneclass if name in by_group[other]]
        pairs = [(oneclass[name], by_group[other][name]) for name in both]
        body = [line for metric in MAIN for line in _drops(pairs, metric, evidence)]
        body.sort(key=lambda line: both.index(line[0].text))  # stable: a method's metrics stand together
        if body:
            fewest = min(len(common_categories(pair)) for pair in pairs)
            few, entries_ = fewest < MIN_PAIRS, [entry for pair in pairs for entry in pair]
            yield Table(
                title=f"Oneclass against multiclass: {group.dataset}, {group.conditions}",
                head=(
                    *("method", "metric", "oneclass", "multiclass"),
                    *("drop", "95 % interval", "p", "p (Holm)", "categories", "other conditions"),
                ),
                body=tuple(body),
                keys=("method", "metric"),
                notes=(
                    "Means over the categories that succeeded in both settings for every seed. The drop is "
                    "oneclass minus multiclass, paired over these categories, and over the seeds of "
                    f"multiclass: Student's t. With fewer than {MIN_PAIRS} categories, interval and p of "
                    "I-AUROC are over all seeds and the test images, which are the same for both. Holm's "
                    "correction of p is over the methods.",
                    covered_differences(entries_, over_images=few, num_categories=fewest),
                    "The drop contains what else differs between the two; the last column names it, oneclass "
                    "first.",
                    *marked_note(body),
                    *draws(entries_),
                ),
            )


def published(group: Group, found: Sequence[Entry]) -> Iterator[Table]:
    """Published numbers of these methods beside ours; notes give the conditions of the published ones."""
    numbers = pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)
    numbers = numbers[(numbers["dataset"] == group.dataset) & (numbers["setting"] == group.setting)]
    body = []
    for entry in found:
        of_method = numbers[numbers["method"] == entry.method]
        for one in of_method[of_method["category"].isin(["mean", *entry.ends])].itertuples():
            ours = hole()
            if one.metric in KNOWN and one.category == "mean":
                ours = shown(entry.means[one.metric], entry.cell_ids)
            elif one.metric in KNOWN:
                ours = entry.of_category(one.category, one.metric)
            names = (text(entry.name), text(one.category), text(one.metric))
            conditions_of_both = (entry.conditions.short, one.source, one.note)
            body.append((*names, percent(one.value), ours, *map(text, conditions_of_both)))
    if body:
        yield Table(
            title=f"Beside published numbers: {group.title}",
            head=(
                "method",
                "category",
                "metric",
                "published",
                "ours",
                "conditions of ours",
                "source",
                "note",
            ),
            body=tuple(body),
            keys=("method", "category", "metric", "source"),
        )


def interference(group: Group, found: Sequence[Entry], probes: pd.DataFrame) -> Iterator[Table]:
    """AUROC of images made of two categories against normal images; mean over categories, then seeds."""
    body = []
    for entry in sorted(found, key=lambda entry: entry.name):
        own = probes[probes["cell_id"].isin(entry.cell_ids)]
        if own.empty:
            continue
        by_seed = own.groupby("seed")[[*PROBES]].mean()
        ids = [*dict.fromkeys(own["cell_id"])]
        values = [shown(Mean(by_seed[m].mean(), by_seed[m].std(ddof=1)), ids) for m in PROBES]
        tested = text(f"{own['category'].nunique()} of {len(entry.dataset_categories)}")
        body.append((text(entry.name), *values, tested, number(len(by_seed))))
    if body:
        yield Table(
            title=f"Cross-class interference (normal images only): {group.title}",
            head=("method", *PROBES.values(), "categories", "seeds"),
            body=tuple(body),
        )


def papers(methods: Sequence[str]) -> Iterator[Table]:
    """How near the methods are to their papers; methods that are not installed here are left out."""
    facts = [method_facts(name) for name in sorted(set(methods) & set(method_names()))]
    body = [(text(f.name), text(f.paper), text(f.fidelity), text("; ".join(f.departures))) for f in facts]
    if body:
        yield Table(
            title="How near the methods are to their papers",
            head=("method", "paper", "fidelity", "departures"),
            body=tuple(body),
        )


def fidelity(entry: Entry) -> str:
    """How near its file says the method is to the paper; "outside" for maps of another program."""
    if entry.outside:
        return "outside"
    return method_facts(entry.method).fidelity if entry.method in method_names() else "unknown"


def _mean_cell(entry: Entry, metric: str, best: str, evidence: Evidence) -> Value:
    mean = entry.means[metric]
    if mean is None:
        return hole(cell_ids=entry.cell_ids)
    within = evidence.over_categories(entry, metric)
    bounds = (within.low, within.high) if within else (None, None)
    value = percent_of(mean, entry.cell_ids, bounds)
    return as_best(value) if entry.name == best else value


def _marked(entry: Entry, metric: str, best: str, evidence: Evidence) -> Value:
    """The mean with its remarks, for a table without a column for them."""
    return _remarked(_mean_cell(entry, metric, best, evidence), "; ".join(entry.remarks))


def _remarked(value: Value, why: str) -> Value:
    return replace(value, text=f"{value.text} ({why})", hole=why) if why else value


def _rank(places: dict[str, int], entry: Entry) -> Value:
    return number(places[entry.name]) if entry.name in places else text(HOLE)


def _kinds(found: Sequence[Entry], metric: str) -> Iterator[tuple[Value, ...]]:
    """Means over the textures and over the objects, where the dataset has both."""
    texture = {
        category: bool(is_texture)
        for entry in found
        for category, is_texture in zip(entry.rows["category"], entry.rows["texture"], strict=True)
        if is_texture is not None
    }
    if set(texture.values()) != {True, False}:
        return
    for is_texture, group_name in ((True, "textures"), (False, "objects")):
        line = [text(f"mean of {group_name}")]
        for entry in found:
            within = entry.ok[entry.ok["category"].map(texture) == is_texture]
            by_seed = within.groupby("seed")[metric].mean()
            complete = not entry.holes and within[metric].notna().all()
            flagged = bool(within["flagged"].any())
            mean = Mean(by_seed.mean(), by_seed.std(ddof=1), flagged) if complete else None
            value = shown(mean, [*dict.fromkeys(within["cell_id"])])
            line.append(_remarked(value, "" if entry.holes else "; ".join(entry.unlike)))
        yield tuple(line)


def _drops(
    pairs: Sequence[tuple[Entry, Entry]], metric: str, evidence: Evidence
) -> Iterator[tuple[Value, ...]]:
    """Lines of one metric, for methods in oneclass and in multiclass."""
    lines, drops = [], []
    for pair in pairs:
        complete = common_categories(pair)
        both = pd.concat([e.by_category[metric].reindex(complete) for e in pair], axis=1).dropna()
        if both.empty:
            continue
        categories = [*both.index]
        ids = tuple(cell_id for entry in pair for cell_id in entry.cell_ids)
        found = evidence.difference(*pair, metric, categories)
        drops.append(paired_difference((both.iloc[:, 0] - both.iloc[:, 1]).to_numpy(), found, ids))
        names = (text(pair[0].name), text(TITLES[metric]))
        rows = pair[0].rows
        flagged = bool(rows.loc[rows["category"].isin(categories), "flagged"].any())
        own_means = (Mean(both.iloc[:, i].mean(), math.nan, flagged) for i in range(2))
        values = (percent_of(mean, entry.cell_ids) for mean, entry in zip(own_means, pair, strict=True))
        counted = text(f"{len(both)} of {len(pair[0].dataset_categories)}")
        images = () if evidence.same_images(*pair, categories) is not False else ("other images",)
        lines.append(((*names, *values), (counted, text("; ".join((*_unequal(*pair), *images))))))
    for (first, last), drop, ps in zip(lines, drops, p_cells(drops), strict=True):
        yield (*first, drop.value, drop.within, *ps, *last)


def _unequal(oneclass: Entry, multiclass: Entry) -> Iterator[str]:
    """All differences besides the setting, in words: keys of the recipes with both values, and seeds."""
    if differences := recipe_differences(oneclass.recipe, multiclass.recipe):
        yield differences
    if oneclass.seeds != multiclass.seeds:
        seeds = (", ".join(map(str, entry.seeds)) for entry in (oneclass, multiclass))
        yield "seeds " + " against ".join(seeds)
