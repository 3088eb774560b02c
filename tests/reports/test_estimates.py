"""Intervals and p of means and differences: by hand, and against packages of others."""

import math

import numpy as np
import pytest
import scipy.stats

from kdbench.reports import estimates
from kdbench.reports.estimates import Estimate, Sample
from kdbench.reports.leave_one_out import image_effects


def test_over_categories_one_detector_has_a_t_interval():
    values = np.array([[0.5, 0.9, 0.7, 0.75, 0.95]])
    found = estimates.mean_over_categories(values, shared=True)
    expected = scipy.stats.ttest_1samp(values[0], 0)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue)


def test_over_categories_a_difference_is_a_paired_t_test():
    a, b = np.random.default_rng(1).random((2, 1, 7))
    found = estimates.difference_over_categories(a, b, shared=(False, True))
    expected = scipy.stats.ttest_rel(a[0], b[0])
    assert found.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)
    assert found.p == pytest.approx(expected.pvalue)


# Two seeds, three categories. Means by seed 0.6, 0.8; by category 0.5, 0.75, 0.85; rests 0, -0.05, 0.05.
CROSSED = np.array([[0.4, 0.7, 0.7], [0.6, 0.8, 1.0]])


def test_seeds_of_detectors_of_all_categories_add_their_variance_without_the_interaction():
    by_category = (0.2**2 + 0.05**2 + 0.15**2) / 2 / 3  # of the mean of three
    by_seed = (0.1**2 + 0.1**2) / 1 / 2
    interaction = 4 * 0.05**2 / ((2 - 1) * (3 - 1)) / (2 * 3)
    variance = by_category + by_seed - interaction
    degrees = variance**2 / (by_category**2 / 2 + by_seed**2 / 1)
    found = estimates.mean_over_categories(CROSSED, shared=True)
    assert (found.value, found.variance, found.degrees) == pytest.approx((0.7, variance, degrees))
    own = estimates.mean_over_categories(CROSSED, shared=False)  # seeds vary with the categories
    assert (own.variance, own.degrees) == pytest.approx((by_category, 2))


def test_seeds_that_vary_less_than_their_interaction_add_nothing():
    crossed = np.array([[0.4, 0.8, 0.6], [0.8, 0.4, 0.65]])
    found = estimates.mean_over_categories(crossed, shared=True)
    assert found.variance == pytest.approx(crossed.mean(axis=0).var(ddof=1) / 3)


def test_a_sum_of_parts_is_as_certain_as_its_least_certain_part_at_least():
    """Three seeds whose means hardly differ, and much interaction: what is left of their part is unsure."""
    crossed = np.array([[0.4, 0.8, 0.6], [0.8, 0.4, 0.63], [0.6, 0.61, 0.6]])
    assert estimates.mean_over_categories(crossed, shared=True).degrees == 2


def test_each_side_of_a_difference_adds_its_own_seeds():
    a, b = CROSSED, CROSSED[:, ::-1] / 2
    found = estimates.difference_over_categories(a, b, shared=(True, True))
    parts = [
        (a.mean(axis=0) - b.mean(axis=0)).var(ddof=1) / 3,
        *(
            estimates.mean_over_categories(side, shared=True).variance
            - estimates.mean_over_categories(side, shared=False).variance
            for side in (a, b)
        ),
    ]
    assert found.variance == pytest.approx(sum(parts))


def sample(scores: list[np.ndarray], label: np.ndarray, names: str) -> Sample:
    effects = [image_effects(one, label)["image_auroc"] for one in scores]
    return Sample(
        detectors=tuple(names),
        values=np.array([one.value for one in effects]),
        effects=np.stack([one.of_image for one in effects]),
        label=label,
    )


def scores(seed: int, merit: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=20) + merit * LABEL


LABEL = np.arange(20) >= 8


def delong(values: np.ndarray) -> tuple[float, float]:
    """The variance of an AUROC after DeLong et al. (1988), by counting pairs, of normals and of defects."""
    wins = np.array([[(d > n) + 0.5 * (d == n) for n in values[~LABEL]] for d in values[LABEL]])
    return wins.mean(axis=0).var(ddof=1) / 8, wins.mean(axis=1).var(ddof=1) / 12


def test_over_images_one_detector_has_the_variance_of_delong():
    normals, defects = delong(scores(0))
    found = estimates.mean_over_images([sample([scores(0)], LABEL, "a")])
    assert found.variance == pytest.approx(normals + defects)
    assert found.degrees == pytest.approx((normals + defects) ** 2 / (normals**2 / 7 + defects**2 / 11))


def test_over_images_the_same_images_cancel_in_a_difference():
    one, other = (sample([scores(0) * scale], LABEL, name) for scale, name in ((1, "a"), (3, "b")))
    assert estimates.difference_over_images([one], [other]) is None  # the same ranking: nothing varies
    unlike = sample([scores(1)], LABEL, "b")
    apart = sum(estimates.mean_over_images([side]).variance for side in (one, unlike))
    together = estimates.difference_over_images([one], [unlike]).variance
    covariance = sum(
        np.cov(one.effects[0][kind == LABEL], unlike.effects[0][kind == LABEL])[0, 1] / count
        for kind, count in ((False, 8), (True, 12))
    )
    assert together == pytest.approx(apart - 2 * covariance)


def test_seeds_that_differ_more_than_their_images_widen_the_interval():
    alike = sample([scores(0), scores(0) + 1e-3 * scores(5)], LABEL, "ab")
    unlike = sample([scores(0, 0.2), scores(0, 4.0)], LABEL, "ab")
    assert estimates.mean_over_images([alike]).degrees > 10
    found = estimates.mean_over_images([unlike])
    by_seed = unlike.values.var(ddof=1) / 2
    assert found.degrees < 2.5  # two seeds are one degree
    images = Sample(
        detectors=("mean",),
        values=unlike.values[:1],
        effects=unlike.effects.mean(axis=0, keepdims=True),
        label=LABEL,
    )
    noise = estimates.mean_over_images([estimates.paired(*halves(unlike))]).variance / 4
    assert found.variance == pytest.approx(estimates.mean_over_images([images]).variance + by_seed - noise)


def halves(both: Sample) -> list[Sample]:
    """Both detectors of a sample, each by itself."""
    return [
        Sample(detectors=("x",), values=both.values[[i]], effects=both.effects[[i]], label=both.label)
        for i in range(2)
    ]


def test_detectors_of_all_categories_share_their_luck_and_others_do_not():
    """What is better in one category and worse in the other is no luck of a detector of both."""
    up, down = [scores(0, 0.2), scores(0, 4.0)], [scores(1, 4.0), scores(1, 0.2)]
    shared = [sample(up, LABEL, "ab"), sample(down, LABEL, "ab")]
    apart = [sample(up, LABEL, "ab"), sample(down, LABEL, "cd")]
    one, two = (estimates.mean_over_images(samples) for samples in (shared, apart))
    assert one.value == two.value
    assert one.variance < two.variance / 3


def test_the_seeds_of_paired_detectors_are_drawn_together():
    """Two seeds far apart, and the second side better by the same in both: that is no doubt."""
    before = sample([scores(0, 0.2), scores(0, 2.0)], LABEL, "ab")
    after = sample([scores(0, 0.5), scores(0, 2.6)], LABEL, "ab")
    paired = estimates.mean_over_images([estimates.paired(after, before)])
    unpaired = estimates.difference_over_images([after], [before])
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.variance < unpaired.variance / 3


@pytest.mark.parametrize("degrees", [1.0, 1.7, 4.0, 1e6])
def test_an_interval_excludes_0_where_p_is_below_5_percent(degrees):
    for value in np.linspace(-30, 30, 241):
        found = Estimate(value=float(value), variance=1.0, degrees=degrees)
        low, high = found.interval
        assert (low > 0 or high < 0) == (found.p < estimates.ALPHA)
        assert (low + high) / 2 == pytest.approx(value, abs=1e-9)


def test_the_interval_of_a_share_is_that_of_its_logit():
    found = Estimate(value=0.9, variance=0.05**2, degrees=4)
    reach = scipy.stats.t.ppf(0.975, 4) * 0.05 / (0.9 * 0.1)
    expected = [1 / (1 + math.exp(-(math.log(9) + side * reach))) for side in (-1, 1)]
    assert found.interval_of_share == pytest.approx(tuple(expected))
    assert found.interval.high > 1 > found.interval_of_share.high


@pytest.mark.parametrize("value", [1.0, 1.02, 0.0])
def test_the_interval_of_a_share_stays_one(value):
    low, high = Estimate(value=value, variance=0.01, degrees=2).interval_of_share
    assert 0 <= low <= high <= 1


def test_where_nothing_varies_there_is_no_interval():
    assert estimates.mean_over_categories(np.full((2, 5), 0.1) + 0.2, shared=True) is None
    perfect = sample([np.arange(20.0)], LABEL, "a")
    assert estimates.mean_over_images([perfect]) is None
