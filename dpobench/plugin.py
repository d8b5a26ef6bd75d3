"""A registered function, what its decorator declared, and its hyper-parameters."""

import ast
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

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
        """Hash of the file's syntax tree: comments and layout do not change it, code does."""
        tree = ast.parse(self.file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                value = body[0].value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    value.value = ""
        return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]

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
        """Loss of each pair, shape [B]."""
        return self.variant.function(pairs, **self.params)

    @property
    def start(self) -> float | None:
        """Declared loss per pair where the policy equals the reference; None where nothing is declared."""
        declared = self.variant.declared["start"]
        if not callable(declared):
            return None if declared is None else float(declared)
        wanted = inspect.signature(declared).parameters
        return float(declared(**{name: self.params[name] for name in wanted}))
