"""The bench: what it needs, what it counts, and that it leaves the process as it was."""

import importlib.util
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dpobench.bench import run as bench
from dpobench.bench import step
from dpobench.bench.sides import gradient_difference
from dpobench.bench.suites import FULL, StepSpec
from dpobench.bench.workloads import WORKLOADS, draw_texts, perturbed, word_tokenizer, workload_of
from dpobench.errors import DpobenchError, UserError
from tests.training import tiny


def test_without_trl_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TRL, which is not installed; pip install 'dpobench\[parity\]'"):
        next(bench.run(tmp_path / "rows.json", FULL))
    assert not (tmp_path / "rows.json").exists()


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_lengths_are_those_of_the_workload_and_every_word_is_a_token(workload):
    texts, tokenizer = draw_texts(workload, 400), word_tokenizer()
    medians = {"prompt": workload.prompt[0], "chosen": workload.answer[0], "rejected": workload.answer[0]}
    for name, median in medians.items():
        lengths = [len(text[name].split()) for text in texts]
        assert np.median(lengths) == pytest.approx(median, rel=0.2)
        assert lengths[:20] == [len(tokenizer(text[name])["input_ids"]) for text in texts[:20]]
    assert texts == draw_texts(workload, 400)


def test_lengths_of_a_file_are_those_of_its_pairs_and_too_long_ones_are_left_out(tmp_path):
    # Words and marks: "Say it, please." has 5, "it" 1 (2 is the least), "No. Never!" 4; the second pair has too many.
    pairs = [("Say it, please.", "it", "No. Never!"), ("why " * 20, "a b", "c d")]
    lines = [
        json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) for prompt, chosen, rejected in pairs
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    workload = workload_of(str(tmp_path / "mine.jsonl"), longest=20)
    assert (workload.name, workload.lengths) == ("mine", ((5, 2, 4),))
    (text,) = draw_texts(workload, 1)
    assert [len(text[name].split()) for name in ("prompt", "chosen", "rejected")] == [5, 2, 4]
    with pytest.raises(UserError, match="no pair of at most 3 words"):
        workload_of(str(tmp_path / "mine.jsonl"), longest=3)


def test_a_head_that_is_the_embedding_counts_once_where_it_is_used():
    row = SimpleNamespace(prompt=[0] * 10, chosen=[0] * 3, rejected=[0] * 4)
    tied, free = tiny.llama(tie_word_embeddings=True), tiny.llama()
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert step.floor_operations(tied, [row]) == step.floor_operations(free, [row])


def test_the_floor_counts_a_prompt_once_and_the_head_at_answers():
    # Per layer 4 x 32 x 32 of attention and 3 x 32 x 48 of the rest, two layers; a head of 32 x 48.
    body, head = 2 * (4 * 32 * 32 + 3 * 32 * 48), 32 * 48
    row = SimpleNamespace(prompt=[0] * 10, chosen=[0] * 3, rejected=[0] * 4)
    assert step.floor_operations(tiny.llama(), [row, row]) == 6 * 2 * (body * 17 + head * 7)


@pytest.mark.parametrize(("updates", "difference"), [((1.0, 1.0), 0.0), ((1.0, 1.5), 0.5)])
def test_the_difference_of_two_gradients_is_that_of_one_long_vector(updates, difference):
    """Gradients of 1 on all weights, and one side's on its head raised."""
    models = [tiny.llama(), tiny.llama()]
    for model, head in zip(models, updates, strict=True):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        model.get_output_embeddings().weight.grad *= head
    count, head = (sum(w.numel() for w in part.parameters()) for part in (models[0], models[0].lm_head))
    # 0.5 on the head's weights against the norm of the second side's gradient.
    norm = (count - head + head * updates[1] ** 2) ** 0.5
    assert gradient_difference(*models) == pytest.approx(difference * head**0.5 / norm, rel=1e-12)


def test_the_process_is_left_as_it_was():
    threads, before = torch.get_num_threads(), dict(os.environ)

    def fail():
        with bench.quiet():
            os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


class FakeSide:
    """A side whose step has a given loss, and gradients of 1 on all weights."""

    def __init__(self, loss):
        self.model, self.loss, self.steps = tiny.llama(), loss, 0
        self.auxiliary = SimpleNamespace(packed=True)

    def accumulate(self):
        for weight in self.model.parameters():
            weight.grad = torch.ones_like(weight)
        return self.loss

    def update(self):
        self.steps += 1

    def step(self):
        self.accumulate()
        self.update()


def contest(trl_loss):
    ours, trl = FakeSide(1.0), {1: FakeSide(1.0), 8: FakeSide(trl_loss)}
    return step.Contest(StepSpec(WORKLOADS[0]), ours, trl, tiny.rows(2), tiny.llama())


def test_nothing_is_timed_where_the_two_sides_differ():
    """A relative difference of 6e-6, where rounding allows 5e-6."""
    pair = contest(1 / (1 + 6e-6))
    with pytest.raises(DpobenchError, match="differ from TRL's by 6e-06 and 0; nothing is timed"):
        step.measure(pair, repeats=3)
    # The step that is compared, and no other.
    assert [side.steps for side in (pair.ours, *pair.trl.values())] == [1, 1, 1]


def test_sides_that_agree_take_every_timed_step_in_turns():
    pair = contest(1 / (1 + 4e-6))
    timing = step.measure(pair, repeats=3)
    assert [side.steps for side in (pair.ours, *pair.trl.values())] == [4, 4, 4]
    assert timing.loss_difference == pytest.approx(4e-6, rel=1e-3)
    assert (timing.work, timing.dtype, timing.layout) == ("hh-like", "float32", "packed")
    assert timing.ratio_to_trl_best == min(timing.ratio_to_trl_best, timing.ratio_to_trl_batch8)
    assert set(timing.trl_seconds) == {"1", "8"}


def test_a_perturbed_policy_is_near_its_reference_but_not_on_it():
    reference = tiny.llama()
    moved = tiny.flat(perturbed(reference).parameters())
    # Weights that are all ones, of the norms, have no spread and stay.
    assert 1e-3 < tiny.apart(moved, tiny.flat(reference.parameters())) < 0.03
