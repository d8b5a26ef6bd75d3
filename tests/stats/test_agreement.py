import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa

from dpobench.stats.reliability import agreement, correlation, kappa
from tests.stats.coverage_tradeoffs import agreement_worlds, shares

SAID = ["first"] * 25 + ["second"] * 25
TRUE = ["first"] * 20 + ["second"] * 5 + ["first"] * 10 + ["second"] * 15


def test_kappa_by_hand():
    # Agreement 35/50; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; (0.7 - 0.5) / 0.5.
    assert agreement(SAID, TRUE).value == pytest.approx(0.7)
    assert kappa(SAID, TRUE).value == pytest.approx(0.4)


def test_kappa_of_three_categories_and_its_error_are_those_of_statsmodels():
    rng = np.random.default_rng(0)
    true = rng.choice(3, 400, p=[0.4, 0.4, 0.2])
    sentence = np.where(rng.random(400) < 0.6, true, rng.choice(3, 400))
    table = np.zeros((3, 3))
    np.add.at(table, (sentence, true), 1)
    expected, estimate = cohens_kappa(table), kappa(sentence, true)
    assert estimate.value == pytest.approx(expected.kappa, abs=1e-12)
    assert estimate.se == pytest.approx(expected.std_kappa * np.sqrt(400 / 399), rel=1e-9)


def test_agreement_of_independent_pairs_is_wilsons_nearly():
    estimate = agreement([1] * 160 + [0] * 40, [1] * 200)
    wilson = stats.binomtest(160, 200).proportion_ci(0.95, method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((wilson.low, wilson.high), abs=2e-3)


def test_rows_repeated_within_a_prompt_teach_nothing_new():
    prompts = np.arange(50)
    once, thrice = (np.repeat(x, 3) for x in (SAID, TRUE)), np.repeat(prompts, 3)
    sentence, true = once
    for measure in (agreement, kappa):
        assert measure(sentence, true, thrice).se == pytest.approx(measure(SAID, TRUE, prompts).se, rel=1e-9)
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    assert correlation(np.repeat(x, 3), np.repeat(y, 3), thrice).se == pytest.approx(correlation(x, y).se, rel=1e-9)


def test_the_correlation_is_pearsons_and_stays_within_one():
    x = np.random.default_rng(0).normal(size=200)
    y = x + np.random.default_rng(1).normal(0, 0.1, 200)
    estimate, expected = correlation(x, y), stats.pearsonr(x, y)
    assert estimate.value == pytest.approx(expected.statistic, abs=1e-12)
    assert estimate.high < 1
    interval = expected.confidence_interval()
    assert (estimate.low, estimate.high) == pytest.approx(
        (interval.low, interval.high), abs=3e-3
    )  # the data are normal


def test_where_nothing_varies_there_is_neither_kappa_nor_correlation():
    assert np.isnan(kappa(["first"] * 9, ["first"] * 9).value)
    assert np.isnan(correlation(np.ones(9), np.arange(9)).value)
    assert correlation(np.arange(9), np.arange(9)).value == pytest.approx(1.0)


def test_intervals_of_agreement_cover():
    for measure, (share, _, _) in shares(agreement_worlds(np.random.default_rng(1), 400, 150, 2, 1.0)).items():
        assert 0.915 <= share <= 0.985, measure
