"""Files of the user's with losses, evaluators or judges."""

from collections.abc import Sequence
from pathlib import Path

from dpobench.errors import PluginRefused
from dpobench.evaluation.registry import evaluators, judges
from dpobench.losses.registry import variants


def register(files: Sequence[str]) -> None:
    """Make the losses, evaluators and judges of files known; a file may hold any of them.

    Raises:
        UserError: no such file.
        PluginRefused: a file cannot be read, or holds none of the three.
    """
    for file in map(Path, files):
        holders = [registry for registry in (variants, evaluators, judges) if registry.holds(file)]
        if not holders:
            raise PluginRefused(
                f"plugin {file.name} holds no loss, evaluator or judge; decorate a function with @loss(...), @evaluator(...) or @judge(...)"
            )
        for registry in holders:
            registry.add_file(file)
