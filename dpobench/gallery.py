"""The losses on show: a list, a portrait, a verdict on a stranger's file, a template to start from."""

import ast
import keyword
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpobench.errors import UserError
from dpobench.registry import NAME, UNITS, variants


@dataclass(frozen=True)
class Card:
    """What a file says of a loss without being run.

    Args:
        name: as registered.
        title: first line of its docstring.
        source: paper and equation.
        strength: the parameter `--beta-grid` sets.
        grid: its own grid.
        unit: a key of `UNITS`.
        gradient: its declared gradient class.
    """

    name: str
    title: str
    source: str
    strength: str
    grid: tuple[float, ...]
    unit: str
    gradient: str


def add(plugins: Sequence[str]) -> None:
    """Register a user's files."""
    for file in plugins:
        variants.add_file(Path(file))


def cards() -> list[Card]:
    """All losses, read from the syntax trees of their files: neither torch nor a plugin is imported."""
    found = []
    for name, source in sorted(variants.sources().items()):
        file = source if isinstance(source, Path) else variants.get(name).file
        found.append(_card(name, ast.parse(Path(file).read_text(encoding="utf-8"))))
    return found


def _card(name: str, tree: ast.Module) -> Card:
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    mark = next(mark for mark in function.decorator_list if isinstance(mark, ast.Call))
    said = {word.arg: _literal(word.value) for word in mark.keywords if word.arg}
    title = (ast.get_docstring(function) or ast.get_docstring(tree) or "").split("\n")[0]
    return Card(
        name,
        title,
        str(said.get("source", "")),
        str(said.get("strength", "beta")),
        tuple(said.get("beta_grid") or ()),
        str(said.get("unit", "nat")),
        str(said.get("gradient", "monotone")),
    )


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def listing() -> list[str]:
    """One line a loss, and what could not be read."""
    rows = [("variant", "own grid", "its beta", "source")]
    for card in cards():
        rows.append(
            (card.name, ", ".join(f"{value:g}" for value in card.grid), UNITS.get(card.unit, card.unit), card.source)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    return lines + [f"not readable: {file.name} {why}" for file, why in variants.broken.items()]


def portrait(name: str) -> list[str]:
    """Everything about one loss: declaration, hyper-parameters, docstring, laws.

    Raises:
        UnknownName: nobody registered it.
    """
    from dpobench.testing import check

    variant = variants.get(name)
    lines = [f"{name}  ({variant.file.name})", variant.declared["source"], "", variant.doc, ""]
    for parameter in variant.parameters.values():
        grid = f", grid {', '.join(f'{value:g}' for value in parameter.grid)}" if parameter.grid else ""
        bounds = f", in {parameter.bounds.text}" if parameter.bounds else ""
        lines.append(f"{parameter.name} = {parameter.default!r}{bounds}{grid}")
    lines += [f"{variant.strength}: {UNITS[variant.unit]}; gradient class: {variant.declared['gradient']}", ""]
    return lines + [_line(law) for law in check(variant)]


def verdict(file: Path) -> tuple[list[str], bool]:
    """Try the laws on every loss of a file.

    Returns: lines to show, and whether all laws hold.

    Raises:
        UserError: there is no such file, or it registers no loss.
    """
    from dpobench.testing import check

    lines: list[str] = []
    passed = True
    for name in variants.add_file(file):
        laws = check(variants.get(name))
        held = sum(law.passed for law in laws)
        passed = passed and held == len(laws)
        lines += [f"{name}: {held} of {len(laws)} laws hold", *(f"  {_line(law)}" for law in laws)]
    return lines, passed


def _line(law: Any) -> str:
    return f"ok      {law.name}" if law.passed else f"broken  {law.name}: {law.reason}"


_PLUGIN = '''"""{title}: one line that says what it is."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="your paper, equation", beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5), start=math.log(2))
def {name}(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """One value per pair; here the logistic loss on the margin, to be replaced by yours.

    Args:
        pairs: B pairs; `pairs.margin`, `pairs.chosen.logratio`, `pairs.chosen.mean_logp` ... have shape [B], in nats.
        beta: strength of the pull to the reference.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.
    """
    return -F.logsigmoid(beta * pairs.margin)
'''
_TEST = '''"""The laws, and one value worked out by hand."""

import math
from pathlib import Path

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.registry import variants
from dpobench.testing import check

FILE = Path(__file__).with_name("{name}.py")
variants.add_file(FILE)


def test_all_laws_hold():
    broken = [law.reason for law in check(variants.get("{name}")) if not law.passed]
    assert not broken, broken


def test_value_worked_out_by_hand():
    # One token a side: chosen log-ratio -1 - (-2) = 1, rejected -3 - (-1) = -2, margin 3; -log sigmoid(0.1 * 3) = log(1 + e^-0.3).
    mask = torch.ones(1, 1, dtype=torch.bool)
    chosen = Side(torch.tensor([[-1.0]]), torch.tensor([[-2.0]]), mask)
    rejected = Side(torch.tensor([[-3.0]]), torch.tensor([[-1.0]]), mask)
    value = variants.get("{name}").bind(beta=0.1)(Pairs(chosen, rejected))
    assert float(value) == pytest.approx(math.log(1 + math.exp(-0.3)))
'''


def template(name: str, folder: Path) -> Iterable[Path]:
    """Write a loss that runs, and its test.

    Returns: the files written.

    Raises:
        UserError: the name is taken or not allowed, or a file is in the way.
    """
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name for a loss; use lower case, digits and underscores, a letter first")
    if name in variants.names():
        raise UserError(f"a loss called {name!r} exists already; choose another name")
    files = {folder / f"{name}.py": _PLUGIN, folder / f"test_{name}.py": _TEST}
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists already; choose another name or --folder")
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        file.write_text(
            content.replace("{name}", name).replace("{title}", name.replace("_", " ").capitalize()), encoding="utf-8"
        )
    return list(files)
