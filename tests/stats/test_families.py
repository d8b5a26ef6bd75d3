import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from dpobench.stats.compare import Candidate, holm, select, step_up
from dpobench.stats.reliability import calibration
from dpobench.stats.tradeoff import pareto


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_holm_and_the_step_up_procedure_equal_statsmodels(count):
    p = np.random.default_rng(count).random(count) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert step_up(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == step_up([]) == []


def candidate(key, value, distance, variant="a", **more):
    return Candidate(key, variant, value, 0.02, distance, **more)


def test_within_one_standard_error_of_the_best_the_smaller_distance_wins():
    chosen = select([candidate("far", 0.80, 10.0), candidate("near", 0.785, 2.0), candidate("too low", 0.77, 0.5)])
    assert chosen["a"].configuration == "near"


def test_without_a_distance_the_best_mean_wins():
    assert select([candidate("x", 0.80, None), candidate("y", 0.79, None)])["a"].configuration == "x"


def test_the_lower_is_chosen_where_lower_is_better():
    assert select([candidate("x", 0.8, 1.0), candidate("y", 0.2, 9.0)], "lower")["a"].configuration == "y"


def test_diverged_configurations_are_not_eligible_and_incomplete_ones_only_stand_in():
    broken, part, whole = (
        candidate("b", 0.9, 1.0, eligible=False),
        candidate("p", 0.8, 1.0, complete=False),
        candidate("w", 0.6, 1.0),
    )
    assert select([broken, part, whole])["a"].configuration == "w"
    assert select([broken, part])["a"].configuration == "p"
    assert select([broken]) == {}


def test_the_pareto_set_leaves_out_what_is_beaten_at_the_same_distance_or_less():
    assert pareto([1, 2, 3, 3, np.nan], [0.5, 0.4, 0.6, 0.55, 0.9]).tolist() == [True, False, True, False, False]
    assert pareto([1, 1], [0.5, 0.5]).tolist() == [True, True]


def test_a_coin_is_calibrated_and_scores_a_quarter():
    table = calibration([0.5] * 10)
    assert (table.brier, table.ece, table.accuracy) == (0.25, 0.0, (0.5,))


def test_overconfidence_by_hand():
    # Four pairs stated at 0.9; three turn out right (p = 0.9), one wrong (p = 0.1): accuracy 0.75, gap 0.15.
    table = calibration([0.9, 0.9, 0.9, 0.1])
    assert table.ece == pytest.approx(0.15)
    assert table.brier == pytest.approx((3 * 0.01 + 0.81) / 4)
    assert table.count == (4,)


def test_probabilities_drawn_from_the_truth_are_calibrated():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 1, 20000)
    assert calibration(np.where(rng.random(20000) < truth, truth, 1 - truth)).ece < 0.02
