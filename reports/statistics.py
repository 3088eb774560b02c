"""Tests by ranks, and the correction for several tests, on plain arrays.

They are those of Demsar ("Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006),
with categories for data sets: two methods by Wilcoxon's signed-rank test, several pairs with Holm's
correction, all at once by Friedman and Nemenyi.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdbench.reports.estimates import ALPHA

# With fewer pairs the two-sided signed-rank test cannot fall below ALPHA: 2 / 2**5 is 0.0625.
MIN_PAIRS = 6
# Below this the chi-square distribution of Friedman's statistic is no good approximation.
MIN_CATEGORIES, MIN_METHODS = 5, 3

Array = NDArray[np.float64]


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
    """Whether signed ranks and mean have opposite signs: a few large differences can outweigh many."""
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


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def why_no_ranks(num_categories: int, num_methods: int) -> str:
    """Why Friedman's test is not made; empty if it is."""
    if num_methods < MIN_METHODS:
        return f"it needs {MIN_METHODS} complete methods, there {_are(num_methods)}"
    if num_categories < MIN_CATEGORIES:
        return f"it needs {MIN_CATEGORIES} categories, there {_are(num_categories)}"
    return ""


def friedman_nemenyi(values: Array, names: Sequence[str]) -> Ranks:
    """Rank M methods over C categories by values [C,M], where larger is better; ValueError for too few."""
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
    """The longest runs of neighbouring average ranks within the critical difference."""
    found: list[tuple[int, int]] = []
    for first in range(len(names)):
        last = max(i for i in range(first, len(names)) if average[i] - average[first] <= critical)
        if last > first and not (found and found[-1][1] >= last):
            found.append((first, last))
    return tuple(names[first : last + 1] for first, last in found)
