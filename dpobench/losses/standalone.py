"""What a loss makes of pairs that were scored outside training: which answer it prefers, and whether it still has a gradient."""

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
# A gradient below this share of its start counts as none, as in the training log.
SATURATED = 0.01


@dataclass(frozen=True)
class LossPreferences:
    """What a loss by itself prefers of N pairs.

    Args:
        prefers_chosen: 1 where the loss is smaller than with both answers exchanged, 0 where it is larger, 0.5 where it is the same.
        saturated: 1 where the largest gradient on a chosen token is below a hundredth of what it is at policy = reference.
    """

    prefers_chosen: np.ndarray
    saturated: np.ndarray


def loss_preferences(
    run: Mapping[str, Any], policy: tuple[Logps, Logps], reference: tuple[Logps, Logps]
) -> LossPreferences | None:
    """Preferences of the loss that a run trained with.

    Whatever a loss calls its reward, it prefers the answer whose exchange with the other would cost it: no reward need be known.
    Sums of a ratio over the batch have the denominators of the pairs as they are.

    Args:
        run: what `Run.describe` says of it; without a "strength" there is no loss.
        policy: log-probabilities of the tokens of the chosen and of the rejected answers, nats, N arrays each.
        reference: the same under the reference.

    Returns: None for a loss that needs more than log-probabilities of pairs, or that looks at other pairs of a batch or at
        statistics of earlier ones: outside training there are none. None as well for a loss that is not registered here.
    """
    if not policy[0] or run.get("strength") is None:
        return None
    try:
        bound = variants.get(str(run["variant"])).bind(**run["params"])
    except UnknownName:
        return None
    variant = bound.variant
    if variant.needs or variant.columns or variant.sees_whole_batch:
        return None
    chosen, rejected = (_side(*sides) for sides in zip(policy, reference, strict=True))
    pairs = Pairs(chosen, rejected)
    with torch.no_grad():
        objective = bound.objective(pairs)
        value = objective.each(objective.denominators)
        exchanged = bound.objective(Pairs(rejected, chosen)).each(objective.denominators)
        prefers_chosen = (torch.sign(exchanged - value) + 1) / 2
    at_reference = Pairs(_started(chosen), _started(rejected))
    saturated = _largest_gradient(bound, pairs) < SATURATED * _largest_gradient(bound, at_reference)
    return LossPreferences(prefers_chosen.numpy(), saturated.double().numpy())


def _side(policy: Logps, reference: Logps) -> Side:
    padded = [
        pad_sequence([torch.from_numpy(logps.astype(np.float64)) for logps in answers], True)
        for answers in (policy, reference)
    ]
    lengths = torch.tensor([len(logps) for logps in policy])
    return Side(padded[0], padded[1], torch.arange(padded[0].shape[1]) < lengths[:, None])


def _started(side: Side) -> Side:
    """The same answers where the policy equals the reference."""
    return Side(side.reference, side.reference, side.mask)


def _largest_gradient(bound: Bound, pairs: Pairs) -> Tensor:
    """Largest gradient on a chosen token of each pair, shape [N], as the training log has it."""
    leaf = pairs.chosen.policy.clone().requires_grad_()
    chosen = Side(leaf, pairs.chosen.reference, pairs.chosen.mask)
    with torch.enable_grad():
        each = bound(Pairs(chosen, pairs.rejected))
        (slope,) = torch.autograd.grad(each.sum(), leaf, allow_unused=True)
    return torch.zeros(len(pairs)) if slope is None else slope.abs().amax(-1)
