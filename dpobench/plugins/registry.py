"""Where losses, evaluators and judges lie: one file each, named by the function it decorates.

Files are first *read* (their syntax tree, not their code), so that listing names or guessing at a typing mistake imports
neither torch nor a user's code; a file is imported when its plugin is loaded.
"""

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeAlias, TypeVar

from dpobench.errors import PluginRefused, UnknownName, UserError
from dpobench.plugins.plugin import Plugin, Spec

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
Function = TypeVar("Function", bound=Callable[..., Any])
SpecT = TypeVar("SpecT", bound=Spec)
PluginT = TypeVar("PluginT", bound=Plugin[Any])
# Where the function of a name is defined: a file, or an installed package.
Source: TypeAlias = Path | importlib.metadata.EntryPoint


def declare(spec: Spec) -> Callable[[Function], Function]:
    """A decorator that leaves a function as it is and notes on it what was declared."""

    def mark(function: Function) -> Function:
        function.__dpobench__ = spec  # type: ignore[attr-defined]
        return function

    return mark


def spec_of(function: Callable[..., Any], kind: type[SpecT]) -> SpecT:
    """What the decorator of a function declared.

    Args:
        function: a decorated function.
        kind: the class of the declaration.

    Raises:
        PluginRefused: the function is not decorated, or registers a plugin of another kind.
    """
    spec = getattr(function, "__dpobench__", None)
    if not isinstance(spec, kind):
        raise PluginRefused(f"{function!r} declares no {kind.__name__}")
    return spec


def _decorated(file: Path, decorator: str) -> Sequence[str]:
    """Names of the functions of a file that wear the decorator; read from the syntax tree, once a version of the file."""
    changed = file.stat()
    return _read(file, decorator, changed.st_mtime_ns, changed.st_size)


@lru_cache(maxsize=1024)
def _read(file: Path, decorator: str, changed: int, size: int) -> Sequence[str]:
    names = []
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                target = mark.func if isinstance(mark, ast.Call) else mark
                if getattr(target, "id", getattr(target, "attr", None)) == decorator:
                    names.append(node.name)
    return tuple(names)


@dataclass
class Registry(Generic[SpecT, PluginT]):
    """All plugins of one kind: the folder's files, installed entry points, and files named by the user.

    Args:
        kind: "variant", "evaluator" or "judge".
        package: dotted name of the folder, as importable.
        declaration: the decorator that its functions wear.
        spec_type: the class of what this decorator declares.
        plugin_type: the class that `get` returns.
        extra_files: files named by the user.
        broken: files of the folder that cannot be read, and why.
    """

    kind: str
    package: str
    declaration: Callable[..., Any]
    spec_type: type[SpecT]
    plugin_type: type[PluginT]
    extra_files: list[Path] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    _loaded: dict[str, PluginT] = field(default_factory=dict)

    @property
    def decorator(self) -> str:
        """Name of the decorator."""
        return self.declaration.__name__

    @cached_property
    def folder(self) -> Path:
        """Folder of the shipped plugins."""
        package, _, rest = self.package.partition(".")
        for root in importlib.import_module(package).__path__:
            if (folder := Path(root, *rest.split("."))).is_dir():
                return folder
        raise UserError(
            f"the folder {self.package.replace('.', '/')} is missing from this installation; reinstall dpobench"
        )

    def sources(self) -> dict[str, Source]:
        """Where each name comes from.

        Raises:
            PluginRefused: two sources claim one name, a name is not allowed, or the shipped folder is empty.
        """
        sources: dict[str, Source] = {}
        for file in [*sorted(self.folder.glob("*.py")), *self.extra_files]:
            try:
                names = list(_decorated(file, self.decorator))
            except (SyntaxError, UnicodeDecodeError) as error:
                self.broken[file] = f"cannot be read: {error}"
                continue
            for name in names:
                self._claim(sources, name, file)
        if not sources:
            raise PluginRefused(
                f"no {self.kind} found in {self.folder}; is another package called {self.package!r} in the way?"
            )
        for point in importlib.metadata.entry_points(group=f"dpobench.{self.kind}s"):
            self._claim(sources, point.name, point)
        return sources

    def _claim(self, sources: dict[str, Source], name: str, source: Source) -> None:
        if not NAME.fullmatch(name):
            raise PluginRefused(f"{source}: {name!r} is no {self.kind} name; use lower case, digits and underscores")
        # An entry point cannot be compared with a path.
        if name in sources and (type(sources[name]) is not type(source) or sources[name] != source):
            raise PluginRefused(f"{self.kind} {name!r} is defined twice: in {sources[name]} and in {source}")
        sources[name] = source

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
            return any(_decorated(file, self.decorator))
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
            names = list(_decorated(file, self.decorator))
        except (SyntaxError, UnicodeDecodeError) as error:
            raise PluginRefused(f"plugin {file.name} cannot be read: {error}") from error
        if not names:
            raise PluginRefused(f"plugin {file.name} has no function decorated with @{self.decorator}(...)")
        if file in self.extra_files:
            return names
        self.extra_files.append(file)
        try:
            self.sources()
        except PluginRefused:
            self.extra_files.remove(file)
            raise
        return names

    def get(self, name: str) -> PluginT:
        """Load a plugin.

        Raises:
            UnknownName: nobody registered the name.
            PluginRefused: its file does not import, or does not define it.
        """
        if name in self._loaded:
            return self._loaded[name]
        self.require(name)
        self._loaded[name] = self._load(name, self.sources()[name])
        return self._loaded[name]

    def require(self, name: str) -> None:
        """Refuse a name that nobody registered; nothing is imported.

        Raises:
            UnknownName: there is none.
        """
        sources = self.sources()
        if name not in sources:
            broken = "".join(f" ({file.name} {why})" for file, why in self.broken.items())
            raise UnknownName(self.kind, name, sources, broken)

    def _load(self, name: str, source: Source) -> PluginT:
        try:
            function = source.load() if not isinstance(source, Path) else getattr(self._module(source), name)
        except PluginRefused as error:
            raise PluginRefused(f"{self.kind} {name!r} ({source}): {error}") from error
        except Exception as error:
            if word := re.search(rf"{self.decorator}\(\) got an unexpected keyword argument '(\w+)'", str(error)):
                raise UnknownName("declaration", word[1], inspect.signature(self.declaration).parameters) from error
            raise PluginRefused(
                f"{self.kind} {name!r} ({source}) does not import: {type(error).__name__}: {error}"
            ) from error
        spec = getattr(function, "__dpobench__", None)
        if not isinstance(spec, self.spec_type) or function.__name__ != name:
            raise PluginRefused(f"{source}: {name!r} is not a function decorated with @{self.decorator}(...)")
        file = source if isinstance(source, Path) else Path(inspect.getfile(function))
        plugin = self.plugin_type(self.kind, name, function, spec, file)
        if len(_positional(function)) != spec.positional:
            raise PluginRefused(
                f"{self.kind} {name!r} ({file.name}) takes {_positional(function)} by position, {spec.positional} expected; "
                "put '*,' before its hyper-parameters"
            )
        for declared in (*spec.bounds, *spec.grids, *(setting.partition(".")[0] for setting in spec.idle)):
            if declared not in plugin.parameters:
                raise PluginRefused(
                    f"{self.kind} {name!r} ({file.name}) declares {declared!r}, which its function does not take; "
                    'write strength="NAME" where the strength has another name'
                )
        return plugin

    def _module(self, file: Path) -> ModuleType:
        if file.parent == self.folder:
            return importlib.import_module(f"{self.package}.{file.stem}")
        module_name = f"dpobench_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        return import_file(file, module_name)


def import_file(file: Path, module_name: str) -> ModuleType:
    """The module of a Python file, run once for each name; one that fails leaves nothing behind.

    Args:
        file: the file.
        module_name: under which it is kept in `sys.modules`.

    Raises:
        PluginRefused: it is no Python file.
    """
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


def _positional(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds]
