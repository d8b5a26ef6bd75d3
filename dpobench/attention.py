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
# In a low precision a CPU multiplies matrices of scores faster than its flash kernel works; their memory grows with the square.
MOST_KEYS = 1024


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
    """The calls of a row on a CPU. Low precision: products of matrices; otherwise, and where these were large: the flash kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pieces: Sequence[Piece], scale: float) -> Tensor:
        heads, size = query.shape[1:3]
        out = query.new_empty(1, size, heads, value.shape[3])
        into, kept = out.transpose(1, 2), []
        for call in _calls(pieces):
            mine = slice(call.begin, call.end)
            asked, keys, values = query[:, :, mine], call.of(key), call.of(value)
            if _as_matrices(call, query):
                scores = torch.baddbmm(
                    _mask(call, query).expand(heads, -1, -1), asked[0], keys[0].transpose(1, 2), alpha=scale
                )
                kept.append(scores.softmax(-1))
                into[0, :, mine] = kept[-1] @ values[0]
            else:
                mask = _mask(call, query) if call.prompt else None
                found, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    asked, keys, values, 0.0, mask is None, attn_mask=mask, scale=scale
                )
                kept.append(normaliser)
                into[:, :, mine] = found
        ctx.save_for_backward(query, key, value, out, *kept)
        ctx.pieces, ctx.scale = pieces, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        query, key, value, out, *kept = ctx.saved_tensors
        slope, out = slope.transpose(1, 2), out.transpose(1, 2)
        at_query, at_key, at_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for call, known in zip(_calls(ctx.pieces), kept, strict=True):
            mine = slice(call.begin, call.end)
            asked, keys, values, pull = query[:, :, mine], call.of(key), call.of(value), slope[:, :, mine]
            if _as_matrices(call, query):
                moved = torch._softmax_backward_data(pull @ values.transpose(2, 3), known[None], -1, known.dtype)
                parts = (
                    (moved @ keys).mul_(ctx.scale),
                    (moved.transpose(2, 3) @ asked).mul_(ctx.scale),
                    known.transpose(1, 2) @ pull,
                )
            else:
                mask = _mask(call, query) if call.prompt else None
                parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    pull,
                    asked,
                    keys,
                    values,
                    out[:, :, mine],
                    known,
                    0.0,
                    mask is None,
                    attn_mask=mask,
                    scale=ctx.scale,
                )
            at_query[:, :, mine] = parts[0]
            call.add(at_key, parts[1])
            call.add(at_value, parts[2])
        return at_query, at_key, at_value, None, None


def _as_matrices(call: _Call, query: Tensor) -> bool:
    return query.dtype in (torch.bfloat16, torch.float16) and call.keys <= MOST_KEYS


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
        pieces: what attends to what, see `dpobench.packing.Packed`.
        others: what the layer says beside; a window, a cap or a sink is refused.

    Returns: shape [1, S, heads, D].

    Raises:
        NotImplementedError: the layer asks for attention of another kind.
    """
    window = others.get("sliding_window")
    if others.get("softcap") or others.get("s_aux") is not None or (window and window < query.shape[2]):
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
        from dpobench.flex import attend_flex

        return attend_flex(query, key, value, pieces, scale).transpose(1, 2), None
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.device.type != "cpu":
        return _elsewhere(query, key, value, pieces, scale), None
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    return _Calls.apply(query, key, value, pieces, scale), None
