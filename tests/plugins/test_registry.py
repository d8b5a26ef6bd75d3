"""Where plugins are found, and what is refused with what words."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpobench.errors import PluginRefused, UnknownName, UserError
from dpobench.losses.registry import LossRegistry, variants
from dpobench.plugins.plugin import Interval

SHIPPED = variants.folder
MODULE = '''"""A loss."""
{extra}
from dpobench import loss


@loss(source="none", beta_grid=(0.1, 0.2))
def {name}(pairs, *, beta: float = 0.1):
    """A loss."""
    return -beta * pairs.margin
'''


def write(folder: Path, file: str, name: str, extra: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    path.write_text(MODULE.format(name=name, extra=extra))
    return path


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A package with a plugin folder of its own, and a registry over it."""
    package = f"house_{tmp_path.name}"
    folder = tmp_path / package / "variants"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield LossRegistry(package=f"{package}.variants"), folder
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def in_a_fresh_interpreter(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SHIPPED.parent, check=True)
    return done.stdout.strip()


def test_names_are_listed_without_importing_torch_or_a_plugin():
    found = in_a_fresh_interpreter(
        "import sys; from dpobench.losses.registry import variants; names = variants.names();"
        "print(','.join(names), 'torch' in sys.modules, any('variants' in name for name in sys.modules))"
    )
    assert found == f"{','.join(variants.names())} False False"


def test_the_shipped_losses_are_listed():
    assert {"dpo", "cdpo", "ipo", "ipo_sum"} <= set(variants.names())


def test_a_plugin_carries_its_file_doc_and_parameters():
    cdpo = variants.get("cdpo")
    assert cdpo.file == SHIPPED / "cdpo.py"
    assert cdpo.doc.startswith("Cross-entropy to a soft label")
    assert list(cdpo.parameters) == ["beta", "flip"]
    assert cdpo.parameters["flip"].grid == (0.05, 0.1, 0.2)
    assert (cdpo.strength, cdpo.unit, cdpo.couples_batch) == ("beta", "nat", False)


def test_getting_a_plugin_twice_gives_the_same_object():
    assert variants.get("dpo") is variants.get("dpo")


def test_a_folder_file_that_is_added_at_run_time_is_listed(house):
    registry, folder = house
    write(folder, "first.py", "first")
    assert registry.names() == ["first"]
    write(folder, "second.py", "second")
    assert registry.names() == ["first", "second"]
    assert registry.get("second").function.__name__ == "second"


def test_two_files_with_one_name_are_refused_and_both_named(house):
    registry, folder = house
    write(folder, "one.py", "same")
    write(folder, "two.py", "same")
    with pytest.raises(PluginRefused, match=r"'same' is defined twice: in .*one\.py and in .*two\.py"):
        registry.names()


def test_a_users_file_may_not_take_a_shipped_name_and_leaves_the_rest_usable(house, tmp_path):
    registry, folder = house
    write(folder, "mine.py", "mine")
    intruder = write(tmp_path / "elsewhere", "intruder.py", "mine")
    with pytest.raises(PluginRefused, match=r"mine\.py and in .*intruder\.py"):
        registry.add_file(intruder)
    assert registry.names() == ["mine"]


def test_an_unknown_name_gets_the_nearest_known_one():
    with pytest.raises(UnknownName, match=r"no variant is called 'dppo'. Did you mean 'dpo'\? Known: alpha_dpo, "):
        variants.get("dppo")


def test_an_unknown_hyper_parameter_gets_the_nearest_known_one():
    with pytest.raises(UnknownName, match=r"no parameter of cdpo is called 'flips'. Did you mean 'flip'\?"):
        variants.get("cdpo").bind(flips=0.1)


@pytest.mark.parametrize("value", ["0.1", True, None, [0.1]])
def test_a_hyper_parameter_of_another_type_is_refused(value):
    with pytest.raises(UserError, match=r"dpo.beta = .*: a float is expected, as in 0.1"):
        variants.get("dpo").bind(beta=value)


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_a_strength_that_is_not_positive_and_finite_is_refused(value):
    with pytest.raises(UserError, match=r"outside \(0, inf\)"):
        variants.get("dpo").bind(beta=value)


def test_a_hyper_parameter_out_of_its_bounds_is_refused():
    with pytest.raises(UserError, match=r"cdpo.flip = 0.5: outside \[0, 0.5\)"):
        variants.get("cdpo").bind(flip=0.5)


def test_a_whole_number_will_do_for_a_float():
    bound = variants.get("dpo").bind(beta=1)
    assert type(bound.params["beta"]) is float


def test_a_file_that_cannot_be_read_breaks_no_other_and_is_named_when_used(house):
    registry, folder = house
    write(folder, "good.py", "good")
    (folder / "torn.py").write_text("def torn(:\n")
    assert registry.names() == ["good"]
    assert registry.get("good").name == "good"
    with pytest.raises(UnknownName, match=r"torn\.py cannot be read"):
        registry.get("torn")


def test_a_file_that_does_not_import_breaks_no_other_and_is_named_when_used(house):
    registry, folder = house
    write(folder, "good.py", "good")
    write(folder, "needy.py", "needy", extra="import a_package_that_nobody_has")
    assert registry.names() == ["good", "needy"]
    assert registry.get("good").name == "good"
    with pytest.raises(PluginRefused, match=r"needy\.py\) does not import: ModuleNotFoundError"):
        registry.get("needy")


def test_a_users_file_without_a_decorated_function_is_refused(tmp_path):
    file = tmp_path / "bare.py"
    file.write_text("def bare(pairs):\n    return pairs.margin\n")
    with pytest.raises(PluginRefused, match=r"bare.py has no function decorated with @loss"):
        LossRegistry().add_file(file)


def test_a_users_file_that_is_no_python_is_refused(tmp_path):
    file = tmp_path / "torn.py"
    file.write_text("def torn(:\n")
    with pytest.raises(PluginRefused, match=r"torn.py cannot be read"):
        LossRegistry().add_file(file)


def test_a_users_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        LossRegistry().add_file(tmp_path / "none.py")


def test_a_users_file_outside_the_folder_joins_the_others(tmp_path):
    registry = LossRegistry()
    file = write(tmp_path, "outside.py", "outside")
    assert registry.add_file(file) == ["outside"]
    assert registry.add_file(file) == ["outside"], "twice does no harm"
    assert registry.names() == sorted([*variants.names(), "outside"])
    assert registry.get("outside").file == file.resolve()


def test_two_users_files_of_one_file_name_are_two_modules(tmp_path):
    registry = LossRegistry()
    for name in ("left", "right"):
        registry.add_file(write(tmp_path / name, "plugin.py", name))
    assert registry.get("left").function.__module__ != registry.get("right").function.__module__


def test_a_name_that_is_no_plain_word_is_refused(house):
    registry, folder = house
    write(folder, "loud.py", "LOUD")
    with pytest.raises(PluginRefused, match="'LOUD' is no variant name"):
        registry.names()


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("pairs, beta: float = 0.1", r"takes \['pairs', 'beta'\] by position"),
        ("pairs, *, gamma: float = 0.1", "declares 'beta', which its function does not take"),
        ("pairs, *, beta: float", "parameter 'beta' has no default"),
    ],
)
def test_a_signature_that_cannot_be_used_is_refused(house, signature, words):
    registry, folder = house
    file = write(folder, "odd.py", "odd")
    file.write_text(file.read_text().replace("pairs, *, beta: float = 0.1", signature))
    with pytest.raises(PluginRefused, match=words):
        registry.get("odd")


@pytest.fixture
def installed(monkeypatch):
    """Entry points as another installed package would declare them."""

    def declare(**points: str) -> None:
        def entry_points(*, group):
            assert group == "dpobench.variants"
            return [importlib.metadata.EntryPoint(name, value, group) for name, value in points.items()]

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)

    return declare


def test_a_loss_of_an_installed_package_is_listed(house, installed, tmp_path):
    registry, folder = house
    write(folder, "mine.py", "mine")
    write(tmp_path / folder.parent.name, "strangers.py", "theirs")
    installed(theirs=f"{folder.parent.name}.strangers:theirs")
    assert registry.names() == ["mine", "theirs"]
    assert registry.get("theirs").file.name == "strangers.py"


def test_an_installed_package_may_not_take_a_shipped_name(house, installed):
    registry, folder = house
    write(folder, "mine.py", "mine")
    installed(mine="strangers:mine")
    with pytest.raises(PluginRefused, match="defined twice"):
        registry.names()


def test_an_entry_point_that_leads_nowhere_is_named_only_when_used(house, installed):
    registry, folder = house
    write(folder, "mine.py", "mine")
    installed(ghost="a_package_that_nobody_has:ghost")
    assert registry.get("mine").name == "mine"
    with pytest.raises(PluginRefused, match="a_package_that_nobody_has"):
        registry.get("ghost")


def test_an_entry_point_to_something_undecorated_is_refused(house, installed):
    registry, folder = house
    write(folder, "mine.py", "mine")
    installed(dumps="json:dumps")
    with pytest.raises(PluginRefused, match="is not a function decorated with @loss"):
        registry.get("dumps")


@pytest.mark.parametrize("name", sorted(file.name for file in SHIPPED.glob("*.py")))
def test_a_losss_file_alone_holds_its_losses_and_needs_no_other(house, name):
    registry, folder = house
    shutil.copy(SHIPPED / name, folder)
    losses = [loss for loss in variants.names() if variants.get(loss).file.name == name]
    assert registry.names() == losses
    for loss in losses:
        assert registry.get(loss).spec.source == variants.get(loss).spec.source


def test_deleting_one_losss_file_takes_that_loss_away_and_no_other(house):
    registry, folder = house
    shutil.copytree(SHIPPED, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "kto.py"))
    assert set(registry.names()) == set(variants.names()) - {"kto"}


def test_an_empty_folder_is_refused_rather_than_silently_empty(house):
    registry, _ = house
    with pytest.raises(PluginRefused, match=r"no variant found in .*is another package called"):
        registry.names()


def test_a_missing_folder_is_refused():
    with pytest.raises(UserError, match="folder dpobench/nowhere is missing"):
        LossRegistry(package="dpobench.nowhere").names()


def test_comments_and_layout_do_not_change_the_hash_of_a_plugin_and_code_does(house):
    registry, folder = house
    file = write(folder, "mine.py", "mine")

    def hashed():
        return LossRegistry(package=registry.package).get("mine").code_hash

    first = hashed()
    file.write_text(file.read_text().replace("    return", "    # why\n\n    return").replace("A loss.", "The loss."))
    assert hashed() == first
    file.write_text(file.read_text().replace("-beta", "-2 * beta"))
    assert hashed() != first


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("(0, 1]", [0.5, 1.0], [0.0, 1.1]), ("[0, inf)", [0.0, 1e30], [-1e-9, float("inf"), float("nan")])],
)
def test_an_interval_knows_its_ends(text, inside, outside):
    assert all(value in Interval(text) for value in inside)
    assert not any(value in Interval(text) for value in outside)


def test_an_interval_that_is_none_is_refused():
    with pytest.raises(PluginRefused, match="is no interval"):
        assert 0.5 in Interval("between 0 and 1")


def test_a_mistyped_declaration_gets_the_nearest_known_one(tmp_path):
    file = tmp_path / "typo.py"
    file.write_text(
        'from dpobench import loss\n@loss(source="none", beta_grid=(0.1,), couple_batch=True)\ndef typo(pairs):\n    pass\n'
    )
    registry = LossRegistry()
    registry.add_file(file)
    with pytest.raises(UnknownName, match=r"no declaration is called 'couple_batch'\. Did you mean 'couples_batch'"):
        registry.get("typo")
