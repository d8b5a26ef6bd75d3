"""The losses on show: a list, a portrait, a verdict on a stranger's file."""

import ast
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dpobench.errors import DpobenchError, UserError
from dpobench.losses.mixture import Mixture
from dpobench.losses.registry import variants
from dpobench.losses.spec import UNITS
from dpobench.losses.variant import Variant

# Short for the list; `UNITS` has them in full.
_SHORT_UNITS = MappingProxyType(
    {
        "nat": "1/nat",
        "nat per token": "1/(nat/token)",
        "target nat": "target, nat",
        "target nat per token": "target, nat/token",
        "weight": "weight",
    }
)
_CLASSES = MappingProxyType(
    {
        "monotone": "never pushes the chosen answer down or the rejected one up",
        "target": "pulls towards a finite margin and back from beyond it",
        "free": "promises nothing about the signs of the pull",
    }
)
# What each law says, in few words; `docs/adding-a-loss.md` tells how to mend what breaks it.
MEANINGS = MappingProxyType(
    {
        "declaration": "what is declared makes sense by itself",
        "columns": "every declared column can be read and matters",
        "statistics": "init and update are pure, finite, and matter",
        "shape": "one value per pair, of the dtype it is given",
        "untouched": "nothing it is given is changed in place",
        "denominators": "a ratio's denominators are positive and know no policy",
        "gradient": "the gradient reaches the policy, from the start",
        "finite": "finite up to ten thousand nats, in bfloat16, in any batch",
        "deterministic": "two calls agree; no random numbers are drawn",
        "needs": "everything in needs matters",
        "permutation": "the order of the pairs does not matter",
        "separability": "a pair alone has the loss it has in company, or coupling is declared",
        "padding": "masked positions do not matter",
        "derivative": "the gradient is the slope, or stopping it is declared",
        "reference": "the reference matters, or is declared not to",
        "direction": "the pull has the signs of its class",
        "start": "the declared value at policy = reference is the value there",
        "shift": "moving policy and reference alike changes nothing",
        "strength": "every hyper-parameter with a grid matters",
        "probability": "a stated probability is sigmoid(beta x margin)",
    }
)
_GROUPS = (
    "Log-probabilities of policy and reference",
    "Log-probabilities of the policy, no reference",
    "The global batch at once: one forward pass more a step, the same result for any micro-batch and number of GPUs",
    "More than log-probabilities: `dpobench variants show NAME` tells what each need is and costs",
)


@dataclass(frozen=True)
class Card:
    """What the list says of a loss.

    Args:
        name: as registered.
        source: paper and equation.
        grid: its own grid over its strength.
        default: of the strength; None where the file computes it.
        unit: a key of `UNITS`.
        gradient: its declared gradient class.
        reference: whether it has a reference.
        beside: needs and data columns.
        batch: "batch" and "running", as far as they apply.
    """

    name: str
    source: str
    grid: tuple[float, ...]
    default: float | None
    unit: str
    gradient: str
    reference: bool
    beside: tuple[str, ...]
    batch: tuple[str, ...]

    @property
    def group(self) -> int:
        """Place in the list: what it takes to train with it."""
        return 2 if self.batch else 3 if set(self.beside) - {"noise"} else 0 if self.reference else 1

    @property
    def shown_grid(self) -> str:
        """Its grid, the default in brackets."""
        return " ".join(f"[{v:g}]" if v == self.default else f"{v:g}" for v in self.grid) or "computed"


def add(plugins: Sequence[str]) -> None:
    """Register a user's files."""
    for file in plugins:
        variants.add_file(Path(file))


def cards() -> tuple[list[Card], list[str]]:
    """All losses, and what could not be read.

    Files are read as syntax trees: neither torch nor a plugin is imported, but for the losses of installed packages.
    """
    found, unreadable = [], []
    for name, source in sorted(variants.sources().items()):
        try:
            found.append(_installed(name) if isinstance(source, EntryPoint) else _read(name, source))
        except DpobenchError as error:
            unreadable.append(f"not readable: {error}")
    return found, unreadable + [f"not readable: {file.name} {why}" for file, why in variants.broken.items()]


def _installed(name: str) -> Card:
    variant = variants.get(name)
    spec, default = variant.spec, variant.parameters[variant.strength].default
    return Card(
        name,
        source=spec.source,
        grid=spec.beta_grid,
        default=default,
        unit=spec.unit,
        gradient=spec.gradient,
        reference=spec.reference,
        beside=(*spec.needs, *spec.columns),
        batch=("batch",) * spec.couples_batch + ("running",) * (spec.running is not None),
    )


def _read(name: str, file: Path) -> Card:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = {
        target.id: _literal(node.value, {})
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    marks = [mark for mark in function.decorator_list if isinstance(mark, ast.Call) and _called(mark) == "loss"]
    if not marks:
        raise UserError(f"{file.name}: @loss of {name} is not called; write @loss(source=..., beta_grid=...)")
    declared = {word.arg: _literal(word.value, constants) for word in marks[0].keywords if word.arg}
    given = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    defaults = {argument.arg: value and _literal(value, constants) for argument, value in given}
    default = defaults.get(declared.get("strength", "beta"))
    return Card(
        name,
        source=str(declared.get("source") or "see the file"),
        grid=tuple(value for value in declared.get("beta_grid") or () if isinstance(value, int | float)),
        default=default if isinstance(default, int | float) else None,
        unit=str(declared.get("unit", "nat")),
        gradient=str(declared.get("gradient", "monotone")),
        reference=declared.get("reference") is not False,
        beside=(*(declared.get("needs") or ()), *(declared.get("columns") or ())),
        batch=tuple(word for word, key in (("batch", "couples_batch"), ("running", "running")) if declared.get(key)),
    )


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "id", getattr(call.func, "attr", "")))


def _literal(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """Value of an expression that can be read without running it; None for the others."""
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        # What cannot be read is there all the same: two functions are running statistics.
        return tuple(_literal(one, constants) for one in node.elts) if isinstance(node, ast.Tuple) else None


def listing(width: int | None = None) -> list[str]:
    """One line a loss, grouped by what it takes, and what could not be read.

    Args:
        width: characters of a line; those of the terminal, but from 120 to 160, if None.
    """
    found, unreadable = cards()
    width = width or min(160, max(120, shutil.get_terminal_size((160, 24)).columns))
    head = ("variant", "needs", "strength in", "grid [default]", "class", "source")
    rows = [
        (
            card.name,
            ", ".join((*card.beside, *card.batch)) or "-",
            _SHORT_UNITS.get(card.unit, card.unit),
            card.shown_grid,
            card.gradient,
            card.source,
        )
        for card in found
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(5)]

    def laid(row: Sequence[str]) -> str:
        line = "  ".join([*(cell.ljust(room) for cell, room in zip(row, widths, strict=False)), row[5]])
        return line if len(line) <= width else line[: width - 1].rstrip(" ,") + "…"

    lines = [laid(head)]
    for number, title in enumerate(_GROUPS):
        of_group = [laid(row) for card, row in zip(found, rows, strict=True) if card.group == number]
        lines += ["", f"{title} ({len(of_group)})", *of_group] if of_group else []
    lines += [
        "",
        f"{len(found)} losses. A sum of them is named like this: dpo:0.8+bco_pair:0.2+sft:1 (a weight left out is 1).",
    ]
    return lines + unreadable


def costs() -> Mapping[str, tuple[str, str]]:
    """What each need is and what it costs: the table of `dpobench.losses.quantities`."""
    from dpobench.losses import quantities

    rows = (line.strip("| ").split(" | ") for line in (quantities.__doc__ or "").splitlines() if line.startswith("| `"))
    return {name.strip("`"): (what, cost) for name, what, cost in rows}


def portrait(name: str, plot: str | None = None) -> list[str]:
    """Everything about one loss: declaration, what it takes, hyper-parameters, docstring, laws.

    Args:
        name: of the loss, or of a mixture.
        plot: "" to draw it as text, or a file to draw it into.

    Raises:
        UnknownName: nobody registered it.
        UserError: it cannot be drawn.
    """
    # A name that is not known is told before torch is imported.
    variant = variants.get(name)
    from dpobench.testing import check

    laws = check(variant)
    broken = [law for law in laws if not law.passed]
    lines = [variant.name, *_origin(variant)]
    # Of a declaration that makes no sense nothing more can be told.
    if laws[0] not in broken:
        lines += [*_declared(variant), "", "Needs", *(f"  {line}" for line in _takes(variant))]
        lines += ["", "Hyper-parameters", *(f"  {line}" for line in _parameters(variant)), "", variant.doc]
    lines += ["", f"Laws: {len(laws) - len(broken)} of {len(laws)} hold", *_told(laws)]
    if plot is None:
        return lines
    if broken:
        raise UserError(f"{name} cannot be drawn while it breaks the law {broken[0].name!r}: {broken[0].reason}")
    return [*lines, "", *_drawn(variant, plot)]


def _drawn(variant: Variant, plot: str) -> list[str]:
    from dpobench.gallery import curves, plots

    if not plot:
        return plots.terminal(curves.family(variant))
    if Path(plot).suffix not in plots.SUFFIXES:
        raise UserError(f"--plot {plot}: name a file that ends in {', '.join(plots.SUFFIXES)}, or none at all")
    plots.write(curves.family(variant, whole_grid=True), Path(plot))
    return [f"drawn: {plot}"]


def _origin(variant: Variant) -> Iterator[str]:
    if isinstance(variant, Mixture):
        for loss, weight in variant.parts:
            yield f"  part      {weight:g} {loss.name} ({_short_path(loss.file)}): {loss.spec.source}"
    else:
        yield f"  source    {variant.spec.source}"
        yield f"  file      {_short_path(variant.file)}"


def _declared(variant: Variant) -> Iterator[str]:
    yield f"  strength  {variant.strength}: {UNITS[variant.unit]}"
    yield f"  class     {variant.spec.gradient}: {_CLASSES[variant.spec.gradient]}"
    start = variant.start(variant.arguments({}))
    yield f"  start     {'no fixed value' if start is None else f'{start:.6g} per pair'} where the policy equals the reference"
    if variant.spec.stops_gradient:
        yield "  gradient  holds a part of the formula constant, so it is not the slope of the value"


def _short_path(file: Path) -> str:
    """Below the folder the user stands in, if it is."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _takes(variant: Variant) -> Iterator[str]:
    """What a loss needs and what that costs, a line each."""
    yield "the policy's log-probabilities of both answers"
    if variant.spec.reference:
        yield "the reference's log-probabilities; cost: once per experiment"
    table = costs()
    for need in variant.needs:
        what, cost = table[need]
        yield f"{need}: {what}; cost: {cost}"
    for column, interval in variant.columns.items():
        yield f"column {column} of the data set, numbers in {interval.text}; cost: none"
    if variant.couples_batch:
        yield "the whole global batch at once, for pairs depend on one another; cost: one forward pass more a step"
    if variant.keeps_statistics:
        more = "none beyond that" if variant.couples_batch else "one forward pass more a step"
        yield f"running statistics, updated from the whole global batch; cost: {more}"


def _parameters(variant: Variant) -> Iterator[str]:
    for parameter in variant.parameters.values():
        bounds = f"  in {parameter.bounds.text}" if parameter.bounds else ""
        grid = f"  grid {', '.join(f'{value:g}' for value in parameter.grid)}" if parameter.grid else ""
        yield f"{parameter.name} = {parameter.default!r}{bounds}{grid}"


def verdict(file: Path) -> tuple[list[str], bool]:
    """Try the laws on every loss of a file.

    Returns: lines to show, the last of which says whether the harness would train it, and whether it would.

    Raises:
        UserError: there is no such file, or it registers no loss.
    """
    from dpobench.testing import check

    lines: list[str] = []
    faulty: dict[str, str] = {}
    names = variants.add_file(file)
    for name in names:
        laws = check(variants.get(name))
        held = sum(law.passed for law in laws)
        lines += [f"{name}: {held} of {len(laws)} laws hold", *_told(laws)]
        if causes := _causes(laws):
            faulty[name] = ", ".join(law.name for law in laws if law.name in causes.values())
        if not laws[0].passed:
            lines.append("  the other laws are tried once the declaration is sound")
    sound = [name for name in names if name not in faulty]
    if sound:
        lines.append(
            f"accepted: dpobench trains with it: dpobench run --plugin {file} --variants {','.join(sound)} ..."
        )
    for name, why in faulty.items():
        lines.append(f"refused: dpobench does not train with {name} until this is mended: {why}")
    return lines, not faulty


def _told(laws: Sequence[Any]) -> Iterator[str]:
    """A line a law; below a broken one why and what to do, unless a law before it is broken for the same reason."""
    causes = _causes(laws)
    for law in laws:
        first = causes.get(_reason(law), law.name)
        means = MEANINGS.get(law.name, "") if first == law.name else f"for the same reason as {first}"
        yield f"  {'ok    ' if law.passed else 'BROKEN'}  {law.name:15}{means}".rstrip()
        if first == law.name:
            yield from textwrap.wrap(law.reason, 118, initial_indent=" " * 10, subsequent_indent=" " * 10)


def _reason(law: Any) -> str:
    """Why a law is broken, whatever the size of the batch on which it was seen."""
    return re.sub(r"\d+ pairs", "pairs", law.reason)


def _causes(laws: Sequence[Any]) -> Mapping[str, str]:
    """Every reason with the first law that is broken for it."""
    return {_reason(law): law.name for law in reversed(laws) if not law.passed}
