"""A registered loss, and a loss with its hyper-parameters fixed."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dpobench.losses.spec import LossSpec, Unit
from dpobench.plugins.plugin import Interval, Plugin, Setting, Settings, keywords

if TYPE_CHECKING:
    from dpobench.losses.pairs import Objective, Pairs, PerPair


@dataclass(frozen=True)
class Variant(Plugin[LossSpec]):
    """A registered preference loss."""

    @property
    def strength(self) -> str:
        """Name of the parameter that `--beta-grid` sets."""
        return self.spec.strength

    @property
    def beta_grid(self) -> tuple[float, ...]:
        """The loss's declared grid over its strength."""
        return self.spec.beta_grid

    @property
    def unit(self) -> Unit:
        """Unit of the strength, a key of `UNITS`."""
        return self.spec.unit

    @property
    def couples_batch(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of the batch."""
        return self.spec.couples_batch

    @property
    def needs(self) -> tuple[str, ...]:
        """What is computed for this loss beyond log-probabilities; names of `dpobench.losses.quantities`."""
        return self.spec.needs

    @property
    def columns(self) -> Mapping[str, Interval]:
        """Numeric columns of the data set that the loss reads, and the values they may take."""
        return self.spec.columns

    @property
    def keeps_statistics(self) -> bool:
        """Whether statistics outlive a step."""
        return self.spec.running is not None

    @property
    def sees_whole_batch(self) -> bool:
        """Whether the loss is taken on the global batch at once: pairs are coupled, or statistics run."""
        return self.couples_batch or self.keeps_statistics

    def objective(self, pairs: "Pairs", params: Settings) -> "Objective":
        """The loss of pairs that may be a part of the batch."""
        from dpobench.losses.pairs import Objective

        value = self.function(pairs, **params)
        return value if isinstance(value, Objective) else Objective(value)

    def initial(self) -> dict[str, float]:
        """First values of the running statistics; empty where none are declared."""
        return {} if self.spec.running is None else self.spec.running.initial()

    def update(self, pairs: "Pairs", statistics: Mapping[str, float], params: Settings) -> dict[str, float]:
        """Next values of the running statistics, from the global batch."""
        return {} if self.spec.running is None else self.spec.running.update(pairs, statistics, params)

    def start(self, params: Settings) -> float | None:
        """Declared loss per pair where the policy equals the reference; None where nothing is declared."""
        start = self.spec.start
        if not callable(start):
            return None if start is None else float(start)
        return float(start(**{name: params[name] for name in inspect.signature(start).parameters}))

    def given_to_needs(self) -> dict[str, str]:
        """Hyper-parameters that a declared need is computed with, each with the need."""
        from dpobench.losses.quantities import NEEDS

        return {taken: need for need in self.needs if need in NEEDS for taken in keywords(NEEDS[need].compute)}

    def pick(self, name: str, params: Settings) -> Setting:
        """Value of the hyper-parameter that a need of this loss takes."""
        return params[name]

    def bind(self, **params: Setting) -> "Bound":
        """Fix the hyper-parameters.

        Raises:
            UserError: an unknown name, a wrong type or a value out of bounds.
        """
        return Bound(self, MappingProxyType(self.arguments(params)))


@dataclass(frozen=True)
class Bound:
    """A preference loss with its hyper-parameters fixed: `Pairs` in, one loss per pair out."""

    variant: Variant
    params: Settings = field(default_factory=dict)

    def __call__(self, pairs: "Pairs") -> "PerPair":
        """Loss of each pair where these are the whole batch, shape [B]; their mean is what is minimised."""
        return self.objective(pairs).each()

    def objective(self, pairs: "Pairs") -> "Objective":
        """The loss of pairs that may be a part of the batch."""
        return self.variant.objective(pairs, self.params)

    def initial(self) -> dict[str, float]:
        """First values of the running statistics; empty where none are declared."""
        return self.variant.initial()

    def update(self, pairs: "Pairs", statistics: Mapping[str, float]) -> dict[str, float]:
        """Next values of the running statistics, from the global batch; no gradient flows through them.

        Args:
            pairs: the global batch.
            statistics: their values so far.
        """
        return self.variant.update(pairs, statistics, self.params)

    def named(self, function: Callable[..., Any]) -> dict[str, Setting]:
        """The hyper-parameters that a function takes as keyword-only arguments."""
        return {name: self.variant.pick(name, self.params) for name in keywords(function)}

    @property
    def start(self) -> float | None:
        """Declared loss per pair where the policy equals the reference; None where nothing is declared."""
        return self.variant.start(self.params)
