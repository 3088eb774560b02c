"""AUPIMO and sPRO, against hand calculations and slow loops."""

import math

import numpy as np
import pytest

from kdbench.metrics.exact import label_regions, pixel_curve, spro
from kdbench.metrics.overlap import PIMO_BOUNDS, overlap


def slow_aupimo(normal: np.ndarray, defects: np.ndarray) -> float:
    """The area by its definition: each distinct normal score a threshold, the highest rate first found."""
    points = []
    for threshold in sorted(set(normal.tolist()), reverse=True):
        rate = np.mean(normal >= threshold)
        points.append((rate, np.mean(defects > threshold), np.mean(defects >= threshold)))
        if rate > 2 * PIMO_BOUNDS[1]:
            break
    low, high = (min(range(len(points)), key=lambda i: abs(points[i][0] - bound)) for bound in PIMO_BOUNDS)
    area = 0.0
    for (rate, *_), (following, above, reached) in zip(
        points[low:high], points[low + 1 : high + 1], strict=True
    ):
        area += math.log(following / rate) * (above + reached) / 2
    return min(1.0, area / math.log(PIMO_BOUNDS[1] / PIMO_BOUNDS[0]))


@pytest.mark.parametrize("levels", [None, 2000])
def test_aupimo_is_that_of_a_slow_loop_over_thresholds(levels):
    rng = np.random.default_rng(3)
    normal = rng.gamma(2, 1, 300_000).astype(np.float32)
    defects = [
        rng.gamma(2, 1, size).astype(np.float32) + shift for size, shift in ((40, 6), (700, 9), (1, 3))
    ]
    if levels:  # many ties
        normal = np.round(normal * levels / 20).astype(np.float32)
        defects = [np.round(one * levels / 20).astype(np.float32) for one in defects]
    found = overlap(normal, defects)
    assert found.per_image() == pytest.approx([slow_aupimo(normal, one) for one in defects], abs=1e-12)
    assert found.aupimo() == pytest.approx(np.mean([slow_aupimo(normal, one) for one in defects]), abs=1e-12)
    assert 0.05 < found.aupimo() < 0.95


def test_aupimo_by_hand():
    # 200,000 normals 0, 1, 2, ...: the rate k / 200,000 is that of the score 200,000 - k; bounds at 2 and 20.
    # Half of the defects lie above all normals, the other half between the 9th and the 10th highest.
    normal = np.arange(200_000, dtype=np.float64)
    found = overlap(normal, [np.array([300_000.0, 200_000 - 9.5])])
    # From 2 to 9 pixels the recall is one half. Just above the 10th it is one, and stays so until 20.
    expected = (0.5 * math.log(9 / 2) + math.log(20 / 9)) / math.log(10)
    assert found.per_image() == pytest.approx([expected], abs=1e-12)


def test_aupimo_is_unknown_where_one_pixel_is_more_than_the_lower_bound():
    assert math.isnan(overlap(np.arange(99_999.0), [np.array([5.0])]).aupimo())
    assert overlap(np.arange(100_000.0), [np.array([1e6])]).aupimo() == pytest.approx(1)
    assert math.isnan(overlap(np.zeros(100_000), [np.array([5.0])]).aupimo())
    with pytest.raises(ValueError, match="needs pixels of normal images"):
        overlap(np.zeros(0), [np.array([5.0])])


def listed(maps: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pixels, those of defects, and the regions of these."""
    pixel = np.flatnonzero(regions)
    return maps.ravel(), pixel, regions.ravel()[pixel]


def slow_spro(maps: np.ndarray, regions: np.ndarray, saturation: np.ndarray, limit: float) -> float:
    """Area under the mean of min(1, found / saturation) over the rate, one point per distinct score."""
    rates, heights = [0.0], [0.0]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        found = [np.sum(maps[regions == i + 1] >= threshold) / s for i, s in enumerate(saturation)]
        rates.append(float(np.mean(maps[regions == 0] >= threshold)))
        heights.append(float(np.mean(np.minimum(1, found))))
    grid = [rate for rate in rates if rate < limit]
    kept = [*zip(rates[: len(grid)], heights[: len(grid)], strict=True)]
    kept.append((limit, float(np.interp(limit, rates[len(grid) - 1 :], heights[len(grid) - 1 :]))))
    return float(np.trapezoid([y for _, y in kept], [x for x, _ in kept])) / limit


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("limit", [0.05, 0.3])
def test_spro_is_that_of_a_slow_loop(seed, limit):
    rng = np.random.default_rng(seed)
    masks = np.zeros((4, 12, 12), bool)
    masks[0, 2:6, 2:7], masks[1, 1:3, 1:3], masks[2, 5:11, 4:9] = True, True, True
    masks[2, 0, 0] = True  # of the third defect, too: a logical one need not be connected
    regions = np.where(masks, np.arange(1, 5)[:, None, None], 0).astype(np.int32)
    maps = (np.round(rng.normal(size=masks.shape) * 8) / 8 + masks).astype(np.float32)
    saturation = np.array([7, 4, 12.5])
    assert spro(*listed(maps, regions), saturation, limit=limit) == pytest.approx(
        slow_spro(maps, regions, saturation, limit), abs=1e-12
    )


def test_spro_with_the_areas_as_saturation_is_the_pro_and_a_lower_one_is_reached_sooner():
    rng = np.random.default_rng(1)
    masks = np.zeros((3, 16, 16), bool)
    masks[0, 2:9, 2:9], masks[1, 1:4, 1:4] = True, True
    regions = label_regions(masks)
    maps = (rng.normal(size=masks.shape) + 2 * masks).astype(np.float32)
    areas = np.array([49.0, 9])
    whole = spro(*listed(maps, regions), areas)
    assert whole == pytest.approx(pixel_curve(maps, regions).area_under_pro(0.05), abs=1e-12)
    assert spro(*listed(maps, regions), np.array([10.0, 3])) > whole
    # One pixel of each is enough, and those lie above all normals.
    maps[0, 2, 2], maps[1, 1, 1] = 99, 98
    assert spro(*listed(maps, regions), np.array([1.0, 1])) == 1


def test_a_pixel_of_two_defects_counts_in_both():
    # Two regions of two pixels share the pixel with 9; the normals are 8 and three zeros. At 9 both regions
    # are found by half, with saturation 1 by all.
    maps = np.array([9, 3, 2, 8, 0, 0, 0], np.float32)
    pixel, region = np.array([0, 1, 0, 2]), np.array([1, 1, 2, 2], np.int32)
    assert spro(maps, pixel, region, np.array([1.0, 1]), limit=0.2) == pytest.approx(1)
    assert spro(maps, pixel, region, np.array([2.0, 1]), limit=0.2) == pytest.approx(0.75)
    assert spro(maps, pixel, region, np.array([2.0, 2]), limit=0.2) == pytest.approx(0.5)


def test_spro_refuses_saturations_that_no_region_can_reach():
    maps, pixel = np.zeros(16, np.float32), np.array([0, 1, 8, 9])
    region = np.array([1, 1, 2, 2], np.int32)
    with pytest.raises(ValueError, match="region 2 has 2 pixels and the saturation 3"):
        spro(maps, pixel, region, np.array([2.0, 3]))
    with pytest.raises(ValueError, match="1 saturations for 2 regions"):
        spro(maps, pixel, region, np.array([2.0]))
    with pytest.raises(ValueError, match="region 1 has 2 pixels and the saturation 0"):
        spro(maps, pixel, region, np.array([0.0, 1]))
