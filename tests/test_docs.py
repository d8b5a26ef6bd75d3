"""What the guide says is so: its code runs, its excerpts are in the files, its tables hold what the engine knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpobench.evaluation.registry import EvaluatorRegistry, JudgeRegistry
from dpobench.gallery import portrait
from dpobench.losses import quantities
from dpobench.losses.registry import LossRegistry, variants
from dpobench.losses.spec import UNITS
from dpobench.testing import check, evaluator_inputs
from dpobench.testing.laws import LAW_NAMES
from dpobench.testing.loss_laws import LAWS

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs" / "adding-a-loss.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
EXCERPTS = [block for block in BLOCKS if block.startswith("# variants/")]
PLUGINS = [block for block in BLOCKS if block not in EXCERPTS and "@loss(" in block]
TESTS = [block for block in BLOCKS if block not in EXCERPTS and "@loss(" not in block]


def table(header: str) -> list[list[str]]:
    """Cells of the table that begins with this header."""
    rows = GUIDE[GUIDE.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


@pytest.fixture
def registry(tmp_path):
    """The shipped losses, and the guide's in files of their own."""
    losses = LossRegistry()
    for block in PLUGINS:
        (name,) = re.findall(r"^@loss.*?^def (\w+)", block, re.DOTALL | re.MULTILINE)
        file = tmp_path / f"{name}.py"
        file.write_text(block)
        losses.add_file(file)
    return losses


def test_the_guide_has_code_of_each_sort():
    assert len(EXCERPTS) == 6
    assert len(PLUGINS) == 2
    assert len(TESTS) == 1


def test_every_loss_of_the_guide_keeps_all_laws(registry):
    for file in registry.extra_files:
        broken = [f"{law.name}: {law.reason}" for law in check(registry.get(file.stem)) if not law.passed]
        assert broken == [], file.stem


@pytest.mark.parametrize("block", EXCERPTS, ids=lambda block: block.splitlines()[0])
def test_the_lines_of_an_excerpt_stand_in_its_file_in_this_order(block):
    head, *lines = block.splitlines()
    standing = iter((ROOT / head.removeprefix("# ")).read_text(encoding="utf-8").splitlines())
    assert [line for line in lines if line not in standing] == []


def test_the_test_by_hand_passes(registry, monkeypatch):
    # A registry of its own, so that other tests do not meet the guide's losses.
    monkeypatch.setattr("dpobench.losses.registry.variants", registry)
    names = {"__file__": str(registry.extra_files[0].with_name("test_mine.py"))}
    exec(TESTS[0], names)
    tests = [names[name] for name in names if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def test_the_table_of_needs_is_that_of_the_module():
    found = {name.strip("`"): (what.replace("\\|", "|"), cost) for name, what, cost in table("need")}
    assert found == portrait.costs()
    assert set(found) == set(quantities.NEEDS)


def test_every_law_has_a_line_in_the_guide_and_one_at_the_command_line():
    assert [row[0].strip("`") for row in table("law")] == ["declaration", *LAWS]
    assert all(law.meaning for law in check(variants.get("dpo")))


def test_every_unit_has_a_line_with_losses_of_that_unit():
    found = {row[0].strip("`").strip('"'): re.findall(r"`(\w+)`", row[2]) for row in table("unit")}
    assert found.keys() == UNITS.keys()
    assert {name: variants.get(name).unit for names in found.values() for name in names} == {
        name: unit for unit, names in found.items() for name in names
    }


def test_every_loss_that_the_guide_names_exists():
    traps = GUIDE[GUIDE.index("## Traps") :]
    named = re.findall(r"\(`(\w+)`(?:, `(\w+)`)?\)", traps)
    assert len(named) >= 5
    assert {name for pair in named for name in pair if name} <= set(variants.names())


def test_every_command_of_the_guide_works(tmp_path):
    lines = [line for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()]
    commands = [line.partition("#")[0].split() for line in lines]
    assert len(commands) == 6
    assert {command[0] for command in commands} == {"dpobench"}
    asked = [[*c[1:], "--dry-run"] if c[1] == "run" else c[1:] for c in commands]
    (tmp_path / "commands.py").write_text(
        f"from dpobench.cli.commands import commands\nfor asked in {asked}:\n    assert not commands.main(asked, standalone_mode=False)\n"
    )
    done = subprocess.run([sys.executable, "commands.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {file.name for file in tmp_path.iterdir()} >= {"mine.py", "test_mine.py"}
    # Five points of dpo and five of the template; dpo at its default beside two betas times two weights of the mixture; and
    # each time the baseline.
    assert re.findall(r"^(\d+) runs;", done.stdout, re.MULTILINE) == ["11", "6"]


KINDS = {"evaluator": ("adding-an-evaluator.md", EvaluatorRegistry), "judge": ("adding-a-judge.md", JudgeRegistry)}


def plugin_guide(kind):
    """Text of the guide, its plugins by name, and its test."""
    text = (ROOT / "docs" / KINDS[kind][0]).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    plugins = {
        re.findall(rf"^@{kind}.*?^def (\w+)", block, re.DOTALL | re.MULTILINE)[0]: block
        for block in blocks
        if f"@{kind}(" in block
    }
    (test,) = (block for block in blocks if "def test_" in block)
    return text, plugins, test


@pytest.mark.parametrize("kind", KINDS)
def test_every_evaluator_and_judge_of_a_guide_keeps_all_laws(kind, tmp_path):
    _, plugins, _ = plugin_guide(kind)
    assert len(plugins) == {"evaluator": 1, "judge": 2}[kind]
    for name, block in plugins.items():
        (tmp_path / f"{name}.py").write_text(block)
        registry = KINDS[kind][1]()
        registry.add_file(tmp_path / f"{name}.py")
        assert [f"{law.name}: {law.reason}" for law in check(registry.get(name)) if not law.passed] == [], name


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_of_a_guide_passes(kind, tmp_path):
    _, plugins, test = plugin_guide(kind)
    for name, block in plugins.items():
        (tmp_path / f"{name}.py").write_text(block)
    (tmp_path / "test_mine.py").write_text(test)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{len(LAW_NAMES[kind]) + 1} passed" in done.stdout, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_every_law_and_every_need_has_a_line_in_its_guide(kind):
    text, _, _ = plugin_guide(kind)

    def first_cells(header):
        rows = text[text.index(f"| {header} |") :].split("\n\n")[0].splitlines()[2:]
        return [row.split("|")[1].strip().strip("`") for row in rows]

    assert first_cells("law") == list(LAW_NAMES[kind])
    if kind == "evaluator":
        assert set(first_cells("need")) == set(evaluator_inputs.NEEDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_of_a_plugin_guide_works(kind, tmp_path):
    text, _, _ = plugin_guide(kind)
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [line.partition("#")[0].split() for line in lines]
    assert len(commands) == 5
    arguments = [[*c[1:], "--dry-run"] if c[1] == "run" else c[1:] for c in commands]
    (tmp_path / "commands.py").write_text(
        "from dpobench.cli.commands import commands\n"
        f"for words in {arguments}:\n    assert not commands.main(words, standalone_mode=False), words\n"
    )
    done = subprocess.run([sys.executable, "commands.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"mine.py", "test_mine.py"} <= {file.name for file in tmp_path.iterdir()}
