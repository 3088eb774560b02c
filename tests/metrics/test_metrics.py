"""The metrics against a hand calculation, scikit-learn, a slow obvious AUPRO, and what must always hold."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from kdbench.metrics.exact import (
    IMAGE_METRICS,
    MAD_METRICS,
    MAIN_METRICS,
    METRICS,
    PIXEL_METRICS,
    image_curve,
    image_metrics,
    label_regions,
    mad,
    pixel_curve,
    pixel_metrics,
)

# Derandomised: the same examples on every machine, so that a failure here is never the luck of a draw.
# Without the explain phase a failing test takes seconds instead of a minute.
examples = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, phases=set(Phase) - {Phase.explain}
)
close = pytest.approx
TOLERANCE = 1e-9


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Maps and masks [N,H,W] with at least one defect and one normal pixel, and mostly with many ties."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(2, 5)))
    size = int(np.prod(shape))
    num_scores = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = draw(st.lists(st.integers(0, num_scores - 1), min_size=size, max_size=size))
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    defect, normal = draw(st.permutations(range(size)))[:2]
    mask[defect], mask[normal] = True, False
    return np.array(scores, dtype=np.float32).reshape(shape), np.array(mask).reshape(shape)


def blobs(seed: int, *, num_images: int = 12, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Smooth-edged random maps without ties and masks of several regions, the last third without defects."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((num_images, size, size), dtype=bool)
    for mask in masks[: num_images * 2 // 3]:
        for top, left, height, width in rng.integers(1, size // 3, (3, 4)) * (2, 2, 1, 1):
            mask[top : top + height, left : left + width] = True
    maps = rng.gamma(2, 1, masks.shape).astype(np.float32) + masks * rng.gamma(1, 1, masks.shape)
    return maps.astype(np.float32), masks


def slow_regions(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Pixels of each region of one mask [H,W], by flood fill over the eight neighbours."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            edge.extend(around)
        regions.append(region)
    return regions


def slow_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """AUPRO by its definition: one point per distinct score as the threshold, straight lines between them."""
    regions = [
        [float(maps[i][pixel]) for pixel in region]
        for i in range(len(maps))
        for region in slow_regions(masks[i])
    ]
    normals = [float(score) for score in maps[~masks]]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(score) for score in maps.ravel()}, reverse=True):
        false_positives = sum(score >= threshold for score in normals)
        overlaps = [sum(score >= threshold for score in region) / len(region) for region in regions]
        points.append((false_positives / len(normals), sum(overlaps) / len(overlaps)))
    area = 0.0
    for (x, y), (next_x, next_y) in pairwise(points):
        if x < limit and next_x > x:
            end = min(next_x, limit)
            end_y = y + (next_y - y) * (end - x) / (next_x - x)
            area += (end - x) * (y + end_y) / 2
    return area / limit


def sklearn_three(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float, float]:
    """AUROC, AP and F1-max by scikit-learn."""
    precision, recall, _ = precision_recall_curve(positive, scores)
    sums = precision + recall
    f1 = np.divide(2 * precision * recall, sums, out=np.zeros_like(sums), where=sums > 0)
    return roc_auc_score(positive, scores), average_precision_score(positive, scores), f1.max()


def sklearn_fpr_95(scores: np.ndarray, positive: np.ndarray) -> float:
    """False positive rate at the first threshold that finds 95 %, by scikit-learn."""
    rates, recall, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(rates[np.argmax(recall >= 0.95)])


def measure(maps: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    """Pixel metrics of maps and masks [N,H,W]."""
    return pixel_metrics(maps, label_regions(masks))


def test_names_and_their_order_are_frozen() -> None:
    assert IMAGE_METRICS == ("image_auroc", "image_ap", "image_f1_max", "image_fpr_95")
    assert PIXEL_METRICS == (
        "pixel_auroc",
        "pixel_ap",
        "pixel_f1_max",
        "aupro",
        "aupro_05",
        "aupimo",
        "spro_05",
    )
    assert (*IMAGE_METRICS[:3], *PIXEL_METRICS[:5], "image_fpr_95", *PIXEL_METRICS[5:]) == METRICS
    assert METRICS[:8] == MAIN_METRICS
    assert set(METRICS) - set(MAD_METRICS) == {"aupro_05", "image_fpr_95", "aupimo", "spro_05"}


def test_all_nine_by_hand() -> None:
    # Images: defective 8 and 4, good 6, 5, 4 and 1.
    # AUROC: of 8 pairs, 8 wins 4, 4 wins 1 and ties 1: 5.5 / 8.
    # AP: at 8 a step of 1/2 with precision 1/1, at 4 a step of 1/2 with precision 2/5: 0.5 + 0.2.
    # F1: at 8 2*1 / (1 + 0 + 2) = 2/3; at 4 2*2 / (2 + 3 + 2) = 4/7.
    # FPR at 95 % recall: both are found at 4, with 3 of the 4 good ones.
    of_images = image_metrics(
        np.array([6, 8, 4, 5, 4, 1], dtype=np.float32), np.array([0, 1, 1, 0, 0, 0], dtype=bool)
    )
    expected = {"image_auroc": 5.5 / 8, "image_ap": 0.7, "image_f1_max": 2 / 3, "image_fpr_95": 3 / 4}
    assert of_images == close(expected, abs=1e-15)

    # Pixels: regions with the scores {9, 5} and {5}; the nine normals 7 5 3 2 2 1 1 1 0, six of a good image.
    # AUROC: of 27 pairs, 9 wins 9, each 5 wins 7 and ties 1: 9 + 2 * 7.5 = 24.
    # AP: at 9 a step of 1/3 with precision 1/1, at 5 a step of 2/3 with precision 3/5: 1/3 + 2/5 = 11/15.
    # F1: at 9 2*1 / (1 + 0 + 3) = 1/2; at 5 2*3 / (3 + 2 + 3) = 3/4.
    # PRO: at 9 half of one region of two, 1/4, and no false positive; just above 5 1 of 9; at 5 all, 2 of 9.
    # The curve: (0, 0) (0, 1/4) (1/9, 1/4) (2/9, 1) (1, 1). To 0.3: 1/9 * 1/4 + 1/9 * 5/8 + (0.3 - 2/9) * 1
    # = 0.175, of 0.3: 7/12. To 0.05 it is level: 1/4.
    maps = np.array([[[9, 3, 5], [5, 2, 1]], [[7, 5, 2], [1, 1, 0]]], dtype=np.float32)
    masks = np.array([[[1, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]], dtype=bool)
    of_pixels = measure(maps, masks)
    expected = {"pixel_auroc": 8 / 9, "pixel_ap": 11 / 15, "pixel_f1_max": 3 / 4, "aupro": 7 / 12}
    assert of_pixels == close({**expected, "aupro_05": 1 / 4}, abs=1e-15)

    assert {*of_images, *of_pixels, "aupimo", "spro_05"} == {*METRICS}
    assert all(type(value) is float for value in (*of_images.values(), *of_pixels.values()))
    mean = (5.5 / 8 + 0.7 + 2 / 3 + 8 / 9 + 11 / 15 + 3 / 4 + 7 / 12) / 7
    assert mad(of_images | of_pixels) == close(mean, abs=1e-15)


def test_mad_ignores_other_values_and_names_the_missing_ones() -> None:
    values = dict.fromkeys(MAD_METRICS, 0.5)
    assert mad({**values, "aupro_05": 0.0, "train_s": 1e9}) == 0.5
    assert np.isnan(mad({**values, "aupro": float("nan")}))
    del values["image_ap"], values["aupro"]
    with pytest.raises(ValueError, match=r"missing: image_ap, aupro$"):
        mad(values)


@pytest.mark.parametrize("score", [0.0, -3.5, 1e30])
@pytest.mark.parametrize("num_defects", [1, 7, 39])
def test_constant_scores(score: float, num_defects: int) -> None:
    masks = np.arange(40).reshape(2, 4, 5) < num_defects
    values = measure(np.full(masks.shape, score, dtype=np.float32), masks)
    share = num_defects / 40
    expected = {"pixel_auroc": 0.5, "pixel_ap": share, "pixel_f1_max": 2 * share / (1 + share)}
    assert values == close({**expected, "aupro": 0.15, "aupro_05": 0.025}, abs=1e-12)
    of_images = image_metrics(np.full(40, score), masks.ravel())
    assert list(of_images.values()) == close([*expected.values(), 1], abs=1e-12)


def test_perfect_scores_give_one_and_inverted_ones_auroc_zero() -> None:
    maps, masks = blobs(0)
    perfect = maps + masks * np.float32(100)
    assert list(measure(perfect, masks).values()) == close([1] * 5, abs=1e-12)
    assert list(measure(masks.astype(np.float32), masks).values()) == close([1] * 5, abs=1e-12)
    inverted = measure(-perfect, masks)
    assert inverted["pixel_auroc"] == inverted["aupro"] == inverted["aupro_05"] == 0
    score, label = perfect.max((1, 2)), masks.any((1, 2))
    assert list(image_metrics(score, label).values()) == [1, 1, 1, 0]
    assert image_metrics(-score, label)["image_auroc"] == 0


@examples
@given(images())
def test_metrics_agree_with_scikit_learn_and_the_slow_aupro(
    case: tuple[np.ndarray, np.ndarray],
) -> None:
    maps, masks = case
    values = tuple(measure(maps, masks).values())
    expected = close(sklearn_three(maps.ravel(), masks.ravel()), abs=TOLERANCE)
    assert values[:3] == expected
    of_images = image_metrics(maps.ravel(), masks.ravel())
    assert tuple(of_images.values())[:3] == expected
    assert of_images["image_fpr_95"] == close(sklearn_fpr_95(maps.ravel(), masks.ravel()), abs=TOLERANCE)
    assert values[3:] == close([slow_aupro(maps, masks, limit) for limit in (0.3, 0.05)], abs=TOLERANCE)


@examples
@given(images(), st.floats(0.001, 1))
def test_area_under_pro_agrees_with_the_slow_aupro_at_any_limit(
    case: tuple[np.ndarray, np.ndarray], limit: float
) -> None:
    maps, masks = case
    area = pixel_curve(maps, label_regions(masks)).area_under_pro(limit)
    assert area == close(slow_aupro(maps, masks, limit), abs=TOLERANCE)


@pytest.mark.parametrize("decimals", [6, 1, 0])
def test_references_agree_on_larger_maps(decimals: int) -> None:
    maps, masks = blobs(decimals, num_images=6, size=15)
    maps = maps.round(decimals)  # no ties, some, almost only ties
    values = tuple(measure(maps, masks).values())
    assert values[:3] == close(sklearn_three(maps.ravel(), masks.ravel()), abs=TOLERANCE)
    assert values[3:] == close([slow_aupro(maps, masks, limit) for limit in (0.3, 0.05)], abs=TOLERANCE)


@pytest.mark.parametrize("num_defective", [1, 99])
def test_one_defective_or_one_good_image(num_defective: int) -> None:
    score = np.random.default_rng(num_defective).integers(0, 20, 100).astype(np.float32)
    label = np.arange(100) < num_defective
    expected = (*sklearn_three(score, label), sklearn_fpr_95(score, label))
    assert tuple(image_metrics(score, label).values()) == close(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    "transform",
    [
        lambda scores: scores**6,
        lambda scores: np.exp(scores / 4),
        lambda scores: np.log1p(scores) - 1e6,
        lambda scores: rankdata(scores).reshape(scores.shape),
    ],
    ids=["power", "exp", "log", "rank"],
)
@pytest.mark.parametrize("decimals", [6, 1])
def test_monotone_transform_changes_nothing(
    transform: Callable[[np.ndarray], np.ndarray], decimals: int
) -> None:
    maps, masks = blobs(1)
    maps = maps.round(decimals).astype(np.float64)  # in float32 the transform itself would make ties
    # Equal to the last bit: nothing but the order of the scores may enter.
    assert measure(transform(maps), masks) == measure(maps, masks)
    score, label = maps.max((1, 2)), masks.any((1, 2))
    assert image_metrics(transform(score), label) == image_metrics(score, label)


@examples
@given(images(), st.randoms(use_true_random=False))
def test_order_of_images_and_numbers_of_regions_do_not_matter(
    case: tuple[np.ndarray, np.ndarray], random: Any
) -> None:
    maps, masks = case
    order = random.sample(range(len(maps)), len(maps))
    expected = close(measure(maps, masks), abs=1e-12)
    assert measure(maps[order], masks[order]) == expected
    # The same masks labelled before they are put in order; then with gaps, as in a part of a category.
    regions = label_regions(masks)
    assert pixel_metrics(maps[order], regions[order]) == expected
    assert pixel_metrics(maps, regions * np.int32(1000)) == expected
    # Mirrored and turned by a quarter, which also gives arrays that are not contiguous.
    turned = (np.swapaxes(maps, 1, 2)[:, ::-1], np.swapaxes(masks, 1, 2)[:, ::-1])
    assert measure(*turned) == expected
    assert pixel_metrics(turned[0], np.swapaxes(regions, 1, 2)[:, ::-1]) == expected


def test_normal_pixels_of_defective_and_of_good_images_count_alike() -> None:
    maps, masks = blobs(2)
    good = ~masks.any((1, 2))
    # The normal scores of the good images trade places with those of the defective ones.
    normals = maps[~masks]
    traded = maps.copy()
    traded[~masks] = normals[::-1]
    assert measure(traded, masks) == measure(maps, masks)
    assert measure(maps[~good], masks[~good]) != measure(maps, masks)


@examples
@given(images=images(), num_threads=st.sampled_from([2, 3, 1000]))
def test_the_number_of_threads_changes_no_count(
    images: tuple[np.ndarray, np.ndarray], num_threads: int
) -> None:
    maps, regions = images[0], label_regions(images[1])
    one, several = pixel_curve(maps, regions), pixel_curve(maps, regions, num_threads=num_threads)
    for name in ("num_normal", "num_defective", "above", "at_or_above", "hits", "pro"):
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name), strict=True)


@pytest.mark.parametrize("regions_per_image", [1, 4])
def test_regions_of_equal_size_make_pro_the_roc_curve(regions_per_image: int) -> None:
    maps, masks = blobs(3)[0], np.zeros((12, 24, 24), dtype=bool)
    for corner in range(regions_per_image):
        masks[:8, 1 + 12 * (corner // 2) :, 1 + 12 * (corner % 2) :][:, :5, :4] = True
    curve = pixel_curve(maps, label_regions(masks))
    assert label_regions(masks).max() == 8 * regions_per_image
    assert curve.pro == close(curve.hits / curve.num_defective, abs=1e-12)
    assert curve.area_under_pro(1) == close(curve.auroc(), abs=1e-12)


def test_a_curve_ends_at_one_and_no_metric_exceeds_one_by_rounding() -> None:
    for seed in range(10):
        maps, masks = blobs(seed, num_images=5)
        assert pixel_curve(maps, label_regions(masks)).pro[-1] == 1
        assert max(measure(masks * maps, masks).values()) <= 1


def test_every_region_weighs_the_same() -> None:
    # A region of one pixel is found, one of eight is missed: PRO is 1/2 at once, the recall of pixels 1/9.
    masks = np.zeros((1, 5, 10), dtype=bool)
    masks[0, 0, 0] = masks[0, 2:4, 2:6] = True
    maps = np.zeros(masks.shape, dtype=np.float32)
    maps[0, 0, 0], maps[0, 2:4, 2:6] = 9, -9
    values = measure(maps, masks)
    assert values["aupro"] == values["aupro_05"] == 0.5
    assert values["pixel_auroc"] == close(1 / 9)


def test_defects_above_the_limit_only_do_not_count() -> None:
    # One defect below 20 of 41 normals: nothing is found up to a rate of 0.3, and the curve does not slant.
    maps = np.arange(42, dtype=np.float32).reshape(1, 6, 7)
    values = measure(maps, maps == 21)
    assert values["aupro"] == values["aupro_05"] == 0
    assert values["pixel_auroc"] == close(21 / 41)


def test_defect_exactly_at_the_limit() -> None:
    # Below 3 of 10 normals the curve is at 0 up to a rate of 0.3 and rises there, which adds no area.
    maps = np.arange(11, dtype=np.float32)[::-1].reshape(1, 1, 11)
    curve = pixel_curve(maps, label_regions(maps == 7))
    assert curve.area_under_pro(0.3) == 0
    assert curve.area_under_pro(0.4) == close(0.1 / 0.4)


@examples
@given(images())
def test_regions_are_those_of_a_flood_fill(case: tuple[np.ndarray, np.ndarray]) -> None:
    _, masks = case
    regions = label_regions(masks)
    expected = {
        frozenset((i, *pixel) for pixel in part) for i in range(len(masks)) for part in slow_regions(masks[i])
    }
    found = {
        frozenset(map(tuple, np.argwhere(regions == number).tolist()))
        for number in range(1, regions.max() + 1)
    }
    assert found == expected
    assert regions.dtype == np.int32
    assert np.array_equal(regions > 0, masks)


def test_regions_touching_at_a_corner_are_one() -> None:
    assert label_regions(np.eye(5, dtype=bool)[None]).max() == 1
    assert label_regions(np.eye(5, dtype=bool)[None, ::-1]).max() == 1
    assert label_regions(np.array([[[1, 0, 1, 0, 1]]], dtype=bool)).tolist() == [[[1, 0, 2, 0, 3]]]


def test_regions_are_not_joined_across_images() -> None:
    masks = np.zeros((3, 3, 3), dtype=bool)
    masks[:, 1, 1] = masks[1:, 2, 2] = True
    regions = label_regions(masks)
    assert [set(np.unique(image)) for image in regions] == [{0, 1}, {0, 2}, {0, 3}]


def test_mask_of_a_whole_image_is_one_region() -> None:
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0] = True
    regions = label_regions(masks)
    assert (regions == masks).all()
    maps = np.random.default_rng(0).integers(0, 5, masks.shape).astype(np.float32)
    assert measure(maps, masks)["aupro"] == close(slow_aupro(maps, masks, 0.3), abs=TOLERANCE)


def test_masks_without_defects_have_no_regions() -> None:
    assert not label_regions(np.zeros((2, 3, 4), dtype=bool)).any()


def test_float64_is_compared_as_float64() -> None:
    # These differ by less than float32 can hold, where they would be a tie and AUROC 0.5.
    score, label = np.array([1, 1 + 1e-12]), np.array([False, True])
    assert image_metrics(score, label)["image_auroc"] == 1
    assert measure(score.reshape(1, 1, 2), label.reshape(1, 1, 2))["pixel_auroc"] == 1


def test_counts_cannot_overflow() -> None:
    # 2 * num_normal * num_defective passes 2**63 on a set that no test can hold, so the type is asserted.
    maps, masks = blobs(4)
    for curve in (pixel_curve(maps, label_regions(masks)), image_curve(maps.ravel(), masks.ravel())):
        assert type(curve.num_normal) is type(curve.num_defective) is float
        assert {array.dtype for array in (curve.above, curve.at_or_above, curve.hits)} == {
            np.dtype(np.float64)
        }


def test_inputs_are_not_modified() -> None:
    maps, masks = blobs(5)
    regions, score, label = label_regions(masks), maps.max((1, 2)), masks.any((1, 2))
    inputs = (maps, masks, regions, score, label)
    copies = [array.copy() for array in inputs]
    for array in inputs:
        array.flags.writeable = False
    label_regions(masks), pixel_metrics(maps, regions), image_metrics(score, label)
    assert all(np.array_equal(array, copy) for array, copy in zip(inputs, copies, strict=True))


MAPS = np.zeros((2, 2, 3), dtype=np.float32)
REGIONS = np.array([[[1, 1, 0], [0, 0, 2]], [[0, 0, 0], [0, 0, 0]]], dtype=np.int32)
SCORE = np.arange(12, dtype=np.float32)
LABEL = np.arange(12) % 2 == 0


def with_value(array: np.ndarray, value: float, *indices: tuple[int, ...]) -> np.ndarray:
    """Copy of an array that holds this value at these indices."""
    array = array.copy()
    for index in indices:
        array[index] = value
    return array


@pytest.mark.parametrize(
    ("score", "label", "message"),
    [
        (SCORE, LABEL[:11], "shapes differ: score (12,), label (11,)"),
        (
            SCORE,
            LABEL & False,
            "image_auroc needs both defective and normal images: 0 of 12 images are defective",
        ),
        (
            SCORE,
            LABEL | True,
            "image_auroc needs both defective and normal images: 12 of 12 images are defective",
        ),
        (
            with_value(SCORE, np.nan, (3,), (5,)),
            LABEL,
            "score: 2 of 12 values are not finite, first: nan at (3,)",
        ),
        (
            with_value(SCORE, -np.inf, (0,)),
            LABEL,
            "score: 1 of 12 values are not finite, first: -inf at (0,)",
        ),
        (SCORE, LABEL.astype(int), "label: the type is int64, not bool"),
        (SCORE.astype(int), LABEL, "score: the type is int64, not float32 or float64"),
        (SCORE.astype(np.float16), LABEL, "score: the type is float16, not float32 or float64"),
        (SCORE[:0], LABEL[:0], "score: the shape is (0,), not [N] with at least one image"),
        (SCORE[None], LABEL[None], "score: the shape is (1, 12), not [N] with at least one image"),
        (SCORE, LABEL[None], "label: the shape is (1, 12), not [N] with at least one image"),
    ],
)
def test_wrong_images_are_refused(score: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        image_metrics(score, label)


@pytest.mark.parametrize(
    ("maps", "regions", "message"),
    [
        (MAPS, REGIONS[:1], "shapes differ: maps (2, 2, 3), regions (1, 2, 3)"),
        (MAPS, REGIONS.swapaxes(1, 2), "shapes differ: maps (2, 2, 3), regions (2, 3, 2)"),
        (
            MAPS,
            REGIONS * 0,
            "pixel_auroc needs both defective and normal pixels: 0 of 12 pixels are defective",
        ),
        (
            MAPS,
            REGIONS + 1,
            "pixel_auroc needs both defective and normal pixels: 12 of 12 pixels are defective",
        ),
        (
            with_value(MAPS, np.nan, (1, 0, 2), (1, 1, 1)),
            REGIONS,
            "maps: 2 of 12 values are not finite, first: nan at (1, 0, 2)",
        ),
        (
            with_value(MAPS, np.inf, (0, 1, 0)),
            REGIONS,
            "maps: 1 of 12 values are not finite, first: inf at (0, 1, 0)",
        ),
        (MAPS, REGIONS > 0, "regions: the type is bool, not int32"),
        (MAPS, REGIONS.astype(np.int64), "regions: the type is int64, not int32"),
        (MAPS.astype(np.float16), REGIONS, "maps: the type is float16, not float32 or float64"),
        (MAPS[:0], REGIONS[:0], "maps: the shape is (0, 2, 3), not [N,H,W] with at least one image"),
        (MAPS[0], REGIONS[0], "maps: the shape is (2, 3), not [N,H,W] with at least one image"),
        (MAPS, REGIONS[0], "regions: the shape is (2, 3), not [N,H,W] with at least one image"),
        (
            MAPS,
            with_value(REGIONS, -1, (0, 0, 2)),
            "regions hold -1: they count from 1, and 0 is outside; use label_regions",
        ),
        (
            MAPS,
            with_value(REGIONS, 2, (1, 0, 0)),
            "region 2 lies in image 0 and in image 1: regions are counted over the whole category;"
            " use label_regions",
        ),
    ],
)
def test_wrong_maps_and_regions_are_refused(maps: np.ndarray, regions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pixel_metrics(maps, regions)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (REGIONS, "masks: the type is int32, not bool"),
        (REGIONS[0] > 0, "masks: the shape is (2, 3), not [N,H,W] with at least one image"),
        (REGIONS[:0] > 0, "masks: the shape is (0, 2, 3), not [N,H,W] with at least one image"),
    ],
)
def test_wrong_masks_are_refused(masks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        label_regions(masks)


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, float("nan")])
def test_wrong_limits_are_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}"):
        pixel_curve(MAPS, REGIONS).area_under_pro(limit)
