"""A loss called on small batches, with exactly what it declared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dpobench.errors import PluginRefused
from dpobench.losses.pairs import Objective, Pairs, Ratio
from dpobench.losses.variant import Bound, Variant
from dpobench.plugins.plugin import Interval, Setting, Settings
from dpobench.testing import batches
from dpobench.testing.batches import Declared, Undeclared, chosen_rows, copied, ordinary

__all__ = ["Outcome", "Probe", "chosen_rows", "drawn_inside", "limits", "ordinary", "written"]


@dataclass(frozen=True)
class Outcome:
    """What a loss made of a batch.

    Args:
        loss: one value per pair, shape [B].
        gradients: of their sum with respect to each of `batches.leaves`, shape [B, T] each.
    """

    loss: Tensor
    gradients: Mapping[str, Tensor]

    @property
    def chosen(self) -> Tensor:
        """Gradient with respect to the chosen tokens' log-probabilities, shape [B, T]."""
        return self.gradients["chosen"]

    @property
    def rejected(self) -> Tensor:
        """The same for the rejected tokens."""
        return self.gradients["rejected"]

    @property
    def finite(self) -> Tensor:
        """Whether value and gradient of each pair are finite, shape [B]."""
        finite_rows = self.loss.isfinite()
        for gradient in self.gradients.values():
            finite_rows = finite_rows & gradient.isfinite().all(-1)
        return finite_rows

    def same_as(self, other: "Outcome") -> bool:
        """Whether nothing at all differs."""
        return torch.equal(self.loss, other.loss) and all(
            torch.equal(gradient, other.gradients[name]) for name, gradient in self.gradients.items()
        )

    def like(self, other: "Outcome") -> bool:
        """Whether nothing differs by more than rounding in float64."""
        return _alike(self.loss, other.loss) and all(
            _alike(gradient, other.gradients[name]) for name, gradient in self.gradients.items()
        )


def _alike(mine: Tensor, theirs: Tensor) -> bool:
    return bool(((mine - theirs).abs() <= 1e-12 * mine.abs().max()).all())


def limits(interval: Interval, far: float = 3.0) -> tuple[float, float]:
    """Least and greatest value of an interval, infinite ends cut so far from zero or from the other end.

    Raises:
        PluginRefused: it is no interval, or holds nothing.
    """
    try:
        _ = 0.0 in interval
        low, high = (float(end) for end in interval.text[1:-1].split(","))
    except ValueError as error:
        raise PluginRefused(f"{interval.text!r} is no interval; write for example '(0, inf)' or '[0, 0.5)'") from error
    if not low < high:
        raise PluginRefused(f"{interval.text!r} holds no value; write the lower end first")
    if low == -torch.inf:
        low = min(-far, high - far)
    return low, max(far, low + far) if high == torch.inf else high


def drawn_inside(interval: Interval, size: int, number: int) -> Tensor:
    """Values spread over the inside of an interval, always the same for a number, shape [size]."""
    low, high = limits(interval)
    # Multiples of the golden ratio spread evenly, however many are taken.
    share = (0.618034 * torch.arange(1, size + 1, dtype=torch.float64) + 0.381966 * number) % 1
    return low + (high - low) * (0.01 + 0.98 * share)


class Probe:
    """A loss to be tried at its default hyper-parameters, or those given, and along its grids.

    Args:
        variant: the loss.
        params: hyper-parameters that differ from the defaults.
    """

    def __init__(self, variant: Variant, params: Settings | None = None) -> None:
        self.variant = variant
        self.customised = bool(params)
        self.centre = variant.arguments(params or {})

    @cached_property
    def home(self) -> "Probe":
        """The loss at its defaults. What it declares must matter there; elsewhere a user may have switched a part off."""
        return Probe(self.variant) if self.customised else self

    @cached_property
    def grids(self) -> dict[str, list[dict[str, Setting]]]:
        """For each hyper-parameter with a grid: the points along it, the others staying at the centre."""
        points_along = {}
        for parameter in self.variant.parameters.values():
            values = [parameter.accept(value, self.variant.name) for value in parameter.grid]
            if len(set(values)) == 1 and isinstance(values[0], float):
                values += [
                    v for v in (values[0] * 1.5, values[0] / 1.5) if not parameter.bounds or v in parameter.bounds
                ]
            if values:
                points_along[parameter.name] = [{**self.centre, parameter.name: value} for value in values]
        return points_along

    @cached_property
    def points(self) -> list[dict[str, Setting]]:
        """The centre, then every other point of the grids."""
        points = [self.centre]
        for along in self.grids.values():
            points += [point for point in along if point not in points]
        return points

    def given(self, pairs: Pairs, draw: int = 0) -> Pairs:
        """Pairs that carry everything, with what is declared and nothing else.

        Args:
            pairs: one of the batches.
            draw: which values the columns have.
        """
        columns = {
            name: drawn_inside(interval, len(pairs), number + 7 * draw).to(pairs.chosen.policy.dtype)
            for number, (name, interval) in enumerate(self.variant.columns.items())
        }
        return batches.narrowed(pairs, self.variant.needs, columns)

    @cached_property
    def ordinary(self) -> Pairs:
        """Five pairs in float64."""
        return self.given(ordinary())

    @cached_property
    def swept(self) -> Pairs:
        """The whole range of margins in float32."""
        return self.given(batches.swept())

    @cached_property
    def started(self) -> Pairs:
        """Five pairs where the policy equals the reference, in float64."""
        return batches.started(self.ordinary)

    def initial(self, params: Settings | None = None) -> dict[str, float]:
        """First statistics.

        Raises:
            PluginRefused: `init` raises.
        """
        try:
            return Bound(self.variant, params or self.centre).initial()
        except Exception as error:
            raise PluginRefused(f"init raises {type(error).__name__}: {error}") from error

    def updated(
        self, pairs: Pairs, statistics: Mapping[str, float], params: Settings | None = None
    ) -> dict[str, float]:
        """Next statistics; `pairs` stays as it is.

        Raises:
            PluginRefused: `update` raises, or returns something else than numbers.
        """
        try:
            with torch.no_grad():
                return Bound(self.variant, params or self.centre).update(copied(pairs), dict(statistics))
        except KeyError as error:
            raise PluginRefused(
                f"update reads {error}, which the loss does not declare: add it to columns, needs or running"
            ) from error
        except Exception as error:
            raise PluginRefused(f"{_with(params)}update raises {type(error).__name__}: {error}") from error

    def statistics(self, pairs: Pairs, params: Settings | None = None) -> dict[str, float]:
        """What the statistics are where these pairs are the first batch."""
        return self.updated(pairs, self.initial(params), params) if self.variant.keeps_statistics else {}

    def known(self, pairs: Pairs, statistics: Mapping[str, float]) -> Pairs:
        """The same pairs with these statistics."""
        scalars = {name: torch.tensor(value, dtype=torch.float64) for name, value in statistics.items()}
        return replace(pairs, statistics=Declared(scalars, "running"))

    def objective(
        self, pairs: Pairs, params: Settings | None = None, statistics: Mapping[str, float] | None = None
    ) -> Objective:
        """Call the loss.

        Args:
            pairs: what it is given; a part of a batch, if `statistics` says what the whole batch made of them.
            params: hyper-parameters; None for the centre.
            statistics: running statistics; None where these pairs are the first batch.

        Raises:
            PluginRefused: it raises, or returns something else.
        """
        if statistics is None:
            statistics = self.statistics(pairs, params)
        if statistics:
            pairs = self.known(pairs, statistics)
        try:
            objective = Bound(self.variant, params or self.centre).objective(pairs)
        except Undeclared as error:
            raise PluginRefused(_undeclared(error)) from error
        except Exception as error:
            raise PluginRefused(f"{_with(params)}it raises {type(error).__name__}: {error}") from error
        _well_formed(objective, len(pairs))
        return objective

    def value(
        self, pairs: Pairs, params: Settings | None = None, statistics: Mapping[str, float] | None = None
    ) -> Tensor:
        """Loss per pair without its gradient, shape [B]; `pairs` stays as it is."""
        with torch.no_grad():
            return self.objective(copied(pairs), params, statistics).each()

    def outcome(
        self, pairs: Pairs, params: Settings | None = None, statistics: Mapping[str, float] | None = None
    ) -> Outcome:
        """Loss per pair with its gradient; `pairs` stays as it is.

        Raises:
            PluginRefused: there is no gradient.
        """
        given = copied(pairs, differentiable=True)
        if statistics is None:
            # Sums are taken once per side; taken without gradients, they would have none in the loss either.
            statistics = self.statistics(pairs, params)
        with torch.enable_grad():
            loss = self.objective(given, params, statistics).each()
            if not loss.requires_grad:
                raise PluginRefused(
                    "the gradient does not reach the policy's log-probabilities; do not detach them or leave torch"
                )
            leaves = batches.leaves(given)
            try:
                slopes = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
            except RuntimeError as error:
                raise PluginRefused(f"the gradient cannot be taken: {error}") from error
        gradients = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), slopes, strict=True)
        }
        return Outcome(loss.detach(), gradients)

    @cached_property
    def base(self) -> Outcome:
        """Outcome on the ordinary pairs in float64."""
        return self.outcome(self.ordinary)

    def later(self, params: Settings) -> Outcome:
        """Outcome on the ordinary pairs in the second step, after one on three of them."""
        if not self.variant.keeps_statistics:
            return self.outcome(self.ordinary, params)
        before = self.statistics(chosen_rows(self.ordinary, [0, 1, 2]), params)
        return self.outcome(self.ordinary, params, self.updated(self.ordinary, before, params))

    def at_ends(self) -> Iterator[tuple[str, Pairs]]:
        """Ordinary pairs with all columns at the ends of their intervals, a thousand for an infinite one, and all alike."""
        intervals = self.variant.columns
        ends = [{name: limits(interval, 1e3)[end] for name, interval in intervals.items()} for end in (0, 1)]
        apart = [{name: ends[(n + turn) % 2][name] for n, name in enumerate(intervals)} for turn in (0, 1)]
        for chosen_values in (*ends, *apart, dict.fromkeys(intervals, 0.5)):
            at = {name: value for name, value in chosen_values.items() if value in intervals[name]}
            if at:
                yield f"with {', '.join(f'{name} = {value:g}' for name, value in at.items())}", self._with_columns(at)

    def _with_columns(self, at: Mapping[str, float]) -> Pairs:
        pairs = self.ordinary
        fixed = {name: torch.full_like(pairs.columns[name], value) for name, value in at.items()}
        return replace(pairs, columns=Declared({**pairs.columns, **fixed}, "columns"))

    @cached_property
    def sweeps(self) -> list[Outcome]:
        """Outcome over the whole range of margins as one batch, at each of `points`."""
        return [self.outcome(self.swept, point) for point in self.points]

    @cached_property
    def curves(self) -> list[Outcome]:
        """Outcome over the whole range of margins, at each of `points`, in the order of `sweeps`.

        What couples pairs or keeps statistics meets margins of one magnitude and sign at a time: far-off pairs would bend
        what the others get.
        """
        if not self.variant.sees_whole_batch:
            return self.sweeps
        groups = batches.groups()
        order = torch.tensor([row for rows in groups for row in rows]).argsort()
        apart = [chosen_rows(self.swept, rows) for rows in groups]
        return [_joined([self.outcome(pairs, point) for pairs in apart], order) for point in self.points]


def _joined(parts: Sequence[Outcome], order: Tensor) -> Outcome:
    names = parts[0].gradients
    gradients = {name: torch.cat([part.gradients[name] for part in parts])[order] for name in names}
    return Outcome(torch.cat([part.loss for part in parts])[order], gradients)


def _well_formed(objective: Objective, size: int) -> None:
    """Refuse what is no objective of `size` pairs."""
    _one_per_pair(objective.losses, size, "it returns", "leave the mean to the harness")
    if not isinstance(objective.ratios, tuple) or not all(isinstance(ratio, Ratio) for ratio in objective.ratios):
        raise PluginRefused("the ratios of its Objective are no tuple of Ratio; write (Ratio(numerator, denominator),)")
    for ratio in objective.ratios:
        if not isinstance(ratio.weight, int | float):
            raise PluginRefused(f"a ratio's weight is a {type(ratio.weight).__name__}; write a number")
        for name in ("numerator", "denominator"):
            _one_per_pair(getattr(ratio, name), size, f"a ratio's {name} is", "leave the sums to the harness")


def _one_per_pair(value: object, size: int, what: str, remedy: str) -> None:
    if not isinstance(value, Tensor):
        raise PluginRefused(
            f"{what} a {type(value).__name__}; return a tensor with one value per pair, or an Objective"
        )
    if value.shape != (size,):
        has = "shape" if what.endswith("returns") else "of shape"
        raise PluginRefused(
            f"{what} {has} {list(value.shape)} for {size} pairs; return one value per pair, shape [B], and {remedy}"
        )


def _undeclared(error: Undeclared) -> str:
    if error.place:
        return f"it reads {error.name!r}, which it does not declare: add it to {error.place}"
    return f"it reads {error.name!r} of further completions, which have log-probabilities only"


def written(params: Settings) -> str:
    """Hyper-parameters as a user writes them."""
    return ", ".join(f"{name}={value!r}" for name, value in params.items())


def _with(params: Settings | None) -> str:
    return f"with {written(params)} " if params else ""
