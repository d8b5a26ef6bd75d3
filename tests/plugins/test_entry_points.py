"""A loss in a package of its own: built, installed, found; a name that is taken is refused."""

import shutil
import zipfile
from pathlib import Path

import pytest

from dpobench.losses.registry import variants
from tests.wheels import built

PACKAGE = Path(__file__).parents[1] / "example_package"


def installed(work: Path, *, name: str = "tempered_dpo", rewritten: tuple[str, str] = ("", "")) -> Path:
    """The example package, built as a wheel and unpacked as an installer does, under another name or with other code."""
    source, site = work / "source", work / "site"
    shutil.copytree(PACKAGE, source)
    project, module = source / "pyproject.toml", source / "tempered_preference.py"
    project.write_text(project.read_text().replace("tempered_dpo = ", f"{name} = "))
    module.write_text(module.read_text().replace(*rewritten))
    zipfile.ZipFile(built(source, work)).extractall(site)
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("example"))


def test_the_wheel_holds_the_loss_and_says_where(site):
    assert (site / "tempered_preference.py").is_file()
    (points,) = site.glob("tempered_preference-*.dist-info/entry_points.txt")
    assert "tempered_dpo = tempered_preference:tempered_dpo" in points.read_text()


def test_the_list_holds_a_loss_of_an_installed_package(dpobench, site):
    done = dpobench("variants", cwd=site, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("tempered_dpo "))
    assert "0.05 [0.1] 0.5" in line
    assert "example of dpobench" in line
    assert f"{len(variants.names()) + 1} losses" in done.stdout


def test_its_portrait_shows_where_it_lies_and_that_it_keeps_the_laws(dpobench, site):
    done = dpobench("variants", "show", "tempered_dpo", cwd=site, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    assert "tempered_preference.py" in done.stdout
    # At the default temperature of 2 it starts at 2 log 2 = 1.38629.
    assert "1.38629 per pair where the policy equals the reference" in done.stdout
    assert "BROKEN" not in done.stdout


def test_an_experiment_can_be_planned_with_it(dpobench, site):
    done = dpobench(
        "run", "--variants", "dpo,tempered_dpo", "--grid", "tempered_dpo.temperature=1,4", "--dry-run", cwd=site
    )
    assert done.returncode == 0, done.stderr
    assert "configurations per variant: dpo 1, tempered_dpo 2; baselines: sft" in done.stdout
    assert "4 runs;" in done.stdout


def test_a_package_may_not_take_a_shipped_name_and_both_places_are_named(dpobench, tmp_path):
    done = dpobench("variants", cwd=installed(tmp_path, name="dpo"))
    assert done.returncode == 2
    assert "'dpo' is defined twice" in done.stderr
    assert str(variants.get("dpo").file) in done.stderr
    assert "tempered_preference:tempered_dpo" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_does_not_import_is_named_and_costs_no_other_loss_its_place(dpobench, tmp_path):
    site = installed(tmp_path, rewritten=("import math\n", "import a_package_that_nobody_has\n"))
    done = dpobench("variants", cwd=site, COLUMNS="160")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("not readable: "))
    assert "'tempered_dpo'" in line
    assert "a_package_that_nobody_has" in line
    assert f"{len(variants.names())} losses" in done.stdout
    shown = dpobench("variants", "show", "tempered_dpo", cwd=site, COLUMNS="160")
    assert shown.returncode == 2
    assert "does not import" in shown.stderr
