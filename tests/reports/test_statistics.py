"""Intervals and tests against references written out by hand, and against packages of others."""

from itertools import compress, product
from statistics import fmean

import numpy as np
import pytest
import scipy.stats

from kdbench.metrics.exact import image_metrics
from kdbench.reports import statistics


def middle(draws: list[float]) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile, interpolated between the neighbours in order."""
    ordered = sorted(draws)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.025), at(0.975)


def test_the_interval_over_categories_is_a_plain_bootstrap_of_their_mean():
    values = [0.5, 0.9, 0.7, 0.75, 0.95]
    generator = np.random.default_rng([statistics.SEED, 5])
    means = []
    for counts in generator.multinomial(5, [0.2] * 5, size=statistics.NUM_DRAWS):
        drawn = [value for value, count in zip(values, counts, strict=True) for _ in range(count)]
        assert len(drawn) == 5
        means.append(fmean(drawn))
    found = statistics.interval(statistics.category_draws(np.array(values)))
    assert (found.low, found.high) == pytest.approx(middle(means), abs=1e-12)
    assert found.low < 0.76 < found.high


def test_categories_are_drawn_together_for_all_columns():
    values = np.random.default_rng(3).random((7, 2))
    both = statistics.category_draws(values)
    assert both.shape == (statistics.NUM_DRAWS, 2)
    np.testing.assert_allclose(both[:, 1], statistics.category_draws(values[:, 1]))


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


@pytest.mark.parametrize("values", [[0.3, 0.9], [0.0, 1.0, 5.0], [0.1, 0.4, 0.2, 0.9, 0.3]])
def test_seeds_drawn_have_the_variance_of_a_mean_over_them(values, monkeypatch):
    monkeypatch.setattr(statistics, "NUM_DRAWS", 100_000)
    statistics.seed_weights.cache_clear()
    weights = statistics.seed_weights(tuple(map(str, values)))
    statistics.seed_weights.cache_clear()
    np.testing.assert_allclose(weights.sum(1), 1)
    drawn = weights @ values
    assert drawn.mean() == pytest.approx(np.mean(values), abs=0.02 * np.std(values))
    assert drawn.var() == pytest.approx(np.var(values, ddof=1) / len(values), rel=0.03)


def test_seeds_of_the_same_cells_are_drawn_alike_and_a_single_one_always():
    one, same, other = (statistics.seed_weights(names) for names in (("a", "b"), ("a", "b"), ("a", "c")))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
    np.testing.assert_array_equal(statistics.seed_weights(("a",)), np.ones((statistics.NUM_DRAWS, 1)))


@pytest.mark.parametrize("decimals", [8, 0], ids=["no ties", "many ties"])
def test_draws_over_images_are_plain_bootstraps_within_each_label(decimals, monkeypatch):
    monkeypatch.setattr(statistics, "NUM_DRAWS", 60)
    generator = np.random.default_rng(1)
    label = generator.random(23) < 0.6
    score = np.round(generator.normal(size=23) + label, decimals)
    counts = statistics.image_counts(label, "toy/bottle")
    found = statistics.image_metric_draws(score, label, counts)
    expected = []
    for b in range(60):
        drawn = {kind: [] for kind in (False, True)}
        for value, kind, count in zip(score, label, counts[:, b], strict=True):
            drawn[bool(kind)] += [float(value)] * int(count)
        assert len(drawn[True]) == label.sum()
        assert len(drawn[False]) == (~label).sum()
        expected.append(plain_metrics(drawn[False], drawn[True]))
    for name in ("image_auroc", "image_ap"):
        np.testing.assert_allclose(found[name], [one[name] for one in expected], atol=1e-6)
    f1 = np.array([one["image_f1_max"] for one in expected])
    exact = image_metrics(score, label)["image_f1_max"]
    assert f1.mean() > exact  # a maximum is larger of drawn images, which is taken away
    np.testing.assert_allclose(found["image_f1_max"], f1 - f1.mean() + exact, atol=1e-6)


def test_the_p_of_draws_is_that_of_the_normal_distribution():
    draws = np.random.default_rng(3).normal(0.03, 0.02, 1000)
    z = draws.mean() / draws.std(ddof=1)
    assert statistics.bootstrap_p(draws) == pytest.approx(2 * scipy.stats.norm.sf(z))
    assert statistics.bootstrap_p(-draws) == pytest.approx(2 * scipy.stats.norm.sf(z))
    assert statistics.bootstrap_p(np.zeros(9)) == 1
    assert statistics.bootstrap_p(np.full(9, 0.1)) < 1e-12


def test_every_image_once_gives_the_metrics_themselves():
    generator = np.random.default_rng(2)
    label = np.arange(40) >= 15
    score = np.round(generator.normal(size=40) + label, 1)
    once = statistics.image_metric_draws(score, label, np.ones((40, 1), np.float32))
    exact = image_metrics(score, label)
    assert {name: draws[0] for name, draws in once.items()} == pytest.approx(exact, abs=1e-6)


def test_draws_depend_on_the_name_and_on_nothing_else():
    label = np.arange(9) >= 3
    first, again, other = (statistics.image_counts(label, name) for name in ("a", "a", "b"))
    assert (first == again).all()
    assert (first != other).any()


def plain_signed_rank(differences: list[float]) -> float:
    """Two-sided p over all signs, one by one; ties share the mean of their ranks, zeros are left out."""
    moved = [d for d in differences if d]
    sizes = sorted(abs(d) for d in moved)
    first, count = {abs(d): sizes.index(abs(d)) for d in moved}, {abs(d): sizes.count(abs(d)) for d in moved}
    ranks = [first[abs(d)] + (count[abs(d)] + 1) / 2 for d in moved]
    seen = sum(rank for rank, d in zip(ranks, moved, strict=True) if d > 0)
    sums = [sum(compress(ranks, signs)) for signs in product((0, 1), repeat=len(ranks))]
    tail = min(sum(s <= seen for s in sums), sum(s >= seen for s in sums)) / len(sums)
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5, 6], 2 / 64),
        ([1, 2, 3, -4, 5, 6], 14 / 64),  # 7 of the 64 sums of ranks are at most 4
        ([-0.1, 0.2, 0.3, -0.4, 0.5, 0.6, 0.7], plain_signed_rank([-1, 2, 3, -4, 5, 6, 7])),
        ([0, 0, 1, 2, 3, 4, 5, 6], 2 / 64),  # zeros say nothing
        ([0.0] * 8, 1.0),
    ],
)
def test_the_signed_rank_test_is_the_exact_one(differences, p):
    assert statistics.signed_rank(np.array(differences, float)) == pytest.approx(p)


@pytest.mark.parametrize("pairs", [6, 10, 14, 15])
def test_the_signed_rank_test_is_that_over_all_signs_also_with_ties_and_zeros(pairs):
    generator = np.random.default_rng(pairs)
    for _ in range(3):
        tied = generator.integers(-4, 7, pairs) / 8
        assert statistics.signed_rank(tied) == pytest.approx(plain_signed_rank(list(tied)), abs=1e-12)


def test_the_signed_rank_test_of_many_pairs_is_that_of_scipy():
    differences = np.random.default_rng(0).normal(0.2, 1, 40)
    exact = scipy.stats.wilcoxon(differences, method="exact").pvalue
    assert statistics.signed_rank(differences) == pytest.approx(exact, abs=1e-12)


def test_five_pairs_can_never_be_significant_and_six_can():
    assert statistics.signed_rank(np.arange(1.0, 6)) > statistics.ALPHA
    assert statistics.signed_rank(np.arange(1.0, statistics.MIN_PAIRS + 1)) < statistics.ALPHA


def test_differences_equal_but_for_rounding_are_ties():
    ties = np.array([0.9 - 0.8, 0.3 - 0.2, 0.7 - 0.6, 0.2 - 0.1, 0.5 - 0.4, -0.25])
    assert len(np.unique(ties[:5])) > 1
    assert statistics.signed_rank(ties) == statistics.signed_rank(np.array([0.1] * 5 + [-0.25]))


def test_holm_steps_down_from_the_smallest_p():
    # 0.005 x 4, 0.01 x 3, 0.03 x 2; 0.04 x 1 would be below the one before it.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1.0, 1.0]
    assert statistics.holm([0.04]) == [0.04]
    assert statistics.holm([]) == []


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="the reference is not installed")
    p_values = list(np.random.default_rng(0).random(12) ** 3)
    assert statistics.holm(p_values) == pytest.approx(
        list(multitest.multipletests(p_values, method="holm")[1])
    )


# Ranks by hand: a is 1, 1, 1, 2, 1.5; b is 2, 2, 3, 1, 1.5; c is 3, 3, 2, 3, 3.
VALUES = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7], [0.9, 0.7, 0.8], [0.8, 0.9, 0.7], [0.8, 0.8, 0.1]])


def test_average_ranks_share_ties_and_the_best_is_first():
    ranks = statistics.friedman_nemenyi(VALUES[:, [2, 0, 1]], ["c", "a", "b"])
    assert ranks.names == ("a", "b", "c")
    assert ranks.average == pytest.approx((1.3, 1.9, 2.8))
    # 2.343 is the studentized range at 5 % for three methods over the root of two (Demsar, table 5).
    assert ranks.critical_difference == pytest.approx(2.343 * (3 * 4 / (6 * 5)) ** 0.5, abs=1e-3)
    # a and c are 1.5 apart, more than 1.48; b is near both.
    assert ranks.cliques == (("a", "b"), ("b", "c"))
    assert [ranks.p_nemenyi[i, j] < 0.05 for i, j in ((0, 1), (0, 2), (1, 2))] == [False, True, False]


def test_friedman_by_hand():
    # 12 / (5*3*4) * (6.5**2 + 9.5**2 + 14**2) - 3*5*4 = 5.7, over 1 - 6 / (5*24) for the one tie: 6;
    # the chi-square of two degrees of freedom has the tail exp(-x / 2).
    ranks = statistics.friedman_nemenyi(VALUES, ["a", "b", "c"])
    assert ranks.p_friedman == pytest.approx(np.exp(-6 / 2))


def test_nemenyi_is_that_of_scikit_posthocs():
    posthocs = pytest.importorskip("scikit_posthocs", reason="the reference is not installed")
    values = np.random.default_rng(5).random((11, 5)) + np.linspace(0, 0.6, 5)
    ranks = statistics.friedman_nemenyi(values, list("abcde"))
    order = [list("abcde").index(name) for name in ranks.names]
    expected = posthocs.posthoc_nemenyi_friedman(values).to_numpy()[np.ix_(order, order)]
    np.testing.assert_allclose(ranks.p_nemenyi, expected, atol=1e-9)
    apart = np.abs(np.subtract.outer(ranks.average, ranks.average)) > ranks.critical_difference
    assert ((ranks.p_nemenyi < 0.05) == apart).all()


def test_methods_that_never_differ_have_no_groups_apart():
    ranks = statistics.friedman_nemenyi(np.full((5, 3), 0.5), ["a", "b", "c"])
    assert ranks.p_friedman == 1
    assert ranks.cliques == (("a", "b", "c"),)


@pytest.mark.parametrize(
    ("shape", "why"),
    [((4, 3), "5 categories, there are 4"), ((9, 2), "3 complete methods, there are 2")],
)
def test_too_little_for_friedman_is_said(shape, why):
    with pytest.raises(ValueError, match=why):
        statistics.friedman_nemenyi(np.zeros(shape), list("abc")[: shape[1]])
