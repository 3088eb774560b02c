"""Image metrics and the effect of each test image on them, for all images at once in linear time."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")  # `image_effects` knows these

Array = NDArray[np.float64]


class Effects(NamedTuple):
    """An image metric of one detector and category, and the effect of each of n test images on it.

    An effect is (k - 1)(metric - metric without the image), where k images have its label. The effects vary
    like single values whose mean is the metric (the pseudo-values of the jackknife).
    """

    value: float
    of_image: Array  # [n]


def image_effects(score: Array, label: NDArray[np.bool_]) -> dict[str, Effects]:
    """Image AUROC, AP and F1-max of scores [n] with their effects; ValueError with one image of a label.

    A maximum over thresholds is larger for few images than for many: F1-max is corrected for this bias, as
    far as the effects show it (Quenouille, 1956).
    """
    if min(np.count_nonzero(label), np.count_nonzero(~label)) < 2:
        raise ValueError("an image can be left out only where there is another one of its label")
    ranked = _ranked(score, label)
    found = {}
    for name, metric in zip(IMAGE_METRICS, (_auroc, _ap, _f1_max), strict=True):
        value, without_normal, without_defect = metric(ranked)
        effects = np.empty(len(score))
        effects[~label] = (ranked.num_normal - 1) * (value - without_normal)
        effects[label] = (ranked.num_defective - 1) * (value - without_defect)
        if name == "image_f1_max":
            value += effects[~label].mean() + effects[label].mean()
        found[name] = Effects(float(value), effects)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranked:
    """Images counted at each of the K distinct scores of defects, from the highest score to the lowest.

    As in kdbench.metrics.exact, only these are thresholds.
    """

    num_normal: int
    num_defective: int
    steps: Array  # [K] defects with this score
    hits: Array  # [K] defects with this score or a higher one
    above: Array  # [K] normals with a higher score
    at_or_above: Array  # [K] normals with this score or a higher one
    of_defect: NDArray[np.intp]  # the threshold at each defect's score
    of_normal: NDArray[np.intp]  # the first threshold that each normal is at or above; K: none
    passed: NDArray[np.intp]  # the first threshold that each normal is above; K: none


def _ranked(score: Array, label: NDArray[np.bool_]) -> _Ranked:
    falling, of_defect, steps = np.unique(-score[label], return_inverse=True, return_counts=True)
    normals = np.sort(-score[~label])
    return _Ranked(
        num_normal=len(normals),
        num_defective=len(of_defect),
        steps=steps.astype(float),
        hits=np.cumsum(steps).astype(float),
        above=np.searchsorted(normals, falling, "left").astype(float),
        at_or_above=np.searchsorted(normals, falling, "right").astype(float),
        of_defect=of_defect,
        of_normal=np.searchsorted(falling, -score[~label], "left"),
        passed=np.searchsorted(falling, -score[~label], "right"),
    )


def _auroc(ranked: _Ranked) -> tuple[float, Array, Array]:
    """AUROC, and AUROC without each normal and each defective image: a mean over pairs of the two kinds."""
    num_normal, num_defective = ranked.num_normal, ranked.num_defective
    hits = np.append(0, ranked.hits)
    # Misranked pairs of each normal and of each defect; a tie is half of one.
    lost = num_defective - (hits[ranked.of_normal] + hits[ranked.passed]) / 2
    missed = ((ranked.above + ranked.at_or_above) / 2)[ranked.of_defect]
    total = lost.sum()
    return (
        1 - total / (num_normal * num_defective),
        1 - (total - lost) / ((num_normal - 1) * num_defective),
        1 - (total - missed) / (num_normal * (num_defective - 1)),
    )


def _ap(ranked: _Ranked) -> tuple[float, Array, Array]:
    steps, hits, alarms = ranked.steps, ranked.hits, ranked.at_or_above
    before = np.append(0, np.cumsum(steps * hits / (hits + alarms)))  # [K+1] sum over the thresholds before
    # One alarm less, or one hit less, at this threshold and all after it.
    fewer_alarms = _sum_from(steps * hits / np.maximum(hits + alarms - 1, 1))
    precision = (hits - 1) / np.maximum(hits - 1 + alarms, 1)
    fewer_hits = _sum_from(steps * precision) - np.append(precision, 0)
    total, at = ranked.num_defective, ranked.of_defect
    return (
        before[-1] / total,
        (before + fewer_alarms)[ranked.of_normal] / total,
        (before + fewer_hits)[at] / (total - 1),
    )


def _f1_max(ranked: _Ranked) -> tuple[float, Array, Array]:
    hits, alarms, total = ranked.hits, ranked.at_or_above, ranked.num_defective
    before = _max_before(hits / (hits + alarms + total))
    fewer_alarms = _max_from(hits / (hits + alarms - 1 + total))
    # Without a defect, there is one defect less, and one hit less from its threshold on. If only this defect
    # has that score, the threshold has as many hits as the one before it, and no fewer alarms.
    others = _max_before(hits / (hits + alarms + total - 1))
    fewer_hits = _max_from((hits - 1) / (hits - 1 + alarms + total - 1))
    return (
        2 * before[-1],
        2 * np.maximum(before, fewer_alarms)[ranked.of_normal],
        2 * np.maximum(others, fewer_hits)[ranked.of_defect],
    )


def _sum_from(values: Array) -> Array:
    """[K+1] sum of values [K] from each place on."""
    return np.append(np.cumsum(values[::-1])[::-1], 0)


def _max_before(values: Array) -> Array:
    """[K+1] maximum of values [K] before each place, at least 0."""
    return np.append(0, np.maximum.accumulate(values))


def _max_from(values: Array) -> Array:
    """[K+1] maximum of values [K] from each place on, at least 0."""
    return np.append(np.maximum.accumulate(values[::-1])[::-1], 0)
