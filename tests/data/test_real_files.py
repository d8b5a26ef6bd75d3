"""The real files beside the checkout: what they hold, and that no answer stands in a prompt."""

import gzip
import json
import re
import sys
import time

import pytest

from dpobench.data.reading import read
from dpobench.data.split import hold_out
from dpobench.data.template import control_tokens
from dpobench.data.tokenise import tokenise

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "preferences"


def path_of(folder, name):
    if not (folder / name).is_file():
        pytest.skip(f"{name} is absent")
    return folder / name


def say(capsys, lines):
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")


# name: layout, rows, usable, {problem: count}
FILES = {
    "hh_harmless_test.jsonl.gz": (
        "transcript",
        2312,
        2303,
        {"diverges before the last answer": 5, "empty answer": 4, "roles do not alternate": 4},
    ),
    "sharegpt_dpo_en_demo.json.gz": ("conversations", 300, 295, {"duplicated pair": 5}),
    "alpacaeval2_pairs.jsonl.gz": ("strings", 1067, 1067, {}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_read_checked_and_tokenised_in_full(name, folder, plain_tokenizer, capsys):
    path = str(path_of(folder, name))
    layout, rows, usable, problems = FILES[name]
    start = time.process_time()
    report = read(path, control_tokens=control_tokens(plain_tokenizer)).require_usable()
    assert (report.layout, report.rows_read, len(report.rows)) == (layout, rows, usable)
    assert {p.kind: p.count for p in report.problems} == problems
    train, heldout = hold_out(report.rows, 0.1)
    pairs, tokens = tokenise(report.rows, plain_tokenizer, max_tokens=40_000, max_prompt_tokens=30_000)
    spent = time.process_time() - start
    assert len(pairs) == usable
    assert (tokens.dropped, tokens.cut_answers) == ({}, 0)
    assert {row.prompt_id for row in train}.isdisjoint({row.prompt_id for row in heldout})
    assert 0.05 * usable < len(heldout) < 0.15 * usable
    # Measured: 2 s; a quadratic step somewhere would take minutes.
    assert spent < 20
    say(capsys, [*report.lines(), *tokens.lines(), f"{spent:.2f} s of CPU; {len(heldout)} rows held out"])


def turns_of(text):
    """Written apart from the package on purpose."""
    marks = list(re.finditer(r"\n\n(Human|Assistant):", text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    return [(m[1], text[m.end() : end]) for m, end in zip(marks, ends, strict=True)]


def shared_characters(a, b):
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def test_no_answer_text_stands_in_a_prompt_of_the_dialogues(folder, capsys):
    path = path_of(folder, "hh_harmless_test.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        raw = [json.loads(line) for line in stream]
    usable = read(str(path)).require_usable().rows
    eaten = split_words = 0
    for row in usable:
        chosen, rejected = raw[row.row]["chosen"], raw[row.row]["rejected"]
        written = "".join(
            f"\n\n{'Human' if turn['role'] == 'user' else 'Assistant'}: {turn['content']}" for turn in row.prompt
        )
        assert row.prompt[-1]["role"] == "user"
        for text, answer in ((chosen, row.chosen), (rejected, row.rejected)):
            # Whole turns: the prompt is all turns but the last, which is the whole answer.
            assert turns_of(text)[:-1] == turns_of(written)
            assert turns_of(text)[-1][0] == "Assistant"
            assert turns_of(text)[-1][1].removeprefix(" ") == answer
        prefix = shared_characters(chosen, rejected)
        answer_from = len(written) + len("\n\nAssistant: ")
        eaten += len(prefix.rstrip()) > answer_from
        after = chosen[len(prefix) :][:1] + rejected[len(prefix) :][:1]
        split_words += len(prefix) > answer_from and prefix[-1].isalpha() and any(map(str.isalpha, after))
    assert len(usable) == 2303
    # The trap is in the data: a prefix of characters would have taken answer text in hundreds of these rows.
    assert (eaten, split_words) == (444, 197)
    say(
        capsys,
        [
            f"{len(usable)} of {len(raw)} rows kept, 0 prompts with answer text",
            f"(a prefix of characters: {eaten} rows, in {split_words} of them within a word)",
        ],
    )


def test_scores_of_a_real_file_come_along(folder):
    report = read(str(path_of(folder, "alpacaeval2_pairs.jsonl.gz")))
    assert report.columns == ("score_chosen", "score_rejected")
    assert all(row.columns["score_chosen"] > row.columns["score_rejected"] for row in report.rows)
