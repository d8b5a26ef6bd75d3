"""A registered function, what its decorator declared, and its hyper-parameters."""

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar

from dpobench.artifacts.code_hash import code_hash
from dpobench.errors import PluginRefused, UnknownName, UserError

# The value of a hyper-parameter, of whatever type its default has: the border to functions that users write.
Setting: TypeAlias = Any
# Hyper-parameters of a plugin, by name.
Settings: TypeAlias = Mapping[str, Setting]


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
    default: Setting
    bounds: Interval | None = None
    grid: tuple[float, ...] = ()

    def accept(self, value: Setting, plugin: str) -> Setting:
        """Return the value with the type of the default.

        Args:
            value: what a user gave.
            plugin: name of the plugin, for the message.

        Raises:
            UserError: the value has another type or lies out of bounds.
        """
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is not type(None) and type(value) is not kind:
            raise UserError(f"{plugin}.{self.name} = {value!r}: a {kind.__name__} is expected, as in {self.default!r}")
        if self.bounds is not None and value not in self.bounds:
            raise UserError(f"{plugin}.{self.name} = {value!r}: outside {self.bounds.text}")
        return value


@dataclass(frozen=True, kw_only=True)
class Spec(ABC):
    """What a decorator declares about a plugin, whatever its kind.

    Args:
        bounds: interval of each bounded hyper-parameter.
        grids: values to try of each hyper-parameter that has a grid.
        idle: settings that do not change any result, such as a budget; an entry of a table is named "table.entry".
    """

    bounds: Mapping[str, Interval] = field(default_factory=dict)
    grids: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()

    @property
    @abstractmethod
    def positional(self) -> int:
        """How many arguments the function takes by position."""


SpecT = TypeVar("SpecT", bound=Spec, covariant=True)


@dataclass(frozen=True)
class Plugin(Generic[SpecT]):
    """A registered function together with what its decorator declared.

    Args:
        kind: "variant", "evaluator" or "judge".
        name: as registered, the name of the function.
        function: the decorated function.
        spec: what was declared.
        file: where the function is defined.
    """

    kind: str
    name: str
    function: Callable[..., Any]
    spec: SpecT
    file: Path

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Keyword-only arguments of the function, by name."""
        parameters = {}
        for name, argument in inspect.signature(self.function).parameters.items():
            if argument.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            if argument.default is inspect.Parameter.empty:
                raise PluginRefused(f"{self.kind} {self.name!r} ({self.file.name}): parameter {name!r} has no default")
            bounds, grid = self.spec.bounds.get(name), self.spec.grids.get(name, ())
            parameters[name] = Parameter(name, argument.default, bounds, grid)
        return MappingProxyType(parameters)

    @cached_property
    def doc(self) -> str:
        """Docstring, without indentation."""
        return inspect.getdoc(self.function) or ""

    @cached_property
    def code_hash(self) -> str:
        """Hash of the file's syntax tree and of the local modules it imports: comments and layout do not change it, code does."""
        return code_hash(self.file)

    def deciding(self, settings: Settings) -> dict[str, Setting]:
        """The settings that change results: all but those declared idle."""
        deciding: dict[str, Setting] = {}
        for name, value in settings.items():
            idle_entries = {key.partition(".")[2] for key in self.spec.idle if key.startswith(f"{name}.")}
            if idle_entries:
                value = {key: entry for key, entry in (value or {}).items() if key not in idle_entries} or None
            if name not in self.spec.idle:
                deciding[name] = value
        return deciding

    def arguments(self, params: Settings) -> dict[str, Setting]:
        """Complete and check hyper-parameters.

        Returns: every keyword-only argument with its value, in the order of the signature.

        Raises:
            UserError: an unknown name, a wrong type or a value out of bounds.
        """
        for name in params:
            if name not in self.parameters:
                raise UnknownName(f"parameter of {self.name}", name, self.parameters)
        return {p.name: p.accept(params.get(p.name, p.default), self.name) for p in self.parameters.values()}


def keywords(function: Callable[..., Any] | None) -> list[str]:
    """Names of a function's keyword-only arguments; none of no function."""
    if function is None:
        return []
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
