"""Each law: a function from a probed loss to the reason why it is broken, empty where it is kept."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpobench.errors import PluginRefused
from dpobench.pairs import Pairs, Side
from dpobench.registry import Bound, Variant
from dpobench.testing import probe as batches
from dpobench.testing.declaration import declaration
from dpobench.testing.probe import Outcome, Probe


@dataclass(frozen=True)
class Law:
    """What became of one law.

    Args:
        name: the law.
        passed: whether the loss keeps it.
        reason: how it is broken and what to do; empty if it is kept.
    """

    name: str
    passed: bool
    reason: str = ""


def check(variant: Variant, params: Mapping[str, Any] | None = None) -> list[Law]:
    """Try every law.

    Args:
        variant: the loss.
        params: hyper-parameters that differ from the defaults.

    Returns: one entry a law, in the order tried. Where the declaration itself cannot be used, that law alone.
    """
    return list(_tried(variant, params))


def require(variant: Variant, params: Mapping[str, Any] | None = None) -> None:
    """Refuse a loss that breaks a law, at its defaults, along its grids and at the given hyper-parameters.

    Raises:
        PluginRefused: with the first broken law, how it is broken and what to do.
        UserError: `params` holds an unknown name, a wrong type or a value out of bounds.
    """
    variant.arguments(params or {})
    for law in _tried(variant, params):
        if not law.passed:
            raise PluginRefused(
                f"variant {variant.name!r} ({variant.file.name}) breaks the law {law.name!r}: {law.reason}"
            )


def _tried(variant: Variant, params: Mapping[str, Any] | None) -> Iterator[Law]:
    broken = declaration(variant)
    yield Law("declaration", not broken, broken)
    if broken:
        return
    probe = Probe(variant, params)
    for name, law in LAWS.items():
        try:
            reason = law(probe)
        except PluginRefused as refusal:
            reason = str(refusal)
        yield Law(name, not reason, reason)


def shape(probe: Probe) -> str:
    """One loss per pair, in a floating dtype that is the one of the log-probabilities."""
    for dtype in (torch.float64, torch.float32):
        found = probe.value(batches.copied(batches.ordinary(), dtype=dtype)).dtype
        if found != dtype:
            return f"it returns {found} for log-probabilities in {dtype}; keep the dtype it is given"
    return ""


def untouched(probe: Probe) -> str:
    """Nothing that the loss is given is changed in place."""
    given = batches.copied(batches.ordinary())
    before, attributes = (
        batches.ordinary(),
        ("logp", "reference_logp", "logratio", "length", "mean_logp", "mean_logratio"),
    )
    with torch.no_grad():
        probe.loss(given)
    for name in ("chosen", "rejected"):
        side, kept = getattr(given, name), getattr(before, name)
        for attribute in ("policy", "reference", "mask", *attributes):
            if not torch.equal(getattr(side, attribute), getattr(kept, attribute)):
                return f"it changes pairs.{name}.{attribute} in place; use the operation that returns a new tensor"
    for attribute in ("margin", "mean_margin"):
        if not torch.equal(getattr(given, attribute), getattr(before, attribute)):
            return f"it changes pairs.{attribute} in place; use the operation that returns a new tensor"
    return ""


def finite(probe: Probe) -> str:
    """Value and gradient are finite: on ordinary pairs, up to ten thousand nats in float32, at three nats in bfloat16."""
    if not probe.base.finite.all():
        row = int(probe.base.finite.logical_not().nonzero()[0])
        lengths = batches.CHOSEN_LENGTHS[row], batches.REJECTED_LENGTHS[row]
        return f"loss or gradient is not finite for answers of {lengths[0]} and {lengths[1]} tokens a nat from the reference"
    _, margins = batches.swept()
    for point, outcome in zip(probe.points, probe.sweeps, strict=True):
        if not outcome.finite.all():
            margin = float(margins.flatten()[outcome.finite.logical_not()].abs().min())
            return (
                f"loss or gradient is not finite at a margin of {margin:g} nats in float32 ({_point(point)}); use "
                "logsigmoid, softplus, expm1 or a clamp in the place of exp and log"
            )
    if not probe.outcome(batches.modest()).finite.all():
        return "loss or gradient is not finite at margins within 3 nats in bfloat16"
    return ""


def deterministic(probe: Probe) -> str:
    """Called twice it returns the same, and it draws no random numbers."""
    found = torch.get_rng_state()
    # A loss that seeds for itself leaves the same state after every call; one draw more tells.
    torch.rand(())
    before = torch.get_rng_state()
    again = probe.outcome(batches.ordinary())
    drawn = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(found)
    if drawn:
        return "it draws from torch's random numbers or seeds them; a loss is a pure function of its arguments"
    if not again.same_as(probe.base):
        return "two calls on the same pairs differ; a loss is a pure function of its arguments"
    return ""


def gradient(probe: Probe) -> str:
    """The gradient reaches the policy, and is not zero where training starts."""
    for where, outcome in (
        ("a nat from the reference", probe.base),
        (
            "where the policy equals the reference, so that training never starts",
            probe.outcome(batches.started(batches.ordinary())),
        ),
    ):
        if not (outcome.chosen.any() or outcome.rejected.any()):
            return f"the gradient is zero for every pair {where}"
    return ""


def derivative(probe: Probe) -> str:
    """The gradient is the slope of the value, in float64 along a direction that moves every token."""
    if probe.variant.declared["gradient"] == "free":
        return ""
    pairs, step = batches.ordinary(), 1e-5
    away = torch.Generator().manual_seed(5)
    directions = [
        torch.randn(s.mask.shape, generator=away, dtype=torch.float64) * s.mask for s in (pairs.chosen, pairs.rejected)
    ]
    moved = [probe.value(batches.moved(pairs, directions, size)) for size in (step, -step)]
    slope = float((moved[0] - moved[1]).sum()) / (2 * step)
    parts = torch.cat([probe.base.chosen * directions[0], probe.base.rejected * directions[1]])
    slack = 1e-5 * float(parts.abs().sum()) + 1e-9 * float(probe.base.loss.abs().sum())
    if not abs(slope - float(parts.sum())) <= slack:
        return (
            f"autograd says {float(parts.sum()):.6g}, the value changes by {slope:.6g}: something is detached or overridden; "
            "mend it, or declare gradient='free' if the method prescribes it"
        )
    return ""


def permutation(probe: Probe) -> str:
    """Pairs in another order give the same losses in that order; of a coupled loss, the same total and gradients."""
    order = [3, 0, 4, 1, 2]
    outcome = probe.outcome(batches.chosen_rows(batches.ordinary(), order))
    if probe.variant.couples_batch:
        kept = _close(outcome.loss.sum(), probe.base.loss.sum())
    else:
        kept = _close(outcome.loss, probe.base.loss[order])
    if (
        kept
        and _close(outcome.chosen, probe.base.chosen[order])
        and _close(outcome.rejected, probe.base.rejected[order])
    ):
        return ""
    return "the order of the pairs in the batch changes the result; treat every pair alike"


def separability(probe: Probe) -> str:
    """A pair alone has the loss that it has in company, if and only if coupling is not declared."""
    couples = probe.variant.couples_batch
    parts = ([0, 1], [2, 3, 4]) if couples else tuple([i] for i in range(len(batches.ordinary())))
    alone = torch.cat([probe.value(batches.chosen_rows(batches.ordinary(), part)) for part in parts])
    same = _close(alone, probe.base.loss)
    if couples and same:
        return "couples_batch=True, but no pair's loss depends on another; leave it out, it costs a forward pass"
    if not couples and not same:
        return (
            "the loss of a pair depends on the other pairs: return one loss per pair without averaging or normalising over "
            "the batch, or declare couples_batch=True"
        )
    return ""


def padding(probe: Probe) -> str:
    """What stands at masked positions, and how many there are, changes nothing."""
    outcome = probe.outcome(batches.littered(batches.ordinary()))
    width = batches.WIDTH
    masks = batches.ordinary().chosen.mask, batches.ordinary().rejected.mask
    kept = (
        _close(outcome.loss, probe.base.loss)
        and _close(outcome.chosen[:, :width][masks[0]], probe.base.chosen[masks[0]])
        and _close(outcome.rejected[:, :width][masks[1]], probe.base.rejected[masks[1]])
    )
    if kept:
        return ""
    return "padding changes the result; use the sums and means of pairs.chosen and pairs.rejected, or torch.where(mask, ...) before summing"


def reference(probe: Probe) -> str:
    """The reference matters if and only if it is declared to."""
    pairs = batches.ordinary()
    drift = torch.linspace(-0.4, 0.6, batches.WIDTH, dtype=torch.float64)
    other = Pairs(
        Side(pairs.chosen.policy, pairs.chosen.reference + drift * pairs.chosen.mask, pairs.chosen.mask),
        Side(pairs.rejected.policy, pairs.rejected.reference * 1.3, pairs.rejected.mask),
    )
    same = _close(probe.value(other), probe.base.loss)
    if probe.variant.declared["reference"] and same:
        return "the reference has no effect on the loss; use pairs.margin or a log-ratio, or declare reference=False"
    if not probe.variant.declared["reference"] and not same:
        return "reference=False, but the reference changes the loss; leave the declaration out"
    return ""


def shift(probe: Probe) -> str:
    """A loss that declares where it starts knows log-ratios only: policy and reference moved alike change nothing."""
    declared = probe.variant.declared
    if not declared["reference"] or declared["start"] is None or declared["couples_batch"]:
        return ""
    moved = batches.shifted(batches.ordinary(), (-0.7, -0.2), (-0.7, -0.2))
    if _close(probe.value(moved), probe.base.loss):
        return ""
    return (
        "the loss changes when policy and reference move by the same amount, so it is no function of log-ratios and has no "
        "fixed value at the start; use pairs.chosen.logratio, or declare no start"
    )


def start(probe: Probe) -> str:
    """Where the policy equals the reference, answers of any length have the declared loss, all along the grids."""
    for point in probe.points:
        declared = Bound(probe.variant, point).start
        if declared is None:
            return ""
        found = probe.value(batches.started(batches.ordinary()), point)
        apart = (found - declared).abs()
        if not bool((apart <= 1e-6 * max(1.0, abs(declared))).all()):
            return (
                f"start is declared as {declared:.6g}, at policy = reference the loss is {float(found[apart.argmax()]):.6g} "
                f"({_point(point)}); declare a function of the hyper-parameters, start=lambda beta: ..."
            )
    return ""


def direction(probe: Probe) -> str:
    """The pull has the sign that its class promises, at every margin and all along the grids."""
    promised = probe.variant.declared["gradient"]
    if promised == "free":
        return ""
    for point, outcome in zip(probe.points, probe.sweeps, strict=True):
        reason = (
            _monotone(outcome) if promised == "monotone" else _target(outcome, probe.asked and point == probe.centre)
        )
        if reason:
            return f"{reason} ({_point(point)})"
    return ""


def _wrong(outcome: Outcome) -> tuple[Tensor, Tensor]:
    """How strongly each pair's chosen is pushed down and its rejected up, shape [paths, margins].

    As a share of the largest pull at margins no farther out: what is left of rounding is then tiny, and a loss that explodes
    far out hides nothing nearby.
    """
    sizes = torch.maximum(outcome.chosen.abs().amax(-1), outcome.rejected.abs().amax(-1)).view(len(batches.PATHS), -1)
    centre = sizes.shape[1] // 2
    outwards = torch.maximum(sizes[:, centre:], sizes[:, : centre + 1].flip(1)).amax(0).cummax(0).values
    largest = torch.cat([outwards[1:].flip(0), outwards]).clamp(min=1e-38)
    pairs, _ = batches.swept()
    down = outcome.chosen.masked_fill(~pairs.chosen.mask, -torch.inf).amax(-1)
    up = (-outcome.rejected).masked_fill(~pairs.rejected.mask, -torch.inf).amax(-1)
    return down.view_as(sizes) / largest, up.view_as(sizes) / largest


def _monotone(outcome: Outcome) -> str:
    _, margins = batches.swept()
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


def _target(outcome: Outcome, any_distance: bool) -> str:
    _, margins = batches.swept()
    # The first path moves both sides alike; a target may lie on one side only, so either may turn.
    pull = torch.maximum(*_wrong(outcome))[0]
    margin = margins[0]
    if bool((pull[margin <= 0] > 1e-6).any()):
        return "gradient='target', but it pushes the wrong way before any target, at a margin of 0 nats or less; mend the sign"
    turned = (pull > 1e-12) & (margin <= batches.REACH)
    if not turned.any() and any_distance:
        return ""
    if not turned.any():
        return (
            f"gradient='target', but the pull never turns within {batches.REACH:g} nats; declare 'monotone', or a grid with "
            "targets that can be reached"
        )
    after = pull[int(turned.nonzero()[0]) :]
    if bool((after < -1e-6).any()):
        return "gradient='target', but the pull turns more than once; declare 'free'"
    return ""


def strength(probe: Probe) -> str:
    """Every hyper-parameter with a grid, the strength among them, changes value or gradient along it."""
    at = dict(zip(map(repr, probe.points), probe.sweeps, strict=True))
    for name, points in probe.grids.items():
        found = [at[repr(point)] for point in points]
        if all(outcome.same_as(found[0]) for outcome in found[1:]):
            return f"{name} has no effect on value or gradient; use it, or leave it out of the signature"
    return ""


LAWS: Mapping[str, Callable[[Probe], str]] = {
    "shape": shape,
    "untouched": untouched,
    "gradient": gradient,
    "finite": finite,
    "deterministic": deterministic,
    "permutation": permutation,
    "separability": separability,
    "padding": padding,
    "derivative": derivative,
    "reference": reference,
    "direction": direction,
    "start": start,
    "shift": shift,
    "strength": strength,
}


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding in float64, with room for a loss that computes a part in float32."""
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(((found - expected).abs() <= 1e-6 * (scale if math.isfinite(scale) else 1.0) + 1e-9).all())


def _point(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in params.items())
