"""Losses with token divergences, with a likelihood term or without a reference: what they become, and what they keep."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpobench import Pairs, Side
from dpobench.losses.registry import variants
from tests.strategies import of, pairs, same, sides, swapped

BETAS = st.floats(0.01, 2.0)
WEIGHTS = st.floats(0.01, 3.0)
few = settings(max_examples=15, deadline=None, derandomize=True)

MONOTONE = [
    *("mallows_dpo", "dpo_nll", "dpo_nll_token", "dpo_nll_sum", "mpo", "simpo", "alphapo", "cpo"),
    *("orpo", "orpo_seq", "slic_hf", "rrhf", "tpo", "sft"),
]
NO_REFERENCE = ["simpo", "alphapo", "cpo", "orpo", "orpo_seq", "slic_hf", "rrhf", "tpo", "sft"]
RATIOS = ["dpo_nll_token", "mpo", "cpo", "orpo", "slic_hf", "tpo", "sft"]
OTHERS = ["tdpo1", "tdpo2", "mallows_ipo"]
BOTH = ("chosen", "rejected")


@st.composite
def batches(draw: st.DrawFn, *, length: int | None = None) -> Pairs:
    """One to three pairs with everything that these losses ask for."""
    batch = draw(pairs(length=length))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def dressed(side: Side) -> Side:
        drawn = torch.rand(2, *side.mask.shape, generator=generator, dtype=torch.float64)
        return replace(side, extras={"reference_kl": 3 * drawn[0], "reference_entropy": 0.01 + 0.98 * drawn[1]})

    delta = 2 * torch.rand((), generator=generator, dtype=torch.float64) - 1
    return changed(replace(batch, statistics={"delta": delta}, others={"gold": draw(sides(len(batch)))}), dressed)


def changed(batch: Pairs, change: Callable[[Side], Side], names: Sequence[str] = BOTH) -> Pairs:
    """The batch with the sides named replaced."""
    return replace(batch, **{name: change(getattr(batch, name)) for name in names})


def without_reference(batch: Pairs) -> Pairs:
    """Log-ratios become log-probabilities."""
    return changed(batch, lambda s: replace(s, reference=torch.zeros_like(s.reference)))


def moved(batch: Pairs, policy: float, reference: float = 0.0, names: Sequence[str] = BOTH) -> Pairs:
    """Constants added to every token of the sides named."""
    return changed(batch, lambda s: replace(s, policy=s.policy + policy, reference=s.reference + reference), names)


def with_extra(batch: Pairs, name: str, value: float) -> Pairs:
    """One of the needs the same at every token."""
    return changed(batch, lambda s: replace(s, extras={**s.extras, name: torch.full_like(s.policy, value)}))


def gradients(name: str, batch: Pairs, **params: float) -> dict[str, torch.Tensor]:
    """Gradient of the batch's total at every token, and at every token's divergence."""

    def leaf(side: Side) -> Side:
        extras = {key: value.clone().requires_grad_() for key, value in side.extras.items()}
        return replace(side, policy=side.policy.clone().requires_grad_(), extras=extras)

    leaves = changed(batch, leaf)
    of(name, leaves, **params).sum().backward()
    both = {name: getattr(leaves, name) for name in BOTH}
    gradients = {name: side.policy.grad for name, side in both.items()}
    gradients |= {f"{name} drift": side.extras["reference_kl"].grad for name, side in both.items()}
    return {what: torch.zeros_like(batch.chosen.policy) if g is None else g for what, g in gradients.items()}


# --- token divergences


@few
@given(batches(), BETAS)
def test_tdpo2_with_alpha_zero_is_dpo(batch, beta):
    same(of("tdpo2", batch, beta=beta, alpha=0.0), of("dpo", batch, beta=beta))


@few
@given(batches(), BETAS)
def test_tdpo1_is_tdpo2_with_alpha_one_in_value_and_not_in_gradient(batch, beta):
    same(of("tdpo1", batch, beta=beta), of("tdpo2", batch, beta=beta, alpha=1.0))
    first, second = gradients("tdpo1", batch, beta=beta), gradients("tdpo2", batch, beta=beta, alpha=1.0)
    for what in ("chosen", "rejected", "rejected drift"):
        same(first[what], second[what])
    same(first["chosen drift"], first["chosen"])
    assert not second["chosen drift"].any()


@few
@given(batches(), BETAS, st.floats(0, 2))
def test_tdpo_without_drift_is_dpo(batch, beta, alpha):
    calm = with_extra(batch, "reference_kl", 0.0)
    same(of("tdpo1", calm, beta=beta), of("dpo", batch, beta=beta))
    same(of("tdpo2", calm, beta=beta, alpha=alpha), of("dpo", batch, beta=beta))


@few
@given(batches(), BETAS)
def test_tdpo1_is_dpo_with_every_tokens_divergence_added_to_its_log_ratio(batch, beta):
    further = changed(batch, lambda s: replace(s, policy=s.policy + s.extras["reference_kl"]))
    same(of("tdpo1", batch, beta=beta), of("dpo", further, beta=beta), slack=1e-11)


# --- entropy of the reference


@few
@given(batches(), BETAS, st.floats(0.1, 2.0))
def test_mallows_with_weight_one_is_dpo_and_ipo_sum(batch, beta, dispersion):
    # -dispersion log e^(-1 / dispersion) = 1.
    even = with_extra(batch, "reference_entropy", math.exp(-1 / dispersion))
    same(of("mallows_dpo", even, beta=beta, dispersion=dispersion), of("dpo", batch, beta=beta), slack=1e-10)
    same(of("mallows_ipo", even, beta=beta, dispersion=dispersion), of("ipo_sum", batch, beta=beta), slack=1e-10)


@few
@given(batches(), BETAS, st.floats(0.05, 0.95))
def test_mallows_with_one_entropy_everywhere_is_dpo_at_another_beta(batch, beta, share):
    weight = -0.5 * math.log(share)
    even = with_extra(batch, "reference_entropy", share)
    same(of("mallows_dpo", even, beta=beta, dispersion=0.5), of("dpo", batch, beta=beta * weight), slack=1e-11)


@few
@given(batches(), st.floats(0.05, 0.5), st.floats(0.05, 0.9))
def test_mallows_ipo_turns_at_its_target(batch, tau, share):
    # The weighted margin is to be 1 / (2 tau): as far before it as beyond it the pulls are opposite.
    even = with_extra(batch, "reference_entropy", share)
    target = 1 / (2 * tau * -0.29 * math.log(share))
    lift = ((target - even.margin) / even.chosen.length)[:, None]
    there = changed(even, lambda s: replace(s, policy=s.policy + lift), ["chosen"])
    same(
        gradients("mallows_ipo", there, beta=tau)["chosen"],
        torch.zeros_like(lift * there.chosen.mask),
        slack=1e-9 / tau,
    )
    before, beyond = (
        gradients("mallows_ipo", moved(there, h, names=["chosen"]), beta=tau)["chosen"] for h in (-0.1, 0.1)
    )
    assert (before[there.chosen.mask] < 0).all()
    same(beyond, -before, slack=1e-9 / tau)


# --- likelihood beside DPO


@few
@given(batches(), BETAS, WEIGHTS)
def test_dpo_with_likelihood_is_dpo_plus_the_weighted_likelihood(batch, beta, weight):
    plain = of("dpo", batch, beta=beta)
    same(of("dpo_nll", batch, beta=beta, weight=weight), plain - weight * batch.chosen.logp / batch.chosen.length)
    same(of("dpo_nll_sum", batch, beta=beta, weight=weight), plain - weight * batch.chosen.logp)
    same(of("dpo_nll_token", batch, beta=beta, weight=weight), plain + of("sft", batch, weight=weight))


@few
@given(batches(), BETAS, st.sampled_from(["dpo_nll", "dpo_nll_token", "dpo_nll_sum"]))
def test_dpo_with_a_likelihood_of_weight_zero_is_dpo(batch, beta, name):
    same(of(name, batch, beta=beta, weight=0.0), of("dpo", batch, beta=beta))


@few
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), batches(length=n))), BETAS, WEIGHTS)
def test_at_equal_lengths_the_three_likelihoods_differ_by_a_factor(drawn, beta, weight):
    length, batch = drawn
    by_answer = of("dpo_nll", batch, beta=beta, weight=weight)
    same(of("dpo_nll_token", batch, beta=beta, weight=weight), by_answer)
    same(of("dpo_nll_sum", batch, beta=beta, weight=weight / length), by_answer)
    same(of("orpo", batch, weight=weight), of("orpo_seq", batch, weight=weight))


# --- mixture


ALONE = st.sampled_from([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])


@few
@given(batches(), BETAS, ALONE | st.tuples(WEIGHTS, WEIGHTS, WEIGHTS))
def test_mpo_is_the_weighted_sum_of_dpo_bco_and_sft_or_one_of_them_alone(batch, beta, weights):
    named = dict(zip(("preference", "quality", "generation"), weights, strict=True))
    parts = of("dpo", batch, beta=beta), of("bco_pair", batch, beta=beta), of("sft", batch)
    summed = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    same(of("mpo", batch, beta=beta, **named), summed)


@few
@given(st.lists(batches(), min_size=1, max_size=3), BETAS)
def test_mpo_and_bco_shift_their_rewards_alike(batches_, beta):
    shifts = []
    for bound in (variants.get(name).bind(beta=beta) for name in ("mpo", "bco_pair")):
        statistics = bound.initial()
        for batch in batches_:
            statistics = bound.update(batch, statistics)
        shifts.append(statistics["delta"])
    rewards = [float(beta * torch.cat([b.chosen.logratio, b.rejected.logratio]).mean()) for b in batches_]
    assert shifts == pytest.approx([sum(rewards) / len(rewards)] * 2, rel=1e-9, abs=1e-9)


# --- without a reference


@few
@given(batches(), st.floats(0.5, 10), st.floats(0, 1))
def test_alphapo_with_alpha_zero_is_simpo_and_near_zero_close_to_it(batch, beta, ratio):
    plain = of("simpo", batch, beta=beta, gamma_ratio=ratio)
    same(of("alphapo", batch, beta=beta, gamma_ratio=ratio, alpha=0.0), plain)
    # The reward is p - alpha p^2 / 2 + ..., and p^2 is below 144 on either side.
    for alpha in (1e-6, -1e-6):
        bent = of("alphapo", batch, beta=beta, gamma_ratio=ratio, alpha=alpha)
        assert ((bent - plain).abs() <= beta * 144 * 1e-6).all()


@few
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), batches(length=n))), BETAS)
def test_at_equal_lengths_simpo_without_a_margin_is_dpo_without_a_reference(drawn, beta):
    length, batch = drawn
    expected = of("dpo", without_reference(batch), beta=beta)
    same(of("simpo", batch, beta=beta * length, gamma_ratio=0.0), expected)


@few
@given(batches(), BETAS, st.floats(0, 1))
def test_the_margin_of_simpo_shifts_the_mean_log_probability_of_the_rejected(batch, beta, ratio):
    lifted = moved(batch, ratio, names=["rejected"])
    same(of("simpo", batch, beta=beta, gamma_ratio=ratio), of("simpo", lifted, beta=beta, gamma_ratio=0.0))


@few
@given(batches(), BETAS, WEIGHTS)
def test_cpo_is_dpo_without_a_reference_plus_weighted_sft(batch, beta, weight):
    ranked = of("dpo", without_reference(batch), beta=beta)
    same(of("cpo", batch, beta=beta, weight=weight), ranked + of("sft", batch, weight=weight))
    same(of("cpo", batch, beta=beta, weight=0.0), of("dpo_ref_free", batch, beta=beta))


@few
@given(batches(), BETAS, WEIGHTS)
def test_tpo_with_the_chosen_answer_as_gold_is_cpo(batch, beta, weight):
    as_gold = replace(batch, others={"gold": batch.chosen})
    same(of("tpo", as_gold, beta=beta, weight=weight), of("cpo", batch, beta=beta, weight=weight))
    same(of("tpo", batch, beta=beta, weight=0.0), of("cpo", batch, beta=beta, weight=0.0))


@few
@given(batches(), WEIGHTS)
def test_orpo_minus_orpo_of_the_flipped_pair_is_minus_the_log_odds_ratio(batch, weight):
    # log sigmoid(x) - log sigmoid(-x) = x; the likelihoods are left out.
    bound = variants.get("orpo").bind(weight=weight)
    chances = [s.mean_logp.clamp(max=-1e-7).exp() for s in (batch.chosen, batch.rejected)]
    odds = [chance / (1 - chance) for chance in chances]
    ranked, turned = bound.objective(batch).losses, bound.objective(swapped(batch)).losses
    same(turned - ranked, weight * (odds[0] / odds[1]).log(), slack=1e-7)


@few
@given(batches(), WEIGHTS)
def test_orpo_on_a_single_pair_is_orpo_seq(batch, weight):
    alone = Pairs(*(Side(s.policy[:1], s.reference[:1], s.mask[:1]) for s in (batch.chosen, batch.rejected)))
    same(of("orpo", alone, weight=weight), of("orpo_seq", alone, weight=weight))


@few
@given(batches(), WEIGHTS, st.floats(0.1, 5))
def test_slic_hf_is_a_stretched_hinge_without_a_reference_plus_weighted_sft(batch, weight, delta):
    # max(0, d - m) = d max(0, 1 - m / d).
    ranked = delta * of("hinge", without_reference(batch), beta=1 / delta)
    same(of("slic_hf", batch, weight=weight, delta=delta), ranked + of("sft", batch, weight=weight))


@few
@given(batches(length=1))
def test_on_one_token_answers_rrhf_is_slic_hf_without_a_margin(batch):
    same(of("rrhf", batch, weight=1.0), of("slic_hf", batch, weight=1.0, delta=0.0))


# --- what they keep


def test_each_loss_declares_its_class_and_only_four_a_start():
    specs = {name: variants.get(name).spec for name in [*MONOTONE, *OTHERS]}
    assert [name for name, spec in specs.items() if spec.gradient == "monotone"] == MONOTONE
    assert [specs[name].gradient for name in OTHERS] == ["free", "free", "target"]
    assert sorted(name for name, spec in specs.items() if not spec.reference) == sorted(NO_REFERENCE)
    assert [name for name, spec in specs.items() if spec.stops_gradient] == ["tdpo2"]
    assert [name for name, spec in specs.items() if spec.start is not None] == ["mallows_dpo", *OTHERS]


@few
@given(batches(), st.sampled_from(MONOTONE))
def test_the_chosen_is_never_pushed_down_nor_the_rejected_up(batch, name):
    slopes = gradients(name, batch)
    assert (slopes["chosen"] <= 0).all()
    assert (slopes["rejected"] >= 0).all()


@few
@given(batches(), st.sampled_from(NO_REFERENCE), st.floats(-3, 3))
def test_a_loss_without_a_reference_does_not_read_it(batch, name, by):
    same(of(name, moved(batch, 0.0, by)), of(name, batch), slack=0.0)


@few
@given(batches(), st.sampled_from(["mallows_dpo", *OTHERS]), st.floats(-3, 3))
def test_moving_policy_and_reference_alike_changes_nothing(batch, name, by):
    same(of(name, moved(batch, by, by)), of(name, batch), slack=1e-8)


@few
@given(batches(length=2), st.sampled_from(["mallows_dpo", *OTHERS, "simpo"]), st.floats(-3, 3))
def test_a_loss_of_margins_does_not_mind_both_answers_becoming_likelier(batch, name, by):
    same(of(name, moved(batch, by)), of(name, batch), slack=1e-8)


@pytest.mark.parametrize("name", sorted({*MONOTONE} - {"mallows_dpo", "simpo"}))
def test_every_other_one_minds(name):
    policy = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], dtype=torch.float64)
    side = Side(policy, policy - 0.5, torch.ones(2, 2, dtype=torch.bool))
    rejected, delta = replace(side, policy=policy - 0.2), torch.zeros((), dtype=torch.float64)
    batch = Pairs(side, rejected, statistics={"delta": delta}, others={"gold": side})
    lower = moved(batch, -0.3)
    assert (of(name, batch) - of(name, replace(lower, others={"gold": lower.chosen}))).abs().min() > 1e-4


@few
@given(batches(), st.sampled_from([*OTHERS, "mallows_dpo"]))
def test_the_start_does_not_depend_on_the_answers(batch, name):
    bound = variants.get(name).bind(beta=0.2)
    expected = 1 / (4 * 0.2**2) if name == "mallows_ipo" else math.log(2)
    assert bound.start == pytest.approx(expected, rel=1e-14)
    start = with_extra(changed(batch, lambda s: replace(s, policy=s.reference)), "reference_kl", 0.0)
    same(bound(start), torch.full((len(batch),), expected, dtype=torch.float64))


@few
@given(batches(), st.integers(2, 4))
def test_repeating_every_token_leaves_means_and_multiplies_sums(batch, times):
    def repeated(side):
        extras = {name: value.repeat_interleave(times, dim=1) for name, value in side.extras.items()}
        return Side(*(t.repeat_interleave(times, dim=1) for t in (side.policy, side.reference, side.mask)), extras)

    longer = changed(batch, repeated)
    for name in ("simpo", "alphapo", "orpo", "orpo_seq", "rrhf", "sft"):
        same(of(name, longer), of(name, batch), slack=1e-11)
    for name in ("mallows_dpo", "tdpo1", "tdpo2", "dpo_nll", "dpo_nll_token", "cpo"):
        same(of(name, longer, beta=0.1), of(name, batch, beta=0.1 * times), slack=1e-11)


@few
@given(batches(), st.sampled_from([n for n in [*MONOTONE, *OTHERS] if n not in ("alphapo", "orpo", "orpo_seq")]))
def test_all_but_the_bent_ones_are_convex_in_the_chosen_log_probability(batch, name):
    down, up = (moved(batch, h, names=["chosen"]) for h in (-0.5, 0.5))
    assert (of(name, down) + of(name, up) - 2 * of(name, batch) >= -1e-8).all()


# --- micro-batches


def rows(batch: Pairs, index: slice) -> Pairs:
    def part(side: Side) -> Side:
        extras = {name: value[index] for name, value in side.extras.items()}
        return Side(side.policy[index], side.reference[index], side.mask[index], extras)

    return replace(changed(batch, part), others={name: part(side) for name, side in batch.others.items()})


@few
@given(batches(), st.sampled_from(RATIOS), st.sampled_from([1, 2]))
def test_micro_batches_with_the_global_denominators_are_the_whole_batch(batch, name, size):
    bound, whole = variants.get(name).bind(), len(batch)
    denominators = bound.objective(batch).denominators
    parts = [rows(batch, slice(i, i + size)) for i in range(0, whole, size)]
    same(torch.cat([bound.objective(part).each(denominators, whole) for part in parts]), bound(batch))


@pytest.mark.parametrize("name", RATIOS)
def test_a_mean_of_micro_batch_means_is_not_the_whole_batch(name):
    # One token with 4 nats and three with 1 nat each: 7 / 4 nats a token, and (4 + 1) / 2 as a mean of means.
    policy = torch.tensor([[-4.0, 0.0, 0.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)
    side = Side(policy, policy, torch.tensor([[True, False, False], [True] * 3]))
    batch = Pairs(side, side, statistics={"delta": torch.tensor(0.0)}, others={"gold": side})
    # Every likelihood of weight 1; that of orpo and mpo is by default.
    bound = variants.get(name).bind(**({} if name in ("orpo", "mpo") else {"weight": 1.0}))
    naive = torch.stack([bound(rows(batch, slice(i, i + 1))).mean() for i in (0, 1)]).mean()
    assert (naive - bound(batch).mean()).item() == pytest.approx(5 / 2 - 7 / 4, rel=1e-12)
    assert [float(whole) for whole in bound.objective(batch).denominators] == [4.0]
