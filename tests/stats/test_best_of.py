from itertools import combinations

import numpy as np
import pytest

from dpobench.stats.tradeoff import best_trials, best_weights
from tests.stats.coverage_tradeoffs import best_worlds, shares, trial_worlds
from tests.stats.simulate import best_of


def test_weights_by_hand():
    # Of (1, 2, 3) the three pairs have the maxima 2, 3, 3.
    assert best_weights(np.array([1.0, 2.0, 3.0]), 2).tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert best_weights(np.array([3.0, 1.0, 2.0]), 1).tolist() == pytest.approx([1 / 3] * 3)
    assert best_weights(np.array([3.0, 1.0, 2.0]), 3).tolist() == [1, 0, 0]


def test_equals_share_their_weight():
    # The two best of (1, 2, 2): all three pairs have the maximum 2.
    assert best_weights(np.array([1.0, 2.0, 2.0]), 2).tolist() == pytest.approx([0, 0.5, 0.5])


def test_the_curve_is_the_mean_over_all_subsets():
    values = np.random.default_rng(0).normal(size=(5, 7))
    for k, estimate in zip(range(1, 8), best_of(values, range(1, 8)), strict=True):
        expected = np.mean([values[:, list(s)].max(1).mean() for s in combinations(range(7), k)])
        assert estimate.value == pytest.approx(expected, abs=1e-12)


def test_picked_by_one_judge_and_read_by_another_nothing_is_gained_from_noise():
    rng = np.random.default_rng(0)
    values, noise = rng.normal(size=(2000, 8)), rng.normal(size=(2000, 8))
    itself, other = best_of(values, [8])[0], best_of(values, [8], by=noise)[0]
    assert itself.value > 1.3
    assert other.low < 0 < other.high


def test_more_tries_than_draws_are_refused():
    with pytest.raises(ValueError, match="k is 1 to 3"):
        best_weights(np.zeros((4, 3)), 4)


def test_trials_are_picked_on_other_prompts_than_they_are_read_on():
    trials = [np.full((1, 20), v) for v in (0.5, 0.6, 0.7)]
    # Selection prefers the second: of two trials it is the best in two of three pairs, the third in the pair without it.
    estimates = best_trials(trials, [0.1, 0.9, 0.5], [1, 2, 3])
    assert [e.value for e in estimates] == pytest.approx([0.6, 0.6 * 2 / 3 + 0.7 / 3, 0.6])


def test_trials_of_unequal_seeds_weigh_their_seeds_equally():
    trials = [np.full((2, 20), 0.5), np.stack([np.full(20, v) for v in (0.5, 0.6, 0.7)])]
    (estimate,) = best_trials(trials, [0.1, 0.9], [2])
    assert estimate.value == pytest.approx(0.6)
    assert estimate.seeds == 2


@pytest.mark.parametrize(("worlds", "cell"), [(best_worlds, (80, 8, 4)), (trial_worlds, (3, 200, 0.02))])
def test_intervals_of_the_best_cover(worlds, cell):
    for measure, (share, _, count) in shares(worlds(np.random.default_rng(1), 300, *cell)).items():
        assert 0.93 - 3 * np.sqrt(0.95 * 0.05 / count) <= share <= 0.995, measure
