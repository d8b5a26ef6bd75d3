"""What the losses of the margin become at special hyper-parameters, and what leaves each of them as it is."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dpobench import Pairs, Side
from dpobench.losses.registry import variants
from tests.strategies import of, of_margins, pairs, same, swapped

BETAS = st.floats(0.01, 2.0)
SEEDS = st.integers(0, 2**31)
few = settings(max_examples=15, deadline=None, derandomize=True)

OF_THE_MARGIN = ["rdpo", "hinge", "exo", "exo_unnormalised", "discopop", "cauchy", "ipo_scaled"]
OF_LOG_RATIOS = ["f_dpo_forward_kl", "f_dpo_js", "f_dpo_alpha", "chipo"]
WEIGHTED = ["ld_dpo", "sampo", "d2po"]
ALL = [*OF_THE_MARGIN, *OF_LOG_RATIOS, *WEIGHTED, "odpo", "dpo_norm", "r_dpo", "ld_dpo_policy", "dpo_ref_free"]
CONVEX = [
    "rdpo",
    "hinge",
    "ipo_scaled",
    "odpo",
    "dpo_norm",
    "r_dpo",
    "ld_dpo",
    "ld_dpo_policy",
    "d2po",
    "sampo",
    "dpo_ref_free",
]
STARTS = {
    **dict.fromkeys(("rdpo", "cauchy", "dpo_norm", *WEIGHTED, *OF_LOG_RATIOS), math.log(2)),
    "hinge": 1.0,
    "exo": -math.log(2) - math.log(0.001 * 0.999) / 2,
    "exo_unnormalised": 5 - math.log(2),
    "discopop": 0.8465735903,
    "ipo_scaled": 0.25,
}


def sidewise(batch: Pairs, change) -> Pairs:
    """Each side changed, its noise and the columns kept: `change(policy, reference)` returns the two anew."""
    sides = [Side(*change(s.policy, s.reference), s.mask, s.extras) for s in (batch.chosen, batch.rejected)]
    return Pairs(sides[0], sides[1], batch.columns)


def stretched(batch: Pairs, factor: float) -> Pairs:
    return sidewise(batch, lambda policy, reference: (policy * factor, reference * factor))


def repeated(batch: Pairs, times: int) -> Pairs:
    """Every token `times` times over."""
    sides = [
        Side(*(t.repeat_interleave(times, dim=1) for t in (s.policy, s.reference, s.mask)), again(s.extras, times))
        for s in (batch.chosen, batch.rejected)
    ]
    return Pairs(sides[0], sides[1], batch.columns)


def again(extras, times: int):
    return {name: value.repeat_interleave(times, dim=1) for name, value in extras.items()}


def first_token(batch: Pairs, chosen: float, rejected: float) -> Pairs:
    """The policy's log-probability of the first token moved."""
    sides = []
    for s, by in ((batch.chosen, chosen), (batch.rejected, rejected)):
        moved = s.policy.clone()
        moved[:, 0] += by
        sides.append(Side(moved, s.reference, s.mask, s.extras))
    return Pairs(sides[0], sides[1], batch.columns)


@st.composite
def dressed(draw: st.DrawFn, *, length: int | None = None, scale: float = 0.1) -> Pairs:
    """Pairs with noise and scores, log-ratios within 5 nats: no exponential drowns the rest in its rounding."""
    batch = stretched(draw(pairs(length=length)), scale)
    generator = torch.Generator().manual_seed(draw(SEEDS))
    sides = []
    for s in (batch.chosen, batch.rejected):
        noise = torch.rand(s.mask.shape, generator=generator, dtype=torch.float64)
        sides.append(Side(s.policy, s.reference, s.mask, {"noise": noise}))
    scores = torch.rand(2, len(batch), generator=generator, dtype=torch.float64)
    return Pairs(sides[0], sides[1], {"score_chosen": scores[0] + 0.5, "score_rejected": scores[1]})


def gradients(name: str, batch: Pairs, **params: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients on the tokens of the chosen and of the rejected answers."""
    held = sidewise(batch, lambda policy, reference: (policy.clone().requires_grad_(), reference))
    gradients = torch.autograd.grad(of(name, held, **params).sum(), (held.chosen.policy, held.rejected.policy))
    return gradients[0], gradients[1]


@few
@given(pairs(), BETAS)
def test_without_their_additional_parameter_they_are_dpo(batch, beta):
    dpo = of("dpo", batch, beta=beta)
    same(of("rdpo", batch, beta=beta, flip=0.0), dpo)
    same(of("r_dpo", batch, beta=beta, alpha=0.0), dpo)
    same(of("ld_dpo", batch, beta=beta, alpha=1.0), dpo)
    same(of("ld_dpo_policy", batch, beta=beta, alpha=1.0), dpo)
    same(of("d2po", batch, beta=beta, gamma=1.0), dpo)


@few
@given(dressed(scale=1.0), BETAS)
def test_odpo_without_offset_is_dpo(batch, beta):
    same(of("odpo", batch, beta=beta, alpha=0.0), of("dpo", batch, beta=beta))


@few
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), dressed(length=n, scale=1.0))), BETAS)
def test_at_equal_lengths_those_that_mind_the_length_are_dpo(drawn, beta):
    length, batch = drawn
    dpo = of("dpo", batch, beta=beta)
    same(of("dpo_norm", batch, beta=beta * length), dpo)
    same(of("r_dpo", batch, beta=beta, alpha=0.3), dpo)
    same(of("ld_dpo", batch, beta=beta, alpha=0.3), dpo)
    same(of("ld_dpo_policy", batch, beta=beta, alpha=0.3), dpo)
    same(of("sampo", batch, beta=beta), dpo)


@few
@given(pairs(length=1), BETAS, st.floats(0.1, 1.0))
def test_on_one_token_answers_d2po_is_dpo_with_beta_discounted_once(batch, beta, gamma):
    same(of("d2po", batch, beta=beta, gamma=gamma), of("dpo", batch, beta=beta * gamma))


@few
@given(pairs(), BETAS, st.floats(0.0, 0.45))
def test_rdpo_on_flipped_labels_is_dpo_on_true_ones(batch, beta, flip):
    mixed = (1 - flip) * of("rdpo", batch, beta=beta, flip=flip) + flip * of(
        "rdpo", swapped(batch), beta=beta, flip=flip
    )
    same(mixed, of("dpo", batch, beta=beta), slack=1e-11)


@few
@given(pairs(), BETAS, st.floats(0.0, 0.45))
def test_rdpo_is_dpo_less_a_share_of_the_logits(batch, beta, flip):
    share = flip / (1 - 2 * flip)
    same(
        of("rdpo", batch, beta=beta, flip=flip), of("dpo", batch, beta=beta) - share * beta * batch.margin, slack=1e-11
    )


@few
@given(pairs(), BETAS)
def test_ipo_scaled_is_tau_squared_times_ipo_sum(batch, tau):
    same(of("ipo_scaled", batch, beta=tau), tau**2 * of("ipo_sum", batch, beta=tau))


@few
@given(pairs(), st.floats(0.1, 10.0))
def test_hinge_times_its_margin_is_the_unnormalised_hinge(batch, margin):
    same(margin * of("hinge", batch, beta=1 / margin), torch.relu(margin - batch.margin))


@few
@given(pairs(), BETAS, st.floats(1e-4, 0.49))
def test_exo_and_the_unnormalised_one_differ_by_a_constant_at_matching_targets(batch, beta, smoothing):
    odds = math.log(smoothing) - math.log1p(-smoothing)
    losses = of("exo", batch, beta=beta, smoothing=smoothing)
    same(losses, of("exo_unnormalised", batch, beta=beta, log_epsilon=odds) - math.log1p(-smoothing))
    assert (losses >= -1e-12).all(), "a KL divergence"


@few
@given(pairs(), BETAS)
def test_the_cauchy_probabilities_of_both_orders_add_up_to_one(batch, beta):
    same(
        (-of("cauchy", batch, beta=beta)).exp() + (-of("cauchy", swapped(batch), beta=beta)).exp(),
        torch.ones(len(batch)),
    )


@few
@given(pairs(), BETAS)
def test_discopop_at_temperature_one_is_a_damped_logistic_loss(batch, beta):
    # sigma(z) e^-z = sigma(-z).
    dpo = of("dpo", batch, beta=beta)
    same(of("discopop", batch, beta=beta, tau=1.0), -torch.expm1(-dpo) * (1 + dpo))


@few
@given(dressed(), st.floats(0.1, 2.0), st.floats(0.0, 2.0))
def test_odpo_is_dpo_on_a_margin_less_the_offset(batch, beta, alpha):
    offset = alpha / beta * (batch.columns["score_chosen"] - batch.columns["score_rejected"]).clamp(min=1e-3).log()
    sides = [
        Side(s.logratio[:, None] - by, torch.zeros_like(by), by == by)
        for s, by in ((batch.chosen, offset[:, None]), (batch.rejected, 0 * offset[:, None]))
    ]
    same(of("odpo", batch, beta=beta, alpha=alpha), of("dpo", Pairs(*sides), beta=beta))


@few
@given(pairs(), BETAS)
def test_ld_dpo_without_the_tail_is_sampo_that_draws_the_first_tokens(batch, beta):
    falling = [
        Side(s.policy, s.reference, s.mask, {"noise": torch.linspace(0.9, 0.1, 4).expand(len(batch), 4)})
        for s in (batch.chosen, batch.rejected)
    ]
    same(of("sampo", Pairs(*falling), beta=beta), of("ld_dpo", batch, beta=beta, alpha=0.0))


@few
@given(dressed())
def test_sampo_reaches_equally_many_tokens_of_both_answers(batch):
    counts = [slope.count_nonzero(-1) for slope in gradients("sampo", batch)]
    assert counts[0].tolist() == counts[1].tolist()
    assert counts[0].tolist() == torch.minimum(batch.chosen.length, batch.rejected.length).tolist()


@few
@given(pairs(), BETAS)
def test_dpo_ref_free_is_dpo_with_a_reference_that_finds_all_answers_equally_likely(batch, beta):
    flat = sidewise(batch, lambda policy, reference: (policy, torch.zeros_like(reference)))
    same(of("dpo_ref_free", batch, beta=beta), of("dpo", flat, beta=beta))


@few
@given(dressed(), BETAS)
def test_the_alpha_divergence_at_one_is_the_forward_kl(batch, beta):
    same(of("f_dpo_alpha", batch, beta=beta, alpha=1.0), of("f_dpo_forward_kl", batch, beta=beta), slack=1e-11)


@few
@given(pairs(), BETAS)
def test_the_alpha_divergence_towards_zero_is_dpo(batch, beta):
    # (1 - e^(-alpha a)) / alpha = a - alpha a^2 / 2 + ..., and the logistic loss changes by no more than its logits do.
    bound = 1.001 * 1e-6 * beta * (batch.chosen.logratio.square() + batch.rejected.logratio.square()) / 2
    apart = of("f_dpo_alpha", batch, beta=beta, alpha=1e-6) - of("dpo", batch, beta=beta)
    assert (apart.abs() <= bound + 1e-9).all()


@few
@given(dressed(scale=1e-3), BETAS)
def test_chipo_is_dpo_at_twice_the_beta_for_small_ratios(batch, beta):
    # e^a = 1 + a + a^2 / 2 + ...; log-ratios within 0.05.
    bound = 1.05 * beta * (batch.chosen.logratio.square() + batch.rejected.logratio.square()) / 2
    apart = of("chipo", batch, beta=beta) - of("dpo", batch, beta=2 * beta)
    assert (apart.abs() <= bound + 1e-12).all()


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_js_on_opposite_log_ratios_is_dpo_at_half_the_beta_and_so_convex(beta):
    # log sigma(a) - log sigma(-a) = a.
    ratios = torch.linspace(-8, 8, 33, dtype=torch.float64)[:, None]
    sides = [Side(sign * ratios, torch.zeros_like(ratios), ratios == ratios) for sign in (1, -1)]
    losses = of("f_dpo_js", Pairs(*sides), beta=beta)
    same(losses, of("dpo", Pairs(*sides), beta=beta / 2))
    assert (losses[2:] + losses[:-2] - 2 * losses[1:-1] >= 0).all()


@few
@given(dressed(), st.floats(-3, 3))
def test_moving_policy_and_reference_alike_changes_nothing_where_log_ratios_are_all_that_counts(batch, by):
    moved = sidewise(batch, lambda policy, reference: (policy + by, reference + by))
    for name in set(ALL) - {"dpo_ref_free", "ld_dpo_policy"}:
        same(of(name, moved), of(name, batch), slack=1e-9)


@pytest.mark.parametrize("name", ["dpo_ref_free", "ld_dpo_policy"])
def test_the_two_that_are_no_functions_of_log_ratios_notice(name):
    lengths = torch.arange(4) < torch.tensor([[2], [4]])
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    batch = Pairs(*(Side(zeros, zeros, mask[None]) for mask in lengths))
    moved = sidewise(batch, lambda policy, reference: (policy - 1, reference - 1))
    # Reference-free: -2 against -4. Weighted policy: the tail of -2 counts half, so the rejected answer gains 1.
    logits = {"dpo_ref_free": 2.0, "ld_dpo_policy": -1.0}[name]
    same(of(name, moved, beta=1.0), torch.tensor([math.log1p(math.exp(-logits))], dtype=torch.float64))


@few
@given(dressed(), st.floats(-3, 3))
def test_the_reference_is_nothing_to_dpo_ref_free(batch, by):
    moved = sidewise(batch, lambda policy, reference: (policy, reference * 2 + by))
    same(of("dpo_ref_free", moved), of("dpo_ref_free", batch), slack=0.0)


@few
@given(dressed(), st.floats(-3, 3))
def test_moving_both_log_ratios_alike_changes_nothing_where_the_margin_is_all_that_counts(batch, by):
    # The first token has the same weight on both sides in ld_dpo and d2po.
    for name in (*OF_THE_MARGIN, "odpo", "r_dpo", "ld_dpo", "ld_dpo_policy", "d2po", "dpo_ref_free"):
        same(of(name, first_token(batch, by, by)), of(name, batch), slack=1e-9)
    alike = sidewise(batch, lambda policy, reference: (policy + by, reference))
    same(of("dpo_norm", alike), of("dpo_norm", batch), slack=1e-9)


@pytest.mark.parametrize("name", [*OF_LOG_RATIOS, "dpo_norm"])
def test_moving_both_log_ratios_alike_changes_the_others(name):
    lengths = torch.arange(4) < torch.tensor([[2], [4]])
    zeros = torch.zeros(1, 4, dtype=torch.float64)
    batch = first_token(Pairs(*(Side(zeros, zeros, mask[None]) for mask in lengths)), 0.5, 0.0)
    assert (of(name, first_token(batch, 0.5, 0.5)) - of(name, batch)).abs().item() > 1e-4


@few
@given(dressed())
def test_answers_of_any_lengths_start_at_the_value_worked_out(batch):
    start = sidewise(batch, lambda policy, reference: (reference, reference))
    for name, value in STARTS.items():
        same(of(name, start), torch.full((len(batch),), value, dtype=torch.float64), slack=1e-9)
        assert variants.get(name).bind().start == pytest.approx(value, rel=1e-9)
    gap = (batch.columns["score_chosen"] - batch.columns["score_rejected"]).clamp(min=1e-3)
    same(of("odpo", start, alpha=0.5), torch.log1p(gap.sqrt()))
    same(of("r_dpo", start, alpha=0.5), F.softplus(-0.5 * (batch.chosen.length - batch.rejected.length)))
    for name in ("odpo", "r_dpo", "ld_dpo_policy", "dpo_ref_free"):
        assert variants.get(name).bind().start is None


@pytest.mark.parametrize(
    ("name", "params", "target"),
    [
        ("exo", {"beta": 0.1, "smoothing": 1e-3}, 10 * math.log(999)),
        ("exo", {"beta": 0.5, "smoothing": 0.2}, 2 * math.log(4)),
        ("exo_unnormalised", {"beta": 0.1}, 100.0),
        ("exo_unnormalised", {"beta": 0.5, "log_epsilon": -3.0}, 6.0),
        ("ipo_scaled", {"beta": 0.01}, 50.0),
        ("ipo_scaled", {"beta": 0.5}, 1.0),
    ],
)
def test_the_gradient_changes_sign_exactly_at_the_target(name, params, target):
    before, at, after = gradients(name, of_margins([target - 0.01, target, target + 0.01]), **params)[0][:, 0].tolist()
    assert before < 0 < after
    assert abs(at) < 1e-6 * after


@few
@given(dressed())
def test_those_declared_monotone_never_push_the_chosen_down_or_the_rejected_up(batch):
    monotone = [name for name in ALL if variants.get(name).spec.gradient == "monotone"]
    assert set(ALL) - set(monotone) == {"exo", "exo_unnormalised", "discopop", "ipo_scaled"}
    for name in monotone:
        chosen, rejected = gradients(name, batch)
        assert (chosen <= 0).all()
        assert (rejected >= 0).all()


@few
@given(dressed(), st.sampled_from(CONVEX))
def test_these_are_convex_in_the_policys_log_probabilities(batch, name):
    down, up = (first_token(batch, by, -by) for by in (-0.5, 0.5))
    assert (of(name, down) + of(name, up) - 2 * of(name, batch) >= -1e-9).all()


@pytest.mark.parametrize(("name", "around"), [("exo", -50.0), ("discopop", 1.4), ("cauchy", -50.0)])
def test_these_are_not_convex_in_the_margin(name, around):
    low, middle, high = of(name, of_margins([around - 1, around, around + 1])).tolist()
    assert low + high < 2 * middle - 1e-6


@few
@given(dressed(), st.integers(2, 4))
def test_repeating_every_token_stretches_sums_and_leaves_means(batch, times):
    more, farther = repeated(batch, times), stretched(batch, times)
    for name in (*OF_THE_MARGIN, *OF_LOG_RATIOS, "odpo", "ld_dpo", "ld_dpo_policy", "sampo", "dpo_ref_free"):
        same(of(name, more), of(name, farther), slack=1e-9)
    same(of("r_dpo", more, alpha=0.1), of("r_dpo", farther, alpha=0.1 * times))
    same(of("dpo_norm", more), of("dpo_norm", batch))
    for name in OF_THE_MARGIN:
        same(of(name, more, beta=0.2), of(name, batch, beta=0.2 * times), slack=1e-9)
