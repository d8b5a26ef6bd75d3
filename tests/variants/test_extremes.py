"""Losses far outside ordinary training."""

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.losses.registry import variants
from tests.strategies import complete

FAR = [-1e4, -1e3, -100.0, 0.0, 100.0, 1e3, 1e4]


def probable(margins, dtype):
    """Pairs of these margins in which no log-probability is above 0: what became likelier was unlikely before."""
    given = torch.tensor(margins, dtype=dtype)[:, None]
    mask = torch.ones_like(given, dtype=torch.bool)
    chosen = Side(given.clamp(max=0).requires_grad_(), -given.clamp(min=0), mask)
    return Pairs(chosen, Side(torch.zeros_like(given).requires_grad_(), torch.zeros_like(given), mask))


def taken(name, margins, dtype, **params):
    bound, given = variants.get(name).bind(**params), probable(margins, dtype)
    loss = bound(complete(given, bound))
    loss.sum().backward()
    return loss.detach(), given.chosen.policy.grad[:, 0]


@pytest.mark.parametrize("name", variants.names())
@pytest.mark.parametrize("end", [0, -1])
def test_loss_and_gradient_are_finite_ten_thousand_nats_out(name, end):
    variant = variants.get(name)
    loss, slope = taken(name, FAR, torch.float32, **{variant.strength: variant.beta_grid[end]})
    assert loss.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize("name", variants.names())
def test_loss_and_gradient_are_finite_in_bfloat16(name):
    loss, slope = taken(name, [-3.0, -1.0, 0.0, 1.0, 3.0], torch.bfloat16)
    assert loss.isfinite().all()
    assert slope.isfinite().all()


def test_dpo_grows_linearly_when_a_pair_is_ranked_very_wrongly_and_keeps_pulling():
    loss, slope = taken("dpo", [-1e4, -1e3], torch.float32, beta=0.1)
    assert loss.tolist() == pytest.approx([1000.0, 100.0])
    assert slope.tolist() == pytest.approx([-0.1, -0.1])


def test_dpo_is_satisfied_when_a_pair_is_ranked_very_well():
    loss, slope = taken("dpo", [1e3, 1e4], torch.float32, beta=0.1)
    assert loss.tolist() == pytest.approx([0.0, 0.0], abs=1e-30)
    assert slope.tolist() == pytest.approx([0.0, 0.0], abs=1e-30)


def test_cdpo_pulls_back_with_flip_times_beta_when_far_past_its_target():
    loss, slope = taken("cdpo", [1e4], torch.float32, beta=0.1, flip=0.2)
    assert loss.tolist() == pytest.approx([200.0])
    assert slope.tolist() == pytest.approx([0.02])


def test_an_answer_equal_to_the_reference_has_a_mean_log_ratio_of_zero_not_nan():
    # An implementation that counts the tokens whose log-ratio is not 0 divides 0 by 0 here.
    loss, slope = taken("ipo", [0.0], torch.float32, beta=0.1)
    assert loss.tolist() == pytest.approx([25.0])
    assert slope.tolist() == pytest.approx([-10.0])
