"""Pairs laid out as a model reads them, and what a loss is given of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpobench.data.tokens import TokenPair
from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound
from dpobench.models.logprobs import Laid, completion_logps, completion_values, pair_batch
from dpobench.models.packing import packed_pairs

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Block:
    """Some pairs laid out as a model reads them.

    Args:
        rows: the b pairs.
        batch: their chosen sides, then the rejected, then the gold answers where these are needed.
        mismatched: completions of other prompts under these, chosen ones first, where they are needed.
    """

    rows: Sequence[TokenPair]
    batch: Laid
    mismatched: Laid | None


@dataclass(frozen=True)
class Beside:
    """What a loss may need beside policy and pairs.

    Args:
        reference: a live reference model.
        statistics: running statistics as the step before left them.
        moves: whether the reference changes during the training.
        layout: "packed" where the models read packed rows (see `dpobench.models.packing`), else "padded", and why.
        equal: whether the reference is the policy itself in this step. Its log-probabilities are then the policy's own, not those of an
            earlier pass: losses with a kink at 0 would follow the sign of a rounding error, which depends on how the batch was cut.
    """

    reference: Any = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    moves: bool = False
    layout: str = "padded"
    equal: bool = False

    @property
    def packed(self) -> bool:
        """Whether the models read packed rows."""
        return self.layout == "packed"


def block_of(
    rows: Sequence[TokenPair], bound: Bound, device: Any, *, packed: bool = False, pairs_only: bool = False
) -> Block:
    """Lay out what a loss needs of some pairs; of the pairs alone, where what it needs beside them is known already."""
    needs = () if pairs_only else bound.variant.needs
    crossed = [row.mismatched for row in rows if row.mismatched is not None] if "mismatched" in needs else []
    lay = packed_pairs if packed else pair_batch
    batch = lay(rows, device, gold="gold" in bound.variant.needs)
    return Block(rows, batch, lay(crossed, device) if crossed else None)


def values_of(model: Any, block: Block, bound: Bound, reference: Any = None) -> dict[str, Tensor]:
    """All that the loss asks of the policy: "logp" and declared quantities, shape [sides x b, T]; "mismatched", shape [2b, T']."""
    needs = [NEEDS[name] for name in bound.variant.needs]
    asked = [(need, bound.named(need.compute)) for need in needs if need.compute and need.source in ("policy", "both")]
    values = completion_values(model, block.batch, asked, reference)
    if block.mismatched is not None:
        with torch.no_grad():
            values["mismatched"] = completion_logps(model, block.mismatched)
    return values


def pairs_of(
    values: Values, block: Block, statistics: Mapping[str, float] = MappingProxyType({}), *, equal: bool = False
) -> Pairs:
    """What the loss is given.

    Args:
        values: from `values_of`.
        block: the pairs they belong to, with the reference's log-probabilities.
        statistics: running statistics, this batch counted.
        equal: whether the reference is the policy itself.
    """
    logps, rows = values["logp"], block.rows
    size = len(rows)
    # The reference of a gold answer is not computed: a loss that reads it sees that at once.
    absent = [np.full(len(row.gold), np.nan, np.float32) for row in rows if row.gold is not None][
        : len(logps) - 2 * size
    ]
    reference = np.concatenate([*(r.chosen_reference for r in rows), *(r.rejected_reference for r in rows), *absent])
    constant = logps.detach() if equal else _scattered(block.batch, reference, logps)
    extras = {name: value for name, value in values.items() if name not in ("logp", "mismatched")}
    for name in rows[0].extras:
        given = [row.extras[name] for row in rows]
        told = [*(side[0] for side in given), *(side[1] for side in given), *absent]
        extras[name] = _scattered(block.batch, np.concatenate(told), logps)

    if equal:
        extras = _at_start(extras, constant)

    def side(number: int) -> Side:
        part = slice(number * size, (number + 1) * size)
        mask = block.batch.mask[part]
        return Side(logps[part], constant[part], mask, {name: value[part] for name, value in extras.items()})

    others = {"gold": side(2)} if len(logps) > 2 * size else {}
    if block.mismatched is not None and "mismatched" in values:
        others["mismatched"] = _mismatched(values["mismatched"], block.mismatched, rows, equal=equal)
    names = sorted({name for row in rows for name in row.columns})
    numbers = {name: [row.columns.get(name, math.nan) for row in rows] for name in names}
    columns = {name: torch.tensor(told, dtype=torch.float64).to(logps) for name, told in numbers.items()}
    return Pairs(side(0), side(1), columns, others=others).with_statistics(statistics)


def _at_start(extras: Values, reference: Tensor) -> dict[str, Tensor]:
    """What a loss declared as it is where the policy equals the reference; constant."""
    told = {"zero": torch.zeros_like(reference), "reference": reference}
    return {name: told.get(NEEDS[name].start, value).detach() for name, value in extras.items()}


def _scattered(batch: Laid, values: Any, like: Tensor) -> Tensor:
    return batch.scatter(torch.from_numpy(values).to(like.device, like.dtype))


def _mismatched(logps: Tensor, batch: Laid, rows: Sequence[TokenPair], *, equal: bool) -> Side:
    if equal:
        return Side(logps, logps, batch.mask)
    crossed = [row.mismatched for row in rows if row.mismatched is not None]
    reference = np.concatenate([*(r.chosen_reference for r in crossed), *(r.rejected_reference for r in crossed)])
    return Side(logps, _scattered(batch, reference, logps), batch.mask)


def at_start(pairs: Pairs) -> Pairs:
    """The same pairs as they were when the policy still equalled the reference; differentiable leaves."""
    sides = []
    for side in (pairs.chosen, pairs.rejected):
        extras = _at_start(side.extras, side.reference)
        sides.append(Side(side.reference.detach().clone().requires_grad_(), side.reference, side.mask, extras))
    others = {name: Side(s.policy.detach(), s.reference, s.mask, s.extras) for name, s in pairs.others.items()}
    if "mismatched" in others:
        crossed = others["mismatched"]
        others["mismatched"] = replace(crossed, policy=crossed.reference)
    return Pairs(sides[0], sides[1], pairs.columns, pairs.statistics, others)


def started(bound: Bound, pairs: Pairs) -> Pairs:
    """`at_start`, with the running statistics of a first step."""
    start = at_start(pairs)
    return start.with_statistics(bound.update(start, bound.initial()))
