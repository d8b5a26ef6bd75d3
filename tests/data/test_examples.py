"""The examples in docstrings of the rooms of data: each is run as a reader would type it."""

import doctest
import importlib
import pkgutil

import pytest

import dpobench.bench
import dpobench.data
import dpobench.synthetic

ROOMS = (dpobench.data, dpobench.synthetic, dpobench.bench)
NAMES = [f"{room.__name__}.{module.name}" for room in ROOMS for module in pkgutil.iter_modules(room.__path__)]


def examples(module):
    return [test for test in doctest.DocTestFinder().find(module, module.__name__) if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_examples_give_what_they_show(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in examples(importlib.import_module(name)):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_there_are_examples_in_the_room_of_data():
    assert sum(len(examples(importlib.import_module(name))) for name in NAMES if name.startswith("dpobench.data.")) > 10
