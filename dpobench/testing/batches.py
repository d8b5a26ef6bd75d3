"""Small batches on which a loss shows what it is, with everything in them that a loss may declare."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.quantities import NEEDS

# Neither T = B nor T = 2B: broadcasting mistakes survive such coincidences. Both sides have an answer of one token.
CHOSEN_LENGTHS, REJECTED_LENGTHS = (4, 1, 7, 3, 5), (6, 3, 2, 3, 1)
GOLD_LENGTHS = (2, 5, 1, 7, 3)
WIDTH = 7
# Nats of summed log-ratio. Beyond REACH, ten nats a token on an answer of 200 tokens, no policy gets.
MARGINS = (0.0, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 2e3, 1e4)
REACH = 2e3
# How a margin is divided: (share of the chosen, share of the rejected, length of the chosen, length of the rejected).
PATHS = ((0.5, 0.5, 5, 3), (1.0, 0.0, 1, 4), (0.0, 1.0, 7, 1))
# Of the whole batch, or of one side; and of what.
Change: TypeAlias = Callable[[str, str, Tensor], Tensor]


class Undeclared(KeyError):
    """A loss reads what it did not declare.

    Args:
        name: what it reads.
        place: the argument of `@loss` to declare it in; empty where nothing of the kind can be had.
    """

    def __init__(self, name: str, place: str) -> None:
        super().__init__(name)
        self.name, self.place = name, place


class Declared(dict[str, Tensor]):
    """What a loss declared, by name; nothing else can be read."""

    def __init__(self, values: Mapping[str, Tensor], place: str) -> None:
        super().__init__(values)
        self.place = place

    def __missing__(self, name: str) -> Tensor:
        raise Undeclared(name, self.place)


class DeclaredSides(dict[str, Side]):
    """The further completions that a loss declared; no others can be read."""

    def __missing__(self, name: str) -> Side:
        raise Undeclared(name, "needs")


def mask_of(lengths: Sequence[int], width: int = WIDTH) -> Tensor:
    """True at the first `lengths[i]` of `width` tokens, shape [B, T]."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def _drawn(shape: torch.Size, seed: int) -> Tensor:
    """Uniform numbers that stay inside (0, 1) in bfloat16 too."""
    generator = torch.Generator().manual_seed(seed)
    return 0.01 + 0.98 * torch.rand(shape, generator=generator, dtype=torch.float64)


def with_extras(policy: Tensor, reference: Tensor, mask: Tensor, seed: int) -> Side:
    """A side with everything that `dpobench.losses.quantities` knows, as far apart from its neutral value as policy from reference."""
    drawn, apart = _drawn(torch.Size((5, *mask.shape)), seed), policy - reference
    # The first token's noise belongs to the pair. Spread evenly, it never drops all the pairs of a small batch, nor none.
    drawn[0, :, 0] = 0.01 + 0.98 * ((0.618034 * torch.arange(1, len(mask) + 1) + 0.381966 * seed) % 1)
    extras = {
        "noise": drawn[0],
        # The sum of squared probabilities is at least the square of the token's.
        "collision": drawn[1] * (2 * policy).clamp(min=-3.0),
        "reference_entropy": drawn[2],
        "reference_kl": 0.2 * drawn[3] * apart.abs().clamp(max=1.0),
        "extrapolated": (policy + 0.2 * (drawn[4] - 0.4) * apart).clamp(max=0.0),
        "interpolated": (policy - 0.2 * (drawn[3] - 0.4) * apart).clamp(max=0.0),
    }
    return Side(policy, reference, mask, extras)


def _given(lengths: Sequence[int], seed: int, higher: float = 0.0) -> Side:
    mask = mask_of(lengths)
    drawn = _drawn(torch.Size((2, *mask.shape)), seed)
    reference = -0.2 - 3 * drawn[0]
    return with_extras(reference * (0.6 - higher + 0.8 * drawn[1]) * mask, reference * mask, mask, seed + 50)


def others(chosen: Sequence[int], rejected: Sequence[int], gold: Sequence[int], seed: int) -> dict[str, Side]:
    """Best answers, whose reference nobody computes, and mismatched ones, on average likelier than under the reference."""
    best = _given(gold, seed)
    return {
        "gold": Side(best.policy, torch.full_like(best.policy, torch.nan), best.mask),
        "mismatched": _given([*rejected, *chosen], seed + 1, higher=0.2),
    }


@cache
def ordinary(draw: int = 0) -> Pairs:
    """Five pairs of unequal lengths as early in training, float64: margins within a few nats, zeros at masked positions.

    Args:
        draw: which values the needs have; the log-probabilities of the pairs are always the same.
    """
    # Under this seed margins, log-ratios and steps away from the reference have all signs, and policy and reference rank
    # the pairs differently, in the batch and in its parts.
    generator = torch.Generator().manual_seed(828)
    sides = []
    for number, lengths in enumerate((CHOSEN_LENGTHS, REJECTED_LENGTHS)):
        mask = mask_of(lengths)
        reference = -0.2 - 3 * torch.rand(mask.shape, generator=generator, dtype=torch.float64)
        policy = reference * (0.6 + 0.8 * torch.rand(mask.shape, generator=generator, dtype=torch.float64))
        sides.append(with_extras(policy * mask, reference * mask, mask, 100 * draw + number))
    more = others(CHOSEN_LENGTHS, REJECTED_LENGTHS, GOLD_LENGTHS, 100 * draw + 20)
    return Pairs(sides[0], sides[1], others=more)


@cache
def margins() -> Tensor:
    """Margins of the swept pairs, shape [paths, margins], nats."""
    rising = torch.tensor([*(-m for m in reversed(MARGINS[1:])), *MARGINS], dtype=torch.float64)
    return rising.expand(len(PATHS), -1)


@cache
def swept() -> Pairs:
    """Pairs over a grid of margins in float32, path by path along every one of `PATHS`; no log-probability is above 0."""
    return _along_paths(margins()[0], torch.float32)


@cache
def groups() -> tuple[tuple[int, ...], ...]:
    """Rows of the swept pairs whose margins have one magnitude and sign; those within three nats together."""
    magnitude = torch.bucketize(margins()[0].abs(), torch.tensor([3.0, 100.0, 2e3], dtype=torch.float64))
    key = (magnitude * margins()[0].sign()).repeat(len(PATHS))
    return tuple(tuple((key == value).nonzero().flatten().tolist()) for value in torch.unique(key))


@cache
def modest() -> Pairs:
    """Margins of -3, 0 and 3 nats in bfloat16."""
    return _along_paths(torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64), torch.bfloat16)


def _along_paths(rising: Tensor, dtype: torch.dtype) -> Pairs:
    sides, counted = [], []
    for side, sign in ((0, 1.0), (1, -1.0)):
        lengths = torch.tensor([path[2 + side] for path in PATHS]).repeat_interleave(len(rising))
        shares = torch.tensor([path[side] for path in PATHS], dtype=torch.float64)
        logratio = sign * (shares[:, None] * rising).flatten() / lengths
        mask = mask_of(lengths.tolist())
        # The answer that became likelier was unlikely before: raising the policy instead would pass probability one.
        policy = (-0.7 + logratio.clamp(max=0.0))[:, None] * mask
        reference = (-0.7 - logratio.clamp(min=0.0))[:, None] * mask
        sides.append(with_extras(policy, reference, mask, 30 + side))
        counted.append(lengths.tolist())
    pairs = Pairs(sides[0], sides[1], others=others(counted[0], counted[1], counted[0], 40))
    return mapped(pairs, lambda where, what, tensor: tensor if tensor.dtype == torch.bool else tensor.to(dtype))


def sides_of(pairs: Pairs) -> dict[str, Side]:
    """Every side by its name."""
    return {"chosen": pairs.chosen, "rejected": pairs.rejected, **pairs.others}


def mapped(pairs: Pairs, change: Change) -> Pairs:
    """The same pairs with every tensor replaced.

    Args:
        pairs: any pairs.
        change: of the side's name ("columns", "statistics" for those), the name of the thing, and the tensor.
    """
    sides = {}
    for where, side in sides_of(pairs).items():
        extras = {name: change(where, name, value) for name, value in side.extras.items()}
        given = [change(where, what, getattr(side, what)) for what in ("policy", "reference", "mask")]
        sides[where] = Side(
            given[0], given[1], given[2], Declared(extras, "needs" if where not in pairs.others else "")
        )
    columns = {name: change("columns", name, value) for name, value in pairs.columns.items()}
    statistics = {name: change("statistics", name, value) for name, value in pairs.statistics.items()}
    return Pairs(
        sides.pop("chosen"),
        sides.pop("rejected"),
        Declared(columns, "columns"),
        Declared(statistics, "running"),
        DeclaredSides(sides),
    )


def narrowed(pairs: Pairs, needs: Sequence[str], columns: Mapping[str, Tensor]) -> Pairs:
    """The same pairs with what is declared and nothing else."""

    def only(side: Side) -> Side:
        return replace(side, extras={name: value for name, value in side.extras.items() if name in needs})

    more = {name: replace(side, extras={}) for name, side in pairs.others.items() if name in needs}
    return mapped(
        Pairs(only(pairs.chosen), only(pairs.rejected), columns, others=more), lambda where, what, tensor: tensor
    )


def _start(what: str) -> str:
    return NEEDS[what].start if what in NEEDS else ""


def started(pairs: Pairs) -> Pairs:
    """The same pairs where the policy equals the reference."""
    sides = sides_of(pairs)

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        if where != "gold" and (what == "policy" or _start(what) == "reference"):
            return sides[where].reference
        return torch.zeros_like(tensor) if _start(what) == "zero" else tensor

    return mapped(pairs, change)


def chosen_rows(pairs: Pairs, rows: Sequence[int]) -> Pairs:
    """Some of the pairs, in the order given; fresh tensors."""
    index = torch.tensor(rows)
    twice = torch.cat([index, index + len(pairs)])

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        return tensor if where == "statistics" else tensor[twice if where == "mismatched" else index]

    return mapped(pairs, change)


def shifted(pairs: Pairs, chosen: float, rejected: float) -> Pairs:
    """A constant added to every token's log-probability, under the policy and under the reference alike."""
    by = {"chosen": chosen, "rejected": rejected}

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        if where in by and (what in ("policy", "reference") or _start(what) == "reference"):
            return tensor + by[where] * sides_of(pairs)[where].mask
        return tensor

    return mapped(pairs, change)


def leaves(pairs: Pairs) -> dict[str, Tensor]:
    """What the gradient flows to, shape [B, T] each: the policy's log-probabilities and the differentiable needs."""
    named_leaves = {}
    for where, side in sides_of(pairs).items():
        if where != "mismatched":
            named_leaves[where] = side.policy
            named_leaves |= {
                f"{where}.{name}": value for name, value in side.extras.items() if NEEDS[name].differentiable
            }
    return named_leaves


def leaf(where: str, what: str) -> str:
    """Name of one of `leaves`, by side and thing."""
    return where if what == "policy" else f"{where}.{what}"


def moved(pairs: Pairs, directions: Mapping[str, Tensor], size: float) -> Pairs:
    """Everything differentiable moved along a direction, by the names of `leaves`."""

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        direction = directions.get(leaf(where, what))
        return tensor if direction is None else tensor + size * direction

    return mapped(pairs, change)


def littered(pairs: Pairs) -> Pairs:
    """Garbage at the masked positions, and more masked positions, not a number, at the end."""
    sides = sides_of(pairs)

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        if where not in sides:
            return tensor
        if what == "mask":
            return torch.cat([tensor, torch.zeros(len(tensor), 3, dtype=torch.bool)], dim=1)
        garbage = torch.where(sides[where].mask, tensor, -20.0 if what == "reference" else -50.0)
        return torch.cat([garbage, torch.full((len(tensor), 3), torch.nan, dtype=tensor.dtype)], dim=1)

    return mapped(pairs, change)


def copied(pairs: Pairs, *, dtype: torch.dtype | None = None, differentiable: bool = False) -> Pairs:
    """Fresh tensors, so that a loss that writes into its arguments cannot spoil the batch for the next law."""
    flows = leaves(pairs) if differentiable else {}

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:
            return tensor.clone()
        fresh = tensor.detach().to(dtype or tensor.dtype, copy=True)
        return fresh.requires_grad_() if leaf(where, what) in flows else fresh

    return mapped(pairs, change)
