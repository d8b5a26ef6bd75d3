"""Test classes to inherit: a subclass names a plugin or a file, and pytest runs each law as a separate test."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from dpobench.errors import UserError
from dpobench.evaluation.registry import EvaluatorRegistry, JudgeRegistry, evaluators, judges
from dpobench.losses.registry import LossRegistry, variants
from dpobench.plugins.plugin import Settings
from dpobench.testing.law import Law
from dpobench.testing.laws import LAW_NAMES, check

AnyRegistry = LossRegistry | EvaluatorRegistry | JudgeRegistry


class _Metafunc(Protocol):
    """The part of pytest's object that parametrises a test."""

    fixturenames: Sequence[str]

    def parametrize(self, argnames: str, argvalues: Sequence[object], *, ids: Sequence[str]) -> None: ...


# What became of each law, by test class and plugin: tried once for all tests of a class.
_TRIED: dict[tuple[type["LawTests"], str], dict[str, Law]] = {}


class LawTests:
    """Every law of the plugins of a file, or of one registered plugin, as a test.

    Attributes:
        file: the file that registers the plugins; None for a plugin that is registered already.
        name: of the plugin; empty for all plugins of the file.
        settings: hyper-parameters that differ from the defaults, as for `check`.
    """

    registry: ClassVar[AnyRegistry]
    file: ClassVar[Path | str | None] = None
    name: ClassVar[str] = ""
    settings: ClassVar[Settings] = {}

    @classmethod
    def names(cls) -> list[str]:
        """Names of the plugins that are tried.

        Raises:
            UserError: neither a file nor a name is given, or the file registers nothing of this kind.
        """
        of_file = [] if cls.file is None else cls.registry.add_file(Path(cls.file))
        if not of_file and not cls.name:
            raise UserError(f"{cls.__name__}: say what to test: file = Path(__file__).with_name('mine.py')")
        return [cls.name] if cls.name else of_file

    def pytest_generate_tests(self, metafunc: _Metafunc) -> None:
        """One test for each plugin and law."""
        if "plugin_and_law" in metafunc.fixturenames:
            cases = [(name, law) for name in self.names() for law in LAW_NAMES[self.registry.kind]]
            metafunc.parametrize("plugin_and_law", cases, ids=[f"{name}-{law}" for name, law in cases])

    def test_law(self, plugin_and_law: tuple[str, str]) -> None:
        """The plugin keeps the law; skipped where its declaration takes the law out."""
        import pytest

        name, law = plugin_and_law
        key = (type(self), name)
        if key not in _TRIED:
            self.names()
            _TRIED[key] = {tried.name: tried for tried in check(self.registry.get(name), self.settings)}
        laws = _TRIED[key]
        tried = laws.get(law)
        assert tried is not None, f"{name}: not tried, for the declaration is broken: {laws['declaration'].reason}"
        if not tried.tried:
            pytest.skip(f"{name}: law {law!r} is not tried: {tried.reason}")
        assert tried.passed, f"{name} breaks the law {law!r}: {tried.reason}"


class LossTests(LawTests):
    """The laws of losses.

    Example:
        A whole test file:

        from pathlib import Path
        from dpobench.testing import LossTests

        class TestMine(LossTests):
            file = Path(__file__).with_name("mine.py")
    """

    registry = variants


class EvaluatorTests(LawTests):
    """The laws of evaluators; used like `LossTests`."""

    registry = evaluators


class JudgeTests(LawTests):
    """The laws of judges; used like `LossTests`. A judge that needs settings is given them as `settings`."""

    registry = judges
