"""Every registered loss keeps every law."""

import pytest
import torch

from dpobench.errors import UserError
from dpobench.registry import variants
from dpobench.testing import check, require
from dpobench.testing.laws import LAWS
from dpobench.testing.probe import chosen_rows, ordinary


@pytest.mark.parametrize("name", variants.names())
def test_a_registered_loss_keeps_every_law(name):
    found = check(variants.get(name))
    assert [law.name for law in found] == ["declaration", *LAWS]
    assert [f"{law.name}: {law.reason}" for law in found if not law.passed] == []


@pytest.mark.parametrize("name", variants.names())
def test_a_registered_loss_keeps_the_laws_at_the_ends_of_its_grid(name):
    variant = variants.get(name)
    for beta in (variant.beta_grid[0], variant.beta_grid[-1]):
        require(variant, {variant.strength: beta})


@pytest.mark.parametrize("name", variants.names())
def test_the_gradient_agrees_with_finite_differences(name):
    given = chosen_rows(ordinary(), [1, 4])
    leaves = [side.policy.clone().requires_grad_() for side in (given.chosen, given.rejected)]

    def total(chosen, rejected):
        sides = [
            type(s)(policy, s.reference, s.mask)
            for s, policy in zip((given.chosen, given.rejected), (chosen, rejected), strict=True)
        ]
        return variants.get(name).bind()(type(given)(sides[0], sides[1])).sum()

    assert torch.autograd.gradcheck(total, leaves, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_the_fixture_has_unequal_lengths_a_one_token_answer_and_no_square_shape():
    given = ordinary()
    size, width = given.chosen.policy.shape
    assert width not in (size, 2 * size)
    assert {1.0} < set(given.chosen.length.tolist())
    assert 1.0 in given.rejected.length.tolist()
    assert (given.chosen.length != given.rejected.length).any()
    assert (given.chosen.length == given.rejected.length).any()


def test_hyper_parameters_outside_the_grid_are_tried_too():
    # A target of 50,000 nats: no grid should hold it, but a user may ask for it.
    require(variants.get("ipo_sum"), {"beta": 1e-5})
    with pytest.raises(UserError, match="outside"):
        require(variants.get("ipo_sum"), {"beta": 0.0})
