"""Losses of the margin, worked out by hand, and their behaviour where float32 gives out."""

import math

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.losses.registry import variants

# Three pairs. Log-probabilities of the tokens under the policy, then under the reference.
CHOSEN = [([-1.0, -2.0], [-1.5, -2.5]), ([-0.5], [-2.5]), ([-1.0, -2.0, -1.0, -1.0], [-2.0, -1.5, -1.5, -2.0])]
REJECTED = [([-3.0, -1.0, -2.0, -1.0], [-2.0, -1.5, -1.5, -2.0]), ([-4.0, -2.0], [-4.5, -4.5]), ([-5.0], [-3.0])]
# Policy minus reference, chosen:   0.5 0.5 -> 1            2 -> 2          1 -0.5 0.5 1 -> 2
# and rejected:                     -1 0.5 -0.5 1 -> 0      0.5 2.5 -> 3    -2 -> -2
MARGINS = [1.0, -1.0, 4.0]
# Divided by 2, 1, 4 tokens: 1/2, 2, 1/2; divided by 4, 2, 1 tokens: 0, 3/2, -2.
MEAN_MARGINS = [0.5, 0.5, 2.5]
NOISE_CHOSEN = [[0.1, 0.9], [0.5], [0.4, 0.5, 0.9, 0.1]]
NOISE_REJECTED = [[0.3, 0.8, 0.2, 0.6], [0.2, 0.7], [0.5]]
WIDTH = 6

# fmt: off
OURS = (
    "rdpo", "hinge", "exo", "exo_unnormalised", "discopop", "cauchy", "odpo", "dpo_norm", "r_dpo",
    "ld_dpo", "ld_dpo_policy", "sampo", "d2po", "ipo_scaled", "dpo_ref_free", "f_dpo_forward_kl", "f_dpo_js", "f_dpo_alpha", "chipo",
)
# fmt: on


def filled(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([row + [0.0] * (WIDTH - len(row)) for row in rows], dtype=torch.float64)


def side(rows, noise) -> Side:
    policy, reference = (filled([row[i] for row in rows]) for i in (0, 1))
    mask = torch.tensor([[t < len(row[0]) for t in range(WIDTH)] for row in rows])
    return Side(policy.requires_grad_(), reference, mask, {"noise": filled(noise)})


def three(scores=((1.0, 0.0), (1.0, 0.0), (1.0, 0.0))) -> Pairs:
    columns = dict(zip(("score_chosen", "score_rejected"), torch.tensor(scores, dtype=torch.float64).T, strict=True))
    return Pairs(side(CHOSEN, NOISE_CHOSEN), side(REJECTED, NOISE_REJECTED), columns)


def of_ratios(chosen, rejected, dtype=torch.float64) -> Pairs:
    """One-token answers with these log-ratios, scores a point apart; both policies can be differentiated."""
    sides = []
    for ratios in (chosen, rejected):
        policy = torch.tensor(ratios, dtype=dtype)[:, None].requires_grad_()
        noise = torch.full_like(policy, 0.5, requires_grad=False)
        sides.append(Side(policy, torch.zeros_like(noise), torch.ones_like(noise, dtype=torch.bool), {"noise": noise}))
    scores = torch.ones(len(chosen), dtype=dtype)
    return Pairs(sides[0], sides[1], {"score_chosen": scores, "score_rejected": 0 * scores})


def taken(name: str, given: Pairs, **params):
    """Losses, and the gradients on the tokens of both answers."""
    loss = variants.get(name).bind(**params)(given)
    loss.sum().backward()
    return loss.tolist(), given.chosen.policy.grad, given.rejected.policy.grad


def logistic(*logits: float) -> list[float]:
    return [math.log1p(math.exp(-z)) for z in logits]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_margins_are_the_ones_worked_out_above():
    assert three().margin.tolist() == MARGINS
    assert three().mean_margin.tolist() == MEAN_MARGINS


def test_rdpo_is_dpo_less_a_share_of_the_logits():
    # beta 0.5: logits z = 1/2, -1/2, 2. flip 0.2: (0.8 l(z) - 0.2 l(-z)) / 0.6 with l(-z) = l(z) + z, so l(z) - z / 3:
    # 0.474077 - 0.166667, 0.974077 + 0.166667, 0.126928 - 0.666667.
    losses, chosen, rejected = taken("rdpo", three(), beta=0.5, flip=0.2)
    assert losses == pytest.approx([0.3074103174, 1.1407436508, -0.5397386556], rel=1e-9)
    # Slope in the margin: -0.5 (sigma(-z) + 1/3).
    slopes = [-0.5 * (sigmoid(-z) + 1 / 3) for z in (0.5, -0.5, 2.0)]
    assert chosen[:, 0].tolist() == pytest.approx(slopes)
    assert rejected[:, 0].tolist() == pytest.approx([-s for s in slopes])


def test_hinge_is_one_minus_the_logits_down_to_zero():
    # beta 0.5: 1 - 1/2, 1 + 1/2, and 1 - 2 is below 0, where nothing pulls.
    losses, chosen, rejected = taken("hinge", three(), beta=0.5)
    assert losses == [0.5, 1.5, 0.0]
    assert chosen[:, 0].tolist() == [-0.5, -0.5, 0.0]
    assert rejected[:, 0].tolist() == [0.5, 0.5, 0.0]


def test_exo_is_the_reverse_kl_to_the_smoothed_label():
    # z = log 3: sigma 3/4. smoothing 0.2: 3/4 log(0.75 / 0.8) + 1/4 log(0.25 / 0.2) = -0.048404 + 0.055786.
    # z = 0: 1/2 log(0.5 / 0.8) + 1/2 log(0.5 / 0.2). z = -log 3: 1/4 log(0.25 / 0.8) + 3/4 log(0.75 / 0.2).
    z = math.log(3)
    losses, slope, _ = taken("exo", of_ratios([2 * z, 0.0, -2 * z], [0.0] * 3), beta=0.5, smoothing=0.2)
    assert losses == pytest.approx([0.0073819970, 0.2231435513, 0.7005291775], rel=1e-8)
    # Slope in z: sigma(z) sigma(-z) (z - log 4), as log((1 - 0.2) / 0.2) = log 4.
    slopes = [0.5 * p * (1 - p) * (x - math.log(4)) for p, x in ((0.75, z), (0.5, 0.0), (0.25, -z))]
    assert slope[:, 0].tolist() == pytest.approx(slopes)


def test_exo_unnormalised_has_a_label_whose_first_part_is_one():
    # log epsilon -2, z = log 3: 3/4 log(3/4) + 1/4 (log(1/4) + 2) = -0.562335 + 0.5; z = 0: -log 2 + 1;
    # z = -log 3: 1/4 log(1/4) + 3/4 (log(3/4) + 2) = -0.562335 + 1.5.
    z = math.log(3)
    given = of_ratios([2 * z, 0.0, -2 * z], [0.0] * 3)
    losses, slope, _ = taken("exo_unnormalised", given, beta=0.5, log_epsilon=-2.0)
    assert losses == pytest.approx([-0.0623351446, 0.3068528194, 0.9376648554], rel=1e-8)
    assert slope[:, 0].tolist() == pytest.approx([0.5 * 0.1875 * (z - 2), 0.5 * 0.25 * -2, 0.5 * 0.1875 * (-z - 2)])


def test_discopop_blends_a_logistic_and_an_exponential_loss():
    # tau 1/2, z = log 3: blend sigma(2 log 3) = 9/10: 1/10 log(4/3) + 9/10 1/3 = 0.028768 + 0.3.
    # z = -log 3: 9/10 log 4 + 1/10 3 = 1.247665 + 0.3.
    z = math.log(3)
    losses, _, _ = taken("discopop", of_ratios([2 * z, 0.0, -2 * z], [0.0] * 3), beta=0.5, tau=0.5)
    assert losses == pytest.approx([0.3287682072, (math.log(2) + 1) / 2, 1.5476649250], rel=1e-9)


def test_discopop_starts_by_pushing_the_chosen_answer_down():
    # Slope at 0: (1 - log 2) / (4 tau) - 3/4 = 1.534264 - 0.75 with tau 0.05; times beta.
    _, slope, _ = taken("discopop", of_ratios([0.0], [0.0]), beta=0.05)
    assert slope[0, 0].item() == pytest.approx(0.05 * 0.7842640972, rel=1e-9)


def test_cauchy_takes_the_probability_from_the_arctangent():
    # z = 1: 1/2 + 1/4; z = -1: 1/2 - 1/4; z = sqrt(3): 1/2 + 1/3.
    losses, slope, _ = taken("cauchy", of_ratios([2.0, -2.0, 2 * math.sqrt(3)], [0.0] * 3), beta=0.5)
    assert losses == pytest.approx([math.log(4 / 3), math.log(4), math.log(6 / 5)])
    # Slope in z: -1 / (pi (1 + z^2) p).
    assert slope[:, 0].tolist() == pytest.approx(
        [-0.5 / (math.pi * 2 * 0.75), -0.5 / (math.pi * 2 * 0.25), -0.5 / (math.pi * 4 * 5 / 6)]
    )


def test_odpo_asks_for_more_margin_where_the_scores_are_farther_apart():
    # beta 0.5, alpha 2. Gap 1: logits 1/2 - 0. Gap e: -1/2 - 2. A gap of -3 counts as 1/e: 2 + 2.
    given = three(scores=((1.0, 0.0), (math.e + 2, 2.0), (-1.0, 2.0)))
    losses, chosen, _ = taken("odpo", given, beta=0.5, alpha=2.0, smallest_gap=1 / math.e)
    assert losses == pytest.approx(logistic(0.5, -2.5, 4.0))
    assert chosen[:, 0].tolist() == pytest.approx([-0.5 * sigmoid(z) for z in (-0.5, 2.5, -4.0)])


def test_odpo_starts_at_the_log_of_one_plus_the_gap_to_the_alpha():
    # At margin 0: log(1 + e^(alpha log gap)): gap 4, alpha 1/2: log 3.
    given = of_ratios([0.0], [0.0])
    scored = Pairs(
        given.chosen, given.rejected, {"score_chosen": torch.tensor([4.0]), "score_rejected": torch.zeros(1)}
    )
    assert taken("odpo", scored, alpha=0.5)[0] == pytest.approx([math.log(3)])


def test_dpo_norm_is_the_logistic_loss_of_the_mean_margin():
    # beta 2: logits 1, 1, 5; a chosen token pulls by beta sigma(-z) over 2, 1, 4 tokens.
    losses, chosen, _ = taken("dpo_norm", three(), beta=2.0)
    assert losses == pytest.approx(logistic(1.0, 1.0, 5.0))
    assert chosen[:, 0].tolist() == pytest.approx([-sigmoid(-1), -2 * sigmoid(-1), -sigmoid(-5) / 2])


def test_r_dpo_adds_alpha_for_every_token_by_which_the_chosen_answer_is_longer():
    # beta 0.5, alpha 0.25, lengths 2 - 4, 1 - 2, 4 - 1: logits 1/2 - 1/2, -1/2 - 1/4, 2 + 3/4.
    assert taken("r_dpo", three(), beta=0.5, alpha=0.25)[0] == pytest.approx(logistic(0.0, -0.75, 2.75))


def test_ld_dpo_weighs_the_log_ratios_of_the_longer_answers_tail():
    # beta 1, alpha 1/2, shorter lengths 2, 1, 1. Rejected: -1/2 + 1/4 = -1/4; 1/2 + 5/4 = 7/4. Chosen, third: 1 + 1/2.
    losses, chosen, rejected = taken("ld_dpo", three(), beta=1.0, alpha=0.5)
    assert losses == pytest.approx(logistic(1 + 0.25, 2 - 1.75, 1.5 + 2))
    assert chosen[2].tolist() == pytest.approx([-sigmoid(-3.5) * w for w in (1, 0.5, 0.5, 0.5, 0, 0)])
    assert rejected[0].tolist() == pytest.approx([sigmoid(-1.25) * w for w in (1, 1, 0.5, 0.5, 0, 0)])


def test_ld_dpo_policy_weighs_the_policys_tail_alone():
    # Rejected: -4 - 3/2 + 7 = 3/2; -4 - 1 + 9 = 4. Chosen, third: -1 - 2 + 7 = 4.
    losses, _, rejected = taken("ld_dpo_policy", three(), beta=1.0, alpha=0.5)
    assert losses == pytest.approx(logistic(1 - 1.5, 2 - 4, 4 + 2))
    assert rejected[0].tolist() == pytest.approx([sigmoid(0.5) * w for w in (1, 1, 0.5, 0.5, 0, 0)])


def test_ld_dpo_policy_starts_with_a_bonus_for_the_longer_answer():
    # Half of the tail's negative log-probability under the reference: 3.5 / 2 and 4.5 / 2 for the rejected, 5 / 2 for the chosen.
    rows = [[(row[1], row[1]) for row in rows] for rows in (CHOSEN, REJECTED)]
    start = Pairs(side(rows[0], NOISE_CHOSEN), side(rows[1], NOISE_REJECTED))
    assert taken("ld_dpo_policy", start, beta=1.0, alpha=0.5)[0] == pytest.approx(logistic(-1.75, -2.25, 2.5))
    # 200 tokens against 300 of -1.2 nats: 0.1 x 1/2 x 120 nats are logits of -6.
    long = [
        Side(torch.full((1, 300), -1.2), torch.full((1, 300), -1.2), torch.arange(300)[None] < n) for n in (200, 300)
    ]
    assert variants.get("ld_dpo_policy").bind()(Pairs(*long)).item() == pytest.approx(6.00247, rel=1e-5)


def test_sampo_keeps_as_many_tokens_as_the_shorter_answer_has_those_with_the_most_noise():
    # Rejected, first: noise 0.8 and 0.6 keep 1/2 + 1. Second: 0.7 keeps 5/2. Chosen, third: 0.9 keeps 1/2.
    losses, chosen, rejected = taken("sampo", three(), beta=1.0)
    assert losses == pytest.approx(logistic(1 - 1.5, 2 - 2.5, 0.5 + 2))
    assert chosen[2].tolist() == pytest.approx([0, 0, -sigmoid(-2.5), 0, 0, 0])
    assert rejected[0].tolist() == pytest.approx([0, sigmoid(0.5), 0, sigmoid(0.5), 0, 0])


def test_d2po_discounts_the_first_token_once():
    # gamma 1/2: 1/4 + 1/8 against -1/2 + 1/8 - 1/16 + 1/16; 1 against 1/4 + 5/8; 1/2 - 1/8 + 1/16 + 1/16 against -1.
    losses, chosen, _ = taken("d2po", three(), beta=1.0, gamma=0.5)
    assert losses == pytest.approx(logistic(0.375 + 0.375, 1 - 0.875, 0.5 + 1))
    assert chosen[2].tolist() == pytest.approx([-sigmoid(-1.5) * w for w in (0.5, 0.25, 0.125, 0.0625, 0, 0)])


def test_ipo_scaled_squares_the_distance_of_tau_times_the_margin_to_one_half():
    # tau 1/4: (1/4 - 1/2)^2, (-1/4 - 1/2)^2, (1 - 1/2)^2; slopes 2 tau times what is squared.
    losses, chosen, rejected = taken("ipo_scaled", three(), beta=0.25)
    assert losses == [0.0625, 0.5625, 0.25]
    assert chosen[:, 0].tolist() == [-0.125, -0.375, 0.25]
    assert rejected[:, 0].tolist() == [0.125, 0.375, -0.25]


def test_dpo_ref_free_takes_the_log_probabilities_for_the_log_ratios():
    # -3 + 7, -1/2 + 6, -5 + 5; beta 0.5.
    assert taken("dpo_ref_free", three(), beta=0.5)[0] == pytest.approx(logistic(2.0, 2.75, 0.0))


def test_forward_kl_compares_inverse_ratios():
    # e^-a = 1/2, 1, 3 and e^-b = 1, 1/4, 1/2; beta 2: logits 2 (1 - 1/2), 2 (1/4 - 1), 2 (1/2 - 3).
    given = of_ratios([math.log(2), 0.0, -math.log(3)], [0.0, math.log(4), math.log(2)])
    losses, chosen, rejected = taken("f_dpo_forward_kl", given, beta=2.0)
    assert losses == pytest.approx(logistic(1.0, -1.5, -5.0))
    assert chosen[:, 0].tolist() == pytest.approx([-2 * sigmoid(-1) / 2, -2 * sigmoid(1.5), -2 * sigmoid(5) * 3])
    assert rejected[:, 0].tolist() == pytest.approx([2 * sigmoid(-1), 2 * sigmoid(1.5) / 4, 2 * sigmoid(5) / 2])


def test_js_compares_the_sigmoids_of_the_log_ratios():
    # sigma(log 3) = 3/4, sigma(0) = 1/2, their ratio 3/2; beta 2: log(1 + (2/3)^2), turned round log(1 + (3/2)^2).
    losses, chosen, _ = taken("f_dpo_js", of_ratios([math.log(3), 0.0], [0.0, math.log(3)]), beta=2.0)
    assert losses == pytest.approx([math.log(13 / 9), math.log(13 / 4)])
    # Slope: -beta (1 - p) sigma(-a), with p = 9/13 and 4/13, sigma(-a) = 1/4 and 1/2.
    assert chosen[:, 0].tolist() == pytest.approx([-2 * 4 / 13 / 4, -2 * 9 / 13 / 2])


def test_alpha_divergence_compares_powers_of_the_ratios():
    # alpha 1/4: e^(-a/4) = 1/2 and 3, e^(-b/4) = 1 and 1/2; beta 1/2: logits 2 (1 - 1/2), 2 (1/2 - 3).
    given = of_ratios([math.log(16), -math.log(81)], [0.0, math.log(16)])
    losses, chosen, _ = taken("f_dpo_alpha", given, beta=0.5, alpha=0.25)
    assert losses == pytest.approx(logistic(1.0, -5.0))
    assert chosen[:, 0].tolist() == pytest.approx([-0.5 * sigmoid(-1) / 2, -0.5 * sigmoid(5) * 3])


def test_chipo_adds_the_ratio_to_its_logarithm_and_clips_the_difference():
    # phi = 2 + log 2 against 1, and 1 against 3 + log 3; beta 1/2: logits 1/2 + log(2) / 2 and -1 - log(3) / 2.
    ratios = [math.log(2), 0.0], [0.0, math.log(3)]
    losses, chosen, _ = taken("chipo", of_ratios(*ratios), beta=0.5)
    logits = [0.8465735903, -1.5493061443]
    assert losses == pytest.approx(logistic(*logits), rel=1e-9)
    assert chosen[:, 0].tolist() == pytest.approx([-0.5 * sigmoid(-logits[0]) * 3, -0.5 * sigmoid(-logits[1]) * 2])
    # R = 1/4: both logits are held at 1/2 and -1/2, and nothing pulls.
    losses, chosen, rejected = taken("chipo", of_ratios(*ratios), beta=0.5, reward_bound=0.25)
    assert losses == pytest.approx(logistic(0.5, -0.5))
    assert not chosen.any()
    assert not rejected.any()


FAR = [-1e4, -1e3, -100.0, 0.0, 100.0, 1e3, 1e4]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("end", [0, -1])
def test_everything_is_finite_with_ten_thousand_nats_on_either_side(name, end):
    variant = variants.get(name)
    beta = variant.beta_grid[end]
    for ratios in ((FAR, [0.0] * 7), ([0.0] * 7, FAR), (FAR, FAR), (FAR, FAR[::-1])):
        for grads in taken(name, of_ratios(*ratios, dtype=torch.float32), beta=beta):
            assert torch.as_tensor(grads).isfinite().all()


@pytest.mark.parametrize("name", OURS)
def test_everything_is_finite_in_bfloat16_within_three_nats(name):
    near = [-3.0, -1.0, 0.0, 1.0, 3.0]
    for ratios in ((near, [0.0] * 5), ([0.0] * 5, near)):
        for found in taken(name, of_ratios(*ratios, dtype=torch.bfloat16)):
            assert torch.as_tensor(found).isfinite().all()


def far(name: str, chosen, rejected, **params):
    losses, slope, push = taken(name, of_ratios(chosen, rejected, dtype=torch.float32), **params)
    return losses, slope[:, 0].tolist(), push[:, 0].tolist()


def test_discopop_is_the_logistic_loss_for_a_pair_ranked_very_wrongly():
    losses, slope, _ = far("discopop", [-1e3, -1e4], [0.0, 0.0], beta=0.1)
    assert losses == pytest.approx([100.0, 1000.0])
    assert slope == pytest.approx([-0.1, -0.1])


def test_rdpo_falls_without_end_at_a_constant_pull():
    # flip 0.2: -1000 / 3, and 0.1 / 3 in nats.
    losses, slope, _ = far("rdpo", [1e4], [0.0], beta=0.1, flip=0.2)
    assert losses == pytest.approx([-333.3333], rel=1e-6)
    assert slope == pytest.approx([-0.0333333], rel=1e-5)


def test_exo_gives_up_on_a_pair_ranked_very_wrongly():
    losses, slope, _ = far("exo", [-1e4, 1e4], [0.0, 0.0], beta=0.1, smoothing=1e-3)
    assert losses == pytest.approx([math.log(1000), -math.log(0.999)], rel=1e-5)
    assert slope == [0.0, 0.0]


def test_cauchy_keeps_its_digits_where_the_probability_is_small():
    # z = -5000: the probability is 1 / (5000 pi) up to a part in 10^8; slope 1 / z, times beta.
    losses, slope, _ = far("cauchy", [-1e4], [0.0], beta=0.5)
    assert losses == pytest.approx([math.log(5000 * math.pi)], rel=1e-6)
    assert slope == pytest.approx([-1e-4], rel=1e-6)


def test_forward_kl_goes_on_pulling_where_its_exponential_is_continued():
    # Up to 30 nats it is exact; beyond, the tangent's slope is e^30.
    losses, slope, _ = far("f_dpo_forward_kl", [-25.0, -500.0, -1e4], [0.0] * 3, beta=0.1)
    assert losses[0] == pytest.approx(0.1 * math.expm1(25), rel=1e-5)
    assert losses[1:] == pytest.approx([0.1 * math.exp(30) * (1 + 470), 0.1 * math.exp(30) * (1 + 9970)], rel=1e-5)
    assert slope == pytest.approx([-0.1 * math.exp(25), -0.1 * math.exp(30), -0.1 * math.exp(30)], rel=1e-5)


def test_alpha_divergence_goes_on_pulling_where_its_exponential_is_continued():
    # alpha 1/2: 30 is reached at a log-ratio of -60.
    losses, slope, _ = far("f_dpo_alpha", [-50.0, -1e4], [0.0, 0.0], beta=0.1, alpha=0.5)
    assert losses == pytest.approx([0.2 * math.expm1(25), 0.2 * math.exp(30) * (1 + 4970)], rel=1e-5)
    assert slope == pytest.approx([-0.1 * math.exp(25), -0.1 * math.exp(30)], rel=1e-5)


def test_chipo_keeps_the_margin_where_both_ratios_pass_its_clamp():
    # Both exponentials are e^20 and cancel; what is left is beta times 41 - 40.
    losses, slope, push = far("chipo", [41.0], [40.0], beta=0.05)
    assert losses == pytest.approx(logistic(0.05), rel=1e-6)
    assert slope == pytest.approx([-0.05 * sigmoid(-0.05)], rel=1e-6)
    assert push == pytest.approx([0.05 * sigmoid(-0.05)], rel=1e-6)


def test_chipo_has_no_gradient_past_its_clip():
    _, slope, push = far("chipo", [-1e3, 1e3, 0.0], [0.0, 0.0, 10.0], beta=0.05)
    assert slope == [0.0, 0.0, 0.0]
    assert push == [0.0, 0.0, 0.0]


def test_odpo_takes_equal_scores_for_the_smallest_gap():
    given = of_ratios([0.0, 0.0], [0.0, 0.0], dtype=torch.float32)
    equal = Pairs(
        given.chosen,
        given.rejected,
        {"score_chosen": torch.tensor([2.0, 1.0]), "score_rejected": torch.tensor([2.0, 5.0])},
    )
    # log(1 + 0.001) twice.
    assert taken("odpo", equal, alpha=1.0)[0] == pytest.approx([9.995003e-4, 9.995003e-4], rel=1e-6)
