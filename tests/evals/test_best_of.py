"""The best of k answers, and the reference against itself, under scripted judges."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from dpobench import DpobenchError
from dpobench.artifacts.scores import check
from dpobench.evals import best_of as module
from dpobench.evals.best_of import best_of
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.plugins.registry import spec_of


def judge_of(scores):
    def judge(prompts, completions):
        judge.calls += len(completions)
        return pd.DataFrame({"score": [scores[text] for text in completions]})

    judge.calls = 0
    return judge


def by_group(frame, metric):
    rows = frame[frame["metric"] == metric]
    return {(row.prompt, row.draw, row.group): row.value for row in rows.itertuples()}


def test_the_best_of_k_is_the_mean_over_all_subsets():
    rng = np.random.default_rng(0)
    for m, k in itertools.product(range(1, 8), range(1, 8)):
        # Few values, so that many tie.
        scores, other = np.sort(rng.integers(0, 4, m)).astype(float), float(rng.integers(0, 4))
        if k > m:
            continue
        best = [max(subset) for subset in itertools.combinations(scores, k)]
        assert module.expected_best(scores, k) == pytest.approx(np.mean(best))
        wins = [(np.sign(value - other) + 1) / 2 for value in best]
        assert module.beats(scores, k, other) == pytest.approx(np.mean(wins))


def test_a_pool_of_four_worked_out_by_hand(tiny):
    reference = tiny.samples_of({"p": [[5]], "q": [[6]]})
    pool = tiny.samples_of({"p": [[1], [2], [3], [4]], "q": [[6], [6], [7], [8]]})
    judge = judge_of({"1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0, "5": 2.5, "6": 0.0, "7": 0.0, "8": 8.0})
    rows = best_of(tiny.checkpoint_of(None), tiny.held_out_of(reference, pool=pool, judge=judge))
    check(rows, spec_of(best_of, EvaluatorSpec).metrics, "best_of")
    rewards = by_group(rows, "best_of_reward")
    # p: of the six pairs of 1 2 3 4 one has the maximum 2, two 3, three 4. q: three pairs hold no 8.
    assert rewards == pytest.approx(
        {("p", 0, "1"): 2.5, ("p", 0, "2"): (2 + 3 + 3 + 4 * 3) / 6, ("p", 0, "4"): 4}
        | {("q", 0, "1"): 2, ("q", 0, "2"): 8 / 2, ("q", 0, "4"): 8}
    )
    wins = by_group(rows, "best_of_win_rate")
    assert wins == pytest.approx(
        {("p", 0, "1"): 0.5, ("p", 0, "2"): 5 / 6, ("p", 0, "4"): 1}
        | {("q", 0, "1"): (3 * 0.5 + 1) / 4, ("q", 0, "2"): (3 * 0.5 + 3) / 6, ("q", 0, "4"): 1}
    )
    assert by_group(rows, "same_win_rate") == {("p", 0, ""): 0, ("q", 0, ""): 0.5}
    assert judge.calls == 8, "equal answers to one prompt are judged once"


def test_answers_without_a_verdict_are_left_out(tiny):
    reference = tiny.samples_of({"p": [[5]], "q": [[6]]})
    pool = tiny.samples_of({"p": [[1], [2]], "q": [[3], [4]]})
    judge = judge_of({"1": math.nan, "2": 2.0, "3": 3.0, "4": 4.0, "5": 1.0, "6": math.nan})
    rows = best_of(tiny.checkpoint_of(None), tiny.held_out_of(reference, pool=pool, judge=judge))
    assert by_group(rows, "best_of_reward") == {("p", 0, "1"): 2, ("q", 0, "1"): 3.5, ("q", 0, "2"): 4}
    assert by_group(rows, "best_of_win_rate") == {("p", 0, "1"): 1}
    assert "same_win_rate" not in set(rows["metric"]), "each has an answer without a verdict in its first draw"


def test_where_no_answers_tie_the_best_of_k_wins_k_times_in_k_plus_1(tiny):
    rng = np.random.default_rng(1)
    prompts, count = [f"p{i}" for i in range(3000)], 4
    values = {str(i): float(v) for i, v in enumerate(rng.normal(size=len(prompts) * (count + 1)))}
    ids = iter(range(len(values)))
    reference = tiny.samples_of({prompt: [[next(ids)]] for prompt in prompts})
    pool = tiny.samples_of({prompt: [[next(ids)] for _ in range(count)] for prompt in prompts})
    rows = best_of(tiny.checkpoint_of(None), tiny.held_out_of(reference, pool=pool, judge=judge_of(values)))
    for k in (1, 2, 4):
        wins = np.array(tiny.values(rows, "best_of_win_rate", str(k)))
        assert wins.mean() == pytest.approx(k / (k + 1), abs=4 * wins.std() / np.sqrt(len(wins)))
    same = np.array(tiny.values(rows, "same_win_rate"))
    assert same.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(same)))


def test_a_pool_of_three_ends_with_the_whole_pool(tiny):
    pool = tiny.samples_of({"p": [[1], [2], [3]]})
    held_out = tiny.held_out_of(
        tiny.samples_of({"p": [[1]]}), pool=pool, judge=judge_of({"1": 1.0, "2": 2.0, "3": 3.0})
    )
    rows = best_of(tiny.checkpoint_of(None), held_out)
    assert {row[2] for row in by_group(rows, "best_of_reward")} == {"1", "2", "3"}


def test_without_a_pool_or_under_a_judge_that_compares_there_is_nothing(tiny):
    reference = tiny.samples_of({"p": [[1]]})
    assert not len(best_of(tiny.checkpoint_of(None), tiny.held_out_of(reference, judge=judge_of({"1": 1.0}))))
    rows = best_of(tiny.checkpoint_of(None), tiny.held_out_of(reference, pool=reference))
    check(rows, spec_of(best_of, EvaluatorSpec).metrics, "best_of")
    assert not len(rows)


def test_a_judge_that_returns_something_else_is_refused(tiny):
    reference = tiny.samples_of({"p": [[1]]})
    held_out = tiny.held_out_of(reference, pool=reference, judge=lambda p, c: pd.DataFrame({"points": [1.0]}))
    with pytest.raises(DpobenchError, match="points"):
        best_of(tiny.checkpoint_of(None), held_out)


def test_where_the_judge_says_nothing_at_all_there_is_nothing_to_show(tiny):
    reference, pool = tiny.samples_of({"p": [[1]]}), tiny.samples_of({"p": [[2], [3]]})
    nothing = judge_of(dict.fromkeys("123", math.nan))
    rows = best_of(tiny.checkpoint_of(None), tiny.held_out_of(reference, pool=pool, judge=nothing))
    check(rows, spec_of(best_of, EvaluatorSpec).metrics, "best_of")
    assert not len(rows)
