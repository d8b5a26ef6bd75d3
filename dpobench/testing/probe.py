"""Small batches on which a loss shows what it is, and a loss called on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from dpobench.errors import PluginRefused
from dpobench.pairs import Pairs, Side
from dpobench.registry import Bound, Variant

# Neither T = B nor T = 2B: broadcasting mistakes survive such coincidences. Both sides have an answer of one token.
CHOSEN_LENGTHS, REJECTED_LENGTHS = (4, 1, 7, 3, 5), (6, 3, 2, 3, 1)
WIDTH = 7
# Nats of summed log-ratio. Beyond REACH, ten nats a token on an answer of 200 tokens, no policy gets.
MARGINS = (0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 2e3, 1e4)
REACH = 2e3
# How a margin is divided: (share of the chosen, share of the rejected, length of the chosen, length of the rejected).
PATHS = ((0.5, 0.5, 5, 3), (1.0, 0.0, 1, 4), (0.0, 1.0, 7, 1))


def mask_of(lengths: Sequence[int], width: int = WIDTH) -> Tensor:
    """True at the first `lengths[i]` of `width` tokens, shape [B, T]."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


@cache
def ordinary() -> Pairs:
    """Five pairs of unequal lengths as early in training, float64: margins within a few nats, zeros at masked positions."""
    generator = torch.Generator().manual_seed(11)
    sides = []
    for lengths in (CHOSEN_LENGTHS, REJECTED_LENGTHS):
        mask = mask_of(lengths)
        reference = -0.2 - 3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
        policy = reference * (0.6 + 0.8 * torch.rand(mask.shape, generator=generator, dtype=torch.float64))
        sides.append(Side(policy * mask, reference * mask, mask))
    return Pairs(sides[0], sides[1])


@cache
def swept() -> tuple[Pairs, Tensor]:
    """Pairs over a grid of margins in float32, each margin along every path of `PATHS`; no log-probability is above 0.

    Returns: the pairs, path by path with rising margins, and the margins in nats, shape [paths, margins].
    """
    margins = torch.tensor([*(-m for m in reversed(MARGINS[1:])), *MARGINS], dtype=torch.float64)
    return _along_paths(margins, torch.float32), margins.expand(len(PATHS), -1)


@cache
def modest() -> Pairs:
    """Margins of -3, 0 and 3 nats in bfloat16."""
    return _along_paths(torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64), torch.bfloat16)


def _along_paths(margins: Tensor, dtype: torch.dtype) -> Pairs:
    sides = []
    for side, sign in ((0, 1.0), (1, -1.0)):
        lengths = torch.tensor([path[2 + side] for path in PATHS]).repeat_interleave(len(margins))
        shares = torch.tensor([path[side] for path in PATHS], dtype=torch.float64)
        logratio = sign * (shares[:, None] * margins).flatten() / lengths
        mask = mask_of(lengths.tolist())
        # The answer that became likelier was unlikely before: raising the policy instead would pass probability one.
        policy = (-0.7 + logratio.clamp(max=0.0))[:, None] * mask
        reference = (-0.7 - logratio.clamp(min=0.0))[:, None] * mask
        sides.append(Side(policy.to(dtype), reference.to(dtype), mask))
    return Pairs(sides[0], sides[1])


def started(pairs: Pairs) -> Pairs:
    """The same pairs where the policy equals the reference."""
    sides = [Side(s.reference, s.reference, s.mask) for s in (pairs.chosen, pairs.rejected)]
    return Pairs(sides[0], sides[1])


def chosen_rows(pairs: Pairs, rows: Sequence[int]) -> Pairs:
    """Some of the pairs, in the order asked for."""
    index = list(rows)
    sides = [Side(s.policy[index], s.reference[index], s.mask[index]) for s in (pairs.chosen, pairs.rejected)]
    return Pairs(sides[0], sides[1])


def shifted(pairs: Pairs, policy: Sequence[float], reference: Sequence[float]) -> Pairs:
    """Constants added to every token: of the chosen, then of the rejected."""
    sides = [
        Side(s.policy + p * s.mask, s.reference + r * s.mask, s.mask)
        for s, p, r in zip((pairs.chosen, pairs.rejected), policy, reference, strict=True)
    ]
    return Pairs(sides[0], sides[1])


def moved(pairs: Pairs, directions: Sequence[Tensor], size: float) -> Pairs:
    """The policy's log-probabilities moved along a direction: of the chosen, then of the rejected, shape [B, T] each."""
    sides = [
        Side(s.policy + size * d, s.reference, s.mask)
        for s, d in zip((pairs.chosen, pairs.rejected), directions, strict=True)
    ]
    return Pairs(sides[0], sides[1])


def littered(pairs: Pairs) -> Pairs:
    """Garbage at the masked positions, and more masked positions, not a number, at the end."""
    sides = []
    for s in (pairs.chosen, pairs.rejected):
        more = torch.full((len(pairs), 3), float("nan"), dtype=s.policy.dtype)
        sides.append(
            Side(
                torch.cat([torch.where(s.mask, s.policy, -50.0), more], dim=1),
                torch.cat([torch.where(s.mask, s.reference, -20.0), more], dim=1),
                torch.cat([s.mask, torch.zeros_like(more, dtype=torch.bool)], dim=1),
            )
        )
    return Pairs(sides[0], sides[1])


def copied(pairs: Pairs, *, dtype: torch.dtype | None = None, differentiable: bool = False) -> Pairs:
    """Fresh tensors, so that a loss that writes into its arguments cannot spoil the batch for the next law."""
    sides = [
        Side(
            s.policy.detach().to(dtype or s.policy.dtype, copy=True).requires_grad_(differentiable),
            s.reference.to(dtype or s.reference.dtype, copy=True),
            s.mask.clone(),
        )
        for s in (pairs.chosen, pairs.rejected)
    ]
    return Pairs(sides[0], sides[1])


@dataclass(frozen=True)
class Outcome:
    """What a loss made of a batch.

    Args:
        loss: one value per pair, shape [B].
        chosen: gradient of their sum with respect to the chosen tokens' log-probabilities, shape [B, T].
        rejected: the same for the rejected tokens.
    """

    loss: Tensor
    chosen: Tensor
    rejected: Tensor

    @property
    def finite(self) -> Tensor:
        """Whether value and gradient of each pair are finite, shape [B]."""
        return self.loss.isfinite() & self.chosen.isfinite().all(-1) & self.rejected.isfinite().all(-1)

    def same_as(self, other: "Outcome") -> bool:
        """Whether nothing at all differs."""
        mine, theirs = (self.loss, self.chosen, self.rejected), (other.loss, other.chosen, other.rejected)
        return all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


class Probe:
    """A loss to be tried at its default hyper-parameters, or those given, and along its own grids.

    Args:
        variant: the loss.
        params: hyper-parameters that differ from the defaults.
    """

    def __init__(self, variant: Variant, params: Mapping[str, Any] | None = None) -> None:
        self.variant = variant
        self.asked = bool(params)
        self.centre = variant.arguments(params or {})

    @cached_property
    def grids(self) -> dict[str, list[dict[str, Any]]]:
        """For each hyper-parameter with a grid: the points along it, the others staying at the centre."""
        found = {}
        for parameter in self.variant.parameters.values():
            values = [parameter.accept(value, self.variant.name) for value in parameter.grid]
            if len(set(values)) == 1 and isinstance(values[0], float):
                values += [
                    v for v in (values[0] * 1.5, values[0] / 1.5) if not parameter.bounds or v in parameter.bounds
                ]
            if values:
                found[parameter.name] = [{**self.centre, parameter.name: value} for value in values]
        return found

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The centre, then every other point of the grids."""
        found = [self.centre]
        for along in self.grids.values():
            found += [point for point in along if point not in found]
        return found

    def loss(self, pairs: Pairs, params: Mapping[str, Any] | None = None) -> Tensor:
        """Call the loss.

        Returns: one value per pair, shape [B].

        Raises:
            PluginRefused: it raises, or returns something else.
        """
        try:
            loss = Bound(self.variant, params or self.centre)(pairs)
        except Exception as error:
            raise PluginRefused(f"{_with(params)}it raises {type(error).__name__}: {error}") from error
        if not isinstance(loss, Tensor):
            raise PluginRefused(f"it returns a {type(loss).__name__}; return a tensor with one loss per pair")
        if loss.shape != (len(pairs),):
            raise PluginRefused(
                f"it returns shape {list(loss.shape)} for {len(pairs)} pairs; return one loss per pair, shape [B], and leave "
                "the mean to the harness"
            )
        return loss

    def value(self, pairs: Pairs, params: Mapping[str, Any] | None = None) -> Tensor:
        """Loss per pair without its gradient, shape [B]; `pairs` stays as it is."""
        with torch.no_grad():
            return self.loss(copied(pairs), params)

    def outcome(self, pairs: Pairs, params: Mapping[str, Any] | None = None) -> Outcome:
        """Loss per pair with its gradient; `pairs` stays as it is.

        Raises:
            PluginRefused: there is no gradient.
        """
        given = copied(pairs, differentiable=True)
        with torch.enable_grad():
            loss = self.loss(given, params)
            if not loss.requires_grad:
                raise PluginRefused(
                    "the gradient does not reach the policy's log-probabilities; do not detach them or leave torch"
                )
            leaves = (given.chosen.policy, given.rejected.policy)
            try:
                found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
            except RuntimeError as error:
                raise PluginRefused(f"the gradient cannot be taken: {error}") from error
        chosen, rejected = (torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True))
        return Outcome(loss.detach(), chosen, rejected)

    @cached_property
    def base(self) -> Outcome:
        """Outcome on the ordinary pairs in float64."""
        return self.outcome(ordinary())

    @cached_property
    def sweeps(self) -> list[Outcome]:
        """Outcome over the whole range of margins in float32, at each of `points`."""
        pairs, _ = swept()
        return [self.outcome(pairs, point) for point in self.points]


def _with(params: Mapping[str, Any] | None) -> str:
    return f"with {', '.join(f'{k}={v!r}' for k, v in params.items())} " if params else ""
