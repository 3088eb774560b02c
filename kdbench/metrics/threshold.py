"""Choose a threshold for a rate of false alarms among scores of normal images; intervals of that rate."""

from typing import NamedTuple

import numpy as np

FALSE_ALARMS = 0.01  # the default rate
LEVEL = 0.95  # of the interval


class Limit(NamedTuple):
    """A score, and the share of new normal images above it: its mean and its 95 % interval."""

    value: float
    expected: float
    low: float
    high: float


def limit_of(scores: np.ndarray, false_alarms: float) -> Limit:
    """The smallest score of n normal images above which a new one lies with at most this probability.

    Above the k-th smallest of n scores lies a share of Beta(n + 1 - k, k) of the distribution (Wilks 1941),
    whose mean is (n + 1 - k) / (n + 1). If n is too small for the rate, it is the largest score. Raises
    ValueError for no scores, for scores that are not finite and for a rate outside of 0 to 1.
    """
    from scipy.stats import beta

    if not 0 < false_alarms < 1:
        raise ValueError(f"a rate of false alarms of {false_alarms}: it is between 0 and 1")
    ordered = np.sort(np.asarray(scores, np.float64))
    count = len(ordered)
    if not count or not np.isfinite(ordered).all():
        raise ValueError(f"{count} scores of normal images, {np.isfinite(ordered).sum()} of them finite")
    rank = rank_of(count, false_alarms)
    low, high = beta(count + 1 - rank, rank).interval(LEVEL)
    return Limit(float(ordered[rank - 1]), expected_above(count, rank), float(low), float(high))


def rank_of(count: int, false_alarms: float) -> int:
    """Which of `count` sorted scores of normal images is the threshold, counted from 1."""
    # The small term keeps 0.95 * 20 from being 19.000000000000004.
    return min(count, int(np.ceil((1 - false_alarms) * (count + 1) - 1e-9)))


def expected_above(count: int, rank: int) -> float:
    """The expected share of new normal images above the score of this rank, counted from 1, of `count`."""
    return (count + 1 - rank) / (count + 1)
