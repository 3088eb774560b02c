"""The PRO of two official codes, for comparing with their tables only: neither is the exact area.

Written from descriptions of the codes of STFPM (which DCAM also uses) and RD4AD; every quirk is theirs.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LIMIT = 0.3
STFPM_THRESHOLDS, RD4AD_THRESHOLDS = 4000, 200

Maps = NDArray[np.floating[Any]]
Regions = NDArray[np.int32]


def pro_stfpm(maps: Maps, regions: Regions) -> float:
    """Mean overlap at 4,000 equal steps of the score, up to FPR 0.3; both axes stretched to 0..1; [N,H,W].

    The steps go down from the maximum and stop one step above the minimum. A pixel is positive if its score
    is larger than the threshold. Without the stretching the value would be the area up to the limit; with
    it, it may be higher or lower than the exact one.
    """
    low, high = float(maps.min()), float(maps.max())
    step = (high - low) / STFPM_THRESHOLDS
    thresholds = high - step * np.arange(STFPM_THRESHOLDS, dtype=np.float64)[::-1]
    fpr = _share_above(maps[regions == 0], thresholds)
    numbers = np.unique(regions[regions > 0])
    overlap = np.mean([_share_above(maps[regions == number], thresholds) for number in numbers], axis=0)
    kept = fpr <= LIMIT
    return _area(_stretched(fpr[kept]), _stretched(overlap[kept]))


def pro_rd4ad(maps: Maps, regions: Regions) -> float:
    """Mean over the defective images of each one's area: 200 thresholds from its lowest to its highest score.

    Points with an FPR below 0.3 count; their FPR is divided by the largest one, the overlap stays as it is.
    """
    areas = []
    for scores, marked in zip(maps, regions, strict=True):
        if not marked.any():
            continue
        step = (scores.max() - scores.min()) / RD4AD_THRESHOLDS
        thresholds = scores.min() + step * np.arange(RD4AD_THRESHOLDS)
        fpr = _share_above(scores[marked == 0], thresholds)
        numbers = np.unique(marked[marked > 0])
        overlap = np.mean([_share_above(scores[marked == number], thresholds) for number in numbers], axis=0)
        kept = fpr < LIMIT
        if kept.sum() > 1 and fpr[kept].max() > 0:
            areas.append(_area(fpr[kept] / fpr[kept].max(), overlap[kept]))
        else:  # one point has no area
            areas.append(0.0)
    return float(np.mean(areas))


def _share_above(scores: Maps, thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    ordered = np.sort(scores)
    return 1 - np.searchsorted(ordered, thresholds, "right") / ordered.size


def _stretched(values: NDArray[np.float64]) -> NDArray[np.float64]:
    span = values.max() - values.min()
    return (values - values.min()) / span if span else np.zeros_like(values)


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float(np.trapezoid(y[::-1], x[::-1]))  # thresholds rise, so the FPR falls


LEGACY_METRICS = {"pro_stfpm_legacy": pro_stfpm, "pro_rd4ad_legacy": pro_rd4ad}
