"""ROC and PRO curves that are small enough to keep: points of the exact curves, but fewer of them.

Walk along an exact curve and keep the points around each 1/128 of the way. Between two kept points the curve
is either a straight line, or a stair inside a box; the sides of the box add up to 5/4 of that step at most.
So no point of the curve is farther than TOLERANCE, a share of an axis, from the line through the kept points.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.metrics.exact import PRO_LIMIT, Curve

STEP = 1 / 128
SMOOTH = STEP / 4  # a shorter hop is part of a slope, a longer one is a corner of the curve
# The sides a and b of a box have a + b <= STEP + SMOOTH; no point in it is farther than ab / sqrt(aa + bb)
# from its diagonal.
TOLERANCE = (STEP + SMOOTH) / 8**0.5
CURVE_COLUMNS = ("image_fpr", "image_tpr", "pixel_fpr", "pixel_tpr", "pro_fpr", "pro")


def curves_of(image: Curve, pixel: Curve | None) -> dict[str, list[float] | None]:
    """The CURVE_COLUMNS of one category: ROC of its images, ROC and PRO of its pixels; None without masks."""
    kept: dict[str, list[float] | None] = dict.fromkeys(CURVE_COLUMNS)
    kept["image_fpr"], kept["image_tpr"] = thinned(image, image.hits / image.num_defective)
    if pixel is not None:
        kept["pixel_fpr"], kept["pixel_tpr"] = thinned(pixel, pixel.hits / pixel.num_defective)
        kept["pro_fpr"], kept["pro"] = thinned(pixel, pixel.pro)
    return kept


def thinned(curve: Curve, height: NDArray[Any]) -> tuple[list[float], list[float]]:
    """False positive rates and heights of the kept points, from (0, 0) to (1, 1).

    `height` [K] is what the curve reaches at each distinct score of a defect, rising. A tie of normals with
    defects is a slant, as in `Curve.area_under_pro`.
    """
    last = len(height) - 1
    way = _way(curve.at_or_above / curve.num_normal) + height
    beyond = np.unique(np.searchsorted(way, np.arange(STEP, way[-1], STEP)))  # first at or beyond each step
    before = np.where(beyond > 0, way[beyond - 1], 0)
    corners = beyond[way[beyond] - before > SMOOTH]
    # Two points of each score: 2k just above it, where the curve arrives level, and 2k + 1 at it.
    number = np.concatenate([2 * corners - 1, 2 * corners, 2 * beyond + 1, [-1, 2 * last + 1, 2 * last + 2]])
    number = np.unique(number)
    score, at = number // 2, number % 2 == 1
    known = np.clip(score, 0, last)
    fpr = np.where(at, curve.at_or_above[known], curve.above[known]) / curve.num_normal
    reached = np.where(at, height[known], np.where(score > 0, height[(score - 1).clip(0, last)], 0))
    fpr[[0, -1]], reached[[0, -1]] = (0, 1), (0, 1)
    moved = np.append(True, (np.diff(fpr) > 0) | (np.diff(reached) > 0))
    fpr, reached = fpr[moved], reached[moved]
    within = _within_a_line(fpr) | _within_a_line(reached)
    return fpr[~within].tolist(), reached[~within].tolist()


def _within_a_line(rising: NDArray[Any]) -> NDArray[np.bool_]:
    """Which points have the value of both neighbours: a level or upright line does not need them."""
    same = np.diff(rising) == 0
    return np.append(False, same) & np.append(same, False)


def _way(fpr: NDArray[Any]) -> NDArray[Any]:
    """Rates stretched so that half of the way is up to PRO_LIMIT, a range that figures also show alone."""
    return np.minimum(fpr, PRO_LIMIT) / PRO_LIMIT + np.maximum(fpr - PRO_LIMIT, 0) / (1 - PRO_LIMIT)
