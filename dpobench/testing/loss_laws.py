"""The laws of losses: each a function from a probed loss to the reason why it is broken, empty where it holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from dpobench.losses.pairs import Pairs
from dpobench.losses.quantities import NEEDS
from dpobench.losses.variant import Bound, Variant
from dpobench.plugins.plugin import Settings
from dpobench.testing import batches
from dpobench.testing.beyond import (
    changed,
    close,
    columns,
    denominators,
    needs,
    probability,
    statistics,
    without_random_numbers,
)
from dpobench.testing.declaration import declaration
from dpobench.testing.direction import direction
from dpobench.testing.law import Law, in_turn, meaning
from dpobench.testing.probe import Outcome, Probe, written


def tried(variant: Variant, params: Settings) -> Iterator[Law]:
    """Try every law of a loss.

    Args:
        variant: the loss.
        params: hyper-parameters that differ from the defaults.
    """
    broken = declaration(variant)
    yield Law("declaration", not broken, broken, meaning(declaration))
    if not broken:
        yield from in_turn(LAWS, Probe(variant, params))


def shape(probe: Probe) -> str:
    """One value per pair, and per part of a ratio, in the dtype of the log-probabilities."""
    for dtype in (torch.float64, torch.float32):
        with torch.no_grad():
            objective = probe.objective(batches.copied(probe.ordinary, dtype=dtype))
        parts = [("it returns", objective.losses)]
        for ratio in objective.ratios:
            parts += [("a ratio's numerator is", ratio.numerator), ("a ratio's denominator is", ratio.denominator)]
        for what, part in parts:
            if part.dtype != dtype:
                return f"{what} {part.dtype} for log-probabilities in {dtype}; keep the dtype it is given"
    return ""


def untouched(probe: Probe) -> str:
    """Nothing that the loss is given is changed in place."""
    known = probe.statistics(probe.ordinary)
    given, before = (probe.known(batches.copied(probe.ordinary), known) for _ in range(2))
    with torch.no_grad():
        probe.objective(given, statistics={})
    what = changed(given, before)
    return f"it changes {what} in place; use the operation that returns a new tensor" if what else ""


def finite(probe: Probe) -> str:
    """Value and gradient are finite wherever training may lead.

    That is: on ordinary pairs, where the policy equals the reference, at the ends of the columns' intervals, up to ten
    thousand nats in float32, at three nats in bfloat16; in a batch of one pair and of pairs that are all alike.
    """
    if not probe.base.finite.all():
        row = int(probe.base.finite.logical_not().nonzero()[0])
        lengths = f"{batches.CHOSEN_LENGTHS[row]} and {batches.REJECTED_LENGTHS[row]} tokens"
        held = "".join(f", {name} = {float(values[row]):.3g}" for name, values in probe.ordinary.columns.items())
        absent = (
            ", or it reads the gold answer's reference, which is not computed" if "gold" in probe.variant.needs else ""
        )
        return f"loss or gradient is not finite for answers of {lengths}{held} a nat from the reference{absent}"
    for where, pairs in _corners(probe):
        if not probe.outcome(pairs).finite.all():
            return f"loss or gradient is not finite {where}; guard against dividing by zero and the logarithm of zero"
    margins = batches.margins().flatten()
    coupled = probe.variant.sees_whole_batch
    for outcomes in (probe.sweeps, probe.curves) if coupled else (probe.sweeps,):
        for point, outcome in zip(probe.points, outcomes, strict=True):
            if not outcome.finite.all():
                margin = float(margins[outcome.finite.logical_not()].abs().min())
                return (
                    f"loss or gradient is not finite at a margin of {margin:g} nats in float32 ({written(point)}); use "
                    "logsigmoid, softplus, expm1 or a clamp in the place of exp and log"
                )
    if not probe.outcome(probe.given(batches.modest())).finite.all():
        return "loss or gradient is not finite at margins within 3 nats in bfloat16"
    return ""


def _corners(probe: Probe) -> Iterator[tuple[str, Pairs]]:
    """Batches that are in no way extreme, and on which a division or a logarithm may fail."""
    yield "where the policy equals the reference", probe.started
    if probe.variant.sees_whole_batch:
        yield "in a batch of one pair", batches.chosen_rows(probe.ordinary, [1])
    if probe.variant.columns:
        yield from probe.at_ends()


def deterministic(probe: Probe) -> str:
    """Called twice it returns the same, and it draws no random numbers."""
    again: list[Outcome] = []
    if not without_random_numbers(lambda: again.append(probe.outcome(probe.ordinary))):
        return (
            "it draws from torch's random numbers or seeds them; a loss is a pure function of its arguments, random ones are "
            "in the need 'noise'"
        )
    if not again[0].same_as(probe.base):
        return "two calls on the same pairs differ; a loss is a pure function of its arguments"
    return ""


def gradient(probe: Probe) -> str:
    """The gradient reaches the policy, and is not zero where training starts."""
    for where, outcome in (
        ("a nat from the reference", probe.base),
        (
            "where the policy equals the reference, so that training never starts",
            probe.outcome(probe.started),
        ),
    ):
        if not (outcome.chosen.any() or outcome.rejected.any()):
            return f"the gradient is zero for every pair {where}"
    return ""


def derivative(probe: Probe) -> str:
    """The gradient is the slope of the value, if and only if nothing is declared to be held constant.

    In float64, along a direction that moves every token and every differentiable need; running statistics stay as they are.
    """
    stops = probe.variant.spec.stops_gradient
    tried = probe.home if stops else probe
    for point in tried.points if stops else [probe.centre]:
        slope, promised, slack = _slopes(tried, point)
        if abs(slope - promised) <= slack:
            continue
        if stops:
            return ""
        return (
            f"autograd says {promised:.6g}, the value changes by {slope:.6g}: something is detached or overridden; "
            "mend it, or declare stops_gradient=True if the method prescribes it"
        )
    return "stops_gradient=True, but nothing is held constant; leave it out" if stops else ""


def _slopes(probe: Probe, point: Settings) -> tuple[float, float, float]:
    """Slope of the value, what autograd says of it, and how far apart rounding may put them."""
    pairs, step = probe.ordinary, 1e-5
    away, masks = torch.Generator().manual_seed(5), batches.sides_of(pairs)
    directions = {
        name: torch.randn(leaf.shape, generator=away, dtype=torch.float64) * masks[name.partition(".")[0]].mask
        for name, leaf in batches.leaves(pairs).items()
    }
    known = probe.statistics(pairs, point)
    base = probe.base if point is probe.centre else probe.outcome(pairs, point, known)
    moved = [probe.value(batches.moved(pairs, directions, size), point, known) for size in (step, -step)]
    slope = float((moved[0] - moved[1]).sum()) / (2 * step)
    parts = torch.cat([(base.gradients[name] * direction).flatten() for name, direction in directions.items()])
    return slope, float(parts.sum()), 1e-5 * float(parts.abs().sum()) + 1e-9 * float(base.loss.abs().sum())


def permutation(probe: Probe) -> str:
    """The order of the pairs does not matter; of a coupled loss, total and gradients stay."""
    order = [3, 0, 4, 1, 2]
    outcome = probe.outcome(batches.chosen_rows(probe.ordinary, order))
    expected = probe.base.loss[order]
    same = close(outcome.loss.sum(), expected.sum()) if probe.variant.couples_batch else close(outcome.loss, expected)
    if same and all(
        close(token_gradient, probe.base.gradients[name][order]) for name, token_gradient in outcome.gradients.items()
    ):
        return ""
    return "the order of the pairs in the batch changes the result; treat every pair alike"


def separability(probe: Probe) -> str:
    """A pair alone has the loss that it has among others, if and only if coupling is not declared.

    Statistics are those of the whole batch, and a ratio's denominators are summed over it.
    """
    if not probe.variant.couples_batch:
        if _adds_up(probe, probe.ordinary, ([0, 1], [2, 3], [4])):
            return ""
        return (
            "the loss of a pair depends on the other pairs: return one loss per pair without averaging or normalising over "
            "the batch, a Ratio for a mean over tokens, or declare couples_batch=True"
        )
    probe = probe.home
    far = batches.copied(probe.swept, dtype=torch.float64)
    if _adds_up(probe, probe.ordinary, ([0, 1], [2, 3, 4])) and _adds_up(probe, far, batches.groups()):
        return "couples_batch=True, but no pair's loss depends on another; leave it out, it costs a forward pass"
    return ""


def _adds_up(probe: Probe, pairs: Pairs, parts: Sequence[Sequence[int]]) -> bool:
    """Whether the parts of a batch have the losses and denominators that they have in the whole."""
    known = probe.statistics(pairs)
    with torch.no_grad():
        whole = probe.objective(batches.copied(pairs), statistics=known)
        pieces = [probe.objective(batches.chosen_rows(pairs, part), statistics=known) for part in parts]
        if any(len(part.ratios) != len(whole.ratios) for part in pieces):
            return False
        alone = torch.cat([part.each(whole.denominators, len(pairs)) for part in pieces])
    order = [row for part in parts for row in part]
    below = [torch.cat([part.ratios[k].denominator for part in pieces]) for k in range(len(whole.ratios))]
    return close(alone, whole.each()[order]) and all(
        close(part, ratio.denominator[order]) for part, ratio in zip(below, whole.ratios, strict=True)
    )


def padding(probe: Probe) -> str:
    """What stands at masked positions, and how many there are, changes nothing."""
    outcome = probe.outcome(batches.littered(probe.ordinary))
    masks = {name: side.mask for name, side in batches.sides_of(probe.ordinary).items()}
    same = close(outcome.loss, probe.base.loss)
    for name, token_gradient in outcome.gradients.items():
        mask = masks[name.partition(".")[0]]
        same = same and close(token_gradient[:, : batches.WIDTH][mask], probe.base.gradients[name][mask])
    if same:
        return ""
    return "padding changes the result; use the sums and means of pairs.chosen and pairs.rejected, or torch.where(mask, ...) before summing"


def reference(probe: Probe) -> str:
    """The reference, or what is computed from it, matters if and only if it is declared to."""
    pairs, redrawn = probe.ordinary, batches.sides_of(probe.given(batches.ordinary(1)))
    drift = torch.linspace(-0.4, 0.6, batches.WIDTH, dtype=torch.float64)

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        if what == "reference":
            return tensor + drift * pairs.chosen.mask if where == "chosen" else tensor * 1.3
        if where in redrawn and what in NEEDS and NEEDS[what].source in ("reference", "both"):
            return redrawn[where].extras[what]
        return tensor

    if probe.variant.spec.reference:
        probe = probe.home
    same = close(probe.value(batches.mapped(pairs, change)), probe.base.loss)
    if probe.variant.spec.reference and same:
        return "the reference has no effect on the loss; use pairs.margin or a log-ratio, or declare reference=False"
    if not probe.variant.spec.reference and not same:
        return "reference=False, but the reference changes the loss; leave the declaration out"
    return ""


def shift(probe: Probe) -> str:
    """A loss with a start knows log-ratios only: moving policy and reference alike changes nothing."""
    spec = probe.variant.spec
    if not spec.reference or spec.start is None or spec.couples_batch:
        return ""
    if close(probe.value(batches.shifted(probe.ordinary, -0.7, -0.2)), probe.base.loss):
        return ""
    return (
        "the loss changes when policy and reference move by the same amount, so it is no function of log-ratios and has no "
        "fixed value at the start; use pairs.chosen.logratio, or declare no start"
    )


def start(probe: Probe) -> str:
    """Where the policy equals the reference, every pair has the declared loss, all along the grids."""
    for point in probe.points:
        declared = Bound(probe.variant, point).start
        if declared is None:
            return ""
        losses = probe.value(probe.started, point)
        apart = (losses - declared).abs()
        if not bool((apart <= 1e-6 * max(1.0, abs(declared))).all()):
            return (
                f"start is declared as {declared:.6g}, at policy = reference the loss is {float(losses[apart.argmax()]):.6g} "
                f"({written(point)}); declare a function of the hyper-parameters, start=lambda beta: ..."
            )
    return ""


def strength(probe: Probe) -> str:
    """Every hyper-parameter with a grid changes value or gradient along it."""
    probe = probe.home
    at = dict(zip(map(repr, probe.points), probe.sweeps, strict=True))
    elsewhere = probe.variant.given_to_needs()
    for name, points in probe.grids.items():
        outcomes = [at[repr(point)] for point in points]
        # Of a mixture, the parameter's name stands behind the part's.
        if name.rpartition(".")[2] in elsewhere or any(not outcome.same_as(outcomes[0]) for outcome in outcomes[1:]):
            continue
        near = [probe.later(point) for point in points]
        if all(outcome.same_as(near[0]) for outcome in near[1:]):
            return f"{name} has no effect on value or gradient; use it, or leave it out of the signature"
    return ""


LAWS: Mapping[str, Callable[[Probe], str]] = {
    "columns": columns,
    "statistics": statistics,
    "shape": shape,
    "untouched": untouched,
    "denominators": denominators,
    "gradient": gradient,
    "finite": finite,
    "deterministic": deterministic,
    "needs": needs,
    "permutation": permutation,
    "separability": separability,
    "padding": padding,
    "derivative": derivative,
    "reference": reference,
    "direction": direction,
    "start": start,
    "shift": shift,
    "strength": strength,
    "probability": probability,
}
