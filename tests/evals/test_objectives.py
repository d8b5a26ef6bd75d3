"""Several objectives: each judge's verdicts on the same answers, and how sets of pairs are ranked."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from dpobench import DpobenchError, UserError
from dpobench.artifacts.scores import check
from dpobench.data.tokens import TokenPair
from dpobench.evals.objectives import objectives
from dpobench.evaluation.heldout import ObjectiveInputs
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.models.logprobs import score_sequences
from dpobench.plugins.registry import spec_of


def by_scores(scores):
    def judge(prompts, completions):
        judge.calls.extend(completions)
        return pd.DataFrame({"score": [scores[text] for text in completions]})

    judge.calls = []
    return judge


def rows_of(frame, metric, group):
    rows = frame[(frame["metric"] == metric) & (frame["group"] == group)]
    return {(row.prompt, row.draw): row.value for row in rows.itertuples()}


@pytest.fixture
def answers(tiny):
    samples = tiny.samples_of({"p": [[1], [2]], "q": [[3], [4]]})
    reference = tiny.samples_of({"p": [[5], [2]], "q": [[6], [7]]})
    return tiny.held_out_of(samples, reference)


HELPFUL = {"1": 2.0, "2": math.nan, "3": 1.0, "4": 0.0, "5": 1.0, "6": 1.0, "7": math.nan}
HARMLESS = {text: -score for text, score in HELPFUL.items()}


def test_each_judge_gives_separate_verdicts_on_the_same_answers(answers, tiny):
    inputs = {
        "helpful": ObjectiveInputs(judge=by_scores(HELPFUL), key="h"),
        "harmless": ObjectiveInputs(judge=by_scores(HARMLESS), key="s"),
    }
    rows = objectives(tiny.checkpoint_of(None), dataclasses.replace(answers, objectives=inputs), most_missing=0.25)
    check(rows, spec_of(objectives, EvaluatorSpec).metrics, "objectives")
    # 2 > 1; identical texts; equal scores; a missing verdict.
    assert rows_of(rows, "objective_win_rate", "helpful") == {("p", 0): 1, ("p", 1): 0.5, ("q", 0): 0.5}
    assert rows_of(rows, "objective_win_rate", "harmless") == {("p", 0): 0, ("p", 1): 0.5, ("q", 0): 0.5}
    assert rows_of(rows, "objective_missing", "helpful") == {("p", 0): 0, ("p", 1): 0, ("q", 0): 0, ("q", 1): 1}
    known = {("p", 0): 1, ("p", 1): 0.5, ("q", 0): 0.5}
    assert rows_of(rows, "objective_win_rate_worst", "helpful") == {**known, ("q", 1): 0}
    assert rows_of(rows, "objective_win_rate_best", "helpful") == {**known, ("q", 1): 1}
    assert rows_of(rows, "objective_reward", "helpful") == {("p", 0): 2, ("q", 0): 1, ("q", 1): 0}


def test_the_references_answers_are_judged_once_for_all_checkpoints(answers, tiny):
    cache = {}

    def compute_once(key, compute):
        return cache[key] if key in cache else cache.setdefault(key, compute())

    judge = by_scores(HELPFUL)
    held_out = dataclasses.replace(
        answers, objectives={"helpful": ObjectiveInputs(judge=judge, key="h")}, compute_once=compute_once
    )
    first = objectives(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    assert sorted(judge.calls) == ["1", "2", "3", "4", "5", "6", "7"]
    judge.calls.clear()
    assert objectives(tiny.checkpoint_of(None), held_out, most_missing=1.0).equals(first)
    # "2" is the reference's answer, too.
    assert sorted(judge.calls) == ["1", "3", "4"]


def test_another_judge_of_the_same_name_is_called_anew(answers, tiny):
    cache = {}

    def compute_once(key, compute):
        return cache[key] if key in cache else cache.setdefault(key, compute())

    for key, scores, wanted in (("h", HELPFUL, 1), ("s", HARMLESS, 0)):
        inputs = {"short": ObjectiveInputs(judge=by_scores(scores), key=key)}
        held_out = dataclasses.replace(answers, objectives=inputs, compute_once=compute_once)
        rows = objectives(tiny.checkpoint_of(None), held_out, most_missing=1.0)
        assert rows_of(rows, "objective_win_rate", "short")["p", 0] == wanted


def test_a_judge_that_compares_is_called_in_both_orders(answers, tiny):
    def likes_the_first_shown_and_one(prompts, first, second):
        return pd.DataFrame({"p_first": [1.0 if b != "1" else 0.0 for b in second]})

    inputs = {"short": ObjectiveInputs(pairwise=likes_the_first_shown_and_one)}
    rows = objectives(tiny.checkpoint_of(None), dataclasses.replace(answers, objectives=inputs))
    assert rows_of(rows, "objective_win_rate", "short") == {("p", 0): 1, ("p", 1): 0.5, ("q", 0): 0.5, ("q", 1): 0.5}
    assert not len(rows[rows["metric"] == "objective_reward"])


def test_pairs_are_ranked_by_what_the_policy_moved(tiny, tokenizer):
    policy, reference = tiny.llama(seed=1), tiny.llama(seed=2)
    ids = [np.array([2, 3]), np.array([2, 3]), np.array([4])]
    pairs = [TokenPair(f"t{i}", prompt, np.array([4 + i, 0]), np.array([5, 6, 0])) for i, prompt in enumerate(ids)]
    sides = [(p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)]
    base = score_sequences(reference, sides)
    whole = [p.with_reference(base[2 * i], base[2 * i + 1]) for i, p in enumerate(pairs)]
    moved = [float(a.sum() - b.sum()) for a, b in zip(score_sequences(policy, sides), base, strict=True)]
    wanted = [float(moved[2 * i] > moved[2 * i + 1]) for i in range(3)]
    held_out = tiny.held_out_of(tiny.samples_of({"p": [[1]]}), objectives={"honest": ObjectiveInputs(pairs=whole)})
    rows = objectives(tiny.checkpoint_of(policy, reference, tokenizer), held_out)
    assert rows["value"].tolist() == wanted
    assert rows["draw"].tolist() == [0, 1, 0], "two pairs share a prompt"
    still = objectives(tiny.checkpoint_of(reference, tokenizer=tokenizer), held_out)
    assert still["value"].tolist() == [0.5] * 3
    with pytest.raises(DpobenchError, match="pair t0 of objective honest has no log-probabilities"):
        objectives(
            tiny.checkpoint_of(policy, reference, tokenizer),
            dataclasses.replace(held_out, objectives={"honest": ObjectiveInputs(pairs=pairs)}),
        )


def test_a_judge_that_returns_something_else_is_named_with_its_objective(answers, tiny):
    inputs = {"helpful": ObjectiveInputs(judge=lambda p, c: pd.DataFrame({"points": [1.0] * len(c)}), key="h")}
    with pytest.raises(DpobenchError, match="objective helpful returned columns"):
        objectives(tiny.checkpoint_of(None), dataclasses.replace(answers, objectives=inputs))


def test_too_many_missing_verdicts_of_an_objective_are_refused_when_all_its_verdicts_are_written(answers, tiny):
    def silent_on_q(prompts, first, second):
        return pd.DataFrame({"p_first": [math.nan if p.id == "q" else 1.0 for p in prompts], "raw": "no idea"})

    tables = {}
    inputs = {
        "helpful": ObjectiveInputs(judge=by_scores(HARMLESS), key="h"),
        "kind": ObjectiveInputs(pairwise=silent_on_q),
    }
    held_out = dataclasses.replace(
        answers, objectives=inputs, write_table=lambda name, frame: tables.update({name: frame})
    )
    for most, message in ((0.2, "1 of 4 comparisons with the reference by objective helpful"),
                       (0.3, r"2 of 4 .* objective kind \(one of them: 'no idea'\).*objectives\.most_missing")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            objectives(tiny.checkpoint_of(None), held_out, most_missing=most)
    verdicts = tables["objective_verdicts"]
    assert set(verdicts["objective"]) == {"kind"}
    assert verdicts.loc[verdicts["p_a"].isna(), "prompt"].tolist() == ["q"] * 4
    assert len(objectives(tiny.checkpoint_of(None), held_out, most_missing=0.5))
