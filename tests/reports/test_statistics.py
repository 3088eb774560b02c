"""Tests by ranks against references written out by hand, and against packages of others."""

from itertools import compress, product

import numpy as np
import pytest
import scipy.stats

from kdbench.reports import statistics


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
