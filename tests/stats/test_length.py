import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from dpobench.stats.crossed import crossed_mean, share_interval
from dpobench.stats.length import by_quintile, difficulty, equal_length, length_controlled
from tests.stats.coverage_tradeoffs import length_worlds, shares


def longer_wins(rng, prompts=400, seeds=1, slope=1.5, shift=5.0):
    difference = rng.normal(shift, 10, (seeds, prompts)).round()
    eta = slope * np.tanh(difference / difference.std())
    return (rng.random((seeds, prompts)) < 1 / (1 + np.exp(-eta))).astype(float), difference


def test_a_judge_that_counts_only_finds_no_winner_at_equal_length():
    wins, difference = longer_wins(np.random.default_rng(0), prompts=4000)
    assert crossed_mean([wins]).low > 0.57
    estimate = length_controlled(wins, difference)
    assert estimate.low < 0.5 < estimate.high
    assert estimate.high - estimate.low < 0.06


def test_the_fit_is_statsmodels_penalised_regression():
    rng = np.random.default_rng(0)
    wins, difference = longer_wins(rng)
    hard = rng.normal(size=400)
    hard = (hard - hard.mean()) / hard.std()
    design = np.column_stack([np.ones(400), np.tanh(difference[0] / difference.std()), hard])
    # The penalty is ridge / 2 per row: a precision of 1 on both slopes, 0.001 on the intercept.
    model = sm.GLM(wins[0], design, family=sm.families.Binomial())
    fitted = model.fit_regularized(alpha=np.array([1e-3, 1.0, 1.0]) / 400, L1_wt=0.0).params
    expected = np.mean(1 / (1 + np.exp(-(fitted[0] + fitted[2] * hard))))
    assert length_controlled(wins, difference, hard, resamples=2).value == pytest.approx(expected, abs=1e-5)


def test_the_error_of_the_refit_bootstrap_is_that_of_fitting_anew_by_hand():
    wins, difference = longer_wins(np.random.default_rng(0), prompts=200)
    estimate = length_controlled(wins, difference, resamples=2000)
    rng, x, refitted = np.random.default_rng(1), np.tanh(difference[0] / difference.std()), []
    for _ in range(300):
        drawn = rng.integers(0, 200, 200)
        design = sm.add_constant(x[drawn])
        refitted.append(
            1 / (1 + np.exp(-sm.GLM(wins[0][drawn], design, family=sm.families.Binomial()).fit().params[0]))
        )
    assert estimate.se == pytest.approx(np.std(refitted), rel=0.15)
    assert estimate.se > 1.05 * crossed_mean([wins]).se  # knowing the slope would be cheaper


def test_verdicts_without_spread_are_not_regressed():
    estimate = length_controlled(np.ones((2, 50)), np.random.default_rng(0).normal(size=(2, 50)))
    expected = share_interval(crossed_mean([np.ones((2, 50))]))
    assert (estimate.value, estimate.low, estimate.high) == (1.0, expected.low, 1.0)


def test_one_loss_in_a_hundred_and_full_separation_by_length_stay_finite():
    wins = np.ones((1, 100))
    wins[0, 0] = 0
    difference = np.where(wins > 0, 3.0, -3.0) + np.arange(100) * 1e-3
    estimate = length_controlled(wins, difference)
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1


def test_equal_lengths_change_nothing():
    wins = (np.random.default_rng(0).random((1, 300)) < 0.6).astype(float)
    estimate = length_controlled(wins, np.zeros((1, 300)), resamples=5000, seed=1)
    assert estimate.value == pytest.approx(wins.mean(), abs=1e-5)
    assert estimate.se == pytest.approx(crossed_mean([wins]).se, rel=0.03)


def test_seeds_that_differ_add_to_the_error():
    rng = np.random.default_rng(0)
    difference = rng.normal(0, 10, (3, 300))
    wins = (rng.random((3, 300)) < np.array([[0.3], [0.5], [0.7]])).astype(float)
    assert length_controlled(wins, difference).se == pytest.approx(0.2 / np.sqrt(3), rel=0.15)


def test_a_prompt_is_as_hard_as_it_was_for_the_others():
    easy = np.array([0.9, 0.9, 0.1, 0.1])
    hardness = difficulty([easy[None], easy[None], 0.5 + 0 * easy[None]], [np.zeros((1, 4))] * 3)
    assert np.sign(hardness[2]).tolist() == [1, 1, -1, -1]
    assert hardness[0] == pytest.approx(hardness[1])
    alone = difficulty([easy[None]], [np.zeros((1, 4))])
    assert not alone[0].any()


def test_difficulty_leaves_to_length_what_is_lengths():
    difference = np.random.default_rng(0).normal(0, 1, (1, 500))
    eta = np.tanh(difference / difference.std()) + np.random.default_rng(1).normal(0, 0.5, (1, 500))
    wins = 1 / (1 + np.exp(-eta))
    assert np.corrcoef(wins[0], difference[0])[0, 1] > 0.5
    assert (
        np.abs(
            np.corrcoef(difficulty([wins, wins], [difference] * 2)[0], np.tanh(difference / difference.std())[0])[0, 1]
        )
        < 1e-9
    )


def test_equal_length_reads_the_pairs_within_a_tenth():
    lengths, base = np.tile([10.0, 11.0, 12.0, 9.0, 8.0], 10)[None], np.full(50, 10.0)
    wins = np.tile([1.0, 0.0, 1.0, 0.5, 1.0], 10)[None]
    stratum = equal_length(wins, lengths, base)
    assert (stratum.pairs, stratum.win_rate.n_prompts) == (30, 30)
    assert stratum.win_rate.value == 0.5
    assert equal_length(wins[:, :5], lengths[:, :5], base[:5]).win_rate is None


def test_fifths_hold_equal_differences_together():
    difference = np.repeat(np.arange(5.0), 20)[None]
    strata = by_quintile(np.tile([1.0, 0.0], 50)[None], difference)
    assert [(s.low, s.high, s.pairs) for s in strata] == [(float(v), float(v), 20) for v in range(5)]
    assert [s.win_rate.value for s in strata] == [0.5] * 5
    (one,) = by_quintile(np.tile([1.0, 0.0], 50)[None], np.zeros((1, 100)))
    assert one.pairs == 100


@pytest.mark.parametrize("cell", [(1, 150, 0.0), (2, 150, 0.05)])
def test_intervals_of_length_control_cover(cell):
    for measure, (share, _, count) in shares(length_worlds(np.random.default_rng(1), 80, *cell)).items():
        assert 0.94 - 3 * np.sqrt(0.95 * 0.05 / count) <= share, measure


@pytest.mark.shared
def test_alpacaevals_win_rates_and_errors_are_met_exactly_and_its_length_control_nearly(shared):
    folder = shared / "data/judges"
    if not (folder / "alpacaeval2_scores.csv.gz").is_file():
        pytest.skip("data/judges/alpacaeval2_scores.csv.gz is absent")
    rows = pd.read_csv(folder / "alpacaeval2_scores.csv.gz")
    board = pd.read_csv(folder / "alpacaeval2_leaderboard.csv").set_index("model")
    assert len(board) == 29
    for model, verdicts in rows.groupby("model"):
        estimate = crossed_mean([verdicts["preference"].to_numpy()[None]])
        assert 100 * estimate.value == pytest.approx(board.loc[model, "win_rate"], abs=1e-9)
        assert 100 * estimate.se == pytest.approx(board.loc[model, "standard_error"], abs=1e-9)
    wide = rows.pivot(index="model", columns="prompt").dropna(axis=1).loc[board.index]
    wide = wide.loc[:, wide.columns.get_level_values("prompt").isin(_complete(rows))]
    verdicts = [row[None] for row in wide["preference"].to_numpy()]
    differences = [row[None] for row in (wide["model_chars"] - wide["baseline_chars"]).to_numpy(dtype=float)]
    hard = difficulty(verdicts, differences)
    estimate = [length_controlled(*one, resamples=200) for one in zip(verdicts, differences, hard, strict=True)]
    ours = np.array([100 * e.value for e in estimate])
    theirs = board["length_controlled_winrate"].to_numpy()
    assert stats.pearsonr(ours, theirs).statistic > 0.98
    assert stats.spearmanr(ours, theirs).statistic > 0.97
    # Published errors hold parts of the regression fixed.
    ratio = 100 * np.array([e.se for e in estimate]) / board["lc_standard_error"].to_numpy()
    assert np.nanmedian(ratio) > 2.0


def _complete(rows: pd.DataFrame) -> list[int]:
    counts = rows.groupby("prompt").size()
    return counts[counts == rows["model"].nunique()].index.tolist()
