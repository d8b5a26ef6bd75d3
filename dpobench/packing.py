"""Pairs as one flat row of tokens: a prompt once for all its answers, nothing padded, nothing attending from pair to pair.

A pair stands as prompt, chosen, rejected (and gold); the positions of every answer go on where the prompt ended. Attention is a list
of calls, not a mask: prompt and first answer are one causal call; each further answer sees the prompt and itself. The calls travel
as a keyword of the model's forward pass to an attention function registered with transformers, so that any decoder that uses that
interface works unchanged; one that does not is found out by `adopt`, which compares both layouts before the first step.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpobench.logprobs import Laid, completion_logps, pair_batch, tensor
from dpobench.tokens import TokenPair

NAME = "dpobench_shared_prompt"
# How far log-probabilities of the two layouts may lie apart, nats a token: rounding of float32, with room for deep models.
AGREEMENT = 1e-4
# Start of a prompt, its end, and the ends of its answers, which follow one another.
Piece = tuple[int, int, tuple[int, ...]]


class Packed(Laid):
    """Prompts with their answers as one row.

    Args:
        prompts: token ids of each pair's prompt.
        sides: for every side (chosen, rejected, gold) the token ids of each pair's answer.
        device: where the tensors live.

    Attributes:
        ids: token ids, shape [1, S].
        places: position of each token in its own sequence, shape [1, S].
        pieces: what attends to what.
    """

    def __init__(self, prompts: Sequence[Any], sides: Sequence[Sequence[Any]], device: Any = "cpu") -> None:
        self.pieces: list[Piece] = []
        ids: list[Any] = []
        places: list[Any] = []
        predicts: list[list[Any]] = [[] for _ in sides]
        at = 0
        for prompt, *answers in zip(prompts, *sides, strict=True):
            start, at = at, at + len(prompt)
            last, ends = at - 1, []
            places.append(np.arange(len(prompt)))
            for side, answer in enumerate(answers):
                # The first token of every answer is predicted by the prompt's last, the others by the one before.
                predicts[side].append(np.append(last, np.arange(at, at + len(answer) - 1)))
                places.append(np.arange(len(prompt), len(prompt) + len(answer)))
                at += len(answer)
                ends.append(at)
            ids += [prompt, *answers]
            self.pieces.append((start, last + 1, tuple(ends)))
        answers = [answer for side in sides for answer in side]
        positions = np.concatenate([one for side in predicts for one in side])
        super().__init__(np.zeros_like(positions), positions, np.concatenate(answers), list(map(len, answers)), device)
        self.ids = tensor(np.concatenate(ids)[None], device)
        self.places = tensor(np.concatenate(places)[None], device)

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward pass."""
        told = {"input_ids": self.ids, "position_ids": self.places, "attention_mask": None}
        return told | {"use_cache": False, "pieces": self.pieces}


def packed_pairs(pairs: Sequence[TokenPair], device: Any = "cpu", *, gold: bool = False) -> Packed:
    """The chosen sides of B pairs, then their rejected sides, then, with `gold`, their gold answers, prompts shared."""
    sides: list[list[Any]] = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    if gold:
        sides.append([pair.gold for pair in pairs])
    return Packed([pair.prompt for pair in pairs], sides, device)


def first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that the sum of a group stays within a token budget: the largest first, each into the first group with room.

    Returns: groups of indices, deterministic for given sizes; a larger item stands alone.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = next((n for n, left in enumerate(room) if left >= sizes[index]), None)
        if place is None:
            groups.append([index])
            room.append(budget - sizes[index])
        else:
            groups[place].append(index)
            room[place] -= sizes[index]
    return groups


@lru_cache(maxsize=4)
def _causal(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a query may look, minus infinity above the diagonal."""
    return torch.full((size, size), -torch.inf, dtype=dtype, device=device).triu(1)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    pieces: Sequence[Piece] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over the pieces of a packed row; without pieces, causal attention over rows padded on the right.

    Args:
        module: the attention layer; not used.
        query: shape [1, heads, S, D].
        key: shape [1, key heads, S, D].
        value: the same.
        attention_mask: always None; the pieces say it all.
        scaling: of the scores.
        pieces: from `Packed`.
        others: what the layer says beside; a window, a cap or a sink is refused.

    Returns: shape [1, S, heads, D].

    Raises:
        NotImplementedError: the layer asks for attention of another kind.
    """
    window = others.get("sliding_window")
    if others.get("softcap") or others.get("s_aux") is not None or (window and window < query.shape[2]):
        raise NotImplementedError("a sliding window, a cap on scores or an attention sink")
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    if pieces is None:
        whole = F.scaled_dot_product_attention(query, key, value, is_causal=query.shape[2] > 1, **options)
        return whole.transpose(1, 2), None
    found = []
    for start, prompt_end, ends in pieces:
        first = slice(start, ends[0])
        found.append(
            F.scaled_dot_product_attention(
                query[:, :, first], key[:, :, first], value[:, :, first], is_causal=True, **options
            )
        )
        for begin, end in pairwise(ends):
            keys, values = (
                torch.cat([all_[:, :, start:prompt_end], all_[:, :, begin:end]], dim=2) for all_ in (key, value)
            )
            prompt, size = prompt_end - start, keys.shape[2]
            # Rounded up, so that few matrices are kept.
            mask = _causal(-(-size // 512) * 512, query.dtype, query.device)[prompt:size, :size]
            found.append(
                F.scaled_dot_product_attention(query[:, :, begin:end], keys, values, attn_mask=mask, **options)
            )
    return torch.cat(found, dim=2).transpose(1, 2), None


def adopt(model: Any, pairs: Sequence[TokenPair]) -> str | None:
    """Let a model read packed rows, if its log-probabilities are then the same.

    Args:
        model: a causal language model, unwrapped.
        pairs: to compare both layouts on; the longest and the shortest are tried.

    Returns: None if the model reads packed rows from now on, otherwise why it does not.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *given, **told: None)
    before = model.config._attn_implementation
    by_size = sorted(pairs, key=lambda pair: pair.size)
    tried = [by_size[-1], by_size[0]]
    with torch.no_grad():
        padded = completion_logps(model, pair_batch(tried, model.device))
        try:
            model.set_attn_implementation(NAME)
            packed = completion_logps(model, packed_pairs(tried, model.device))
            apart = float((packed - padded).abs().max())
        except (NotImplementedError, TypeError, ValueError, RuntimeError, KeyError) as error:
            model.set_attn_implementation(before)
            return f"{type(error).__name__}: {error}"
    if not apart <= AGREEMENT:
        model.set_attn_implementation(before)
        return f"log-probabilities of the two layouts differ by {apart:.2g} nats"
    return None
