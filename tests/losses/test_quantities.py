"""Quantities of next-token distributions that losses may declare, against whole softmax tables worked out one row at a time."""

import numpy as np
import pytest
import torch

from dpobench.losses.quantities import NEEDS
from dpobench.models.logprobs import completion_logps, completion_values, pair_batch
from tests.training import tiny

FULL = [need for need in NEEDS.values() if need.source in ("policy", "both")]
EPSILON = {"epsilon": 0.3}


def options(need):
    return EPSILON if need.name.endswith("polated") else {}


def tables(model, row, answer):
    """Next-token log-probabilities at every token of an answer, from one unpadded sequence."""
    ids = torch.tensor(np.concatenate([row.prompt, answer]))
    return model(input_ids=ids[None]).logits[0].double()[len(row.prompt) - 1 : -1].log_softmax(-1)


def by_hand(name, policy, reference, ids):
    index = torch.tensor(ids)[:, None]
    if name == "collision":
        return policy.exp().square().sum(-1).log()
    if name == "reference_kl":
        p, q = reference.exp(), policy.exp()
        return (p * (p / q).log()).sum(-1)
    step = EPSILON["epsilon"] if name == "extrapolated" else -EPSILON["epsilon"]
    # policy^(1 + step) / reference^step, normalised.
    weight = policy.exp() ** (1 + step) / reference.exp() ** step
    return (weight / weight.sum(-1, keepdim=True)).log().gather(1, index).squeeze(1)


@pytest.fixture(scope="module")
def models():
    return tiny.llama(dtype=torch.float64).eval(), tiny.llama(seed=5, dtype=torch.float64).eval()


@pytest.mark.parametrize("need", FULL, ids=lambda need: need.name)
def test_a_quantity_is_that_of_the_whole_distribution(need, models):
    policy, reference = models
    rows = tiny.rows(4)
    batch = pair_batch(rows)
    found = completion_values(policy, batch, [(need, options(need))], reference)[need.name]
    for place, (row, answer) in enumerate([*((r, r.chosen) for r in rows), *((r, r.rejected) for r in rows)]):
        wanted = by_hand(need.name, tables(policy, row, answer), tables(reference, row, answer), answer)
        assert torch.allclose(found[place, : len(answer)], wanted, atol=1e-9)
        assert not found[place, len(answer) :].any()


def test_asking_for_more_does_not_change_the_log_probabilities(models):
    policy, reference = models
    batch = pair_batch(tiny.rows(4))
    quantities = [(need, options(need)) for need in FULL]
    found = completion_values(policy, batch, quantities, reference)["logp"]
    assert torch.allclose(found, completion_logps(policy, batch), atol=1e-12)


def test_the_gradient_flows_through_the_divergence_and_through_nothing_else(models):
    policy, reference = models
    for need in FULL:
        values = completion_values(policy, pair_batch(tiny.rows(2)), [(need, options(need))], reference)
        assert values[need.name].requires_grad == need.differentiable, need.name
        assert values["logp"].requires_grad
    assert [need.name for need in FULL if need.differentiable] == ["reference_kl"]


def test_the_gradient_of_the_divergence_is_its_slope(models):
    reference = models[1]
    policy, batch = tiny.llama(dtype=torch.float64).eval(), pair_batch(tiny.rows(2))
    quantities = [(NEEDS["reference_kl"], {})]

    def total():
        return completion_values(policy, batch, quantities, reference)["reference_kl"].sum()

    total().backward()
    weight, step = policy.lm_head.weight, 1e-6
    slope = float(weight.grad[7, 3])
    with torch.no_grad():
        weight[7, 3] += step
        above = float(total())
        weight[7, 3] -= 2 * step
        below = float(total())
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("need", FULL, ids=lambda need: need.name)
def test_where_the_policy_equals_the_reference_a_quantity_has_its_start(need, models):
    reference = models[1]
    values = completion_values(reference, pair_batch(tiny.rows(3)), [(need, options(need))], reference)
    start = {"zero": torch.zeros_like(values["logp"]), "reference": values["logp"], "same": values[need.name]}
    assert torch.allclose(values[need.name], start[need.start], atol=1e-10)
