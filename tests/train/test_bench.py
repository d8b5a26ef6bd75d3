"""The bench: what it needs, what it counts, and that it leaves the process as it was."""

import importlib.util
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dpobench import bench
from dpobench.bench.works import WORKS, draw_texts, perturbed, word_tokenizer
from dpobench.errors import DpobenchError, UserError
from tests.train import tiny


def test_without_trl_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"TRL, which is not installed; pip install 'dpobench\[parity\]'"):
        next(bench.run(tmp_path / "rows.json"))
    assert not (tmp_path / "rows.json").exists()


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_lengths_are_those_of_the_work_and_every_word_is_a_token(work):
    texts, tokenizer = draw_texts(work, 400), word_tokenizer()
    for name, (median, _) in (("prompt", work.prompt), ("chosen", work.answer), ("rejected", work.answer)):
        lengths = [len(text[name].split()) for text in texts]
        assert np.median(lengths) == pytest.approx(median, rel=0.2)
        assert lengths[:20] == [len(tokenizer(text[name])["input_ids"]) for text in texts[:20]]
    assert texts == draw_texts(work, 400)


def test_the_floor_counts_a_prompt_once_and_the_head_at_answers():
    # Per layer 4 x 32 x 32 of attention and 3 x 32 x 48 of the rest, two layers; a head of 32 x 48.
    body, head = 2 * (4 * 32 * 32 + 3 * 32 * 48), 32 * 48
    row = SimpleNamespace(prompt=[0] * 10, chosen=[0] * 3, rejected=[0] * 4)
    assert bench.floor_operations(tiny.llama(), [row, row]) == 6 * 2 * (body * 17 + head * 7)


def test_the_process_is_left_as_it_was():
    threads, before = torch.get_num_threads(), dict(os.environ)

    def fail():
        with bench._quiet():
            os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


def test_nothing_is_timed_where_the_two_sides_differ(monkeypatch, tmp_path):
    class Side:
        def __init__(self, *_, **__):
            pass

        def pairs(self, reference):
            return tiny.rows(2)

    monkeypatch.setattr(bench, "Ours", Side)
    monkeypatch.setattr(bench, "Theirs", Side)
    monkeypatch.setattr(bench, "disagreement", lambda ours, theirs: (1e-7, 6e-6))
    monkeypatch.setattr(bench, "small_llama", tiny.llama)
    with pytest.raises(DpobenchError, match="nothing is timed"):
        bench.measure(WORKS[0], "float32", bench.QUICK, tmp_path)


def test_a_perturbed_policy_is_near_its_reference_but_not_on_it():
    reference = tiny.llama()
    moved = tiny.flat(perturbed(reference).parameters())
    # Weights that are all ones, of the norms, have no spread and stay.
    assert 1e-3 < tiny.apart(moved, tiny.flat(reference.parameters())) < 0.03
