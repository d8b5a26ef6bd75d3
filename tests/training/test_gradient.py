"""The gradient of a step against one worked out from whole logits, and against itself in other micro-batches."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpobench.losses.registry import LossRegistry
from dpobench.models.logprobs import Batch, completion_logps, pair_batch
from dpobench.training import gradient as step_module
from dpobench.training.gradient import gradient
from dpobench.training.loss_inputs import lay_out, loss_pairs, policy_values
from tests.training import tiny

LOSSES = tiny.losses()
PLUGINS = Path(__file__).parents[1] / "testing" / "losses"
COUPLED = ("distributional", "transport")


def taken(model, bound, rows, accelerator, budget=10_000):
    model.zero_grad()
    reference = tiny.llama(seed=5, dtype=next(model.parameters()).dtype)
    measured = gradient(model, bound, rows, accelerator, budget, tiny.auxiliary(bound, reference))
    return tiny.gradients(model), measured


def at_once(model, bound, rows):
    """The gradient by one backward pass through the whole batch, the loss called once."""
    model.zero_grad()
    reference = tiny.llama(seed=5, dtype=next(model.parameters()).dtype).eval()
    layout = lay_out(rows, bound, "cpu")
    with torch.no_grad():
        statistics = bound.update(loss_pairs(policy_values(model, layout, bound, reference), layout), bound.initial())
    bound(loss_pairs(policy_values(model, layout, bound, reference), layout, statistics)).mean().backward()
    return tiny.gradients(model)


def by_hand(model, row):
    """Log-probability of every answer token from the whole logits of one unpadded sequence at a time."""
    logps = []
    for answer in (row.chosen, row.rejected):
        ids = torch.tensor(np.concatenate([row.prompt, answer]))
        table = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        logps.append(torch.stack([table[len(row.prompt) + i - 1, int(token)] for i, token in enumerate(answer)]))
    return logps


def log_ratios(model, row):
    chosen, rejected = by_hand(model, row)
    return chosen - torch.tensor(row.chosen_reference), rejected - torch.tensor(row.rejected_reference)


FORMULAS = {
    "dpo": lambda c, r: -F.logsigmoid(0.3 * (c.sum() - r.sum())),
    "ipo": lambda c, r: (c.mean() - r.mean() - 1 / 0.6) ** 2,
    "ipo_sum": lambda c, r: (c.sum() - r.sum() - 1 / 0.6) ** 2,
    "cdpo": lambda c, r: -0.9 * F.logsigmoid(0.3 * (c.sum() - r.sum())) - 0.1 * F.logsigmoid(0.3 * (r.sum() - c.sum())),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_loss_and_gradient_are_those_of_the_printed_formula(name, drifted, accelerator):
    model = tiny.llama(dtype=torch.float64).train()
    each = [FORMULAS[name](*log_ratios(model, row)) for row in drifted]
    (sum(each) / len(each)).backward()
    wanted = tiny.gradients(model)
    taken_gradient, measured = taken(model, LOSSES.get(name).bind(beta=0.3), drifted, accelerator, budget=150)
    torch.testing.assert_close(measured.per_pair["loss"].double(), torch.stack(each).detach(), rtol=2e-6, atol=1e-6)
    assert tiny.apart(taken_gradient, wanted) < 1e-9


@pytest.mark.parametrize("name", LOSSES.names())
def test_micro_batches_of_one_two_four_and_eight_pairs_give_the_gradient_of_the_whole(
    name, drifted, accelerator, monkeypatch
):
    model, bound = tiny.llama(dtype=torch.float64).train(), LOSSES.get(name).bind()
    wanted = at_once(model, bound, drifted)
    measured = {}
    for size in (1, 2, 4, 8):
        monkeypatch.setattr(step_module, "by_tokens", cut_into(size))
        in_parts, measured[size] = taken(model, bound, drifted, accelerator)
        assert tiny.apart(in_parts, wanted) <= 1e-6, size
    for key, value in measured[8].per_pair.items():
        torch.testing.assert_close(measured[1].per_pair[key], value, rtol=2e-5, atol=2e-5, msg=key)
    assert measured[1].statistics == pytest.approx(measured[8].statistics)


def cut_into(size):
    """Micro-batches of so many pairs, in an order that is not theirs."""
    return lambda sizes, budget: [
        list(range(first, len(sizes)))[:size] for first in reversed(range(0, len(sizes), size))
    ]


def test_a_token_mean_is_not_the_mean_over_micro_batches(drifted, accelerator):
    model, bound = tiny.llama().train(), LOSSES.get("sft").bind()
    whole, _ = taken(model, bound, drifted, accelerator)
    halves = [taken(model, bound, half, accelerator)[0] for half in (drifted[:8], drifted[8:])]
    assert tiny.apart(sum(halves) / 2, whole) > 1e-3


def shapes_read(model):
    """Shapes of the token ids that a model reads from now on, pass by pass."""
    shapes = []

    def note(module, inputs, output):
        if inputs[0].shape != (1, 1):  # at its first use a head is tested with a single token
            shapes.append(inputs[0].shape)

    model.get_input_embeddings().register_forward_hook(note)
    return shapes


def test_a_small_budget_cuts_the_batch_and_a_large_one_does_not(drifted, accelerator):
    model, bound = tiny.llama().train(), LOSSES.get("dpo").bind()
    shapes = shapes_read(model)
    taken(model, bound, drifted, accelerator)
    taken(model, bound, drifted, accelerator, budget=8)
    # Two sides of each pair.
    assert [rows for rows, _ in shapes] == [2 * 16] + [2] * 16


@pytest.mark.parametrize("name", COUPLED)
def test_a_coupled_loss_is_not_the_mean_of_its_micro_batches(name, drifted, accelerator):
    model, bound = tiny.llama().train(), LOSSES.get(name).bind()
    whole, _ = taken(model, bound, drifted, accelerator)
    halves = [taken(model, bound, half, accelerator)[0] for half in (drifted[:8], drifted[8:])]
    assert tiny.apart(sum(halves) / 2, whole) > 1e-3


def test_padding_does_not_change_the_log_probabilities_or_the_gradient(drifted):
    model = tiny.llama().train()
    batch = pair_batch(drifted[:8])
    wider = pair_batch(drifted[:8])
    wider.ids, wider.attention = F.pad(batch.ids, (0, 37)), F.pad(batch.attention, (0, 37))
    results = []
    for given in (batch, wider):
        model.zero_grad()
        logps = completion_logps(model, given)
        logps.sum().backward()
        results.append((logps.detach().double().flatten(), tiny.gradients(model)))
    (logps, slopes), (wider_logps, wider_slopes) = results
    assert tiny.apart(wider_logps, logps) <= 5e-6
    assert tiny.apart(wider_slopes, slopes) <= 5e-6


def test_pairs_of_very_different_lengths_do_not_touch_each_other(accelerator):
    pairs = tiny.scored([*tiny.rows(1, seed=1, longest=3), *tiny.rows(1, seed=2, longest=40)], tiny.llama(seed=5))
    model, bound = tiny.llama().train(), LOSSES.get("dpo").bind()
    together, _ = taken(model, bound, pairs, accelerator)
    alone = [taken(model, bound, [pair], accelerator)[0] for pair in pairs]
    assert tiny.apart(together, sum(alone) / 2) <= 5e-6


def test_the_end_token_counts_and_the_prompt_does_not():
    model = tiny.llama().eval()
    batch = Batch([([5, 6, 7], [8, tiny.END]), ([9], [10, 11, tiny.END])])
    with torch.no_grad():
        table = model(input_ids=torch.tensor([[5, 6, 7, 8, tiny.END]])).logits[0].log_softmax(-1)
        logps = completion_logps(model, batch)
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
    # The token at position i is predicted by position i - 1: answer token 8 by the last prompt token, the end token by 8.
    wanted = torch.stack([table[2, 8], table[3, tiny.END]])
    torch.testing.assert_close(logps[0, :2], wanted, rtol=1e-6, atol=1e-6)
    assert logps[0, 2] == 0


def test_every_answer_token_moves_the_loss_once_and_no_prompt_token_does(drifted, accelerator):
    """By each chosen token it is -beta x sigmoid(-margin) / B, by each rejected token its negative."""
    model, bound = tiny.llama().eval(), LOSSES.get("dpo").bind(beta=0.3)
    rows = drifted[:3]
    layout = lay_out(rows, bound, "cpu")
    logps = completion_logps(model, layout.completions).detach().requires_grad_()
    pairs = loss_pairs({"logp": logps}, layout)
    bound(pairs).mean().backward()
    for i, row in enumerate(rows):
        derivative = 0.3 / (1 + math.exp(0.3 * pairs.margin[i].item())) / 3
        lengths = len(row.chosen), len(row.rejected)
        for side, length, sign in ((logps.grad[i], lengths[0], -1), (logps.grad[3 + i], lengths[1], 1)):
            torch.testing.assert_close(side[:length], torch.full((length,), sign * derivative), rtol=1e-5, atol=1e-8)
            assert not side[length:].any()


def test_columns_of_the_data_reach_the_loss_and_absent_ones_are_nan(drifted):
    rows = [replace(drifted[0], columns={"score": 2.0}), drifted[1]]
    layout = lay_out(rows, LOSSES.get("dpo").bind(), "cpu")
    given = loss_pairs({"logp": torch.zeros(layout.completions.mask.shape)}, layout).columns["score"]
    assert given[0] == 2.0
    assert given[1].isnan()


@pytest.mark.parametrize("name", LOSSES.names())
def test_at_the_start_a_gradient_in_float32_does_not_depend_on_the_cutting_either(name, accelerator):
    # Losses with a kink at policy = reference would follow the sign of a rounding error there.
    rows = tiny.scored(tiny.rows(12, seed=8, longest=40), tiny.llama())
    model, bound, by_budget = tiny.llama().eval(), LOSSES.get(name).bind(), []
    for budget in (1, 90, 10_000):
        model.zero_grad()
        auxiliary = replace(tiny.auxiliary(bound, tiny.llama()), reference_is_policy=True)
        by_budget.append((gradient(model, bound, rows, accelerator, budget, auxiliary), tiny.gradients(model)))
    for measured, slopes in by_budget[1:]:
        assert tiny.apart(slopes, by_budget[0][1]) <= 1e-5
        assert measured.per_pair["margin"].eq(0).all()


def test_an_uncoupled_loss_may_read_mismatched_answers(drifted, accelerator):
    registry = LossRegistry()
    registry.add_file(PLUGINS / "accepted.py")
    model, bound = tiny.llama(dtype=torch.float64).eval(), registry.get("own_uncoupled_mismatched").bind()
    wanted = at_once(model, bound, drifted)
    in_parts, _ = taken(model, bound, drifted, accelerator, budget=90)
    assert tiny.apart(in_parts, wanted) <= 1e-6


def test_micro_batches_keep_the_budget_in_the_pass_over_mismatched_answers_too(drifted, accelerator):
    short = [replace(row, chosen=row.chosen[-1:], rejected=row.rejected[:1]) for row in drifted]
    model, longest = tiny.llama().eval(), 0
    for row in short:
        other = row.mismatched
        longest = max(longest, 2 * (len(row.prompt) + max(len(other.chosen), len(other.rejected))))
    shapes = shapes_read(model)
    taken(model, LOSSES.get("kto").bind(), short, accelerator, budget=2 * longest)
    sizes = [shape.numel() for shape in shapes]
    assert longest < max(sizes) <= 2 * longest
