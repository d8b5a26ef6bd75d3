"""Trying every law of a plugin, whatever its kind."""

from collections.abc import Iterator, Mapping, Sequence

from dpobench.errors import PluginRefused
from dpobench.evaluation.spec import Evaluator, Judge
from dpobench.losses.variant import Variant
from dpobench.plugins.plugin import Settings
from dpobench.testing import evaluator_laws, judge_laws, loss_laws
from dpobench.testing.law import Law

# Names of the laws of each kind, in the order tried.
LAW_NAMES: Mapping[str, Sequence[str]] = {
    "variant": ("declaration", *loss_laws.LAWS),
    "evaluator": ("declaration", *evaluator_laws.LAWS),
    "judge": ("declaration", *judge_laws.LAWS),
}


def check(plugin: Variant | Evaluator | Judge, settings: Settings | None = None) -> list[Law]:
    """Try every law of a loss, an evaluator or a judge.

    Args:
        plugin: from `variants.get`, `evaluators.get` or `judges.get`.
        settings: hyper-parameters that differ from the defaults.

    Returns: one entry a law, in the order tried. Where the declaration itself cannot be used, that law alone.

    Raises:
        UserError: `settings` holds an unknown name, a wrong type or a value out of bounds.
    """
    return list(_tried(plugin, settings or {}))


def require(plugin: Variant | Evaluator | Judge, settings: Settings | None = None) -> None:
    """Refuse a plugin that breaks a law; a loss is tried at its defaults, along its grids and at the given hyper-parameters.

    Raises:
        PluginRefused: with the first broken law, how it is broken and what to do.
        UserError: `settings` holds an unknown name, a wrong type or a value out of bounds.
    """
    plugin.arguments(settings or {})
    for law in _tried(plugin, settings or {}):
        if not law.passed:
            raise PluginRefused(
                f"{plugin.kind} {plugin.name!r} ({plugin.file.name}) breaks the law {law.name!r}: {law.reason}"
            )


def _tried(plugin: Variant | Evaluator | Judge, settings: Settings) -> Iterator[Law]:
    if isinstance(plugin, Variant):
        yield from loss_laws.tried(plugin, settings)
    elif isinstance(plugin, Evaluator):
        yield from evaluator_laws.tried(plugin, settings)
    else:
        yield from judge_laws.tried(plugin, settings)
