import numpy as np
import pytest
from scipy import stats

from dpobench.stats.paired import mcnemar, permutation


def test_mcnemar_counts_exactly_where_few_documents_changed():
    # Nine lost, one gained: 2 * P(Binomial(10, 1/2) <= 1) = 2 * (1 + 10) / 1024.
    before = [1] * 9 + [0] + [1] * 40 + [0] * 30
    after = [0] * 9 + [1] + [1] * 40 + [0] * 30
    assert mcnemar(before, after) == pytest.approx(22 / 1024, abs=1e-12)
    assert mcnemar(after, before) == mcnemar(before, after)


def test_mcnemar_takes_chi_squared_where_many_changed():
    before, after = [1] * 40 + [0] * 20, [0] * 40 + [1] * 20
    # (40 - 20)^2 / 60 = 6.6667 on one degree of freedom.
    assert mcnemar(before, after) == pytest.approx(stats.chi2.sf(400 / 60, 1), abs=1e-12)


def test_mcnemar_reads_changes_only_and_refuses_graded_scores():
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1.0
    with pytest.raises(ValueError, match="permutation"):
        mcnemar([0.5, 1], [1, 1])
    with pytest.raises(ValueError, match="equally long"):
        mcnemar([1, 1], [1])


def test_the_permutation_test_takes_every_swap_once_where_it_can():
    # All eight sign patterns of (1, 2, 4): only +++ and --- reach |mean| = 7/3.
    assert permutation([1, 2, 4]) == pytest.approx(2 / 8)
    # |1 + 2 - 4| = 1 is reached by all eight.
    assert permutation([1, 2, -4]) == pytest.approx(1.0)
    assert permutation([0, 0, 0]) == 1.0


def test_a_pair_without_a_difference_changes_nothing():
    assert permutation([1, 2, 4, 0, 0, 0]) == permutation([1, 2, 4])


def test_the_permutation_test_of_many_is_students_nearly_and_repeats_itself():
    sample = np.random.default_rng(0).normal(0.1, 1, 400)
    p = permutation(sample, 1)
    assert p == permutation(sample, 1)
    assert p == pytest.approx(stats.ttest_1samp(sample, 0).pvalue, abs=0.01)


def test_the_mean_is_tested_not_the_ranks():
    # One in twenty gains nineteen, the rest lose one: the mean is zero. Wilcoxon's test is sure of a difference.
    sample = np.tile(np.r_[np.full(19, -1.0), 19.0], 20) + np.random.default_rng(0).normal(0, 0.01, 400)
    assert permutation(sample) > 0.5
    assert stats.wilcoxon(sample).pvalue < 1e-9


def test_one_in_twenty_is_rejected_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    graded = rng.beta(0.5, 0.5, (400, 150)) - rng.beta(0.5, 0.5, (400, 150))
    p = [permutation(row, resamples=199) for row in graded]
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.08
