"""Losses with token divergences, with a likelihood term or without a reference, worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.losses.registry import variants

# Three pairs. Log-probabilities of the tokens under the policy, then under the reference.
CHOSEN = [([-1.0, -2.0], [-1.5, -2.5]), ([-0.5], [-2.5]), ([-1.0, -1.0, -1.0, -1.0], [-1.0, -1.5, -0.5, -1.0])]
REJECTED = [([-3.0, -1.0, -1.0, -1.0], [-2.0, -1.0, -1.0, -1.0]), ([-4.0, -2.0], [-4.5, -4.5]), ([-7.0], [-3.0])]
# Policy minus reference, summed, of the chosen: (-3) - (-4) = 1, -0.5 + 2.5 = 2, -4 + 4 = 0,
# and of the rejected: (-6) - (-5) = -1, (-6) - (-9) = 3, -7 + 3 = -4.
MARGINS = [2.0, -1.0, 4.0]
# The chosen answers have 3, 0.5 and 4 nats, 7.5 on seven tokens. Chosen minus rejected, the summed log-probabilities are
# -3 + 6 = 3, -0.5 + 6 = 5.5, -4 + 7 = 3, the mean ones -1.5 + 1.5 = 0, -0.5 + 3 = 2.5, -1 + 7 = 6.

NO_REFERENCE = ["simpo", "alphapo", "cpo", "orpo", "orpo_seq", "slic_hf", "rrhf", "tpo", "sft"]
WITH_REFERENCE = ["tdpo1", "tdpo2", "mallows_dpo", "mallows_ipo", "dpo_nll", "dpo_nll_token", "dpo_nll_sum", "mpo"]
WIDTH = 6


def block(rows: list[list[float]], fill: float = 0.0) -> torch.Tensor:
    return torch.tensor([row + [fill] * (WIDTH - len(row)) for row in rows], dtype=torch.float64)


def side(rows, **extras: list[list[float]]) -> Side:
    mask = torch.tensor([[t < len(policy) for t in range(WIDTH)] for policy, _ in rows])
    # What stands at masked positions must not count.
    further = {name: block(values, fill=9.0).requires_grad_() for name, values in extras.items()}
    return Side(block([p for p, _ in rows]).requires_grad_(), block([r for _, r in rows]), mask, further)


@pytest.fixture
def three() -> Pairs:
    return Pairs(side(CHOSEN), side(REJECTED))


def one_token(chosen: float, rejected: float) -> Pairs:
    return Pairs(side([([chosen], [0.0])]), side([([rejected], [0.0])]))


def of(name: str, given: Pairs, **params: float) -> torch.Tensor:
    return variants.get(name).bind(**params)(given)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- token divergences


@pytest.fixture
def drifted() -> Pairs:
    # The first of the three pairs: margin 2 nats; divergences of 0.1 + 0.3 = 0.4 and 0.2 + 0.2 + 0.3 + 0.3 = 1 nats.
    chosen = side(CHOSEN[:1], reference_kl=[[0.1, 0.3]])
    return Pairs(chosen, side(REJECTED[:1], reference_kl=[[0.2, 0.2, 0.3, 0.3]]))


def test_tdpo1_takes_the_difference_of_the_divergences_from_the_margin(drifted):
    # beta 0.5: 0.5 (2 - (1 - 0.4)) = 0.7; log(1 + e^-0.7) = 0.4032.
    assert of("tdpo1", drifted, beta=0.5).tolist() == pytest.approx([softplus(-0.7)], rel=1e-14)


def test_tdpo1_lowers_the_drift_of_the_rejected_and_raises_that_of_the_chosen(drifted):
    of("tdpo1", drifted, beta=0.5).sum().backward()
    slope = 0.5 * sigmoid(-0.7)
    assert drifted.rejected.extras["reference_kl"].grad[0].tolist() == pytest.approx([slope] * 4 + [0.0] * 2)
    assert drifted.chosen.extras["reference_kl"].grad[0].tolist() == pytest.approx([-slope] * 2 + [0.0] * 4)
    assert drifted.chosen.policy.grad[0].tolist() == pytest.approx([-slope] * 2 + [0.0] * 4)


def test_tdpo2_weighs_the_divergences_with_alpha(drifted):
    # beta 0.5, alpha 0.5: 0.5 (2 - 0.5 (1 - 0.4)) = 0.85.
    assert of("tdpo2", drifted, beta=0.5, alpha=0.5).tolist() == pytest.approx([softplus(-0.85)], rel=1e-14)


def test_tdpo2_holds_the_drift_of_the_chosen_constant(drifted):
    of("tdpo2", drifted, beta=0.5, alpha=0.5).sum().backward()
    slope = 0.5 * sigmoid(-0.85)
    assert drifted.chosen.extras["reference_kl"].grad is None
    assert drifted.rejected.extras["reference_kl"].grad[0].tolist() == pytest.approx([slope / 2] * 4 + [0.0] * 2)
    assert drifted.chosen.policy.grad[0, 0].item() == pytest.approx(-slope)
    assert drifted.rejected.policy.grad[0, 0].item() == pytest.approx(slope)


# --- entropy of the reference


def with_entropy(chosen: list[float], rejected: list[float]) -> Pairs:
    """The first of the three pairs, margin 2 nats."""
    return Pairs(side(CHOSEN[:1], reference_entropy=[chosen]), side(REJECTED[:1], reference_entropy=[rejected]))


# Means over 2 and over 4 tokens: 0.2 and 0.3, together 0.25. Over all six tokens it would be 1.6 / 6.
QUARTER = ([0.1, 0.3], [0.3, 0.3, 0.2, 0.4])


def test_mallows_dpo_weighs_the_margin_with_the_mean_of_both_answers_entropies():
    # dispersion 0.5: the weight is 0.5 log 4 = log 2. beta 0.5, margin 2: log 2 again, and log(1 + 1/2).
    losses = of("mallows_dpo", with_entropy(*QUARTER), beta=0.5, dispersion=0.5)
    assert losses.tolist() == pytest.approx([math.log(1.5)], rel=1e-14)


def test_mallows_ipo_squares_the_distance_of_the_weighted_margin():
    # Weight log 2, margin 2, tau 0.25: (2 log 2 - 2)^2 = 4 (1 - log 2)^2; slope 2 (2 log 2 - 2) log 2.
    given = with_entropy(*QUARTER)
    losses = of("mallows_ipo", given, beta=0.25, dispersion=0.5)
    assert losses.tolist() == pytest.approx([4 * (1 - math.log(2)) ** 2], rel=1e-14)
    losses.sum().backward()
    slope = 4 * (math.log(2) - 1) * math.log(2)
    assert given.chosen.policy.grad[0, 0].item() == pytest.approx(slope, rel=1e-14)
    assert given.rejected.policy.grad[0, 0].item() == pytest.approx(-slope, rel=1e-14)


def test_mallows_dpo_pulls_less_where_the_reference_is_unsure():
    pulls = []
    for entropy in (0.1, 0.9):
        given = with_entropy([entropy] * 2, [entropy] * 4)
        of("mallows_dpo", given, beta=0.1).sum().backward()
        pulls.append(abs(given.chosen.policy.grad[0, 0].item()))
    # The weights are as log 10 to log (1 / 0.9), 22 to 1; the sigmoids are close to a half.
    assert pulls[0] > 15 * pulls[1]


def test_a_reference_that_is_sure_of_every_token_has_a_large_weight_not_an_infinite_one():
    # The floor is an entropy of 1e-6 of its maximum: 0.29 * 6 log 10 = 4.0065, on a margin of 2.
    sure = with_entropy([0.0] * 2, [0.0] * 4)
    assert of("mallows_ipo", sure, beta=0.5).tolist() == pytest.approx([(2 * 4.006498 - 1) ** 2], rel=1e-6)
    assert of("mallows_dpo", sure, beta=0.5).tolist() == pytest.approx([softplus(-4.006498)], rel=1e-5)


def test_a_reference_that_knows_nothing_leaves_no_pull():
    given = with_entropy([1.0] * 2, [1.0] * 4)
    losses = of("mallows_dpo", given)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([math.log(2)])
    assert given.chosen.policy.grad.abs().max().item() == 0.0


# --- likelihood beside DPO: 0.5 * margin is 1, -1/2, 2

DPO = [softplus(-1.0), softplus(0.5), softplus(-2.0)]
IN_NATS = {
    # Means of the three answers: 3 / 2, 0.5 / 1, 4 / 4.
    "dpo_nll": [1.5, 0.5, 1.0],
    "dpo_nll_sum": [3.0, 0.5, 4.0],
    # Pairs are averaged afterwards, so of seven tokens each pair has three times its nats over seven.
    "dpo_nll_token": [9 / 7, 1.5 / 7, 12 / 7],
}


@pytest.mark.parametrize("name", sorted(IN_NATS))
def test_dpo_with_likelihood_adds_the_weighted_nats_of_the_chosen(three, name):
    expected = [preferred + 0.2 * nats for preferred, nats in zip(DPO, IN_NATS[name], strict=True)]
    assert of(name, three, beta=0.5, weight=0.2).tolist() == pytest.approx(expected, rel=1e-14)


def test_the_three_likelihoods_of_one_batch_differ(three):
    # Means of the three pairs: (1.5 + 0.5 + 1) / 3 = 1, 7.5 / 3 = 2.5, 7.5 / 7.
    plain = sum(DPO) / 3
    found = {name: of(name, three, beta=0.5, weight=1.0).mean().item() - plain for name in IN_NATS}
    assert found == pytest.approx({"dpo_nll": 1.0, "dpo_nll_sum": 2.5, "dpo_nll_token": 7.5 / 7})


@pytest.mark.parametrize(
    ("name", "pulls"),
    [
        ("dpo_nll", [0.2 / 2, 0.2 / 1, 0.2 / 4]),
        ("dpo_nll_sum", [0.2, 0.2, 0.2]),
        ("dpo_nll_token", [0.2 * 3 / 7] * 3),
    ],
)
def test_only_the_token_mean_and_the_sum_pull_every_chosen_token_alike(three, name, pulls):
    of(name, three, beta=0.5, weight=0.2).sum().backward()
    for row, (margin, slope) in enumerate(zip(MARGINS, pulls, strict=True)):
        preferred = 0.5 * sigmoid(-0.5 * margin)
        assert three.chosen.policy.grad[row, 0].item() == pytest.approx(-preferred - slope, rel=1e-14)
        assert three.rejected.policy.grad[row, 0].item() == pytest.approx(preferred, rel=1e-14)


# --- mixture with a running shift


def test_mpo_is_the_weighted_sum_of_its_three_parts(three):
    # beta 0.5: rewards 0.5, 1, 0 of the chosen and -0.5, 1.5, -2 of the rejected; shift 0.5.
    # Chosen minus shift: 0, 0.5, -0.5; rejected minus shift: -1, 1, -2.5.
    classified = [softplus(0.0) + softplus(-1.0), softplus(-0.5) + softplus(1.0), softplus(0.5) + softplus(-2.5)]
    expected = [
        0.8 * preferred + 0.2 * sorted_out + nats
        for preferred, sorted_out, nats in zip(DPO, classified, IN_NATS["dpo_nll_token"], strict=True)
    ]
    given = replace(three, statistics={"delta": torch.tensor(0.5, dtype=torch.float64)})
    assert of("mpo", given, beta=0.5).tolist() == pytest.approx(expected, rel=1e-14)


def test_the_shift_of_mpo_is_the_mean_of_all_batches_mean_rewards(three):
    bound = variants.get("mpo").bind(beta=0.5)
    assert bound.initial() == {"delta": 0.0, "count": 0.0}
    with torch.no_grad():
        # Six rewards 0.5, 1, 0, -0.5, 1.5, -2: mean 0.5 / 6.
        first = bound.update(three, bound.initial())
        assert first == pytest.approx({"delta": 1 / 12, "count": 1.0})
        # One pair with log-ratios 4 and 2: rewards 2 and 1, mean 1.5. (1/12 + 3/2) / 2 = 19/24.
        second = bound.update(one_token(4.0, 2.0), first)
    assert second == pytest.approx({"delta": 19 / 24, "count": 2.0})
    assert first == pytest.approx({"delta": 1 / 12, "count": 1.0}), "the update is pure"


def test_the_shift_of_mpo_scales_with_beta(three):
    with torch.no_grad():
        shifts = [variants.get("mpo").bind(beta=b).update(three, {"delta": 0.0, "count": 0.0}) for b in (0.1, 0.3)]
    assert shifts[1]["delta"] == pytest.approx(3 * shifts[0]["delta"])


# --- without a reference


def test_simpo_asks_for_a_margin_of_mean_log_probabilities(three):
    # beta 2, ratio 0.5: 2 (0 - 0.5), 2 (2.5 - 0.5), 2 (6 - 0.5).
    expected = [softplus(1.0), softplus(-4.0), softplus(-11.0)]
    assert of("simpo", three, beta=2.0, gamma_ratio=0.5).tolist() == pytest.approx(expected, rel=1e-12)


def test_simpo_divides_the_gradient_of_an_answer_by_its_length(three):
    of("simpo", three, beta=2.0, gamma_ratio=0.5).sum().backward()
    # Pair 1: slope 2 sigmoid(1), over 2 chosen and 4 rejected tokens.
    assert three.chosen.policy.grad[0].tolist() == pytest.approx([-sigmoid(1.0)] * 2 + [0.0] * 4)
    assert three.rejected.policy.grad[0].tolist() == pytest.approx([sigmoid(1.0) / 2] * 4 + [0.0] * 2)


def test_alphapo_bends_the_reward():
    given = one_token(-math.log(2), -math.log(3))
    # alpha 1: 1 - 2 = -1 and 1 - 3 = -2, apart by 1; beta 2, ratio 0.5: 2 (1 - 0.5) = 1.
    assert of("alphapo", given, beta=2.0, gamma_ratio=0.5, alpha=1.0).tolist() == pytest.approx([softplus(-1.0)])
    # alpha -1: 1/2 - 1 and 1/3 - 1, apart by 1/6; beta 3: 0.5.
    assert of("alphapo", given, beta=3.0, gamma_ratio=0.0, alpha=-1.0).tolist() == pytest.approx([softplus(-0.5)])


def test_alphapo_pulls_by_the_slope_of_the_bent_reward():
    given = one_token(-math.log(2), -math.log(3))
    of("alphapo", given, beta=2.0, gamma_ratio=0.5, alpha=1.0).sum().backward()
    # The slope of 1 - e^-p is e^-p: 2 at -log 2, 3 at -log 3.
    assert given.chosen.policy.grad[0, 0].item() == pytest.approx(-2 * sigmoid(-1.0) * 2)
    assert given.rejected.policy.grad[0, 0].item() == pytest.approx(2 * sigmoid(-1.0) * 3)


def test_alphapo_goes_on_in_a_straight_line_where_the_exponential_would_overflow():
    # alpha 0.25 at -1e4 nats: an exponent of 2500, 2480 beyond 20. Reward -(e^20 - 1 + 2480 e^20) / 0.25, slope e^20.
    given = one_token(-1e4, 0.0)
    losses = of("alphapo", given, beta=2.0, gamma_ratio=0.0, alpha=0.25)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([2 * 4 * (2481 * math.exp(20.0) - 1)], rel=1e-12)
    assert given.chosen.policy.grad[0, 0].item() == pytest.approx(-2 * math.exp(20.0), rel=1e-12)


def test_cpo_takes_sums_in_one_part_and_the_token_mean_in_the_other(three):
    # beta 0.5: 0.5 times 3, 5.5, 3; the likelihood as in dpo_nll_token.
    parts = zip([softplus(-1.5), softplus(-2.75), softplus(-1.5)], IN_NATS["dpo_nll_token"], strict=True)
    expected = [preferred + 0.2 * nats for preferred, nats in parts]
    assert of("cpo", three, beta=0.5, weight=0.2).tolist() == pytest.approx(expected, rel=1e-14)


def test_orpo_adds_the_weighted_log_odds_ratio():
    # Probabilities 1/2 and 1/4: odds 1 and 1/3, ratio 3, sigmoid(log 3) = 3/4. Likelihood log 2.
    given = one_token(-math.log(2), -math.log(4))
    expected = math.log(2) + 0.5 * math.log(4 / 3)
    for name in ("orpo", "orpo_seq"):
        assert of(name, given, weight=0.5).tolist() == pytest.approx([expected], rel=1e-14)
    of("orpo", given, weight=0.5).sum().backward()
    # The slope of the log-odds is 1 / (1 - p): 2 and 4/3. 1 + 0.5 * 1/4 * 2 = 1.25; 0.5 * 1/4 * 4/3 = 1/6.
    assert given.chosen.policy.grad[0, 0].item() == pytest.approx(-1.25, rel=1e-14)
    assert given.rejected.policy.grad[0, 0].item() == pytest.approx(1 / 6, rel=1e-14)


def test_orpo_counts_every_token_alike_and_orpo_seq_every_answer(three):
    both = [of(name, three, weight=0.3).tolist() for name in ("orpo", "orpo_seq")]
    apart = [by_token - by_answer for by_token, by_answer in zip(*both, strict=True)]
    assert apart == pytest.approx([9 / 7 - 1.5, 1.5 / 7 - 0.5, 12 / 7 - 1.0])


def test_slic_hf_asks_for_delta_nats_and_keeps_the_likelihood(three):
    # delta 4: 4 - 3, 4 - 5.5 (nothing), 4 - 3.
    hinges = [1.0, 0.0, 1.0]
    expected = [hinge + 0.2 * nats for hinge, nats in zip(hinges, IN_NATS["dpo_nll_token"], strict=True)]
    losses = of("slic_hf", three, weight=0.2, delta=4.0)
    assert losses.tolist() == pytest.approx(expected, rel=1e-14)
    losses.sum().backward()
    likelihood = 0.2 * 3 / 7
    assert three.chosen.policy.grad[:, 0].tolist() == pytest.approx([-1 - likelihood, -likelihood, -1 - likelihood])
    assert three.rejected.policy.grad[:, 0].tolist() == [1.0, 0.0, 1.0]


def test_rrhf_ranks_means_without_a_margin(three):
    # The means are apart by 0, 2.5, 6 in favour of the chosen: no hinge, the likelihoods alone.
    assert of("rrhf", three, weight=2.0).tolist() == [1.5, 0.5, 1.0]
    # Turned round: 2 * 0 + 1.5, 2 * 2.5 + 3, 2 * 6 + 7.
    assert of("rrhf", Pairs(three.rejected, three.chosen), weight=2.0).tolist() == [1.5, 8.0, 19.0]


def test_tpo_takes_the_likelihood_of_the_gold_answers(three):
    # Gold answers of 1, 2 and 1 tokens with 1 + 2 + 0.5 nats: 3 / 4 of the nats each. Their reference is not known.
    unknown = float("nan")
    gold = side([([-1.0], [unknown]), ([-1.5, -0.5], [unknown] * 2), ([-0.5], [unknown])])
    parts = zip([softplus(-1.5), softplus(-2.75), softplus(-1.5)], [0.75, 1.5, 0.375], strict=True)
    losses = of("tpo", replace(three, others={"gold": gold}), beta=0.5, weight=0.2)
    assert losses.tolist() == pytest.approx([preferred + 0.2 * nats for preferred, nats in parts], rel=1e-14)
    losses.sum().backward()
    assert gold.policy.grad[1].tolist() == pytest.approx([-0.15, -0.15, 0.0, 0.0, 0.0, 0.0])
    assert three.chosen.policy.grad[0, 0].item() == pytest.approx(-0.5 * sigmoid(-1.5))


def test_sft_is_the_mean_over_all_chosen_tokens_and_leaves_the_rejected_alone(three):
    losses = of("sft", three, weight=2.0)
    assert losses.mean().item() == pytest.approx(2 * 7.5 / 7, rel=1e-14)
    losses.mean().backward()
    assert three.chosen.policy.grad[2].tolist() == pytest.approx([-2 / 7] * 4 + [0.0] * 2)
    assert three.rejected.policy.grad is None


# --- far from where training starts


def lopsided(dtype: torch.dtype, margins: list[float]) -> Pairs:
    """One-token answers: the log-ratio is all on the chosen side, then all on the rejected one."""

    def made(logratios: torch.Tensor) -> Side:
        # Lowered under the policy, or lowered under the reference: no log-probability passes 0.
        policy, reference = logratios.clamp(max=0.0), (-logratios).clamp(max=0.0)
        extras = {
            "reference_kl": torch.full_like(policy, 0.2).requires_grad_(),
            "reference_entropy": torch.full_like(policy, 0.1),
        }
        return Side(policy.requires_grad_(), reference, torch.ones_like(policy, dtype=torch.bool), extras)

    given = torch.tensor(margins, dtype=dtype)[:, None]
    zeros = torch.zeros_like(given)
    return Pairs(
        made(torch.cat([given, zeros])),
        made(torch.cat([zeros, -given])),
        statistics={"delta": torch.tensor(0.5, dtype=dtype)},
        others={"gold": made(torch.cat([zeros, -given]))},
    )


def outcome(name: str, given: Pairs, **params: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    loss = of(name, given, **params)
    loss.sum().backward()
    sides = [given.chosen, given.rejected, given.gold]
    leaves = [leaf for s in sides for leaf in (s.policy, s.extras["reference_kl"])]
    return loss.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("name", [*WITH_REFERENCE, *NO_REFERENCE])
@pytest.mark.parametrize("end", [0, -1])
def test_loss_and_gradient_are_finite_ten_thousand_nats_out_on_either_side(name, end):
    variant = variants.get(name)
    for parameter in variant.parameters.values():
        for value in parameter.grid or [parameter.default]:
            given = lopsided(torch.float32, [-1e4, -1e3, -100.0, 0.0, 100.0, 1e3, 1e4])
            params = {variant.strength: variant.beta_grid[end], parameter.name: value}
            loss, gradients = outcome(name, given, **params)
            assert loss.isfinite().all(), params
            assert all(g.isfinite().all() for g in gradients), params


@pytest.mark.parametrize("name", [*WITH_REFERENCE, *NO_REFERENCE])
def test_loss_and_gradient_are_finite_in_bfloat16(name):
    loss, gradients = outcome(name, lopsided(torch.bfloat16, [-3.0, -1.0, 0.0, 1.0, 3.0]))
    assert loss.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", ["orpo", "orpo_seq"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_answer_that_is_certain_has_finite_odds_and_keeps_its_pull(name, dtype):
    # Where two branches of log(1 - e^p) meet in a `where`, the gradient here is not a number.
    certain = [0.0, -1e-9, -1e-9, 0.0, -1.0, 0.0, -1e-9]
    other = [-1.0, -1.0, 0.0, 0.0, 0.0, -1e-9, -1e-9]
    mask = torch.ones(7, 1, dtype=torch.bool)
    sides = [
        Side(torch.tensor(p, dtype=dtype)[:, None].requires_grad_(), torch.zeros(7, 1, dtype=dtype), mask)
        for p in (certain, other)
    ]
    loss = of(name, Pairs(*sides), weight=0.5)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert sides[0].policy.grad.isfinite().all()
    assert sides[1].policy.grad.isfinite().all()
    assert (sides[0].policy.grad < 0).all()
    assert (sides[1].policy.grad > 0).all()
