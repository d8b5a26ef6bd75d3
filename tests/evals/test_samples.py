"""Length, repetition and diversity on answers small enough to count by hand."""

import doctest

import pytest

from dpobench.evals import samples as module
from dpobench.evals.samples import distinct, repetition, samples
from dpobench.scores import check

SONG = ["row", "row", "row", "your", "boat", "row", "row", "row", "your", "boat"]


def test_repeated_four_grams_are_counted_by_hand():
    # Windows: rrry rryb ryb. yb.. ... ; 10 words have 7, of which the last two (rrry, rryb) occurred before.
    assert repetition(SONG) == pytest.approx(2 / 7)
    assert repetition(["one", "two", "three", "four", "five"]) == 0
    assert repetition(["no"] * 12) == pytest.approx(8 / 9)
    assert repetition(["too", "short", "now"]) == 0


def test_distinct_n_grams_are_counted_by_hand():
    assert distinct(SONG, 1) == pytest.approx(3 / 10)
    # row-row, row-your, your-boat, boat-row among nine.
    assert distinct(SONG, 2) == pytest.approx(4 / 9)


def test_examples_in_the_docstrings_hold():
    assert doctest.testmod(module) == doctest.TestResults(0, 1)


def test_the_end_token_is_no_part_of_the_answer(tiny):
    frame = tiny.samples_of({"p": [[5, 6, 0], [5, 6, 7]]})
    frame["text"] = ["five six", "five six seven"]
    found = samples(tiny.checkpoint_of(None), tiny.held_out_of(frame))
    check(found, samples.__dpobench__[1]["metrics"], "samples")
    assert tiny.values(found, "length") == [2, 3]
    assert tiny.values(found, "words") == [2, 3]
    assert tiny.values(found, "ended") == [1, 0]
    assert tiny.values(found, "distinct_1") == [1, 1]


def test_an_empty_answer_has_length_zero_and_no_diversity(tiny):
    found = samples(tiny.checkpoint_of(None), tiny.held_out_of(tiny.samples_of({"p": [[0], [4, 0]]})))
    assert tiny.values(found, "length") == [0, 1]
    assert tiny.values(found, "distinct_1") == [1]
    assert tiny.values(found, "distinct_2") == []
    assert tiny.values(found, "repetition") == [0, 0]
