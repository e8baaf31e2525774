"""Tests of differences: against hand-computed examples, scipy, and every choice of signs."""

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from uxnet.evaluation.paired import EXACT, holm, rank_biserial, signed_rank_p


def p_by_all_signs(differences):
    """The share of all choices of signs whose rank sum is at least as far from 0."""
    ranks = stats.rankdata(np.abs(differences))
    sums = np.abs(np.array(list(itertools.product((-1, 1), repeat=len(ranks)))) @ ranks)
    return np.mean(sums >= abs(ranks @ np.sign(differences)))


@pytest.mark.parametrize("n", [1, 2, 5, 9, 12])
def test_p_counts_every_choice_of_signs_ties_or_none(n):
    rng = np.random.default_rng(n)
    for most in (2, 4, 100):
        differences = rng.integers(1, most, n) * rng.choice([-1, 1, 1], n) * 0.1
        assert signed_rank_p(differences) == pytest.approx(p_by_all_signs(differences))


@pytest.mark.parametrize("n", [3, 20, 50, 120])
def test_p_without_ties_is_that_of_scipy(n):
    for seed in range(3):
        differences = np.random.default_rng(seed).normal(0.2, 1, n)
        assert signed_rank_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_p_is_the_same_where_the_normal_distribution_takes_over():
    rng = np.random.default_rng(0)
    differences = rng.integers(1, 30, EXACT + 1) * rng.choice([-1, 1, 1], EXACT + 1) * 1e-3
    for shift in (0, 2.5e-3, -3.5e-3):
        shifted = (differences + shift).round(9)
        scipys = [stats.wilcoxon(x, correction=True, method="asymptotic").pvalue for x in (shifted, shifted[:-1])]
        assert signed_rank_p(shifted) == scipys[0]
        assert signed_rank_p(shifted[:-1]) == pytest.approx(scipys[1], abs=2e-4)


def test_p_of_clear_and_of_no_differences():
    assert signed_rank_p([0.1] * 9) == 2 / 2**9
    assert signed_rank_p([-0.1, 0.0] * 9) == 2 / 2**9
    assert signed_rank_p([0.1, -0.1]) == 1
    assert signed_rank_p([0.0, 0.0]) == 1
    assert signed_rank_p([]) == 1
    # Ties, whatever the last bits say: 0.3 - 0.2 is not 0.1.
    assert signed_rank_p([0.3 - 0.2, 0.1, -0.1]) == signed_rank_p([1, 1, -1])


def test_holm_by_hand():
    """Holm's own scheme: 0.01 of four is 0.04; 0.02 of three 0.06; 0.03 of two stays at 0.06; 0.04 of one, too."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    # Smallest times 8, next times 7, ...; 0.0298 times 2 would fall, and stays where the one before it is.
    known = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    assert holm(known) == pytest.approx([0.0008, 0.0028, 0.0114, 0.0475, 0.0804, 0.0834, 0.0834, 0.0834])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([0.03]) == [0.03]


def test_holm_does_not_mind_the_order_and_never_lowers():
    p = np.random.default_rng(0).random(9).tolist()
    corrected = dict(zip(p, holm(p), strict=True))
    shuffled = random.Random(1).sample(p, len(p))
    assert holm(shuffled) == [corrected[x] for x in shuffled]
    assert all(corrected[x] >= x for x in p)
    assert [corrected[x] for x in sorted(p)] == sorted(corrected.values())


def test_rank_biserial_by_hand():
    # Ranks of 1, 2, 3, 4: 1 + 3 + 4 for, 2 against; (8 - 2) / 10.
    assert rank_biserial([0.1, -0.2, 0.3, 0.4]) == pytest.approx(0.6)
    assert rank_biserial([0.1, 0.0, -0.2, 0.3, 0.4, 0.0]) == pytest.approx(0.6)
    assert rank_biserial([0.3 - 0.2, 0.1 - 0.2]) == pytest.approx(0)  # a tie, whatever the last bits say
    assert rank_biserial([1, 2]) == 1
    assert rank_biserial([0.0, 0.0]) is None
    assert rank_biserial([]) is None
