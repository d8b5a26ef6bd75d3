import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import logit

from dpobench.stats.crossed import crossed_mean, share_interval
from dpobench.stats.tournament import round_robin, tournament
from tests.stats.coverage_tradeoffs import shares, tournament_worlds


def pairs_of(chances: dict[tuple[str, str], float], prompts: int = 100) -> dict[tuple[str, str], np.ndarray]:
    return {pair: np.full((1, 1, prompts), chance) for pair, chance in chances.items()}


def test_the_greater_reward_wins_and_equal_ones_tie():
    scores = round_robin({"a": np.array([[[1.0, 2.0], [3.0, 3.0]]]), "b": np.array([[[0.0, 2.0], [4.0, np.nan]]])})
    # First prompt: a win and a tie; second: a loss, and a draw that has no second reward.
    assert scores["a", "b"].tolist() == [[[0.75, 0.0]]]


def test_every_seed_meets_every_seed():
    scores = round_robin({"a": np.array([1.0, 3.0]).reshape(2, 1, 1), "b": np.array([0.0, 2.0, 4.0]).reshape(3, 1, 1)})
    assert scores["a", "b"][:, :, 0].tolist() == [[1, 0, 0], [1, 1, 0]]


def test_strengths_of_two_players_are_the_log_odds():
    fitted = tournament(["a", "b"], pairs_of({("a", "b"): 0.2}))
    assert fitted.strength["b"].value == pytest.approx(np.log(4), abs=1e-9)
    assert fitted.expected["b", "a"] == pytest.approx(0.8, abs=1e-9)
    assert fitted.misfit is None


def test_strengths_that_explain_all_pairs_are_recovered():
    true = {"a": 0.0, "b": 0.7, "c": -0.4}
    chance = {(x, y): 1 / (1 + np.exp(true[y] - true[x])) for x, y in (("a", "b"), ("a", "c"), ("b", "c"))}
    fitted = tournament(list(true), pairs_of(chance))
    assert {name: e.value for name, e in fitted.strength.items()} == pytest.approx(true, abs=1e-8)
    assert fitted.cycles == ()


def test_errors_are_those_of_statsmodels_clustered_by_prompt():
    rng, names = np.random.default_rng(0), ["a", "b", "c", "d"]
    rewards = {n: (rng.normal(0, 1, 300) + 0.3 * i)[None, :, None] for i, n in enumerate(names)}
    pairs = round_robin(rewards)
    fitted = tournament(names, pairs)
    rows, scores, prompts = [], [], []
    for (a, b), score in pairs.items():
        row = np.zeros(4)
        row[names.index(a)], row[names.index(b)] = 1, -1
        rows += [row[1:]] * 300
        scores += score[0, 0].tolist()
        prompts += range(300)
    model = sm.GLM(np.array(scores), np.array(rows), family=sm.families.Binomial())
    expected = model.fit(cov_type="cluster", cov_kwds={"groups": np.array(prompts), "use_correction": False})
    assert [fitted.strength[n].value for n in names[1:]] == pytest.approx(expected.params, abs=1e-8)
    # Ours divides by N - 1 where the sandwich divides by N.
    assert [fitted.strength[n].se for n in names[1:]] == pytest.approx(expected.bse * np.sqrt(300 / 299), rel=1e-6)


def test_seeds_that_differ_widen_the_interval_and_copies_of_a_seed_do_not():
    rng = np.random.default_rng(0)
    base, other = rng.normal(0, 1, (1, 400, 1)), rng.normal(0, 1, (1, 400, 1))
    single = tournament(["a", "b"], round_robin({"a": base, "b": other})).strength["b"]
    copies = tournament(["a", "b"], round_robin({"a": base, "b": np.repeat(other, 3, axis=0)})).strength["b"]
    moved = np.repeat(other, 3, axis=0) + np.array([-0.5, 0.0, 0.5]).reshape(3, 1, 1)
    apart = tournament(["a", "b"], round_robin({"a": base, "b": moved})).strength["b"]
    assert copies.se == pytest.approx(single.se, rel=1e-9)
    assert apart.se > 3 * single.se
    assert (single.seeds, copies.seeds) == (1, 3)


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_of_one_of_two_players_count_as_they_do_for_a_mean(seeds):
    rng = np.random.default_rng(seeds)
    wins = (rng.random((seeds, 300)) < 0.6 + rng.normal(0, 0.08, (seeds, 1))).astype(float)
    fitted, mean = tournament(["a", "b"], {("a", "b"): 1 - wins[None]}), crossed_mean([wins])
    # Log-odds have the slope 1 / (p (1 - p)).
    slope = 1 / (mean.value * (1 - mean.value))
    strength, observed, share = fitted.strength["b"], fitted.observed["b", "a"], share_interval(mean)
    assert strength.se == pytest.approx(slope * mean.se, rel=1e-9)
    assert strength.high - strength.value == pytest.approx(slope * (mean.high - mean.value), rel=1e-9)
    assert (observed.low, observed.high) == pytest.approx((share.low, share.high), abs=1e-9)


def test_seeds_of_the_others_add_no_degrees_of_freedom():
    rng = np.random.default_rng(0)
    shift = {"a": 0.3, "b": 0.3, "c": 0.3, "d": 0.3}
    rewards = {n: rng.normal(0, 1, (3, 200, 1)) + rng.normal(0, sd, (3, 1, 1)) for n, sd in shift.items()}
    fitted = tournament(list(shift), round_robin(rewards))
    # Two arms of three seeds have four at most.
    assert 2 <= fitted.strength["b"].spread.seeds_df <= 4


def test_a_player_trained_once_is_a_checkpoint_even_if_others_have_seeds():
    rng = np.random.default_rng(0)
    rewards = {n: rng.normal(0, 1, (s, 100, 1)) for n, s in (("a", 3), ("b", 1), ("c", 2))}
    strength = tournament(list(rewards), round_robin(rewards)).strength
    assert [strength[n].seeds for n in "abc"] == [3, 1, 2]


def test_a_player_that_always_wins_has_a_finite_strength_and_is_reported():
    fitted = tournament(["a", "b", "c"], pairs_of({("a", "b"): 0.5, ("a", "c"): 0.0, ("b", "c"): 0.0}))
    assert fitted.separated
    # Half a tied prompt among a hundred: c wins 100.25 of 100.5 against two players equal to one another.
    assert fitted.strength["c"].value == pytest.approx(logit(100.25 / 100.5), abs=1e-6)
    assert not tournament(["a", "b"], pairs_of({("a", "b"): 0.01})).separated


def test_a_ring_is_detected_and_is_evidence_against_strengths():
    rng = np.random.default_rng(0)
    pairs = {
        p: (rng.random((1, 1, 300)) < c).astype(float)
        for p, c in {("a", "b"): 0.7, ("a", "c"): 0.3, ("b", "c"): 0.7}.items()
    }
    fitted = tournament(["a", "b", "c"], pairs)
    assert fitted.cycles == (("a", "b", "c"),)
    assert fitted.misfit < 1e-6
    assert abs(fitted.worst[2]) > 0.15


def test_observed_shares_of_a_pair_mirror_each_other():
    fitted = tournament(["a", "b"], pairs_of({("a", "b"): 0.3}))
    assert fitted.observed["b", "a"].value == 0.7
    assert fitted.observed["b", "a"].low == 1 - fitted.observed["a", "b"].high


@pytest.mark.parametrize("cell", [(1, 150, 0.0), (3, 150, 0.05), (2, 150, 0.3)])
def test_intervals_of_the_tournament_cover_and_its_fit_is_rarely_doubted(cell):
    coverage = shares(tournament_worlds(np.random.default_rng(1), 100, *cell))
    assert coverage.pop("misfit, p < 0.05")[0] <= 0.07 + 0.05
    for measure, (share, _, _) in coverage.items():
        assert 0.88 <= share <= 0.995, measure


def test_players_that_never_met_are_compared_through_those_that_both_met():
    logit = {"a": 0.0, "b": 1.0, "c": -0.5, "d": 0.7}
    chance = lambda x, y: 1 / (1 + np.exp(logit[y] - logit[x]))  # noqa: E731
    met = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    spread = np.tile([0.1, -0.1], 20)
    pairs = {pair: (chance(*pair) + spread)[None, None] for pair in met}
    fitted = tournament(list(logit), pairs)
    assert {p: fitted.strength[p].value for p in logit} == pytest.approx(logit, abs=1e-6)
    assert fitted.expected["b", "c"] == pytest.approx(chance("b", "c"))
    assert ("b", "c") not in fitted.observed
    assert fitted.cycles == ()
    with pytest.raises(ValueError, match="no pair links c, d to a"):
        tournament(list(logit), {("a", "b"): pairs["a", "b"], ("c", "d"): pairs["c", "d"]})
