"""Answers drawn from a model: settings explicit, the same prompts in the same batches for every checkpoint.

Shapes in this module: N open rows of a batch, S tokens that the model has not read yet, V the vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpobench.artifacts.files import digest
from dpobench.data.prompts import Prompt
from dpobench.errors import DpobenchError
from dpobench.models.protocols import CausalLM, ForwardInputs, Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn, alike for every checkpoint. The defaults sample from the model's own distribution.

    Args:
        draws: answers per prompt.
        max_new_tokens: where an answer is cut; the share of cut answers is reported.
        temperature: 1.0 is the model itself.
        top_p: 1.0 keeps all tokens.
        top_k: 0 keeps all tokens.
        batch: answers drawn at a time; the same for every checkpoint.
        seed: of the draws; the run's own seed is mixed in.
    """

    draws: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch: int = 256
    seed: int = 0

    @property
    def is_policy(self) -> bool:
        """Whether samples follow the model's own distribution, as every KL estimate requires."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0


COLUMNS = ("prompt", "draw", "text", "token_ids", "ended")
# Part of the key of held-out inputs: raise it where the same seed comes to draw other answers.
STREAM = 2
# Rows that ended are taken out of a batch when this share of it is left: taking them out copies the others.
_LEFT = 0.875


class _Answer(TypedDict):
    """A row of the table of samples, and the place of its prompt."""

    place: int
    prompt: str
    draw: int
    text: str
    token_ids: list[int]
    ended: bool


def sample(
    model: CausalLM, tokenizer: Tokenizer, prompts: Sequence[Prompt], settings: Sampling, seed: int = 0
) -> pd.DataFrame:
    """Draw answers.

    Prompts are batched by length, in an order that depends on the prompts alone, so that every checkpoint answers the same
    batches. Each answer has a separate stream of random numbers, one number per step and token of the vocabulary, and the
    token that wins an exponential race on them is drawn: checkpoints that are close give equal answers for as long as they can,
    and no answer depends on when another one ends.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        prompts: what to answer; `token_ids` must be set.
        settings: how to draw.
        seed: the run's seed.

    Returns: columns `prompt, draw, text, token_ids, ended`, in the order of the prompts; `ended` says that the end token was drawn
        before `max_new_tokens`; `token_ids` include it.

    Raises:
        DpobenchError: the model gives a next token no probability.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].token_ids), prompts[i].id))
    end, rows = tokenizer.eos_token_id, list[_Answer]()
    for draw in range(settings.draws):
        for start in range(0, len(order), settings.batch):
            group = order[start : start + settings.batch]
            streams = [_stream(model.device, settings.seed, seed, draw, start + row) for row in range(len(group))]
            reader = _Reader(model, [prompts[i].token_ids for i in group], end)
            for i, ids in zip(group, _answers(reader, streams, settings, end), strict=True):
                ended = bool(ids) and ids[-1] == end
                text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
                rows.append(
                    {"place": i, "prompt": prompts[i].id, "draw": draw, "text": text, "token_ids": ids, "ended": ended}
                )
    rows.sort(key=lambda row: (row["place"], row["draw"]))
    return pd.DataFrame(rows, columns=["place", *COLUMNS])[list(COLUMNS)]


def _stream(device: torch.device, *keys: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(digest("sample", *keys), 16))


@torch.no_grad()
def _answers(reader: "_Reader", streams: list[torch.Generator], settings: Sampling, end: int) -> list[list[int]]:
    """One batch of answers as token ids, cut after the end token."""
    device, warp, count = reader.ids.device, warper(settings), len(streams)
    # Which answers the rows of the reader belong to, and which of them have not ended.
    rows: Int[Tensor, " N"] = torch.arange(count, device=device)
    is_open: Bool[Tensor, " N"] = torch.ones(count, dtype=torch.bool, device=device)
    drawn: Int[Tensor, "answers tokens"] = torch.full((count, settings.max_new_tokens), end, device=device)
    for step in range(settings.max_new_tokens):
        tokens = _race(warp(reader.next_logits().float()), streams)
        drawn[rows, step] = tokens
        is_open = is_open & (tokens != end)
        left = int(is_open.sum())
        if left == 0:
            break
        reader.append(tokens)
        if left <= _LEFT * len(rows):
            remaining = is_open.nonzero().squeeze(1)
            reader.keep(remaining)
            rows, is_open = rows[remaining], is_open[remaining]
            streams = [streams[i] for i in remaining.tolist()]
    return [answer[: answer.index(end) + 1] if end in answer else answer for answer in drawn.tolist()]


def _race(scores: Float[Tensor, "N V"], streams: Sequence[torch.Generator]) -> Int[Tensor, " N"]:
    """A token of each row, drawn from the softmax of its scores: the largest sum of a score and a Gumbel number."""
    noise = torch.empty_like(scores)
    for row, stream in zip(noise, streams, strict=True):
        row.uniform_(generator=stream)
    best, tokens = (scores - noise.log_().neg_().log_()).max(-1)
    if not torch.isfinite(best).all():
        raise DpobenchError("the model's logits are not finite: no token can be drawn; the checkpoint diverged")
    return tokens


def warper(settings: Sampling) -> Callable[[Float[Tensor, "N V"]], Float[Tensor, "N V"]]:
    """Scores of the next token, shape [N, V], as temperature, top-k and top-p leave them: minus infinity where excluded."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList()
    if settings.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k > 0:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        warpers.append(TopPLogitsWarper(settings.top_p))
    # None of the three looks at the tokens before.
    return lambda scores: warpers(None, scores)


class _Reader:
    """Rows of tokens that grow at their ends, and the model's prediction of the next one; keys and values are computed once.

    `generate` would run every row until the last one has ended.

    Args:
        model: a decoder.
        prompts: N rows of token ids; shorter ones are padded on the left.
        padding: any token id.

    Attributes:
        ids: what the model has not read yet, shape [N, S].
    """

    def __init__(self, model: CausalLM, prompts: Sequence[Sequence[int]], padding: int) -> None:
        from transformers import DynamicCache

        self.model, width = model, max(map(len, prompts))
        accepted = inspect.signature(model.forward).parameters
        ids = [[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self.ids: Int[Tensor, "N S"] = torch.tensor(ids, device=model.device)
        self._mask = torch.tensor(mask, device=model.device)
        # Without padding a mask would only slow attention down.
        self._padded = any(len(prompt) < width for prompt in prompts)
        self._positions = (self._mask.cumsum(1) - 1).clamp_min(0) if "position_ids" in accepted else None
        self._cache = DynamicCache(config=model.config.get_text_config()) if "past_key_values" in accepted else None
        self._last_only = "logits_to_keep" in accepted

    def next_logits(self) -> Float[Tensor, "N V"]:
        """Logits of the next token."""
        inputs: ForwardInputs = {"input_ids": self.ids, "use_cache": self._cache is not None}
        if self._last_only:
            inputs["logits_to_keep"] = 1
        if self._padded:
            inputs["attention_mask"] = self._mask
        if self._positions is not None:
            inputs["position_ids"] = self._positions
        if self._cache is not None:
            inputs["past_key_values"] = self._cache
        return self.model(**inputs).logits[:, -1]

    def append(self, tokens: Int[Tensor, " N"]) -> None:
        """Put a token behind each row."""
        whole = self._cache is None
        self.ids = torch.cat([self.ids, tokens[:, None]], 1) if whole else tokens[:, None]
        if self._padded:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        if self._positions is not None:
            after = self._positions[:, -1:] + 1
            self._positions = torch.cat([self._positions, after], 1) if whole else after

    def keep(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on with these rows alone."""
        self.ids, self._mask = self.ids[rows], self._mask[rows]
        if self._positions is not None:
            self._positions = self._positions[rows]
        if self._cache is not None:
            # Made for beams, which a row that stays is one of: the only selection that every kind of cache layer knows.
            self._cache.reorder_cache(rows)
