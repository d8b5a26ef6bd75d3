"""Every example runs as its README says."""

import csv
import doctest
import gzip
import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_model import build

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
# What the examples show does not depend on these.
SHORT = ("--no-baselines", "--set", "evaluation.tasks=[]", "--set", "evaluation.pool=0")


def commands_of(script: Path, **values: object) -> list[list[str]]:
    """The arguments of each `dpobench` command of a shell script, variables filled in."""
    lines = script.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    words = [shlex.split(line)[1:] for line in lines if line.startswith("dpobench ")]
    return [[str(values[word[1:]]) if word.startswith("$") else word for word in command] for command in words]


def leaderboard(out: Path) -> dict[str, dict[str, str]]:
    with (out / "report" / "tables" / "leaderboard.csv").open(encoding="utf-8") as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def experiment(dpobench, tmp_path_factory):
    """Where the example of a loss has left its experiment."""
    out = tmp_path_factory.mktemp("own_loss") / "out"
    for command in commands_of(EXAMPLES / "own_loss" / "run.sh", OUT=out):
        done = dpobench(*command, *(SHORT if command[0] == "run" else ()))
        assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_your_loss_is_compared_with_dpo(experiment):
    rows = leaderboard(experiment)
    assert {"dpo", "clipped_dpo"} <= set(rows)
    assert rows["clipped_dpo"]["seeds"] == "2"
    assert rows["clipped_dpo"]["p_adjusted"]


@pytest.mark.slow
def test_results_are_read_in_pandas(experiment):
    command = [sys.executable, str(EXAMPLES / "read_results.py"), str(experiment)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clipped_dpo" in done.stdout
    assert "4 runs of 2 variants." in done.stdout


@pytest.fixture
def model(tmp_path):
    """A small model whose tokenizer knows the example's words."""
    pairs = map(json.loads, (EXAMPLES / "own_data_and_judge" / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    dialogues = [{"instruction": pair["prompt"], "input": "", "output": pair["chosen"]} for pair in pairs]
    file = tmp_path / "dialogues.json.gz"
    file.write_bytes(gzip.compress(json.dumps(dialogues).encode()))
    return build(tmp_path / "model", file, steps=8)


@pytest.mark.slow
def test_your_pairs_and_judge_give_a_win_rate(dpobench, model, tmp_path):
    (command,) = commands_of(EXAMPLES / "own_data_and_judge" / "run.sh", MODEL=model, OUT=tmp_path / "out")
    done = dpobench(*command, *SHORT, "--set", "evaluation.max_new_tokens=12")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = leaderboard(tmp_path / "out")
    assert all(0 <= float(rows[name]["win_rate"]) <= 1 for name in ("dpo", "ipo"))


def test_the_judges_example_has_the_value_that_it_states():
    spec = importlib.util.spec_from_file_location("judge", EXAMPLES / "own_data_and_judge" / "judge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outcome = doctest.testmod(module)
    assert (outcome.attempted, outcome.failed) == (1, 0)


def test_the_readme_names_every_example():
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for file in [*EXAMPLES.glob("*/run.sh"), *EXAMPLES.glob("*.py")]:
        assert str(file.relative_to(ROOT)) in readme
