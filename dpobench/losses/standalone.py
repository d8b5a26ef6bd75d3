"""What a loss makes of pairs that were scored outside training: which answer it prefers, and how hard it pulls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dpobench.errors import UnknownName
from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.registry import variants
from dpobench.losses.variant import Bound

Logps = Sequence[np.ndarray]
# A pull below this share of its start counts as none, as in the training log.
SATURATED = 0.01


@dataclass(frozen=True)
class Stance:
    """A loss's own view of N pairs.

    Args:
        right: 1 where the loss is smaller than with both answers exchanged, 0 where it is larger, 0.5 where it is the same.
        saturated: 1 where the largest pull on a chosen token is below a hundredth of what it is at policy = reference.
    """

    right: np.ndarray
    saturated: np.ndarray


def stance(run: Mapping[str, Any], policy: tuple[Logps, Logps], reference: tuple[Logps, Logps]) -> Stance | None:
    """Ask the loss that a run trained with.

    Whatever a loss calls its reward, it prefers the answer whose exchange with the other would cost it: no reward need be known.
    Sums of a ratio over the batch keep the denominators of the pairs as they are.

    Args:
        run: what `Run.describe` says of it; without a "strength" there is no loss to ask.
        policy: log-probabilities of the tokens of the chosen and of the rejected answers, nats, N arrays each.
        reference: the same under the reference.

    Returns: None for a loss that needs more than log-probabilities of pairs, or that looks at other pairs of a batch or at
        statistics of earlier ones: outside training none of that is at hand.
    """
    if not policy[0] or run.get("strength") is None:
        return None
    try:
        bound = variants.get(str(run["variant"])).bind(**run["params"])
    except UnknownName:  # trained elsewhere, with a loss that is not at hand
        return None
    variant = bound.variant
    if variant.needs or variant.columns or variant.sees_whole_batch:
        return None
    chosen, rejected = (_side(*sides) for sides in zip(policy, reference, strict=True))
    given = Pairs(chosen, rejected)
    with torch.no_grad():
        whole = bound.objective(given)
        value = whole.each(whole.denominators)
        other = bound.objective(Pairs(rejected, chosen)).each(whole.denominators)
        right = (torch.sign(other - value) + 1) / 2
    now, first = _pull(bound, given), _pull(bound, Pairs(_started(chosen), _started(rejected)))
    return Stance(right.numpy(), (now < SATURATED * first).double().numpy())


def _side(policy: Logps, reference: Logps) -> Side:
    own, base = (
        pad_sequence([torch.from_numpy(one.astype(np.float64)) for one in many], True) for many in (policy, reference)
    )
    lengths = torch.tensor([len(one) for one in policy])
    return Side(own, base, torch.arange(own.shape[1]) < lengths[:, None])


def _started(side: Side) -> Side:
    return Side(side.reference, side.reference, side.mask)


def _pull(bound: Bound, pairs: Pairs) -> Tensor:
    """Largest pull on a chosen token of each pair, shape [N], as the training log has it."""
    leaf = pairs.chosen.policy.clone().requires_grad_()
    sides = Side(leaf, pairs.chosen.reference, pairs.chosen.mask)
    with torch.enable_grad():
        each = bound(Pairs(sides, pairs.rejected))
        (slope,) = torch.autograd.grad(each.sum(), leaf, allow_unused=True)
    return torch.zeros(len(pairs)) if slope is None else slope.abs().amax(-1)
