"""Answers follow the model's own distribution, whatever its folder says about generation."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from dpobench import DpobenchError, Prompt
from dpobench.models import generate
from dpobench.models.checkpoint import load_model
from dpobench.models.generate import Sampling, sample, warper

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
    answers = sample(model, tokenizer, prompts, SETTINGS)
    assert answers["prompt"].tolist() == [p.id for p in prompts for _ in range(3)]
    assert answers["draw"].tolist() == [0, 1, 2] * 10
    texts = answers.groupby("prompt")["text"].nunique()
    assert (texts > 1).mean() > 0.8


def test_ended_says_that_the_end_token_was_drawn(model, tokenizer, prompts):
    answers = sample(model, tokenizer, prompts, SETTINGS)
    assert {True, False} == set(answers["ended"])
    for row in answers.itertuples():
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


@pytest.mark.parametrize("defaults", LEAKING, ids=lambda defaults: next(iter(defaults)))
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
    answers = sample(model, tokenizer, [prompt] * 2000, Sampling(draws=draws // 2000, max_new_tokens=1, batch=2000))
    with torch.no_grad():
        exact = model(torch.tensor([[2, 3, 4]])).logits[0, -1].softmax(-1).numpy()
    drawn = np.bincount([ids[0] for ids in answers["token_ids"]], minlength=28) / draws
    # Five standard errors of every share; greedy, top-k or a penalty are off by far more.
    assert (np.abs(drawn - exact) < 5 * np.sqrt(exact * (1 - exact) / draws) + 1e-4).all()
    assert exact.max() < 0.9


def neox():
    return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=24))


def gemma2():
    """Attention in windows of four tokens in every other layer: its cache forgets."""
    sizes = SIZES | {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4}
    sizes |= {"tie_word_embeddings": False}
    return Gemma2ForCausalLM(Gemma2Config(**sizes))


def bloom():
    """No position ids: positions follow from the mask."""
    return BloomForCausalLM(BloomConfig(vocab_size=28, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.6))


def mamba():
    """No cache of the kind that attention has."""
    return MambaForCausalLM(MambaConfig(vocab_size=28, hidden_size=16, num_hidden_layers=2, initializer_range=0.6))


SIZES = {"vocab_size": 28, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"initializer_range": 0.6}


@torch.no_grad()
def token_by_token(model, prompt, place, longest):
    """An answer drawn from whole forward passes over this one row, without a cache or padding."""
    stream, ids = generate._stream(torch.device("cpu"), 0, 0, 0, place), list(prompt.token_ids)
    while len(ids) < len(prompt.token_ids) + longest and ids[len(prompt.token_ids) :][-1:] != [0]:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int((logits.log_softmax(-1) - torch.rand(28, generator=stream).log().neg().log()).argmax()))
    return ids[len(prompt.token_ids) :]


@pytest.mark.parametrize("make", [None, neox, gemma2, bloom, mamba])
def test_every_architecture_draws_what_whole_passes_over_one_row_draw(model, tokenizer, prompts, make):
    if make is not None:
        torch.manual_seed(1)
        model = make().eval()
    answers = sample(model, tokenizer, prompts, Sampling(max_new_tokens=20, batch=10))["token_ids"].tolist()
    order = sorted(range(10), key=lambda i: (len(prompts[i].token_ids), prompts[i].id))
    alone = {i: token_by_token(model, prompts[i], place, 20) for place, i in enumerate(order)}
    assert [list(ids) for ids in answers] == [alone[i] for i in range(10)]
    assert len({len(ids) for ids in answers}) > 1, "some must end before others, or nothing was taken out of the batch"


def test_the_company_in_a_batch_changes_no_answer(model, tokenizer, prompts):
    together, alone = (
        sample(model, tokenizer, prompts, Sampling(draws=2, max_new_tokens=20, batch=size)) for size in (10, 1)
    )
    assert together.equals(alone)


def test_policies_that_are_close_draw_alike(model, tokenizer, prompts):
    near, far = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        near.lm_head.weight += 1e-4 * torch.randn(28, 16, generator=torch.Generator().manual_seed(0))
        far.lm_head.weight += torch.randn(28, 16, generator=torch.Generator().manual_seed(0))
    first, close, other = (sample(one, tokenizer, prompts, SETTINGS)["text"] for one in (model, near, far))
    assert (first == close).mean() > 0.9
    assert (first == other).mean() < 0.5


def test_answers_that_ended_are_not_computed_further(model, tokenizer, prompts):
    rows = []
    hook = model.lm_head.register_forward_hook(lambda _, given, out: rows.append(out.shape[:2].numel()))
    settings = Sampling(draws=1, max_new_tokens=60, batch=40)
    answers = sample(model, tokenizer, [*prompts, *prompts, *prompts, *prompts], settings)
    hook.remove()
    lengths = answers["token_ids"].map(len)
    open_rows = [int((lengths > step).sum()) for step in range(int(lengths.max()))]
    assert len(rows) == len(open_rows)
    assert rows[0] == 40
    assert all(computed <= wanted / 0.875 for computed, wanted in zip(rows, open_rows, strict=True))
    assert rows[-1] < 40, "some answers must end before the last one"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.05, 0.5, 0.15, 0.3]),
        ({"temperature": 0.5}, [0.0025, 0.25, 0.0225, 0.09]),
        ({"top_k": 2}, [0, 0.5, 0, 0.3]),
        # 0.5 alone is less than 0.7, 0.5 + 0.3 is not.
        ({"top_p": 0.7}, [0, 0.5, 0, 0.3]),
        # Squared and divided by their sum: 0.007, 0.685, 0.062, 0.247; the largest alone is more than 0.6.
        ({"temperature": 0.5, "top_p": 0.6}, [0, 0.25, 0, 0]),
        # Of the three most likely, 0.526 and 0.316 reach 0.8.
        ({"top_k": 3, "top_p": 0.8}, [0, 0.5, 0, 0.3]),
    ],
)
def test_temperature_top_k_and_top_p_leave_the_shares_worked_out_by_hand(settings, expected):
    shares = torch.tensor(expected, dtype=torch.float64)
    warped = warper(Sampling(**settings))(torch.tensor([[0.05, 0.5, 0.15, 0.3]], dtype=torch.float64).log()).softmax(-1)
    assert torch.allclose(warped[0], shares / shares.sum(), atol=1e-12)


def test_top_k_excludes_tokens_from_the_draws(model, tokenizer, prompts):
    answers = sample(model, tokenizer, prompts, Sampling(max_new_tokens=8, top_k=1, batch=4))
    for prompt, ids in zip(prompts, answers["token_ids"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt.token_ids, *ids]])).logits[0]
        likeliest = logits.argmax(-1)[len(prompt.token_ids) - 1 : -1].tolist()
        assert list(ids) == likeliest


def test_a_model_without_a_next_token_is_refused(model, tokenizer, prompts):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    with pytest.raises(DpobenchError, match="not finite"):
        sample(broken, tokenizer, prompts, SETTINGS)
