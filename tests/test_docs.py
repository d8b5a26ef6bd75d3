"""What the guide says is so: its code runs, its excerpts are in the files, its tables hold what the engine knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpobench.gallery import portrait
from dpobench.losses import quantities
from dpobench.losses.registry import LossRegistry, variants
from dpobench.losses.spec import UNITS
from dpobench.testing import check
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
    found = LossRegistry()
    for block in PLUGINS:
        (name,) = re.findall(r"^@loss.*?^def (\w+)", block, re.DOTALL | re.MULTILINE)
        file = tmp_path / f"{name}.py"
        file.write_text(block)
        found.add_file(file)
    return found


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
