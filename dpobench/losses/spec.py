"""What the decorator of a loss declares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, SupportsFloat

from dpobench.errors import PluginRefused
from dpobench.plugins.plugin import Interval, Settings, Spec, keywords

if TYPE_CHECKING:
    from dpobench.losses.pairs import Pairs

Unit = Literal["nat", "nat per token", "target nat", "target nat per token", "weight"]
Gradient = Literal["monotone", "target", "free"]

UNITS: Mapping[str, str] = MappingProxyType(
    {
        "nat": "per nat of summed log-ratio",
        "nat per token": "per nat of mean log-ratio per token",
        "target nat": "sets a target margin in summed nats",
        "target nat per token": "sets a target margin in nats per token",
        "weight": "weight relative to another term",
    }
)


@dataclass(frozen=True)
class RunningStatistics:
    """Statistics that a loss keeps from step to step.

    Args:
        first: gives each statistic its first value.
        next: `(pairs, statistics, **hyper-parameters it names)` to the next values, from the global batch.
    """

    first: Callable[[], Mapping[str, float]]
    next: Callable[..., Mapping[str, SupportsFloat]]

    @classmethod
    def of(cls, running: object) -> "RunningStatistics":
        """Statistics as the decorator takes them, `(init, update)`.

        Raises:
            PluginRefused: that is no pair of functions.
        """
        if not (isinstance(running, tuple) and len(running) == 2 and all(map(callable, running))):
            raise PluginRefused("running is no pair of functions; write running=(init, update)")
        return cls(*running)

    def initial(self) -> dict[str, float]:
        """First values."""
        return {name: float(value) for name, value in self.first().items()}

    def update(self, pairs: "Pairs", statistics: Mapping[str, float], params: Settings) -> dict[str, float]:
        """Next values, from the global batch; no gradient flows through them.

        Args:
            pairs: the global batch.
            statistics: their values so far.
            params: hyper-parameters of the loss.
        """
        named = {name: params[name] for name in keywords(self.next)}
        return {name: float(value) for name, value in self.next(pairs.detached(), statistics, **named).items()}


@dataclass(frozen=True, kw_only=True)
class LossSpec(Spec):
    """What a loss declares; `dpobench.loss` explains each point, and `dpobench.testing` verifies it."""

    source: str
    beta_grid: tuple[float, ...]
    strength: str = "beta"
    unit: Unit = "nat"
    gradient: Gradient = "monotone"
    reference: bool = True
    couples_batch: bool = False
    stops_gradient: bool = False
    states_probability: bool = False
    baseline: bool = False
    needs: tuple[str, ...] = ()
    columns: Mapping[str, Interval] = field(default_factory=dict)
    running: RunningStatistics | None = None
    start: float | Callable[..., float] | None = None

    @property
    def positional(self) -> int:
        """The pairs."""
        return 1
