"""The presets: sizes, mask rules, and the two legacy PROs against slow and obvious versions of them."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, replaced, slow_but, write_category, write_image
from PIL import Image
from scipy import ndimage

from kdbench.data.fingerprint import fingerprint
from kdbench.data.store import _two_tap, open_truth
from kdbench.datasets.mvtec_ad import MVTecAD
from kdbench.engine.evaluate import Scored, at_size, measure
from kdbench.metrics.exact import label_regions, pixel_metrics
from kdbench.metrics.legacy import pro_rd4ad, pro_stfpm
from kdbench.metrics.presets import PRESETS, Preset


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    """Six maps of 24x24 with regions of several sizes; two images are good."""
    generator = np.random.default_rng(4)
    masks = np.zeros((6, 24, 24), bool)
    masks[0, 2:6, 3:9] = masks[0, 15:18, 15:18] = masks[1, 8:20, 8:12] = masks[2, 0:2, 0:2] = masks[
        4, 5:7, 9:20
    ] = True
    maps = generator.normal(0, 1, masks.shape) + 1.2 * masks
    return ndimage.gaussian_filter(maps, (0, 1, 1)).astype(np.float32), label_regions(masks)


def overlap(scores: np.ndarray, regions: np.ndarray, threshold: float) -> float:
    shares = [
        np.mean(scores[regions == r] > threshold) for r in range(1, regions.max() + 1) if (regions == r).any()
    ]
    return float(np.mean(shares))


def official_pro(maps: np.ndarray, regions: np.ndarray) -> float:
    """The PRO of STFPM's code, pixel by pixel: 4,000 steps down from the maximum, the minimum left out."""
    low, high = float(maps.min()), float(maps.max())
    scores = [float(value) for value in maps.ravel()]
    numbers = [int(number) for number in regions.ravel()]
    normal = [score for score, number in zip(scores, numbers, strict=True) if number == 0]
    by_region: dict[int, list[float]] = {}
    for score, number in zip(scores, numbers, strict=True):
        if number:
            by_region.setdefault(number, []).append(score)
    points = []
    for step in range(4000):
        threshold = high - step * (high - low) / 4000
        fpr = sum(score > threshold for score in normal) / len(normal)
        if fpr > 0.3:
            break  # from here on it only grows
        shares = [sum(score > threshold for score in own) / len(own) for own in by_region.values()]
        points.append((fpr, sum(shares) / len(shares)))
    (x0, y0), (x1, y1) = points[0], points[-1]
    stretched = [((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for x, y in points]
    pairs = pairwise(stretched)
    return sum((right - left) * (a + b) / 2 for (left, a), (right, b) in pairs)


def test_stfpm_legacy_is_the_loop_over_4000_steps_of_the_official_code():
    generator = np.random.default_rng(4)
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 1:4, 2:5] = masks[0, 6, 6] = masks[2, 5:8, 0:3] = True
    maps = ndimage.gaussian_filter(generator.normal(0, 1, masks.shape) + 2 * masks, (0, 1, 1))
    for heavy in (maps.astype(np.float32), (maps - maps.min()).astype(np.float32) ** 3):
        assert pro_stfpm(heavy, label_regions(masks)) == pytest.approx(
            official_pro(heavy, label_regions(masks)), abs=1e-12
        )


def test_stfpm_legacy_leaves_the_minimum_out_of_its_steps():
    """The last threshold is 1/4000: a normal pixel at 0.0002 is not above it, but is above the minimum."""
    maps = np.array([[[1.0, 0.75, 0.0, 0.0, 0.0, 0.0, 0.0002]]])
    regions = np.array([[[1, 1, 0, 0, 0, 0, 0]]], np.int32)
    assert pro_stfpm(maps, regions) == 0


def test_rd4ad_legacy_is_the_loop_over_images_and_200_thresholds(case):
    maps, regions = case
    areas = []
    for scores, marked in zip(maps, regions, strict=True):
        if not marked.any():
            continue
        low, high = float(scores.min()), float(scores.max())
        points = []
        for k in range(200):
            threshold = low + k * (high - low) / 200
            fpr = float(np.mean(scores[marked == 0] > threshold))
            if fpr < 0.3:
                points.append((fpr, overlap(scores, marked, threshold)))
        x, y = (np.array(values) for values in zip(*points, strict=True))
        x = x / x.max()
        areas.append(-np.trapezoid(y, x))
    assert pro_rd4ad(maps, regions) == pytest.approx(np.mean(areas), abs=1e-6)


def test_legacy_pros_depend_on_the_scale_of_the_scores_and_the_exact_one_does_not(case):
    maps, regions = case
    shifted = (maps - maps.min() + 1).astype(np.float64)
    heavy = shifted**6
    assert pixel_metrics(heavy, regions)["aupro"] == pytest.approx(pixel_metrics(shifted, regions)["aupro"])
    assert abs(pro_stfpm(heavy, regions) - pro_stfpm(shifted, regions)) > 1e-4
    assert abs(pro_rd4ad(heavy, regions) - pro_rd4ad(shifted, regions)) > 1e-4


def opened(path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def truth(root, preset: Preset):
    dataset = MVTecAD()
    category = dataset.scan(root, "bottle")
    return category, open_truth(dataset, category, fingerprint(dataset, category), preset)


@pytest.mark.parametrize(("size", "expected"), [(20, (0, 1, 0)), (10, (0, 0, 0))])
def test_mask_rules_by_hand(tmp_path, size, expected):
    folder = write_category(tmp_path, "bottle", train=1, good=1, bad=1)
    mask = np.zeros((40, 40), np.uint8)
    mask[0, 0] = 3  # one pixel, a class id: above 0
    Image.fromarray(mask).save(folder / "ground_truth/broken/000_mask.png")
    found = []
    for rule in ("nearest", "two-tap bilinear > 0", "bilinear > 0.5"):
        _, regions = truth(tmp_path, Preset(evaluation_size=size, mask_rule=rule))
        found.append(int((np.asarray(regions.regions) > 0).sum()))
    # 20: nearest takes pixel 1 of each axis, two taps are 0 and 1, and each weighs a half: 1/4 is below 0.5.
    # 10: the first result lies at 1.5, between the pixels 1 and 2, so that pixel 0 has no part in it.
    assert tuple(found) == expected


def test_two_taps_are_those_of_torch():
    """torch without anti-aliasing samples where OpenCV does."""
    marked = np.random.default_rng(0).random((90, 70)) < 0.02
    expected = torch.nn.functional.interpolate(
        torch.tensor(marked)[None, None].float(), (25, 32), mode="bilinear"
    )
    np.testing.assert_allclose(_two_tap(marked, (32, 25)), expected[0, 0], atol=1e-5)


def test_original_size_takes_images_of_any_sizes(tmp_path):
    folder = write_category(tmp_path, "bottle", train=1, good=2, bad=2)
    write_image(folder / "test/good/001.png", 5, size=64)
    category, found = truth(tmp_path, PRESETS["mvtec_original"])
    sizes = [opened(sample.path).shape[1::-1] for sample in category.test]
    assert [tuple(shape) for shape in found.shapes] == [(h, w) for w, h in sizes]
    assert sorted(h for _, h in sizes) == [40, 40, 40, 64]
    generator = np.random.default_rng(0)
    maps = generator.random((4, 32, 32), np.float32)
    scored = Scored(maps=maps, image_score=maps.max((1, 2)).astype(np.float64))
    values = measure(scored, found, PRESETS["mvtec_original"]).metrics
    pixels = np.concatenate([at_size(m, (h, w)).ravel() for m, (w, h) in zip(maps, sizes, strict=True)])
    marked = np.concatenate(
        [
            (opened(s.mask) > 0).ravel() if s.mask else np.zeros(w * h, bool)
            for s, (w, h) in zip(category.test, sizes, strict=True)
        ]
    )
    from sklearn.metrics import roc_auc_score

    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(marked, pixels), abs=1e-9)


def test_original_size_of_equal_images_is_the_same_as_that_size(tmp_path):
    write_category(tmp_path, "bottle", train=1, good=3, bad=3)
    maps = np.random.default_rng(0).random((6, 32, 32), np.float32)
    scored = Scored(maps=maps, image_score=maps.max((1, 2)).astype(np.float64))
    values = []
    for preset in (PRESETS["mvtec_original"], Preset(evaluation_size=40, mask_rule="nearest")):
        values.append(measure(scored, truth(tmp_path, preset)[1], preset).metrics)
    assert values[0] == values[1]


def test_defects_with_an_empty_mask_count_for_image_metrics_only(tmp_path):
    folder = write_category(tmp_path, "bottle", train=1, good=2, bad=3)
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "ground_truth/broken/000_mask.png")

    class Forgiving(MVTecAD):
        empty_masks = True

    dataset = Forgiving()
    category = dataset.scan(tmp_path, "bottle")
    found = open_truth(dataset, category, fingerprint(dataset, category), PRESETS["exact"])
    assert found.marked.tolist() == [False, True, True, True, True]
    maps = np.random.default_rng(0).random((5, 32, 32), np.float32)
    scored = Scored(maps=maps, image_score=np.arange(5.0))
    values = measure(scored, found, PRESETS["exact"]).metrics
    maps[0] = 100  # whatever an unmarked image gets, no pixel metric sees it
    again = measure(scored, found, PRESETS["exact"]).metrics
    assert values == again


@pytest.mark.parametrize("preset", slow_but(sorted(PRESETS), "stfpm_legacy"))
def test_every_preset_runs_and_says_what_it_was(kdbench, mvtec, tmp_path, preset):
    method = "rd4ad" if preset == "rd4ad_legacy" else "stfpm"
    usual = ["--methods", method, "--dataset", "mvtec_ad", "--root", mvtec, "--categories", "bottle", *TINY]
    words = ["--set", "all.image_size=64", "--preset", preset]
    words += ["--results", tmp_path / "r", "--report", tmp_path / "o"]
    code, printed = kdbench("run", *replaced(usual, words))
    assert code == 0, printed
    (row,) = pd.read_parquet(tmp_path / "r/cells").to_dict("records")
    rules = PRESETS[preset]
    assert (row["preset"], row["evaluation_size"], row["mask_rule"]) == (
        preset,
        rules.evaluation_size,
        rules.mask_rule,
    )
    filled = {name for name in ("pro_stfpm_legacy", "pro_rd4ad_legacy") if not pd.isna(row[name])}
    assert filled == ({rules.pro} if rules.pro else set())
    assert json.loads(row["config"])["sigma"] == row["sigma"]


def test_a_legacy_preset_refuses_another_smoothing_than_its_own(kdbench, mvtec):
    words = [
        "--dataset",
        "mvtec_ad",
        "--root",
        mvtec,
        *TINY,
        "--preset",
        "rd4ad_legacy",
        "--methods",
        "stfpm",
    ]
    code, printed = kdbench("run", *words)
    assert code == 2
    assert "--set stfpm.sigma=4" in printed
