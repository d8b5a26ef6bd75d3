import csv
import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpobench.data.files import load
from dpobench.data.layouts import convert
from dpobench.data.reading import read
from dpobench.data.rows import Preference
from dpobench.errors import UnknownName, UserError

SPEAKERS = {"user": "Human", "assistant": "Assistant"}
FROM = {"user": "human", "assistant": "gpt", "system": "system"}


def unmarked(text):
    return "\n\nHuman:" not in text and "\n\nAssistant:" not in text and not text.startswith(("Human:", "Assistant:"))


texts = st.text(max_size=30).filter(unmarked)
scores = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def comparisons(draw, exchanges=3):
    prompt = []
    if draw(st.booleans()):
        prompt.append({"role": "system", "content": draw(texts.filter(str.strip))})
    for _ in range(draw(st.integers(0, exchanges - 1))):
        prompt += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts)}]
    prompt.append({"role": "user", "content": draw(texts)})
    columns = draw(
        st.fixed_dictionaries({}, optional={"score_chosen": scores, "score_rejected": scores, "weight": scores})
    )
    return Preference(tuple(prompt), draw(texts), draw(texts), columns)


def assistant(text):
    return {"role": "assistant", "content": text}


def transcript(turns):
    parts = [t["content"] if t["role"] == "system" else f"\n\n{SPEAKERS[t['role']]}: {t['content']}" for t in turns]
    return "".join(parts)


def from_value(turn):
    return {"from": FROM[turn["role"]], "value": turn["content"]}


def as_strings(p):
    return {"prompt": p.prompt[-1]["content"], "chosen": p.chosen, "rejected": p.rejected}


def as_transcript(p):
    return {side: transcript([*p.prompt, assistant(getattr(p, side))]) for side in ("chosen", "rejected")}


def as_messages(p):
    return {"prompt": list(p.prompt), "chosen": [assistant(p.chosen)], "rejected": [assistant(p.rejected)]}


def as_messages_with_prompt_repeated(p):
    return {"prompt": list(p.prompt), **as_implicit(p)}


def as_implicit(p):
    return {side: [*p.prompt, assistant(getattr(p, side))] for side in ("chosen", "rejected")}


def as_prompt_and_messages(p):
    return {"prompt": p.prompt[-1]["content"], **as_implicit(p)}


def as_conversations(p):
    sides = {side: from_value(assistant(getattr(p, side))) for side in ("chosen", "rejected")}
    return {"conversations": [from_value(t) for t in p.prompt], **sides}


def as_conversations_with_roles(p):
    sides = {side: assistant(getattr(p, side)) for side in ("chosen", "rejected")}
    return {"conversations": list(p.prompt), **sides}


WRITERS = {
    as_transcript: "transcript",
    as_messages: "messages",
    as_messages_with_prompt_repeated: "messages",
    as_implicit: "implicit",
    as_prompt_and_messages: "prompt-and-messages",
    as_conversations: "conversations",
    as_conversations_with_roles: "conversations",
}


def through_a_file(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw, name = load(str(file))
    return convert(raw, name)


@pytest.mark.parametrize("writer", WRITERS, ids=lambda w: w.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(comparisons(), min_size=1, max_size=3))
def test_a_comparison_survives_every_layout_without_loss(writer, tmp_path, rows):
    made = through_a_file(tmp_path, [{**writer(p), **p.columns} for p in rows])
    assert made.layout == WRITERS[writer]
    assert not made.problems
    assert [p.id for p in made.rows] == [p.id for p in rows]
    assert [(p.prompt, p.chosen, p.rejected, p.columns) for p in made.rows] == [
        (p.prompt, p.chosen, p.rejected, p.columns) for p in rows
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, chosen=texts, rejected=texts)
def test_plain_strings_survive_without_loss(tmp_path, prompt, chosen, rejected):
    row = Preference(({"role": "user", "content": prompt},), chosen, rejected)
    made = through_a_file(tmp_path, [as_strings(row)])
    assert made.layout == "strings"
    assert made.rows[0].id == row.id


# How a third answer may be written down: alone, or with the prompt before it.
GOLD_FORMS = {
    "text": lambda p, text: text,
    "one message": lambda p, text: assistant(text),
    "a list of one message": lambda p, text: [assistant(text)],
    "from and value": lambda p, text: [from_value(assistant(text))],
    "a whole dialogue": lambda p, text: [*p.prompt, assistant(text)],
}


@pytest.mark.parametrize("form", GOLD_FORMS)
@pytest.mark.parametrize("writer", [as_strings, *WRITERS], ids=lambda w: w.__name__)
def test_a_gold_answer_is_read_beside_every_layout_in_every_form(writer, form, tmp_path):
    p = Preference(({"role": "user", "content": "why?"},), "a", "b")
    rows = [writer(p), {**writer(p), "gold": GOLD_FORMS[form](p, "the best: \nof all ")}, {**writer(p), "gold": None}]
    made = through_a_file(tmp_path, rows)
    assert made.layout == WRITERS.get(writer, "strings")
    assert [row.gold for row in made.rows] == [None, "the best: \nof all ", None]
    assert (made.columns, made.ignored, made.problems) == ((), (), ())
    assert made.rows[0].id == made.rows[2].id == p.id != made.rows[1].id


def test_the_blank_after_a_mark_is_no_part_of_a_gold_answer():
    p = Preference(({"role": "user", "content": "Hi"},), "a", "b")
    row = {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " a", "rejected": " b"}
    cases = {
        "after an open transcript": ({**row, "gold": " A"}, "A"),
        "beside whole transcripts": ({**as_transcript(p), "gold": " A"}, "A"),
        "as a whole transcript": ({**as_transcript(p), "gold": transcript([*p.prompt, assistant("A")])}, "A"),
        "after a plain prompt": ({**as_strings(p), "gold": " A"}, " A"),
    }
    assert {name: convert([one], "rows").rows[0].gold for name, (one, _) in cases.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }


def test_the_id_depends_on_content_and_not_on_the_place():
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    first, second = convert([row, row], "one.jsonl").rows
    other = convert([{**row, "score_chosen": 1}], "two.jsonl").rows[0]
    assert first.id == second.id != other.id
    assert (second.row, second.source) == (1, "one.jsonl")


def test_a_shared_beginning_of_two_answers_stays_in_the_answers():
    rows = [
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: The same start, then A",
            "rejected": "\n\nHuman: Hi\n\nAssistant: The same start, then B",
        }
    ]
    made = convert(rows, "rows").rows[0]
    assert made.prompt == ({"role": "user", "content": "Hi"},)
    assert (made.chosen, made.rejected) == ("The same start, then A", "The same start, then B")


def test_a_transcript_as_prompt_with_plain_answers_is_read_as_turns():
    rows = [
        {"prompt": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why\n\nAssistant:", "chosen": " A", "rejected": " B"}
    ]
    made = convert(rows, "rows").rows[0]
    assert [t["role"] for t in made.prompt] == ["user", "assistant", "user"]
    assert (made.chosen, made.rejected) == ("A", "B")


@pytest.mark.parametrize("writer", [as_implicit, as_transcript], ids=["implicit", "transcript"])
def test_dialogues_that_part_before_the_last_answer_are_counted(writer):
    start = ({"role": "user", "content": "u"},)
    good = Preference(start, "a", "b")
    longer = dict(writer(good))
    deep = Preference((*start, assistant("other"), {"role": "user", "content": "again"}), "a", "b")
    longer["rejected"] = writer(deep)["rejected"]
    made = convert([writer(good), longer], "rows")
    assert [p.row for p in made.rows] == [0]
    assert [(f.kind, f.row) for f in made.problems] == [("diverges before the last answer", 1)]


def test_a_prompt_that_is_not_in_the_dialogues_is_counted():
    good = Preference(({"role": "user", "content": "u"},), "a", "b")
    made = convert([as_prompt_and_messages(good), {**as_prompt_and_messages(good), "prompt": "other"}], "rows")
    assert [(f.kind, f.row) for f in made.problems] == [("prompts differ", 1)]


def test_text_and_lists_of_single_answers_go_together():
    row = {
        "prompt": "q",
        "chosen": [assistant("a")],
        "rejected": [assistant("b")],
        "score_chosen": 4,
        "score_rejected": 2.5,
    }
    made = convert([row], "rows")
    assert made.layout == "prompt-and-messages"
    assert made.rows[0].columns == {"score_chosen": 4.0, "score_rejected": 2.5}


def test_text_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    row = {"prompt": [{"role": "user", "content": parts}], "chosen": "a", "rejected": "b"}
    assert convert([row], "rows").rows[0].prompt[0]["content"] == "one two"


def test_numbers_are_kept_and_words_are_named_as_ignored():
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 1, "topic": "art", "mixed": i or "x"}
        for i in range(2)
    ]
    made = convert(rows, "rows")
    assert (made.columns, made.ignored) == (("weight",), ("mixed", "topic"))


def test_columns_can_be_named():
    rows = [{"question": "q", "good": "a", "bad": "b"}]
    made = convert(rows, "rows", columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert (made.rows[0].prompt[0]["content"], made.rows[0].chosen, made.rows[0].rejected) == ("q", "a", "b")


def test_a_wrong_column_name_gets_the_nearest_one():
    with pytest.raises(UnknownName, match="Did you mean 'question'"):
        convert([{"question": "q", "chosen": "a", "rejected": "b"}], "rows", columns={"prompt": "questoin"})


def test_a_layout_can_be_forced_and_a_wrong_one_is_named():
    row = {"prompt": "q", "chosen": "\n\nHuman: x\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"}
    assert convert([row], "rows").rows[0].prompt[0]["content"] == "q"
    assert convert([row], "rows", layout="transcript").rows[0].prompt[0]["content"] == "x"
    with pytest.raises(UnknownName, match="'transcript'"):
        convert([row], "rows", layout="transcrpt")


ROWS = [{"prompt": f"q{i}", "chosen": 'a, "b"\nc', "rejected": "NA", "score_chosen": i / 3} for i in range(3)]


def write_jsonl(path):
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS), encoding="utf-8")


def write_crlf_bom(path):
    path.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(r) + "\r\n" for r in ROWS).encode())


def write_array(path):
    path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")


def write_wrapped(path):
    path.write_text(json.dumps({"data": ROWS}, indent=1), encoding="utf-8")


def write_gzip(path):
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()))


def write_csv(path):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.json", write_jsonl),
        ("a.jsonl", write_crlf_bom),
        ("a.json", write_array),
        ("a.jsonl", write_array),
        ("a.json", write_wrapped),
        ("a.jsonl.gz", write_gzip),
        ("a.csv", write_csv),
        ("a.parquet", write_parquet),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, write):
    write(tmp_path / name)
    report = read(str(tmp_path / name)).require_usable()
    assert [(p.prompt[0]["content"], p.chosen, p.rejected, p.columns) for p in report.rows] == [
        (r["prompt"], r["chosen"], r["rejected"], {"score_chosen": r["score_chosen"]}) for r in ROWS
    ]


def test_saved_data_sets_are_read_and_their_splits_chosen(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict(a=made, b=made).save_to_disk(str(tmp_path / "three"))
    assert load(str(tmp_path / "one"))[0] == ROWS
    assert load(str(tmp_path / "two"))[0] == ROWS
    assert load(str(tmp_path / "two"), split="test")[0] == ROWS[:1]
    with pytest.raises(UserError, match="which split\\? It has a, b"):
        load(str(tmp_path / "three"))
    with pytest.raises(UnknownName, match="Did you mean 'test'"):
        load(str(tmp_path / "two"), split="tset")
    with pytest.raises(UserError, match="single split"):
        load(str(tmp_path / "one"), split="train")
