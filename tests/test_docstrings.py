"""The examples in docstrings: each is run as a reader would type it, and every public name has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import dpobench

ENGINE = Path(dpobench.__file__).parent
MODULES = sorted(
    ".".join(("dpobench", *file.relative_to(ENGINE).with_suffix("").parts))
    for file in ENGINE.rglob("*.py")
    if file.name not in ("__init__.py", "__main__.py")
    and file.relative_to(ENGINE).parts[0] not in ("variants", "evals")
)
PUBLIC = [name for name in dpobench.__all__ if callable(getattr(dpobench, name))]


def examples(module):
    found = doctest.DocTestFinder().find(module, module.__name__)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in examples(importlib.import_module(name)):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name):
    public = getattr(dpobench, name)
    if not public.__module__.startswith("dpobench"):
        return  # a type of jaxtyping under a name of ours
    assert ">>>" in (inspect.getdoc(public) or ""), name


def test_there_are_examples_in_most_rooms():
    rooms = {name.split(".")[1] for name in MODULES if examples(importlib.import_module(name))}
    assert len(rooms) > 10
