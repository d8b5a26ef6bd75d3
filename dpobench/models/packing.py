"""Pairs as one flat row of tokens: a prompt once for all its answers, nothing padded, nothing attending from pair to pair.

A pair stands as prompt, chosen, rejected (and gold); the positions of every answer go on where the prompt ended. Attention is a list
of calls, not a mask: prompt and first answer are one causal call; each further answer sees the prompt and itself. The calls travel
as a keyword of the model's forward pass to an attention function registered with transformers, so that any decoder that uses that
interface works unchanged; one that does not is detected by `adopt`, which compares both layouts before the first step.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dpobench.data.tokens import Ids, TokenPair
from dpobench.models.logprobs import CompletionLayout, Device, completion_logps, pair_batch, tensor
from dpobench.models.prefix_attention import attend
from dpobench.models.protocols import CausalLM, ForwardInputs, Piece

NAME = "dpobench_shared_prompt"
# How far log-probabilities of the two layouts may lie apart, nats a token: rounding of float32, with room for deep models.
AGREEMENT = 1e-4


class PackedRow(CompletionLayout):
    """Prompts with their answers as one row of S tokens.

    Args:
        prompts: token ids of each pair's prompt.
        sides: for every side (chosen, rejected, gold) the token ids of each pair's answer.
        device: where the tensors live.

    Attributes:
        ids: token ids, shape [1, S].
        places: position of each token in its own sequence, shape [1, S].
        pieces: what attends to what.
    """

    def __init__(self, prompts: Sequence[Ids], sides: Sequence[Sequence[Ids]], device: Device = "cpu") -> None:
        self.pieces: list[Piece] = []
        ids: list[Ids] = []
        places: list[Ids] = []
        # For every side and pair, the positions whose outputs predict the answer's tokens.
        predictors: list[list[Ids]] = [[] for _ in sides]
        position = 0
        for prompt, *answers in zip(prompts, *sides, strict=True):
            start, position = position, position + len(prompt)
            prompt_end, ends = position, []
            places.append(np.arange(len(prompt)))
            for side, answer in enumerate(answers):
                # The first token of every answer is predicted by the prompt's last, the others by the one before.
                predictors[side].append(np.append(prompt_end - 1, np.arange(position, position + len(answer) - 1)))
                places.append(np.arange(len(prompt), len(prompt) + len(answer)))
                position += len(answer)
                ends.append(position)
            ids += [prompt, *answers]
            self.pieces.append((start, prompt_end, tuple(ends)))
        answers = [answer for side in sides for answer in side]
        positions = np.concatenate([one for side in predictors for one in side])
        super().__init__(np.zeros_like(positions), positions, np.concatenate(answers), list(map(len, answers)), device)
        self.ids: Int[Tensor, "1 S"] = tensor(np.concatenate(ids)[None], device)
        self.places: Int[Tensor, "1 S"] = tensor(np.concatenate(places)[None], device)

    def inputs(self) -> ForwardInputs:
        """Arguments of the model's forward pass."""
        return {
            "input_ids": self.ids,
            "position_ids": self.places,
            "attention_mask": None,
            "use_cache": False,
            "pieces": self.pieces,
        }


def packed_pairs(pairs: Sequence[TokenPair], device: Device = "cpu", *, gold: bool = False) -> PackedRow:
    """The chosen sides of B pairs, then their rejected sides, then, with `gold`, their gold answers, prompts shared."""
    sides = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    if gold:
        sides.append([pair.gold for pair in pairs if pair.gold is not None])
    return PackedRow([pair.prompt for pair in pairs], sides, device)


def first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Group indices so that the sum of a group stays within a token budget: the largest first, each into the first group with room.

    Args:
        sizes: tokens of each item.
        budget: most tokens of a group; a larger item stands alone.

    Returns: groups of indices, deterministic for given sizes.

    Example:
        >>> first_fit([3, 10, 4, 9], budget=13)
        [[1, 0], [3, 2]]
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


def _longest(pair: TokenPair) -> int:
    """Tokens of the longest of a pair's sequences."""
    return len(pair.prompt) + max(map(len, (pair.chosen, pair.rejected, () if pair.gold is None else pair.gold)))


def adopt(model: CausalLM, pairs: Sequence[TokenPair]) -> str | None:
    """Let a model read packed rows, if its log-probabilities are then the same.

    Args:
        model: a causal language model, unwrapped; its attention is replaced.
        pairs: to compare both layouts on; the shortest is tried, the longest, and the one with the longest answer to its prompt.

    Returns: None if the model reads packed rows from now on, otherwise why it does not.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *_arguments, **_options: None)
    attention_before = model.config._attn_implementation
    candidates = [*pairs, *(pair.mismatched for pair in pairs if pair.mismatched is not None)]
    by_size, by_sequence = (sorted(candidates, key=key) for key in (lambda pair: pair.size, _longest))
    compared = [by_size[-1], by_size[0], by_sequence[-1]]
    with torch.no_grad():
        padded = completion_logps(model, pair_batch(compared, model.device))
        try:
            model.set_attn_implementation(NAME)
            packed = completion_logps(model, packed_pairs(compared, model.device))
            difference = float((packed - padded).abs().max())
        except (NotImplementedError, TypeError, ValueError, RuntimeError, KeyError) as error:
            model.set_attn_implementation(attention_before)
            return f"{type(error).__name__}: {error}"
    if not difference <= AGREEMENT:
        model.set_attn_implementation(attention_before)
        return f"log-probabilities of the two layouts differ by {difference:.2g} nats"
    return None
