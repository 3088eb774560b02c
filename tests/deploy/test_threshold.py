"""A threshold from normal images: its rate of false alarms, against simulation and hand calculation."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from kdbench.deploy.threshold import HELD_OUT, TRAINED, UNSEEN
from kdbench.engine.delivery import threshold_of


def test_the_rate_that_was_asked_for_is_kept_on_new_images():
    draws = np.random.default_rng(0)
    scores = draws.lognormal(size=(4000, 199))  # 4000 detectors, each with its held-out images
    found = [threshold_of(one, 0.05, source=HELD_OUT) for one in scores]
    above = np.array([1 - np_lognormal_cdf(one.value) for one in found])
    assert {one.expected for one in found} == {0.05}
    assert abs(above.mean() - 0.05) < 0.001
    inside = (above >= found[0].low) & (above <= found[0].high)
    assert abs(inside.mean() - 0.95) < 0.01


def np_lognormal_cdf(value: float) -> float:
    from scipy.stats import lognorm

    return float(lognorm.cdf(value, 1.0))


def test_the_interval_is_that_of_clopper_and_pearson():
    found = threshold_of(np.arange(99.0), 0.05, source=HELD_OUT)
    assert found.value == 94  # the 95th of 99: five of a hundred places lie above it
    assert found.expected == pytest.approx(0.05)
    # With this share above it, at most 4 of 99 images lie above the 95th in 97.5 %, at least 5 in 2.5 %.
    assert binom.cdf(4, 99, found.high) == pytest.approx(0.025)
    assert binom.sf(4, 99, found.low) == pytest.approx(0.025)
    assert (found.low, found.high) == pytest.approx(beta.ppf([0.025, 0.975], 5, 95))


@pytest.mark.parametrize(("count", "rank"), [(99, 99), (199, 198), (100, 100), (1, 1), (42, 42), (999, 990)])
def test_one_percent_is_the_smallest_score_that_keeps_it(count, rank):
    found = threshold_of(np.random.default_rng(1).permutation(count) + 1.0, 0.01, source=HELD_OUT)
    assert found.value == rank
    assert found.expected == pytest.approx((count + 1 - rank) / (count + 1))
    assert (found.expected <= 0.01 + 1e-12) == (count >= 99)


def test_training_images_promise_no_rate():
    """The detector has learnt them: the share of new images above the threshold has no known distribution."""
    found = threshold_of(np.arange(199.0), 0.05, source=TRAINED)
    assert found.model_dump() == {
        "value": 189.0,
        "false_alarms": 0.05,
        "num_images": 199,
        "threshold_from": "training images",
        "expected": None,
        "low": None,
        "high": None,
    }
    assert "199 training images, which the detector has learnt. New normal images score higher" in found.words
    assert "expect more than 5.0% of them" in found.words


def test_what_is_to_know_of_the_images_is_said():
    words = threshold_of(np.arange(42.0), 0.01, source=UNSEEN).words
    assert "from 42 normal images that the training never saw: 2.3% of new normal images expected" in words
    assert "Too few images for 1.0%: it takes 99" in words
    assert "somewhat more" not in words
    assert "somewhat more" in threshold_of(np.arange(42.0), 0.01, source=HELD_OUT).words
    assert "Too few" not in threshold_of(np.arange(99.0), 0.01, source=HELD_OUT).words


@pytest.mark.parametrize(("scores", "rate"), [([], 0.1), ([1.0, np.nan], 0.1), ([1.0], 0.0), ([1.0], 1.0)])
def test_nonsense_is_refused(scores, rate):
    with pytest.raises(ValueError, match=r"scores of normal images|a rate of false alarms"):
        threshold_of(np.array(scores), rate, source=HELD_OUT)
