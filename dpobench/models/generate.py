"""Answers drawn from a model: settings explicit, the same prompts in the same batches for every checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
import inspect

import pandas as pd
import torch
from torch import Tensor

from dpobench.artifacts.files import digest
from dpobench.data.prompts import Prompt
from dpobench.errors import DpobenchError


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
# Rows that ended are taken out of a batch when this share of it is left: taking them out copies what is kept of the others.
_LEFT = 0.875


def sample(model: Any, tokenizer: Any, prompts: Sequence[Prompt], settings: Sampling, seed: int = 0) -> pd.DataFrame:
    """Draw answers.

    Prompts are batched by length, in an order that depends on the prompts alone, so that every checkpoint answers the same
    batches. Each answer has a stream of random numbers of its own, one number per step and token of the vocabulary, and the
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
    found: list[dict[str, Any]] = []
    for draw in range(settings.draws):
        for start in range(0, len(order), settings.batch):
            group = order[start : start + settings.batch]
            streams = [_stream(model.device, settings.seed, seed, draw, start + row) for row in range(len(group))]
            asked = [prompts[i].token_ids for i in group]
            answers = _answers(_Reader(model, asked, tokenizer.eos_token_id), streams, settings, tokenizer.eos_token_id)
            for i, ids in zip(group, answers, strict=True):
                ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
                text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
                found.append(
                    {"at": i, "prompt": prompts[i].id, "draw": draw, "text": text, "token_ids": ids, "ended": ended}
                )
    found.sort(key=lambda row: (row["at"], row["draw"]))
    return pd.DataFrame(found, columns=["at", *COLUMNS])[list(COLUMNS)]


def _stream(device: Any, *names: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(digest("sample", *names), 16))


@torch.no_grad()
def _answers(reader: "_Reader", streams: list[torch.Generator], settings: Sampling, end: int) -> list[list[int]]:
    """One batch of answers as token ids, cut after the end token."""
    device, warp = reader.ids.device, warper(settings)
    rows, open_rows = (
        torch.arange(len(streams), device=device),
        torch.ones(len(streams), dtype=torch.bool, device=device),
    )
    drawn = torch.full((len(streams), settings.max_new_tokens), end, device=device)
    for step in range(settings.max_new_tokens):
        tokens = _race(warp(reader.next_logits().float()), streams)
        drawn[rows, step] = tokens
        open_rows = open_rows & (tokens != end)
        left = int(open_rows.sum())
        if left == 0:
            break
        reader.append(tokens)
        if left <= _LEFT * len(rows):
            kept = open_rows.nonzero().squeeze(1)
            reader.keep(kept)
            rows, open_rows, streams = rows[kept], open_rows[kept], [streams[i] for i in kept.tolist()]
    return [answer[: answer.index(end) + 1] if end in answer else answer for answer in drawn.tolist()]


def _race(scores: Tensor, streams: Sequence[torch.Generator]) -> Tensor:
    """A token of each row, drawn from the softmax of its scores: the largest sum of a score and a Gumbel number of its own."""
    noise = torch.empty_like(scores)
    for row, stream in zip(noise, streams, strict=True):
        row.uniform_(generator=stream)
    best, tokens = (scores - noise.log_().neg_().log_()).max(-1)
    if not torch.isfinite(best).all():
        raise DpobenchError("the model's logits are not finite: no token can be drawn; the checkpoint diverged")
    return tokens


def warper(settings: Sampling) -> Callable[[Tensor], Tensor]:
    """Scores of the next token, shape [N, V], as temperature, top-k and top-p leave them: minus infinity where excluded."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    chosen = LogitsProcessorList()
    if settings.temperature != 1.0:
        chosen.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k > 0:
        chosen.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        chosen.append(TopPLogitsWarper(settings.top_p))
    # None of the three looks at the tokens before.
    return lambda scores: chosen(None, scores)


class _Reader:
    """Rows of tokens that grow at their ends, and what a model says comes next; keys and values are computed once.

    `generate` would run every row until the last one has ended.

    Args:
        model: a decoder.
        prompts: N rows of token ids; shorter ones are padded on the left.
        padding: any token id.

    Attributes:
        ids: what the model has not read yet, shape [N, S].
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], padding: int) -> None:
        from transformers import DynamicCache

        self.model, width = model, max(map(len, prompts))
        accepted = inspect.signature(model.forward).parameters
        ids = [[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self.ids = torch.tensor(ids, device=model.device)
        self._mask = torch.tensor(mask, device=model.device)
        # Without padding a mask would only slow attention down.
        self._padded = any(len(prompt) < width for prompt in prompts)
        self._positions = (self._mask.cumsum(1) - 1).clamp_min(0) if "position_ids" in accepted else None
        self._cache = DynamicCache(config=model.config.get_text_config()) if "past_key_values" in accepted else None
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def next_logits(self) -> Tensor:
        """Logits of the next token, shape [N, V]."""
        asked: dict[str, Any] = {"input_ids": self.ids, "use_cache": self._cache is not None, **self._last}
        if self._padded:
            asked["attention_mask"] = self._mask
        if self._positions is not None:
            asked["position_ids"] = self._positions
        if self._cache is not None:
            asked["past_key_values"] = self._cache
        logits: Tensor = self.model(**asked).logits[:, -1]
        return logits

    def append(self, tokens: Tensor) -> None:
        """Put a token behind each row, shape [N]."""
        whole = self._cache is None
        self.ids = torch.cat([self.ids, tokens[:, None]], 1) if whole else tokens[:, None]
        if self._padded:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        if self._positions is not None:
            after = self._positions[:, -1:] + 1
            self._positions = torch.cat([self._positions, after], 1) if whole else after

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.ids, self._mask = self.ids[rows], self._mask[rows]
        if self._positions is not None:
            self._positions = self._positions[rows]
        if self._cache is not None:
            # Made for beams, which a row that stays is one of: the only selection that every kind of cache layer knows.
            self._cache.reorder_cache(rows)
