"""Laws of what a loss takes and gives beyond log-probabilities and one value per pair: needs, columns, statistics, ratios."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dpobench.errors import PluginRefused
from dpobench.losses.pairs import Pairs, Side
from dpobench.losses.quantities import NEEDS
from dpobench.plugins.plugin import Setting
from dpobench.testing import batches
from dpobench.testing.probe import Outcome, Probe, limits

# Other values of needs and columns to try before something is reported to have no effect.
DRAWS = (1, 2, 3)


def close(values: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding in float64, with room for a loss that computes a part in float32."""
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(((values - expected).abs() <= 1e-6 * (scale if math.isfinite(scale) else 1.0) + 1e-9).all())


def without_random_numbers(work: Callable[[], object]) -> bool:
    """Whether something runs without drawing from torch's random numbers or seeding them; their state stays as it is."""
    state = torch.get_rng_state()
    # What seeds for itself leaves the same state after every call; one draw more shows it.
    torch.rand(())
    before = torch.get_rng_state()
    work()
    same = torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(state)
    return same


def everything(pairs: Pairs) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a loss can read, with the words that read it."""
    for where, side in batches.sides_of(pairs).items():
        at = f"pairs.{where}" if where in ("chosen", "rejected") else f"pairs.others[{where!r}]"
        for name in ("policy", "reference", "mask"):
            yield f"{at}.{name}", getattr(side, name)
        for name, value in side.extras.items():
            yield f"{at}.extras[{name!r}]", value
        for name in ("logp", "reference_logp", "logratio", "length", "mean_logp", "mean_logratio"):
            yield f"{at}.{name}", getattr(side, name)
    for name, value in pairs.columns.items():
        yield f"pairs.columns[{name!r}]", value
    for name, value in pairs.statistics.items():
        yield f"pairs.statistics[{name!r}]", value
    yield "pairs.margin", pairs.margin
    yield "pairs.mean_margin", pairs.mean_margin


def changed(given: Pairs, before: Pairs) -> str:
    """What was changed in place, in the words that read it; empty if nothing."""
    for (what, tensor), (_, expected) in zip(everything(given), everything(before), strict=True):
        # A reference that nobody computes is not a number.
        if not torch.equal(tensor.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5)):
            return what
    return ""


def _base(probe: Probe) -> Outcome | None:
    """Outcome on the ordinary pairs; None where the loss cannot be called, which a later law says."""
    try:
        return probe.base
    except PluginRefused:
        return None


def statistics(probe: Probe) -> str:
    """Running statistics start at numbers, are a pure function of the batches, and have an effect."""
    if not probe.variant.keeps_statistics:
        return ""
    first = probe.initial()
    if not first:
        return "init returns no statistics; name each with its first value, or leave running out"
    for name, value in first.items():
        if not math.isfinite(value):
            return f"init gives {name} the value {value}; begin with a finite number"
    return _updates(probe, first) or _each_statistic(probe.home)


def _updates(probe: Probe, first: dict[str, float]) -> str:
    """Whether update keeps names, is finite, and depends on nothing but its arguments."""
    ordinary = probe.ordinary
    second = probe.updated(ordinary, first)
    for where, pairs, known, point in _first_steps(probe, first, second):
        updated = probe.updated(pairs, known, point)
        if missing := sorted(set(first) ^ set(updated)):
            names = f"update returns {sorted(updated)}, init {sorted(first)}"
            return f"{names}: {missing[0]} is not in both; return the same names"
        for name, value in updated.items():
            if not math.isfinite(value):
                return f"update makes {name} {value} {where}; guard against dividing by zero"
    drawn: list[dict[str, float]] = []
    if not without_random_numbers(lambda: drawn.append(probe.updated(ordinary, first))):
        return "update draws from torch's random numbers or seeds them; random ones are in the need 'noise'"
    if drawn[0] != second:
        return "two updates with the same batch and statistics differ; update is a pure function of its arguments"
    same = {
        "the order of the pairs in the batch changes": batches.chosen_rows(ordinary, [3, 0, 4, 1, 2]),
        "padding changes": batches.littered(ordinary),
    }
    for what, pairs in same.items():
        if not _alike(probe.updated(pairs, first), second):
            return f"{what} what update returns; use means over pairs, and the sums and means of pairs.chosen and pairs.rejected"
    return _in_place(probe, first)


def _first_steps(
    probe: Probe, first: dict[str, float], second: dict[str, float]
) -> Iterator[tuple[str, Pairs, dict[str, float], dict[str, Setting]]]:
    """Batches that an update must take, at the first step and at the second, all along the grids."""
    given = (
        ("on ordinary pairs", probe.ordinary),
        ("where the policy equals the reference", probe.started),
        ("on a batch of one pair", batches.chosen_rows(probe.ordinary, [1])),
        ("at margins up to 10000 nats in float32", probe.swept),
    )
    for point in probe.points:
        for where, pairs in given:
            yield where, pairs, first, point
            if second.keys() == first.keys():
                yield where, pairs, second, point


def _alike(values: Mapping[str, float], expected: Mapping[str, float]) -> bool:
    return all(math.isclose(values[name], value, rel_tol=1e-6, abs_tol=1e-9) for name, value in expected.items())


def _in_place(probe: Probe, first: Mapping[str, float]) -> str:
    given, given_statistics = batches.copied(probe.ordinary), dict(first)
    bound = probe.variant.bind(**probe.centre)
    with torch.no_grad():
        bound.update(given, given_statistics)
    if given_statistics != first:
        return "update changes the statistics that it is given in place; return a new dictionary"
    if what := changed(given, probe.ordinary):
        return f"update changes {what} in place; use the operation that returns a new tensor"
    return ""


def _each_statistic(probe: Probe) -> str:
    """Whether each statistic changes the loss, or what the next update makes of another batch."""
    if _base(probe) is None:
        return ""
    # Where log-probabilities are all there is, every draw is the same.
    draws = (0, *DRAWS) if probe.variant.needs or probe.variant.columns else (0,)
    for name in probe.initial():
        if not any(_reads(probe, name, point, draw) for draw in draws for point in probe.points):
            return f"running statistic {name} has no effect on value, gradient or the next update; leave it out"
    return ""


def _reads(probe: Probe, name: str, point: Mapping[str, object], draw: int) -> bool:
    """Whether another value of a statistic makes a difference, in this step or the next."""
    pairs = probe.given(batches.ordinary(draw), draw)
    after, then = probe.statistics(pairs, point), batches.chosen_rows(pairs, [0, 1, 2])
    now, later = (probe.outcome(pairs, point, after), probe.outcome(then, point, probe.updated(then, after, point)))
    value = after[name]
    for other in (value + 0.5, 0.02 * value, 50 * value + 1):
        changed_by = {**after, name: other}
        if not probe.outcome(pairs, point, changed_by).like(now):
            return True
        if not probe.outcome(then, point, probe.updated(then, changed_by, point)).like(later):
            return True
    return False


def columns(probe: Probe) -> str:
    """The interval of each column can be read, and each column has an effect."""
    for name, interval in probe.variant.columns.items():
        try:
            limits(interval)
        except PluginRefused as refusal:
            return f"column {name}: {refusal}"
    probe = probe.home
    if not probe.variant.columns or _base(probe) is None:
        return ""
    redrawn = [probe.given(batches.ordinary(), draw).columns for draw in DRAWS]
    for name in probe.variant.columns:
        others = [_with_column(probe.ordinary, name, given[name]) for given in redrawn]
        if not _matters(probe, others):
            return f"columns declares {name!r}, but it has no effect on value or gradient; leave it out"
    return ""


def _with_column(pairs: Pairs, name: str, values: Tensor) -> Pairs:
    return replace(pairs, columns=batches.Declared({**pairs.columns, name: values}, "columns"))


def _matters(probe: Probe, others: list[Pairs]) -> bool:
    """Whether any of these pairs have another outcome than the ordinary ones, at any point of the grids."""
    for point in probe.points:
        base = probe.base if point is probe.centre else probe.outcome(probe.ordinary, point)
        if any(not probe.outcome(pairs, point).like(base) for pairs in others):
            return True
    return False


def needs(probe: Probe) -> str:
    """Everything declared in needs has an effect."""
    probe = probe.home
    for name in probe.variant.needs:
        others = [_with_need(probe.ordinary, name, batches.ordinary(draw)) for draw in DRAWS]
        if not _matters(probe, others):
            return f"declares needs=({name!r}, ...), but {name} has no effect on value or gradient; leave it out"
    return ""


def _with_need(pairs: Pairs, name: str, source: Pairs) -> Pairs:
    if name in pairs.others:
        return replace(
            pairs, others=batches.DeclaredSides({**pairs.others, name: replace(source.others[name], extras={})})
        )

    def other(side: Side, drawn: Side) -> Side:
        return replace(side, extras=batches.Declared({**side.extras, name: drawn.extras[name]}, "needs"))

    return replace(pairs, chosen=other(pairs.chosen, source.chosen), rejected=other(pairs.rejected, source.rejected))


def probability(probe: Probe) -> str:
    """A loss that states a probability is logistic in beta x margin."""
    if not probe.variant.spec.states_probability:
        return ""
    # Margins from one nat to a hundred: nearer to 0 every loss is a straight line, and far out rounding is all there is.
    size = probe.swept.margin.abs()
    pairs = batches.chosen_rows(probe.swept, [int(row) for row in ((size >= 1) & (size <= 100)).nonzero()])
    flipped = replace(pairs, chosen=pairs.rejected, rejected=pairs.chosen)
    first_ratios: dict[str, Tensor] = {}
    for point in probe.points:
        beta = float(point[probe.variant.strength])
        ratios = (probe.value(pairs, point) - probe.value(flipped, point)) / (beta * pairs.margin)
        others = repr({name: value for name, value in point.items() if name != probe.variant.strength})
        first = first_ratios.setdefault(others, ratios[0])
        if not bool(((ratios - first).abs() <= 1e-3 * first.abs()).all()):
            return "states_probability=True, but the loss is not logistic in beta x margin; leave the declaration out"
    return ""


def denominators(probe: Probe) -> str:
    """A ratio's denominators are positive, and known before the policy is."""
    ratios = probe.objective(batches.copied(probe.ordinary, differentiable=True)).ratios
    if not ratios:
        return ""
    statistics = probe.statistics(probe.ordinary)
    with torch.no_grad():
        other = probe.objective(batches.copied(_of_another_policy(probe)), statistics=statistics).ratios
    if len(other) != len(ratios):
        return "how many ratios it returns depends on the policy; return the same ones always, zeros where one does not apply"
    for number, ratio in enumerate(ratios):
        given = f"denominator {number + 1}" if len(ratios) > 1 else "the denominator"
        if not bool((ratio.denominator > 0).all()) or not bool(ratio.denominator.isfinite().all()):
            return (
                f"{given} of a ratio is {float(ratio.denominator.min()):g} for a pair; make it positive for every pair"
            )
        if ratio.denominator.requires_grad or not close(other[number].denominator, ratio.denominator.detach()):
            return (
                f"{given} of a ratio depends on the policy; use lengths, columns or the reference, for it is summed over the "
                "global batch before the policy is called"
            )
    return ""


def _of_another_policy(probe: Probe) -> Pairs:
    drawn = probe.given(batches.ordinary(DRAWS[0]))
    sides, redrawn = batches.sides_of(probe.ordinary), batches.sides_of(drawn)

    def change(where: str, what: str, tensor: Tensor) -> Tensor:
        if what == "policy":
            return sides[where].policy * 0.7
        if where in sides and what in NEEDS and NEEDS[what].source in ("policy", "both"):
            return redrawn[where].extras[what]
        return tensor

    return batches.mapped(probe.ordinary, change)
