"""Files of verdicts that others gave."""

import gzip
import json

import pytest

from dpobench import Prompt, UserError
from dpobench.evaluation.annotations import read
from dpobench.evaluation.pairwise import compare, summary
from dpobench.evaluation.registry import judges

ASKED = Prompt("0123456789ab", ({"role": "user", "content": "Name a colour."},))


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_rows_name_the_prompt_by_text_or_by_id(write):
    file = write(
        "verdicts.jsonl",
        lines(
            {"prompt": "Name a colour.", "first": "red", "second": "seven", "verdict": "first"},
            {"prompt_id": ASKED.id, "first": "blue", "second": "red", "p_first": 0.25},
        ),
    )
    annotations = read(file)
    assert annotations.find(ASKED, "red", "seven") == 1
    assert annotations.find(ASKED, "blue", "red") == 0.25


def test_a_comparison_judged_in_the_other_order_is_flipped_unless_both_were(write):
    one = {"prompt": "Name a colour.", "first": "red", "second": "blue", "p_first": 0.75}
    annotations = read(write("one.jsonl", lines(one)))
    assert annotations.find(ASKED, "blue", "red") == 0.25
    both = read(write("both.jsonl", lines(one, {**one, "first": "blue", "second": "red", "p_first": 0.5})))
    assert (both.find(ASKED, "red", "blue"), both.find(ASKED, "blue", "red")) == (0.75, 0.5)


def test_several_verdicts_on_one_comparison_are_averaged(write):
    row = "Name a colour.,red,seven"
    file = write("verdicts.csv", f"prompt,first,second,verdict\n{row},first\n{row},tie\n{row},\n{row},second\n")
    assert read(file).find(ASKED, "red", "seven") == 0.5


def test_white_space_at_the_ends_does_not_distinguish_answers(write):
    annotations = read(
        write("v.jsonl", lines({"prompt": " Name a colour.\n", "first": "red ", "second": "x", "verdict": "tie"}))
    )
    assert annotations.find(ASKED, "red", "x\n") == 0.5
    assert annotations.find(ASKED, "r ed", "x") is None
    assert annotations.find(Prompt("q", ({"role": "user", "content": "Other"},)), "red", "x") is None


def test_line_separators_inside_a_text_do_not_end_its_row(write):
    text = "red\u2028and\x85blue"
    annotations = read(
        write("v.jsonl", lines({"prompt": "Name a colour.", "first": text, "second": "x", "verdict": "first"}))
    )
    assert annotations.find(ASKED, text, "x") == 1


def test_alpaca_evals_annotations_are_read_as_they_are(write):
    row = {
        "instruction": "Name a colour.",
        "output_1": "red",
        "generator_1": "m",
        "output_2": "seven",
        "annotator": "j",
    }
    rows = [{**row, "preference": 1.1}, {**row, "output_1": "blue", "preference": 2}]
    rows += [{**row, "output_1": "a", "preference": 0}, {**row, "output_1": "b", "preference": 1.5}]
    rows += [{**row, "output_1": "c", "preference": None}, {**row, "output_1": "d", "preference": float("nan")}]
    annotations = read(write("annotations.json.gz", gzip.compress(json.dumps(rows, indent=2).encode())))
    shares = [annotations.find(ASKED, answer, "seven") for answer in ("red", "blue", "a", "b", "c", "d")]
    assert shares == [pytest.approx(0.9), 0, 0.5, 0.5, None, None]


def test_rows_as_verdicts_are_written_are_read_as_they_were_shown(write):
    row = {"prompt": "Name a colour.", "a": "red", "b": "seven"}
    rows = [
        {**row, "order": 0, "p_a": 0.9, "verdict": "a"},
        {**row, "order": 1, "p_a": 0.6, "verdict": "a"},
        {**row, "a": "blue", "order": 1, "p_a": float("nan"), "verdict": "b"},
        {**row, "a": "green", "order": 1, "p_a": None, "verdict": "error"},
        {"prompt_id": ASKED.id, "a": "pink", "b": "seven", "verdict": "a"},
    ]
    annotations = read(write("v.jsonl", lines(*rows)))
    assert annotations.find(ASKED, "red", "seven") == 0.9
    # Shown first, "seven" had 1 - 0.6.
    assert annotations.find(ASKED, "seven", "red") == pytest.approx(0.4)
    # "seven" stood first and won.
    assert annotations.find(ASKED, "seven", "blue") == 1
    assert annotations.find(ASKED, "green", "seven") is None
    assert annotations.find(ASKED, "pink", "seven") == 1
    table = write("v.csv", "prompt,a,b,order,p_a,verdict\nName a colour.,red,seven,1,,b\n")
    assert read(table).find(ASKED, "seven", "red") == 1


def test_pandalms_votes_give_the_majority(write):
    row = {"instruction": "Name a colour.", "input": "", "response2": "seven"}
    votes = {"a": (1, 1, 2), "b": (2, 0, 2), "c": (0, 1, 2), "d": (1, 0, 0), "e": (1, 1, 1), "f": (1, 2)}
    rows = [
        {**row, "response1": answer, **{f"annotator{at}": vote for at, vote in enumerate(voted, 1)}}
        for answer, voted in votes.items()
    ]
    rows.append({**rows[0], "input": "Not red."})
    annotations = read(write("test.json", json.dumps(rows)))
    assert [annotations.find(ASKED, answer, "seven") for answer in votes] == [1, 0, 0.5, 0.5, 1, 0.5]
    assert annotations.rows[-1].prompt == "Name a colour.\n\nNot red."


def arena(first, second, score, where="user_prompt"):
    shown = (
        f"<|User Prompt|>\nName a colour.\n\n<|The Start of Assistant A's Answer|>\n{first}\n<|The End of Assistant A's Answer|>"
        f"\n\n<|The Start of Assistant B's Answer|>\n{second}\n<|The End of Assistant B's Answer|>"
    )
    content = (
        shown if where == "user_prompt" else [{"role": "system", "content": "s"}, {"role": "user", "content": shown}]
    )
    return {where: content, "judgment": "words", "score": score}


@pytest.mark.parametrize("where", ["user_prompt", "prompt"])
def test_arena_hards_judgements_are_read_as_they_are(write, where):
    games = [arena("red", "seven\nor eight", "A>>B", where), arena("seven\nor eight", "red", "A=B", where)]
    rows = [
        {"question_id": "1", "model": "m", "games": games},
        {"question_id": "2", "games": [arena("x", "y", None), None]},
    ]
    rows.append({"question_id": "3", "games": [arena("u", "v", "B>A", where), arena("w", "z", "A<B", where)]})
    annotations = read(write("model.jsonl", lines(*rows)))
    assert annotations.find(ASKED, "red", "seven\nor eight") == 1
    assert annotations.find(ASKED, "seven\nor eight", "red") == 0.5
    assert annotations.find(ASKED, "x", "y") is None
    assert (annotations.find(ASKED, "u", "v"), annotations.find(ASKED, "w", "z")) == (0, 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "v.jsonl",
            lines({"prompt": "p", "first": "a", "second": "b", "verdict": "left"}),
            "row 0.*'left'.*first, second or tie",
        ),
        ("v.jsonl", lines({"prompt": "p", "first": "a", "second": "b", "p_first": 7}), "row 0.*p_first.*is 7"),
        ("v.jsonl", lines({"prompt": "p", "answer": "a"}), "row 0.*first.*is None.*AlpacaEval"),
        ("v.jsonl", lines({"prompt": "p", "a": "a", "b": "b", "order": 2, "p_a": 1}), "row 0.*order.*is 2"),
        ("v.jsonl", lines({"prompt": "p", "a": "a", "b": "b", "p_a": "x"}), "row 0.*p_a.*'x'"),
        ("v.jsonl", '{"prompt": "p"\n', "line 1"),
        ("v.jsonl", "[1]\n", "row 0.*list"),
        ("v.json", lines({"instruction": "p", "output_1": "a", "output_2": "b", "preference": 3}), "preference.*is 3"),
        ("v.json", lines({"instruction": "p", "response1": "a", "response2": "b", "annotator1": 3}), "annotator.*is 3"),
        ("v.jsonl", lines({"games": [{"score": "A>B", "user_prompt": "other"}]}), "games.*template"),
        ("v.jsonl", lines({"games": [arena("a", "b", "C>A")]}), "games.*'C>A'"),
        ("v.jsonl", "", "holds none"),
        ("v.csv", b"\xff\xfe\x00", "cannot be read"),
        ("v.jsonl.gz", b"no gzip", "cannot be read"),
    ],
)
def test_mistakes_are_named_with_their_row(write, name, content, message):
    with pytest.raises(UserError, match=message):
        read(write(name, content))


def test_no_file_is_an_error_that_tells_what_is_read():
    for name in ("", "nowhere.csv"):
        with pytest.raises(UserError, match=r"no such file.*prompt_id.*verdict"):
            read(name)


def test_the_imported_judge_looks_up_what_the_file_holds_and_misses_the_rest(write):
    file = write("v.jsonl", lines({"prompt": "Name a colour.", "first": "red", "second": "seven", "verdict": "first"}))
    judge = judges.get("imported").function
    rows = compare(lambda *shown: judge(*shown, file=file), [ASKED] * 2, ["seven", "red"], ["red", "green"])
    annotations = summary(rows)
    assert annotations["score"].tolist()[0] == 0
    assert annotations["missing"].tolist() == [0, 1]
    assert rows["verdict"].tolist() == ["b", "b", "error", "error"]
    assert rows["raw"].tolist()[-1] == "not in v.jsonl"


def test_a_comparison_judged_in_both_orders_is_one_comparison(write):
    row = {"prompt": "Name a colour.", "first": "red", "second": "blue", "verdict": "first"}
    turned = {"prompt": "Name a colour.", "first": "blue", "second": "red"}
    rows = [row, {**turned, "verdict": "first"}, {**turned, "verdict": "second"}, {**turned, "p_first": 0.25}]
    # red: 1, 0, 1, 3/4.
    annotations = read(write("v.jsonl", lines(*rows))).comparisons({})
    assert [(a, b, p) for _, a, b, p in annotations] == [("red", "blue", 2.75 / 4)]


def test_one_order_alone_says_nothing_of_what_the_order_does(write):
    row = {"prompt": "Name a colour.", "first": "red", "second": "seven", "verdict": "first"}
    both = [{**row, "second": "two"}, {**row, "first": "two", "second": "red", "verdict": "first"}]
    file = write("v.jsonl", lines(row, *both))
    judge = judges.get("imported").function
    rows = compare(
        lambda *shown: judge(*shown, file=file), [ASKED] * 3, ["red", "seven", "red"], ["seven", "red", "two"]
    )
    annotations = summary(rows)
    assert annotations["score"].tolist() == [1, 0, 0.5]
    assert (
        annotations["first_shown"].isna().tolist() == annotations["inconsistent"].isna().tolist() == [True, True, False]
    )
    assert annotations.loc[2, ["first_shown", "inconsistent"]].tolist() == [1, 1]
    assert annotations["missing"].tolist() == [0, 0, 0]
