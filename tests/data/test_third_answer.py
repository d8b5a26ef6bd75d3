"""A third, best answer beside a pair: tokenised like the other two, stored and hashed only where there is one."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dpobench.data.check import examine
from dpobench.data.reading import read
from dpobench.data.rows import Preference
from dpobench.data.template import control_tokens
from dpobench.data.tokenise import tokenise
from dpobench.data.tokens import TokenPair, pairs_hash, read_pairs, write_pairs

USER = {"role": "user", "content": "why?"}
ALL = ["plain_tokenizer", "chat_tokenizer", "begin_tokenizer", "twice_begin_tokenizer", "spaced_tokenizer"]


def asks(gold=None, chosen="because", rejected="no", number=0):
    return Preference((USER,), chosen, rejected, {"score_chosen": 1.0}, "rows", number, gold)


def ids(*tokens):
    return np.array(tokens, np.int64)


def pair(gold=None, identity="a"):
    return TokenPair(identity, ids(1, 2), ids(3, 4), ids(5), {"score": 0.5}, gold=gold)


@pytest.mark.parametrize("name", ALL)
def test_a_gold_answer_has_the_tokens_it_would_have_as_the_chosen_one(name, request):
    tokenizer = request.getfixturevalue(name)
    (made,), _ = tokenise([asks(gold="the best of all")], tokenizer)
    (other,), _ = tokenise([asks(chosen="the best of all")], tokenizer)
    assert made.gold.tolist() == other.chosen.tolist()
    assert made.gold[-1] == tokenizer.eos_token_id


def test_a_gold_answer_changes_nothing_about_the_two_others(plain_tokenizer):
    (bare,), before = tokenise([asks()], plain_tokenizer)
    (made,), after = tokenise([asks(gold="the best")], plain_tokenizer)
    assert bare.gold is None
    for side in ("prompt", "chosen", "rejected"):
        assert getattr(made, side).tolist() == getattr(bare, side).tolist()
    assert made.size == bare.size
    assert (after.total, after.shared) == (before.total, before.shared)
    assert dict(before.tokens) == {name: value for name, value in after.tokens.items() if name != "gold"}
    assert after.tokens["gold"]["max"] == len(made.gold)


def test_a_gold_answer_stays_with_its_row_where_others_have_none_or_are_lost(plain_tokenizer):
    lost = replace(asks("GOLD OF THE LOST", number=1), prompt=({"role": "user", "content": "long " * 99},))
    rows = [asks(number=0), lost, asks("gold two", number=2), asks(number=3), asks("gold four", number=4)]
    pairs, report = tokenise(rows, plain_tokenizer, max_tokens=200, max_prompt_tokens=50, most_lost=0.5)
    # The plain template puts a blank between a prompt and its answer.
    golds = [None if p.gold is None else plain_tokenizer.decode(p.gold.tolist()) for p in pairs]
    assert golds == [None, " gold two<|end|>", None, " gold four<|end|>"]
    assert report.dropped == {"prompt too long": 1}


def test_a_gold_answer_is_cut_at_the_room_left_and_then_has_no_end_token(plain_tokenizer):
    row = asks(gold="x y z " * 30)
    (whole,), _ = tokenise([row], plain_tokenizer)
    size = len(whole.prompt)
    room = max(len(whole.chosen), len(whole.rejected))
    (made,), report = tokenise([row], plain_tokenizer, max_tokens=size + room, max_prompt_tokens=size)
    assert made.gold.tolist() == whole.gold.tolist()[:room]
    assert plain_tokenizer.eos_token_id not in made.gold
    assert (report.cut_golds, report.cut_answers, report.cut_pairs) == (1, 0, 0)
    assert f"warn  1 gold answers cut at {size + room} tokens: they have no end token" in report.lines()


def test_a_gold_answer_that_just_fits_is_not_cut(plain_tokenizer):
    row = asks(gold="x y z " * 30)
    (whole,), _ = tokenise([row], plain_tokenizer)
    limit = len(whole.prompt) + len(whole.gold)
    (made,), report = tokenise([row], plain_tokenizer, max_tokens=limit, max_prompt_tokens=len(whole.prompt))
    assert made.gold.tolist() == whole.gold.tolist()
    assert report.cut_golds == 0


def test_control_tokens_in_a_gold_answer_are_counted_and_become_plain_text(chat_tokenizer):
    row = asks(gold="a <|im_end|> b")
    report = examine([row, asks("fine", chosen="yes", number=1)], control_tokens=control_tokens(chat_tokenizer))
    assert [(p.kind, p.count) for p in report.problems] == [("control tokens", 1)]
    (made,), tokens = tokenise([row], chat_tokenizer)
    assert tokens.neutralised == 1
    assert made.gold.tolist().count(chat_tokenizer.eos_token_id) == 1
    assert chat_tokenizer.decode(made.gold.tolist()) == "a <|im_end|> b<|im_end|>"


def test_a_gold_answer_survives_parquet_beside_rows_without_one(tmp_path):
    rows = [pair(ids(7, 8, 9), "a"), pair(None, "b"), pair(ids(6), "c")]
    scored = [p.with_reference(np.float32([-1.0, -2.0]), np.float32([-0.5])) for p in rows]
    write_pairs(tmp_path / "pairs.parquet", scored)
    again = read_pairs(tmp_path / "pairs.parquet")
    assert [None if p.gold is None else p.gold.tolist() for p in again] == [[7, 8, 9], None, [6]]
    assert again[0].gold.dtype == np.int64
    assert [p.chosen_reference.tolist() for p in again] == [[-1.0, -2.0]] * 3
    assert pairs_hash(again) == pairs_hash(rows)


def test_pairs_without_gold_answers_are_stored_without_a_column_for_them(tmp_path):
    import pyarrow.parquet as pq

    write_pairs(tmp_path / "pairs.parquet", [pair()])
    columns = pq.read_schema(tmp_path / "pairs.parquet").names
    assert columns == ["id", "prompt", "chosen", "rejected", "chosen_reference", "rejected_reference", "column.score"]
    assert read_pairs(tmp_path / "pairs.parquet")[0].gold is None


def test_hashes_of_data_without_gold_answers_are_those_of_before_there_were_any():
    # Both were computed by commit 8f5af25, which knew no third answer.
    rows = [pair(), TokenPair("b", ids(1), ids(6), ids(7, 8))]
    assert pairs_hash(rows) == "11b27058005e"
    assert Preference(({"role": "user", "content": "q"},), "a", "b", {"score": 0.5}).id == "15e9c6e10744"


def test_hashes_tell_gold_answers_apart():
    assert len({pairs_hash([pair(gold)]) for gold in (None, ids(7), ids(8), ids(7, 8))}) == 4
    assert len({asks(gold).id for gold in (None, "best", "other")}) == 3


def test_what_is_computed_for_one_loss_is_neither_stored_nor_hashed(tmp_path):
    logps = (np.float32([0.0, 0.0]), np.float32([0.0]))
    full = replace(pair(), extras={"entropy": logps}, mismatched=pair(identity="b"))
    write_pairs(tmp_path / "full.parquet", [full])
    write_pairs(tmp_path / "bare.parquet", [pair()])
    assert (tmp_path / "full.parquet").read_bytes() == (tmp_path / "bare.parquet").read_bytes()
    assert pairs_hash([full]) == pairs_hash([pair()])
    (again,) = read_pairs(tmp_path / "full.parquet")
    assert (dict(again.extras), again.mismatched) == ({}, None)


def test_a_gold_column_in_a_file_reaches_the_tokens_and_is_not_called_unread(tmp_path, plain_tokenizer):
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "best": "the best" if i else None, "topic": "art"}
        for i in range(2)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = read(str(file), columns={"gold": "best"}).require_usable()
    assert report.ignored == ("topic",)
    first, second = tokenise(report.rows, plain_tokenizer)[0]
    assert first.gold is None
    assert plain_tokenizer.decode(second.gold.tolist()) == " the best<|end|>"
