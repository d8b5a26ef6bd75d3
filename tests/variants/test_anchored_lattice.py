"""Anchored, batch-coupled, running and weighted losses: what they become, what leaves them alone, and where they break."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpobench import Pairs, Side
from dpobench.losses.registry import variants
from tests.strategies import of, pairs, same, swapped

NAMES = (
    *("kto", "kto_pair", "apo_zero", "apo_down", "nca", "bco_pair", "bco_pair_no_shift", "sppo_hard", "sppo_soft"),
    *("cal_dpo", "dpop", "aot", "aot_unpaired", "dr_dpo", "beta_dpo", "alpha_dpo", "eps_dpo", "wpo", "wpo_unclamped"),
)
BY_MARGIN = {"aot", "dr_dpo", "beta_dpo", "eps_dpo", "wpo", "wpo_unclamped"}
# Policy and reference enter these in other ways than by log-ratios.
BY_POLICY = {"aot", "alpha_dpo", "wpo", "wpo_unclamped"}
NEVER_WRONG = sorted(set(NAMES) - {"apo_down", "nca", "sppo_hard", "sppo_soft", "cal_dpo"})
FAR = [-1e4, -1e3, -100.0, 0.0, 100.0, 1e3, 1e4]
BETAS = st.floats(0.01, 2.0)
FLIPS = st.floats(0.0, 0.49)
SHIFTS = st.floats(-3.0, 3.0)
few = settings(max_examples=15, deadline=None, derandomize=True)


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def single(values: list[float]) -> Side:
    policy = torch.tensor(values, dtype=torch.float64)[:, None]
    return Side(policy, torch.zeros_like(policy), torch.ones_like(policy, dtype=torch.bool))


def both(batch: Pairs, change) -> Pairs:
    """The same batch with each side changed by a function of the side and a sign, 1 for the chosen and -1 for the rejected."""
    return replace(batch, chosen=change(batch.chosen, 1.0), rejected=change(batch.rejected, -1.0))


def moved(side: Side, by, *, policy: bool = False, reference: bool = False) -> Side:
    """Log-ratio, or both its parts, moved by `by` nats an answer, a number or shape [B], divided evenly over its tokens."""
    each = (torch.as_tensor(by, dtype=torch.float64) / side.length).expand(len(side.mask))[:, None]
    columns = [column + each * wanted for column, wanted in ((side.policy, policy), (side.reference, reference))]
    return replace(side, policy=columns[0], reference=columns[1])


def equipped(batch: Pairs, name: str) -> Pairs:
    """All that a loss may declare, and the statistics of a first step; the noise differs from answer to answer."""
    size = len(batch)

    def extended(side: Side, sign: float) -> Side:
        noise = ((torch.arange(size) + 0.5) / size)[:, None].to(side.policy.dtype).expand_as(side.policy)
        extras = {"noise": noise, "collision": 0.5 * side.policy.detach().clamp(min=-1.0)}
        near_by = {
            "extrapolated": side.policy.detach() + 0.01 * sign,
            "interpolated": side.policy.detach() - 0.01 * sign,
        }
        return replace(side, extras=extras | near_by)

    whole = both(batch, extended)
    columns = {"win_probability": torch.linspace(0.05, 1.0, size, dtype=batch.chosen.policy.dtype)}
    parts = ("policy", "reference", "mask")
    mismatched = Side(*(torch.cat([getattr(s, p).detach() for s in (batch.rejected, batch.chosen)]) for p in parts))
    whole = replace(whole, columns=columns, others={"mismatched": mismatched})
    bound = variants.get(name).bind()
    with torch.no_grad():
        return replace(whole, statistics=scalars(**bound.update(whole, bound.initial())))


def apart(values: list[float], which: str, dtype: torch.dtype) -> Pairs:
    """One-token answers, the log-ratio all on one side; what became likelier was unlikely before, so that none is above 0."""
    sides = {}
    for name, logratios in (("chosen", values), ("rejected", [-v for v in values])):
        given_ = logratios if name == which else [0.0] * len(values)
        policy, reference = (
            torch.tensor([-2 + min(sign * v, 0.0) for v in given_], dtype=dtype)[:, None] for sign in (1, -1)
        )
        sides[name] = Side(policy.requires_grad_(), reference, torch.ones_like(policy, dtype=torch.bool))
    return Pairs(**sides)


@few
@given(pairs(), BETAS)
def test_dpop_without_penalty_is_dpo(batch, beta):
    same(of("dpop", batch, beta=beta, penalty=0.0), of("dpo", batch, beta=beta))


@few
@given(pairs(), BETAS, st.floats(0.0, 0.9))
def test_eps_dpo_is_dpo_with_beta_a_step_away(batch, beta, epsilon):
    # `equipped` lets every margin rise: extrapolated chosen higher, rejected lower. Turned round, every margin falls.
    rising = equipped(batch, "eps_dpo")
    turned = {"extrapolated": "interpolated", "interpolated": "extrapolated"}
    falling = both(rising, lambda s, _: replace(s, extras={n: s.extras[turned[n]] for n in turned}))
    still = both(rising, lambda s, _: replace(s, extras=dict.fromkeys(turned, s.extras["extrapolated"])))
    same(of("eps_dpo", rising, beta=beta, epsilon=0.0), of("dpo", batch, beta=beta))
    same(of("eps_dpo", rising, beta=beta, epsilon=epsilon), of("dpo", batch, beta=beta / (1 + epsilon)))
    same(of("eps_dpo", falling, beta=beta, epsilon=epsilon), of("dpo", batch, beta=beta / (1 - epsilon)))
    same(of("eps_dpo", still, beta=beta, epsilon=epsilon), of("dpo", batch, beta=beta))


@few
@given(pairs(), BETAS, SHIFTS, st.floats(0.1, 5.0))
def test_beta_dpo_without_gain_and_filter_is_dpo(batch, beta, mean, std):
    batch = replace(equipped(batch, "beta_dpo"), statistics=scalars(mean=mean, std=std))
    same(of("beta_dpo", batch, beta=beta, gain=0.0, drop=0.0), of("dpo", batch, beta=beta))


@few
@given(pairs(), BETAS, SHIFTS, st.floats(0.0, 2.0))
def test_beta_dpo_without_filter_is_dpo_at_the_beta_of_the_batch(batch, beta, mean, gain):
    batch = replace(equipped(batch, "beta_dpo"), statistics=scalars(mean=mean, std=1.0))
    used = max(1e-3, beta * (1 + gain * float(batch.margin.mean() - mean)))
    same(of("beta_dpo", batch, beta=beta, gain=gain, drop=0.0), of("dpo", batch, beta=used))


@few
@given(pairs(), st.floats(0.5, 10.0), st.floats(0.0, 2.0), SHIFTS, st.floats(0.1, 5.0))
def test_alpha_dpo_with_alpha_zero_is_simpo(batch, beta, gamma_ratio, mean, std):
    batch = replace(batch, statistics=scalars(mean=mean, std=std))
    expected = of("simpo", batch, beta=beta, gamma_ratio=gamma_ratio)
    same(of("alpha_dpo", batch, beta=beta, gamma_ratio=gamma_ratio, alpha=0.0), expected)


@few
@given(pairs(), BETAS)
def test_dr_dpo_runs_from_the_least_loss_to_the_mean(batch, beta):
    losses = of("dpo", batch, beta=beta)
    least, mean = losses.min().expand(len(batch)), losses.mean().expand(len(batch))
    # The excess over the minimum is at most temperature times log B; the lack against the mean at most variance / temperature.
    same(of("dr_dpo", batch, beta=beta, temperature=1e-6), least, slack=2e-6)
    same(of("dr_dpo", batch, beta=beta, temperature=1e8), mean, slack=1e-4)
    between = of("dr_dpo", batch, beta=beta, temperature=1.0)
    assert (between >= least - 1e-12).all()
    assert (between <= mean + 1e-12).all()


@few
@given(pairs(), BETAS, FLIPS)
def test_aot_on_one_pair_is_cdpo_and_without_flips_dpo(batch, beta, flip):
    alone = both(batch, lambda s, _: Side(s.policy[:1], s.reference[:1], s.mask[:1]))
    for name in ("aot", "aot_unpaired"):
        same(of(name, alone, beta=beta), of("dpo", alone, beta=beta))
        same(of(name, alone, beta=beta, flip=flip), of("cdpo", alone, beta=beta, flip=flip))


@few
@given(pairs(), BETAS, FLIPS)
def test_sorting_pairs_up_what_costs_least(batch, beta, flip):
    # Of all ways to couple two samples, a convex cost of the difference is least for the sorted one.
    paired = float(of("cdpo", batch, beta=beta, flip=flip).sum())
    for name in ("aot", "aot_unpaired"):
        assert float(of(name, batch, beta=beta, flip=flip).sum()) <= paired + 1e-9


@few
@given(pairs(), BETAS, FLIPS)
def test_aot_unpaired_does_not_mind_which_rejected_answer_belongs_to_which_chosen_one(batch, beta, flip):
    s = batch.rejected
    other = replace(batch, rejected=Side(s.policy.flip(0), s.reference.flip(0), s.mask.flip(0)))
    same(of("aot_unpaired", other, beta=beta, flip=flip), of("aot_unpaired", batch, beta=beta, flip=flip))


@few
@given(pairs(), BETAS, SHIFTS)
def test_kto_is_half_of_apo_zero_about_its_anchor(batch, beta, mean):
    batch = replace(batch, others={"mismatched": single([mean] * (2 * len(batch)))})
    about = both(batch, lambda s, _: moved(s, -max(mean, 0.0), policy=True))
    same(of("kto", batch, beta=beta), of("apo_zero", about, beta=beta) / 2)


@few
@given(pairs(), BETAS)
def test_kto_pair_is_half_of_apo_zero_where_both_sides_lost(batch, beta):
    lost = both(batch, lambda s, _: moved(s, -s.logratio.abs().max() - 1, policy=True))
    same(of("kto_pair", lost, beta=beta), of("apo_zero", lost, beta=beta) / 2)


@few
@given(pairs(), BETAS)
def test_apo_zero_of_the_flipped_pair_is_what_is_missing_to_two(batch, beta):
    same(of("apo_zero", swapped(batch), beta=beta), 2 - of("apo_zero", batch, beta=beta))


@few
@given(pairs(), BETAS)
def test_sppo_soft_is_half_of_sppo_hard_for_a_certain_win_and_its_mirror_for_a_certain_loss(batch, beta):
    ones = torch.ones(len(batch), dtype=torch.float64)
    half = of("sppo_hard", batch, beta=beta) / 2
    same(of("sppo_soft", replace(batch, columns={"win_probability": ones}), beta=beta), half)
    same(of("sppo_soft", replace(swapped(batch), columns={"win_probability": 0 * ones}), beta=beta), half)
    even = of("sppo_soft", replace(batch, columns={"win_probability": ones / 2}), beta=beta)
    same(even, (batch.chosen.logratio.square() + batch.rejected.logratio.square()) / 2)


@few
@given(pairs(), BETAS, st.floats(0.0, 3.0))
def test_cal_dpo_is_dpo_with_beta_one_and_a_share_of_sppo_hard(batch, beta, weight):
    same(of("cal_dpo", batch, beta=beta, weight=0.0), of("dpo", batch, beta=1.0))
    mixed = of("dpo", batch, beta=1.0) + weight * of("sppo_hard", batch, beta=beta)
    same(of("cal_dpo", batch, beta=beta, weight=weight), mixed)


@few
@given(pairs(), BETAS, SHIFTS)
def test_bco_pair_is_the_one_without_shift_about_delta(batch, beta, delta):
    shifted = replace(batch, statistics=scalars(delta=delta))
    about = both(batch, lambda s, _: moved(s, -delta / beta, policy=True))
    same(of("bco_pair", shifted, beta=beta), of("bco_pair_no_shift", about, beta=beta), slack=1e-11)
    unshifted = replace(batch, statistics=scalars(delta=0.0))
    same(of("bco_pair", unshifted, beta=beta), of("bco_pair_no_shift", batch, beta=beta))


@few
@given(pairs(), BETAS)
def test_nca_moves_half_a_rejection_from_the_rejected_to_the_chosen_answer(batch, beta):
    rejections = [-torch.nn.functional.logsigmoid(-beta * s.logratio) for s in (batch.chosen, batch.rejected)]
    expected = of("bco_pair_no_shift", batch, beta=beta) + (rejections[0] - rejections[1]) / 2
    same(of("nca", batch, beta=beta), expected)


@few
@given(pairs(), BETAS, SHIFTS)
def test_wpo_is_dpo_by_weights_cut_at_one(batch, beta, by):
    dpo = of("dpo", batch, beta=beta)
    # Each side's mean log-probability exceeds its collision by `by`: a weight of e^by, a product of e^2by.
    weighted = both(batch, lambda s, _: replace(s, extras={"collision": s.policy - by}))
    same(of("wpo_unclamped", weighted, beta=beta), math.exp(2 * by) * dpo, slack=1e-10)
    same(of("wpo", weighted, beta=beta), min(1.0, math.exp(2 * by)) * dpo, slack=1e-10)
    same(of("wpo", both(batch, lambda s, _: replace(s, extras={"collision": s.policy})), beta=beta), dpo)


@pytest.mark.parametrize("name", sorted(BY_MARGIN))
@few
@given(pairs())
def test_a_loss_of_the_margin_overlooks_what_moves_both_answers_of_a_pair(name, batch):
    batch = equipped(batch, name)
    by = 1.0 + torch.arange(len(batch))
    same(of(name, both(batch, lambda s, _: moved(s, by, reference=True))), of(name, batch), slack=1e-10)


# Of alpha_dpo it depends on the lengths.
@pytest.mark.parametrize("name", sorted(set(NAMES) - BY_MARGIN - {"alpha_dpo"}))
def test_an_anchored_loss_notices_what_moves_both_answers_of_a_pair(name):
    batch = equipped(Pairs(single([1.0, 2.0, -2.0]), single([3.0, -1.0, -5.0])), name)
    shifted = both(batch, lambda s, _: moved(s, torch.tensor([10.0, 20.0, 40.0]), reference=True))
    assert float((of(name, shifted) - of(name, batch)).abs().max()) > 1e-3


@pytest.mark.parametrize("name", sorted(set(NAMES) - BY_POLICY))
@few
@given(pairs(), SHIFTS)
def test_moving_policy_and_reference_of_an_answer_alike_changes_nothing(name, batch, by):
    batch = equipped(batch, name)
    extras = ("extrapolated", "interpolated")

    def change(s: Side, sign: float) -> Side:
        raised = {n: s.extras[n] + sign * by / s.length[:, None] for n in extras}
        return replace(moved(s, sign * by, policy=True, reference=True), extras=s.extras | raised)

    same(of(name, both(batch, change)), of(name, batch), slack=1e-8)


@pytest.mark.parametrize(
    ("name", "params", "start"),
    [
        ("kto", {}, 0.5),
        ("kto", {"undesirable_weight": 1.4}, 0.6),
        ("kto_pair", {}, 0.5),
        ("apo_zero", {}, 1.0),
        ("apo_down", {}, 1.0),
        *((name, {}, 2 * math.log(2)) for name in ("nca", "bco_pair", "bco_pair_no_shift")),
        ("sppo_hard", {}, 500_000.0),
        ("cal_dpo", {}, math.log(2) + 250_000),
        ("cal_dpo", {"beta": 0.5, "weight": 3.0}, math.log(2) + 6),
        *((name, {}, math.log(2)) for name in ("dpop", "aot", "aot_unpaired", "dr_dpo", "eps_dpo")),
    ],
)
@few
@given(pairs())
def test_the_declared_start_holds_for_answers_of_any_lengths(name, params, start, batch):
    batch = equipped(both(batch, lambda s, _: replace(s, policy=s.reference)), name)
    assert variants.get(name).bind(**params).start == pytest.approx(start, rel=1e-14)
    same(of(name, batch, **params), torch.full((len(batch),), start, dtype=torch.float64))


@pytest.mark.parametrize("which", ["chosen", "rejected"])
@pytest.mark.parametrize("name", NEVER_WRONG)
def test_the_chosen_is_never_pushed_down_and_the_rejected_never_up(name, which):
    batch = equipped(apart([-30.0, -3.0, -0.3, 0.0, 0.3, 3.0, 30.0], which, torch.float64), name)
    of(name, batch).sum().backward()
    assert (batch.chosen.policy.grad <= 1e-15).all()
    assert (batch.rejected.policy.grad >= -1e-15).all()
    assert (batch.chosen.policy.grad < 0).any()


@pytest.mark.parametrize("which", ["chosen", "rejected"])
@pytest.mark.parametrize(
    ("name", "beta", "target"), [("nca", 0.1, 10 * math.log(2)), ("sppo_hard", 0.01, 50.0), ("cal_dpo", 0.01, 50.0)]
)
def test_the_gradient_changes_sign_at_the_target_and_nowhere_else(name, beta, target, which):
    # Of a rejected answer the target is the negative log-ratio; the other answer rests. NCA has none for the rejected.
    batch = apart([target + by for by in (-60.0, -5.0, -0.01, 0.01, 5.0, 60.0)], which, torch.float64)
    of(name, batch, beta=beta).sum().backward()
    slope = getattr(batch, which).policy.grad[:, 0] * (1 if which == "chosen" else -1)
    turns = (name, which) != ("nca", "rejected")
    assert slope.sign().tolist() == [-1, -1, -1, *([1, 1, 1] if turns else [-1, -1, -1])]


CONVEX = ("bco_pair", "bco_pair_no_shift", "nca", "sppo_hard", "sppo_soft", "cal_dpo", "dpop", "eps_dpo", "wpo")


@pytest.mark.parametrize("name", CONVEX)
@few
@given(pairs())
def test_it_is_convex_in_either_log_ratio(name, batch):
    batch = equipped(batch, name)
    for side in ("chosen", "rejected"):
        ends = [moved(getattr(batch, side), by, reference=True) for by in (-0.5, 0.5)]
        down, up = (of(name, replace(batch, **{side: end})) for end in ends)
        assert (down + up - 2 * of(name, batch) >= -1e-9).all()


@few
@given(pairs(), st.integers(2, 4))
def test_repeating_every_token_multiplies_sums_and_leaves_means(batch, times):
    def repeated(s: Side, _: float) -> Side:
        extras = {name: value.repeat_interleave(times, dim=1) for name, value in s.extras.items()}
        return Side(*(t.repeat_interleave(times, dim=1) for t in (s.policy, s.reference, s.mask)), extras)

    for name in (
        "apo_zero",
        "apo_down",
        "nca",
        "bco_pair_no_shift",
        "dpop",
        "aot",
        "aot_unpaired",
        "dr_dpo",
        "kto_pair",
    ):
        same(of(name, both(batch, repeated), beta=0.1), of(name, batch, beta=0.1 * times), slack=1e-10)
    same(of("sppo_hard", both(batch, repeated), beta=0.1), of("sppo_hard", batch, beta=0.1 * times) * times**2, 1e-10)
    batch = equipped(batch, "wpo")
    same(of("wpo", both(batch, repeated), beta=0.1), of("wpo", batch, beta=0.1 * times), slack=1e-10)
    batch = equipped(batch, "alpha_dpo")
    same(of("alpha_dpo", both(batch, repeated)), of("alpha_dpo", batch), slack=1e-10)


@pytest.mark.parametrize("which", ["chosen", "rejected"])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_finite_with_the_whole_margin_on_one_side(name, which):
    # One pair alone has no standard deviation.
    for margins, dtype in ((FAR, torch.float32), ([0.0], torch.float32), ([-3.0, -1.0, 0.0, 1.0, 3.0], torch.bfloat16)):
        batch = equipped(apart(margins, which, dtype), name)
        loss = of(name, batch)
        assert loss.dtype == dtype
        loss.sum().backward()
        for found in (loss, batch.chosen.policy.grad, batch.rejected.policy.grad):
            assert found.isfinite().all()


def test_alpha_dpo_finds_no_pair_unusual_in_a_batch_without_any_spread():
    # The chosen answers lost 2 nats each: the standard deviation is 0, and so is every distance from the mean. Logits -0.2.
    batch = equipped(apart([-2.0] * 4, "chosen", torch.float32), "alpha_dpo")
    assert float(batch.statistics["std"]) == 0.0
    losses = of("alpha_dpo", batch, beta=0.1, gamma_ratio=0.0, alpha=5.0)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(0.2))] * 4, rel=1e-6)


def test_dr_dpo_survives_a_small_temperature():
    # exp(-1000 / 0.1) is 0 in any precision: the best pair alone is left, less the logarithm of how few it is.
    batch = Pairs(single([-1e4, 10.0]), single([0.0, 0.0]))
    value = math.log1p(math.exp(-1.0)) + 0.1 * math.log(2)
    assert of("dr_dpo", batch, beta=0.1, temperature=0.1).tolist() == pytest.approx([value] * 2, rel=1e-13)


@pytest.mark.parametrize("name", ["kto", "kto_pair", "apo_zero"])
def test_an_answer_judged_very_wrongly_is_given_up(name):
    # The slope at a thousand nats is s(-100) s(100), e^-100 or 4e-44; the gradient of DPO would be beta.
    batch = equipped(apart([-1e3], "chosen", torch.float32), name)
    of(name, batch, beta=0.1).sum().backward()
    assert float(batch.chosen.policy.grad.abs().max()) < 1e-40
