"""AUPIMO: how much of each defective image is found while the normal images stay nearly free of alarms.

Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance"
(BMVC 2024, arXiv:2401.01984). The false positive rate is that of the normal images alone, so all images share
a threshold; the recall is an image's own. Every distinct score of a normal pixel is a threshold, where the
paper's code takes 300,000 equal steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIMO_BOUNDS = (1e-5, 1e-4)  # false positive rates between which `aupimo` integrates

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Overlap:
    """Recall of each of I defective images at the K highest distinct scores of normal images, falling."""

    num_normal: int
    at_or_above: NDArray[np.float64]  # [K] pixels of normal images with this score or a higher one
    recall_above: NDArray[np.float64]  # [I,K] share of an image's defect pixels with a higher score
    recall: NDArray[np.float64]  # [I,K] share with this score or a higher one

    def aupimo(self) -> float:
        """Mean of `per_image`; NaN if that is NaN."""
        return float(self.per_image().mean())

    def per_image(self) -> NDArray[np.float64]:
        """Area [I] under the recall over the logarithm of the rate, a share of the width between the bounds.

        Each bound is the nearest rate that a score has, as in the paper's code. NaN if no score has a rate
        as low as the lower bound, and if both bounds fall on one score: there are too few normal pixels.
        """
        rate = self.at_or_above / self.num_normal
        low, high = (int(np.argmin(np.abs(rate - bound))) for bound in PIMO_BOUNDS)
        if rate[0] > PIMO_BOUNDS[0] or low == high:
            return np.full(len(self.recall), np.nan)
        # From one score to the next the recall rises at a constant rate; normals that tie with defects make
        # the step to the next rate slant.
        steps = np.diff(np.log(rate[low : high + 1]))
        between = (self.recall_above[:, low + 1 : high + 1] + self.recall[:, low + 1 : high + 1]) / 2
        areas = between @ steps / np.log(PIMO_BOUNDS[1] / PIMO_BOUNDS[0])
        return np.asarray(areas.clip(0, 1), np.float64)


def overlap(normal: Floats, defective: Sequence[Floats]) -> Overlap:
    """The curve of a category: scores of all pixels of its normal images, and of each image's defect pixels.

    Raises ValueError without a normal pixel, or without a defect.
    """
    if not normal.size or not defective or not all(scores.size for scores in defective):
        raise ValueError("aupimo needs pixels of normal images, and images with defect pixels")
    num_top = min(normal.size, int(np.ceil(PIMO_BOUNDS[1] * normal.size)) + 1)
    lowest = np.partition(normal, normal.size - num_top)[normal.size - num_top]
    top = np.sort(normal[normal >= lowest])  # with all that tie with the lowest
    scores, firsts = np.unique(top, return_index=True)
    thresholds = scores[::-1]
    own = [np.sort(one) for one in defective]

    def share(side: Any) -> NDArray[np.float64]:
        return np.stack([1 - np.searchsorted(one, thresholds, side) / one.size for one in own])

    return Overlap(
        num_normal=normal.size,
        at_or_above=(top.size - firsts[::-1]).astype(np.float64),
        recall_above=share("right"),
        recall=share("left"),
    )
