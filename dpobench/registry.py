"""Where losses, evaluators and judges are found: one file each, named by the function it decorates.

Files are first *read* (their syntax tree, not their code), so that listing names or guessing at a typing mistake imports
neither torch nor a stranger's code; a file is imported when its plugin is asked for.
"""

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from dpobench.errors import PluginRefused, UnknownName, UserError
from dpobench.mixture import is_mixture, mixture
from dpobench.plugin import UNITS, Bound, Gradient, Interval, Parameter, Plugin, Unit, Variant

__all__ = [
    "NAME",
    "UNITS",
    "Bound",
    "Gradient",
    "Interval",
    "Parameter",
    "Plugin",
    "Registry",
    "Unit",
    "Variant",
    "evaluator",
    "evaluators",
    "judge",
    "judges",
    "loss",
    "variants",
]

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_Function = TypeVar("_Function", bound=Callable[..., Any])


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
    running: tuple[Callable[[], Mapping[str, float]], Callable[..., Mapping[str, Any]]] | None = None,
    start: float | Callable[..., float] | None = None,
    grids: Mapping[str, Sequence[float]] | None = None,
    bounds: Mapping[str, str] | None = None,
    baseline: bool = False,
) -> Callable[[_Function], _Function]:
    """Register a preference loss under the name of the decorated function.

    The function maps `Pairs` and keyword-only hyper-parameters to one loss per pair, or to an `Objective`. What is declared
    here is verified by `dpobench.testing`, not trusted.

    Args:
        source: paper and equation, or "as implemented by ...".
        beta_grid: the loss's own grid over its strength, in its own unit.
        strength: name of the hyper-parameter that sets the strength.
        unit: what one unit of the strength means; see `UNITS`.
        gradient: "monotone" never pushes the chosen down or the rejected up; "target" reverses past a finite margin;
            "free" promises neither.
        reference: whether the value depends on the reference.
        couples_batch: whether the loss of a pair depends on the other pairs.
        stops_gradient: whether the method holds a part of its formula constant, so that the gradient is not the value's slope.
        states_probability: whether sigmoid(beta x margin) is the loss's probability of the label; reports then calibrate it.
        needs: what is computed for this loss beyond log-probabilities; the names of `dpobench.needs`.
        columns: numeric columns of the data set that the loss reads, with the interval of their values.
        running: statistics that outlive a step, as `(init, update)`: `init()` gives each its first value, and
            `update(pairs, statistics, **hyper-parameters it names)` its next, from the global batch and before the loss.
        start: loss per pair at policy = reference, a number or a function of hyper-parameters.
        grids: grids of further hyper-parameters.
        bounds: intervals of hyper-parameters; the strength is in "(0, inf)" unless said otherwise.
        baseline: whether the loss learns from the chosen answers alone. It is then trained beside every comparison, at its defaults,
            to show what comparing answers adds.
    """
    declared: dict[str, Any] = {"source": source, "strength": strength, "unit": unit, "gradient": gradient}
    declared |= {"reference": reference, "couples_batch": couples_batch, "stops_gradient": stops_gradient}
    declared |= {
        "states_probability": states_probability,
        "baseline": baseline,
        "beta_grid": tuple(beta_grid),
        "needs": tuple(needs),
        "columns": dict(columns or {}),
        "running": running,
        "start": start,
        "grids": {strength: tuple(beta_grid), **(grids or {})},
        "bounds": {strength: "(0, inf)", **(bounds or {})},
    }
    return _declare("variant", declared)


def evaluator(
    *,
    metrics: Mapping[str, Any],
    needs: Sequence[str] = (),
    reference_only: bool = False,
    within: bool = False,
) -> Callable[[_Function], _Function]:
    """Register an evaluator: `(checkpoint, held_out, **settings)` to a table of scores, one row per prompt and draw.

    Args:
        metrics: name of each metric to its `Metric` (unit, direction, role); "*" stands for names known only at run time.
        needs: what must be there: "judge", "pairs", "pool", "tasks", "objectives"; "unaltered" for answers that follow the policy's
            own distribution, drawn where those to be compared do not. An evaluator whose needs are not met is left out, and the
            report says so.
        reference_only: whether it scores the reference alone: what it says is true of the inputs or of the judge.
        within: whether it scores checkpoints within a training, too; of these there are many.
    """
    declared = {"metrics": dict(metrics), "needs": tuple(needs), "reference_only": reference_only, "within": within}
    return _declare("evaluator", declared)


def judge(
    *,
    pointwise: bool,
    needs: Sequence[str] = (),
    check: Callable[..., None] | None = None,
    estimate: Callable[..., object] | None = None,
    idle: Sequence[str] = (),
) -> Callable[[_Function], _Function]:
    """Register a judge.

    A pointwise judge maps `(prompts, completions, **settings)` to a table with a row per answer: `score`, NaN for no verdict,
    and further numbers it consists of. Any other maps `(prompts, first, second, **settings)` to a table with a row per
    comparison as shown in that order: `p_first`, the probability in [0, 1] that the first is better, NaN for no verdict;
    `verdict`, one of first, second, tie, unparsable, error; `raw`, the reply; `tokens`; `latency` in seconds; `cost`.
    It is asked in both orders, and once more where a verdict is missing; replies are its own to keep, see `dpobench.replies`.

    Args:
        pointwise: true if the function maps prompts and completions to scores, false if it compares two completions.
        needs: what must be there, as for an evaluator.
        check: `(**settings)`, called once before anything is computed; raises `UserError` where the judge cannot be asked.
        estimate: `(comparisons, prompt_tokens, answer_tokens, **settings)` to what so many comparisons would cost, in a line.
        idle: settings that decide no verdict, such as a budget; of a table of settings one by "table.name". Another value of theirs
            scores nothing anew.
    """
    declared = {
        "pointwise": pointwise,
        "needs": tuple(needs),
        "check": check,
        "estimate": estimate,
        "idle": tuple(idle),
    }
    return _declare("judge", declared)


def _declare(kind: str, declared: Mapping[str, Any]) -> Callable[[_Function], _Function]:
    def mark(function: _Function) -> _Function:
        function.__dpobench__ = (kind, declared)  # type: ignore[attr-defined]
        return function

    return mark


_DECORATORS = {"variant": "loss", "evaluator": "evaluator", "judge": "judge"}


def _decorated(file: Path, decorator: str) -> Sequence[str]:
    """Names of the functions of a file that wear the decorator; read from the syntax tree, once a version of the file."""
    changed = file.stat()
    return _read(file, decorator, changed.st_mtime_ns, changed.st_size)


@lru_cache(maxsize=1024)
def _read(file: Path, decorator: str, changed: int, size: int) -> Sequence[str]:
    found = []
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                target = mark.func if isinstance(mark, ast.Call) else mark
                if getattr(target, "id", getattr(target, "attr", None)) == decorator:
                    found.append(node.name)
    return tuple(found)


@dataclass
class Registry:
    """All plugins of one kind: the folder's files, installed entry points, and files named by the user.

    Args:
        kind: "variant", "evaluator" or "judge".
        package: dotted name of the folder, as importable.
        required: whether an empty folder is an error.
    """

    kind: str
    package: str
    required: bool = True
    extra_files: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    _loaded: dict[str, Plugin] = field(default_factory=dict)

    @cached_property
    def folder(self) -> Path:
        """Folder of the shipped plugins."""
        package, _, rest = self.package.partition(".")
        for root in importlib.import_module(package).__path__:
            if (found := Path(root, *rest.split("."))).is_dir():
                return found
        raise UserError(
            f"the folder {self.package.replace('.', '/')} is missing from this installation; reinstall dpobench"
        )

    def sources(self) -> dict[str, Path | importlib.metadata.EntryPoint]:
        """Where each name comes from.

        Raises:
            PluginRefused: two sources claim one name, a name is not allowed, or the shipped folder is empty.
        """
        found: dict[str, Path | importlib.metadata.EntryPoint] = {}
        for file in [*sorted(self.folder.glob("*.py")), *self.extra_files]:
            try:
                names = list(_decorated(file, _DECORATORS[self.kind]))
            except (SyntaxError, UnicodeDecodeError) as error:
                self.broken[file] = f"cannot be read: {error}"
                continue
            for name in names:
                self._claim(found, name, file)
        if not found and self.required:
            raise PluginRefused(
                f"no {self.kind} found in {self.folder}; is another package called {self.package!r} in the way?"
            )
        for point in importlib.metadata.entry_points(group=f"dpobench.{self.kind}s"):
            self._claim(found, point.name, point)
        return found

    def _claim(self, found: dict[str, Any], name: str, source: Any) -> None:
        if not NAME.fullmatch(name):
            raise PluginRefused(f"{source}: {name!r} is no {self.kind} name; use lower case, digits and underscores")
        # An entry point cannot be compared with a path.
        if name in found and (type(found[name]) is not type(source) or found[name] != source):
            raise PluginRefused(f"{self.kind} {name!r} is defined twice: in {found[name]} and in {source}")
        found[name] = source

    def names(self) -> list[str]:
        """All names, sorted; nothing is imported."""
        return sorted(self.sources())

    def holds(self, file: Path) -> bool:
        """Whether a user's file registers something of this kind.

        Raises:
            UserError: no such file, or it is no Python.
        """
        if not file.is_file():
            raise UserError(f"plugin {file}: no such file")
        try:
            return any(_decorated(file, _DECORATORS[self.kind]))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise PluginRefused(f"plugin {file.name} cannot be read: {error}") from error

    def add_file(self, file: Path) -> list[str]:
        """Add a user's file.

        Returns: the names it registers.

        Raises:
            UserError: no such file, it cannot be read, or it registers nothing of this kind.
        """
        file = file.resolve()
        if not file.is_file():
            raise UserError(f"plugin {file}: no such file")
        try:
            names = list(_decorated(file, _DECORATORS[self.kind]))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise PluginRefused(f"plugin {file.name} cannot be read: {error}") from error
        if not names:
            raise PluginRefused(f"plugin {file.name} has no function decorated with @{_DECORATORS[self.kind]}(...)")
        if file in self.extra_files:
            return names
        self.extra_files.append(file)
        try:
            self.sources()
        except PluginRefused:
            self.extra_files.remove(file)
            raise
        return names

    def get(self, name: str) -> Any:
        """Load a plugin; of losses, also a mixture such as `dpo:0.8+sft:0.2`.

        Raises:
            UnknownName: nobody registered the name.
            PluginRefused: its file does not import, or does not define it.
        """
        if name in self._loaded:
            return self._loaded[name]
        if self.kind == "variant" and is_mixture(name):
            self._loaded[name] = mixture(name, self.get)
            return self._loaded[name]
        self.require(name)
        self._loaded[name] = self._load(name, self.sources()[name])
        return self._loaded[name]

    def require(self, name: str) -> None:
        """Refuse a name that nobody registered; nothing is imported. A mixture's is not looked into.

        Raises:
            UnknownName: there is none.
        """
        sources = self.sources()
        if name not in sources and not (self.kind == "variant" and is_mixture(name)):
            broken = "".join(f" ({file.name} {why})" for file, why in self.broken.items())
            raise UnknownName(self.kind, name, sources, broken)

    def _load(self, name: str, source: Path | importlib.metadata.EntryPoint) -> Plugin:
        try:
            function = source.load() if not isinstance(source, Path) else getattr(self._module(source), name)
        except Exception as error:
            if word := re.search(r"loss\(\) got an unexpected keyword argument '(\w+)'", str(error)):
                raise UnknownName("declaration", word[1], inspect.signature(loss).parameters) from error
            raise PluginRefused(
                f"{self.kind} {name!r} ({source}) does not import: {type(error).__name__}: {error}"
            ) from error
        kind, declared = getattr(function, "__dpobench__", (None, {}))
        if kind != self.kind or function.__name__ != name:
            raise PluginRefused(f"{source}: {name!r} is not a function decorated with @{_DECORATORS[self.kind]}(...)")
        file = source if isinstance(source, Path) else Path(inspect.getfile(function))
        cls = Variant if self.kind == "variant" else Plugin
        plugin = cls(self.kind, name, function, MappingProxyType(dict(declared)), file)
        wanted = _POSITIONAL[self.kind] + (plugin.declared.get("pointwise") is False)
        if len(_positional(function)) != wanted:
            raise PluginRefused(
                f"{self.kind} {name!r} ({file.name}) takes {_positional(function)} by position, {wanted} expected; "
                "put '*,' before its hyper-parameters"
            )
        idle = (setting.partition(".")[0] for setting in plugin.declared.get("idle", ()))
        for declared_name in [*plugin.declared.get("bounds", ()), *plugin.declared.get("grids", ()), *idle]:
            if declared_name not in plugin.parameters:
                raise PluginRefused(
                    f"{self.kind} {name!r} ({file.name}) declares {declared_name!r}, which its function does not take; "
                    'write strength="NAME" where the strength has another name'
                )
        return plugin

    def _module(self, file: Path) -> ModuleType:
        if file.parent == self.folder:
            return importlib.import_module(f"{self.package}.{file.stem}")
        module_name = f"dpobench_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        if module_name not in sys.modules:
            spec = importlib.util.spec_from_file_location(module_name, file)
            if spec is None or spec.loader is None:
                raise PluginRefused(f"{file} is no Python file")
            module = importlib.util.module_from_spec(spec)
            sys.modules[module_name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[module_name]
                raise
        return sys.modules[module_name]


_POSITIONAL = {"variant": 1, "evaluator": 2, "judge": 2}


def _positional(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]


variants = Registry("variant", "dpobench.variants")
evaluators = Registry("evaluator", "dpobench.evals")
judges = Registry("judge", "dpobench.evals.judges")
