"""What is measured: kinds of preference data by their lengths, a model of random weights, a tokenizer of numbered words."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

VOCABULARY, HIDDEN, LAYERS = 8192, 256, 2
_RESERVED = 3


@dataclass(frozen=True)
class Work:
    """A kind of preference data, by its lengths in tokens: median and spread (of the logarithm) of prompts and answers."""

    name: str
    prompt: tuple[float, float]
    answer: tuple[float, float]


WORKS = (
    Work("hh-like", (28, 0.7), (10, 0.8)),
    Work("tldr-like", (56, 0.35), (7, 0.4)),
    Work("ultrafeedback-like", (11, 0.8), (32, 0.6)),
)


def draw_texts(work: Work, pairs: int, seed: int = 0) -> list[dict[str, str]]:
    """Pairs of random words, one token each, as columns `prompt`, `chosen`, `rejected`."""
    draw = np.random.default_rng(seed)

    def words(median: float, spread: float) -> str:
        length = int(np.clip(np.exp(draw.normal(np.log(median), spread)), 2, 4 * median))
        return " ".join(f"w{i}" for i in draw.integers(_RESERVED, VOCABULARY, length))

    sides = (("prompt", work.prompt), ("chosen", work.answer), ("rejected", work.answer))
    # TRL joins prompt and answer as text; the space keeps their words apart.
    return [{name: words(*shape) + (" " if name == "prompt" else "") for name, shape in sides} for _ in range(pairs)]


def word_tokenizer(vocabulary: int = VOCABULARY) -> Any:
    """A tokenizer whose words `w3, w4, ...` are one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    ids = {name: i for i, name in enumerate(special.values())} | {f"w{i}": i for i in range(_RESERVED, vocabulary)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def small_llama(seed: int = 0) -> Any:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=11 * HIDDEN // 4,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def perturbed(model: Any, scale: float = 0.02, seed: int = 1) -> Any:
    """A copy with noise on every weight: a policy that has left its reference, so that margins are not zero."""
    torch.manual_seed(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * scale)
    return moved
