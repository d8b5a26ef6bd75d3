"""Answers drawn from a model: settings explicit, the same prompts in the same batches for every checkpoint."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from dpobench.heldout import Prompt, Sampling
from dpobench.store import digest

COLUMNS = ("prompt", "draw", "text", "token_ids", "ended")


@torch.no_grad()
def sample(model: Any, tokenizer: Any, prompts: Sequence[Prompt], settings: Sampling, seed: int = 0) -> pd.DataFrame:
    """Draw answers.

    Prompts are batched by length, in an order that depends on the prompts alone, so that every checkpoint answers the same
    batches under the same random numbers.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        prompts: what to answer; `token_ids` must be set.
        settings: how to draw.
        seed: the run's seed.

    Returns: columns `prompt, draw, text, token_ids, ended`, in the order of the prompts; `ended` says that the end token was drawn
        before `max_new_tokens`; `token_ids` include it.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].token_ids), prompts[i].id))
    found: list[dict[str, Any]] = []
    for draw in range(settings.draws):
        for start in range(0, len(order), settings.batch):
            group = order[start : start + settings.batch]
            torch.manual_seed(int(digest("sample", settings.seed, seed, draw, start), 16) % 2**63)
            answers = _generate(model, tokenizer, [prompts[i].token_ids for i in group], settings)
            for i, ids in zip(group, answers, strict=True):
                ended = bool(ids) and ids[-1] == tokenizer.eos_token_id
                text = tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
                found.append(
                    {"at": i, "prompt": prompts[i].id, "draw": draw, "text": text, "token_ids": ids, "ended": ended}
                )
    found.sort(key=lambda row: (row["at"], row["draw"]))
    return pd.DataFrame(found, columns=["at", *COLUMNS])[list(COLUMNS)]


def _generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], settings: Sampling) -> list[list[int]]:
    """One batch of answers as token ids, cut after the end token."""
    width, end = max(map(len, prompts)), tokenizer.eos_token_id
    ids = torch.full((len(prompts), width), end, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with _no_generation_defaults(model):
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=settings.max_new_tokens,
            pad_token_id=end,
            eos_token_id=end,
        )
    answers = out[:, width:].tolist()
    return [answer[: answer.index(end) + 1] if end in answer else answer for answer in answers]


@contextlib.contextmanager
def _no_generation_defaults(model: Any) -> Iterator[None]:
    """While open, the model's own generation defaults are off.

    `generate` fills from them whatever its caller leaves unset (`min_p`, `no_repeat_ngram_size`, `suppress_tokens`, ...), also
    where it is given a whole GenerationConfig.
    """
    from transformers import GenerationConfig

    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept
