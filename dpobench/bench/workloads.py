"""What is measured: preference pairs of given lengths, Llamas of random weights, a tokenizer of numbered words."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np
import torch

from dpobench.data.reading import read
from dpobench.errors import UserError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# Ids of padding, end and unknown, before those of words.
_RESERVED = 3
# The number of words and punctuation marks is close to the number of tokens of a byte-level vocabulary.
_WORD = re.compile(r"\w+|[^\w\s]")


_Model = TypeVar("_Model", bound=torch.nn.Module)


class TextPair(TypedDict):
    """A preference pair as text."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ModelShape:
    """Size of a Llama whose heads have 64 dimensions each.

    Args:
        name: in the table.
        vocabulary: number of tokens.
        hidden: width.
        layers: depth.
        intermediate: width within the feed-forward part.
        group: query heads that share one key head.
    """

    name: str
    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    group: int = 1


SMALL = ModelShape("256 x 2, V=8k", 8192, 256, 2, 704)
LARGER = ModelShape("512 x 4, V=32k", 32768, 512, 4, 1408)
HALF_BILLION = ModelShape("0.5B, V=152k", 151936, 896, 24, 4864, 7)
# A quarter of the layers: weights, gradients and moments of both sides, three times over, must fit on one device.
SEVEN_BILLION = ModelShape("7B, 8 layers", 32000, 4096, 8, 11008)


@dataclass(frozen=True)
class Workload:
    """Preference data described by the lengths of its pairs, in tokens.

    Args:
        name: in the table.
        prompt: median length of the prompts, and standard deviation of its logarithm; unused where `lengths` are given.
        answer: the same of the answers.
        lengths: prompt, chosen and rejected of real pairs; where there are any, lengths are drawn from these.
    """

    name: str
    prompt: tuple[float, float]
    answer: tuple[float, float]
    lengths: tuple[tuple[int, int, int], ...] = ()


# Medians and spreads as measured on HH-RLHF harmless (2,312 pairs, byte-level vocabulary of 16k), and as published for the other two.
WORKLOADS = (
    Workload("hh-like", (97, 0.9), (32, 0.9)),
    Workload("tldr-like", (330, 0.3), (32, 0.35)),
    Workload("ultrafeedback-like", (64, 1.0), (250, 0.7)),
)


def workload_of(file: str, longest: int = 1024) -> Workload:
    """The workload with the lengths of a data set, counted in words and punctuation marks.

    Args:
        file: a file or folder that `dpobench run --data` reads.
        longest: words of prompt, chosen and rejected together above which a pair is left out.

    Raises:
        UserError: it cannot be read, or holds no pair short enough.
    """

    def size(text: str) -> int:
        return max(2, len(_WORD.findall(text)))

    rows = read(file).require_usable().rows
    prompts = [" ".join(turn["content"] for turn in row.prompt) for row in rows]
    lengths = [(size(prompt), size(row.chosen), size(row.rejected)) for prompt, row in zip(prompts, rows, strict=True)]
    short = tuple(triple for triple in lengths if sum(triple) <= longest)
    if not short:
        raise UserError(f"--data {file}: no pair of at most {longest} words; choose another file")
    median = np.median(np.array(short), axis=0)
    return Workload(Path(file).name.partition(".")[0], (float(median[0]), 0.0), (float(median[1]), 0.0), short)


def draw_texts(workload: Workload, pairs: int, seed: int = 0, vocabulary: int = SMALL.vocabulary) -> list[TextPair]:
    """Pairs of random words, one token each.

    Args:
        workload: the lengths.
        pairs: number of pairs.
        seed: of the draws.
        vocabulary: number of tokens.

    Example:
        >>> draw_texts(Workload("short", (3, 0.1), (2, 0.1)), pairs=1, vocabulary=9)
        [{'prompt': 'w3 w3 w4 ', 'chosen': 'w7 w6', 'rejected': 'w8 w6'}]
    """
    rng = np.random.default_rng(seed)

    def drawn(median: float, spread: float) -> int:
        return int(np.clip(np.exp(rng.normal(np.log(median), spread)), 2, 4 * median))

    def lengths() -> Sequence[int]:
        if workload.lengths:
            return workload.lengths[rng.integers(len(workload.lengths))]
        return [drawn(*workload.prompt), drawn(*workload.answer), drawn(*workload.answer)]

    texts: list[TextPair] = []
    for _ in range(pairs):
        prompt, chosen, rejected = (
            " ".join(f"w{i}" for i in rng.integers(_RESERVED, vocabulary, size)) for size in lengths()
        )
        # TRL joins prompt and answer as text; the space keeps their words apart.
        texts.append({"prompt": prompt + " ", "chosen": chosen, "rejected": rejected})
    return texts


def word_tokenizer(vocabulary: int = SMALL.vocabulary) -> "PreTrainedTokenizerFast":
    """A tokenizer whose words `w3, w4, ...` are one token each.

    Args:
        vocabulary: number of tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unknown>"}
    ids = {name: i for i, name in enumerate(special.values())} | {f"w{i}": i for i in range(_RESERVED, vocabulary)}
    core = Tokenizer(models.WordLevel(ids, unk_token=special["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def llama(shape: ModelShape = SMALL, seed: int = 0) -> "LlamaForCausalLM":
    """A Llama of random weights in float32, in evaluation mode.

    Args:
        shape: its size.
        seed: of its weights.
    """
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


def perturbed(model: _Model, scale: float = 0.02, seed: int = 1) -> _Model:
    """A copy with noise on every weight: a policy that has left its reference, so that margins are not zero.

    Args:
        model: the reference.
        scale: standard deviation of the noise, as a share of that of the weights of its tensor.
        seed: of the noise.
    """
    torch.manual_seed(seed)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * scale)
    return moved
