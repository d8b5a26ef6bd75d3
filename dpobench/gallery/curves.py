"""A loss as a function of the margin: its value, and its gradient on either answer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound, Variant
from dpobench.plugins.plugin import Settings
from dpobench.testing.probe import drawn_inside

# Tokens of either answer, and margins of a curve.
LENGTH, POINTS = 50, 201
# The farthest margin looked at, nats and nats per token: ten nats a token on answers of 200 tokens.
FARTHEST, FARTHEST_PER_TOKEN = 2000.0, 20.0
# Where needs are held that are no log-probabilities; the others keep the value they have at policy = reference.
HELD: Mapping[str, float] = {"noise": 0.5, "reference_entropy": 0.2, "reference_kl": 0.0}
_NICE = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)


@dataclass(frozen=True)
class Axis:
    """What the margin of a loss is.

    Args:
        per_token: whether it is a difference of means over tokens, not of sums.
        reference: whether of log-ratios, not of log-probabilities.
    """

    per_token: bool
    reference: bool

    @property
    def unit(self) -> str:
        """Unit of the margin."""
        return "nats per token" if self.per_token else "nats"

    @property
    def label(self) -> str:
        """What stands at the axis."""
        what = "log-ratios" if self.reference else "log-probabilities"
        return f"margin: difference of {'mean ' if self.per_token else ''}{what} ({self.unit})"


@dataclass(frozen=True)
class Curve:
    """A loss at fixed hyper-parameters, along a margin that both answers share equally; shape [M] each.

    Args:
        params: all hyper-parameters.
        margins: in the unit of the loss's axis, rising.
        loss: value of a pair.
        chosen: derivative by the chosen answer's log-probability, a sum over its tokens that all move alike; per nat.
        rejected: the same for the rejected answer.
        target: margin above 0 at which the gradient changes sign, that is of least loss, shown or not; None where it does not.
    """

    params: Settings
    margins: Tensor
    loss: Tensor
    chosen: Tensor
    rejected: Tensor
    target: float | None

    @property
    def mirrored(self) -> bool:
        """Whether the gradient on the rejected answer is that on the chosen one with the other sign."""
        return torch.allclose(self.chosen, -self.rejected, rtol=1e-9, atol=1e-12 * float(self.chosen.abs().max()))


@dataclass(frozen=True)
class Family:
    """Curves of one loss at several strengths, over the same margins.

    Args:
        variant: the loss.
        axis: what its margin is.
        curves: from the smallest strength to the largest.
        level: log-probability of every token under the reference, nats.
    """

    variant: Variant
    axis: Axis
    curves: tuple[Curve, ...]
    level: float

    @property
    def default(self) -> Curve:
        """The curve at the default strength."""
        wanted = self.variant.arguments({})
        return next(curve for curve in self.curves if curve.params == wanted)

    def name(self, curve: Curve) -> str:
        """Strength of a curve, in words."""
        strength = self.variant.strength
        return f"{strength} = {curve.params[strength]:g}{' (default)' if curve is self.default else ''}"


def family(variant: Variant, *, whole_grid: bool = False) -> Family:
    """A loss over margins that show what it does.

    Args:
        variant: the loss.
        whole_grid: every strength of its grid, not only the default and its neighbours.
    """
    default = variant.parameters[variant.strength].default
    values = sorted({default, *variant.beta_grid})
    if not whole_grid:
        place = values.index(default)
        values = values[max(0, place - 1) : place + 2]
    points = [variant.arguments({variant.strength: value}) for value in values]
    reach = _reach(variant, points, values.index(default))
    half = POINTS // 2
    margins = torch.arange(-half, half + 1, dtype=torch.float64) / half * reach
    curves = tuple(curve(variant, params, margins) for params in points)
    return Family(variant, axis(variant), curves, _level(margins / _tokens(axis(variant))))


def curve(variant: Variant, params: Settings, margins: Tensor) -> Curve:
    """Value and gradients of a loss.

    Answers have 50 tokens, all alike. Policy and reference give every token the same probability at margin 0; from there the
    chosen answer rises and the rejected one falls by half the margin each. What couples pairs or keeps statistics sees one
    pair a batch, in a first step. Other needs than log-probabilities stay as at policy = reference.

    Args:
        variant: the loss.
        params: hyper-parameters that differ from the defaults.
        margins: in the unit of the loss's axis, shape [M], rising.
    """
    bound, per_token = variant.bind(**params), margins.double() / _tokens(axis(variant))
    return Curve(bound.params, margins, *_taken(bound, per_token, _level(per_token)), target(variant, params))


def target(variant: Variant, params: Settings) -> float | None:
    """The first margin above 0 at which the gradient changes sign, in the unit of the loss's axis; None where it does not."""
    bound, tokens = variant.bind(**params), _tokens(axis(variant))
    away = _away(_farthest(axis(variant))) / tokens
    level = _level(away)

    def slopes(per_token: Tensor) -> Tensor:
        _, chosen, rejected = _taken(bound, per_token, level)
        return chosen - rejected

    difference = slopes(away)
    # Where the gradient has died away, or just changes sign, what is left of it is rounding.
    significant = difference.abs() > 1e-9 * difference.abs().max()
    away, difference = away[significant], difference[significant]
    turned = ((difference[:-1] < 0) & (difference[1:] > 0)).nonzero()
    if not len(turned):
        return None
    low, high = away[int(turned[0])], away[int(turned[0]) + 1]
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(slopes(middle[None])) < 0 else (low, middle)
    return float(low + high) / 2 * tokens


def axis(variant: Variant) -> Axis:
    """The margin that a loss is a function of; where its unit does not say, the tokens are doubled to find out."""
    if variant.unit != "weight":
        return Axis(variant.unit.endswith("per token"), variant.spec.reference)
    bound, apart = variant.bind(), torch.tensor([-0.4, 0.4], dtype=torch.float64)
    once, twice = (_taken(bound, apart, -1.0, length)[0] for length in (LENGTH, 2 * LENGTH))
    return Axis(torch.allclose(once, twice, rtol=1e-9), variant.spec.reference)


def _tokens(shown: Axis) -> float:
    """By what the margin is more than a difference per token."""
    return 1.0 if shown.per_token else float(LENGTH)


def _level(per_token: Tensor) -> float:
    """A log-probability per token from which no answer comes near probability one."""
    return -max(1.0, float(per_token.abs().max()) / 2 + 0.25)


def _taken(bound: Bound, per_token: Tensor, level: float, length: int = LENGTH) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and its derivatives by the log-probability of the chosen and the rejected answer, shape [M] each."""
    if not bound.variant.sees_whole_batch or len(per_token) == 1:
        return _of_batch(bound, _pairs(bound.variant, per_token, level, length))
    parts = [_of_batch(bound, _pairs(bound.variant, part, level, length)) for part in torch.split(per_token, 1)]
    loss, chosen, rejected = (torch.cat(part) for part in zip(*parts, strict=True))
    return loss, chosen, rejected


def _of_batch(bound: Bound, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    given = pairs.with_statistics(bound.update(pairs, bound.initial()))
    leaves = (pairs.chosen.policy, pairs.rejected.policy)
    with torch.enable_grad():
        loss = bound(given)
        slopes = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    per_token = [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes, strict=True)]
    return loss.detach(), per_token[0].mean(-1), per_token[1].mean(-1)


def _pairs(variant: Variant, per_token: Tensor, level: float, length: int) -> Pairs:
    """One pair a margin, with all that the loss declares."""
    mask = torch.ones(len(per_token), length, dtype=torch.bool)
    reference = torch.full(mask.shape, level, dtype=torch.float64)
    extras = {
        name: torch.full_like(reference, HELD[name]) if name in HELD else reference.clone()
        for name in variant.needs
        if NEEDS[name].source not in ("pairs", "data")
    }
    sides = []
    for share in (0.5, -0.5):
        policy = reference + share * per_token[:, None]
        sides.append(Side(policy.requires_grad_(), reference, mask, extras))
    columns = {
        name: torch.full_like(per_token, _column(variant, name, number)) for number, name in enumerate(variant.columns)
    }
    twice = torch.cat([reference, reference])
    others = {
        "mismatched": Side(twice, twice, torch.ones_like(twice, dtype=torch.bool)),
        "gold": Side(reference.clone(), reference, mask),
    }
    return Pairs(
        sides[0], sides[1], columns, others={name: side for name, side in others.items() if name in variant.needs}
    )


def _column(variant: Variant, name: str, number: int) -> float:
    """One for the first column, zero for the others: a gap of one between two scores, a probability that is certain."""
    interval, wanted = variant.columns[name], float(number == 0)
    return wanted if wanted in interval else float(drawn_inside(interval, 1, number))


def held(variant: Variant) -> list[str]:
    """What a curve holds fixed besides the hyper-parameters, in words."""
    words = [f"{name} = {_column(variant, name, number):g}" for number, name in enumerate(variant.columns)]
    words += [f"{name} = {HELD[name]:g}" for name in variant.needs if name in HELD]
    words += [f"{name} as at policy = reference" for name in variant.needs if name not in HELD]
    words += ["one pair a batch"] if variant.sees_whole_batch else []
    return words + (["statistics of a first step"] if variant.keeps_statistics else [])


def _farthest(shown: Axis) -> float:
    return FARTHEST_PER_TOKEN if shown.per_token else FARTHEST


def _away(farthest: float) -> Tensor:
    """Margins from next to nothing to the farthest, each a sixth more than the one before."""
    return torch.logspace(-4, 0, 61, dtype=torch.float64) * farthest


def _reach(variant: Variant, points: Sequence[Settings], default: int) -> float:
    """The margin up to which to show a loss, a round number in the unit of its axis."""
    shown = axis(variant)
    turns = [target(variant, params) for params in points]
    default_target, reach = turns[default], _farthest(shown)
    if default_target is not None:
        # Targets of other strengths are shown as far as they leave room for that of the default.
        reach = min(
            max(1.4 * default_target, *(1.2 * turn for turn in turns if turn is not None)), 3.5 * default_target, reach
        )
    else:
        # Far margins need improbable answers, on which some losses are steeper: look again from nearer.
        for far in (reach, 0.0):
            shape = curve(variant, points[default], _away(far or min(10 * reach, _farthest(shown))))
            reach = min(1.5 * _settled(shape, 2.0 if shown.per_token else 50.0), _farthest(shown))
    return _round(_tame(variant, points[default], reach))


def _settled(far: Curve, otherwise: float) -> float:
    """The margin beyond which the gradient changes by no more than a tenth of all its change."""
    slopes = far.chosen - far.rejected
    left = (slopes - slopes[-1]).abs()
    unsettled = (left > 0.1 * left.max()).nonzero()
    if left.max() <= 1e-9 * slopes.abs().max() or not len(unsettled):
        return otherwise
    return float(far.margins[int(unsettled[-1])])


def _tame(variant: Variant, params: Settings, reach: float) -> float:
    """A reach at which the loss has not exploded: half as far it still has an eighth of its height."""
    for _ in range(20):
        ends = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64) * reach
        loss = curve(variant, params, ends).loss
        if float(loss.max() - loss.min()) <= 8 * float(loss[1:4].max() - loss[1:4].min()):
            break
        reach /= 2
    return reach


def _round(number: float) -> float:
    power = 10.0 ** math.floor(math.log10(number))
    return next(step * power for step in _NICE if step * power >= number * (1 - 1e-9))
