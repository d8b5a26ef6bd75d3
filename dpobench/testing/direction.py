"""The law of signs: which way the gradient of a loss points, at every margin."""

import torch
from torch import Tensor

from dpobench.testing import batches
from dpobench.testing.probe import Outcome, Probe, written


def direction(probe: Probe) -> str:
    """The gradient has the sign that its class promises, at every margin and all along the grids."""
    promised = probe.variant.spec.gradient
    if promised == "free":
        return ""
    for point, outcome in zip(probe.points, probe.curves, strict=True):
        reason = _monotone(outcome) if promised == "monotone" else _target(outcome, any_distance=probe.customised)
        if reason:
            return f"{reason} ({written(point)})"
    return ""


def _wrong(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """How strongly each pair's chosen is pushed down and its rejected up, shape [paths, margins].

    As a share of the largest gradient at margins no farther out: what is left of rounding is then tiny, and a loss that explodes
    far out hides nothing nearby.
    """
    sizes = torch.maximum(outcome.chosen.abs().amax(-1), outcome.rejected.abs().amax(-1)).view(len(batches.PATHS), -1)
    centre = sizes.shape[1] // 2
    outwards = torch.maximum(sizes[:, centre:], sizes[:, : centre + 1].flip(1)).amax(0).cummax(0).values
    largest = torch.cat([outwards[1:].flip(0), outwards]).clamp(min=1e-38)
    pairs = batches.swept()
    down = outcome.chosen.masked_fill(~pairs.chosen.mask, -torch.inf).amax(-1)
    up = (-outcome.rejected).masked_fill(~pairs.rejected.mask, -torch.inf).amax(-1)
    return down.view_as(sizes) / largest, up.view_as(sizes) / largest


def _monotone(outcome: Outcome) -> str:
    margins = batches.margins()
    for what, wrong in zip(
        ("chosen answer is pushed down", "rejected answer is pushed up"), _wrong(outcome), strict=True
    ):
        at_fault = wrong > 1e-6
        if at_fault.any():
            margin = float(margins[at_fault][margins[at_fault].abs().argmin()])
            return (
                f"gradient='monotone', but at a margin of {margin:g} nats the {what}; mend the sign, or declare 'target' "
                "or 'free'"
            )
    return ""


def _target(outcome: Outcome, *, any_distance: bool) -> str:
    margins = batches.margins()
    # The first path moves both sides alike; a target may lie on one side only, so either may turn.
    wrong = torch.maximum(*_wrong(outcome))[0]
    margin = margins[0]
    if bool((wrong[margin <= 0] > 1e-6).any()):
        return "gradient='target', but it pushes the wrong way before any target, at a margin of 0 nats or less; mend the sign"
    reversed_at = (wrong > 1e-12) & (margin <= batches.REACH)
    if not reversed_at.any() and any_distance:
        return ""
    if not reversed_at.any():
        return (
            f"gradient='target', but the gradient never changes sign within {batches.REACH:g} nats; declare 'monotone', or a grid with "
            "targets that can be reached"
        )
    after = wrong[int(reversed_at.nonzero()[0]) :]
    if bool((after < -1e-6).any()):
        return "gradient='target', but the gradient changes sign more than once; declare 'free'"
    return ""
