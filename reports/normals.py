"""Decisions instead of ranks: a threshold from held-out normal images, judged on the test images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pandas as pd

from kdbench.errors import number_of
from kdbench.metrics.threshold import FALSE_ALARMS, LEVEL, expected_above, rank_of
from kdbench.reports.accuracy import partial_title
from kdbench.reports.entries import Entry, Mean, common_categories, shown
from kdbench.reports.estimates import Interval
from kdbench.reports.rows import Group, Rows
from kdbench.reports.significance import interval_shown
from kdbench.reports.tables import Table, Value, hole, number, percent, text

RATE = f"{100 * FALSE_ALARMS:g} %"
RATES = ("false_alarms", "misses", "f1")


def at_threshold(group: Group, found: Sequence[Entry], rows: Rows) -> Iterator[Table]:
    """False alarms and misses of every entry, where some of its section have scores of held-out images."""
    cell_ids = {cell_id for entry in found for cell_id in entry.cell_ids}
    thresholds = _thresholds(rows.normals[rows.normals["cell_id"].isin(cell_ids)])
    if thresholds.empty:
        return
    rates = _rates(rows.scores, thresholds)
    over = common_categories(found) if any(entry.holes for entry in found) else []
    held_out = rows.cells.drop_duplicates("cell_id").set_index("cell_id")["num_heldout"]
    yield Table(
        title=f"False alarms and misses at the threshold from normals: {group.title}",
        head=(
            *("method", "expected", "95 % interval", "false alarms", "misses", "I-F1"),
            *("held out per detector", "remark"),
        ),
        body=tuple(_line(entry, over, thresholds, rates, held_out) for entry in found),
        notes=(
            *([f"{partial_title(found, over)}."] if over else []),
            f"Each detector has one threshold, which aims at {RATE} false alarms: the smallest "
            "score of the normal images that its training held out above which a new normal image lies with "
            "at most this probability, else the largest. No test image chose it. Expected: the share of new "
            "normal images above it, the mean over the detectors, with its interval, whatever the "
            "distribution of the scores. It holds for images drawn as the training images were. Where the "
            "held-out images also chose the epoch or calibrate the maps, expect somewhat more; with "
            "`--hold-out` nothing but the threshold sees them.",
            "False alarms: share of the normal test images above the threshold. Misses: share of the "
            "defective ones that are not. I-F1: F1 of the image decisions. All three are means over the "
            "categories, then over the seeds (± standard deviation).",
        ),
    )


def _thresholds(scores: pd.DataFrame) -> pd.DataFrame:
    """Cell id -> its threshold `value`, the number `count` of held-out images, and the `expected` rate."""
    found = {}
    for cell_id, of_cell in scores.groupby("cell_id")["image_score"]:
        rank = rank_of(len(of_cell), FALSE_ALARMS)
        value = of_cell.sort_values().iloc[rank - 1]
        found[cell_id] = (value, len(of_cell), expected_above(len(of_cell), rank))
    return pd.DataFrame.from_dict(found, orient="index", columns=["value", "count", "expected"])


def _rates(scores: pd.DataFrame, thresholds: pd.DataFrame) -> pd.DataFrame:
    """RATES by cell and category; NaN where there is no image of the kind."""
    scores = scores[scores["cell_id"].isin(thresholds.index)]
    above = scores["image_score"] > scores["cell_id"].map(thresholds["value"])
    defective = scores["label"].astype(bool)
    counts = scores[["cell_id", "category"]].assign(
        normal=~defective, defective=defective, alarms=above & ~defective, hits=above & defective
    )
    sums = counts.groupby(["cell_id", "category"]).sum().astype(float)
    return pd.DataFrame(
        {
            "false_alarms": sums["alarms"] / sums["normal"],
            "misses": 1 - sums["hits"] / sums["defective"],
            "f1": 2 * sums["hits"] / (sums["hits"] + sums["alarms"] + sums["defective"]),
        }
    )


def _line(
    entry: Entry,
    over: Sequence[str],
    thresholds: pd.DataFrame,
    rates: pd.DataFrame,
    held_out: pd.Series,
) -> tuple[Value, ...]:
    """The line of an entry; `over` are the categories that all entries have, if one lacks some."""
    rows = entry.ok[entry.ok["category"].isin(over)] if over else entry.ok
    known = rows.join(thresholds, on="cell_id").join(rates, on=["cell_id", "category"])
    if why := ("" if over else "; ".join(entry.holes)) or _missing(entry, known, held_out):
        missing = replace(hole(cell_ids=entry.cell_ids), hole=why)
        return (text(entry.name), *(missing for _ in range(6)), text(why))
    by_seed = known.groupby("seed")[[*RATES]].mean()
    flagged = bool(known["flagged"].any())
    means = (Mean(by_seed[one].mean(), by_seed[one].std(ddof=1), flagged) for one in RATES)
    values = [shown(mean, entry.cell_ids) for mean in means]
    cells = known.drop_duplicates("cell_id")
    expected, within = _expected(cells)
    bounds = interval_shown(within)
    counts = sorted({int(count) for count in cells["count"]})
    many = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    needed = round(1 / FALSE_ALARMS) - 1
    few = f"{RATE} takes {needed} held-out images" if counts[0] < needed else ""
    return (
        text(entry.name),
        percent(expected, cell_ids=entry.cell_ids, bounds=within),
        replace(bounds, mean=expected, cell_ids=entry.cell_ids),
        *values,
        number(float(cells["count"].mean()), many, entry.cell_ids),
        text(few),
    )


def _missing(entry: Entry, known: pd.DataFrame, held_out: pd.Series) -> str:
    """Why an entry has no numbers; "" if it has all."""
    if entry.outside:
        return "another program scored the images: there are no scores of held-out ones"
    without = known.loc[known["value"].isna(), "cell_id"].drop_duplicates()
    if len(without):
        none = held_out[without].fillna(0) == 0
        why = (
            "the training holds no image out: --hold-out"
            if none.all()
            else "an older kdbench kept no scores of them"
        )
        part = f"{len(without)} of {number_of(known['cell_id'].nunique(), 'detector')}: "
        return why if len(without) == known["cell_id"].nunique() else part + why
    if bad := ", ".join(known.loc[known[[*RATES]].isna().any(axis=1), "category"].unique()):
        return f"no normal or no defective test images, or no scores of them: {bad}"
    return ""


def _expected(cells: pd.DataFrame) -> tuple[float, Interval]:
    """The expected rate of false alarms, the mean over categories and seeds, and its interval.

    The share above the threshold of n images has a Beta distribution whose parameters add up to n + 1. The
    mean over detectors is taken as Beta with its mean and variance, which is exact for one detector. Those
    of the same categories drew from the same images: their errors count as one.
    """
    from scipy.stats import beta

    expected = cells["expected"]
    spread = (expected * (1 - expected) / (cells["count"] + 2)) ** 0.5
    groups = cells["categories"].map(tuple)
    means, deviations = expected.groupby(groups).mean(), spread.groupby(groups).mean()
    mean, variance = float(means.mean()), float((deviations**2).sum()) / len(means) ** 2
    total = mean * (1 - mean) / variance - 1
    low, high = beta(mean * total, (1 - mean) * total).interval(LEVEL)
    return mean, Interval(float(low), float(high))
