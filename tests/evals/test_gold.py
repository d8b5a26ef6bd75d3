"""The gold judge: what it calls, and what it says when it cannot."""

import math
import re

import pytest

from dpobench import Prompt, UserError
from dpobench.evaluation.registry import judges

ASKED = [Prompt("p", ({"role": "user", "content": "first"}, {"role": "user", "content": "last"}))]


@pytest.fixture
def gold():
    return judges.get("gold").function


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(
        "import math\n"
        "LIMIT = 3\n"
        "def length(prompt, completion): return len(completion)\n"
        "def parts(prompt, completion): return {'extra': 1, 'score': 2.5, 'length': len(prompt)}\n"
        "def unsure(prompt, completion): return math.nan\n"
        "def word(prompt, completion): return 'good'\n"
        "def endless(prompt, completion): return math.inf\n"
        "def empty(prompt, completion): return {'points': 1}\n"
        "def broken(prompt, completion): return 1 / 0\n"
    )
    return path


def test_a_function_of_a_file_scores_every_answer(gold, file):
    assert gold(ASKED * 2, ["a", "abc"], function=f"{file}:length")["score"].tolist() == [1, 3]


def test_a_function_of_a_module_scores_every_answer(gold):
    # countOf("last", "s") == 1: the prompt comes first.
    assert gold(ASKED, ["s"], function="operator:countOf")["score"].tolist() == [1]


def test_parts_stand_next_to_the_score_and_the_last_message_is_the_prompt(gold, file):
    table = gold(ASKED, ["a"], function=f"{file}:parts")
    assert list(table) == ["score", "extra", "length"]
    assert table.values.tolist() == [[2.5, 1, 4]]


def test_nan_is_no_verdict_and_passes(gold, file):
    assert math.isnan(gold(ASKED, ["a"], function=f"{file}:unsure")["score"][0])


def test_an_edited_file_is_read_again(gold, file):
    gold(ASKED, ["abc"], function=f"{file}:length")
    file.write_text("def length(prompt, completion): return -1\n")
    assert gold(ASKED, ["abc"], function=f"{file}:length")["score"].tolist() == [-1]


def test_no_answers_give_an_empty_table(gold, file):
    assert list(gold([], [], function=f"{file}:length")) == ["score"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("", "needs a function; write 'module:name'"),
        ("rewards.py", "names no function; write 'module:name'"),
        ("rewards.py:", "names no function"),
        ("no_such_module:score", "no_such_module does not import: ModuleNotFoundError"),
        ("elsewhere.py:score", "no such file"),
        (
            "rewards.py:lenght",
            "defines no 'lenght'; its functions: broken, empty, endless, length, parts, unsure, word",
        ),
        ("rewards.py:LIMIT", "'LIMIT' is a int, not a function"),
        ("rewards.py:word", "returned score = 'good'; a finite number"),
        ("rewards.py:endless", "returned score = inf; a finite number"),
        ("rewards.py:empty", "without 'score'"),
        ("rewards.py:broken", "failed on prompt p: ZeroDivisionError"),
    ],
)
def test_mistakes_are_named(gold, file, monkeypatch, function, message):
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        gold(ASKED, ["a"], function=function)
    assert function in str(caught.value)


def test_a_file_that_does_not_import_says_why(gold, file):
    file.write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match=r"rewards\.py does not import: ModuleNotFoundError"):
        gold(ASKED, ["a"], function=f"{file}:length")
