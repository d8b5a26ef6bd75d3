"""Models, tokenizers and pairs small enough that a test can work their numbers out again in another way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpobench.data.tokens import TokenPair
from dpobench.losses.quantities import NEEDS
from dpobench.losses.registry import LossRegistry
from dpobench.training.loss_inputs import AuxiliaryState
from dpobench.training.reference import mismatched, score_pairs, with_noise
from dpobench.training.run import Recipe, Run

VOCABULARY, END = 48, 1
# Columns of the data that losses read, all within (0, 1).
COLUMNS = ("score_chosen", "score_rejected", "win_probability")
COUPLED = Path(__file__).with_name("coupled.py")


def llama(seed=0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0}
    config = LlamaConfig(**(shape | ids | {"max_position_embeddings": 128, "initializer_range": 0.25} | settings))
    return LlamaForCausalLM(config).to(dtype)


def words(vocabulary=VOCABULARY):
    """A tokenizer whose words are `w0 w1 ...`, so that any row of ids can be written as text."""
    names = {"<pad>": 0, "<end>": END, "<unknown>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    inner = Tokenizer(models.WordLevel(names, unk_token="<unknown>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def rows(count, seed=0, longest=12):
    """Pairs of random ids and uneven lengths, without reference log-probabilities."""
    draw = np.random.default_rng(seed)

    def ids(low, high):
        return draw.integers(3, VOCABULARY, draw.integers(low, high))

    def answer():
        return np.append(ids(0, longest), END)

    pairs = [TokenPair(f"pair-{i}", ids(1, longest), answer(), answer()) for i in range(count)]
    numbers = np.random.default_rng([seed, 1])
    return [replace(pair, gold=answer(), columns=dict(zip(COLUMNS, numbers.random(3), strict=True))) for pair in pairs]


def scored(pairs, reference):
    """The same pairs with all that losses may need of a reference model, of the other pairs and of a step."""
    crossed = mismatched(pairs, 64) or [None] * len(pairs)
    pairs = [replace(pair, mismatched=other) for pair, other in zip(pairs, crossed, strict=True)]
    needs = [name for name in NEEDS if name != "mismatched" or crossed[0] is not None]
    return with_noise(score_pairs(reference.eval(), pairs, needs), 0, 0)


def auxiliary(bound, reference):
    """What a loss needs besides pairs at a first step."""
    return AuxiliaryState(reference.eval(), bound.initial())


def losses():
    """The registered losses, and two that couple the pairs of a batch."""
    registry = LossRegistry()
    registry.add_file(COUPLED)
    return registry


def run_of(bound, *, seed=0, rate=1e-2, **recipe):
    variant, settings = bound.variant, {"batch": 4, "warmup": 0.2, "micro_batch_tokens": 64, "max_tokens": 64}
    loss = {"variant": variant.name, "code": variant.code_hash, "params": dict(bound.params)}
    shared = {"strength": variant.strength, "unit": variant.unit, "reference": "none"}
    return Run(**loss, **shared, seed=seed, learning_rate=rate, recipe=Recipe(**(settings | recipe)))


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def gradients(model):
    return flat(p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters())


def apart(vector, wanted):
    """Relative distance of two vectors."""
    return float((vector - wanted).norm() / wanted.norm())
