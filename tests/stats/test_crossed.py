import numpy as np
import pytest
from scipy import stats

from dpobench.stats import compare_with_control, crossed_difference, crossed_mean, crossed_ratio


def test_one_seed_is_the_paired_t_test_and_speaks_of_a_checkpoint():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, 60), rng.normal(0, 1, 60)
    found, expected = crossed_difference([a[None]], [b[None]]), stats.ttest_rel(a, b)
    assert found.level == "checkpoint"
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_the_three_parts_of_the_error_by_hand():
    # Two seeds, two prompts: rows (0, 2) and (4, 10); seed means 1 and 7, prompt means 2 and 6, mean 4.
    values = np.array([[0.0, 2.0], [4.0, 10.0]])
    # SE^2(prompts) = var(2, 6)/2 = 8/2 = 4; SE^2(seeds) = var(1, 7)/2 = 18/2 = 9;
    # residuals +-1, their mean square 4/1 = 4, SE^2(residual) = 4/4 = 1; together 4 + 9 - 1 = 12.
    found = crossed_mean([values])
    assert found.value == 4.0
    assert found.se == pytest.approx(np.sqrt(12), abs=1e-12)
    assert (found.n_prompts, found.seeds, found.level) == (2, 2, "method")


def test_where_only_seeds_differ_the_interval_is_students_over_seeds():
    means = np.array([0.1, 0.5, 0.3, 0.4])
    found = crossed_mean([np.repeat(means[:, None], 50, axis=1)])
    half = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert (found.low, found.high) == pytest.approx((means.mean() - half, means.mean() + half), abs=1e-9)
    assert found.df == pytest.approx(3, abs=1e-6)


def test_seeds_that_agree_leave_the_interval_of_the_prompts():
    prompts = np.random.default_rng(1).normal(0, 1, 40)
    found = crossed_mean([np.repeat(prompts[None], 3, axis=0)])
    half = stats.t.ppf(0.975, 39) * prompts.std(ddof=1) / np.sqrt(40)
    assert found.high - found.value == pytest.approx(half, rel=1e-9)


def test_strata_weigh_equally_whatever_their_size():
    assert crossed_mean([np.zeros((2, 10)), np.ones((2, 90))]).value == 0.5


def test_the_difference_takes_satterthwaites_degrees_of_freedom_between_the_arms_seeds():
    rng = np.random.default_rng(2)
    control, variant = (np.repeat(rng.normal(0, 1, 3)[:, None], 80, axis=1) for _ in range(2))
    found = crossed_difference([variant], [control])
    expected = stats.ttest_ind(
        variant[:, 0], control[:, 0], equal_var=False
    )  # with no spread over prompts it is Welch's test
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    assert found.df == pytest.approx(expected.df, abs=1e-6)


def test_a_failed_seed_leaves_arms_of_unequal_size():
    rng = np.random.default_rng(3)
    found = crossed_difference([rng.normal(1, 0.1, (2, 50))], [rng.normal(0, 0.1, (3, 50))])
    assert found.seeds == 2
    assert found.low < 1.0 < found.high


def test_one_seed_in_either_arm_makes_no_claim_about_the_method():
    rng = np.random.default_rng(4)
    arms = {"new": rng.normal(1, 0.1, (1, 50))}
    found = compare_with_control(arms, rng.normal(0, 0.1, (3, 50)), "old")["new"]
    assert found.level == "checkpoint"
    assert found.verdict("higher") == "better than old (this checkpoint only)"


def test_a_ratio_of_twice_the_base_is_two_without_error():
    base = np.array([1.0, 2.0, 3.0])
    found = crossed_ratio(np.stack([2 * base, 2 * base]), base)
    assert (found.value, found.se) == (2.0, 0.0)


def test_exact_equality_is_no_evidence_of_a_difference():
    assert crossed_difference([np.ones((2, 9))], [np.ones((2, 9))]).p == 1.0
