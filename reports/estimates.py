"""Means and differences with an interval and a p, by their variation over categories, test images and seeds.

Each random factor adds a part to the variance. A part is estimated with n - 1, which is unbiased also for few
values, and has an uncertainty of its own. The parts of independent factors are summed, and the value divided
by its error follows Student's t with the degrees of freedom of Satterthwaite (1946). If two factors cross,
such as seeds and test images, the part of each contains their interaction: one part is computed without it.
tests/benchmarks/coverage.py simulates the coverage of the intervals; docs/reports.md shows it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
MIN_CATEGORIES = 3  # the quantile for two is 12.7, and such an interval says nothing
NOTHING = 1e-12  # a deviation below this is rounding: scores and metrics have fewer digits

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Part(NamedTuple):
    """The part of a variance that one factor adds."""

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
    """A value with the sum of independent parts; None if nothing varies, since its error is unknown then."""
    parts = list(parts)
    variance = sum(part.variance for part in parts)
    if not variance > NOTHING**2:  # also NaN
        return None
    degrees = variance**2 / sum(part.uncertainty for part in parts)
    least = min(part.degrees for part in parts)  # a sum is no less certain than its least certain part
    return Estimate(value=value, variance=variance, degrees=max(degrees, least))


def _part(values: Array, weight: float = 1.0) -> Part:
    """The variance of a weighted mean if its values [n] were drawn again."""
    degrees = len(values) - 1
    variance = weight**2 * float(values.var(ddof=1)) / len(values)
    return Part(variance, variance**2 / degrees, degrees)


def _part_of_seeds(by_seed: Array, interaction: float) -> Part:
    """The variance of a mean if its seeds [S] were trained again, without what another part already has.

    The uncertainty is that of the whole variance: a difference of variances is not more certain.
    """
    whole = _part(by_seed)
    return whole._replace(variance=max(0.0, whole.variance - interaction))


# Over categories: how means and differences would move with other categories of the same kind.


def mean_over_categories(values: Array, *, shared: bool) -> Estimate | None:
    """The mean of values [S,C], or of differences, of S seeds and C categories.

    With `shared`, a seed has one detector for all categories, so that its luck moves all of them.
    """
    return estimate(float(values.mean()), [_part(values.mean(axis=0)), *_shared_seeds(values, shared)])


def difference_over_categories(a: Array, b: Array, *, shared: tuple[bool, bool]) -> Estimate | None:
    """Mean a - mean b of values [S,C] over the same categories; the seeds of the two are independent.

    If line i of both is a pair, use `mean_over_categories` of a - b.
    """
    differences = a.mean(axis=0) - b.mean(axis=0)
    parts = [_part(differences), *_shared_seeds(a, shared[0]), *_shared_seeds(b, shared[1])]
    return estimate(float(differences.mean()), parts)


def _shared_seeds(values: Array, shared: bool) -> Iterator[Part]:
    """The part of detectors that serve all categories; others vary with the categories."""
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

    detectors: tuple[str, ...]  # categories with the same names share detectors
    values: Array  # [S]
    effects: Array  # [S,n], of `image_effects`
    label: NDArray[np.bool_]  # [n]


def mean_over_images(samples: Sequence[Sample]) -> Estimate | None:
    """The mean over categories and detectors, or of differences of `paired` ones."""
    value = float(np.mean([sample.values.mean() for sample in samples]))
    images = [(sample.effects.mean(axis=0), sample.label) for sample in samples]
    return estimate(value, [*_images(images), *_seeds(samples)])


def paired(a: Sample, b: Sample) -> Sample:
    """a - b on the same images, where the detectors are pairs in this order."""
    return Sample(
        detectors=a.detectors, values=a.values - b.values, effects=a.effects - b.effects, label=a.label
    )


def difference_over_images(a: Sequence[Sample], b: Sequence[Sample]) -> Estimate | None:
    """Mean a - mean b over the same images; the detectors of the two are independent."""
    pairs = list(zip(a, b, strict=True))
    value = float(np.mean([ours.values.mean() - theirs.values.mean() for ours, theirs in pairs]))
    images = [(ours.effects.mean(axis=0) - theirs.effects.mean(axis=0), ours.label) for ours, theirs in pairs]
    return estimate(value, [*_images(images), *_seeds(a), *_seeds(b)])


def _images(effects: Sequence[tuple[Array, NDArray[np.bool_]]]) -> Iterator[Part]:
    """The parts that the test images give to a mean: one per category and label."""
    for of_category, label in effects:
        for kind in (False, True):
            yield _part(of_category[label == kind], 1 / len(effects))


def _seeds(samples: Sequence[Sample]) -> Iterator[Part]:
    """The part of each group of detectors that share categories, without what is in the parts of images."""
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
