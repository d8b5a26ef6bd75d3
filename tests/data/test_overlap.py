import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpobench.data.rows import Preference
from dpobench.data.split import hold_out, normalised, overlaps
from dpobench.errors import UserError

WORDS = [f"w{i}" for i in range(2000)]


def sentence(seed, length=20):
    return " ".join(random.Random(seed).sample(WORDS, length))


def asks(text, number=0, system=None):
    prompt = ({"role": "system", "content": system},) if system else ()
    return Preference(
        (*prompt, {"role": "user", "content": text}), f"good {number}", f"bad {number}", {}, "rows", number
    )


def test_the_same_words_in_other_dress_are_an_exact_hit():
    hits = overlaps(["WHAT is\nthe ﬁrst — word?"], ["other", "what is the first word"])
    assert [(h.heldout, h.training, h.kind) for h in hits] == [(0, 1, "exact")]


def test_thirteen_words_in_a_row_are_a_hit_and_twelve_are_not():
    heldout = sentence(1)
    words = heldout.split()
    assert overlaps([heldout], ["before " + " ".join(words[3:16]) + " after"])[0].kind == "n-gram"
    assert overlaps([heldout], ["before " + " ".join(words[3:15]) + " after"]) == []
    assert overlaps([heldout], ["before " + " ".join(words[-13:])])[0].text == " ".join(words[-13:])


def test_planted_overlaps_are_found_and_nothing_else():
    training = [sentence(i, 40) for i in range(2000)]
    heldout = [sentence(10_000 + i, 40) for i in range(200)]
    planted = list(range(0, 200, 5))
    for i in planted:
        run = heldout[i].split()[10:24]
        training[i * 7] = " ".join(training[i * 7].split()[:10] + run)
    assert [(h.heldout, h.training) for h in overlaps(heldout, training)] == [(i, i * 7) for i in planted]


def test_a_form_that_many_prompts_share_is_no_leak():
    form = sentence(5, 15)
    training = [f"{form} {sentence(100 + i)}" for i in range(60)]
    assert overlaps([f"{form} {sentence(1)}"], training) == []
    assert len(overlaps([f"{form} {sentence(1)}"], training[:3])) == 1


@pytest.mark.parametrize(("a", "b"), [("🙂", "🙃"), ("?", "!")])
def test_texts_without_words_are_compared_as_they_are(a, b):
    assert normalised(a) != normalised(b)


@settings(max_examples=60, deadline=None)
@given(
    questions=st.lists(st.sampled_from([f"question {i}" for i in range(12)]), min_size=2, max_size=40),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 5),
)
def test_no_question_is_on_both_sides_and_no_row_is_lost(questions, share, seed):
    rows = [asks(q if i % 2 else q.upper() + "?", i) for i, q in enumerate(questions)]
    if len(set(questions)) < 2:
        with pytest.raises(UserError, match="1 distinct question"):
            hold_out(rows, share, seed)
        return
    train, heldout = hold_out(rows, share, seed)
    sides = [{normalised(row.prompt[-1]["content"]) for row in side} for side in (train, heldout)]
    assert not sides[0] & sides[1]
    assert all(sides)
    assert sorted(row.row for row in train + heldout) == list(range(len(rows)))


def test_the_share_is_kept_and_a_seed_gives_one_division():
    rows = [asks(sentence(i, 8), i) for i in range(2000)]
    train, heldout = hold_out(rows, 0.1, 3)
    # Binomial(2000, 0.1): mean 200, standard deviation 13.4; five of them.
    assert 133 < len(heldout) < 267
    assert hold_out(rows, 0.1, 3) == (train, heldout)
    assert {row.row for row in hold_out(rows, 0.1, 4)[1]} != {row.row for row in heldout}


def test_more_rows_move_no_prompt_to_the_other_side():
    rows = [asks(sentence(i, 8), i) for i in range(600)]
    before = {row.row for row in hold_out(rows[:300], 0.2)[1]}
    after = {row.row for row in hold_out(rows, 0.2)[1] if row.row < 300}
    assert before == after


def test_held_out_rows_that_training_gives_away_are_left_out():
    rows = [asks(sentence(i), i) for i in range(200)]
    _, clean = hold_out(rows, 0.2)
    leaked = clean[0].prompt[-1]["content"]
    extended = [asks(f"{leaked} {sentence(900 + i)}", 500 + i) for i in range(8)]
    train, heldout = hold_out([*rows, *extended], 0.2)
    trained = {row.row for row in train}
    assert any(row.row in trained for row in extended)
    assert clean[0].row not in {row.row for row in heldout} | trained
    assert len(train) + len(heldout) < len(rows) + len(extended)


def test_a_system_turn_does_not_make_another_question():
    rows = [asks(f"question {i // 2}", i, system="be brief" if i % 2 else None) for i in range(100)]
    train, heldout = hold_out(rows, 0.3)
    assert len(train) + len(heldout) == 100
    assert {row.row // 2 for row in train}.isdisjoint({row.row // 2 for row in heldout})


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(UserError, match="between 0 and 1"):
        hold_out([asks("a"), asks("b", 1)], share)
