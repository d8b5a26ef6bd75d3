import numpy as np
import pytest

from dpobench.stats.resample import draws, ellipse, percentiles, seed_choice, seed_shifts
from dpobench.stats.tradeoff import Cell, frontier_of, pareto, tradeoff
from tests.stats.coverage_tradeoffs import ellipse_worlds, frontier_worlds, shares


def flat(variant: str, value: float, far: float, seeds: int = 1, prompts: int = 40) -> Cell:
    """A cell without any noise."""
    ones = np.ones((seeds, prompts))
    return Cell(variant, value * ones, far * ones, np.full(seeds, value), np.full(seeds, far))


BASE = np.full(40, 0.5)
# Three cells at 1, 4 and 9 nats; the last is beaten by the second.
KNOWN = [flat("a", 0.55, 1.0), flat("a", 0.65, 4.0), flat("a", 0.6, 9.0)]


def test_a_point_is_beaten_by_one_as_near_and_better():
    assert pareto([1, 2, 3], [0.5, 0.4, 0.6]).tolist() == [True, False, True]
    assert pareto([1, 1, np.nan], [0.5, 0.4, 0.9]).tolist() == [True, False, False]


def test_a_frontier_holds_what_is_above_the_reference_from_near_to_far():
    assert frontier_of([9.0, 1.0, 4.0, 0.5], [0.6, 0.55, 0.58, 0.4], 0.5) == [1, 2, 0]
    assert frontier_of([1.0], [0.5], 0.5) == []


def test_the_hypervolume_is_the_area_under_the_steps_on_the_scale_of_the_root():
    # Budget 10, the first of 1, 3, 10, 30 at 9 or more. Steps begin at sqrt(1/10) and sqrt(4/10):
    # 0.05 * (0.632456 - 0.316228) + 0.15 * (1 - 0.632456) = 0.0158114 + 0.0551317.
    result = tradeoff(KNOWN, BASE, resamples=20)
    assert result.budget == 10.0
    assert result.frontiers["a"].picked == (0, 1)
    assert result.frontiers["a"].hypervolume.value == pytest.approx(0.0709431, abs=1e-7)
    assert result.frontiers["a"].hypervolume.se == pytest.approx(0, abs=1e-12)


def test_between_two_cells_it_is_read_on_the_line_and_beyond_the_last_as_the_last():
    at = tradeoff(KNOWN, BASE, resamples=20).frontiers["a"].at
    assert at[1.0].value == pytest.approx(0.55, abs=1e-12)
    assert at[3.0].value == pytest.approx(0.55 + 0.1 * 2 / 3, abs=1e-12)
    assert at[10.0].value == pytest.approx(0.65, abs=1e-12)
    assert at[30.0] is None  # the farthest cell is not half so far


def test_a_variant_that_went_far_only_is_not_read_near_the_reference():
    at = tradeoff([flat("a", 0.7, 12.0)], BASE, resamples=20).frontiers["a"].at
    assert (at[1.0], at[3.0]) == (None, None)
    assert at[10.0].value == pytest.approx(0.5 + 0.2 * 10 / 12, abs=1e-12)  # on the line from the reference


def test_the_price_of_sixty_percent_is_where_the_line_crosses_it():
    frontiers = tradeoff([*KNOWN, flat("b", 0.58, 2.0)], BASE, "a", resamples=20).frontiers
    assert frontiers["a"].needed.value == pytest.approx(1 + 3 * 0.05 / 0.1, abs=1e-12)
    assert frontiers["b"].needed.value == np.inf
    assert frontiers["b"].needed.low == np.inf


def test_the_difference_to_the_control_is_paired_on_the_prompts():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.3, 200)
    cells = [
        Cell(v, (m + shared)[None], np.full((1, 200), 2.0), np.array([m]), np.array([2.0]))
        for v, m in (("a", 0.6), ("b", 0.7))
    ]
    result = tradeoff(cells, np.full(200, 0.5), "a", resamples=20).frontiers
    assert result["a"].to_control is None
    # The prompts' spread is the same in both and cancels: 0.1 * (1 - sqrt(2/3)), exactly.
    assert result["b"].to_control.value == pytest.approx(0.1 * (1 - np.sqrt(2 / 3)), abs=1e-9)
    assert result["b"].to_control.se < 1e-9 < result["b"].hypervolume.se


def test_cells_picked_on_other_prompts_do_not_flatter_whoever_has_many():
    # Eight equal cells at equal distances; the best of them on the test prompts themselves would look 0.03 better.
    rng, values = np.random.default_rng(0), []
    for _ in range(200):
        test, selection = (rng.random((8, 200)) < 0.6, rng.random((8, 200)) < 0.6)
        cells = [
            Cell("a", t[None].astype(float), np.full((1, 200), 1.0), np.array([s.mean()]), np.array([1.0]))
            for t, s in zip(test, selection, strict=True)
        ]
        values.append(tradeoff(cells, np.full(200, 0.5), resamples=2).frontiers["a"].at[1.0].value)
    assert np.mean(values) == pytest.approx(0.6, abs=3 * np.sqrt(0.24 / 200 / 200))


def test_seeds_are_read_along_the_frontier_that_the_other_seeds_picked():
    # Seed 0 was lucky in the first cell, seed 1 in the second. Each alone would pick its own luck and promise 0.9.
    value = np.array([[0.9, 0.5], [0.5, 0.9]])
    cells = [Cell("a", np.repeat(v[:, None], 30, 1), np.ones((2, 30)), v + 1e-6, np.ones(2)) for v in value]
    result = tradeoff(cells, np.full(30, 0.4), resamples=20).frontiers["a"]
    assert result.at[1.0].value == pytest.approx(0.5, abs=1e-9)


def test_the_pareto_probability_of_two_equal_cells_is_a_half_each():
    rng = np.random.default_rng(3)
    wins = (rng.random((2, 1, 400)) < 0.6).astype(float)
    wins[1] = rng.permuted(wins[0], axis=1)
    cells = [Cell("ab"[i], wins[i], np.ones((1, 400)), np.array([0.6]), np.array([1.0])) for i in range(2)]
    member = tradeoff(cells, np.full(400, 0.5), resamples=2000).membership
    assert member[0] == pytest.approx(0.5, abs=0.05)
    assert 1.0 <= member.sum() <= 1.1  # both only where they tie


def test_the_joint_bootstrap_draws_the_same_prompts_for_all_cells():
    values = np.random.default_rng(0).normal(size=(1, 1, 100))
    first, second = draws([values, values + 1.0], 200)
    assert np.allclose(second - first, 1.0)
    assert first.std() == pytest.approx(values.std() / 10, rel=0.15)


def test_seeds_move_the_mean_by_students_t_and_not_by_the_plain_bootstraps_too_small_spread():
    means = np.array([0.1, 0.5, 0.3])
    table = np.repeat(means[None, :, None], 20, axis=2)
    moved = seed_shifts(table, seed_choice(3, 200_000, np.random.default_rng(0)))[0]
    # Student's 97.5 % point at two degrees of freedom, times the standard error of three seeds.
    expected = 4.302653 * means.std(ddof=1) / np.sqrt(3)
    assert np.quantile(moved, 0.975) == pytest.approx(expected, rel=0.03)
    assert not seed_shifts(table[:, :1], seed_choice(1, 5, np.random.default_rng(0))).any()


def test_seeds_that_differ_no_more_than_their_answers_do_move_nothing():
    prompts = np.random.default_rng(0).normal(size=(1, 2, 500))
    prompts[0, 1] = prompts[0, 0][::-1]  # equal means, unequal answers
    assert not seed_shifts(prompts, seed_choice(2, 10, np.random.default_rng(0))).any()


def test_points_of_one_training_move_together():
    """A checkpoint that every training passes nearer and better than its end leaves the end no place in the set, whoever is lucky."""
    rng = np.random.default_rng(5)
    luck = np.array([-0.06, 0.01, 0.05])[:, None]
    early = 0.62 + luck + rng.normal(0, 0.01, (3, 200))
    late, near, far = early - 0.02, 2 + 0 * early, 3 + 0 * early

    def member(training):
        points = [(late, far), (early, near)]
        cells = [Cell("a", value, away, value.mean(1), away.mean(1), training) for value, away in points]
        return tradeoff(cells, np.full(200, 0.5)).membership

    assert member("one").tolist() == [0.0, 1.0]
    # Of two trainings the farther one may be the better one.
    assert member("")[0] > 0.1


def test_an_interval_may_end_at_infinity():
    interval = percentiles(3.0, np.r_[np.arange(1.0, 91.0), np.full(10, np.inf)], 10, 1)
    assert (interval.low, interval.high, interval.se) == (3.0, np.inf, np.inf)


@pytest.mark.parametrize("cell", [(1, 200, 0.0), (3, 200, 0.02)])
def test_intervals_of_the_trade_off_cover(cell):
    for measure, (share, _, count) in shares(frontier_worlds(np.random.default_rng(1), 80, *cell)).items():
        assert share >= 0.94 - 3 * np.sqrt(0.95 * 0.05 / count), measure


def test_an_ellipse_around_normal_resamples_is_the_one_of_their_covariance():
    rng = np.random.default_rng(0)
    first = rng.normal(2, 3, 40_000)
    second = -1 + 0.8 * (first - 2) / 3 * 0.5 + 0.6 * rng.normal(0, 0.5, 40_000)
    region = ellipse(2, -1, first, second)
    # The 95 % point of chi-squared at two degrees is 5.991, its root 2.448.
    assert (region.wide, region.high) == pytest.approx((3 * 2.448, 0.5 * 2.448), rel=0.02)
    assert region.tilt == pytest.approx(0.8, abs=0.03)
    assert np.mean(region.distance(first, second) <= 1) == pytest.approx(0.95, abs=1e-3)
    assert region.distance(*region.edge()) == pytest.approx(1.0)


def test_an_ellipse_is_flat_where_a_coordinate_does_not_vary():
    region = ellipse(1, 0.5, np.ones(100), np.linspace(0, 1, 100))
    assert (region.wide, region.tilt) == (0, 0)
    across, up = region.edge()
    assert set(across) == {1.0}
    assert (up.min(), up.max()) == pytest.approx((0.025, 0.975), abs=0.005)


def test_the_ellipse_of_a_cell_covers():
    (share, _, _) = shares(ellipse_worlds(np.random.default_rng(1), 200, 3, 200, 0.02))["ellipse"]
    assert share >= 0.94 - 3 * np.sqrt(0.95 * 0.05 / 200)
