import numpy as np
import pytest
from scipy import stats

from dpobench.stats.compare import family
from dpobench.stats.crossed import Spread, crossed_difference, crossed_mean, crossed_ratio, share_difference


def test_one_seed_is_the_paired_t_test_and_speaks_of_a_checkpoint():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, 60), rng.normal(0, 1, 60)
    estimate, expected = crossed_difference([a[None]], [b[None]]), stats.ttest_rel(a, b)
    assert estimate.level == "checkpoint"
    assert estimate.p == pytest.approx(expected.pvalue, abs=1e-12)
    interval = expected.confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_the_three_parts_of_the_error_by_hand():
    # Two seeds, two prompts: rows (0, 2) and (4, 10); seed means 1 and 7, prompt means 2 and 6, mean 4.
    values = np.array([[0.0, 2.0], [4.0, 10.0]])
    # SE^2(prompts) = var(2, 6)/2 = 8/2 = 4; SE^2(seeds) = var(1, 7)/2 = 18/2 = 9;
    # residuals +-1, their mean square 4/1 = 4, SE^2(residual) = 4/4 = 1; together 4 + 9 - 1 = 12.
    estimate = crossed_mean([values])
    assert estimate.value == 4.0
    assert estimate.se == pytest.approx(np.sqrt(12), abs=1e-12)
    assert (estimate.n_prompts, estimate.seeds, estimate.level) == (2, 2, "method")


def test_where_only_seeds_differ_the_interval_is_students_over_seeds():
    means = np.array([0.1, 0.5, 0.3, 0.4])
    estimate = crossed_mean([np.repeat(means[:, None], 50, axis=1)])
    half = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    assert (estimate.low, estimate.high) == pytest.approx((means.mean() - half, means.mean() + half), abs=1e-9)
    assert estimate.df == pytest.approx(3, abs=1e-6)


def test_seeds_that_agree_leave_the_interval_of_the_prompts():
    prompts = np.random.default_rng(1).normal(0, 1, 40)
    estimate = crossed_mean([np.repeat(prompts[None], 3, axis=0)])
    half = stats.t.ppf(0.975, 39) * prompts.std(ddof=1) / np.sqrt(40)
    assert estimate.high - estimate.value == pytest.approx(half, rel=1e-9)


def test_strata_weigh_equally_whatever_their_size():
    assert crossed_mean([np.zeros((2, 10)), np.ones((2, 90))]).value == 0.5


def test_the_difference_takes_welchs_degrees_of_freedom_moved_to_the_common_variance():
    # Seed means (0, 2, 4) and (1, 1, 4): variances 4 and 3, B = 4/3 and 1, together 7/3, each alone were 7/6 if alike.
    control, variant = (np.repeat(np.array(x)[:, None], 80, axis=1) for x in ([0.0, 2.0, 4.0], [1.0, 1.0, 4.0]))
    estimate = crossed_difference([variant], [control])
    # Three quarters of the way: 4/3 -> 29/24, 1 -> 27/24; df = (56/24)^2 / ((29/24)^2/2 + (27/24)^2/2) = 2 * 56^2 / (29^2 + 27^2).
    df = 2 * 56**2 / (29**2 + 27**2)
    assert estimate.df == pytest.approx(df, abs=1e-9)
    assert estimate.se == pytest.approx(np.sqrt(7 / 3), abs=1e-12)
    # With no spread over prompts it is Student's test at these degrees of freedom, whatever the level.
    assert estimate.p == pytest.approx(2 * stats.t.sf(abs(estimate.value) / np.sqrt(7 / 3), df), abs=1e-9)


def test_the_interval_ends_where_the_test_turns():
    rng = np.random.default_rng(5)
    variant, control = (rng.normal(0, 0.3, (3, 100)) + rng.normal(0, 0.05, (3, 1)) for _ in range(2))
    for confidence in (0.9, 0.95, 0.99):
        estimate = crossed_difference([variant], [control], confidence)
        for end in (estimate.low, estimate.high):
            # Just within, the hypothesis is not rejected at this level; just outside it is.
            out, within = (end + s * 1e-6 * np.sign(end - estimate.value) for s in (1, -1))
            assert estimate.p_of(out) < 1 - confidence < estimate.p_of(within)


def test_a_smaller_level_asks_for_more_than_the_normal_tail_where_seeds_are_few():
    # Seeds that agree better than chance: at the usual level the prompts' own quantile, at a hundredth of it hardly.
    few = Spread(1.0, 1e9, 0.7, 4.0, 0.7)
    assert few.quantile(0.05) == pytest.approx(1.95996, abs=1e-4)
    assert few.quantile(0.0005) > 1.4 * stats.norm.ppf(1 - 0.00025)


def test_the_error_is_never_below_that_of_the_prompts():
    assert Spread(2.0, 99.0, 0.1, 2.0, 0.5).variance == 2.0


def test_differences_of_shares_stay_within_one():
    difference = share_difference(
        crossed_difference([np.array([[1.0] * 9, [0.0] * 9])], [np.array([[0.0] * 9, [1.0] * 9])])
    )
    assert (difference.low, difference.high) == (-1.0, 1.0)
    inner = crossed_difference([np.ones((2, 9)) * 0.5], [np.zeros((2, 9))])
    assert share_difference(inner) == inner


def test_a_failed_seed_leaves_sides_of_unequal_size():
    rng = np.random.default_rng(3)
    estimate = crossed_difference([rng.normal(1, 0.1, (2, 50))], [rng.normal(0, 0.1, (3, 50))])
    assert estimate.seeds == 2
    assert estimate.low < 1.0 < estimate.high


def test_one_seed_on_either_side_makes_no_claim_about_the_method():
    rng = np.random.default_rng(4)
    difference = crossed_difference([rng.normal(1, 0.1, (1, 50))], [rng.normal(0, 0.1, (3, 50))])
    comparison = family({"new": difference}, "old")["new"]
    assert comparison.level == "checkpoint"
    assert comparison.verdict("higher") == "better than old (this checkpoint only)"


def test_a_ratio_of_twice_the_base_is_two_without_error():
    base = np.array([1.0, 2.0, 3.0])
    ratio = crossed_ratio(np.stack([2 * base, 2 * base]), base)
    assert (ratio.value, ratio.se) == (2.0, 0.0)


def test_exact_equality_is_no_evidence_of_a_difference():
    assert crossed_difference([np.ones((2, 9))], [np.ones((2, 9))]).p == 1.0
