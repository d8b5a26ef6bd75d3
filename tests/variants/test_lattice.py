"""Losses that become one another at special hyper-parameters: mistakes of sign, of beta's place, of length show here."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpobench import Pairs
from tests.strategies import of, of_margins, pairs, same, swapped

BETAS = st.floats(0.01, 2.0)
FLIPS = st.floats(0.0, 0.49)
few = settings(max_examples=15, deadline=None, derandomize=True)


@few
@given(pairs(), BETAS)
def test_cdpo_without_flips_is_dpo(batch, beta):
    same(of("cdpo", batch, beta=beta, flip=0.0), of("dpo", batch, beta=beta))


@few
@given(pairs(), BETAS, FLIPS)
def test_cdpo_is_dpo_on_both_labels_weighted(batch, beta, flip):
    mixed = (1 - flip) * of("dpo", batch, beta=beta) + flip * of("dpo", swapped(batch), beta=beta)
    same(of("cdpo", batch, beta=beta, flip=flip), mixed)


@few
@given(pairs(), BETAS)
def test_cdpo_near_one_half_hardly_minds_which_answer_was_preferred(batch, beta):
    half = math.nextafter(0.5, 0.0)
    same(of("cdpo", batch, beta=beta, flip=half), of("cdpo", swapped(batch), beta=beta, flip=half))


@few
@given(pairs(), BETAS, FLIPS)
def test_cdpo_is_dpo_plus_flip_times_the_logits(batch, beta, flip):
    same(of("cdpo", batch, beta=beta, flip=flip), of("dpo", batch, beta=beta) + flip * beta * batch.margin)


@few
@given(pairs(), BETAS)
def test_dpo_minus_dpo_of_the_flipped_pair_is_minus_the_logits(batch, beta):
    same(of("dpo", batch, beta=beta) - of("dpo", swapped(batch), beta=beta), -beta * batch.margin)


@few
@given(pairs(), BETAS, st.floats(0.1, 10.0))
def test_dpo_knows_only_the_product_of_beta_and_margin(batch, beta, factor):
    stretched = Pairs(
        *(type(s)(s.policy * factor, s.reference * factor, s.mask) for s in (batch.chosen, batch.rejected))
    )
    same(of("dpo", batch, beta=beta * factor), of("dpo", stretched, beta=beta))


@few
@given(pairs(length=1), BETAS)
def test_ipo_on_one_token_answers_is_ipo_sum(batch, tau):
    same(of("ipo", batch, beta=tau), of("ipo_sum", batch, beta=tau))


@few
@given(st.integers(1, 4).flatmap(lambda n: st.tuples(st.just(n), pairs(length=n))), BETAS)
def test_at_equal_lengths_ipo_is_ipo_sum_with_tau_over_the_length(drawn, tau):
    # (D / n - 1 / (2 tau))^2 = (D - n / (2 tau))^2 / n^2.
    length, batch = drawn
    same(of("ipo", batch, beta=tau) * length**2, of("ipo_sum", batch, beta=tau / length))


@few
@given(pairs(), BETAS)
def test_scaled_ipo_is_tau_squared_times_ipo_sum(batch, tau):
    same(tau**2 * of("ipo_sum", batch, beta=tau), (tau * batch.margin - 0.5).square())


@few
@given(pairs(), BETAS)
def test_ipo_minus_ipo_of_the_flipped_pair_is_linear_in_the_margin(batch, tau):
    # (m - t)^2 - (-m - t)^2 = -4 m t with t = 1 / (2 tau).
    same(of("ipo", batch, beta=tau) - of("ipo", swapped(batch), beta=tau), -2 * batch.mean_margin / tau)
    same(of("ipo_sum", batch, beta=tau) - of("ipo_sum", swapped(batch), beta=tau), -2 * batch.margin / tau)


@pytest.mark.parametrize("beta", [1e-4, 1e-6])
def test_dpo_with_vanishing_beta_is_half_the_logits_below_log_two(beta):
    batch = of_margins([-2.0, 0.5, 3.0])
    loss = of("dpo", batch, beta=beta)
    (slope,) = torch.autograd.grad(loss.sum(), batch.chosen.policy)
    same((loss - math.log(2)) / beta, -batch.margin / 2, slack=2 * beta + 1e-9)
    same(slope / beta, torch.full_like(slope, -0.5), slack=beta)


@few
@given(pairs(), st.sampled_from(["dpo", "cdpo", "ipo", "ipo_sum"]), st.floats(-3, 3))
def test_moving_policy_and_reference_alike_changes_nothing(batch, name, by):
    moved = Pairs(*(type(s)(s.policy + by, s.reference + by, s.mask) for s in (batch.chosen, batch.rejected)))
    same(of(name, moved), of(name, batch), slack=1e-9)


@few
@given(pairs(), st.integers(2, 4))
def test_repeating_every_token_multiplies_sums_and_leaves_means(batch, times):
    repeated = Pairs(
        *(
            type(s)(*(t.repeat_interleave(times, dim=1) for t in (s.policy, s.reference, s.mask)))
            for s in (batch.chosen, batch.rejected)
        )
    )
    same(of("ipo", repeated, beta=0.5), of("ipo", batch, beta=0.5))
    same(of("dpo", repeated, beta=0.1), of("dpo", batch, beta=0.1 * times))
    same(of("ipo_sum", repeated, beta=0.1), of("ipo_sum", batch, beta=0.1 * times) * times**2)


@few
@given(pairs(), st.sampled_from(["dpo", "cdpo", "ipo", "ipo_sum"]))
def test_all_four_are_convex_in_the_margin(batch, name):
    down, up = (
        Pairs(type(batch.chosen)(batch.chosen.policy + h, batch.chosen.reference, batch.chosen.mask), batch.rejected)
        for h in (-0.5, 0.5)
    )
    assert (of(name, down) + of(name, up) - 2 * of(name, batch) >= -1e-9).all()
