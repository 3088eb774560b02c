"""Means and differences with an interval and a p, from what categories, test images and seeds say of them.

Each random factor gives a part of the variance, unbiased for few values (n - 1), and how uncertain that part
is. The parts of independent factors add up, and the value over its error follows Student's t with the degrees
of freedom of Satterthwaite (1946). Where two factors cross, such as seeds and test images, each part holds
their interaction, which is therefore taken out of one of them. The coverage of the intervals is simulated by
tests/benchmarks/coverage.py; docs/reports.md shows it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
MIN_CATEGORIES = 3  # of two the quantile is 12.7: an interval that says nothing
NOTHING = 1e-12  # a deviation below this is rounding: scores and metrics have fewer digits

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Part(NamedTuple):
    """What one factor adds to a variance."""

    variance: float
    uncertainty: float  # the square of the estimated variance over its degrees of freedom
    degrees: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value whose error over its standard deviation follows Student's t."""

    value: float
    variance: float
    degrees: float

    @property
    def interval(self) -> Interval:
        """The 95 % interval of a difference; it excludes 0 exactly where p is below 5 %."""
        reach = self._quantile() * math.sqrt(self.variance)
        return Interval(self.value - reach, self.value + reach)

    @property
    def interval_of_share(self) -> Interval:
        """The 95 % interval of a mean of shares, made on the logit scale: it stays between 0 and 1.

        Near 1 the error of a metric is skewed, and an interval of equal arms misses too often.
        """
        share = min(max(self.value, NOTHING), 1 - NOTHING)
        centre = math.log(share / (1 - share))
        reach = self._quantile() * math.sqrt(self.variance) / (share * (1 - share))
        return Interval(_share(centre - reach), _share(centre + reach))

    @property
    def p(self) -> float:
        """Two-sided p of the value being 0."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.degrees, -abs(self.value) / math.sqrt(self.variance)))

    def _quantile(self) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(self.degrees, 1 - ALPHA / 2))


def _share(logit: float) -> float:
    return 0.5 + 0.5 * math.tanh(logit / 2)


def estimate(value: float, parts: Iterable[Part]) -> Estimate | None:
    """A value with the sum of independent parts; None where nothing varies: then nothing tells its error."""
    parts = list(parts)
    variance = sum(part.variance for part in parts)
    if not variance > NOTHING**2:  # also NaN
        return None
    degrees = variance**2 / sum(part.uncertainty for part in parts)
    least = min(part.degrees for part in parts)  # a sum is no less certain than its least certain part
    return Estimate(value=value, variance=variance, degrees=max(degrees, least))


def _part(values: Array, weight: float = 1.0) -> Part:
    """What drawing values [n] anew adds to the variance of their mean times a weight."""
    degrees = len(values) - 1
    variance = weight**2 * float(values.var(ddof=1)) / len(values)
    return Part(variance, variance**2 / degrees, degrees)


def _part_of_seeds(by_seed: Array, interaction: float) -> Part:
    """What training anew adds to a mean over seeds [S] beyond an interaction that another part already holds.

    The uncertainty is that of the whole: what is left of a small difference of variances is no surer.
    """
    whole = _part(by_seed)
    return whole._replace(variance=max(0.0, whole.variance - interaction))


# Over categories: how means and differences would move with other categories of the same kind.


def mean_over_categories(values: Array, *, shared: bool) -> Estimate | None:
    """The mean of values [S,C], or of differences, of S seeds and C categories.

    `shared` says that a seed's detector is one for all categories, whose luck moves them all.
    """
    return estimate(float(values.mean()), [_part(values.mean(axis=0)), *_shared_seeds(values, shared)])


def difference_over_categories(a: Array, b: Array, *, shared: tuple[bool, bool]) -> Estimate | None:
    """Mean a - mean b of values [S,C] of the same categories; seeds are drawn for each side by itself.

    Where line i of both is a pair, `mean_over_categories` of a - b is the better one.
    """
    differences = a.mean(axis=0) - b.mean(axis=0)
    parts = [_part(differences), *_shared_seeds(a, shared[0]), *_shared_seeds(b, shared[1])]
    return estimate(float(differences.mean()), parts)


def _shared_seeds(values: Array, shared: bool) -> Iterator[Part]:
    """The part of detectors of all categories; those of one category each vary with the categories."""
    num_seeds, num_categories = values.shape
    if shared and num_seeds > 1:
        by_seed = values.mean(axis=1)
        rest = values - by_seed[:, None] - values.mean(axis=0) + values.mean()
        square = float((rest**2).sum()) / ((num_seeds - 1) * (num_categories - 1))
        yield _part_of_seeds(by_seed, square / (num_seeds * num_categories))


# Over test images: how means and differences over these categories would move with other test images.


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A metric of one category by S detectors on the same n test images."""

    detectors: tuple[str, ...]  # categories with the same ones share them
    values: Array  # [S]
    effects: Array  # [S,n], of `image_effects`
    label: NDArray[np.bool_]  # [n]


def mean_over_images(samples: Sequence[Sample]) -> Estimate | None:
    """The mean over categories and detectors, or of differences of `paired` ones."""
    value = float(np.mean([sample.values.mean() for sample in samples]))
    images = [(sample.effects.mean(axis=0), sample.label) for sample in samples]
    return estimate(value, [*_images(images), *_seeds(samples)])


def paired(a: Sample, b: Sample) -> Sample:
    """a - b of detectors that are pairs, in this order, on the same images."""
    return Sample(
        detectors=a.detectors, values=a.values - b.values, effects=a.effects - b.effects, label=a.label
    )


def difference_over_images(a: Sequence[Sample], b: Sequence[Sample]) -> Estimate | None:
    """Mean a - mean b over the same images; detectors are drawn for each side by itself."""
    pairs = list(zip(a, b, strict=True))
    value = float(np.mean([ours.values.mean() - theirs.values.mean() for ours, theirs in pairs]))
    images = [(ours.effects.mean(axis=0) - theirs.effects.mean(axis=0), ours.label) for ours, theirs in pairs]
    return estimate(value, [*_images(images), *_seeds(a), *_seeds(b)])


def _images(effects: Sequence[tuple[Array, NDArray[np.bool_]]]) -> Iterator[Part]:
    """The parts of the test images of each category, normal and defective ones apart, in a mean."""
    for of_category, label in effects:
        for kind in (False, True):
            yield _part(of_category[label == kind], 1 / len(effects))


def _seeds(samples: Sequence[Sample]) -> Iterator[Part]:
    """The part of each group of detectors that share categories, without what the images already hold."""
    for detectors, group in groupby(sorted(samples, key=_detectors), key=_detectors):
        shared = list(group)
        if (num_seeds := len(detectors)) < 2:
            continue
        by_seed = sum(sample.values for sample in shared) / len(samples)
        own = [sample.effects - sample.effects.mean(axis=0) for sample in shared]
        noise = sum(
            part.variance
            for seed in range(num_seeds)
            for part in _images(
                [(effects[seed], one.label) for effects, one in zip(own, shared, strict=True)]
            )
        )
        noise *= (len(shared) / len(samples)) ** 2
        yield _part_of_seeds(np.asarray(by_seed), noise / (num_seeds * (num_seeds - 1)))


def _detectors(sample: Sample) -> tuple[str, ...]:
    return sample.detectors
