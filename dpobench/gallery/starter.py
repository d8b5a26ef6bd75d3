"""A loss, an evaluator or a judge to start from, and a test for it."""

import keyword
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpobench.errors import UserError
from dpobench.gallery.verdict import AnyRegistry
from dpobench.plugins.registry import NAME

_LOSS = '''"""{title}: one line that says what it is."""

import math

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="your paper, equation", beta_grid=(0.01, 0.05, 0.1, 0.3, 0.5), start=math.log(2))
def {name}(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """One value per pair; here the logistic loss on the margin, to be replaced by yours.

    Declare in `@loss(...)` what is true of yours: `unit` and `strength` if beta is not per nat of summed log-ratio,
    `gradient="target"` or "free" if it may push the chosen answer down, `reference=False`, `couples_batch=True`,
    `grids` and `bounds` of further hyper-parameters; what it takes besides log-probabilities: `needs`, `columns`,
    `running`. Leave `start` out if there is no fixed value. What is missing or untrue is named by
    `dpobench variants check {name}.py`.

    Args:
        pairs: B pairs. Shape [B], in nats: `pairs.margin`, `pairs.mean_margin`, and of `pairs.chosen` and
            `pairs.rejected` each `logp`, `logratio`, `length`, `mean_logp`, `mean_logratio`. Shape [B, T]: their
            `policy`, `reference` and `mask`. Where declared: `pairs.chosen.extras["noise"]`,
            `pairs.columns["score_chosen"]`, `pairs.statistics["delta"]`.
        beta: how closely the policy stays to the reference; every keyword-only argument is a hyper-parameter.

    Returns: one loss per pair, shape [B]; log 2 wherever the policy still equals the reference.
    """
    return -F.logsigmoid(beta * pairs.margin)
'''
_LOSS_TEST = '''"""The laws, each as a test, and one value worked out by hand."""

import math
from pathlib import Path

import pytest

from dpobench.losses.registry import variants
from dpobench.testing import LossTests, example_pairs

FILE = Path(__file__).with_name("{name}.py")


class TestLaws(LossTests):
    file = FILE


def test_value_worked_out_by_hand():
    variants.add_file(FILE)
    # Log-ratios: chosen 1, rejected -2, so the margin is 3. -log sigmoid(0.1 * 3) = log(1 + e^-0.3).
    value = variants.get("{name}").bind(beta=0.1)(example_pairs([1.0], [-2.0]))
    assert float(value) == pytest.approx(math.log(1 + math.exp(-0.3)))
'''
_EVALUATOR = '''"""{title}: one line that says what it measures."""

import pandas as pd

from dpobench import Checkpoint, HeldOut, Metric, evaluator, score_rows

METRIC = Metric("characters", "none", label="{title}")


@evaluator(metrics={"{name}": METRIC})
def {name}(checkpoint: Checkpoint, held_out: HeldOut, *, scale: float = 1.0) -> pd.DataFrame:
    """Number of characters of each answer, to be replaced by your measure.

    Declare in `@evaluator(...)` what is true of yours: each metric with unit, direction ("higher", "lower" or "none"
    is better) and label; `needs` ("judge", "pairs", "pool", "tasks", "objectives", "on_policy"); `within=True` if it
    also scores checkpoints within a training; `at_reference={"metric": value}` if the reference scored against itself
    always has this value. What is missing or untrue is named by
    `dpobench evaluators check {name}.py`.

    Args:
        checkpoint: `checkpoint.policy`, `checkpoint.reference` and `checkpoint.tokenizer`.
        held_out: `held_out.prompts`, and `held_out.samples` and `held_out.reference_samples` with columns `prompt`,
            `draw`, `text`, `token_ids`, `ended`; where declared, `held_out.pairs` and more.
        scale: a setting; every keyword-only argument is one.

    Returns: one row per prompt and draw, made by `score_rows`; never a mean.
    """
    samples = held_out.samples
    values = scale * samples["text"].str.len()
    return score_rows(samples["prompt"].tolist(), "{name}", values, draws=samples["draw"].tolist())
'''
_EVALUATOR_TEST = '''"""The laws, each as a test, and one value worked out by hand."""

from pathlib import Path

import pandas as pd

from dpobench import HeldOut, Prompt
from dpobench.evaluation.registry import evaluators
from dpobench.testing import EvaluatorTests

FILE = Path(__file__).with_name("{name}.py")


class TestLaws(EvaluatorTests):
    file = FILE


def test_value_worked_out_by_hand():
    evaluators.add_file(FILE)
    prompts = [Prompt("p1", ({"role": "user", "content": "Name a colour."},))]
    samples = pd.DataFrame({"prompt": ["p1"], "draw": [0], "text": ["Red"], "token_ids": [[7]], "ended": [True]})
    table = evaluators.get("{name}").function(None, HeldOut(prompts, samples, samples))
    # R, e and d.
    assert table["value"].tolist() == [3.0]
'''
_JUDGE = '''"""{title}: one line that says what it judges by."""

from collections.abc import Sequence

import pandas as pd

from dpobench import Prompt, judge


@judge(pointwise=True)
def {name}(
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    *,
    scale: float = 1.0,
) -> pd.DataFrame:
    """Score of each answer; here its number of characters, to be replaced by your measure.

    A judge that compares two answers is declared with `pointwise=False`, is called with `(prompts, first, second)` and
    returns the column `p_first`, the probability that the first is better. Declare `deterministic=False` if it may say
    something else the second time, `check` to try its settings before anything is computed, `estimate` to say what it
    would cost. What is missing or untrue is named by `dpobench judges check {name}.py`.

    Args:
        prompts: the prompts; `prompt.text` is the last message.
        completions: the answers.
        scale: a setting; every keyword-only argument is one.

    Returns: one row per answer, column `score`; NaN where there is no verdict.
    """
    return pd.DataFrame({"score": [scale * len(text) for text in completions]}, dtype=float)
'''
_JUDGE_TEST = '''"""The laws, each as a test, and one value worked out by hand."""

from pathlib import Path

from dpobench import Prompt
from dpobench.evaluation.registry import judges
from dpobench.testing import JudgeTests

FILE = Path(__file__).with_name("{name}.py")


class TestLaws(JudgeTests):
    file = FILE


def test_value_worked_out_by_hand():
    judges.add_file(FILE)
    prompt = Prompt("p1", ({"role": "user", "content": "Name a colour."},))
    table = judges.get("{name}").function([prompt, prompt], ["Red", ""])
    # R, e and d; nothing.
    assert table["score"].tolist() == [3.0, 0.0]
'''
_TEMPLATES: Mapping[str, tuple[str, str, str]] = {
    "variant": ("a loss", _LOSS, _LOSS_TEST),
    "evaluator": ("an evaluator", _EVALUATOR, _EVALUATOR_TEST),
    "judge": ("a judge", _JUDGE, _JUDGE_TEST),
}


def write(name: str, folder: Path, registry: AnyRegistry) -> Sequence[Path]:
    """Write a plugin that runs, and its test.

    Args:
        name: of the plugin.
        folder: where to write both files.
        registry: the plugins of its kind.

    Returns: the files written.

    Raises:
        UserError: the name is taken or not allowed, or a file is in the way.
    """
    word, plugin, test = _TEMPLATES[registry.kind]
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} is no name for {word}; use lower case, digits and underscores, a letter first")
    if name in registry.names():
        raise UserError(f"{word} called {name!r} exists already; choose another name")
    files = {folder / f"{name}.py": plugin, folder / f"test_{name}.py": test}
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists already; choose another name or --folder")
    folder.mkdir(parents=True, exist_ok=True)
    title = name.replace("_", " ").capitalize()
    for file, content in files.items():
        file.write_text(content.replace("{name}", name).replace("{title}", title), encoding="utf-8")
    return list(files)
