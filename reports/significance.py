"""What the numbers of a section can carry: intervals, which best is really best, and which methods differ."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from kdbench.reports import statistics
from kdbench.reports.entries import MAIN, TITLES, Entry
from kdbench.reports.evidence import Drawn, Evidence
from kdbench.reports.rows import differing_keys
from kdbench.reports.statistics import Interval, Ranks
from kdbench.reports.tables import Table, Value, hole, number, text

LEGEND = (
    "Bold is the best where it is significantly better than the next (5 %, not corrected for choosing the "
    f"best): by Wilcoxon's signed-rank test over the categories where there are {statistics.MIN_PAIRS} or "
    f"more, else over the seeds where there are {statistics.MIN_PAIRS} or more, else for image metrics by a "
    "bootstrap over the test images, the same for both, and over the seeds; otherwise nothing is bold."
)
SEEDS = "of the detectors where there are several seeds (if they were trained again)"
OTHER_WAY = "against the mean"
SIGNED_RANKS = (
    f"A p marked ({OTHER_WAY}) is significant in the other direction: a few large differences outweigh most."
)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A mean difference, paired over categories."""

    value: Value
    within: Value  # its 95 % interval
    p: float | None  # None: nothing tests it
    num_categories: int
    other_way: bool  # the signed ranks lean the other way than the mean


def intervals(evidence: Evidence, found: Sequence[Entry], title: str) -> Iterator[Table]:
    """95 % intervals of the means of complete entries."""
    columns = [(metric, "categories") for metric in MAIN] + [
        (metric, "images") for metric in statistics.DRAWN_METRICS
    ]
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
                f"Percentile bootstrap, {statistics.NUM_DRAWS} draws: categories with replacement (how the "
                "mean would move with other categories), or within each category normal and defective test "
                f"images with replacement (with other images) and {SEEDS}.",
            ),
        )


def partial_intervals(
    evidence: Evidence, found: Sequence[Entry], categories: Sequence[str], title: str
) -> Iterator[Table]:
    """95 % intervals over images of means over some categories of the dataset."""
    body = []
    for entry in found:
        ranges = (
            _range(evidence.over_images(entry, metric, categories)) for metric in statistics.DRAWN_METRICS
        )
        body.append((text(entry.name), *(replace(value, cell_ids=entry.cell_ids) for value in ranges)))
    if any(value.low is not None for line in body for value in line):
        yield Table(
            title=f"95 % intervals over images, {_over(categories)}: {title}",
            head=("method", *(TITLES[metric] for metric in statistics.DRAWN_METRICS)),
            body=tuple(body),
            notes=(
                f"Percentile bootstrap, {statistics.NUM_DRAWS} draws of test images, within each category "
                f"normal and defective ones with replacement, and {SEEDS}.",
            ),
        )


def differences_over_images(
    evidence: Evidence, found: Sequence[Entry], categories: Sequence[str], title: str
) -> Iterator[Table]:
    """Pairs over the same test images, for where there are too few categories for `comparisons`.

    Methods with one recipe are compared with each other; of a method with several recipes those that differ
    in one key, which is what an ablation asks.
    """
    if not categories or len(categories) >= statistics.MIN_PAIRS:
        return
    families: dict[str, list[tuple[tuple[Value, Value], Paired]]] = {}  # one of methods, one per ablation
    for a, b in _worth_comparing(found):
        over = evidence.difference_over_images(a, b, "image_auroc", categories)
        if over:
            ours, theirs = (entry.by_category["image_auroc"][[*categories]] for entry in (a, b))
            pair = paired_difference(ours, theirs, (*a.cell_ids, *b.cell_ids), over)
            family = a.method if a.method == b.method else ""
            families.setdefault(family, []).append(((text(a.name), text(b.name)), pair))
    body = []
    for lines in families.values():
        for (names, pair), ps in zip(lines, p_cells([pair for _, pair in lines]), strict=True):
            body.append((*names, pair.value, pair.within, *ps))
    if body:
        yield Table(
            title=f"I-AUROC, pairs over images, {_over(categories)}: {title}",
            head=("method", "against", "difference", "95 % interval", "p", "p (Holm)"),
            body=tuple(body),
            keys=("method", "against"),
            notes=(
                f"Points of percent; bootstrap, {statistics.NUM_DRAWS} draws of the same test images for "
                f"both, and {SEEDS}, of each by itself. p takes the draws for normal, and is corrected after "
                "Holm over all pairs of methods, or of recipes of one; the intervals are not corrected.",
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
        tested = [
            paired_difference(a.by_category[metric], b.by_category[metric], (*a.cell_ids, *b.cell_ids))
            for a, b in pairs
        ]
        for (a, b), pair, ps in zip(pairs, tested, p_cells(tested), strict=True):
            names = (text(TITLES[metric]), text(a.name), text(b.name))
            body.append((*names, pair.value, pair.within, *ps, number(pair.num_categories)))
    if body:
        yield Table(
            title=f"Pairs of methods: {title}",
            head=(
                "metric",
                "method",
                "against",
                "difference",
                "95 % interval",
                "p",
                "p (Holm)",
                "categories",
            ),
            body=tuple(body),
            keys=("metric", "method", "against"),
            notes=(
                "Points of percent, paired over the categories: bootstrap interval and Wilcoxon's "
                "signed-rank test, corrected after Holm over all pairs of one metric.",
                SIGNED_RANKS,
            ),
        )


def rank_groups(found: Sequence[Entry], metric: str) -> Ranks | str:
    """Friedman and Nemenyi over the comparable entries, or why there are none."""
    complete = [entry for entry in found if entry.comparable and entry.means[metric] is not None]
    num_categories = len(complete[0].dataset_categories) if complete else 0
    if why := statistics.why_no_ranks(num_categories, len(complete)):
        return why
    values = pd.concat([entry.by_category[metric] for entry in complete], axis=1).to_numpy()
    return statistics.friedman_nemenyi(values, [entry.name for entry in complete])


def average_ranks(found: Sequence[Entry], metric: str, title: str) -> Table:
    """Average ranks over the categories with what they differ from; a note says so where it is not tested."""
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
    a: pd.Series, b: pd.Series, cell_ids: Sequence[str], over_images: Drawn | None = None
) -> Paired:
    """Mean of a - b by category with its interval and the p of Wilcoxon's signed-rank test.

    With too few categories for that test both are those over images, if there are any.
    """
    differences = (a - b).dropna().to_numpy()
    mean, count = float(differences.mean()), len(differences)
    within, p, other_way = None, None, False
    if count >= statistics.MIN_PAIRS:
        p, other_way = statistics.signed_rank(differences), statistics.contradicts(differences)
    elif over_images:
        within, p = over_images.within, over_images.p
    if within is None and count >= statistics.MIN_CATEGORIES:
        within = statistics.interval(statistics.category_draws(differences))
    value = Value(
        text=f"{100 * mean:+.2f}",
        mean=mean,
        low=within.low if within else None,
        high=within.high if within else None,
        cell_ids=tuple(cell_ids),
    )
    return Paired(value=value, within=_range(within, "+"), p=p, num_categories=count, other_way=other_way)


def p_cells(pairs: Sequence[Paired]) -> list[tuple[Value, Value]]:
    """The p of each difference, as it is and after Holm's correction over all that were tested."""
    untested = (hole(f"fewer than {statistics.MIN_PAIRS} categories"), hole())
    corrected = iter(statistics.holm([pair.p for pair in pairs if pair.p is not None]))
    return [untested if pair.p is None else (_p(pair.p, pair), _p(next(corrected), pair)) for pair in pairs]


def _p(p: float, pair: Paired) -> Value:
    """A p, and whether what is significant contradicts the mean."""
    other = p < statistics.ALPHA and pair.other_way
    return number(p, f"{p:.3g} ({OTHER_WAY})" if other else f"{p:.3g}")


def _interval(entry: Entry, metric: str, within: Interval | None) -> Value:
    mean = entry.means[metric]
    if mean is None or within is None:
        return hole(cell_ids=entry.cell_ids)
    return replace(_range(within), mean=mean.mean, cell_ids=entry.cell_ids)


def _range(within: Interval | None, sign: str = "") -> Value:
    if within is None:
        return hole()
    said = f"{100 * within.low:{sign}.2f} to {100 * within.high:{sign}.2f}"
    return Value(text=said, low=within.low, high=within.high)
