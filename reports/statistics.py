"""Intervals and tests on plain arrays; every draw is fixed: a report written again does not change.

Intervals are percentile bootstraps (Efron and Tibshirani, 1993). Methods are compared as Demsar proposes
("Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006), with categories for data
sets: two by Wilcoxon's signed-rank test, several pairs with Holm's correction, all at once by Friedman and
Nemenyi.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
NUM_DRAWS = 1000
SEED = 0
# With fewer pairs the two-sided signed-rank test cannot fall below ALPHA: 2 / 2**5 is 0.0625.
MIN_PAIRS = 6
# Below this a bootstrap over categories repeats a handful of means, and the chi-square distribution of
# Friedman's statistic is no good approximation.
MIN_CATEGORIES, MIN_METHODS = 5, 3

DRAWN_METRICS = ("image_auroc", "image_ap", "image_f1_max")  # what `image_metric_draws` can draw

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Average ranks of M methods over categories, and which of them differ: a critical-difference diagram."""

    names: tuple[str, ...]  # by falling merit
    average: tuple[float, ...]  # 1 is best
    num_categories: int
    p_friedman: float
    critical_difference: float  # average ranks further apart than this differ at 5 % (Nemenyi)
    p_nemenyi: Array  # [M,M], in the order of the names
    cliques: tuple[tuple[str, ...], ...]  # largest groups within which nothing differs, of two and more


def interval(draws: Array) -> Interval:
    """The middle 95 % of draws [B]."""
    low, high = np.quantile(draws, [ALPHA / 2, 1 - ALPHA / 2])
    return Interval(low=float(low), high=float(high))


def bootstrap_p(draws: Array) -> float:
    """Two-sided p of a difference, of which there are draws [B], as if they were normal.

    A share of draws beyond 0 could not be smaller than 2 / B, too coarse to be corrected for many pairs.
    """
    mean, deviation = float(np.mean(draws)), float(np.std(draws, ddof=1))
    if deviation == 0:  # nothing moves, as between two detectors that are both perfect
        return float(mean == 0)
    return math.erfc(abs(mean) / deviation / math.sqrt(2))


def category_draws(values: Array) -> Array:
    """Means [B] or [B,...] over categories drawn with replacement from values [C] or [C,...]."""
    return np.tensordot(_category_counts(len(values)) / len(values), values, axes=1)


@lru_cache
def _category_counts(num_categories: int) -> NDArray[np.int64]:
    """How often each category is drawn [B,C]: a matrix product costs less than a copy of [B,C,...]."""
    generator = np.random.default_rng([SEED, num_categories])
    return generator.multinomial(num_categories, np.full(num_categories, 1 / num_categories), size=NUM_DRAWS)


def image_counts(label: NDArray[np.bool_], name: str) -> NDArray[np.float32]:
    """How often each of n images is drawn [n,B]: normals and defects each with replacement among themselves.

    The same name and labels [n] draw the same images, so that two methods are compared on the same ones.
    """
    generator = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    counts = np.empty((len(label), NUM_DRAWS), np.float32)
    for kind in (False, True):
        of_kind = np.flatnonzero(label == kind)
        counts[of_kind] = generator.multinomial(
            len(of_kind), np.full(len(of_kind), 1 / len(of_kind)), size=NUM_DRAWS
        ).T
    return counts


@lru_cache
def seed_weights(cell_ids: tuple[str, ...]) -> Array:
    """How much each of S detectors, which differ in their seed, weighs in a draw [B,S]; a draw's sum is 1.

    They are drawn with replacement, the same cells the same way. Resampled, S values have (S - 1) / S of
    their variance, a third too little for three seeds: the draws are that much further from the mean.
    """
    num_seeds = len(cell_ids)
    if num_seeds == 1:
        return np.ones((NUM_DRAWS, 1))
    generator = np.random.default_rng([SEED, zlib.crc32(",".join(cell_ids).encode())])
    counts = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=NUM_DRAWS)
    return 1 / num_seeds + np.sqrt(num_seeds / (num_seeds - 1)) * (counts - 1) / num_seeds


def image_metric_draws(
    score: Array, label: NDArray[np.bool_], counts: NDArray[np.float32]
) -> dict[str, Array]:
    """Image AUROC, AP and F1-max [B] of scores [n] in which image i counts `counts[i]` times ([n,B]).

    A maximum is larger of drawn images than of the images themselves: the draws of F1-max are moved so that
    their mean is that of the images (bias correction, Efron and Tibshirani, 1993, 10.3).
    """
    counts = np.column_stack([counts, np.ones(len(score), np.float32)])  # last: the images themselves
    # As in kdbench.metrics.exact: only the scores of defects are thresholds. Counts are whole and below
    # 2**24, which float32 holds exactly.
    defects, normals = np.flatnonzero(label), np.flatnonzero(~label)
    defects, normals = (part[np.argsort(-score[part], kind="stable")] for part in (defects, normals))
    falling = score[defects]
    ends = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # the last image of each tie
    hits = np.cumsum(counts[defects], axis=0)[ends]
    alarms = np.zeros((len(normals) + 1, counts.shape[1]), np.float32)
    np.cumsum(counts[normals], axis=0, out=alarms[1:])
    above = alarms[np.searchsorted(-score[normals], -falling[ends], "left")]
    at_or_above = alarms[np.searchsorted(-score[normals], -falling[ends], "right")]
    steps = hits.copy()
    steps[1:] -= hits[:-1]
    misranked = np.einsum("kb,kb->b", steps, above + at_or_above)
    # Before the first drawn image there is neither hit nor alarm, and no step to weigh.
    found = hits + at_or_above
    ap = np.einsum("kb,kb->b", steps, hits / np.maximum(found, 1))
    f1 = np.max(hits / (found + len(defects)), axis=0)
    return {
        "image_auroc": 1 - misranked[:-1].astype(np.float64) / (2 * len(defects) * len(normals)),
        "image_ap": ap[:-1].astype(np.float64) / len(defects),
        "image_f1_max": 2 * (f1[:-1] + (f1[-1] - f1[:-1].mean())).astype(np.float64),
    }


def signed_rank(differences: Array) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; zeros are left out, and nothing but zeros gives 1.

    It is exact for any number of pairs, also with ties, where scipy turns to the normal distribution from 14
    pairs on: each rank is added or not, with equal probability, and ranks of ties are halves at most.
    """
    from scipy.stats import rankdata

    moved = _moved(differences)
    doubled = np.rint(2 * rankdata(np.abs(moved))).astype(int)
    total = int(doubled.sum())
    share = np.zeros(total + 1)  # of all signs, by the doubled sum of the positive ranks
    share[0] = 1
    for rank in doubled:
        added = np.append(np.zeros(rank), share[: total + 1 - rank])
        share = (share + added) / 2
    positive = int(doubled[moved > 0].sum())
    return min(1.0, 2 * float(share[: min(positive, total - positive) + 1].sum()))


def contradicts(differences: Array) -> bool:
    """Whether the signed ranks lean the other way than the mean: a few large differences outweigh many."""
    from scipy.stats import rankdata

    moved = _moved(differences)
    return bool((np.sign(moved) * rankdata(np.abs(moved))).sum() * moved.sum() < 0)


def _moved(differences: Array) -> Array:
    # 0.9 - 0.8 and 0.3 - 0.2 are a tie, which float64 does not know.
    rounded = np.round(differences, 12)
    return rounded[rounded != 0]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values after the step-down correction of Holm (1979), in their order."""
    order = np.argsort(p_values, kind="stable")
    left = len(p_values) - np.arange(len(p_values))  # hypotheses not rejected before this one
    stepped = np.maximum.accumulate(np.asarray(p_values, float)[order] * left)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(stepped, 1)
    return [float(p) for p in corrected]


def why_no_ranks(num_categories: int, num_methods: int) -> str:
    """Why Friedman's test is not made; empty if it is."""
    if num_methods < MIN_METHODS:
        return f"it needs {MIN_METHODS} complete methods, there are {num_methods}"
    if num_categories < MIN_CATEGORIES:
        return f"it needs {MIN_CATEGORIES} categories, there are {num_categories}"
    return ""


def friedman_nemenyi(values: Array, names: Sequence[str]) -> Ranks:
    """Rank M methods over C categories by values [C,M], larger is better; ValueError where it is too few."""
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    num_categories, num_methods = values.shape
    if why := why_no_ranks(num_categories, num_methods):
        raise ValueError(why)
    values = np.round(values, 12)
    average = rankdata(-values, axis=1).mean(axis=0)
    order = np.lexsort((np.array(names), average))
    # All categories tie: the statistic is 0 / 0, and nothing differs.
    tied = bool((values == values[:, :1]).all())
    p_friedman = 1.0 if tied else float(friedmanchisquare(*values.T).pvalue)
    # Nemenyi: differences of average ranks, in units of their error, follow the studentized range.
    error = np.sqrt(num_methods * (num_methods + 1) / (12 * num_categories))
    critical = float(studentized_range.ppf(1 - ALPHA, num_methods, np.inf) * error)
    apart = np.abs(average[:, None] - average)
    p_nemenyi = studentized_range.sf(apart / error, num_methods, np.inf)
    ranked = tuple(str(names[i]) for i in order)
    sorted_average = tuple(float(average[i]) for i in order)
    return Ranks(
        names=ranked,
        average=sorted_average,
        num_categories=num_categories,
        p_friedman=p_friedman,
        critical_difference=critical,
        p_nemenyi=p_nemenyi[np.ix_(order, order)],
        cliques=_cliques(ranked, sorted_average, critical),
    )


def _cliques(
    names: tuple[str, ...], average: tuple[float, ...], critical: float
) -> tuple[tuple[str, ...], ...]:
    """Runs of neighbouring average ranks within the critical difference that lie in no longer run."""
    found: list[tuple[int, int]] = []
    for first in range(len(names)):
        last = max(i for i in range(first, len(names)) if average[i] - average[first] <= critical)
        if last > first and not (found and found[-1][1] >= last):
            found.append((first, last))
    return tuple(names[first : last + 1] for first, last in found)
