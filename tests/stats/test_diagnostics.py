"""Calibration error, correlation and spread between seeds, worked out by hand and by simulation."""

import numpy as np
import pytest

from dpobench.stats.reliability import calibration_error, crossed_correlation, spread_between
from tests.stats import diagnostics_coverage as coverage


def test_probabilities_that_come_true_have_no_calibration_error():
    """Ninety of a hundred pairs at 0.9 are right."""
    error = calibration_error([[0.9] * 90 + [0.1] * 10])
    assert error.plain == pytest.approx(0, abs=1e-12)
    assert error.value == 0
    assert error.low == 0
    assert error.n_prompts == 100


def test_the_plain_error_is_the_gap_in_each_bin_weighed_by_its_pairs():
    """Ten bins over [0.5, 1]: at 0.9 half of 60 are right, a gap of 0.4; at 0.6 all of 40, another 0.4."""
    error = calibration_error([[0.9] * 30 + [0.1] * 30 + [0.6] * 40])
    assert error.plain == pytest.approx(0.6 * 0.4 + 0.4 * 0.4)
    # Gaps so much larger than chance are left nearly whole.
    assert error.value == pytest.approx(0.4, abs=0.005)
    assert error.low > 0
    assert error.chance < 0.4


def test_chance_alone_is_taken_out_of_the_error():
    """Over many draws of calibrated pairs the plain error is far from zero, the other one much nearer."""
    rng = np.random.default_rng(0)
    errors = [calibration_error(coverage.stated(rng, 1, 264, 1.0, 1.0), resamples=50) for _ in range(100)]
    plain, value = (np.mean([getattr(one, name) for one in errors]) for name in ("plain", "value"))
    assert plain > 0.05
    assert value < 0.7 * plain


def test_seeds_that_agree_are_no_more_evidence_than_one():
    """Three copies of one checkpoint have its error and its interval: prompts are the units."""
    stated = coverage.stated(np.random.default_rng(3), 1, 300, 1.0, 2.0)
    one, three = calibration_error(stated), calibration_error(np.repeat(stated, 3, axis=0))
    for name in ("plain", "value", "low", "high", "chance"):
        assert getattr(three, name) == pytest.approx(getattr(one, name), abs=1e-12), name


def test_one_seed_has_the_correlation_of_numpy():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 50))
    y = 0.5 * x + rng.normal(size=(1, 50))
    estimate = crossed_correlation(x, y)
    assert estimate.value == pytest.approx(np.corrcoef(x[0], y[0])[0, 1], abs=1e-9)
    # Of normal numbers the interval is close to Fisher's, which has no more to go by.
    middle, half = np.arctanh(estimate.value), 1.96 / np.sqrt(47)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.tanh([middle - half, middle + half])), abs=0.06)


def test_seeds_average_on_the_scale_of_fisher():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 40)), rng.normal(size=(2, 40))
    each = [np.arctanh(np.corrcoef(a, b)[0, 1]) for a, b in zip(x, y, strict=True)]
    assert crossed_correlation(x, y).value == pytest.approx(np.tanh(np.mean(each)), abs=1e-9)


def test_what_does_not_vary_has_no_correlation():
    assert crossed_correlation(np.ones((1, 20)), np.arange(20.0)[None]) is None
    assert crossed_correlation(np.arange(5.0)[None], np.arange(5.0)[None]) is None
    one_differs = np.zeros((1, 20))
    one_differs[0, 3] = 7.0
    assert crossed_correlation(one_differs, np.arange(20.0)[None]) is None
    assert crossed_correlation(np.arange(20.0)[None], one_differs) is None


def test_two_seeds_say_next_to_nothing_about_their_spread():
    """Standard deviation of 0 and 2 is sqrt 2; chi-squared with one degree has 5.0239 and 0.00098207 at its ends."""
    deviation = spread_between([0, 2])
    wanted = (2**0.5, (2 / 5.023886) ** 0.5, (2 / 0.000982069) ** 0.5)
    assert deviation == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_the_intervals_hold_the_truth_as_often_as_they_say():
    """Six hundred repeats: 95 % has a standard error of 0.9 %."""
    designs = {
        "calibrated": lambda rng: coverage.ece(rng, 264, 1.0, 1.0, 0.0),
        "overconfident": lambda rng: coverage.ece(rng, 264, 1.0, 3.0, coverage.true_error(1.0, 3.0)),
        "correlation": lambda rng: coverage.correlation(rng, 3, 264, 0.5, True),
        "spread": lambda rng: coverage.spread(rng, 3),
    }
    held = {name: coverage.share(trial, 600) for name, trial in designs.items()}
    assert {name: share for name, share in held.items() if not 0.92 <= share <= 0.985} == {}
