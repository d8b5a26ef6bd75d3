"""Log-probabilities of completions against whole logits of each architecture, one unpadded sequence at a time."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dpobench.errors import DpobenchError
from dpobench.models import logprobs
from dpobench.models.logprobs import Batch, Head, by_tokens, completion_hidden, completion_logps, score_sequences

VOCABULARY = 31
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
KEYS = {"num_key_value_heads": 2}
ARCHITECTURES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **KEYS)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, **KEYS, tie_word_embeddings=True)),
    # The caps are low enough to bend the logits, the window short enough to be reached.
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SHAPE, **KEYS, head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0, sliding_window=6
        )
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    torch.manual_seed(0)
    made = ARCHITECTURES[request.param]().eval()
    # Gemma's eager attention casts its mask to float32, where the lowest float64 is minus infinity: rows of padding become NaN.
    return made if request.param == "gemma2" else made.double()


def close(values, wanted, exact, scale=1.0):
    """Within `exact` in float64; within the rounding of float32 in float32."""
    slack = exact if values.dtype == torch.float64 else 3e-6 * scale
    torch.testing.assert_close(values, wanted, rtol=slack, atol=slack)


def sequences(count=7, seed=0):
    draw = np.random.default_rng(seed)
    return [
        (draw.integers(2, VOCABULARY, draw.integers(1, 12)), draw.integers(0, VOCABULARY, draw.integers(1, 9)))
        for _ in range(count)
    ]


@torch.no_grad()
def plain(model, prompt, completion):
    """Whole logits of one sequence, log-softmax, gather."""
    ids = torch.tensor(np.concatenate([prompt, completion]))
    table = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return table[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_every_log_probability_is_that_of_the_whole_logits(model):
    given_sequences = sequences()
    batch = Batch(given_sequences)
    with torch.no_grad():
        logps = completion_logps(model, batch)
    for row, (prompt, completion) in zip(logps, given_sequences, strict=True):
        close(row[: len(completion)], plain(model, prompt, completion), 1e-12)
        assert not row[len(completion) :].any()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_models_are_scored_to_the_rounding_of_float32(name):
    torch.manual_seed(0)
    single = ARCHITECTURES[name]().eval()
    scored = score_sequences(single, sequences(), budget=64)
    for values, (prompt, completion) in zip(scored, sequences(), strict=True):
        np.testing.assert_allclose(values, plain(single, prompt, completion).numpy(), rtol=1e-6, atol=2e-6)


def test_the_gradient_is_that_of_the_whole_logits(model):
    gradients = []
    for shortcut in (True, False):
        model.zero_grad()
        if shortcut:
            completion_logps(model, Batch(sequences(3))).sum().backward()
        else:
            for prompt, completion in sequences(3):
                ids = torch.tensor(np.concatenate([prompt, completion]))
                table = model(input_ids=ids[None]).logits[0].log_softmax(-1)
                table[len(prompt) - 1 : -1].gather(1, torch.tensor(completion)[:, None]).sum().backward()
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    close(gradients[0], gradients[1], 1e-10, scale=float(gradients[1].abs().max()))


def test_the_head_on_hidden_states_gives_the_same_logits(model):
    batch = Batch(sequences())
    with torch.no_grad():
        table = Head(model)(completion_hidden(model, batch)).log_softmax(-1)
        logps = batch.scatter(table.gather(1, batch.targets[:, None])[:, 0])
        close(logps, completion_logps(model, batch), 1e-12)


def test_no_hook_is_left_on_the_model(model):
    with torch.no_grad():
        completion_logps(model, Batch(sequences()))
        whole = model(input_ids=torch.arange(2, 8)[None]).logits
    assert whole.shape == (1, 6, VOCABULARY)
    with pytest.raises(RuntimeError, match="stop"), logprobs._before_head(model, lambda hidden: hidden):
        raise RuntimeError("stop")
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_in_half_precision_is_scored_in_float32():
    torch.manual_seed(0)
    half = ARCHITECTURES["llama"]().bfloat16().eval()
    with torch.no_grad():
        logps = completion_logps(half, Batch(sequences()))
    assert logps.dtype == torch.float32
    # Probabilities over the vocabulary add up to one, which a softmax in bf16 misses by a hundredth.
    with torch.no_grad():
        every = [completion_logps(half, Batch([([5, 6], [token])]))[0, 0] for token in range(VOCABULARY)]
    assert float(torch.stack(every).double().exp().sum()) == pytest.approx(1, abs=1e-5)


@given(sizes=st.lists(st.integers(1, 40), max_size=40), budget=st.integers(1, 200))
def test_groups_cover_every_index_once_within_the_budget(sizes, budget):
    groups = by_tokens(sizes, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(sizes)))
    assert all(len(group) == 1 or len(group) * max(sizes[i] for i in group) <= budget for group in groups)
    assert groups == by_tokens(list(sizes), budget)


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=20), budget=st.integers(1, 200))
def test_no_two_neighbouring_groups_would_fit_into_one(sizes, budget):
    groups = by_tokens(sizes, budget)
    assert all((len(left) + 1) * sizes[left[0]] > budget for left in groups[:-1]), (
        "a group was closed although the next item would have fitted"
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), budget=st.sampled_from([1, 40, 8192]))
def test_scores_come_in_the_order_of_the_sequences(seed, budget):
    torch.manual_seed(0)
    llama = ARCHITECTURES["llama"]().eval()
    given_sequences = sequences(5, seed)
    scored = score_sequences(llama, given_sequences, budget)
    assert [len(values) for values in scored] == [len(completion) for _, completion in given_sequences]
    assert all(values.dtype == np.float32 for values in scored)
    for values, (prompt, completion) in zip(scored, given_sequences, strict=True):
        np.testing.assert_allclose(values, plain(llama, prompt, completion).numpy(), rtol=1e-5, atol=1e-5)


def test_nothing_to_score_gives_nothing():
    assert score_sequences(ARCHITECTURES["llama"](), []) == []


@pytest.mark.parametrize("empty", [([], [3]), ([3], [])])
def test_an_empty_prompt_or_completion_is_refused(empty):
    with pytest.raises(DpobenchError, match="a prompt or a completion has no tokens"):
        Batch([([4], [5]), empty])


def test_the_examples_hold():
    assert doctest.testmod(logprobs) == doctest.TestResults(failed=0, attempted=5)
