"""Log-probabilities of tokens from hidden states, with one chunk of the table over the vocabulary alive at a time.

A table of tokens x vocabulary that fits into a chunk is computed once, and its derivative kept for backward. A larger one is computed
chunk by chunk and again in backward, so that memory grows with the chunk and not with the tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Entries of a table that are computed at a time, and that are kept for backward, by kind of device.
CHUNK = {"cpu": 2**23, "cuda": 2**27}
KEPT = {"cpu": 2**24, "cuda": 2**29}


class Projection(NamedTuple):
    """How a model turns hidden states into logits: a matrix, a factor, a cap.

    Args:
        weight: shape [V, H].
        bias: shape [V], or None.
        factor: logits are multiplied by it.
        cap: they are then cap x tanh(logit / cap); None leaves them.
    """

    weight: Tensor
    bias: Tensor | None = None
    factor: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits in float32 (float64 for float64), shape [C, V]; `weight` in the dtype of the hidden states."""
        found = F.linear(hidden, weight, None if self.bias is None else self.bias.to(weight.dtype))
        found = found if found.dtype == torch.float64 else found.float()
        found = found if self.factor == 1.0 else found * self.factor
        return found if self.cap is None else torch.tanh(found / self.cap) * self.cap


def most_kept(weight: Tensor) -> int:
    """Tokens whose table is small enough to be kept for backward."""
    return max(1, KEPT.get(weight.device.type, KEPT["cpu"]) // len(weight))


def _pieces(tokens: int, weight: Tensor) -> list[slice]:
    """The chunks of a table."""
    size = max(1, CHUNK.get(weight.device.type, CHUNK["cpu"]) // len(weight))
    return [slice(start, start + size) for start in range(0, tokens, size)]


class _TokenLogps(torch.autograd.Function):
    """Log-probability of a target per hidden state; backward by the closed form, two products of matrices a chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, given: Any, low: torch.dtype
    ) -> Tensor:
        projection = Projection(weight, bias, *given)
        needed = any(ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            narrow, matrix = hidden.to(low), weight.to(low)
            kept = narrow.new_empty(len(targets), len(weight)) if needed and len(targets) <= most_kept(weight) else None
            found = []
            for at in _pieces(len(targets), weight):
                logps, table = _forward(projection, narrow[at], matrix, targets[at], slopes=kept is not None)
                found.append(logps)
                if kept is not None:
                    assert table is not None
                    kept[at] = table
        ctx.save_for_backward(narrow, weight, bias, targets, matrix, *([] if kept is None else [kept]))
        ctx.given, ctx.wide = given, hidden.dtype
        return torch.cat(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Any, ...]:
        narrow, weight, bias, targets, matrix, *kept = ctx.saved_tensors
        projection, low = Projection(weight, bias, *ctx.given), matrix.dtype
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        at_hidden, at_weight, at_bias = torch.empty_like(narrow), None, None
        with torch.autocast(narrow.device.type, enabled=False):
            for at in [slice(None)] if kept else _pieces(len(targets), weight):
                table = kept[0] if kept else _forward(projection, narrow[at], matrix, targets[at], slopes=True)[1]
                assert table is not None
                factor = -pull[at, None]
                if for_hidden:
                    at_hidden[at] = (table @ matrix) * factor
                if for_weight:
                    at_weight = _added(at_weight, table, (narrow[at] * factor).to(low), weight.dtype)
                if for_bias:
                    part = (table.to(pull.dtype) * factor).sum(0)
                    at_bias = part if at_bias is None else at_bias + part
        return at_hidden.to(ctx.wide) if for_hidden else None, at_weight, at_bias, None, None, None


def _added(total: Tensor | None, table: Tensor, pulled: Tensor, dtype: torch.dtype) -> Tensor:
    """A chunk's part of the matrix's gradient, added in the matrix's own precision."""
    if total is None:
        return (table.t() @ pulled).to(dtype)
    if table.dtype == dtype:
        return total.addmm_(table.t(), pulled)
    return total.add_(table.t() @ pulled)


def _forward(
    projection: Projection, hidden: Tensor, matrix: Tensor, targets: Tensor, *, slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of a chunk and, with `slopes`, minus their derivative with respect to the product; shapes [C], [C, V]."""
    logits = projection.logits(hidden, matrix)
    index = targets[:, None]
    if not slopes:
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


def token_logps(hidden: Tensor, projection: Projection, targets: Tensor) -> Tensor:
    """Log-probability of every target, nats, in float32 (float64 for float64).

    Args:
        hidden: what the projection turns into logits, shape [K, H].
        projection: of the model.
        targets: token ids, shape [K].

    Returns: shape [K]; differentiable once with respect to hidden states, matrix and bias.
    """
    kind, low = hidden.device.type, hidden.dtype
    if torch.is_autocast_enabled(kind) and low != torch.float64:
        low = torch.get_autocast_dtype(kind)
    weight, bias, factor, cap = projection
    if not torch.is_grad_enabled():
        # A function of its own is told what requires a gradient, not whether gradients are wanted.
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    found: Tensor = _TokenLogps.apply(hidden, weight, bias, targets, (factor, cap), low)
    return found


def in_chunks(compute: Callable[..., Sequence[Tensor]], weight: Tensor, *rows: Tensor) -> list[Tensor]:
    """Any function of a table, chunk by chunk; a table too large to be kept is computed again in backward.

    Args:
        compute: takes some rows of every input and returns values per row.
        weight: the matrix behind the table it builds, shape [V, H].
        rows: inputs with K rows each.

    Returns: the values, K rows each.
    """
    again, parts = torch.is_grad_enabled() and len(rows[0]) > most_kept(weight), []
    for at in _pieces(len(rows[0]), weight):
        piece = [row[at] for row in rows]
        parts.append(
            checkpoint(compute, *piece, use_reentrant=False, preserve_rng_state=False) if again else compute(*piece)
        )
    return [torch.cat(column) for column in zip(*parts, strict=True)]
