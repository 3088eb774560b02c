"""Thinned curves: the exact curve's own points, near it everywhere, and few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.metrics.curves import CURVE_COLUMNS, TOLERANCE, curves_of, thinned
from kdbench.metrics.exact import PRO_LIMIT, Curve, image_curve, label_regions, pixel_curve


def exact(curve: Curve, height: np.ndarray) -> np.ndarray:
    """All points [2K+2,2] of the exact curve, as `area_under_pro` joins them."""
    fpr = np.stack([curve.above, curve.at_or_above], axis=1).ravel() / curve.num_normal
    reached = np.stack([np.append(0, height[:-1]), height], axis=1).ravel()
    return np.stack([np.r_[0, fpr, 1], np.r_[0, reached, 1]], axis=1)


def distance(points: np.ndarray, line: np.ndarray) -> float:
    """The largest distance of a point [N,2] from the polyline [M,2]."""
    start, step = line[None, :-1], np.diff(line, axis=0)[None]
    along = ((points[:, None] - start) * step).sum(2) / np.maximum((step**2).sum(2), 1e-300)
    nearest = start + along.clip(0, 1)[..., None] * step
    return float(np.hypot(*np.moveaxis(points[:, None] - nearest, 2, 0)).min(1).max())


def scored(seed: int, number: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties (of `levels` values) and labels, of which both kinds are there."""
    generator = np.random.default_rng(seed)
    label = generator.random(number) < 0.3
    label[:2] = True, False
    score = generator.normal(label * generator.uniform(0, 3), 1, number)
    return (score * levels / 8).round() / levels * 8, label


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), number=st.integers(2, 600), levels=st.sampled_from([2, 20, 10**6]))
def test_no_point_of_the_exact_curve_is_far_from_the_kept_ones(seed, number, levels):
    curve = image_curve(*scored(seed, number, levels))
    height = curve.hits / curve.num_defective
    kept, whole = np.array(thinned(curve, height)).T, exact(curve, height)
    assert kept[0].tolist() == [0, 0]
    assert kept[-1].tolist() == [1, 1]
    assert (np.diff(kept, axis=0) >= 0).all()
    assert {tuple(point) for point in kept} <= {tuple(point) for point in whole}
    assert distance(whole, kept) <= TOLERANCE
    stretch = np.array([1 / PRO_LIMIT, 1])  # as a figure up to PRO_LIMIT shows it
    assert distance((whole * stretch)[whole[:, 0] <= PRO_LIMIT], kept * stretch) <= TOLERANCE


def test_a_curve_of_few_images_keeps_every_corner():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    curve = image_curve(score, np.array([True, False, True, True, False, True]))
    fpr, tpr = thinned(curve, curve.hits / curve.num_defective)
    assert (fpr, tpr) == ([0, 0, 0.5, 0.5, 1, 1], [0, 0.25, 0.25, 0.75, 0.75, 1])


def test_a_tie_of_all_is_the_diagonal():
    curve = image_curve(np.ones(5), np.array([True, False, True, False, False]))
    assert thinned(curve, curve.hits / curve.num_defective) == ([0, 1], [0, 1])


def test_many_pixels_become_a_few_hundred_points_with_the_same_area():
    generator = np.random.default_rng(0)
    masks = np.zeros((20, 64, 64), bool)
    masks[:10, 10:30, 20:50] = True
    maps = (masks + generator.normal(0, 0.7, masks.shape)).astype(np.float32)
    pixel = pixel_curve(maps, label_regions(masks))
    image = image_curve(maps.max((1, 2)), masks.any((1, 2)))
    curves = curves_of(image, pixel)
    assert tuple(curves) == CURVE_COLUMNS
    assert len(pixel.hits) > 5000
    assert 100 < len(curves["pixel_fpr"]) < 600
    assert np.trapezoid(curves["pixel_tpr"], curves["pixel_fpr"]) == pytest.approx(pixel.auroc(), abs=1e-4)
    fpr, pro = np.array(curves["pro_fpr"]), np.array(curves["pro"])
    within = np.append(fpr[fpr < PRO_LIMIT], PRO_LIMIT)
    area = np.trapezoid(np.interp(within, fpr, pro), within) / PRO_LIMIT
    assert area == pytest.approx(pixel.area_under_pro(PRO_LIMIT), abs=1e-4)


def test_without_masks_there_are_curves_of_images_only():
    curves = curves_of(image_curve(np.array([0.1, 0.9]), np.array([False, True])), None)
    assert (curves["image_fpr"], curves["image_tpr"]) == ([0, 0, 1], [0, 1, 1])
    assert {name for name, values in curves.items() if values is None} == set(CURVE_COLUMNS[2:])
