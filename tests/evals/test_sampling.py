"""Answers follow the model's own distribution, whatever its folder says about generation."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from dpobench import Prompt
from dpobench.checkpoint import load_model
from dpobench.heldout import Sampling
from dpobench.sampling import sample

SETTINGS = Sampling(draws=3, max_new_tokens=8, batch=4)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.llama(28)


@pytest.fixture(scope="module")
def prompts():
    return [Prompt(f"p{i}", ({"role": "user", "content": "x"},), tuple(range(2, 3 + i % 5))) for i in range(10)]


def test_the_same_seed_draws_the_same_answers(model, tokenizer, prompts):
    first = sample(model, tokenizer, prompts, SETTINGS, seed=3)
    torch.manual_seed(99)
    assert first.equals(sample(model, tokenizer, prompts, SETTINGS, seed=3))
    assert not first["token_ids"].equals(sample(model, tokenizer, prompts, SETTINGS, seed=4)["token_ids"])


def test_rows_come_in_the_order_of_the_prompts_and_draws_differ(model, tokenizer, prompts):
    found = sample(model, tokenizer, prompts, SETTINGS)
    assert found["prompt"].tolist() == [p.id for p in prompts for _ in range(3)]
    assert found["draw"].tolist() == [0, 1, 2] * 10
    texts = found.groupby("prompt")["text"].nunique()
    assert (texts > 1).mean() > 0.8


def test_ended_says_that_the_end_token_was_drawn(model, tokenizer, prompts):
    found = sample(model, tokenizer, prompts, SETTINGS)
    assert {True, False} == set(found["ended"])
    for row in found.itertuples():
        assert row.ended == (row.token_ids[-1] == 0)
        assert 0 not in row.token_ids[:-1]
        assert len(row.token_ids) == 8 or row.ended
        assert "<end>" not in row.text


LEAKING = [
    {"top_k": 5, "repetition_penalty": 2.0, "do_sample": True},
    {"temperature": 0.3, "do_sample": True},
    {"top_p": 0.5, "do_sample": True},
    {"min_p": 0.3, "do_sample": True},
    {"typical_p": 0.3, "do_sample": True},
    {"no_repeat_ngram_size": 1},
    {"suppress_tokens": [4, 5, 6]},
    {"min_new_tokens": 8},
]


@pytest.mark.parametrize("defaults", LEAKING, ids=lambda found: next(iter(found)))
def test_generation_defaults_of_the_folder_change_nothing(model, tokenizer, prompts, defaults, tmp_path):
    expected = sample(model, tokenizer, prompts, SETTINGS)
    model.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=0, **defaults).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    before = loaded.generation_config.to_dict()
    assert next(iter(defaults)) in before
    assert sample(loaded, tokenizer, prompts, SETTINGS)["token_ids"].equals(expected["token_ids"])
    assert loaded.generation_config.to_dict() == before


def test_first_tokens_follow_the_models_own_probabilities(model, tokenizer):
    prompt, draws = Prompt("p", ({"role": "user", "content": "x"},), (2, 3, 4)), 8_000
    found = sample(model, tokenizer, [prompt] * 2000, Sampling(draws=draws // 2000, max_new_tokens=1, batch=2000))
    with torch.no_grad():
        exact = model(torch.tensor([[2, 3, 4]])).logits[0, -1].softmax(-1).numpy()
    drawn = np.bincount([ids[0] for ids in found["token_ids"]], minlength=28) / draws
    # Five standard errors of every share; greedy, top-k or a penalty are off by far more.
    assert (np.abs(drawn - exact) < 5 * np.sqrt(exact * (1 - exact) / draws) + 1e-4).all()
    assert exact.max() < 0.9
