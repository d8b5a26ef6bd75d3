"""What the README promises is there."""

import re
from pathlib import Path

import pytest

from dpobench.cli import commands
from dpobench.losses.registry import LossRegistry
from dpobench.testing import check

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_loss_in_twelve_lines_keeps_all_laws(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    file = tmp_path / "mine.py"
    file.write_text(code)
    registry = LossRegistry()
    registry.add_file(file)
    broken = [law for law in check(registry.get("mine")) if not law.passed]
    assert not broken, broken


def test_every_file_of_the_tree_exists():
    (tree,) = re.findall(r"```\n(dpobench/ .*?)```", README, re.DOTALL)
    for line in tree.splitlines():
        folder = ROOT / "dpobench" if line.startswith("  ") else ROOT
        for name in re.findall(r"(?<![\w.])(\w+(?:\.py|/))", line):
            assert (
                (folder / name).exists()
                or (ROOT / "evals" / name).exists()
                or (ROOT / "results" / name).exists()
                or (ROOT / "dpobench" / name).exists()
            ), name


COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("dpobench ")])
def test_every_command_and_option_exists(line):
    command = commands.commands.commands[line.split()[1]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r" (--[a-z-]+)", line)) <= options


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", README):
        assert f"\n{target}:" in makefile
