"""What is installed: one top-level package, the plugin folders inside it, usable from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.wheels import built

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_installs_one_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"dpobench", "dpobench-0.1.0.dist-info"}
    assert "dpobench/variants/dpo.py" in names
    assert "dpobench/evals/judges/gold.py" in names
    assert any(name.startswith("dpobench/report/templates/") for name in names)
    assert any(name.endswith("presets/small.toml") for name in names)


def test_the_installed_package_has_its_plugins_though_other_packages_have_the_same_names(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    for stranger in ("variants", "evals"):
        (tmp_path / "site" / stranger).mkdir()
        (tmp_path / "site" / stranger / "__init__.py").write_text("raise ImportError('a stranger')\n")
    code = "import dpobench\nfrom dpobench.evaluation.registry import evaluators, judges\n"
    code += "from dpobench.losses.registry import variants\nprint(dpobench.__file__)\n"
    code += "print(*variants.names(), *evaluators.names(), *judges.names())\nprint(variants.get('dpo').file)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    where, names, file = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "site")
    assert Path(file).is_relative_to(tmp_path / "site")
    assert {"dpo", "ipo", "ipo_sum", "cdpo", "gold"} <= set(names.split())
