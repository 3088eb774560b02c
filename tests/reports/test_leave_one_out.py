"""The effects of single images against taking each away by hand."""

from statistics import fmean

import numpy as np
import pytest

from kdbench.metrics.exact import image_metrics
from kdbench.reports.leave_one_out import IMAGE_METRICS, image_effects


def plain_metrics(normal: list[float], defective: list[float]) -> dict[str, float]:
    """Image metrics by counting pairs and by trying every threshold."""
    wins = [(d > n) + 0.5 * (d == n) for d in defective for n in normal]
    ap, recall, f1 = 0.0, 0.0, 0.0
    for threshold in sorted({*normal, *defective}, reverse=True):
        hits = sum(d >= threshold for d in defective)
        alarms = sum(n >= threshold for n in normal)
        ap += (hits / len(defective) - recall) * hits / (hits + alarms)
        recall = hits / len(defective)
        f1 = max(f1, 2 * hits / (hits + alarms + len(defective)))
    return {"image_auroc": fmean(wins), "image_ap": ap, "image_f1_max": f1}


def without(scores: np.ndarray, label: np.ndarray, gone: int) -> dict[str, float]:
    left = [(float(s), bool(d)) for i, (s, d) in enumerate(zip(scores, label, strict=True)) if i != gone]
    return plain_metrics([s for s, d in left if not d], [s for s, d in left if d])


@pytest.mark.parametrize("decimals", [8, 1, 0], ids=["no ties", "ties", "many ties"])
@pytest.mark.parametrize(("normals", "defects"), [(9, 14), (2, 2), (15, 2), (2, 11)])
def test_an_effect_is_what_taking_the_image_away_changes(decimals, normals, defects):
    generator = np.random.default_rng(normals + decimals)
    label = generator.permutation(np.arange(normals + defects) >= normals)
    score = np.round(generator.normal(size=len(label)) + label, decimals)
    whole, found = image_metrics(score, label), image_effects(score, label)
    for i, defective in enumerate(label):
        of_kind = int((label == defective).sum())
        changed = without(score, label, i)
        for name in IMAGE_METRICS:
            expected = (of_kind - 1) * (whole[name] - changed[name])
            assert found[name].of_image[i] == pytest.approx(expected, abs=1e-12)


def test_values_are_the_metrics_and_f1_max_is_without_its_bias():
    label = np.arange(30) >= 12
    score = np.round(np.random.default_rng(0).normal(size=30) + label, 1)
    whole, found = image_metrics(score, label), image_effects(score, label)
    for name in ("image_auroc", "image_ap"):
        assert found[name].value == pytest.approx(whole[name], abs=1e-12)
    bias = sum(
        (count - 1)
        * (fmean(without(score, label, i)["image_f1_max"] for i in images) - whole["image_f1_max"])
        for count, images in ((12, range(12)), (18, range(12, 30)))
    )
    assert bias > 0  # a maximum of few images is too high
    assert found["image_f1_max"].value == pytest.approx(whole["image_f1_max"] - bias, abs=1e-12)


@pytest.mark.parametrize("defects", [1, 4])
def test_the_only_image_of_a_label_cannot_be_left_out(defects):
    with pytest.raises(ValueError, match="another one of its label"):
        image_effects(np.arange(5.0), np.arange(5) < defects)
