"""A registered function, what its decorator declared, and its hyper-parameters."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from dpobench import sources
from dpobench.errors import PluginRefused, UnknownName, UserError

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
class Interval:
    """The values a number may take, as in `(0, inf)` or `[0, 0.5)`."""

    text: str

    @cached_property
    def _parts(self) -> tuple[bool, float, float, bool]:
        match = re.fullmatch(r"([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])", self.text)
        if match is None:
            raise PluginRefused(f"{self.text!r} is no interval; write for example '(0, inf)' or '[0, 0.5)'")
        return match[1] == "[", float(match[2]), float(match[3]), match[4] == "]"

    def __contains__(self, value: float) -> bool:
        closed_low, low, high, closed_high = self._parts
        above = value >= low if closed_low else value > low
        below = value <= high if closed_high else value < high
        return math.isfinite(value) and above and below


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter of a plugin: a keyword-only argument of its function."""

    name: str
    default: Any
    bounds: Interval | None = None
    grid: tuple[float, ...] = ()

    def accept(self, value: Any, owner: str) -> Any:
        """Return the value with the type of the default.

        Raises:
            UserError: the value has another type or lies out of bounds.
        """
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is not type(None) and type(value) is not kind:
            raise UserError(f"{owner}.{self.name} = {value!r}: a {kind.__name__} is expected, as in {self.default!r}")
        if self.bounds is not None and value not in self.bounds:
            raise UserError(f"{owner}.{self.name} = {value!r}: outside {self.bounds.text}")
        return value


@dataclass(frozen=True)
class Plugin:
    """A registered function together with what its decorator declared."""

    kind: str
    name: str
    function: Callable[..., Any]
    declared: Mapping[str, Any]
    file: Path

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Keyword-only arguments of the function, by name."""
        bounds, grids = self.declared.get("bounds") or {}, self.declared.get("grids") or {}
        found = {}
        for name, argument in inspect.signature(self.function).parameters.items():
            if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            if argument.default is inspect.Parameter.empty:
                raise PluginRefused(f"{self.kind} {self.name!r} ({self.file.name}): parameter {name!r} has no default")
            interval = Interval(bounds[name]) if name in bounds else None
            found[name] = Parameter(name, argument.default, interval, tuple(grids.get(name, ())))
        return MappingProxyType(found)

    @cached_property
    def doc(self) -> str:
        """Docstring, without indentation."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def code_hash(self) -> str:
        """Hash of the file's syntax tree and of the local modules it imports: comments and layout do not change it, code does."""
        return sources.code_hash(self.file)

    def deciding(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings that decide what comes out: all but those declared idle."""
        idle = set(self.declared.get("idle") or ())
        found: dict[str, Any] = {}
        for name, value in settings.items():
            within = {key.partition(".")[2] for key in idle if key.startswith(f"{name}.")}
            if within:
                value = {key: one for key, one in (value or {}).items() if key not in within} or None
            if name not in idle:
                found[name] = value
        return found

    def arguments(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Complete and check hyper-parameters.

        Returns: every keyword-only argument with its value, in the order of the signature.

        Raises:
            UserError: an unknown name, a wrong type or a value out of bounds.
        """
        for name in params:
            if name not in self.parameters:
                raise UnknownName(f"parameter of {self.name}", name, self.parameters)
        return {p.name: p.accept(params.get(p.name, p.default), self.name) for p in self.parameters.values()}


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
        """What is computed for this loss beyond log-probabilities; names of `dpobench.needs`."""
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
        from dpobench.pairs import Objective

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
        from dpobench.needs import NEEDS

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


def keywords(function: Callable[..., Any] | None) -> list[str]:
    """Names of a function's keyword-only arguments; none of no function."""
    if function is None:
        return []
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
