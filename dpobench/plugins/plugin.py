"""A registered function, what its decorator declared, and its hyper-parameters."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dpobench.artifacts.code_hash import code_hash
from dpobench.errors import PluginRefused, UnknownName, UserError


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
        return code_hash(self.file)

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


def keywords(function: Callable[..., Any] | None) -> list[str]:
    """Names of a function's keyword-only arguments; none of no function."""
    if function is None:
        return []
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
