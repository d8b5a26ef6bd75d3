import json

import pytest

from dpobench.data.check import PROBLEMS, examine
from dpobench.data.layouts import convert
from dpobench.data.reading import read
from dpobench.data.rows import Preference
from dpobench.errors import UserError

USER = {"role": "user", "content": "question"}


def pair(number, chosen="yes", rejected="no", prompt=None, **columns):
    messages = prompt if prompt is not None else ({"role": "user", "content": f"question {number}"},)
    return Preference(messages, chosen, rejected, columns, "train.jsonl", number)


def many(count=100):
    return [pair(i) for i in range(count)]


def counts(report):
    return {p.kind: (p.action, p.count) for p in report.problems}


def test_sound_rows_are_kept_without_a_word():
    report = examine(many()).require_usable()
    assert counts(report) == {}
    assert (report.rows_read, len(report.rows), report.prompts) == (100, 100, 100)


def test_few_identical_answers_are_dropped_and_counted():
    report = examine([*many(), pair(100, "same", "same")]).require_usable()
    assert counts(report) == {"identical answers": ("drop", 1)}
    assert len(report.rows) == 100
    assert report.problems[0].examples == ('row 100: "same"',)


def test_more_than_five_percent_identical_answers_are_an_error():
    rows = [*many(94), *(pair(i, "same", "same") for i in range(100, 106))]
    with pytest.raises(
        UserError, match=r"train\.jsonl: error 6 rows \(6\.0%\): chosen and rejected are identical; row 100"
    ):
        examine(rows).require_usable()
    assert examine([*many(95), *rows[-5:]]).require_usable().problems[0].action == "drop"


@pytest.mark.parametrize(
    ("chosen", "rejected", "named"), [("", "b", '"chosen"'), ("a", " \n", '"rejected"'), ("", "", "and")]
)
def test_empty_answers_are_dropped_when_few_and_refused_when_many(chosen, rejected, named):
    few = examine([*many(), pair(100, chosen, rejected)]).require_usable()
    assert counts(few) == {"empty answer": ("drop", 1)}
    assert named in few.problems[0].examples[0]
    with pytest.raises(UserError, match=r"3 rows.*an answer is empty"):
        examine([pair(i, chosen, rejected) for i in range(3)]).require_usable()


def test_forty_equal_rows_are_one_pair_and_a_warning():
    report = examine([pair(i, prompt=(USER,)) for i in range(40)]).require_usable()
    assert counts(report) == {"duplicated pair": ("drop", 39), "few distinct rows": ("warn", 1)}
    assert len(report.rows) == 1
    assert "40 rows, 1 distinct" in "\n".join(report.lines())


def test_a_pair_and_its_reverse_are_named_with_both_rows():
    report = examine([pair(0, "a", "b", (USER,)), pair(7, "b", "a", (USER,))]).require_usable()
    assert counts(report) == {"contradicted pair": ("warn", 2)}
    assert report.problems[0].examples == ("row 0: against row 7", "row 7: against row 0")


@pytest.mark.parametrize(
    "prompt", [(), (USER, {"role": "assistant", "content": "x"}), ({"role": "system", "content": "s"},)]
)
def test_a_prompt_that_does_not_end_with_the_user_is_an_error(prompt):
    rows = [*many(), pair(100, prompt=prompt)]
    role = prompt[-1]["role"] if prompt else "none"
    with pytest.raises(UserError, match=f'train.jsonl: .*row 100: "prompt" ends with role {role}; mend these rows'):
        examine(rows).require_usable()
    assert counts(examine(rows, drop_wrong_roles=True).require_usable()) == {"wrong roles": ("drop", 1)}


def test_an_answer_of_the_user_is_an_error(tmp_path):
    answers = {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": [USER], **answers}), encoding="utf-8")
    with pytest.raises(UserError, match='row 0: "chosen" and "rejected" end with role user and assistant; mend'):
        read(str(path)).require_usable()


def test_ties_and_negative_margins_of_scores_are_counted():
    scored = [pair(i, score_chosen=float(c), score_rejected=1.0) for i, c in enumerate((2, 1, 1, 0))]
    assert counts(examine(scored)) == {"score tie": ("warn", 2), "negative score margin": ("warn", 1)}


def test_odd_prompts_are_kept_with_a_warning():
    rows = [pair(0, prompt=(USER, USER)), pair(1, prompt=({"role": "user", "content": " "},))]
    report = examine(rows).require_usable()
    assert counts(report) == {"empty prompt": ("warn", 1), "roles do not alternate": ("warn", 1)}
    assert len(report.rows) == 2


def test_control_tokens_in_any_text_are_counted():
    rows = [pair(0, "a<|end|>"), pair(1, prompt=({"role": "user", "content": "<|end|>"},)), pair(2, "<|end", "|>")]
    assert counts(examine(rows, control_tokens=["<|end|>"])) == {"control tokens": ("warn", 2)}


def test_length_alone_is_judged_on_pairs_of_unequal_length():
    rows = [pair(i, "longer", "short") for i in range(3)] + [pair(9, "ab", "longer"), pair(10, "ab", "cd")]
    bias = examine(rows).length
    assert (bias.longer_wins, bias.accuracy, bias.n, bias.equal) == (0.75, 0.75, 4, 1)
    # Wilson, 3 of 4: (0.75 + z^2/8 +- z sqrt(0.75*0.25/4 + z^2/64)) / (1 + z^2/4), z = 1.96 -> 0.3006, 0.9544
    assert bias.low == pytest.approx(0.3006, abs=1e-4)
    assert bias.high == pytest.approx(0.9544, abs=1e-4)
    shorter = examine([pair(i, "ab", "longer") for i in range(4)]).length
    assert (shorter.longer_wins, shorter.accuracy) == (0.0, 1.0)


def test_nothing_left_is_an_error_that_says_why():
    turns = [USER, {"role": "assistant", "content": "x"}, USER, {"role": "assistant", "content": "y"}]
    made = convert([{"chosen": turns, "rejected": [{"role": "user", "content": "other"}, turns[1]]}], "rows.jsonl")
    report = examine(made.rows, name="rows.jsonl", problems=made.problems)
    with pytest.raises(
        UserError, match=r"rows\.jsonl: none of 1 row can be used: drop .*diverge before the last answer"
    ):
        report.require_usable()


def test_the_report_is_json_and_plain_lines_that_a_terminal_cannot_obey():
    report = examine([*many(), pair(100, "\x1b[2J same\n", "\x1b[2J same\n")], name="x")
    content = json.loads(json.dumps(report.to_json()))
    assert (content["read"], content["kept"]) == (101, 100)
    assert content["problems"][0]["kind"] == "identical answers"
    assert content["length"]["n"] == 100
    assert all(line.isprintable() for line in report.lines())


def test_every_problem_has_an_action_and_a_meaning():
    assert {action for action, _, _ in PROBLEMS.values()} == {"drop", "warn", "error"}
    assert all(meaning for _, _, meaning in PROBLEMS.values())
