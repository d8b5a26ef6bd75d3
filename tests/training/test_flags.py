"""What a reader of the report learns about a training, in words."""

from dataclasses import replace

import pytest

from dpobench.training.log import LogRow, flags

CALM = LogRow(
    step=0, loss=0.6, margin=0.1, accuracy=1.0, ties=0.0, reward_chosen=0.1, reward_rejected=0.0, reward_beta=1.0,
    chosen_logp=-5.0, rejected_logp=-6.0, chosen_logratio=0.1, rejected_logratio=0.0, gradient_norm=0.5, learning_rate=1e-3,
    saturation=0.0, tokens=10, tokens_per_s=100.0, seconds=0.1,
)  # fmt: skip


def log_of(steps=10, **columns):
    """A calm log of ten steps; a column is a value for all steps or a list of one a step."""
    each = {name: values if isinstance(values, list) else [values] * steps for name, values in columns.items()}
    return [replace(CALM, step=step, **{name: each[name][step] for name in each}) for step in range(steps)]


def test_a_calm_training_has_no_flag():
    assert flags(log_of(), 1.0) == []
    assert flags(log_of(steps=1), 1.0) == []


@pytest.mark.parametrize(("clipped", "flagged"), [(10, True), (9, False), (0, False)])
def test_clipping_at_more_than_nine_steps_of_ten_is_flagged(clipped, flagged):
    sentences = flags(log_of(gradient_norm=[2.0] * clipped + [0.5] * (10 - clipped)), 1.0)
    assert sentences == (
        ["gradient clipped at 100% of the steps: the learning rate, not the loss, set the step size"] * flagged
    )


@pytest.mark.parametrize(("last", "flagged"), [(7.1, True), (6.9, False)])
def test_a_loss_that_ends_tenfold_is_flagged(last, flagged):
    sentences = flags(log_of(loss=[0.6] * 9 + [last]), 1.0)
    assert sentences == ([f"loss rose from 0.6 to {last}: unstable"] * flagged)


@pytest.mark.parametrize(("share", "flagged"), [(0.6, True), (0.5, False)])
def test_saturated_pairs_in_the_last_fifth_are_flagged(share, flagged):
    sentences = flags(log_of(saturation=[0.0] * 8 + [share] * 2), 1.0)
    assert any("saturated" in flag for flag in sentences) == flagged
    assert flags(log_of(saturation=[1.0] * 8 + [0.0] * 2), 1.0) == []


@pytest.mark.parametrize(("ratio", "flagged"), [(-1.1, True), (-0.9, False)])
def test_chosen_answers_that_became_unlikely_are_flagged(ratio, flagged):
    sentences = flags(log_of(chosen_logratio=[0.0] * 8 + [ratio] * 2), 1.0)
    assert sentences == (["the likelihood of chosen answers fell below the reference's"] * flagged)
