"""What is measured: kinds of preference data by their lengths, Llamas of random weights, a tokenizer of numbered words."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpobench.errors import UserError

_RESERVED = 3
# Words and marks come close to the tokens of a byte-level vocabulary, without needing one.
_PIECE = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Shape:
    """A Llama. `heads` of 64 dimensions each share one key head per `group`."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    group: int = 1


SMALL = Shape("256 x 2, V=8k", 8192, 256, 2, 704)
LARGER = Shape("512 x 4, V=32k", 32768, 512, 4, 1408)
HALF_BILLION = Shape("0.5B, V=152k", 151936, 896, 24, 4864, 7)
# Weights, gradients and moments of both sides, three times over, must fit on one device: a quarter of the layers.
SEVEN_BILLION = Shape("7B, 8 layers", 32000, 4096, 8, 11008)


@dataclass(frozen=True)
class Work:
    """A kind of preference data by its lengths in tokens.

    Args:
        name: of the kind.
        prompt: median and spread (of the logarithm) of prompts; the median alone matters where `lengths` are given.
        answer: the same of answers.
        lengths: of real pairs: prompt, chosen, rejected; drawn from instead, where there are any.
    """

    name: str
    prompt: tuple[float, float]
    answer: tuple[float, float]
    lengths: tuple[tuple[int, int, int], ...] = ()


# Medians and spreads as measured on HH-RLHF harmless (2,312 pairs, byte-level vocabulary of 16k), and as published for the other two.
WORKS = (
    Work("hh-like", (97, 0.9), (32, 0.9)),
    Work("tldr-like", (330, 0.3), (32, 0.35)),
    Work("ultrafeedback-like", (64, 1.0), (250, 0.7)),
)


def work_of(file: str, most: int = 1024) -> Work:
    """The lengths of a data set's own pairs, counted in words and marks.

    Args:
        file: a file or folder that `dpobench run --data` reads.
        most: longer pairs are left out.

    Raises:
        UserError: it cannot be read, or holds no pair short enough.
    """
    from dpobench.data.reading import read

    def size(text: str) -> int:
        return max(2, len(_PIECE.findall(text)))

    rows = read(file).require_usable().rows
    told = [(" ".join(str(turn["content"]) for turn in row.prompt), row.chosen, row.rejected) for row in rows]
    lengths = [(size(prompt), size(chosen), size(rejected)) for prompt, chosen, rejected in told]
    short = tuple(one for one in lengths if sum(one) <= most)
    if not short:
        raise UserError(f"--data {file}: no pair of at most {most} words; choose another file")
    middle = np.median(np.array(short), axis=0)
    return Work(Path(file).name.partition(".")[0], (float(middle[0]), 0.0), (float(middle[1]), 0.0), short)


def draw_texts(work: Work, pairs: int, seed: int = 0, vocabulary: int = SMALL.vocabulary) -> list[dict[str, str]]:
    """Pairs of random words, one token each, as columns `prompt`, `chosen`, `rejected`."""
    draw = np.random.default_rng(seed)

    def drawn(median: float, spread: float) -> int:
        return int(np.clip(np.exp(draw.normal(np.log(median), spread)), 2, 4 * median))

    def lengths() -> Sequence[int]:
        if work.lengths:
            return work.lengths[draw.integers(len(work.lengths))]
        return [drawn(*work.prompt), drawn(*work.answer), drawn(*work.answer)]

    found = []
    for _ in range(pairs):
        sides = [" ".join(f"w{i}" for i in draw.integers(_RESERVED, vocabulary, size)) for size in lengths()]
        # TRL joins prompt and answer as text; the space keeps their words apart.
        found.append(dict(zip(("prompt", "chosen", "rejected"), [sides[0] + " ", *sides[1:]], strict=True)))
    return found


def word_tokenizer(vocabulary: int = SMALL.vocabulary) -> Any:
    """A tokenizer whose words `w3, w4, ...` are one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    ids = {name: i for i, name in enumerate(special.values())} | {f"w{i}": i for i in range(_RESERVED, vocabulary)}
    inner = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def llama(shape: Shape = SMALL, seed: int = 0) -> Any:
    """A Llama of random weights in float32, in evaluation mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=shape.hidden // 64 // shape.group,
        max_position_embeddings=4096,
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
