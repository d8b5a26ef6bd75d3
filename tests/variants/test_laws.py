"""Every registered loss keeps every law."""

from dataclasses import replace

import pytest
import torch

from dpobench.errors import PluginRefused, UserError
from dpobench.losses.quantities import NEEDS
from dpobench.losses.registry import variants
from dpobench.plugins.plugin import Interval
from dpobench.testing import check, require
from dpobench.testing.batches import chosen_rows, leaf, leaves, mapped, ordinary
from dpobench.testing.loss_laws import LAWS
from dpobench.testing.probe import Probe


@pytest.mark.parametrize("name", variants.names())
def test_a_registered_loss_keeps_every_law(name):
    laws = check(variants.get(name))
    assert [law.name for law in laws] == ["declaration", *LAWS]
    assert [f"{law.name}: {law.reason}" for law in laws if not law.passed] == []


@pytest.mark.parametrize("name", variants.names())
def test_a_registered_loss_keeps_the_laws_at_the_ends_of_its_grid(name):
    variant = variants.get(name)
    for beta in (variant.beta_grid[0], variant.beta_grid[-1]):
        require(variant, {variant.strength: beta})


@pytest.mark.parametrize("name", [n for n in variants.names() if not variants.get(n).spec.stops_gradient])
def test_the_gradient_agrees_with_finite_differences(name):
    probe = Probe(variants.get(name))
    given = chosen_rows(probe.ordinary, [1, 4])
    known, names = probe.statistics(given), list(leaves(given))

    def total(*values):
        at = dict(zip(names, values, strict=True))
        moved = mapped(given, lambda where, what, tensor: at.get(leaf(where, what), tensor))
        return probe.objective(moved, statistics=known).each().sum()

    inputs = [tensor.clone().requires_grad_() for tensor in leaves(given).values()]
    assert torch.autograd.gradcheck(total, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def wrongly_declared(variant):
    """The same loss under declarations that are each wrong in one point."""
    spec = variant.spec
    for flag in ("reference", "couples_batch", "stops_gradient"):
        yield flag, {flag: not getattr(spec, flag)}
    for need in NEEDS:
        yield need, {"needs": tuple({*spec.needs} ^ {need})}
    for column in spec.columns:
        yield column, {"columns": {name: interval for name, interval in spec.columns.items() if name != column}}
    yield "a further column", {"columns": {**spec.columns, "unread": Interval("(0, 1)")}}
    yield "another start", {"start": 7.0}
    if spec.running:
        yield "running", {"running": None}


@pytest.mark.parametrize("name", variants.names())
def test_no_declaration_of_a_registered_loss_is_too_much_or_too_little(name):
    variant = variants.get(name)
    kept = []
    for what, other in wrongly_declared(variant):
        try:
            require(replace(variant, spec=replace(variant.spec, **other)))
            kept.append(what)
        except PluginRefused:
            pass
    assert kept == []


def test_the_fixture_has_unequal_lengths_a_one_token_answer_and_no_square_shape():
    given = ordinary()
    size, width = given.chosen.policy.shape
    assert width not in (size, 2 * size)
    assert {1.0} < set(given.chosen.length.tolist())
    assert 1.0 in given.rejected.length.tolist()
    assert (given.chosen.length != given.rejected.length).any()
    assert (given.chosen.length == given.rejected.length).any()


@pytest.mark.parametrize("name", variants.names())
def test_a_user_may_switch_off_what_a_loss_declares(name):
    # What a loss declares must matter at its defaults; a need, a column or a statistic may not at a weight of 0.
    variant = variants.get(name)
    for parameter in variant.parameters.values():
        if parameter.name != variant.strength and parameter.bounds is not None and 0.0 in parameter.bounds:
            require(variant, {parameter.name: 0.0})


def test_hyper_parameters_outside_the_grid_are_tried_too():
    # A target of 50,000 nats: no grid should hold it, but a user may ask for it.
    require(variants.get("ipo_sum"), {"beta": 1e-5})
    with pytest.raises(UserError, match="outside"):
        require(variants.get("ipo_sum"), {"beta": 0.0})
