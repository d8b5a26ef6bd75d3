"""KL against hand-enumerated truth, and everything that must not change it."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
)

from dpobench import UserError
from dpobench.artifacts.scores import check
from dpobench.evals import kl as module
from dpobench.evals.kl import divergences, kl
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.models.generate import Sampling
from dpobench.models.logprobs import Batch, Head, completion_hidden
from dpobench.plugins.registry import spec_of

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
ANSWERS = {"one": [[5, 3, 0], [7, 7, 7, 7, 9, 1, 2, 3, 4, 0]], "two": [[0], [4, 4, 4, 4, 4, 4]]}
PROMPTS = {"one": (1, 2, 3), "two": (6, 5, 4, 3, 2, 1, 9)}


def enumerated(vocabulary, longest):
    """Every answer: closed by the end token 0, or cut at the longest length."""
    for length in range(1, longest + 1):
        for head in itertools.product(range(1, vocabulary), repeat=length - 1):
            yield [*head, 0]
    yield from map(list, itertools.product(range(1, vocabulary), repeat=longest))


def direct_logps(model, prompt, answers):
    """Log-probability of each answer, by the model's plain forward pass on one answer at a time."""
    scores = []
    for answer in answers:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
        scores.append(sum(float(logits[len(prompt) - 1 + t, token]) for t, token in enumerate(answer)))
    return np.array(scores)


def test_the_expected_estimate_is_the_exact_divergence_over_all_sequences(tiny):
    policy, reference = tiny.llama(5, seed=1), tiny.llama(5, seed=2)
    answers, prompt = list(enumerated(5, 4)), (1, 2, 3)
    logp, logq = direct_logps(policy, prompt, answers), direct_logps(reference, prompt, answers)
    assert len(answers) == 1 + 4 + 16 + 64 + 256
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-5)
    exact, backward = np.exp(logp) @ (logp - logq), np.exp(logq) @ (logq - logp)
    assert exact > 0.1

    held_out = tiny.held_out_of(tiny.samples_of({"p": answers}), prompts={"p": prompt})
    scores = kl(tiny.checkpoint_of(policy, reference), held_out)
    assert np.exp(logp) @ tiny.values(scores, "kl") == pytest.approx(exact, abs=1e-5)
    assert np.exp(logp) @ tiny.values(scores, "kl_k1") == pytest.approx(exact, abs=1e-5)
    assert np.exp(logq) @ tiny.values(scores, "kl_forward") == pytest.approx(backward, abs=1e-5)
    # Two estimators of one thing, not one thing twice.
    assert np.std(tiny.values(scores, "kl")) < np.std(tiny.values(scores, "kl_k1"))


def test_per_token_and_by_position_too_the_expected_estimate_is_the_exact_one(tiny):
    policy, reference = tiny.llama(5, seed=1), tiny.llama(5, seed=2)
    answers, prompt = list(enumerated(5, 4)), (1, 2, 3)
    weights = np.exp(direct_logps(policy, prompt, answers))
    # From the conditional distributions themselves: one plain forward pass for every prefix an answer can have.
    exact = {}
    for prefix in {tuple(answer[:t]) for answer in answers for t in range(len(answer))}:
        with torch.no_grad():
            logp, logq = (
                model(torch.tensor([[*prompt, *prefix]])).logits[0, -1].double().log_softmax(-1)
                for model in (policy, reference)
            )
        exact[prefix] = float((logp.exp() * (logp - logq)).sum())
    steps = [[exact[tuple(answer[:t])] for t in range(len(answer))] for answer in answers]
    per_token = weights @ [np.mean(policy_samples) for policy_samples in steps]
    scores = kl(
        tiny.checkpoint_of(policy, reference),
        tiny.held_out_of(tiny.samples_of({"p": answers}), prompts={"p": prompt}),
        bucket=2,
    )
    assert weights @ tiny.values(scores, "kl_per_token") == pytest.approx(per_token, abs=1e-5)
    # Another definition of "per token", all tokens of all answers alike, is another number.
    assert (
        abs(
            weights
            @ [np.sum(policy_samples) for policy_samples in steps]
            / (weights @ [len(policy_samples) for policy_samples in steps])
            - per_token
        )
        > 1e-3
    )
    late = [weight for weight, answer in zip(weights, answers, strict=True) if len(answer) > 2]
    expected = [np.mean(policy_samples[2:]) for policy_samples in steps if len(policy_samples) > 2]
    assert np.dot(late, tiny.values(scores, "kl_position", "2-3")) == pytest.approx(np.dot(late, expected), abs=1e-5)


@pytest.mark.parametrize("twin", [False, True])
def test_the_reference_is_at_exactly_zero(tiny, twin):
    model = tiny.llama()
    checkpoint = tiny.checkpoint_of(model, copy.deepcopy(model) if twin else None)
    scores = kl(checkpoint, tiny.held_out_of(tiny.samples_of(ANSWERS), prompts=PROMPTS))
    for metric in ("kl", "kl_per_token", "kl_k1", "kl_forward", "kl_position"):
        assert set(tiny.values(scores, metric)) == {0.0}
    assert len(tiny.values(scores, "kl")) == 4
    assert np.abs(tiny.values(scores, "kl_noise_floor")).max() < 1e-4


@pytest.fixture
def run(tiny):
    checkpoint = tiny.checkpoint_of(tiny.llama(seed=1), tiny.llama(seed=2))
    held_out = tiny.held_out_of(tiny.samples_of(ANSWERS), prompts=PROMPTS)
    return lambda **settings: kl(checkpoint, held_out, **settings)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_chunk_does_not_change_the_result(run, chunk):
    assert np.abs(run()["value"] - run(chunk=chunk)["value"]).max() < 1e-5


def test_the_company_in_a_batch_does_not_change_the_result(run, tiny):
    alone, together = run(budget=1), run()
    for metric in ("kl", "kl_k1", "kl_forward"):
        assert np.abs(np.subtract(tiny.values(alone, metric), tiny.values(together, metric))).max() < 1e-4


def test_rows_are_complete_and_stretches_add_up(run, tiny):
    scores = run()
    check(scores, spec_of(kl, EvaluatorSpec).metrics, "kl")
    lengths = np.array([3, 10, 1, 6])
    whole = np.array(tiny.values(scores, "kl"))
    assert tiny.values(scores, "kl_per_token") == pytest.approx(whole / lengths)
    assert tiny.values(scores, "kl_truncated") == [0, 0, 0, 1]
    late = scores[scores["group"] == "8-15"]
    assert late[["prompt", "draw"]].values.tolist() == [["one", 1]]
    early = tiny.values(scores, "kl_position", "0-7")
    assert 8 * early[1] + 2 * late["value"].item() == pytest.approx(whole[1])
    assert early[0] * 3 == pytest.approx(whole[0])


@pytest.mark.parametrize("most", [module.MOST_CACHED, 0])
def test_the_reference_reads_its_answers_once_for_all_policies(tiny, most, monkeypatch):
    monkeypatch.setattr(module, "MOST_CACHED", most)
    reference, cache, passes = tiny.llama(seed=2), {}, []
    reference.register_forward_pre_hook(lambda *_: passes.append(1))
    base = tiny.samples_of({"one": [[5, 3, 0], [8, 0]], "two": [[7, 7, 0], [4, 4, 0]]})

    def compute_once(key, compute):
        return cache[key] if key in cache else cache.setdefault(key, compute())

    counted = []
    for seed in (1, 3):
        checkpoint = tiny.checkpoint_of(tiny.llama(seed=seed), reference)
        held_out = tiny.held_out_of(tiny.samples_of(ANSWERS), base, prompts=PROMPTS)
        plain, before = kl(checkpoint, held_out), len(passes)
        remembered = kl(checkpoint, dataclasses.replace(held_out, compute_once=compute_once))
        assert remembered.equals(plain)
        counted.append(len(passes) - before)
    # One pass over its four answers, and five for its noise floor: the four together, and each alone.
    assert counted[0] - counted[1] == (6 if most else 5)


@pytest.mark.parametrize("change", [{"top_k": 50}, {"temperature": 0.7}, {"top_p": 0.9}])
def test_samples_of_another_distribution_are_refused(tiny, change):
    held_out = tiny.held_out_of(tiny.samples_of(ANSWERS), prompts=PROMPTS, sampling=Sampling(**change))
    with pytest.raises(UserError, match=f"{next(iter(change))}={next(iter(change.values()))}.*leave kl out"):
        kl(tiny.checkpoint_of(tiny.llama()), held_out)


def test_samples_of_another_temperature_leave_the_distance_to_those_of_the_model_itself(tiny):
    """The answers that a judge compares may be drawn as one likes: the distance is read from others."""
    checkpoint = tiny.checkpoint_of(tiny.llama(seed=1), tiny.llama(seed=2))
    policy_samples, cold = tiny.samples_of(ANSWERS), tiny.samples_of({"one": [[8, 0]], "two": [[9, 0]]})
    base = tiny.samples_of({"one": [[5, 3, 0]], "two": [[7, 0]]})
    plain = kl(checkpoint, tiny.held_out_of(policy_samples, base, prompts=PROMPTS))
    apart = tiny.held_out_of(
        cold, cold, prompts=PROMPTS, sampling=Sampling(temperature=0.7), on_policy=(policy_samples, base)
    )
    assert kl(checkpoint, apart).equals(plain)


def test_no_sequence_for_the_noise_floor_is_none_and_not_an_error(run, tiny):
    scores = run(noise=0)
    assert tiny.values(scores, "kl_noise_floor") == []
    assert scores.equals(run().query("metric != 'kl_noise_floor'").reset_index(drop=True))


@pytest.mark.parametrize("change", [{"chunk": 0}, {"bucket": 0}, {"noise": -1}])
def test_a_setting_that_means_nothing_is_named(run, change):
    ((name, value),) = change.items()
    with pytest.raises(UserError, match=f"kl: .*{name} = {value}"):
        run(**change)


def test_the_head_never_sees_more_tokens_than_a_chunk(tiny):
    policy, reference = tiny.llama(seed=1), tiny.llama(seed=2)
    widths = []
    policy.lm_head.register_forward_hook(lambda _, given, out: widths.append(out[..., 0].numel()))
    sequences = [((1, 2, 3), tuple(range(1, 10)) * 4)] * 6
    divergences(Head(policy), Head(reference), sequences, chunk=20, budget=8192)
    assert max(widths) == 20


class Capped(LlamaForCausalLM):
    """An architecture nobody has heard of: a soft cap that no configuration tells."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 5 * torch.tanh(out.logits / 5)
        return out


def gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=3.0, initializer_range=1.0))


def granite():
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0, initializer_range=0.5))


def cohere():
    return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25, initializer_range=0.5))


@pytest.mark.parametrize("make", [gemma2, granite, cohere])
def test_caps_and_scales_are_those_of_the_models_logits(make):
    torch.manual_seed(0)
    model = make().eval()
    batch = Batch([((1, 2), (3, 4, 5, 6)), ((7, 8, 9), (1, 0))])
    with torch.no_grad():
        full = model(batch.ids, attention_mask=batch.attention.long()).logits[batch.rows, batch.positions]
        head = Head(model)
        scores = head(completion_hidden(model, batch))
        bare = model.get_output_embeddings()(completion_hidden(model, batch))
    assert head._direct
    assert float((scores - full).abs().max()) < 1e-5
    assert float((bare - full).abs().max()) > 0.1


@pytest.mark.parametrize("scale", [0.002, 0.6])
def test_an_unknown_architectures_cap_is_noticed_even_where_logits_are_small(tiny, scale):
    model = tiny.llama(cls=Capped, scale=scale)
    batch = Batch([((1, 2), (3, 4, 5, 6)), ((7, 8, 9), (1, 0))])
    with torch.no_grad():
        full = model(batch.ids, attention_mask=batch.attention.long()).logits[batch.rows, batch.positions]
        head = Head(model)
        scores = head(completion_hidden(model, batch))
    assert head._direct is False
    assert float((scores - full).abs().max()) < 1e-5


def test_a_capped_models_divergence_equals_the_one_from_whole_logits(tiny):
    torch.manual_seed(0)
    policy, reference = gemma2().eval(), gemma2().eval()
    held_out = tiny.held_out_of(tiny.samples_of({"one": [[5, 3, 8, 0]]}), prompts={"one": (1, 2)})
    with torch.no_grad():
        p, q = (
            m(torch.tensor([[1, 2, 5, 3, 8, 0]])).logits[0, 1:5].double().log_softmax(-1) for m in (policy, reference)
        )
    exact = float((p.exp() * (p - q)).sum())
    scores = kl(tiny.checkpoint_of(policy, reference), held_out)
    assert tiny.values(scores, "kl") == pytest.approx([exact], rel=1e-5)


def test_a_token_the_policy_cannot_draw_adds_nothing(tiny):
    model = tiny.llama()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(11))
    never = copy.deepcopy(model)
    with torch.no_grad():
        never.lm_head.bias[10] = -torch.inf
    held_out = tiny.held_out_of(tiny.samples_of({"one": [[5, 3, 0]]}))
    scores = kl(tiny.checkpoint_of(never, model), held_out)
    assert 0 < tiny.values(scores, "kl")[0] < np.inf
    # The other way round no finite number is right.
    assert tiny.values(scores, "kl_forward") == [np.inf]
