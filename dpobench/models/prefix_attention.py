"""Attention over packed rows: a list of calls, not a mask; on a CPU with a backward pass that writes to the right place at once.

A pair stands as prompt, chosen, rejected (and gold). Prompt and first answer are one causal call; each further answer sees the prompt
and itself. Autograd through slices would fill a whole row with zeros for every slice; here each call adds its part in place.

Shapes in this module: S tokens in the row, D the width of a head, K the tokens that a call attends to.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Protocol, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dpobench.models.protocols import PerHead, Piece


class LayerOptions(TypedDict, total=False):
    """What layers of some architectures pass to their attention function; further options are ignored."""

    sliding_window: int | None
    softcap: float | None
    s_aux: Tensor | None


class _Call(NamedTuple):
    """Queries from `begin` to `end`, which see the tokens from `start` to `prompt_end` (none if empty) and themselves, causally."""

    start: int
    prompt_end: int
    begin: int
    end: int

    @property
    def queries(self) -> slice:
        return slice(self.begin, self.end)

    @property
    def prompt_length(self) -> int:
        return self.prompt_end - self.start

    @property
    def key_length(self) -> int:
        return self.prompt_length + self.end - self.begin

    def select(self, row: PerHead) -> Float[Tensor, "1 heads K D"]:
        """The part of a row's keys or values that the call attends to."""
        answer = row[:, :, self.queries]
        return torch.cat([row[:, :, self.start : self.prompt_end], answer], dim=2) if self.prompt_length else answer

    def add(self, row: PerHead, part: Float[Tensor, "1 heads K D"]) -> None:
        """Add a gradient of the selected keys or values to that of the row."""
        row[:, :, self.queries] += part[:, :, self.prompt_length :]
        if self.prompt_length:
            row[:, :, self.start : self.prompt_end] += part[:, :, : self.prompt_length]


def _calls(pieces: Sequence[Piece]) -> Iterator[_Call]:
    for start, prompt_end, ends in pieces:
        yield _Call(start, start, start, ends[0])
        for begin, end in pairwise(ends):
            yield _Call(start, prompt_end, begin, end)


@lru_cache(maxsize=4)
def _triangle(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 where a query may look, minus infinity above the diagonal."""
    return torch.full((size, size), -torch.inf, dtype=dtype, device=device).triu(1)


def _mask(call: _Call, query: PerHead) -> Tensor | None:
    """What is added to a call's scores, shape [queries, keys]; None where plain causal attention is the same."""
    if not call.prompt_length:
        return None
    # Rounded up, so that few matrices stay in memory.
    triangle = _triangle(-(-call.key_length // 512) * 512, query.dtype, query.device)
    return triangle[call.prompt_length : call.key_length, : call.key_length]


class _CallsContext(Protocol):
    """What forward leaves for backward."""

    pieces: Sequence[Piece]
    scale: float
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _Calls(torch.autograd.Function):
    """The calls of a row through the CPU's flash kernel."""

    @staticmethod
    def forward(
        ctx: _CallsContext, query: PerHead, key: PerHead, value: PerHead, pieces: Sequence[Piece], scale: float
    ) -> Float[Tensor, "1 S heads D"]:
        heads, size = query.shape[1:3]
        out = query.new_empty(1, size, heads, value.shape[3])
        by_head, normalisers = out.transpose(1, 2), []
        for call in _calls(pieces):
            mask = _mask(call, query)
            attended, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, call.queries], call.select(key), call.select(value), 0.0, mask is None,
                attn_mask=mask, scale=scale,
            )  # fmt: skip
            by_head[:, :, call.queries] = attended
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, out, *normalisers)
        ctx.pieces, ctx.scale = pieces, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: _CallsContext, out_gradient: Float[Tensor, "1 S heads D"]
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, *normalisers = ctx.saved_tensors
        out_gradient, out = out_gradient.transpose(1, 2), out.transpose(1, 2)
        query_gradient, key_gradient, value_gradient = (torch.zeros_like(one) for one in (query, key, value))
        for call, normaliser in zip(_calls(ctx.pieces), normalisers, strict=True):
            mask = _mask(call, query)
            of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                out_gradient[:, :, call.queries], query[:, :, call.queries], call.select(key), call.select(value),
                out[:, :, call.queries], normaliser, 0.0, mask is None, attn_mask=mask, scale=ctx.scale,
            )  # fmt: skip
            query_gradient[:, :, call.queries] = of_query
            call.add(key_gradient, of_key)
            call.add(value_gradient, of_value)
        return query_gradient, key_gradient, value_gradient, None, None


def _by_dispatch(
    query: PerHead, key: PerHead, value: PerHead, pieces: Sequence[Piece], scale: float
) -> Float[Tensor, "1 S heads D"]:
    """The calls through the library's dispatch and autograd, for devices that have neither the CPU's path nor the GPU's."""
    parts = []
    for call in _calls(pieces):
        mask = _mask(call, query)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, call.queries],
                call.select(key),
                call.select(value),
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2)


def _longest(query: PerHead, pieces: Sequence[Piece] | None) -> int:
    """Tokens of the longest sequence of a row."""
    return query.shape[2] if pieces is None else max(call.key_length for call in _calls(pieces))


def attend(
    module: object,
    query: PerHead,
    key: PerHead,
    value: PerHead,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    pieces: Sequence[Piece] | None = None,
    **options: Unpack[LayerOptions],
) -> tuple[Float[Tensor, "1 S heads D"], None]:
    """Attention over the pieces of a packed row; without pieces, causal attention over rows padded on the right.

    Args:
        module: the attention layer; not used.
        query: shape [1, heads, S, D].
        key: shape [1, key heads, S, D].
        value: shape [1, key heads, S, D].
        attention_mask: always None; the pieces say what attends to what.
        scaling: of the scores; None is one over the root of D.
        pieces: what attends to what, see `dpobench.models.packing.PackedRow`.
        options: what the layer passes besides; a window, a cap or a sink is refused.

    Returns: what each token attended to, shape [1, S, heads, D]; no weights.

    Raises:
        NotImplementedError: the layer needs attention of another kind.
    """
    window = options.get("sliding_window")
    if options.get("softcap") or options.get("s_aux") is not None or (window and window < _longest(query, pieces)):
        raise NotImplementedError("a sliding window, a cap on scores or an attention sink")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    groups = query.shape[1] // key.shape[1]
    if pieces is None:
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=query.shape[2] > 1, scale=scale, enable_gqa=groups > 1
        )
        return attended.transpose(1, 2), None
    if query.is_cuda and query.dtype != torch.float64:
        # Imports the compiler, which nothing on a CPU needs.
        from dpobench.models.flex_attention import attend_flex

        return attend_flex(query, key, value, pieces, scale).transpose(1, 2), None
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if query.device.type != "cpu":
        return _by_dispatch(query, key, value, pieces, scale), None
    result_dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    # In bf16 the kernel's backward is slower on segments of a few hundred tokens, and less exact.
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = query.to(dtype), key.to(dtype), value.to(dtype)
    attended = cast(Tensor, _Calls.apply(*rows, pieces, scale))  # type: ignore[no-untyped-call]
    return attended if dtype == torch.float64 else attended.to(result_dtype), None
