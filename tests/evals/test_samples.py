"""Length, repetition and diversity on answers small enough to count by hand."""

import doctest
import math

import numpy as np
import pytest
import torch

from dpobench.artifacts.scores import check
from dpobench.data.tokens import TokenPair
from dpobench.evals import samples as module
from dpobench.evals.samples import distinct, repetition, samples
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.plugins.registry import spec_of

SONG = ["row", "row", "row", "your", "boat", "row", "row", "row", "your", "boat"]


def test_repeated_four_grams_are_counted_by_hand():
    # Windows: rrry rryb ryb. yb.. ... ; 10 words have 7, of which the last two (rrry, rryb) occurred before.
    assert repetition(SONG) == pytest.approx(2 / 7)
    assert repetition(["one", "two", "three", "four", "five"]) == 0
    assert repetition(["no"] * 12) == pytest.approx(8 / 9)
    assert repetition(["too", "short", "now"]) == 0


def test_distinct_n_grams_are_counted_by_hand():
    assert distinct(SONG, 1) == pytest.approx(3 / 10)
    # row-row, row-your, your-boat, boat-row among nine.
    assert distinct(SONG, 2) == pytest.approx(4 / 9)


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(module) == doctest.TestResults(0, 1)


def test_the_end_token_is_no_part_of_the_answer(tiny):
    frame = tiny.samples_of({"p": [[5, 6, 0], [5, 6, 7]]})
    frame["text"] = ["five six", "five six seven"]
    scores = samples(tiny.checkpoint_of(None), tiny.held_out_of(frame), entropies=0)
    check(scores, spec_of(samples, EvaluatorSpec).metrics, "samples")
    assert tiny.values(scores, "length") == [2, 3]
    assert tiny.values(scores, "words") == [2, 3]
    assert tiny.values(scores, "ended") == [1, 0]
    assert tiny.values(scores, "distinct_1") == [1, 1]


def test_an_empty_answer_has_length_zero_and_no_diversity(tiny):
    scores = samples(tiny.checkpoint_of(None), tiny.held_out_of(tiny.samples_of({"p": [[0], [4, 0]]})), entropies=0)
    assert tiny.values(scores, "length") == [0, 1]
    assert tiny.values(scores, "distinct_1") == [1]
    assert tiny.values(scores, "distinct_2") == []
    assert tiny.values(scores, "repetition") == [0, 0]


def test_the_entropy_is_that_of_the_whole_next_token_distribution(tiny):
    """Against a plain pass over each answer alone; the position that drew the end token counts."""
    policy, prompts = tiny.llama(seed=3), {"one": (1, 2, 3), "two": (4, 5)}
    answers = {"one": [[5, 6, 0], [7, 0]], "two": [[8, 9, 8, 9]]}
    expected = []
    for key, drawn in answers.items():
        for ids in drawn:
            with torch.no_grad():
                logits = policy(torch.tensor([[*prompts[key], *ids]])).logits[0].double()
            p = logits.softmax(-1)[len(prompts[key]) - 1 : -1]
            expected.append(-(p * p.log()).sum(-1).mean().item())
    held_out = tiny.held_out_of(tiny.samples_of(answers), prompts=prompts)
    scores = samples(tiny.checkpoint_of(policy), held_out)
    check(scores, spec_of(samples, EvaluatorSpec).metrics, "samples")
    assert tiny.values(scores, "entropy") == pytest.approx(expected, abs=1e-5)
    assert max(expected) < math.log(11)
    few = samples(tiny.checkpoint_of(policy), held_out, entropies=2)
    assert tiny.values(few, "entropy") == pytest.approx(expected[:2], abs=1e-5)


def test_a_policy_that_spreads_evenly_has_the_entropy_of_its_vocabulary(tiny):
    policy = tiny.llama(seed=3)
    with torch.no_grad():
        policy.get_output_embeddings().weight.zero_()
    scores = samples(tiny.checkpoint_of(policy), tiny.held_out_of(tiny.samples_of({"p": [[5, 0]]})))
    assert tiny.values(scores, "entropy") == pytest.approx([math.log(11)])


def test_chosen_answers_of_the_data_are_counted_like_samples_and_belong_to_their_prompt(tiny):
    def pair(prompt, chosen):
        return TokenPair("pair", np.array(prompt), np.array(chosen), np.array([9, 0]))

    # Cut answers have no end token: all three of 7 7 7 count.
    pairs = [pair([1, 2], [7, 7, 0]), pair([1, 2], [7, 7, 7]), pair([3], [0])]
    held_out = tiny.held_out_of(tiny.samples_of({"p": [[5, 0]]}), prompts={"p": (1, 2)}, pairs=pairs)
    scores = samples(tiny.checkpoint_of(None), held_out, entropies=0)
    chosen = scores[scores["metric"] == "chosen_length"]
    assert chosen["value"].tolist() == [2, 3, 0]
    assert chosen["draw"].tolist() == [0, 1, 0]
    assert chosen["prompt"].tolist()[:2] == ["p", "p"]
    policy = samples(tiny.checkpoint_of(None, tiny.llama()), held_out, entropies=0)
    assert "chosen_length" not in set(policy["metric"])
