"""Packed rows against padded ones: the same log-probabilities, losses and gradients, whatever the model, lengths and micro-batches."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GemmaConfig, GPTNeoXConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.gemma2 import Gemma2Config

from dpobench.models import lm_head, packing
from dpobench.models.logprobs import completion_logps, pair_batch
from dpobench.models.packing import NAME, adopt, first_fit, packed_pairs
from dpobench.training.gradient import _micro_batches, gradient
from tests.training import tiny

LOSSES = tiny.losses()
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"vocab_size": tiny.VOCABULARY, "bos_token_id": None, "eos_token_id": tiny.END, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
WHOLE = {"sliding_window": None}
FAMILIES = {
    "llama": None,
    "qwen2": Qwen2Config(**SHAPE, **IDS, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SHAPE, **IDS, **GROUPED),
    "mistral": MistralConfig(**SHAPE, **IDS, **GROUPED, **WHOLE),
    "gemma": GemmaConfig(**SHAPE, **IDS, **GROUPED),
    "gpt_neox": GPTNeoXConfig(**SHAPE, **IDS, max_position_embeddings=128),
}


def model_of(family, dtype=torch.float32):
    if family == "llama":
        return tiny.llama(dtype=dtype)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.25)
    return model


def taken(model, bound, rows, accelerator, budget=10_000):
    model.zero_grad()
    packed = model.config._attn_implementation == NAME
    reference = reference_for(packed, rows, next(model.parameters()).dtype)
    auxiliary = replace(tiny.auxiliary(bound, reference), packed=packed)
    measured = gradient(model, bound, rows, accelerator, budget, auxiliary)
    return tiny.gradients(model), measured.per_pair["loss"].double()


def reference_for(packed, rows, dtype):
    reference = tiny.llama(seed=5, dtype=dtype).eval()
    assert not packed or adopt(reference, rows) is None
    return reference


def close(values, wanted, within=5e-6):
    assert float((values - wanted).abs().max() / wanted.abs().max()) <= within


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_packed_rows_to_the_same_loss_and_gradient(family, drifted, accelerator):
    model, bound = model_of(family).eval(), LOSSES.get("dpo").bind()
    wanted, losses = taken(model, bound, drifted, accelerator)
    assert adopt(model, drifted) is None
    gradient_packed, packed = taken(model, bound, drifted, accelerator)
    close(packed, losses)
    assert tiny.apart(gradient_packed, wanted) <= 5e-6


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_has_the_same_value_and_gradient_in_both_layouts(name, drifted, accelerator):
    model, bound = tiny.llama(dtype=torch.float64).eval(), LOSSES.get(name).bind()
    wanted, losses = taken(model, bound, drifted, accelerator)
    assert adopt(model, drifted) is None
    gradient_packed, packed = taken(model, bound, drifted, accelerator, budget=90)
    close(packed, losses)
    assert tiny.apart(gradient_packed, wanted) <= 1e-6


@pytest.mark.parametrize("budget", [1, 60, 150, 10_000])
def test_packed_micro_batches_of_any_size_give_one_gradient(budget, drifted, accelerator):
    model, bound = tiny.llama(dtype=torch.float64).eval(), LOSSES.get("dpo").bind()
    wanted, _ = taken(model, bound, drifted, accelerator)
    assert adopt(model, drifted) is None
    gradient_packed, _ = taken(model, bound, drifted, accelerator, budget)
    # The norms of a float64 model still compute in float32, whose rounding a difference of 1e-16 can turn.
    assert tiny.apart(gradient_packed, wanted) <= 1e-6


def test_answers_of_one_token_and_answers_that_begin_alike_are_packed_right(drifted):
    first = drifted[0]
    odd = [
        replace(first, chosen=first.prompt[:1], rejected=np.append(first.prompt[:1], [7, 8, tiny.END])),
        replace(drifted[1], prompt=drifted[1].prompt[:1], chosen=drifted[1].rejected),
        drifted[2],
    ]
    model = tiny.llama(dtype=torch.float64).eval()
    with torch.no_grad():
        padded = completion_logps(model, pair_batch(odd))
        assert adopt(model, odd) is None
        packed = completion_logps(model, packed_pairs(odd))
    assert float((packed - padded).abs().max()) <= 1e-12


def test_no_pair_and_no_answer_sees_another(drifted):
    model = tiny.llama().eval()
    assert adopt(model, drifted) is None
    rows = drifted[:3]
    changed = [
        rows[0],
        replace(rows[1], prompt=rows[1].prompt[::-1].copy(), chosen=rows[1].chosen[::-1].copy()),
        rows[2],
    ]
    other = [replace(rows[0], chosen=rows[0].chosen[::-1].copy()), *rows[1:]]
    with torch.no_grad():
        before, after, third = (completion_logps(model, packed_pairs(each)) for each in (rows, changed, other))
    assert torch.equal(before[[0, 2, 3, 5]], after[[0, 2, 3, 5]])
    assert torch.equal(before[[1, 2, 3, 4, 5]], third[[1, 2, 3, 4, 5]])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Gemma2Config(**SHAPE, **IDS, **GROUPED, sliding_window=4), "sliding window"),
        (Gemma2Config(**SHAPE, **IDS, **GROUPED, attn_logit_softcapping=50.0, sliding_window=4096), "cap on scores"),
        (MistralConfig(**SHAPE, **IDS, **GROUPED, sliding_window=3), "sliding window"),
    ],
)
def test_a_model_that_attends_otherwise_keeps_the_padded_layout_and_says_why(config, words, drifted):
    model = AutoModelForCausalLM.from_config(config).eval()
    before = model.config._attn_implementation
    batch = pair_batch(drifted[:2])
    with torch.no_grad():
        wanted = completion_logps(model, batch)
        assert words in adopt(model, drifted)
        assert model.config._attn_implementation == before
        assert torch.equal(completion_logps(model, batch), wanted)


def test_a_window_that_no_sequence_reaches_does_not_matter_however_long_the_row(drifted, accelerator):
    drifted = [replace(row, gold=None, mismatched=None) for row in drifted]
    longest = max(len(row.prompt) + max(len(row.chosen), len(row.rejected)) for row in drifted)
    bound, gradients = LOSSES.get("dpo").bind(), []
    for window in (None, longest):
        torch.manual_seed(0)
        config = MistralConfig(**SHAPE, **IDS, **GROUPED, sliding_window=window)
        model = AutoModelForCausalLM.from_config(config).eval()
        assert adopt(model, drifted) is None
        gradients.append(taken(model, bound, drifted, accelerator, 10_000)[0])
    assert sum(row.size for row in drifted) > 2 * longest
    assert torch.equal(*gradients)


def test_the_pair_with_the_longest_sequence_is_tried_even_if_it_is_not_the_longest_pair(drifted):
    # 20 + 1 and 20 + 1 tokens, but 3 + 19 in the second's one long answer, which the window cuts.
    ids = np.arange(3, 23)
    pairs = [replace(drifted[0], prompt=ids, chosen=ids[:1], rejected=ids[:1], mismatched=None, gold=None)]
    pairs.append(replace(pairs[0], prompt=ids[:3], chosen=ids[:19], rejected=ids[:1]))
    pairs.append(replace(pairs[0], prompt=ids[:10], chosen=ids[:9], rejected=ids[:9]))
    config = MistralConfig(**SHAPE, **IDS, **GROUPED, sliding_window=21)
    assert "sliding window" in adopt(AutoModelForCausalLM.from_config(config).eval(), pairs)


def test_a_model_whose_numbers_would_change_keeps_the_padded_layout(drifted, monkeypatch):
    right = packing.packed_pairs

    def shifted(*given, **options):
        batch = right(*given, **options)
        batch.places += 1
        batch.places[0, ::2] += 3
        return batch

    monkeypatch.setattr(packing, "packed_pairs", shifted)
    assert "differ by" in adopt(tiny.llama().eval(), drifted)


def test_a_trained_model_is_saved_with_its_own_attention(start, pairs, tmp_path, accelerator):
    import json

    from dpobench.training.train import train

    bound = LOSSES.get("dpo").bind(beta=0.2)
    done = train(tiny.run_of(bound), bound, pairs, start, tmp_path, accelerator=accelerator)
    assert done.layout == "packed"
    configs = [json.loads((folder / "config.json").read_text()) for folder in (start, tmp_path / "checkpoint")]
    assert "shared_prompt" not in str(configs[1])
    assert configs[1].keys() == configs[0].keys()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 80))
def test_first_fit_takes_every_item_once_within_the_budget(sizes, budget):
    groups = first_fit(sizes, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in group) <= budget or len(group) == 1 for group in groups)
    # No two groups would fit into one.
    totals = sorted(sum(sizes[i] for i in group) for group in groups)
    assert len(totals) < 2 or totals[0] + totals[1] > budget


def test_answers_of_a_large_vocabulary_fill_a_micro_batch_sooner(drifted, accelerator, monkeypatch):
    model, bound = tiny.llama(dtype=torch.float64).eval(), LOSSES.get("dpo").bind()
    assert adopt(model, drifted) is None
    wanted, _ = taken(model, bound, drifted, accelerator)
    answers = [len(row.chosen) + len(row.rejected) for row in drifted]
    stored = max(answers) + 1
    monkeypatch.setitem(lm_head.STORED, "cpu", stored * tiny.VOCABULARY)
    groups = _micro_batches(drifted, bound, 10_000, model, packed=True)
    assert sorted(index for group in groups for index in group) == list(range(len(drifted)))
    assert all(sum(answers[index] for index in group) <= stored for group in groups)
    # Not one pair each, either: two short pairs share a micro-batch.
    assert 1 < len(groups) < len(drifted)
    cut, _ = taken(model, bound, drifted, accelerator)
    # The norms of a float64 model still compute in float32.
    assert tiny.apart(cut, wanted) <= 1e-6


def test_the_examples_hold():
    assert doctest.testmod(packing) == doctest.TestResults(failed=0, attempted=1)
