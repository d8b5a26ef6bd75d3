"""Pairs laid out as a model reads them, and what a loss is given of them.

Shapes in this module: b pairs, T tokens of the longest completion; `sides` is 2 (chosen, rejected), or 3 where gold answers are needed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from dpobench.data.tokens import TokenPair
from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound
from dpobench.models.logprobs import CompletionLayout, Device, completion_logps, completion_values, pair_batch
from dpobench.models.packing import packed_pairs
from dpobench.models.protocols import CausalLM, LanguageModel

# "logp" and declared quantities, shape [sides x b, T]; "mismatched", shape [2b, T'].
PolicyValues = Mapping[str, Tensor]


@dataclass(frozen=True)
class PairLayout:
    """Some pairs laid out as a model reads them.

    Args:
        rows: the b pairs.
        completions: their chosen sides, then the rejected, then the gold answers where these are needed.
        mismatched: completions of other prompts under these, chosen ones first, where they are needed.
    """

    rows: Sequence[TokenPair]
    completions: CompletionLayout
    mismatched: CompletionLayout | None


@dataclass(frozen=True)
class AuxiliaryState:
    """What a step's gradient depends on besides the policy, the loss and the pairs.

    Args:
        reference: a live reference model, where a loss needs both distributions or the reference moves.
        statistics: running statistics as the step before left them.
        packed: whether the models read packed rows (see `dpobench.models.packing`).
        reference_is_policy: whether the reference is the policy itself in this step. Its log-probabilities are then the policy's own, not
            those of an earlier pass: losses with a kink at 0 would follow the sign of a rounding error, which depends on how the batch
            was cut.
    """

    reference: CausalLM | None = None
    statistics: Mapping[str, float] = field(default_factory=dict)
    packed: bool = False
    reference_is_policy: bool = False


def lay_out(
    rows: Sequence[TokenPair], bound: Bound, device: Device, *, packed: bool = False, pairs_only: bool = False
) -> PairLayout:
    """Lay out what a loss needs of some pairs.

    Args:
        rows: the pairs.
        bound: the loss.
        device: where the tensors live.
        packed: as one row in which answers share their prompt, or as a padded block.
        pairs_only: leave out completions of other prompts: their log-probabilities are known already.
    """
    needs = () if pairs_only else bound.variant.needs
    mismatched = [row.mismatched for row in rows if row.mismatched is not None] if "mismatched" in needs else []
    lay = packed_pairs if packed else pair_batch
    completions = lay(rows, device, gold="gold" in bound.variant.needs)
    return PairLayout(rows, completions, lay(mismatched, device) if mismatched else None)


def policy_values(
    model: LanguageModel, layout: PairLayout, bound: Bound, reference: LanguageModel | None = None
) -> dict[str, Tensor]:
    """All that a loss needs the policy for.

    Args:
        model: the policy.
        layout: the b pairs.
        bound: the loss.
        reference: a live reference, where the loss needs both distributions.

    Returns: "logp" and declared quantities, shape [sides x b, T]; "mismatched", shape [2b, T'], constant. Nats.
    """
    needs = [NEEDS[name] for name in bound.variant.needs]
    computed = [
        (need, bound.named(need.compute)) for need in needs if need.compute and need.source in ("policy", "both")
    ]
    values = completion_values(model, layout.completions, computed, reference)
    if layout.mismatched is not None:
        with torch.no_grad():
            values["mismatched"] = completion_logps(model, layout.mismatched)
    return values


def loss_pairs(
    values: PolicyValues,
    layout: PairLayout,
    statistics: Mapping[str, float] = MappingProxyType({}),
    *,
    reference_is_policy: bool = False,
) -> Pairs:
    """What the loss is given.

    Args:
        values: from `policy_values`.
        layout: the pairs they belong to, with the reference's log-probabilities.
        statistics: running statistics, this batch counted.
        reference_is_policy: see `AuxiliaryState`.
    """
    logps, rows = values["logp"], layout.rows
    size, completions = len(rows), layout.completions
    # The reference of a gold answer is not computed: NaN shows at once in a loss that reads it.
    gold_reference = [np.full(len(row.gold), np.nan, np.float32) for row in rows if row.gold is not None]
    absent = gold_reference[: len(logps) - 2 * size]
    computed = np.concatenate([*(r.chosen_reference for r in rows), *(r.rejected_reference for r in rows), *absent])
    reference = logps.detach() if reference_is_policy else _scatter(completions, computed, logps)
    extras = {name: value for name, value in values.items() if name not in ("logp", "mismatched")}
    for name in rows[0].extras:
        per_row = [row.extras[name] for row in rows]
        constants = np.concatenate(
            [*(chosen for chosen, _ in per_row), *(rejected for _, rejected in per_row), *absent]
        )
        extras[name] = _scatter(completions, constants, logps)
    if reference_is_policy:
        extras = _extras_at_start(extras, reference)

    def side(number: int) -> Side:
        part = slice(number * size, (number + 1) * size)
        mask = completions.mask[part]
        return Side(logps[part], reference[part], mask, {name: value[part] for name, value in extras.items()})

    others = {"gold": side(2)} if len(logps) > 2 * size else {}
    if layout.mismatched is not None and "mismatched" in values:
        others["mismatched"] = _mismatched_side(
            values["mismatched"], layout.mismatched, rows, reference_is_policy=reference_is_policy
        )
    names = sorted({name for row in rows for name in row.columns})
    numbers = {name: [row.columns.get(name, math.nan) for row in rows] for name in names}
    columns = {name: torch.tensor(column, dtype=torch.float64).to(logps) for name, column in numbers.items()}
    return Pairs(side(0), side(1), columns, others=others).with_statistics(statistics)


def _extras_at_start(extras: Mapping[str, Tensor], reference: Tensor) -> dict[str, Tensor]:
    """What a loss declared as it is where the policy equals the reference; constant."""
    at_start = {"zero": torch.zeros_like(reference), "reference": reference}
    return {name: at_start.get(NEEDS[name].start, value).detach() for name, value in extras.items()}


def _scatter(layout: CompletionLayout, values: npt.NDArray[np.float32], like: Tensor) -> Float[Tensor, "N T"]:
    return layout.scatter(torch.from_numpy(values).to(like.device, like.dtype))


def _mismatched_side(
    logps: Float[Tensor, "N T"], layout: CompletionLayout, rows: Sequence[TokenPair], *, reference_is_policy: bool
) -> Side:
    if reference_is_policy:
        return Side(logps, logps, layout.mask)
    others = [row.mismatched for row in rows if row.mismatched is not None]
    reference = np.concatenate([*(r.chosen_reference for r in others), *(r.rejected_reference for r in others)])
    return Side(logps, _scatter(layout, reference, logps), layout.mask)


def pairs_at_start(pairs: Pairs) -> Pairs:
    """The same pairs as they were when the policy still equalled the reference; log-probabilities are differentiable leaves."""
    sides = []
    for side in (pairs.chosen, pairs.rejected):
        extras = _extras_at_start(side.extras, side.reference)
        sides.append(Side(side.reference.detach().clone().requires_grad_(), side.reference, side.mask, extras))
    others = {name: Side(s.policy.detach(), s.reference, s.mask, s.extras) for name, s in pairs.others.items()}
    if "mismatched" in others:
        mismatched = others["mismatched"]
        others["mismatched"] = replace(mismatched, policy=mismatched.reference)
    return Pairs(sides[0], sides[1], pairs.columns, pairs.statistics, others)


def pairs_of_first_step(bound: Bound, pairs: Pairs) -> Pairs:
    """`pairs_at_start`, with the running statistics of a first step."""
    start = pairs_at_start(pairs)
    return start.with_statistics(bound.update(start, bound.initial()))
