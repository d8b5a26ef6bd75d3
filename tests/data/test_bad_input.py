import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpobench.data.files import load
from dpobench.data.layouts import convert
from dpobench.data.reading import read
from dpobench.errors import BadRow, UserError

USER = {"role": "user", "content": "q"}
ANSWERS = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
STRINGS = {"prompt": "q", "chosen": "a", "rejected": "b"}
MESSAGES = {"prompt": [USER], **ANSWERS}
IMPLICIT = {side: [USER, *ANSWERS[side]] for side in ANSWERS}
TRANSCRIPT = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "b"},
}
SCORED = {**STRINGS, "score_chosen": 1.0}


def without(row, column):
    return {key: value for key, value in row.items() if key != column}


def user_says(content):
    return [{"role": "user", "content": content}]


# id: (good row, bad row, column, what is wrong, what to do)
BAD_ROWS = {
    "a column missing in one row": (STRINGS, without(STRINGS, "rejected"), "rejected", "is missing", "add it"),
    "an answer that is null": (STRINGS, {**STRINGS, "chosen": None}, "chosen", "is null", "remove the row"),
    "a prompt that is null": (STRINGS, {**STRINGS, "prompt": None}, "prompt", "is null", "remove the row"),
    "a whole number": (STRINGS, {**STRINGS, "chosen": 3}, "chosen", "is a number (3)", "write it in quotes"),
    "a decimal number": (STRINGS, {**STRINGS, "rejected": 2.5}, "rejected", "is a number (2.5)", "write it in quotes"),
    "an empty cell": (STRINGS, {**STRINGS, "prompt": float("nan")}, "prompt", "is NaN", "fill it in"),
    "a lone surrogate": (STRINGS, {**STRINGS, "chosen": "abcd\ud800"}, "chosen", "U+D800 at character 4", "repair"),
    "a list among texts": (STRINGS, {**STRINGS, "chosen": ["a"]}, "chosen", "holds messages", "the same type"),
    "an object among texts": (
        STRINGS,
        {**STRINGS, "prompt": {"text": "q"}},
        "prompt",
        "holds messages",
        "the same type",
    ),
    "a score in words": (SCORED, {**SCORED, "score_chosen": "high"}, "score_chosen", "'high'", "a finite number"),
    "a score that is NaN": (SCORED, {**SCORED, "score_chosen": float("nan")}, "score_chosen", "nan", "a finite number"),
    "an endless score": (SCORED, {**SCORED, "score_chosen": float("inf")}, "score_chosen", "inf", "a finite number"),
    "a score too large": (SCORED, {**SCORED, "score_chosen": 10**400}, "score_chosen", "is 1000", "a finite number"),
    "no messages": (MESSAGES, {**MESSAGES, "chosen": []}, "chosen", "has no messages", "give at least one turn"),
    "messages that are null": (MESSAGES, {**MESSAGES, "prompt": None}, "prompt", "is null", "the same type"),
    "messages that are a number": (
        MESSAGES,
        {**MESSAGES, "rejected": 7},
        "rejected",
        "is a number (7)",
        "the same type",
    ),
    "text among messages": (MESSAGES, {**MESSAGES, "prompt": "q"}, "prompt", "is text where", "the same type"),
    "content that is null": (
        MESSAGES,
        {**MESSAGES, "prompt": user_says(None)},
        "prompt[0].content",
        "is null",
        "fill it in",
    ),
    "content that is absent": (
        MESSAGES,
        {**MESSAGES, "prompt": [{"role": "user"}]},
        "prompt[0].content",
        "is null",
        "fill it in",
    ),
    "content that is a number": (
        MESSAGES,
        {**MESSAGES, "prompt": user_says(1)},
        "prompt[0].content",
        "number",
        "quotes",
    ),
    "content with a surrogate": (
        MESSAGES,
        {**MESSAGES, "prompt": user_says("\udfff")},
        "prompt[0].content",
        "U+DFFF at character 0",
        "repair",
    ),
    "an image": (
        MESSAGES,
        {**MESSAGES, "prompt": user_says([{"type": "image", "url": "x"}])},
        "prompt[0].content[0]",
        "type image",
        "remove the row",
    ),
    "a part without text": (
        MESSAGES,
        {**MESSAGES, "prompt": user_says([{"type": "text"}])},
        "prompt[0].content[0].text",
        "is null",
        "fill it in",
    ),
    "an unknown role": (
        MESSAGES,
        {**MESSAGES, "prompt": [{"role": "wizard", "content": "q"}]},
        "prompt[0].role",
        'is "wizard"',
        "known roles: assistant",
    ),
    "a tool's turn": (
        IMPLICIT,
        {**IMPLICIT, "chosen": [USER, {"role": "tool", "content": "4"}]},
        "chosen[1].role",
        'is "tool"',
        "known roles",
    ),
    "no role": (MESSAGES, {**MESSAGES, "prompt": [{"content": "q"}]}, "prompt[0].role", "is missing", "known roles"),
    "a turn that is text": (
        MESSAGES,
        {**MESSAGES, "prompt": ["q"]},
        "prompt[0]",
        "is a text",
        "a message is an object",
    ),
    "a tool call": (
        IMPLICIT,
        {**IMPLICIT, "chosen": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]},
        "chosen[1]",
        "is a tool call",
        "remove the row",
    ),
    "a system turn in the middle": (
        IMPLICIT,
        {side: [USER, {"role": "system", "content": "s"}, *ANSWERS[side]] for side in ANSWERS},
        "chosen",
        "system turn at place 1",
        "only come first",
    ),
    "a transcript without turns": (
        TRANSCRIPT,
        {**TRANSCRIPT, "chosen": "just text"},
        "chosen",
        "no turn marked",
        "mark",
    ),
    "a transcript that is null": (
        TRANSCRIPT,
        {**TRANSCRIPT, "rejected": None},
        "rejected",
        "is null",
        "remove the row",
    ),
    "tools": (SHAREGPT, {**SHAREGPT, "tools": "[{}]"}, "tools", "is not empty", "remove the row"),
    "conversations that are null": (
        SHAREGPT,
        {**SHAREGPT, "conversations": None},
        "conversations",
        "is null",
        "the same type",
    ),
    "an unknown speaker": (
        SHAREGPT,
        {**SHAREGPT, "conversations": [{"from": "narrator", "value": "q"}]},
        "conversations[0].from",
        'is "narrator"',
        "known roles",
    ),
    "an empty gold answer": (STRINGS, {**STRINGS, "gold": " \n"}, "gold", "is empty", "put null in its place"),
    "an empty gold message": (
        MESSAGES,
        {**MESSAGES, "gold": [{"role": "assistant", "content": ""}]},
        "gold",
        "is empty",
        "null",
    ),
    "a gold answer that is a number": (STRINGS, {**STRINGS, "gold": 3.5}, "gold", "is a number (3.5)", "quotes"),
    "a gold answer without messages": (
        MESSAGES,
        {**MESSAGES, "gold": []},
        "gold",
        "has no messages",
        "at least one turn",
    ),
    "a gold answer of the user": (
        MESSAGES,
        {**MESSAGES, "gold": user_says("g")},
        "gold",
        "ends with role user",
        "assistant's",
    ),
    "a gold answer to another prompt": (
        IMPLICIT,
        {**IMPLICIT, "gold": [*user_says("other"), *ANSWERS["chosen"]]},
        "gold",
        "does not begin with the prompt",
        "give the answer alone",
    ),
    "a system prompt that is a number": (SHAREGPT, {**SHAREGPT, "system": 5}, "system", "is a number (5)", "quotes"),
}


def written(folder, *rows, name="train.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_names_file_row_column_and_remedy(case, tmp_path):
    good, bad, column, fault, remedy = BAD_ROWS[case]
    path = written(tmp_path, good, good, bad, good)
    with pytest.raises(BadRow) as refusal:
        read(path)
    message = str(refusal.value)
    assert message.startswith(f'{path} row 2: "{column}" ')
    what, todo = message.split("; ", 1)
    assert fault in what
    assert remedy in todo
    assert (refusal.value.row, refusal.value.column) == (2, column)
    assert "\n" not in message


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_can_be_left_out_and_is_counted(case, tmp_path):
    good, bad, *_ = BAD_ROWS[case]
    report = read(written(tmp_path, good, bad, good), on_bad_row="drop").require_usable()
    problems = {p.kind: p.count for p in report.problems}
    assert problems["bad row"] == 1
    assert report.rows_read == 3
    assert [row.row for row in report.rows] == [0]


def test_a_bad_first_row_does_not_decide_the_layout(tmp_path):
    with pytest.raises(BadRow, match='row 0: "chosen" is null'):
        read(written(tmp_path, {**IMPLICIT, "chosen": None}, IMPLICIT))


def gz(text):
    return gzip.compress(text.encode())


def array(*rows):
    return json.dumps(rows).encode()


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


GOOD = lines(STRINGS)
DEEP = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"

# id: (name, bytes, what the message says after the file's name)
BAD_FILES = {
    "an empty file": ("a.jsonl", b"", r": 0 rows .*empty.*downloaded completely"),
    "an empty array": ("a.json", b"[]", r": 0 rows; at least one"),
    "an empty gzip": ("a.jsonl.gz", gz(""), r": 0 rows"),
    "only a header": ("a.csv", b"prompt,chosen,rejected\n", r": 0 rows"),
    "not UTF-8": (
        "a.jsonl",
        GOOD + b'{"prompt": "caf\xe9"}\n',
        rf" line 2, byte {len(GOOD) + 15}: not UTF-8 \(0xe9.*iconv",
    ),
    "UTF-16": ("a.jsonl", GOOD.decode().encode("utf-16"), r": is UTF-16 text; give UTF-8"),
    "a zip archive": ("a.jsonl", b"PK\x03\x04rest", r": is a zip archive; give"),
    "zstandard": ("a.jsonl.zst", b"\x28\xb5\x2f\xfdrest", r": is zstandard-compressed; give"),
    "a cut gzip": ("a.jsonl.gz", gz("x" * 9000)[:-12], r": the gzip stream is cut off after byte \d.*get it again"),
    "a damaged gzip": ("a.jsonl.gz", gz("y" * 90)[:-8] + b"\0" * 8, r": the gzip stream is damaged .*get it again"),
    "a cut last line": ("a.jsonl", GOOD + GOOD[:20], r" line 2, byte \d+: not valid JSON .*cut off: get it again"),
    "a broken line": (
        "a.jsonl",
        GOOD + b"{oops}\n" + GOOD,
        rf" line 2, byte {len(GOOD)}: not valid JSON .*mend or delete",
    ),
    "a cut array": ("a.json", array(STRINGS, STRINGS)[:-8], r" row 1: not valid JSON .*cut off: get it again"),
    "a broken array": ("a.json", b'[{"a": 1}, {"a": oops}, {}]', r" row 1: not valid JSON .*mend this row"),
    "too deep": ("a.jsonl", DEEP, r" line 1, byte 0: not valid JSON \(.*recursion.*\)"),
    "too many digits": ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", r" line 1, byte 0: not valid JSON .*digits"),
    "a list as line": ("a.jsonl", GOOD + b"[1, 2]\n", r' line 2 row 1: "\*" is a list; a row is an object'),
    "a number in an array": ("a.json", array(STRINGS, 4), r' row 1: "\*" is a int; a row is an object'),
    "a key twice": ("a.jsonl", b'{"chosen": "a", "chosen": "b"}\n', r' line 1 row 0: "chosen" appears twice; keep one'),
    "a key twice in an array": ("a.json", b'[{}, {"b": 1, "b": 2}]', r' row 1: "b" appears twice; keep one'),
    "too many cells": ("a.csv", b"prompt,chosen\nq,a,b\n", r" row 0 \(ends in line 2\): 3 cells under 2.*quote"),
    "an open quote": ("a.csv", b'prompt,chosen\nq,"a\n', r" line 2: not valid CSV .*mend its quotes"),
    "a column name twice": ("a.csv", b"chosen,chosen\na,b\n", r': column "chosen" appears twice; rename'),
    "a broken parquet": ("a.parquet", b"PAR1 and nothing", r": not a readable parquet file .*get it again"),
    "no column rejected": (
        "a.jsonl",
        lines(without(STRINGS, "rejected")),
        r': no column "rejected" \(its columns: chosen, prompt\)\. Name it with --set data.columns.rejected=NAME',
    ),
    "a column of another name": (
        "a.jsonl",
        lines({**without(STRINGS, "chosen"), "chosen_answer": "a"}),
        r'no column "chosen" .* --set data.columns.chosen=chosen_answer',
    ),
    "no column prompt": (
        "a.jsonl",
        lines(without(STRINGS, "prompt")),
        r': no column "prompt".*--set data.columns.prompt=NAME',
    ),
    "unpaired answers": (
        "a.jsonl",
        lines({"prompt": "q", "completion": "a", "label": True}),
        r": single answers with a label.*make rows with",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named_with_place_and_reason(case, tmp_path):
    name, content, expected = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as refusal:
        read(str(path))
    assert str(refusal.value).startswith(str(path))
    assert "\n" not in str(refusal.value)


def test_a_parquet_file_with_numbers_for_text_names_the_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": ["q"], "chosen": [1], "rejected": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(BadRow, match=r'a\.parquet row 0: "chosen" is a number \(1\); text is expected'):
        read(str(tmp_path / "a.parquet"))


def test_a_line_without_end_is_refused_by_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr("dpobench.data.files.LONGEST_LINE", 100)
    with pytest.raises(UserError, match=r"line 2: \d+ characters, at most 100; write one row per line"):
        load(written(tmp_path, STRINGS, {**STRINGS, "chosen": "x" * 200}))


def test_a_missing_file_gets_the_nearest_existing_name(tmp_path):
    written(tmp_path, STRINGS, name="train.jsonl")
    with pytest.raises(UserError, match=r"trian\.jsonl: no such file or folder\. Did you mean .*train\.jsonl\?"):
        load(str(tmp_path / "trian.jsonl"))
    with pytest.raises(UserError, match="nothing of a similar name"):
        load(str(tmp_path / "qqqq.csv"))


def test_a_missing_folder_names_the_last_that_exists(tmp_path):
    with pytest.raises(UserError) as refusal:
        load(str(tmp_path / "nowhere" / "deep" / "train.jsonl"))
    assert str(refusal.value).endswith(f"(the last that does: {tmp_path})")


def test_a_folder_names_the_files_it_holds(tmp_path):
    with pytest.raises(UserError, match="it holds no data file"):
        load(str(tmp_path))
    written(tmp_path, STRINGS)
    with pytest.raises(UserError, match=r"is a folder, .*name one of its files: train\.jsonl"):
        load(str(tmp_path))


def test_a_file_cannot_be_split(tmp_path):
    with pytest.raises(UserError, match="a single file has no splits or subsets; leave out 'train'"):
        load(written(tmp_path, STRINGS), split="train")


def test_an_unreadable_file_says_why(tmp_path, monkeypatch):
    path = written(tmp_path, STRINGS)

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot be read .Permission denied.; check the file and its permissions"):
        load(path)


def test_a_hub_name_without_network_says_what_was_tried(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"nobody/nothing: no file or folder.*only the local cache was searched: HF_HUB_OFFLINE"
    ):
        load("nobody/nothing")


@pytest.mark.parametrize("text", ["\0", "😀 ‮ bidi", "a\u0301 \U0001f468‍\U0001f469", "\x1b[31m", "﻿bom", "\u2028"])
def test_every_valid_text_is_kept_to_the_last_character(text, tmp_path):
    rows = convert(*load(written(tmp_path, {**STRINGS, "chosen": text}))).rows
    assert rows[0].chosen == text


def test_reading_data_imports_no_heavy_library(tmp_path):
    code = (
        "import sys; from dpobench.data import reading as d; d.read(sys.argv[1]).require_usable();"
        "sys.exit(','.join({'torch', 'transformers', 'datasets'} & set(sys.modules)) or 0)"
    )
    root = Path(__file__).resolve().parents[2]
    path = written(tmp_path, STRINGS)
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
