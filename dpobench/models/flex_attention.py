"""Attention over packed rows on a GPU: one call of FlexAttention, whose blocks of tokens that nobody sees cost nothing.

Rows are lengthened to whole blocks, and their length is a variable of the compiled kernel: it is compiled for the first row and serves
rows of every length. What sees what is worked out once for a row, not once for a layer.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

if TYPE_CHECKING:
    from dpobench.models.prefix_attention import Piece


# Tokens of a block, the kernel's unit.
BLOCK = 128
# A dimension of one block would be compiled as the number 1, and a second time for longer rows.
SHORTEST = 2 * BLOCK
# The least width of a head that the kernel multiplies.
NARROWEST = 16


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, pieces: "Sequence[Piece]", scaling: float | None = None
) -> Tensor:
    """Attention in which a token sees, causally, its own answer and the prompt before it.

    Under autocast it computes in autocast's dtype, otherwise in that of the query. CUDA differentiates it; on a CPU, which is here
    for comparison, the library computes the scores of the whole row and refuses tensors that require a gradient.

    Args:
        query: shape [1, heads, S, D].
        key: shape [1, key heads, S, D]; the heads are a multiple of the key heads.
        value: the same.
        pieces: what the row holds, from its first token to its last.
        scaling: of the scores; None is one over the root of D.

    Returns: shape [1, heads, S, D].

    Raises:
        NotImplementedError: a tensor on a CPU requires a gradient.
    """
    tokens, width = query.shape[2:]
    device = query.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else query.dtype
    length = max(SHORTEST, -(-tokens // BLOCK) * BLOCK)

    def laid(row: Tensor) -> Tensor:
        # Contiguous also where nothing is added: the kernel would be compiled again for other strides.
        return F.pad(row.to(dtype), (0, max(0, NARROWEST - row.shape[3]), 0, length - tokens)).contiguous()

    found = chosen(device)(
        laid(query),
        laid(key),
        laid(value),
        block_mask=_mask(tuple(pieces), length, device),
        scale=width**-0.5 if scaling is None else scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found[:, :, :tokens, : value.shape[3]]


def chosen(device: torch.device) -> Callable[..., Tensor]:
    """`flex_attention` as a device runs it: compiled on CUDA, as it is elsewhere."""
    return _compiled() if device.type == "cuda" else _uncompiled


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    # Whole or not at all: uncompiled, it would hold the scores of the whole row.
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def _uncompiled(query: Tensor, key: Tensor, value: Tensor, **told: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        return flex_attention(query, key, value, **told)


@lru_cache(maxsize=4)
def _mask(pieces: "tuple[Piece, ...]", length: int, device: torch.device) -> BlockMask:
    """What sees what; kept for the layers of a model, for the reference and for activations computed again."""
    # Every token's segment and the segment of its prompt. Tokens beyond the row are segments of their own: a row that saw nothing
    # would be a mean over nothing, and a segment of all of them would be work.
    segments = np.arange(-1, -length - 1, -1, dtype=np.int32)
    prompts = segments.copy()
    number = 0
    for start, prompt_end, ends in pieces:
        prompt = number
        for begin, end in pairwise((start, prompt_end, *ends)):
            segments[begin:end], prompts[begin:end] = number, prompt
            number += 1
    own, shared = torch.from_numpy(segments).to(device), torch.from_numpy(prompts).to(device)

    def sees(_: Tensor, __: Tensor, asking: Tensor, asked: Tensor) -> Tensor:
        return (asked <= asking) & ((own[asked] == own[asking]) | (own[asked] == shared[asking]))

    return create_block_mask(sees, None, None, length, length, device=device, BLOCK_SIZE=BLOCK)
