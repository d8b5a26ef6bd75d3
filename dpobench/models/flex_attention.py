"""Attention over packed rows on a GPU: one call of FlexAttention, whose blocks of tokens that nobody sees cost nothing.

Rows are lengthened to whole blocks, and their length is a variable of the compiled kernel: it is compiled for the first row and serves
rows of every length. What attends to what is worked out once for a row, not once for a layer.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from dpobench.models.protocols import PerHead, Piece

# Tokens of a block, the kernel's unit.
BLOCK = 128
# A dimension of one block would be compiled as the number 1, and a second time for longer rows.
SHORTEST = 2 * BLOCK
# The least width of a head that the kernel multiplies.
NARROWEST = 16


class Kernel(Protocol):
    """`flex_attention` of torch, as this module calls it."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, block_mask: BlockMask, scale: float, enable_gqa: bool
    ) -> Tensor:
        """Attention, shape [1, heads, L, D]."""
        ...


def attend_flex(
    query: PerHead,
    key: PerHead,
    value: PerHead,
    pieces: Sequence[Piece],
    scaling: float | None = None,
    kernel: Kernel | None = None,
) -> Float[Tensor, "1 heads S D"]:
    """Attention in which a token sees, causally, its own answer and the prompt before it.

    Under autocast it computes in autocast's dtype, otherwise in that of the query. CUDA differentiates it; on a CPU, which is here
    for comparison, the library computes the scores of the whole row and refuses tensors that require a gradient.

    Args:
        query: shape [1, heads, S, D].
        key: shape [1, key heads, S, D]; the heads are a multiple of the key heads.
        value: shape [1, key heads, S, D].
        pieces: what the row holds, from its first token to its last.
        scaling: of the scores; None is one over the root of D.
        kernel: what computes it; None is `flex_attention` as the device runs it.

    Returns: what each token attended to, shape [1, heads, S, D].

    Raises:
        NotImplementedError: a tensor on a CPU requires a gradient.
    """
    tokens, width = query.shape[2:]
    device = query.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else query.dtype
    length = max(SHORTEST, -(-tokens // BLOCK) * BLOCK)

    def lengthened(row: Tensor) -> Tensor:
        # Contiguous also where nothing is added: the kernel would be compiled again for other strides.
        return F.pad(row.to(dtype), (0, max(0, NARROWEST - row.shape[3]), 0, length - tokens)).contiguous()

    attended = (kernel or kernel_for(device))(
        lengthened(query),
        lengthened(key),
        lengthened(value),
        block_mask=_block_mask(tuple(pieces), length, device),
        scale=width**-0.5 if scaling is None else scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[:, :, :tokens, : value.shape[3]]


def kernel_for(device: torch.device) -> Kernel:
    """`flex_attention` as a device runs it: compiled on CUDA, uncompiled elsewhere."""
    return _compiled() if device.type == "cuda" else _uncompiled


@lru_cache(maxsize=1)
def _compiled(backend: str | Callable[..., object] = "inductor") -> Kernel:
    # Whole or not at all: uncompiled, it would hold the scores of the whole row.
    return cast(Kernel, torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend))


def _uncompiled(
    query: Tensor, key: Tensor, value: Tensor, *, block_mask: BlockMask, scale: float, enable_gqa: bool
) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        # Without the options that ask for more, it returns one tensor.
        attended = flex_attention(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=enable_gqa)
    assert isinstance(attended, Tensor)
    return attended


@lru_cache(maxsize=4)
def _block_mask(pieces: tuple[Piece, ...], length: int, device: torch.device) -> BlockMask:
    """What attends to what; shared by the layers of a model, by the reference and by activations computed again."""
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
    segment, prompt_segment = torch.from_numpy(segments).to(device), torch.from_numpy(prompts).to(device)

    def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((segment[key] == segment[query]) | (segment[key] == prompt_segment[query]))

    return create_block_mask(attends, None, None, length, length, device=device, BLOCK_SIZE=BLOCK)
