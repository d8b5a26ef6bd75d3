"""The losses on show: a list, and a portrait of each."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType

from dpobench.errors import DpobenchError, UserError
from dpobench.gallery.lines import fitted, parameters, short_path
from dpobench.gallery.source import read
from dpobench.gallery.verdict import shown
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
        "target": "pushes towards a finite margin, and back from beyond it",
        "free": "promises nothing about the signs of the gradient",
    }
)
_GROUPS = (
    "Log-probabilities of policy and reference",
    "Log-probabilities of the policy, no reference",
    "The global batch at once: one forward pass more a step, the same result for any micro-batch and number of GPUs",
    "More than log-probabilities: `dpobench variants show NAME` says what each need is and costs",
)


@dataclass(frozen=True)
class Card:
    """What the list says of a loss.

    Args:
        name: as registered.
        source: paper and equation.
        grid: declared values of its strength.
        default: of the strength; None where the file computes it.
        unit: a key of `UNITS`.
        gradient: its declared gradient class.
        reference: whether it has a reference.
        takes: needs and data columns.
        batch: "batch" and "running", as far as they apply.
    """

    name: str
    source: str
    grid: tuple[float, ...]
    default: float | None
    unit: str
    gradient: str
    reference: bool
    takes: tuple[str, ...]
    batch: tuple[str, ...]

    @property
    def group(self) -> int:
        """Place in the list: what it takes to train with it."""
        return 2 if self.batch else 3 if set(self.takes) - {"noise"} else 0 if self.reference else 1

    @property
    def shown_grid(self) -> str:
        """Its grid, the default in brackets."""
        return " ".join(f"[{v:g}]" if v == self.default else f"{v:g}" for v in self.grid) or "computed"


def cards() -> tuple[list[Card], list[str]]:
    """All losses, and what could not be read.

    Files are read as syntax trees: neither torch nor a plugin is imported, but for the losses of installed packages.
    """
    readable, unreadable = [], []
    for name, source in sorted(variants.sources().items()):
        try:
            readable.append(_installed(name) if isinstance(source, EntryPoint) else _read(name, source))
        except DpobenchError as error:
            unreadable.append(f"not readable: {error}")
    return readable, unreadable + [f"not readable: {file.name} {why}" for file, why in variants.broken.items()]


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
        takes=(*spec.needs, *spec.columns),
        batch=("batch",) * spec.couples_batch + ("running",) * (spec.running is not None),
    )


def _read(name: str, file: Path) -> Card:
    source = read(name, file, variants.decorator)
    default = source.defaults.get(source.text("strength", "beta"))
    grid = source.declared.get("beta_grid")
    return Card(
        name,
        source=source.text("source", "see the file"),
        grid=tuple(v for v in grid if isinstance(v, int | float)) if isinstance(grid, tuple | list) else (),
        default=default if isinstance(default, int | float) else None,
        unit=source.text("unit", "nat"),
        gradient=source.text("gradient", "monotone"),
        reference=source.declared.get("reference") is not False,
        takes=(*source.names("needs"), *source.names("columns")),
        batch=tuple(
            word for word, key in (("batch", "couples_batch"), ("running", "running")) if source.declared.get(key)
        ),
    )


def listing(width: int | None = None) -> list[str]:
    """One line a loss, grouped by what it takes, and what could not be read.

    Args:
        width: characters of a line; those of the terminal, but from 120 to 160, if None.
    """
    shown_cards, unreadable = cards()
    width = width or min(160, max(120, shutil.get_terminal_size((160, 24)).columns))
    head = ("variant", "needs", "strength in", "grid [default]", "class", "source")
    rows = [
        (
            card.name,
            ", ".join((*card.takes, *card.batch)) or "-",
            _SHORT_UNITS.get(card.unit, card.unit),
            card.shown_grid,
            card.gradient,
            card.source,
        )
        for card in shown_cards
    ]
    first, *rest = fitted([head, *rows], width)
    lines = [first]
    for number, title in enumerate(_GROUPS):
        of_group = [line for card, line in zip(shown_cards, rest, strict=True) if card.group == number]
        lines += ["", f"{title} ({len(of_group)})", *of_group] if of_group else []
    lines += [
        "",
        f"{len(shown_cards)} losses. A sum of them is named like this: dpo:0.8+bco_pair:0.2+sft:1 (a weight left out is 1).",
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
    # An unknown name is refused before torch is imported.
    variant = variants.get(name)
    from dpobench.testing import check

    laws = check(variant)
    broken = [law for law in laws if not law.passed]
    lines = [variant.name, *_origin(variant)]
    # Where the declaration makes no sense, there is nothing more to show.
    if laws[0] not in broken:
        lines += [*_declared(variant), "", "Needs", *(f"  {line}" for line in _takes(variant))]
        lines += [
            "",
            "Hyper-parameters",
            *(f"  {line}" for line in parameters(list(variant.parameters.values()))),
            "",
            variant.doc,
        ]
    lines += ["", f"Laws: {len(laws) - len(broken)} of {len(laws)} hold", *shown(laws)]
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
            yield f"  part      {weight:g} {loss.name} ({short_path(loss.file)}): {loss.spec.source}"
    else:
        yield f"  source    {variant.spec.source}"
        yield f"  file      {short_path(variant.file)}"


def _declared(variant: Variant) -> Iterator[str]:
    yield f"  strength  {variant.strength}: {UNITS[variant.unit]}"
    yield f"  class     {variant.spec.gradient}: {_CLASSES[variant.spec.gradient]}"
    start = variant.start(variant.arguments({}))
    yield f"  start     {'no fixed value' if start is None else f'{start:.6g} per pair'} where the policy equals the reference"
    if variant.spec.stops_gradient:
        yield "  gradient  holds a part of the formula constant, so it is not the slope of the value"


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
