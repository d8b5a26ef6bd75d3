"""Test classes to inherit: each law is a test, and a broken one fails with its reason."""

from pathlib import Path
from typing import ClassVar

import pytest

from dpobench.errors import UserError
from dpobench.evaluation.registry import JudgeRegistry
from dpobench.losses.registry import LossRegistry
from dpobench.testing import JudgeTests, LossTests
from dpobench.testing.laws import LAW_NAMES

FOLDER = Path(__file__).parent


class TestASoundLoss(LossTests):
    """Collected by pytest as a user's class is: one test for each law."""

    name = "dpo"


class TestASoundJudge(JudgeTests):
    registry = JudgeRegistry()
    file = FOLDER / "judges" / "accepted.py"
    name = "length"
    settings: ClassVar = {"scale": 2.0}


class WrongStart(LossTests):
    registry = LossRegistry()
    file = FOLDER / "losses" / "wrong_start.py"


class Undocumented(JudgeTests):
    registry = JudgeRegistry()
    file = FOLDER / "judges" / "faulty.py"
    name = "undocumented"


class Calls(list):
    fixturenames = ("plugin_and_law",)

    def parametrize(self, names, cases, *, ids):
        self.extend(zip(cases, ids, strict=True))


def test_every_law_of_every_plugin_of_the_file_is_a_test():
    calls = Calls()
    WrongStart().pytest_generate_tests(calls)
    assert [case for case, _ in calls] == [("wrong_start", law) for law in LAW_NAMES["variant"]]
    assert calls[0][1] == "wrong_start-declaration"


def test_a_broken_law_fails_with_its_reason_and_the_others_pass():
    WrongStart().test_law(("wrong_start", "shape"))
    with pytest.raises(AssertionError, match=r"wrong_start breaks the law 'start': start is declared as 0\.5"):
        WrongStart().test_law(("wrong_start", "start"))


def test_a_law_that_a_broken_declaration_kept_from_being_tried_fails():
    with pytest.raises(AssertionError, match="not tried, for the declaration is broken: the function has no docstring"):
        Undocumented().test_law(("undocumented", "shape"))


def test_a_class_that_names_nothing_says_what_to_write():
    with pytest.raises(UserError, match="LossTests: say what to test: file = "):
        LossTests.names()
