"""A registered loss, and a loss with its hyper-parameters fixed."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from dpobench.plugins.plugin import Interval, Plugin, keywords

Unit = Literal["nat", "nat per token", "target nat", "target nat per token", "weight"]
Gradient = Literal["monotone", "target", "free"]

UNITS: Mapping[str, str] = MappingProxyType(
    {
        "nat": "per nat of summed log-ratio",
        "nat per token": "per nat of mean log-ratio per token",
        "target nat": "sets a target margin in summed nats",
        "target nat per token": "sets a target margin in nats per token",
        "weight": "weight beside another term",
    }
)


@dataclass(frozen=True)
class Variant(Plugin):
    """A registered preference loss."""

    @property
    def strength(self) -> str:
        """Name of the parameter that `--beta-grid` sets."""
        return str(self.declared["strength"])

    @property
    def beta_grid(self) -> tuple[float, ...]:
        """The loss's own grid over its strength."""
        return tuple(self.declared["beta_grid"])

    @property
    def unit(self) -> str:
        """Unit of the strength, a key of `UNITS`."""
        return str(self.declared["unit"])

    @property
    def couples_batch(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of the batch."""
        return bool(self.declared["couples_batch"])

    @property
    def needs(self) -> tuple[str, ...]:
        """What is computed for this loss beyond log-probabilities; names of `dpobench.losses.quantities`."""
        return tuple(self.declared["needs"])

    @property
    def columns(self) -> Mapping[str, Interval]:
        """Numeric columns of the data set that the loss reads, and the values they may take."""
        return {name: Interval(text) for name, text in self.declared["columns"].items()}

    @property
    def keeps_statistics(self) -> bool:
        """Whether statistics outlive a step."""
        return self.declared["running"] is not None

    @property
    def sees_whole_batch(self) -> bool:
        """Whether the loss is taken on the global batch at once: pairs are coupled, or statistics run."""
        return self.couples_batch or self.keeps_statistics

    def objective(self, pairs: Any, params: Mapping[str, Any]) -> Any:
        """What the loss makes of pairs that may be a part of the batch: an `Objective`."""
        from dpobench.losses.pairs import Objective

        found = self.function(pairs, **params)
        return found if isinstance(found, Objective) else Objective(found)

    def initial(self) -> dict[str, float]:
        """First values of the running statistics; empty where none are declared."""
        running = self.declared["running"]
        return {} if running is None else {name: float(value) for name, value in running[0]().items()}

    def update(self, pairs: Any, statistics: Mapping[str, float], params: Mapping[str, Any]) -> dict[str, float]:
        """Next values of the running statistics, from the global batch."""
        if (running := self.declared["running"]) is None:
            return {}
        named = {name: params[name] for name in keywords(running[1])}
        return {name: float(value) for name, value in running[1](pairs.detached(), statistics, **named).items()}

    def start(self, params: Mapping[str, Any]) -> float | None:
        """Declared loss per pair where the policy equals the reference; None where nothing is declared."""
        declared = self.declared["start"]
        if not callable(declared):
            return None if declared is None else float(declared)
        return float(declared(**{name: params[name] for name in inspect.signature(declared).parameters}))

    def given_to_needs(self) -> dict[str, str]:
        """Hyper-parameters that a declared need is computed with, each with the need."""
        from dpobench.losses.quantities import NEEDS

        return {taken: need for need in self.needs if need in NEEDS for taken in keywords(NEEDS[need].compute)}

    def pick(self, name: str, params: Mapping[str, Any]) -> Any:
        """Value of the hyper-parameter that a need of this loss takes."""
        return params[name]

    def bind(self, **params: Any) -> "Bound":
        """Fix the hyper-parameters.

        Raises:
            UserError: an unknown name, a wrong type or a value out of bounds.
        """
        return Bound(self, MappingProxyType(self.arguments(params)))


@dataclass(frozen=True)
class Bound:
    """A preference loss with its hyper-parameters fixed: `Pairs` in, one loss per pair out."""

    variant: Variant
    params: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, pairs: Any) -> Any:
        """Loss of each pair where these are the whole batch, shape [B]; their mean is what is minimised."""
        return self.objective(pairs).each()

    def objective(self, pairs: Any) -> Any:
        """What the loss makes of pairs that may be a part of the batch: an `Objective`."""
        return self.variant.objective(pairs, self.params)

    def initial(self) -> dict[str, float]:
        """First values of the running statistics; empty where none are declared."""
        return self.variant.initial()

    def update(self, pairs: Any, statistics: Mapping[str, float]) -> dict[str, float]:
        """Next values of the running statistics, from the global batch; no gradient flows through them.

        Args:
            pairs: the global batch.
            statistics: their values so far.
        """
        return self.variant.update(pairs, statistics, self.params)

    def named(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The hyper-parameters that a function takes as keyword-only arguments."""
        return {name: self.variant.pick(name, self.params) for name in keywords(function)}

    @property
    def start(self) -> float | None:
        """Declared loss per pair where the policy equals the reference; None where nothing is declared."""
        return self.variant.start(self.params)
