"""What `dpobench` exports, and that it costs nothing until used."""

import subprocess
import sys
from pathlib import Path

import pytest

import dpobench

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "matplotlib", "pandas", "numpy")


def test_every_exported_name_resolves_to_what_its_module_defines():
    for name in dpobench.__all__:
        assert getattr(dpobench, name) is not None
    for name, module in dpobench._PUBLIC.items():
        assert getattr(dpobench, name) is getattr(sys.modules[f"dpobench.{module}"], name)


def test_the_list_of_exports_is_sorted_and_is_the_lazy_table():
    assert dpobench.__all__ == sorted(dpobench.__all__)
    assert set(dpobench.__all__) == {*dpobench._PUBLIC, "__version__"}
    assert dir(dpobench) == dpobench.__all__


def test_a_name_that_is_not_exported_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = dpobench.Trainer


def test_importing_the_package_and_its_registry_imports_nothing_heavy():
    code = f"import sys, dpobench, dpobench.plugins.registry; print([m for m in {HEAVY!r} if m in sys.modules])"
    root = Path(dpobench.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
