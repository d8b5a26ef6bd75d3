"""The verdict on a user's file: which laws its plugins keep, and whether the harness would work with them."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dpobench.evaluation.registry import EvaluatorRegistry, JudgeRegistry
from dpobench.losses.registry import LossRegistry
from dpobench.plugins.plugin import Settings

if TYPE_CHECKING:
    from dpobench.testing import Law

AnyRegistry: TypeAlias = LossRegistry | EvaluatorRegistry | JudgeRegistry
# What the harness does with a plugin of each kind, and the option that chooses it, where there is one.
_DOES = {"variant": ("trains", "train"), "evaluator": ("scores", "score"), "judge": ("judges", "judge")}
_OPTIONS = {"variant": " --variants {}", "evaluator": "", "judge": " --judge {}"}


def verdict(file: Path, registry: AnyRegistry, settings: Settings | None = None) -> tuple[list[str], bool]:
    """Try the laws on every plugin of a file.

    Args:
        file: the user's file.
        registry: the plugins of the kind that it registers.
        settings: of an evaluator or judge, those that differ from the defaults.

    Returns: lines to show, the last of which says whether the harness would work with it, and whether it would.

    Raises:
        UserError: there is no such file, or it registers nothing of this kind; an unknown setting.
    """
    from dpobench.testing import check

    does, would = _DOES[registry.kind]
    lines: list[str] = []
    faulty: dict[str, str] = {}
    names = registry.add_file(file)
    for name in names:
        laws = check(registry.get(name), settings)
        lines += [f"{name}: {_count(laws)}", *shown(laws)]
        if causes := _causes(laws):
            faulty[name] = ", ".join(law.name for law in laws if law.name in causes.values())
        if not laws[0].passed:
            lines.append("  the other laws are tried once the declaration is sound")
    sound = [name for name in names if name not in faulty]
    if sound:
        option = _OPTIONS[registry.kind].format(",".join(sound) if registry.kind == "variant" else sound[0])
        lines.append(f"accepted: dpobench {does} with it: dpobench run --plugin {file}{option} ...")
    for name, why in faulty.items():
        lines.append(f"refused: dpobench does not {would} with {name} until this is mended: {why}")
    return lines, not faulty


def shown(laws: "Sequence[Law]") -> Iterator[str]:
    """A line a law; below a broken one why and what to do, unless a law before it is broken for the same reason."""
    causes = _causes(laws)
    for law in laws:
        first = causes.get(_reason(law), law.name)
        means = law.meaning[:1].lower() + law.meaning[1:] if first == law.name else f"for the same reason as {first}"
        state = "ok" if law.passed else "BROKEN"
        yield f"  {state if law.tried else '-':8}{law.name:15}{means if law.tried else f'not tried: {law.reason}'}".rstrip()
        if law.tried and first == law.name:
            yield from textwrap.wrap(law.reason, 118, initial_indent=" " * 10, subsequent_indent=" " * 10)


def _count(laws: "Sequence[Law]") -> str:
    tried = [law.passed for law in laws if law.tried]
    untried = f", {len(laws) - len(tried)} not tried" if len(tried) < len(laws) else ""
    return f"{sum(tried)} of {len(tried)} laws hold{untried}"


def _reason(law: "Law") -> str:
    """Why a law is broken, whatever the size of the batch that showed it."""
    return re.sub(r"\d+ pairs", "pairs", law.reason)


def _causes(laws: "Sequence[Law]") -> Mapping[str, str]:
    """Every reason with the first law that is broken for it."""
    return {_reason(law): law.name for law in reversed(laws) if not law.passed}
