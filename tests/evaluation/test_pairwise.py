"""Both orders, one more try, and what they come to: worked out by hand for judges whose habits are known."""

import math

import numpy as np
import pandas as pd
import pytest

from dpobench import DpobenchError, Prompt, UserError
from dpobench.evaluation.pairwise import COLUMNS, compare, require_verdicts, summary
from dpobench.stats.crossed import crossed_mean, share_interval

ASKED = [Prompt(key, ({"role": "user", "content": key},)) for key in ("p", "q", "r")]


def judge_of(rule):
    """A judge that gives `rule(prompt, first, second)`; it records its calls."""
    calls = []

    def judge(prompts, first, second):
        shown = list(zip([p.id for p in prompts], first, second, strict=True))
        calls.append(shown)
        return pd.DataFrame({"p_first": [rule(*one) for one in shown]})

    judge.calls = calls
    return judge


def longer(prompt, first, second):
    return 1.0 if len(first) > len(second) else 0.0


def test_a_judge_of_the_answers_says_the_same_in_both_orders():
    results = summary(compare(judge_of(longer), ASKED, ["aaa", "a", "aa"], ["b", "bbb", "bbb"]))
    assert results["score"].tolist() == results["says"].tolist() == [1, 0, 0]
    assert results["first_shown"].tolist() == [0.5] * 3
    assert results["inconsistent"].tolist() == results["missing"].tolist() == [0] * 3


def test_a_judge_of_the_place_scores_one_half_and_is_detected():
    rows = compare(judge_of(lambda *shown: 1.0), ASKED[:1], ["a"], ["b"])
    assert rows[["order", "p_a", "verdict"]].values.tolist() == [[0, 1.0, "a"], [1, 0.0, "b"]]
    results = summary(rows)
    assert results[["score", "says", "first_shown", "inconsistent"]].values.tolist() == [[0.5, 0.5, 1.0, 1.0]]
    last = summary(compare(judge_of(lambda *shown: 0.0), ASKED[:1], ["a"], ["b"]))
    assert last[["score", "first_shown", "inconsistent"]].values.tolist() == [[0.5, 0.0, 1.0]]


def test_soft_verdicts_are_averaged_over_the_orders():
    chance = {("a", "b"): 0.75, ("b", "a"): 0.375}
    rows = compare(judge_of(lambda _, first, second: chance[first, second]), ASKED[:1], ["a"], ["b"])
    # a shown first: 0.75; b shown first with 0.375, so a has 0.625. The mean is 0.6875; the first one shown wins once of twice.
    assert rows["p_a"].tolist() == [0.75, 0.625]
    assert summary(rows)[["score", "says", "first_shown", "inconsistent"]].values.tolist() == [[0.6875, 1, 0.5, 0]]


def test_a_tie_in_one_order_and_a_win_in_the_other_turn_with_the_order():
    rows = compare(judge_of(lambda _, first, second: 0.5 if first == "a" else 0.0), ASKED[:1], ["a"], ["b"])
    # a first: tie; b first and losing: a wins. First shown: (1/2 + 0) / 2.
    assert summary(rows)[["score", "first_shown", "inconsistent"]].values.tolist() == [[0.75, 0.25, 1.0]]


def test_identical_answers_tie_without_a_call_and_say_nothing_of_the_orders():
    judge = judge_of(longer)
    rows = compare(judge, ASKED[:2], ["same", "aa"], ["same", "b"])
    assert judge.calls == [[("q", "aa", "b"), ("q", "b", "aa")]]
    assert rows.loc[rows["at"] == 0, "raw"].isna().all()
    results = summary(rows)
    assert results["score"].tolist() == [0.5, 1]
    assert results["first_shown"].isna().tolist() == results["inconsistent"].isna().tolist() == [True, False]
    assert compare(judge, ASKED[:1], ["x"], ["x"])["verdict"].tolist() == ["tie", "tie"]
    assert len(judge.calls) == 1


def test_equal_comparisons_are_judged_once_whichever_side_is_called_a():
    judge = judge_of(longer)
    results = summary(compare(judge, [ASKED[0]] * 3, ["aa", "aa", "b"], ["b", "b", "aa"]))
    assert judge.calls == [[("p", "aa", "b"), ("p", "b", "aa")]]
    assert results["score"].tolist() == [1, 1, 0]


def test_a_missing_verdict_is_requested_once_more_and_only_that_one():
    tries = []

    def judge(prompts, first, second):
        tries.append([p.id for p in prompts])
        p = [math.nan if q.id == "q" and len(tries) == 1 else 1.0 for q in prompts]
        verdicts = ["unparsable" if math.isnan(x) else "first" for x in p]
        return pd.DataFrame(
            {"p_first": p, "verdict": verdicts, "raw": "reply", "tokens": 3, "latency": 0.5, "cost": 0.25}
        )

    rows = compare(judge, ASKED[:2], ["a", "a"], ["b", "b"])
    assert tries == [["p", "q", "p", "q"], ["q", "q"]]
    assert rows["p_a"].tolist() == [1, 0, 1, 0]
    assert rows[["tokens", "latency", "cost"]].values.tolist() == [[3, 0.5, 0.25]] * 2 + [[6, 1.0, 0.5]] * 2


def test_what_stays_missing_is_neither_won_nor_lost_and_has_bounds():
    judge = judge_of(lambda prompt, first, second: math.nan if prompt == "q" or (prompt, first) == ("r", "b") else 1.0)
    results = summary(compare(judge, ASKED, ["a"] * 3, ["b"] * 3))
    assert len(judge.calls) == 2
    assert results["missing"].tolist() == results["unparsable"].tolist() == [0, 1, 1]
    assert results["score"].isna().tolist() == [False, True, True]
    # r: one order says a, the other nothing: between (1 + 0) / 2 and (1 + 1) / 2.
    assert results["worst"].tolist() == [0.5, 0, 0.5]
    assert results["best"].tolist() == [0.5, 1, 1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([1.0], "list"),
        (pd.DataFrame({"score": [1.0, 1.0]}), "p_first"),
        (pd.DataFrame({"p_first": [1.0]}), "1 rows for 2"),
        (pd.DataFrame({"p_first": [1.5, 0.0]}), "p_first = 1.5"),
        (pd.DataFrame({"p_first": [1.0, 0.0], "verdict": ["first", "b"]}), "verdict 'b'"),
        (pd.DataFrame({"p_first": [1.0, 0.5], "verdict": ["first", "unparsable"]}), "p_first = 0.5"),
        (pd.DataFrame({"p_first": [1.0, math.nan], "verdict": ["first", "tie"]}), "verdict 'tie'"),
    ],
)
def test_a_judge_that_returns_something_else_is_refused(table, message):
    with pytest.raises(DpobenchError, match=message):
        compare(lambda prompts, first, second: table, ASKED[:1], ["a"], ["b"])


def test_too_many_missing_verdicts_are_refused_with_what_to_do():
    require_verdicts([0.0] * 19 + [1.0], 0.05, "reference")
    with pytest.raises(UserError, match=r"no verdict on 2 of 20 comparisons with chosen.*'I cannot'.*most_missing"):
        require_verdicts([0.0] * 18 + [1.0] * 2, 0.05, "chosen", "I cannot")


@pytest.mark.parametrize(("won", "lost"), [(0.02, 0.08), (0.05, 0.2)])
def test_the_bounds_hold_the_truth_where_verdicts_stay_away_by_their_content(won, lost):
    """A judge more silent where it would say "lost": without those verdicts a half reads as more, between the bounds it lies."""
    chance = np.random.default_rng(0)
    read, alone, bounds = [], [], []
    for _ in range(400):
        wins = chance.random(800) < 0.5
        silent = chance.random(800) < np.where(wins, won, lost)
        p = np.where(silent, np.nan, wins)
        pairs = pd.DataFrame(
            {"at": np.repeat(np.arange(800), 2), "order": np.tile([0, 1], 800), "p_a": np.repeat(p, 2)}
        )
        results = summary(pairs.assign(verdict="a", raw=""))
        known, worst, best = (
            share_interval(crossed_mean([results[name].dropna().to_numpy()[None]]))
            for name in ("score", "worst", "best")
        )
        read.append(known.value)
        alone.append(known.low <= 0.5 <= known.high)
        bounds.append(worst.low <= 0.5 <= best.high)
    # Of a half, (1 - won) / (2 - won - lost) are left: 0.516 and 0.543.
    assert np.mean(read) == pytest.approx((1 - won) / (2 - won - lost), abs=0.002)
    assert np.mean(alone) < 0.92
    assert np.mean(bounds) >= 0.97


def test_no_comparisons_give_an_empty_table():
    rows = compare(judge_of(longer), [], [], [])
    assert list(rows) == list(COLUMNS)
    assert len(summary(rows)) == 0


def test_only_what_both_orders_tie_is_a_tie():
    message = {"p": (0.5, 0.5), "q": (1.0, 1.0), "r": (0.5, 0.25)}
    judge = judge_of(lambda prompt, first, second: message[prompt][first == "b"])
    rows = compare(judge, [*ASKED, ASKED[0]], ["a", "a", "a", "same"], ["b", "b", "b", "same"])
    results = summary(rows)
    assert results["score"].tolist() == [0.5, 0.5, 0.625, 0.5]
    assert results["tie"].tolist() == [1, 0, 0, 1]
    missing = summary(compare(judge_of(lambda *shown: math.nan), ASKED[:1], ["a"], ["b"]))
    assert missing["tie"].isna().all()
