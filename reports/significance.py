"""The uncertainty of a section: intervals, which best value is surely best, which methods differ."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.reports import estimates, statistics
from kdbench.reports.coverage import covered_differences, covered_means
from kdbench.reports.entries import MAIN, TITLES, Entry, draws
from kdbench.reports.estimates import Estimate, Interval
from kdbench.reports.evidence import Evidence, difference_over_categories
from kdbench.reports.leave_one_out import IMAGE_METRICS
from kdbench.reports.rows import differing_keys
from kdbench.reports.statistics import Ranks
from kdbench.reports.tables import Table, Value, hole, number, text

LEGEND = (
    "Bold is the best where it is significantly better than the next (5 %, not corrected for choosing the "
    f"best): over the categories where there are {statistics.MIN_PAIRS} or more, and over the seeds of "
    f"detectors that they share; else over the seeds where there are {statistics.MIN_PAIRS} or more, by "
    "signed ranks; else for image metrics over the test images, the same for both, and the seeds; otherwise "
    "none is."
)
SEEDS = "where there are several seeds, also if the detectors were trained again"
OTHER_WAY = "against the mean"
SIGNED_RANKS = (
    "p (signed ranks) is that of Wilcoxon's exact test of these detectors, in which a few large differences "
    f"weigh no more than others; marked ({OTHER_WAY}) where it is significant in the other direction."
)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A mean difference, paired over categories."""

    value: Value
    within: Value  # its 95 % interval, which excludes 0 where p is below 5 %
    p: float | None  # None: nothing tests it
    num_categories: int


def intervals(evidence: Evidence, found: Sequence[Entry], title: str) -> Iterator[Table]:
    """95 % intervals of the means of complete entries."""
    columns = [(metric, "categories") for metric in MAIN] + [(metric, "images") for metric in IMAGE_METRICS]
    body = []
    for entry in (entry for entry in found if not entry.holes):
        line = [text(entry.name)]
        for metric, over in columns:
            within = getattr(evidence, f"over_{over}")(entry, metric)
            line.append(_interval(entry, metric, within))
        body.append(tuple(line))
    if body and any(value.low is not None for line in body for value in line):
        yield Table(
            title=f"95 % intervals: {title}",
            head=("method", *(f"{TITLES[metric]} over {over}" for metric, over in columns)),
            body=tuple(body),
            notes=(
                "How the mean would move with other categories of the same kind, or with other test images "
                f"of these categories; {SEEDS}. Student's t on the logit scale.",
                covered_means(found, over_categories=True),
            ),
        )


def partial_intervals(
    evidence: Evidence, found: Sequence[Entry], categories: Sequence[str], title: str
) -> Iterator[Table]:
    """95 % intervals over images of means over some categories of the dataset."""
    body = []
    for entry in found:
        ranges = (interval_shown(evidence.over_images(entry, metric, categories)) for metric in IMAGE_METRICS)
        body.append((text(entry.name), *(replace(value, cell_ids=entry.cell_ids) for value in ranges)))
    if any(value.low is not None for line in body for value in line):
        yield Table(
            title=f"95 % intervals over images, {_over(categories)}: {title}",
            head=("method", *(TITLES[metric] for metric in IMAGE_METRICS)),
            body=tuple(body),
            notes=(
                f"How the mean would move with other test images; {SEEDS}. Student's t on the logit scale.",
                covered_means(found, over_categories=False),
            ),
        )


def differences_over_images(
    evidence: Evidence, found: Sequence[Entry], categories: Sequence[str], title: str
) -> Iterator[Table]:
    """Pairs over the same test images, if there are too few categories for `comparisons`.

    Methods with one recipe are compared with each other. Recipes of one method are compared if they differ in
    one key, as in an ablation.
    """
    if not categories or len(categories) >= statistics.MIN_PAIRS:
        return
    families: dict[str, list[tuple[tuple[Value, Value], Paired]]] = {}  # one of methods, one per ablation
    for a, b in _worth_comparing(found):
        if evidence.same_images(a, b, categories):
            over = evidence.difference_over_images(a, b, "image_auroc", categories)
            ours, theirs = (entry.by_category["image_auroc"][[*categories]] for entry in (a, b))
            pair = paired_difference((ours - theirs).to_numpy(), over, (*a.cell_ids, *b.cell_ids))
            family = a.method if a.method == b.method else ""
            families.setdefault(family, []).append(((text(a.name), text(b.name)), pair))
    body = []
    for lines in families.values():
        tested = p_cells([pair for _, pair in lines], why="nothing varies")
        for (names, pair), ps in zip(lines, tested, strict=True):
            body.append((*names, pair.value, pair.within, *ps))
    if body:
        yield Table(
            title=f"I-AUROC, pairs over images, {_over(categories)}: {title}",
            head=("method", "against", "difference", "95 % interval", "p", "p (Holm)"),
            body=tuple(body),
            keys=("method", "against"),
            notes=(
                "Points of percent; over the same test images for both and over the seeds of each: Student's "
                "t. p is corrected after Holm over all pairs of methods, or of recipes of one; the intervals "
                "are not corrected, and exclude 0 where p is below 5 %.",
                covered_differences(found, over_images=True),
                *draws(found),
            ),
        )


def _worth_comparing(found: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    recipes = Counter(entry.method for entry in found)
    for a, b in combinations(found, 2):
        if a.method != b.method:
            if recipes[a.method] == recipes[b.method] == 1:
                yield a, b
        elif len(differing_keys([a.recipe, b.recipe])) == 1:
            yield a, b


def _over(categories: Sequence[str]) -> str:
    return f"over {', '.join(categories)}"


def comparisons(found: Sequence[Entry], title: str) -> Iterator[Table]:
    """Every pair of comparable entries: paired over the categories, with Holm's correction per metric."""
    complete = [entry for entry in found if entry.comparable]
    body: list[tuple[Value, ...]] = []
    for metric in MAIN:
        usable = [entry for entry in complete if entry.means[metric] is not None]
        pairs = list(combinations(usable, 2))
        if not pairs or len(usable[0].dataset_categories) < statistics.MIN_PAIRS:
            continue
        by_category = [(a.by_category[metric] - b.by_category[metric]).to_numpy() for a, b in pairs]
        tested = [
            paired_difference(
                differences,
                difference_over_categories(a, b, metric, a.dataset_categories),
                (*a.cell_ids, *b.cell_ids),
            )
            for (a, b), differences in zip(pairs, by_category, strict=True)
        ]
        lines = zip(pairs, tested, p_cells(tested), map(_signed_ranks, by_category), strict=True)
        for (a, b), pair, ps, ranked in lines:
            names = (text(TITLES[metric]), text(a.name), text(b.name))
            body.append((*names, pair.value, pair.within, *ps, ranked, number(pair.num_categories)))
    if body:
        yield Table(
            title=f"Pairs of methods: {title}",
            head=(
                *("metric", "method", "against", "difference", "95 % interval"),
                *("p", "p (Holm)", "p (signed ranks)", "categories"),
            ),
            body=tuple(body),
            keys=("metric", "method", "against"),
            notes=(
                "Points of percent, paired over the categories, and over the seeds where categories share a "
                "detector: Student's t. p is corrected after Holm over all pairs of one metric; the "
                "intervals are not corrected, and exclude 0 where p is below 5 %.",
                covered_differences(complete, num_categories=len(complete[0].dataset_categories)),
                SIGNED_RANKS,
                *draws(complete),
            ),
        )


def rank_groups(found: Sequence[Entry], metric: str) -> Ranks | str:
    """Friedman and Nemenyi over the comparable entries, or why they are not computed."""
    complete = [entry for entry in found if entry.comparable and entry.means[metric] is not None]
    num_categories = len(complete[0].dataset_categories) if complete else 0
    if why := statistics.why_no_ranks(num_categories, len(complete)):
        return why
    values = pd.concat([entry.by_category[metric] for entry in complete], axis=1).to_numpy()
    return statistics.friedman_nemenyi(values, [entry.name for entry in complete])


def average_ranks(found: Sequence[Entry], metric: str, title: str) -> Table:
    """Average ranks over the categories, and which others each differs from; a note if that is not tested."""
    heading = f"Average ranks by {TITLES[metric]}: {title}"
    head = ("method", "average rank", "not different from")
    ranks = rank_groups(found, metric)
    if isinstance(ranks, str):
        return Table(title=heading, head=head, body=(), notes=(f"No Friedman test: {ranks}.",))
    ids = {entry.name: entry.cell_ids for entry in found}
    body = []
    for i, (name, average) in enumerate(zip(ranks.names, ranks.average, strict=True)):
        same = [o for j, o in enumerate(ranks.names) if j != i and ranks.p_nemenyi[i, j] >= statistics.ALPHA]
        rank = number(average, f"{average:.2f}", ids[name])
        body.append((text(name), rank, text(", ".join(same) or "none")))
    notes = (
        f"Friedman over {ranks.num_categories} categories: p = {ranks.p_friedman:.3g}. Average ranks differ "
        f"at 5 % (Nemenyi) where they are more than {ranks.critical_difference:.2f} apart.",
    )
    return Table(title=heading, head=head, body=tuple(body), notes=notes)


def paired_difference(
    differences: NDArray[np.float64], found: Estimate | None, cell_ids: Sequence[str]
) -> Paired:
    """The mean of differences [C] by category, with the interval and the p of an estimate of it."""
    mean, within = float(differences.mean()), found.interval if found else None
    value = Value(
        text=f"{100 * mean:+.2f}",
        mean=mean,
        low=within.low if within else None,
        high=within.high if within else None,
        cell_ids=tuple(cell_ids),
    )
    p = found.p if found else None
    return Paired(value=value, within=interval_shown(within, "+"), p=p, num_categories=len(differences))


def p_cells(pairs: Sequence[Paired], why: str = "") -> list[tuple[Value, Value]]:
    """The p of each difference, as it is and after Holm's correction over all that were tested.

    `why` has the reasons why others were not tested, unless it was their number of categories.
    """
    corrected = iter(statistics.holm([pair.p for pair in pairs if pair.p is not None]))
    return [
        (hole(why or _untested(pair)), hole()) if pair.p is None else (_p(pair.p), _p(next(corrected)))
        for pair in pairs
    ]


def _untested(pair: Paired) -> str:
    few = pair.num_categories < estimates.MIN_CATEGORIES
    return f"fewer than {estimates.MIN_CATEGORIES} categories" if few else "nothing varies"


def _p(p: float) -> Value:
    return number(p, f"{p:.3g}")


def _signed_ranks(differences: NDArray[np.float64]) -> Value:
    """The p of the signed-rank test, and whether it is significant for the one with the lower mean."""
    p = statistics.signed_rank(differences)
    other_way = p < estimates.ALPHA and statistics.contradicts(differences)
    return number(p, f"{p:.3g} ({OTHER_WAY})" if other_way else f"{p:.3g}")


def _interval(entry: Entry, metric: str, within: Interval | None) -> Value:
    mean = entry.means[metric]
    if mean is None or within is None:
        return hole(cell_ids=entry.cell_ids)
    return replace(interval_shown(within), mean=mean.mean, cell_ids=entry.cell_ids)


def interval_shown(within: Interval | None, sign: str = "") -> Value:
    """An interval in percent as a body cell; a hole for None."""
    if within is None:
        return hole()
    shown = f"{100 * within.low:{sign}.2f} to {100 * within.high:{sign}.2f}"
    return Value(text=shown, low=within.low, high=within.high)
