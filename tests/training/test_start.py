"""Before the first step the policy must be the reference; a run on other log-probabilities must not begin."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpobench.errors import DpobenchError
from dpobench.losses.variant import Variant
from dpobench.training.checks import check_start
from dpobench.training.loss_inputs import AuxiliaryState
from tests.training import tiny

LOSSES = tiny.losses()


def dpo(**params):
    return LOSSES.get("dpo").bind(**params)


@pytest.mark.parametrize("name", LOSSES.names())
def test_the_right_reference_passes(name, pairs, accelerator):
    checks = check_start(tiny.llama(), LOSSES.get(name).bind(), pairs[:8], accelerator, AuxiliaryState(tiny.llama()))
    assert checks.start_margin < 1e-6
    if checks.start_declared is not None:
        assert checks.start_loss == pytest.approx(checks.start_declared, rel=1e-6, abs=1e-5)


def test_the_start_value_of_the_logistic_loss_is_log_two(pairs, accelerator):
    checks = check_start(tiny.llama(), dpo(beta=0.3), pairs[:8], accelerator)
    assert checks.start_loss == pytest.approx(math.log(2), abs=1e-6)
    assert checks.start_declared == math.log(2)


SPOILED = {
    "of another model": lambda rows: tiny.scored(rows, tiny.llama(seed=5)),
    "one token late": lambda rows: [
        r.with_reference(np.append(0, r.chosen_reference[:-1]), np.append(0, r.rejected_reference[:-1])) for r in rows
    ],
    "of the next pair": lambda rows: [
        replace(r, chosen_reference=s.chosen_reference, rejected_reference=s.rejected_reference)
        for r, s in zip(rows, [*rows[1:], rows[0]], strict=True)
    ],
    "swapped": lambda rows: [
        replace(r, chosen_reference=r.rejected_reference, rejected_reference=r.chosen_reference) for r in rows
    ],
    "of one pair only": lambda rows: [replace(rows[0], chosen_reference=rows[0].chosen_reference - 0.01), *rows[1:]],
}


def equal_lengths(rows):
    """Answers of two tokens, so that the arithmetic must find the fault and not a length."""
    cut = [replace(r, chosen=r.prompt[[0, -1]], rejected=r.prompt[[-1, 0]]) for r in rows]
    return tiny.scored(cut, tiny.llama())


@pytest.mark.parametrize("fault", SPOILED)
def test_log_probabilities_of_something_else_are_refused(fault, pairs, accelerator):
    spoiled = SPOILED[fault](equal_lengths(pairs[:8]))
    with pytest.raises(
        DpobenchError, match=r"at step 0 a .* not 0: the reference log-probabilities are not this model's"
    ):
        check_start(tiny.llama(), dpo(), spoiled, accelerator)


def test_a_shift_that_cancels_in_the_margin_is_refused(pairs, accelerator):
    rows = equal_lengths(pairs[:8])
    shifted = [
        replace(r, chosen_reference=r.chosen_reference - 0.5, rejected_reference=r.rejected_reference - 0.5)
        for r in rows
    ]
    with pytest.raises(DpobenchError, match="the reference log-probabilities are not this model's"):
        check_start(tiny.llama(), dpo(), shifted, accelerator)


def test_another_policy_than_the_reference_is_refused(pairs, accelerator):
    with pytest.raises(DpobenchError, match="not this model's"):
        check_start(tiny.llama(seed=1), dpo(), pairs[:8], accelerator)


def test_a_wrong_declared_start_is_refused_with_both_values(pairs, accelerator):
    honest = LOSSES.get("dpo")
    liar = Variant("variant", "liar", honest.function, replace(honest.spec, start=0.5), honest.file)
    with pytest.raises(DpobenchError, match=r"at step 0 liar is 0\.693147; its declared start is 0\.5"):
        check_start(tiny.llama(), liar.bind(), pairs[:8], accelerator)


def test_a_log_probability_that_is_not_a_number_is_refused(pairs, accelerator):
    spoiled = [replace(pairs[0], chosen_reference=pairs[0].chosen_reference * math.nan), *pairs[1:8]]
    with pytest.raises(DpobenchError, match=r"at step 0 a .* is nan"):
        check_start(tiny.llama(), dpo(), spoiled, accelerator)


def test_the_check_leaves_no_gradient_behind(pairs, accelerator):
    model = tiny.llama().train()
    check_start(model, dpo(), pairs[:8], accelerator)
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.is_grad_enabled()
