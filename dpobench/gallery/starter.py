"""A loss to start from, and a test for it."""

import keyword
from collections.abc import Iterable
from pathlib import Path

from dpobench.errors import UserError
from dpobench.losses.registry import variants
from dpobench.plugins.registry import NAME

_PLUGIN = '''"""{title}: one line that says what it is."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="your paper, equation", beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5), start=math.log(2))
def {name}(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """One value per pair; here the logistic loss on the margin, to be replaced by yours.

    Declare in `@loss(...)` what is true of yours: `unit` and `strength` if beta is not per nat of summed log-ratio,
    `gradient="target"` or "free" if it may push the chosen answer down, `reference=False`, `couples_batch=True`,
    `grids` and `bounds` of further hyper-parameters; what it takes beside log-probabilities: `needs`, `columns`,
    `running`. Leave `start` out if there is no fixed value. What is missing or untrue is told by
    `dpobench variants check {name}.py`.

    Args:
        pairs: B pairs. Shape [B], in nats: `pairs.margin`, `pairs.mean_margin`, and of `pairs.chosen` and
            `pairs.rejected` each `logp`, `logratio`, `length`, `mean_logp`, `mean_logratio`. Shape [B, T]: their
            `policy`, `reference` and `mask`. Where declared: `pairs.chosen.extras["noise"]`,
            `pairs.columns["score_chosen"]`, `pairs.statistics["delta"]`.
        beta: strength of the pull to the reference; every keyword-only argument is a hyper-parameter.

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
from dpobench.losses.registry import variants
from dpobench.testing import check

FILE = Path(__file__).with_name("{name}.py")
variants.add_file(FILE)


def test_all_laws_hold():
    laws = check(variants.get("{name}"))
    assert [f"{law.name}: {law.reason}" for law in laws if not law.passed] == []


def test_value_worked_out_by_hand():
    # One token a side. Log-ratios: chosen -1 - (-2) = 1, rejected -3 - (-1) = -2; margin 1 - (-2) = 3.
    # -log sigmoid(0.1 * 3) = log(1 + e^-0.3).
    mask = torch.ones(1, 1, dtype=torch.bool)
    chosen = Side(torch.tensor([[-1.0]]), torch.tensor([[-2.0]]), mask)
    rejected = Side(torch.tensor([[-3.0]]), torch.tensor([[-1.0]]), mask)
    value = variants.get("{name}").bind(beta=0.1)(Pairs(chosen, rejected))
    assert float(value) == pytest.approx(math.log(1 + math.exp(-0.3)))
'''


def write(name: str, folder: Path) -> Iterable[Path]:
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
