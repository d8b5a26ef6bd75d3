"""Anchored, batch-coupled, running and weighted losses worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.losses.registry import variants

# Three pairs. Log-ratios of the chosen and rejected answers, their lengths; each token has an equal part of the log-ratio.
CHOSEN, REJECTED = [1.0, 2.0, -2.0], [-1.0, 3.0, -5.0]
LENGTHS = ([2, 1, 4], [4, 2, 1])
# Margins: 1 + 1, 2 - 3, -2 + 5.
MARGINS = [2.0, -1.0, 3.0]


def side(logratios, lengths, reference=-6.0) -> Side:
    """Answers whose tokens all have one log-probability under the reference."""
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    apart = torch.tensor(logratios, dtype=torch.float64) / torch.tensor(lengths)
    policy = torch.where(mask, reference + apart[:, None], 0.0)
    return Side(policy.requires_grad_(), torch.where(mask, reference, 0.0).double(), mask)


def given(chosen=CHOSEN, rejected=REJECTED, lengths=LENGTHS, **more) -> Pairs:
    return Pairs(side(chosen, lengths[0]), side(rejected, lengths[1]), **more)


def single(values) -> Side:
    """One-token answers of these log-ratios, constant."""
    values = torch.tensor(values, dtype=torch.float64)[:, None]
    return Side(values, torch.zeros_like(values), torch.ones_like(values, dtype=torch.bool))


def with_extras(of: Side, **constants) -> Side:
    """Every token of an answer with the same value of an extra, one value an answer."""
    extras = {
        name: torch.tensor(v, dtype=of.policy.dtype)[:, None].expand_as(of.policy) for name, v in constants.items()
    }
    return replace(of, extras=extras)


def scalars(**values) -> dict:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def of(name, pairs, **params):
    return variants.get(name).bind(**params)(pairs)


def gradients(name, pairs, **params):
    """Gradient of the sum of the losses, with respect to the first token of each answer."""
    of(name, pairs, **params).sum().backward()
    return pairs.chosen.policy.grad[:, 0].tolist(), pairs.rejected.policy.grad[:, 0].tolist()


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logistic(z: float) -> float:
    """log(1 + e^-z), the negative log-sigmoid."""
    return math.log1p(math.exp(-z))


def near(*values):
    return pytest.approx(list(values), rel=1e-13, abs=1e-14)


def test_the_margins_are_the_ones_worked_out_above():
    pairs = given()
    assert (pairs.chosen.logratio.tolist(), pairs.rejected.logratio.tolist()) == (CHOSEN, REJECTED)
    assert pairs.margin.tolist() == MARGINS
    # 1/2, 2/1, -2/4 less -1/4, 3/2, -5/1.
    assert pairs.mean_margin.tolist() == [0.75, 0.5, 4.5]


def test_kto_judges_each_answer_against_the_mean_mismatched_log_ratio():
    # z0 = (3 - 1 + 2 + 0 + 1 + 1) / 6 = 1. beta 1/2: chosen (1 - a) / 2 = 0, -1/2, 3/2; rejected (b - 1) / 2 = -1, 1, -3.
    pairs = given(others={"mismatched": single([3.0, -1.0, 2.0, 0.0, 1.0, 1.0])})
    # Halves of 0.5 + 0.268941, 0.377541 + 0.731059, 0.817574 + 0.047426.
    expected = [0.384470710684997560, 0.554299623714075157, 0.432500174685605220]
    assert of("kto", pairs, beta=0.5).tolist() == near(*expected)
    # Weights 2 and 4: s(chosen) + 2 s(rejected).
    weighted = of("kto", pairs, beta=0.5, desirable_weight=2.0, undesirable_weight=4.0)
    assert weighted.tolist() == near(s(0) + 2 * s(-1), s(-0.5) + 2 * s(1), s(1.5) + 2 * s(-3))


def test_kto_has_the_mean_over_all_examples_and_a_constant_anchor():
    pairs = given(others={"mismatched": single([1.0] * 6)})
    examples = [s(0), s(-0.5), s(1.5), s(-1), s(1), s(-3)]
    assert float(of("kto", pairs, beta=0.5).detach().mean()) == pytest.approx(sum(examples) / 6, rel=1e-14)
    chosen, rejected = gradients("kto", pairs, beta=0.5)
    # Slope of s(z) is s(z) s(-z), times beta, times the half.
    assert chosen == near(*(-0.25 * s(z) * s(-z) for z in (0, -0.5, 1.5)))
    assert rejected == near(*(0.25 * s(z) * s(-z) for z in (-1, 1, -3)))


def test_the_anchor_of_kto_is_never_below_the_reference():
    # Mean -2 counts as 0: chosen -a / 2 = -1/2, -1, 1; rejected b / 2 = -1/2, 3/2, -5/2.
    pairs = given(others={"mismatched": single([-3.0, -1.0] * 3)})
    expected = [s(-0.5), (s(-1) + s(1.5)) / 2, (s(1) + s(-2.5)) / 2]
    assert of("kto", pairs, beta=0.5).tolist() == near(*expected)


def test_kto_pair_anchors_one_side_at_the_clamped_mean_of_the_other():
    # Mean of the rejected (-1 + 3 - 5) / 3 = -1, so 0; of the chosen (1 + 2 - 2) / 3 = 1/3.
    # beta 1/2: chosen -a / 2 = -1/2, -1, 1; rejected (b - 1/3) / 2 = -2/3, 4/3, -8/3.
    up, down = [-0.5, -1.0, 1.0], [-2 / 3, 4 / 3, -8 / 3]
    pairs = given()
    expected = [0.358392150016164132, 0.530166447021975090, 0.398013873879334471]
    assert of("kto_pair", pairs, beta=0.5).tolist() == near(*expected)
    chosen, rejected = gradients("kto_pair", pairs, beta=0.5)
    # The anchor of the rejected rises by 1/3 with every chosen log-ratio, and lowers all three of their losses.
    shared = -0.25 * sum(s(d) * s(-d) for d in down) / 3
    assert chosen == near(*(-0.25 * s(u) * s(-u) + shared for u in up))
    # The anchor of the chosen is clamped: nothing flows through it.
    assert rejected == near(*(0.25 * s(d) * s(-d) for d in down))
    # Turned round, the anchor of the chosen is 1/3; it rises with every rejected log-ratio and costs all three.
    up, down = [(1 / 3 - b) / 2 for b in REJECTED], [a / 2 for a in CHOSEN]
    chosen, rejected = gradients("kto_pair", given(REJECTED, CHOSEN), beta=0.5)
    assert chosen == near(*(-0.25 * s(u) * s(-u) for u in up))
    assert rejected == near(*(0.25 * s(d) * s(-d) + 0.25 * sum(s(u) * s(-u) for u in up) / 3 for d in down))


def test_apo_zero_adds_the_chances_of_judging_either_answer_wrongly():
    # beta 1/2: -a / 2 = -1/2, -1, 1; b / 2 = -1/2, 3/2, -5/2.
    # 0.377541 twice, 0.268941 + 0.817574, 0.731059 + 0.075858.
    expected = [0.755081337596290871, 1.086515897563638780, 0.806916758651248430]
    assert of("apo_zero", given(), beta=0.5).tolist() == near(*expected)


def test_apo_down_lowers_the_chosen_answer_once_the_margin_is_wide():
    # beta 1/2: a / 2 = 1/2, 1, -1; minus half the margin = -1, 1/2, -3/2.
    # 0.622459 + 0.268941, 0.731059 + 0.622459, 0.268941 + 0.182426.
    expected = [0.891400752571849685, 1.353517909831859444, 0.451366945176351461]
    pairs = given()
    assert of("apo_down", pairs, beta=0.5).tolist() == near(*expected)
    chosen, rejected = gradients("apo_down", pairs, beta=0.5)
    assert chosen == near(*(0.5 * (s(a) * s(-a) - s(m) * s(-m)) for a, m in ((0.5, 1), (1, 0.5), (1, 1.5))))
    assert chosen[0] > 0
    assert rejected == near(*(0.5 * s(m) * s(-m) for m in (1, 0.5, 1.5)))


def test_apo_down_leaves_the_chosen_answer_alone_at_the_start():
    # Both terms have slope 1/4 there, with opposite signs.
    assert gradients("apo_down", given([0.0] * 3, [0.0] * 3), beta=0.5) == ([0.0] * 3, [0.125] * 3)


def test_nca_weighs_the_chosen_answer_both_ways():
    # beta 1/2: chosen 1/2, 1, -1; rejected -1/2, 3/2, -5/2.
    # log(1 + e^-w) + log(1 + e^w) / 2 + log(1 + e^r) / 2: 0.474077 + 0.487038 + 0.237038,
    # 0.313262 + 0.656631 + 0.850707, 1.313262 + 0.156631 + 0.039445.
    expected = [1.198153968360213362, 1.820599170268710456, 1.509337398423609063]
    assert of("nca", given(), beta=0.5).tolist() == near(*expected)


def test_nca_stops_raising_the_chosen_answer_at_log_two_over_beta():
    # -beta s(-z) + beta s(z) / 2 = 0 where e^z = 2.
    chosen, rejected = gradients("nca", given([2 * math.log(2)], [0.0], ([1], [1])), beta=0.5)
    assert chosen == near(0.0)
    assert rejected == near(0.125)


def test_the_shift_of_bco_pair_is_the_mean_of_the_batches_mean_rewards():
    bound = variants.get("bco_pair").bind(beta=0.5)
    # Three pairs: 1/2 ((1 + 2 - 2) + (-1 + 3 - 5)) / 6 = -1/6.
    first = bound.update(given(), bound.initial())
    assert first == {"delta": pytest.approx(-1 / 6, rel=1e-14), "count": 1.0}
    # Then one pair: 1/2 (4 + 2) / 2 = 3/2. Batches count alike: (-1/6 + 3/2) / 2 = 2/3.
    second = bound.update(given([4.0], [2.0], ([2], [1])), first)
    assert second == {"delta": pytest.approx(2 / 3, rel=1e-14), "count": 2.0}


def test_bco_pair_classifies_either_reward_against_the_shift():
    # beta 1/2, delta 1/4: chosen 1/4, 3/4, -5/4; delta less rejected 3/4, -5/4, 11/4.
    pairs = given(statistics=scalars(delta=0.25, count=7.0))
    logits = [(0.25, 0.75), (0.75, -1.25), (-1.25, 2.75)]
    # 0.575939 + 0.386871, 0.386871 + 1.501929, 1.501929 + 0.061967.
    expected = [0.962810425993743506, 1.888800087460272833, 1.563896670348571514]
    assert of("bco_pair", pairs, beta=0.5).tolist() == near(*expected)
    chosen, rejected = gradients("bco_pair", pairs, beta=0.5)
    assert chosen == near(*(-0.5 * s(-w) for w, _ in logits))
    assert rejected == near(*(0.5 * s(-r) for _, r in logits))


def test_bco_pair_without_its_shift_classifies_against_zero():
    # beta 1/2: chosen 1/2, 1, -1; minus rejected 1/2, -3/2, 5/2.
    # 0.474077 twice, 0.313262 + 1.701413, 1.313262 + 0.078890.
    expected = [0.948153968360213362, 2.014674965500975244, 1.392151421810772457]
    assert of("bco_pair_no_shift", given(), beta=0.5).tolist() == near(*expected)


def test_sppo_hard_squares_the_distances_to_two_targets_and_is_not_halved():
    # beta 1/4: targets 2 and -2. (1 - 2)^2 + (-1 + 2)^2, (2 - 2)^2 + (3 + 2)^2, (-2 - 2)^2 + (-5 + 2)^2.
    pairs = given()
    assert of("sppo_hard", pairs, beta=0.25).tolist() == [2.0, 25.0, 25.0]
    assert gradients("sppo_hard", pairs, beta=0.25) == ([-2.0, 0.0, -8.0], [2.0, 10.0, -6.0])


def test_sppo_soft_has_targets_by_win_probability_and_is_halved():
    # beta 1/4, P 1, 3/4, 1/4: targets 2, 1, -1 for the chosen, their negatives for the rejected.
    # Halves of (1 - 2)^2 + (-1 + 2)^2, (2 - 1)^2 + (3 + 1)^2, (-2 + 1)^2 + (-5 - 1)^2.
    pairs = given(columns={"win_probability": torch.tensor([1.0, 0.75, 0.25], dtype=torch.float64)})
    assert of("sppo_soft", pairs, beta=0.25).tolist() == [1.0, 8.5, 18.5]
    assert gradients("sppo_soft", pairs, beta=0.25) == ([-1.0, 1.0, -1.0], [1.0, 4.0, -6.0])


def test_cal_dpo_adds_weighted_squares_to_dpo_without_beta():
    # beta 1/4: the squares are those of sppo_hard, 2, 25, 25; half of them by default; margins 2, -1, 3.
    # 0.126928 + 1, 1.313262 + 12.5, 0.048587 + 12.5.
    pairs = given()
    expected = [1.126928011042972496, 13.813261687518222834, 12.548587351573742059]
    assert of("cal_dpo", pairs, beta=0.25).tolist() == near(*expected)
    assert of("cal_dpo", pairs, beta=0.25, weight=2.0).tolist() == near(
        logistic(2) + 4, logistic(-1) + 50, logistic(3) + 50
    )
    # 2 (1/2) (a - 2) less the logistic gradient.
    assert gradients("cal_dpo", pairs, beta=0.25)[0] == near(-1 - s(-2), 0 - s(1), -4 - s(-3))


def test_dpop_takes_the_loss_of_the_chosen_answer_off_the_margin():
    # beta 1/2, penalty 5: only the third chosen answer lost, 2 nats: (3 - 5 * 2) / 2 = -7/2. The others: 1, -1/2.
    pairs = given()
    expected = [0.313261687518222834, 0.974076984180106681, 3.529750418272620565]
    assert of("dpop", pairs, beta=0.5, penalty=5.0).tolist() == near(*expected)
    chosen, rejected = gradients("dpop", pairs, beta=0.5, penalty=5.0)
    assert chosen == near(-0.5 * s(-1), -0.5 * s(0.5), -0.5 * 6 * s(3.5))
    assert rejected == near(0.5 * s(-1), 0.5 * s(0.5), 0.5 * s(3.5))


def one_token(policy, reference) -> Side:
    columns = [torch.tensor(values, dtype=torch.float64)[:, None] for values in (policy, reference)]
    return Side(columns[0].requires_grad_(), columns[1], torch.ones_like(columns[0], dtype=torch.bool))


def test_aot_compares_margins_of_the_same_rank():
    # Policy margins -1 + 3, -2 + 3, -6 + 2 = 2, 1, -4; reference margins -2 + 3, -1 + 6, -5 + 2 = 1, 5, -3.
    # By rank -4 against -3, 1 against 1, 2 against 5: pair by pair 2 - 5, 1 - 1, -4 + 3.
    pairs = Pairs(one_token([-1, -2, -6], [-2, -1, -5]), one_token([-3, -3, -2], [-3, -6, -2]))
    assert of("aot", pairs, beta=0.5).tolist() == near(logistic(-1.5), logistic(0), logistic(-0.5))
    # cDPO's link adds flip times the logits.
    flipped = of("aot", pairs, beta=0.5, flip=0.2)
    assert flipped.tolist() == near(logistic(-1.5) - 0.3, logistic(0), logistic(-0.5) - 0.1)
    chosen, rejected = gradients("aot", pairs, beta=0.5)
    assert chosen == near(*(-0.5 * s(-z) for z in (-1.5, 0, -0.5)))
    assert rejected == near(*(0.5 * s(-z) for z in (-1.5, 0, -0.5)))


def test_aot_unpaired_compares_log_ratios_of_the_same_rank():
    # Chosen 1, 2, -2 have the ranks 1, 2, 0; rejected sorted -5, -1, 3: 1 + 1, 2 - 3, -2 + 5 whatever their order.
    pairs = given(rejected=[3.0, -1.0, -5.0])
    logits = [1.0, -0.5, 1.5]
    assert of("aot_unpaired", pairs, beta=0.5).tolist() == near(*(logistic(z) for z in logits))
    flipped = of("aot_unpaired", pairs, beta=0.5, flip=0.2)
    assert flipped.tolist() == near(*(logistic(z) + 0.2 * z for z in logits))
    chosen, rejected = gradients("aot_unpaired", pairs, beta=0.5)
    assert chosen == near(*(-0.5 * s(-z) for z in logits))
    # 3 was compared with the second chosen answer, -1 with the first.
    assert rejected == near(0.5 * s(0.5), 0.5 * s(-1), 0.5 * s(-1.5))


def test_dr_dpo_takes_the_log_of_the_mean_likelihood():
    # Temperature 1: exp(-l) is the sigmoid itself; logits 1, -1/2, 3/2.
    likelihoods = [s(1), s(-0.5), s(1.5)]
    # -log((0.731059 + 0.377541 + 0.817574) / 3).
    pairs = given()
    assert of("dr_dpo", pairs, beta=0.5).tolist() == near(*[0.443076780179298979] * 3)
    # The sum of three equal values: 3 times the slope of one, -beta s(z) s(-z) / (s(1) + s(-1/2) + s(3/2)).
    expected = [-3 * 0.5 * p * (1 - p) / sum(likelihoods) for p in likelihoods]
    assert gradients("dr_dpo", pairs, beta=0.5)[0] == near(*expected)
    # Temperature 2: square roots are averaged.
    value = -2 * math.log(sum(math.sqrt(p) for p in likelihoods) / 3)
    assert of("dr_dpo", pairs, beta=0.5, temperature=2.0).tolist() == near(value, value, value)


def test_the_averages_of_beta_dpo_forget_a_tenth_a_step_and_are_unbiased_from_the_first():
    bound = variants.get("beta_dpo").bind()
    # Margins 2, -1, 3: mean 4/3; deviations 2/3, -7/3, 5/3, squares 4/9 + 49/9 + 25/9 = 78/9, over 2 = 13/3.
    first = bound.update(given(), bound.initial())
    assert first == pytest.approx({"mean": 4 / 3, "std": math.sqrt(13 / 3), "count": 1.0}, rel=1e-13)
    # Weights 0.09 and 0.1 over their sum, 9/19 and 10/19. Margins 4 - 1, 1: mean 2, deviations 1 and -1, std sqrt 2.
    second = bound.update(given([4.0, 2.0], [1.0, 1.0], ([2, 1], [4, 1])), first)
    mean, std = (9 * 4 / 3 + 10 * 2) / 19, (9 * math.sqrt(13 / 3) + 10 * math.sqrt(2)) / 19
    assert second == pytest.approx({"mean": mean, "std": std, "count": 2.0}, rel=1e-13)


def test_the_averages_of_alpha_dpo_are_those_of_the_mean_margin():
    bound = variants.get("alpha_dpo").bind()
    # Mean margins 3/4, 1/2, 9/2: mean 23/12; deviations -14/12, -17/12, 31/12, squares 1446/144, over 2 = 241/48.
    first = bound.update(given(), bound.initial())
    assert first == pytest.approx({"mean": 23 / 12, "std": math.sqrt(241 / 48), "count": 1.0}, rel=1e-13)
    # Mean margins 4/2 - 1/4 = 7/4 and 2/1 - 1/1 = 1: mean 11/8, deviations 3/8 and -3/8, std 3/8 sqrt 2.
    second = bound.update(given([4.0, 2.0], [1.0, 1.0], ([2, 1], [4, 1])), first)
    mean, std = (9 * 23 / 12 + 10 * 11 / 8) / 19, (9 * math.sqrt(241 / 48) + 10 * 3 / 8 * math.sqrt(2)) / 19
    assert second == pytest.approx({"mean": mean, "std": std, "count": 2.0}, rel=1e-13)


@pytest.mark.parametrize("name", ["beta_dpo", "alpha_dpo"])
def test_one_pair_has_no_spread_so_that_the_spread_stays_what_it_was(name):
    bound = variants.get(name).bind()
    alone = given([3.0], [1.0], ([1], [1]))
    assert bound.update(alone, bound.initial()) == {"mean": 2.0, "std": 1.0, "count": 1.0}
    assert bound.update(alone, {"mean": 2.0, "std": 0.5, "count": 1.0})["std"] == pytest.approx(0.5, rel=1e-15)


def drawn(gumbels, **statistics) -> Pairs:
    """The three pairs with noise u such that -log(-log u) are the values given."""
    noise = [math.exp(-math.exp(-g)) for g in gumbels]
    return Pairs(
        with_extras(side(CHOSEN, LENGTHS[0]), noise=noise), side(REJECTED, LENGTHS[1]), {}, scalars(**statistics)
    )


def test_beta_dpo_draws_a_part_and_sets_beta_by_its_mean_margin():
    # Margins 2, -1, 3 about 1 in units of 2: 1/2, -1, 1; log-weights -1/8, -1/2, -1/2. With the draw 0, 1, 0 added: -1/8, 1/2,
    # -1/2: the third is left out. Mean margin of the part 1/2: beta 1/2 (1 + 0.6 (1/2 - 1)) = 0.35; logits 0.7, -0.35.
    pairs = drawn([0.0, 1.0, 0.0], mean=1.0, std=2.0, count=3.0)
    losses = of("beta_dpo", pairs, beta=0.5, drop=0.3)
    # Times 3 / 2, so that the mean over three is the mean over two.
    assert losses.tolist() == near(0.604779073328186840, 1.325073233128165548, 0.0)
    chosen, rejected = gradients("beta_dpo", pairs, beta=0.5, drop=0.3)
    assert chosen == near(-1.5 * 0.35 * s(-0.7), -1.5 * 0.35 * s(0.35), 0.0)
    assert rejected == near(1.5 * 0.35 * s(-0.7), 1.5 * 0.35 * s(0.35), 0.0)


def test_the_beta_of_beta_dpo_stays_positive():
    # Mean margin 4/3 against 11: 1 + 0.6 * (-29/3) is below 0, so beta is 0.001.
    pairs = drawn([0.0, 0.0, 0.0], mean=11.0, std=2.0, count=3.0)
    assert of("beta_dpo", pairs, beta=0.5, drop=0.0).tolist() == near(*(logistic(0.001 * m) for m in MARGINS))


def test_beta_dpo_keeps_a_pair_as_often_as_its_weight_says():
    # Of two pairs with margins 2 and -1 about 1 in units of 2, one is kept: the first with weight e^-1/8 against e^-1/2.
    shares = [(i + 0.5) / 25 for i in range(25)]
    kept = 0
    for first in shares:
        for second in shares:
            chosen = with_extras(single([2.0, -1.0]), noise=[first, second])
            pairs = Pairs(chosen, single([0.0, 0.0]), {}, scalars(mean=1.0, std=2.0))
            kept += bool(of("beta_dpo", pairs, drop=0.5)[0] > 0)
    assert kept / 625 == pytest.approx(1 / (1 + math.exp(-3 / 8)), abs=0.01)


def test_what_rounding_spreads_is_no_reason_to_leave_a_pair_out():
    # The last margin is 3/2 standard deviations out, of half a millionth of a nat: the noise alone decides.
    pairs = Pairs(with_extras(single([0.0, 0.0, 0.0, 1e-6]), noise=[0.4, 0.5, 0.6, 0.7]), single([0.0] * 4))
    bound = variants.get("beta_dpo").bind(drop=0.75)
    pairs = replace(pairs, statistics=scalars(**bound.update(pairs, bound.initial())))
    assert [bool(loss > 0) for loss in bound(pairs)] == [False, False, False, True]


@pytest.mark.parametrize(("drop", "size"), [(0.0, 10), (0.2, 8), (0.25, 7), (0.8, 2), (0.99, 1)])
def test_beta_dpo_keeps_the_share_it_should_and_one_pair_at_least(drop, size):
    chosen = with_extras(single([0.1 * i for i in range(10)]), noise=[0.05 + 0.09 * i for i in range(10)])
    pairs = Pairs(chosen, single([0.0] * 10), {}, scalars(mean=0.5, std=1.0))
    assert int((of("beta_dpo", pairs, drop=drop) > 0).sum()) == size


def test_alpha_dpo_asks_more_of_a_pair_that_is_already_far_apart():
    # Mean log-probabilities -6 + 1/2, -6 + 2, -6 - 1/2 and -5 - 1/4, -5 + 3/2, -5 - 5: margins -1/4, -1/2, 7/2.
    # z = (3/4 - 1/2) / (1/4), 0, 4 / (1/4) = 1, 0, 16; less 1/2 and z / 8, times 2: -7/4, -2, 2.
    statistics = scalars(mean=0.5, std=0.25, count=3.0)
    pairs = Pairs(side(CHOSEN, LENGTHS[0]), side(REJECTED, LENGTHS[1], reference=-5.0), {}, statistics)
    params = {"beta": 2.0, "gamma_ratio": 0.5, "alpha": 0.125}
    expected = [1.910224150438087227, 2.126928011042972496, 0.126928011042972496]
    assert of("alpha_dpo", pairs, **params).tolist() == near(*expected)
    # z is constant: beta s(-z) over the length, 2, 1, 4 tokens.
    assert gradients("alpha_dpo", pairs, **params)[0] == near(-2 * s(1.75) / 2, -2 * s(2), -2 * s(-2) / 4)


def test_eps_dpo_steps_where_the_margin_rises_or_falls_all_along():
    # Margins of log-probabilities: reference (chosen less rejected) 12, 6, -18, with log-ratios 14, 5, -15. Away from the
    # reference the chosen total is 1 higher, 1 lower, 1 higher; towards it 1 lower, 1 higher, 1 higher: steps 1, -1, 0.
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    totals = torch.tensor([[-11.0, -4.0, -26.0], [-25.0, -9.0, -11.0]])
    shifts = {"extrapolated": torch.tensor([1.0, -1.0, 1.0]), "interpolated": torch.tensor([-1.0, 1.0, 1.0])}
    chosen = {name: ((totals[0] + by) / lengths[0]).tolist() for name, by in shifts.items()}
    rejected = dict.fromkeys(shifts, (totals[1] / lengths[1]).tolist())
    pairs = Pairs(with_extras(side(CHOSEN, LENGTHS[0]), **chosen), with_extras(side(REJECTED, LENGTHS[1]), **rejected))
    # beta 1/2, epsilon 1/4: 0.4, 2/3, 1/2; times 2, -1, 3.
    losses = of("eps_dpo", pairs, beta=0.5, epsilon=0.25)
    assert losses.tolist() == near(0.371100665947777726, 1.081036753518738724, 0.201413277982752409)
    assert gradients("eps_dpo", pairs, beta=0.5, epsilon=0.25)[0] == near(
        -0.4 * s(-0.8), -2 / 3 * s(2 / 3), -0.5 * s(-1.5)
    )


@pytest.mark.parametrize(("name", "third"), [("wpo", 1.0), ("wpo_unclamped", math.e)])
def test_wpo_weighs_a_pair_by_how_likely_its_tokens_are(name, third):
    # Mean log-probabilities -5.5, -4, -6.5 and -6.25, -4.5, -11, less the collisions: -1/2, 0, 1/2 on either side.
    # The product of the weights: e^-1, 1, e, the last above 1.
    chosen = with_extras(side(CHOSEN, LENGTHS[0]), collision=[-5.0, -4.0, -7.0])
    pairs = Pairs(chosen, with_extras(side(REJECTED, LENGTHS[1]), collision=[-5.75, -4.5, -11.5]))
    weights = [math.exp(-1), 1.0, third]
    losses = [logistic(1), logistic(-0.5), logistic(1.5)]
    assert of(name, pairs, beta=0.5).tolist() == near(*(w * loss for w, loss in zip(weights, losses, strict=True)))
    # The weight is constant: were it not, the first token would also have the gradient weight * loss / length.
    slopes = [-0.5 * s(-z) for z in (1, -0.5, 1.5)]
    assert gradients(name, pairs, beta=0.5)[0] == near(*(w * g for w, g in zip(weights, slopes, strict=True)))
