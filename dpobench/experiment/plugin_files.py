"""Files of the user's with losses, evaluators or judges."""

from pathlib import Path

from dpobench.evaluation.registry import evaluators, judges
from dpobench.losses.registry import variants


def register(plugins: tuple[str, ...]) -> None:
    """Make the losses, evaluators and judges of user files known; a file may hold any of them."""
    for file in plugins:
        for registry in (variants, evaluators, judges):
            if registry.holds(Path(file)):
                registry.add_file(Path(file))
