"""The losses: how they are declared, and where they lie."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat

from dpobench.losses.mixture import is_mixture, mixture
from dpobench.losses.spec import Gradient, LossSpec, RunningStatistics, Unit
from dpobench.losses.variant import Variant
from dpobench.plugins.plugin import Interval
from dpobench.plugins.registry import Function, Registry, declare


def loss(  # noqa: PLR0913 - a declaration lists all there is to declare
    *,
    source: str,
    beta_grid: Sequence[float],
    strength: str = "beta",
    unit: Unit = "nat",
    gradient: Gradient = "monotone",
    reference: bool = True,
    couples_batch: bool = False,
    stops_gradient: bool = False,
    states_probability: bool = False,
    needs: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    running: tuple[Callable[[], Mapping[str, float]], Callable[..., Mapping[str, SupportsFloat]]] | None = None,
    start: float | Callable[..., float] | None = None,
    grids: Mapping[str, Sequence[float]] | None = None,
    bounds: Mapping[str, str] | None = None,
    baseline: bool = False,
) -> Callable[[Function], Function]:
    """Register a preference loss under the name of the decorated function.

    The function maps `Pairs` and keyword-only hyper-parameters to one loss per pair, or to an `Objective`. What is declared
    here is verified by `dpobench.testing`, not trusted.

    Args:
        source: paper and equation, or "as implemented by ...".
        beta_grid: values of the strength to try by default, in the unit of this loss.
        strength: name of the hyper-parameter that sets the strength.
        unit: what one unit of the strength means; see `UNITS`.
        gradient: "monotone" never pushes the chosen down or the rejected up; "target" reverses past a finite margin;
            "free" promises neither.
        reference: whether the value depends on the reference.
        couples_batch: whether the loss of a pair depends on the other pairs.
        stops_gradient: whether the method holds a part of its formula constant, so that the gradient is not the value's slope.
        states_probability: whether sigmoid(beta x margin) is the loss's probability of the label; reports then calibrate it.
        needs: what is computed for this loss beyond log-probabilities; the names of `dpobench.losses.quantities`.
        columns: numeric columns of the data set that the loss reads, with the interval of their values.
        running: `(init, update)` of statistics that outlive a step: `init()` gives first values, `update(pairs, statistics,
            **hyper-parameters it names)` the next ones, from the global batch and before the loss.
        start: loss per pair at policy = reference, a number or a function of hyper-parameters.
        grids: grids of further hyper-parameters.
        bounds: intervals of hyper-parameters; the strength is in "(0, inf)" if it is not named.
        baseline: whether the loss learns from the chosen answers alone; it is then trained, at its defaults, in every experiment.

    Example:
        >>> from dpobench.testing import example_pairs
        >>> @loss(source="our paper, eq. 1", beta_grid=(0.1, 0.5), gradient="target")
        ... def squared(pairs, *, beta: float = 0.1):
        ...     '''Squared distance of the margin from its target.'''
        ...     return (beta * pairs.margin - 1) ** 2
        >>> squared(example_pairs([5.0], [1.0]), beta=0.5)  # (0.5 x 4 - 1)^2
        tensor([1.])
    """
    spec = LossSpec(
        source=source,
        beta_grid=tuple(beta_grid),
        strength=strength,
        unit=unit,
        gradient=gradient,
        reference=reference,
        couples_batch=couples_batch,
        stops_gradient=stops_gradient,
        states_probability=states_probability,
        baseline=baseline,
        needs=tuple(needs),
        columns={name: Interval(text) for name, text in (columns or {}).items()},
        running=None if running is None else RunningStatistics.of(running),
        start=start,
        grids={name: tuple(grid) for name, grid in {strength: beta_grid, **(grids or {})}.items()},
        bounds={name: Interval(text) for name, text in {strength: "(0, inf)", **(bounds or {})}.items()},
    )
    return declare(spec)


@dataclass
class LossRegistry(Registry[LossSpec, Variant]):
    """The losses, and sums of them by name, such as `dpo:0.8+sft:0.2`."""

    kind: str = "variant"
    package: str = "dpobench.variants"
    declaration: Callable[..., Any] = loss
    spec_type: type[LossSpec] = LossSpec
    plugin_type: type[Variant] = Variant

    def get(self, name: str) -> Variant:
        """Load a loss, or a sum of them.

        Raises:
            UnknownName: nobody registered the name.
            PluginRefused: its file does not import, or does not define it.
        """
        if name not in self._loaded and is_mixture(name):
            self._loaded[name] = mixture(name, self.get)
        return super().get(name)

    def require(self, name: str) -> None:
        """Refuse a name that nobody registered; nothing is imported. A sum's is not looked into.

        Raises:
            UnknownName: there is none.
        """
        if not is_mixture(name):
            super().require(name)


variants = LossRegistry()
