"""Win-rate against scripted judges."""

import dataclasses
import math

import pandas as pd
import pytest

from dpobench import DpobenchError, UserError
from dpobench.artifacts.scores import check
from dpobench.evals.winrate import winrate
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.plugins.registry import spec_of


def scripted(scores):
    """A judge that gives every text (the ids, spelled) the score of the script."""
    calls = []

    def judge(prompts, completions):
        calls.extend(zip([p.id for p in prompts], completions, strict=True))
        return pd.DataFrame({"score": [scores[text] for text in completions], "words": [len(t) for t in completions]})

    judge.calls = calls
    return judge


@pytest.fixture
def held_out(tiny):
    samples = tiny.samples_of({"p": [[1], [2], [3]], "q": [[4], [5], [6]]})
    reference = tiny.samples_of({"p": [[7], [8], [3]], "q": [[9], [10], [11]]})
    judge = scripted(
        {"1": 2.0, "7": 1.0, "2": 0.0, "8": 3.0, "3": 5.0}
        | {"4": 1.5, "9": 1.5, "5": math.nan, "10": 1.0, "6": 1.0, "11": math.nan, "good": 2.0}
    )
    return tiny.with_chosen(tiny.held_out_of(samples, reference, judge=judge), {"q": "good"})


def by_draw(frame, metric, group):
    scores = frame[(frame["metric"] == metric) & (frame["group"] == group)]
    return {(row.prompt, row.draw): row.value for row in scores.itertuples()}


def test_wins_ties_and_losses_are_counted_against_the_same_draw(held_out, tiny):
    scores = winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    check(scores, spec_of(winrate, EvaluatorSpec).metrics, "winrate")
    # 2 > 1; 0 < 3; the texts are identical; equal scores of different texts; two verdicts are missing.
    assert by_draw(scores, "win_rate", "reference") == {("p", 0): 1, ("p", 1): 0, ("p", 2): 0.5, ("q", 0): 0.5}
    assert by_draw(scores, "tie", "reference") == {("p", 0): 0, ("p", 1): 0, ("p", 2): 1, ("q", 0): 1}
    missing = by_draw(scores, "missing", "reference")
    assert {key for key, value in missing.items() if value} == {("q", 1), ("q", 2)}
    assert len(missing) == 6


def test_the_chosen_answer_is_an_opponent_where_there_is_one(held_out, tiny):
    scores = winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    assert by_draw(scores, "win_rate", "chosen") == {("q", 0): 0, ("q", 2): 0}
    assert by_draw(scores, "missing", "chosen") == {("q", 0): 0, ("q", 1): 1, ("q", 2): 0}


def test_missing_verdicts_are_counted_as_lost_and_as_won(held_out, tiny):
    scores = winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    known = {("p", 0): 1, ("p", 1): 0, ("p", 2): 0.5, ("q", 0): 0.5}
    assert by_draw(scores, "win_rate_worst", "reference") == {**known, ("q", 1): 0, ("q", 2): 0}
    assert by_draw(scores, "win_rate_best", "reference") == {**known, ("q", 1): 1, ("q", 2): 1}


def test_too_many_missing_verdicts_end_the_scoring_and_say_what_to_do(held_out, tiny):
    with pytest.raises(UserError, match=r"no verdict on 2 of 6 comparisons with reference; at most 5%.*most_missing"):
        winrate(tiny.checkpoint_of(None), held_out)


def test_only_the_requested_opponents_are_met(held_out, tiny):
    alone = dataclasses.replace(held_out, opponents=("reference",))
    assert set(winrate(tiny.checkpoint_of(None), alone, most_missing=1.0)["group"]) == {"", "reference"}
    nobody = dataclasses.replace(held_out, opponents=())
    assert set(winrate(tiny.checkpoint_of(None), nobody)["metric"]) == {"reward", "reward_words"}


def test_rewards_and_their_parts_are_those_of_the_samples(held_out, tiny):
    scores = winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    assert by_draw(scores, "reward", "") == {("p", 0): 2, ("p", 1): 0, ("p", 2): 5, ("q", 0): 1.5, ("q", 2): 1}
    assert tiny.values(scores, "reward_words") == [1] * 6


def test_every_answer_is_judged_once(held_out, tiny):
    winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    assert len(held_out.judge.calls) == len(set(held_out.judge.calls)) == 12


def test_the_answers_that_every_policy_meets_are_judged_once(held_out, tiny):
    cache = {}

    def compute_once(key, compute):
        return cache[key] if key in cache else cache.setdefault(key, compute())

    expected = winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    remembering = dataclasses.replace(held_out, compute_once=compute_once)
    for calls in (12, 5):
        held_out.judge.calls.clear()
        assert winrate(tiny.checkpoint_of(None), remembering, most_missing=1.0).equals(expected)
        # The policy's six answers, of which "3" is the reference's, too; five others of the reference, and "good".
        assert len(held_out.judge.calls) == len(set(held_out.judge.calls)) == calls


def test_identical_texts_tie_even_without_a_verdict(tiny):
    same = tiny.samples_of({"p": [[1], [1]]})
    held_out = tiny.held_out_of(same, judge=scripted({"1": math.nan}))
    scores = winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    assert tiny.values(scores, "win_rate", "reference") == [0.5, 0.5]
    assert tiny.values(scores, "missing") == [0, 0]
    assert tiny.values(scores, "reward") == []
    assert "chosen" not in set(scores["group"])


def test_the_same_text_is_another_answer_to_another_prompt(tiny):
    samples = tiny.samples_of({"p": [[1]], "q": [[1]]})

    def judge(prompts, completions):
        return pd.DataFrame({"score": [1.0 if p.id == "p" else -1.0 for p in prompts]})

    scores = winrate(tiny.checkpoint_of(None), tiny.held_out_of(samples, judge=judge))
    assert tiny.values(scores, "reward") == [1, -1]


def test_a_judge_that_returns_something_else_is_refused(tiny):
    samples = tiny.samples_of({"p": [[1]]})
    for result, message in (
        ([1.0], "list"),
        (pd.DataFrame({"points": [1]}), "points"),
        (pd.DataFrame({"score": []}), "0 rows"),
    ):
        with pytest.raises(DpobenchError, match=message):
            winrate(tiny.checkpoint_of(None), tiny.held_out_of(samples, judge=lambda p, c, scores=result: scores))


def test_without_a_judge_there_is_no_win_rate(tiny):
    with pytest.raises(UserError, match="needs a judge"):
        winrate(tiny.checkpoint_of(None), tiny.held_out_of(tiny.samples_of({"p": [[1]]})))


def test_an_opponent_without_an_answer_is_an_error(tiny):
    samples, reference = tiny.samples_of({"p": [[1], [2]]}), tiny.samples_of({"p": [[1]]})
    with pytest.raises(DpobenchError, match="no answer 1 to prompt p"):
        winrate(tiny.checkpoint_of(None), tiny.held_out_of(samples, reference, judge=scripted({"1": 0, "2": 0})))


@pytest.fixture
def compared(tiny):
    """Held-out inputs with a judge that prefers the larger number and cannot read a 6; and the tables that were written."""
    samples = tiny.samples_of({"p": [[1], [2]], "q": [[3], [6]]})
    reference = tiny.samples_of({"p": [[5], [2]], "q": [[1], [4]]})
    calls, tables = [], {}

    def judge(prompts, first, second):
        calls.append(len(prompts))
        p = [math.nan if "6" in (a, b) else float(int(a) > int(b)) for a, b in zip(first, second, strict=True)]
        verdicts = ["unparsable" if math.isnan(x) else "first" if x else "second" for x in p]
        return pd.DataFrame(
            {"p_first": p, "verdict": verdicts, "raw": "words", "tokens": 2, "latency": 0.1, "cost": 0.5}
        )

    scores = tiny.held_out_of(
        samples, reference, pairwise=judge, write_table=lambda name, frame: tables.update({name: frame})
    )
    return dataclasses.replace(tiny.with_chosen(scores, {"q": "2"}), opponents=("reference",)), calls, tables


def test_a_judge_that_compares_is_called_in_both_orders(compared, tiny):
    held_out, calls, tables = compared
    scores = winrate(tiny.checkpoint_of(None), held_out, most_missing=0.25)
    check(scores, spec_of(winrate, EvaluatorSpec).metrics, "winrate")
    assert calls == [6, 2], "three comparisons that are no ties, both orders; then the two without a verdict again"
    assert by_draw(scores, "win_rate", "reference") == {("p", 0): 0, ("p", 1): 0.5, ("q", 0): 1}
    assert by_draw(scores, "missing", "reference") == {("p", 0): 0, ("p", 1): 0, ("q", 0): 0, ("q", 1): 1}
    assert by_draw(scores, "win_rate_worst", "reference")["q", 1] == 0
    assert by_draw(scores, "win_rate_best", "reference")["q", 1] == 1
    assert by_draw(scores, "tie", "reference") == {("p", 0): 0, ("p", 1): 1, ("q", 0): 0}
    assert by_draw(scores, "first_shown", "reference") == {("p", 0): 0.5, ("q", 0): 0.5}
    assert by_draw(scores, "inconsistent", "reference") == {("p", 0): 0, ("q", 0): 0}
    verdicts = tables["verdicts"]
    assert list(verdicts) == ["prompt", "draw", "a", "b", "order", "p_a", "verdict", "raw", "tokens", "latency", "cost"]
    assert verdicts["verdict"].tolist() == ["b", "b", "tie", "tie", "a", "a", "unparsable", "unparsable"]
    assert verdicts["cost"].tolist() == [0.5, 0.5, 0, 0, 0.5, 0.5, 1.0, 1.0]
    assert set(verdicts["b"]) == {"reference"}


def test_verdicts_are_written_even_where_too_many_are_missing(compared, tiny):
    held_out, _, tables = compared
    with pytest.raises(UserError, match=r"no verdict on 1 of 4 comparisons with reference \(one of them: 'words'\)"):
        winrate(tiny.checkpoint_of(None), held_out)
    assert len(tables["verdicts"]) == 8


def test_the_chosen_answer_is_met_where_it_was_requested(compared, tiny):
    held_out = dataclasses.replace(compared[0], opponents=("reference", "chosen"))
    scores = winrate(tiny.checkpoint_of(None), held_out, most_missing=0.5)
    assert by_draw(scores, "win_rate", "chosen") == {("q", 0): 1}
    assert by_draw(scores, "missing", "chosen") == {("q", 0): 0, ("q", 1): 1}


def test_against_itself_the_reference_ties_without_a_call(compared, tiny):
    held_out, calls, _ = compared
    itself = dataclasses.replace(held_out, samples=held_out.reference_samples)
    assert tiny.values(winrate(tiny.checkpoint_of(None), itself), "win_rate", "reference") == [0.5] * 4
    assert calls == []
