"""Held-out ranking on log-probabilities set by hand."""

import numpy as np
import pytest

from dpobench import DpobenchError
from dpobench.artifacts.scores import check
from dpobench.data.tokens import TokenPair
from dpobench.evals.preference import preference
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.models.logprobs import score_sequences
from dpobench.plugins.registry import spec_of

CHOSEN, REJECTED, PROMPT = np.array([3, 4, 0]), np.array([5, 0]), np.array([1, 2])


@pytest.fixture
def policy(tiny):
    return tiny.llama(seed=4)


def pair(policy, chosen_shifts, rejected_shifts, name="pair"):
    """A pair whose reference lies below the policy by the given nats per token."""
    chosen, rejected = score_sequences(policy, [(PROMPT, CHOSEN), (PROMPT, REJECTED)])
    reference = (chosen - np.float32(chosen_shifts), rejected - np.float32(rejected_shifts))
    return TokenPair(name, PROMPT, CHOSEN, REJECTED, {}, *reference)


def scored(tiny, policy, pairs, reference=None):
    held_out = tiny.held_out_of(tiny.samples_of({"p": [[1]]}), pairs=pairs)
    scores = preference(tiny.checkpoint_of(policy, reference), held_out)
    check(scores, spec_of(preference, EvaluatorSpec).metrics, "preference")
    return scores


def test_margins_and_shifts_equal_the_hand_computed_ones(tiny, policy):
    # Chosen: +0.5 +0.25 +0.75 = 1.5 over 3 tokens, 0.5 a token. Rejected: +1 +1 = 2 over 2 tokens, 1 a token.
    first = pair(policy, [0.5, 0.25, 0.75], [1, 1], "first")
    # Chosen: 3 x 0.5 = 1.5, rejected: 2 x 0.6 = 1.2: right by the sum, wrong per token.
    second = pair(policy, [0.5] * 3, [0.6] * 2, "second")
    scores = scored(tiny, policy, [first, second], reference=tiny.llama(seed=9))
    expected = {
        "margin": [-0.5, 0.3],
        "mean_margin": [-0.5, -0.1],
        "accuracy": [0, 1],
        "mean_accuracy": [0, 0],
        "chosen_shift": [1.5, 1.5],
        "rejected_shift": [2, 1.2],
        "length_difference": [1, 1],
    }
    for metric, values in expected.items():
        assert tiny.values(scores, metric) == pytest.approx(values, abs=1e-5), metric


def test_the_preference_of_a_known_loss_is_scored(tiny, policy):
    """Chosen 3 x 0.5 = 1.5 nats against 2 x 0.6 = 1.2: right by sums of log-ratios, whatever the reward per token."""
    pairs = [pair(policy, [0.5] * 3, [0.6] * 2), pair(policy, [30.0] * 3, [0.6] * 2)]
    checkpoint = tiny.checkpoint_of(policy, tiny.llama(seed=9))
    vars(checkpoint)["run"] = {"variant": "dpo", "params": {"beta": 0.1}, "strength": "beta"}
    scores = preference(checkpoint, tiny.held_out_of(tiny.samples_of({"p": [[1]]}), pairs=pairs))
    assert tiny.values(scores, "own_accuracy") == [1, 1]
    # beta times 88.8 nats is 8.9: the slope is sigma(-8.9), far below a hundredth of one half.
    assert tiny.values(scores, "saturated") == [0, 1]
    vars(checkpoint)["run"] = {}
    scores = preference(checkpoint, tiny.held_out_of(tiny.samples_of({"p": [[1]]}), pairs=pairs))
    assert not {"own_accuracy", "saturated"} & set(scores["metric"])


def test_pairs_of_one_prompt_are_draws_of_it(tiny, policy):
    """They fall on one side of the selection/test split together, and are no independent units."""
    twins = [pair(policy, [0, 0, 0], [0, 0], name) for name in ("first", "second")]
    scores = scored(tiny, policy, twins, reference=tiny.llama(seed=9))
    accuracy = scores[scores["metric"] == "accuracy"]
    assert accuracy["prompt"].nunique() == 1
    assert accuracy["draw"].tolist() == [0, 1]


def test_two_equal_sides_are_a_tie(tiny, policy):
    # The reference is the policy bit for bit.
    tied = pair(policy, [0, 0, 0], [0, 0])
    scores = scored(tiny, policy, [tied], reference=tiny.llama(seed=9))
    assert tiny.values(scores, "accuracy") == tiny.values(scores, "mean_accuracy") == [0.5]


def test_the_reference_is_at_one_half_whatever_the_rounding(tiny, policy):
    scores = scored(tiny, policy, [pair(policy, [1e-6, 0, 0], [0, -1e-6])])
    assert tiny.values(scores, "accuracy") == [0.5]
    assert tiny.values(scores, "margin") == tiny.values(scores, "chosen_shift") == [0]


def test_a_pair_without_reference_log_probabilities_is_an_error(tiny, policy):
    with pytest.raises(DpobenchError, match="held-out pair bare"):
        scored(tiny, policy, [TokenPair("bare", PROMPT, CHOSEN, REJECTED)])
