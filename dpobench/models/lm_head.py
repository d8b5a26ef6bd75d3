"""Log-probabilities of tokens from hidden states, with one chunk of the table over the vocabulary alive at a time.

A table of tokens x vocabulary that fits into a chunk is computed once, and its derivative is stored for backward. A larger one is
computed chunk by chunk and again in backward, so that memory grows with the chunk and not with the tokens.

Shapes in this module: K tokens, C of them in a chunk, H the width of hidden states, V the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Entries of a table that are computed at a time, and that are stored for backward, by kind of device.
CHUNK = {"cpu": 2**23, "cuda": 2**27}
STORED = {"cpu": 2**24, "cuda": 2**29}


class Projection(NamedTuple):
    """How a model turns hidden states into logits: a matrix, a factor, a cap.

    Args:
        weight: shape [V, H].
        bias: shape [V], or None.
        factor: logits are multiplied by it.
        cap: they are then cap x tanh(logit / cap); None leaves them.
    """

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    factor: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Float[Tensor, "C H"], weight: Float[Tensor, "V H"]) -> Float[Tensor, "C V"]:
        """Logits in float32 (float64 for float64); `weight` is the matrix in the dtype of the hidden states."""
        logits = F.linear(hidden, weight, None if self.bias is None else self.bias.to(weight.dtype))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def most_stored(weight: Float[Tensor, "V H"]) -> int:
    """Tokens whose table is small enough to be stored for backward."""
    return max(1, STORED.get(weight.device.type, STORED["cpu"]) // len(weight))


def _chunks(tokens: int, weight: Float[Tensor, "V H"]) -> list[slice]:
    size = max(1, CHUNK.get(weight.device.type, CHUNK["cpu"]) // len(weight))
    return [slice(start, start + size) for start in range(0, tokens, size)]


class _LogpsContext(Protocol):
    """What forward leaves for backward."""

    factor_and_cap: tuple[float, float | None]
    hidden_dtype: torch.dtype
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class _TokenLogps(torch.autograd.Function):
    """Log-probability of a target per hidden state; backward by the closed form, two products of matrices a chunk."""

    @staticmethod
    def forward(
        ctx: _LogpsContext,
        hidden: Float[Tensor, "K H"],
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"] | None,
        targets: Int[Tensor, " K"],
        factor_and_cap: tuple[float, float | None],
        dtype: torch.dtype,
    ) -> Float[Tensor, " K"]:
        projection = Projection(weight, bias, *factor_and_cap)
        differentiable = any(ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            narrow, matrix = hidden.to(dtype), weight.to(dtype)
            derivative, logps = None, []
            if differentiable and len(targets) <= most_stored(weight):
                derivative = narrow.new_empty(len(targets), len(weight))
            for chunk in _chunks(len(targets), weight):
                part, of_part = _chunk_logps(
                    projection, narrow[chunk], matrix, targets[chunk], derivative=derivative is not None
                )
                logps.append(part)
                if derivative is not None:
                    assert of_part is not None
                    derivative[chunk] = of_part
        stored = [] if derivative is None else [derivative]
        ctx.save_for_backward(narrow, weight, bias, targets, matrix, *stored)
        ctx.factor_and_cap, ctx.hidden_dtype = factor_and_cap, hidden.dtype
        return torch.cat(logps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: _LogpsContext, logp_gradient: Float[Tensor, " K"]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        narrow, weight, bias, targets, matrix, *stored = ctx.saved_tensors
        projection, dtype = Projection(weight, bias, *ctx.factor_and_cap), matrix.dtype
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        hidden_gradient = torch.empty_like(narrow)
        weight_gradient: Tensor | None = None
        bias_gradient: Tensor | None = None
        with torch.autocast(narrow.device.type, enabled=False):
            for chunk in [slice(None)] if stored else _chunks(len(targets), weight):
                table = stored[0] if stored else None
                if table is None:
                    _, table = _chunk_logps(projection, narrow[chunk], matrix, targets[chunk], derivative=True)
                assert table is not None
                factor = -logp_gradient[chunk, None]
                if for_hidden:
                    hidden_gradient[chunk] = (table @ matrix) * factor
                if for_weight:
                    scaled = (narrow[chunk] * factor).to(dtype)
                    # A chunk's part is added in the matrix's own precision.
                    if weight_gradient is None:
                        weight_gradient = (table.t() @ scaled).to(weight.dtype)
                    elif table.dtype == weight.dtype:
                        weight_gradient.addmm_(table.t(), scaled)
                    else:
                        weight_gradient.add_(table.t() @ scaled)
                if for_bias:
                    part = (table.to(logp_gradient.dtype) * factor).sum(0)
                    bias_gradient = part if bias_gradient is None else bias_gradient + part
        in_hidden = hidden_gradient.to(ctx.hidden_dtype) if for_hidden else None
        return in_hidden, weight_gradient, bias_gradient, None, None, None


def _chunk_logps(
    projection: Projection,
    hidden: Float[Tensor, "C H"],
    matrix: Float[Tensor, "V H"],
    targets: Int[Tensor, " C"],
    *,
    derivative: bool,
) -> tuple[Float[Tensor, " C"], Float[Tensor, "C V"] | None]:
    """Log-probabilities of a chunk and, on request, minus their derivative with respect to the product of hidden and matrix."""
    logits = projection.logits(hidden, matrix)
    index = targets[:, None]
    if not derivative:
        return -F.cross_entropy(logits, targets, reduction="none"), None
    highest = logits.amax(-1)
    at_target = logits.gather(-1, index)[:, 0]
    table = logits.softmax(-1)
    # The largest probability is at least 1 / V: its logarithm is exact where that of a sum of exponentials would need another pass.
    logps = at_target - highest + table.amax(-1).log()
    table.scatter_add_(-1, index, table.new_full(index.shape, -1.0))
    if projection.cap is not None:
        table *= 1 - (logits / projection.cap) ** 2
    if projection.factor != 1.0:
        table *= projection.factor
    return logps, table.to(hidden.dtype)


def token_logps(
    hidden: Float[Tensor, "K H"], projection: Projection, targets: Int[Tensor, " K"]
) -> Float[Tensor, " K"]:
    """Log-probability of every target.

    Args:
        hidden: what the projection turns into logits, shape [K, H].
        projection: of the model.
        targets: token ids, shape [K].

    Returns: nats, shape [K], in float32 (float64 for float64); differentiable once with respect to hidden states, matrix and bias.
    """
    kind, dtype = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    weight, bias, factor, cap = projection
    if not torch.is_grad_enabled():
        # An autograd function learns what requires a gradient, not whether gradients are wanted.
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    logps = _TokenLogps.apply(hidden, weight, bias, targets, (factor, cap), dtype)  # type: ignore[no-untyped-call]
    return cast(Tensor, logps)


def in_chunks(compute: Callable[..., Sequence[Tensor]], weight: Float[Tensor, "V H"], *inputs: Tensor) -> list[Tensor]:
    """Any function of a table over the vocabulary, chunk by chunk; a table too large to be stored is computed again in backward.

    Args:
        compute: takes some rows of every input and returns values per row.
        weight: the matrix behind the table that it builds, shape [V, H].
        inputs: tensors of K rows each.

    Returns: the values, tensors of K rows each.
    """
    again, parts = torch.is_grad_enabled() and len(inputs[0]) > most_stored(weight), []
    for chunk in _chunks(len(inputs[0]), weight):
        rows = [one[chunk] for one in inputs]
        parts.append(
            checkpoint(compute, *rows, use_reentrant=False, preserve_rng_state=False) if again else compute(*rows)
        )
    return [torch.cat(column) for column in zip(*parts, strict=True)]
