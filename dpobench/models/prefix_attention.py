"""Attention over packed rows: a list of calls, not a mask; on a CPU with a backward pass that writes where it belongs.

A pair stands as prompt, chosen, rejected (and gold). Prompt and first answer are one causal call; each further answer sees the prompt
and itself. Autograd through slices would fill a whole row with zeros for every slice; here each call adds its part in place.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Start of a prompt, its end, and the ends of its answers, which follow one another.
Piece = tuple[int, int, tuple[int, ...]]


class _Call(NamedTuple):
    """Queries from `begin` to `end`, which see the tokens from `start` to `prompt_end` (none if empty) and themselves, causally."""

    start: int
    prompt_end: int
    begin: int
    end: int

    @property
    def prompt(self) -> int:
        return self.prompt_end - self.start

    @property
    def keys(self) -> int:
        return self.prompt + self.end - self.begin

    def of(self, row: Tensor) -> Tensor:
        """Keys or values of the call; shape [1, heads, keys, D]."""
        own = row[:, :, self.begin : self.end]
        return torch.cat([row[:, :, self.start : self.prompt_end], own], dim=2) if self.prompt else own

    def add(self, row: Tensor, part: Tensor) -> None:
        """Add what belongs to keys or values to their places."""
        row[:, :, self.begin : self.end] += part[:, :, self.prompt :]
        if self.prompt:
            row[:, :, self.start : self.prompt_end] += part[:, :, : self.prompt]


def _calls(pieces: Sequence[Piece]) -> Iterator[_Call]:
    for start, prompt_end, ends in pieces:
        yield _Call(start, start, start, ends[0])
        for begin, end in pairwise(ends):
            yield _Call(start, prompt_end, begin, end)


@lru_cache(maxsize=4)
def _triangle(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a query may look, minus infinity above the diagonal."""
    return torch.full((size, size), -torch.inf, dtype=dtype, device=device).triu(1)


def _mask(call: _Call, like: Tensor) -> Tensor:
    # Rounded up, so that few matrices are kept.
    return _triangle(-(-call.keys // 512) * 512, like.dtype, like.device)[call.prompt : call.keys, : call.keys]


class _Calls(torch.autograd.Function):
    """The calls of a row through the CPU's flash kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scale: float) -> Tensor:
        heads, size = query.shape[1:3]
        out = query.new_empty(1, size, heads, value.shape[3])
        into, normalisers = out.transpose(1, 2), []
        for call in _calls(pieces):
            mine = slice(call.begin, call.end)
            mask = _mask(call, query) if call.prompt else None
            found, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, mine], call.of(key), call.of(value), 0.0, mask is None, attn_mask=mask, scale=scale
            )
            into[:, :, mine] = found
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, out, *normalisers)
        ctx.pieces, ctx.scale = pieces, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        query, key, value, out, *normalisers = ctx.saved_tensors
        slope, out = slope.transpose(1, 2), out.transpose(1, 2)
        at_query, at_key, at_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for call, normaliser in zip(_calls(ctx.pieces), normalisers, strict=True):
            mine = slice(call.begin, call.end)
            mask = _mask(call, query) if call.prompt else None
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                slope[:, :, mine], query[:, :, mine], call.of(key), call.of(value), out[:, :, mine], normaliser, 0.0,
                mask is None, attn_mask=mask, scale=ctx.scale,
            )  # fmt: skip
            at_query[:, :, mine] = parts[0]
            call.add(at_key, parts[1])
            call.add(at_value, parts[2])
        return at_query, at_key, at_value, None, None


def _elsewhere(query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scale: float) -> Tensor:
    """The calls through the library's dispatch, differentiable by autograd; where neither the CPU's path nor the GPU's serves."""
    found = []
    for call in _calls(pieces):
        mask = _mask(call, query) if call.prompt else None
        asked = query[:, :, call.begin : call.end]
        found.append(
            F.scaled_dot_product_attention(
                asked, call.of(key), call.of(value), attn_mask=mask, is_causal=mask is None, scale=scale
            )
        )
    return torch.cat(found, dim=2).transpose(1, 2)


def _longest(query: Tensor, pieces: Sequence[Piece] | None) -> int:
    """Tokens of the longest sequence of a row."""
    return query.shape[2] if pieces is None else max(call.keys for call in _calls(pieces))


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
        scaling: of the scores; None is one over the root of D.
        pieces: what attends to what, see `dpobench.models.packing.Packed`.
        others: what the layer says beside; a window, a cap or a sink is refused.

    Returns: shape [1, S, heads, D].

    Raises:
        NotImplementedError: the layer asks for attention of another kind.
    """
    window = others.get("sliding_window")
    if others.get("softcap") or others.get("s_aux") is not None or (window and window < _longest(query, pieces)):
        raise NotImplementedError("a sliding window, a cap on scores or an attention sink")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    if pieces is None:
        whole = F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scale, enable_gqa=groups > 1
        )
        return whole.transpose(1, 2), None
    if query.is_cuda and query.dtype != torch.float64:
        # Imports the compiler, which nothing on a CPU needs.
        from dpobench.models.flex_attention import attend_flex

        return attend_flex(query, key, value, pieces, scale).transpose(1, 2), None
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.device.type != "cpu":
        return _elsewhere(query, key, value, pieces, scale), None
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    # In bf16 the kernel's backward is slower on segments of a few hundred tokens, and less exact.
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    found: Tensor = _Calls.apply(query.to(wide), key.to(wide), value.to(wide), pieces, scale)
    return found if wide == torch.float64 else found.to(low), None
