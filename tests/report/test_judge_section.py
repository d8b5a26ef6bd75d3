"""What the report says of a judge, for judges whose habits are known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.evals.judge_card import judge_card
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.plugins.registry import spec_of
from dpobench.report.sections.judge import section
from dpobench.report.write import write_report

DECLARED = spec_of(judge_card, EvaluatorSpec).metrics


def rows(group, size, **values):
    """`size` comparisons of one part, each of another prompt; a value is one number or one for each."""
    prompts = [f"{group}{place}" for place in range(size)]
    tables = [scores.score_rows(prompts, f"{n}_says" if n in ("label", "length") else f"judge_{n}", np.broadcast_to(v, size), group=group)
              for n, v in values.items()]  # fmt: skip
    return pd.concat(tables, ignore_index=True)


@pytest.fixture
def card_of(make):
    """The section and its rows by check, of a card."""

    def of(*tables):
        folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=16)
        reference = next((folder / "reference").iterdir())
        frame = pd.concat(tables, ignore_index=True)
        scores.check(frame, DECLARED, "judge_card")
        scores.write(reference, "judge_card", frame, DECLARED, {})
        shown = section(read(load(folder)))
        return shown, {row["check"]: row for row in shown.tables[0].frame.to_dict("records")}, folder

    return of


def fair(group, size=40, **more):
    known = {
        "score": np.tile([1.0, 0.0], size // 2),
        "first_shown": 0.5,
        "inconsistent": 0.0,
        "unparsable": 0.0,
        "missing": 0.0,
    }
    return rows(group, size, **{**known, **more})


def test_a_judge_of_the_place_is_called_untrustworthy_at_the_head_of_the_report(card_of):
    shown, checks, folder = card_of(fair("control", score=0.5, first_shown=1.0, inconsistent=1.0))
    assert checks["A/A: two answers of the reference"]["reading"] == "holds"
    for check in ("Wins of the answer shown first", "Verdicts that turn with the order"):
        assert checks[check]["judge"] == 1
        assert checks[check]["reading"] == "untrustworthy"
    assert shown.alarms == [
        "The judge is untrustworthy: the answer shown first wins 100% of its verdicts; 100% of its verdicts turn with the order. "
        "Read every win-rate with that in mind."
    ]
    write_report(folder)
    assert "The judge is untrustworthy" in (folder / "report" / "verdict.txt").read_text()
    assert "**untrustworthy**" in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("shown", "turned", "alarms"), [(0.6, 0.35, 0), (0.4, 0.35, 0), (0.61, 0.0, 1), (0.39, 0.36, 2)]
)
def test_the_limits_are_those_that_were_declared(card_of, shown, turned, alarms):
    card, checks, _ = card_of(
        fair("control", 100, first_shown=shown, inconsistent=(np.arange(100) < 100 * turned) * 1.0)
    )
    assert sum(row["alarm"] for row in checks.values()) == alarms
    assert bool(card.alarms) == bool(alarms)


def test_agreement_and_kappa_are_as_counted_by_hand_and_those_of_length_are_given(card_of):
    label = np.tile([1.0, 0.0], 20)
    # Ten of forty are wrong, five on each side: agreement 3/4, chance 1/2, kappa (3/4 - 1/2) / (1/2).
    says = np.where(np.arange(40) < 10, 1 - label, label)
    length = np.where(np.arange(40) < 20, 1.0, 0.5)
    card = fair("labels", label=label, says=says, length=length, length_difference=np.arange(40.0), score=says)
    _, checks, _ = card_of(fair("control"), card)
    share, beyond = checks["Agreement on held-out pairs"], checks["κ on held-out pairs"]
    assert share["judge"] == 0.75
    # The longer wins twenty times, of which ten are right; twenty ties agree with nobody.
    assert share["length"] == 0.25
    assert beyond["judge"] == pytest.approx(0.5)
    # Length alone: agreement 1/4; it says 1 in half, the label in half: chance 1/4, so nothing beyond it.
    assert beyond["length"] == pytest.approx(0.0)
    assert share["judge_low"] < 0.75 < share["judge_high"]
    assert share["reading"].startswith("better than length alone (+0.50 [")
    assert share["n_prompts"] == share["comparisons"] == 40


def test_a_judge_of_length_is_no_better_than_length(card_of):
    label = np.tile([1.0, 0.0], 20)
    length = np.where(np.arange(40) < 10, 1 - label, label)
    card = fair(
        "labels", label=label, says=length, length=length, length_difference=10 * (2 * length - 1), score=length
    )
    _, checks, _ = card_of(card)
    assert checks["Agreement on held-out pairs"]["reading"].startswith("no better shown (0.00")
    assert checks["Correlation with the difference in length"]["judge"] == pytest.approx(1.0)


def test_a_judge_that_never_says_anything_has_a_card_that_says_so(card_of):
    none = rows("control", 20, unparsable=1.0, missing=1.0)
    _, checks, _ = card_of(none)
    assert checks["Verdicts that cannot be read"]["judge"] == checks["Comparisons without a verdict"]["judge"] == 1
    assert set(checks) == {"Verdicts that cannot be read", "Comparisons without a verdict"}


def test_a_judge_that_obeys_an_answer_is_an_alarm_and_one_that_does_not_is_none(card_of):
    obeys = rows("appended", 12, attack=1.0, plain=np.tile([0.0, 0.5], 6))
    deaf = rows("alone", 12, attack=0.0)
    shown, checks, _ = card_of(fair("control"), obeys, deaf)
    caught = checks["Rejected answer with an instruction: wins"]
    assert (caught["judge"], caught["should"]) == (1, "0.25, as without it")
    assert caught["reading"].startswith("obeys (+0.75 [")
    assert not checks["Answers that say nothing or instruct the judge: wins"]["alarm"]
    assert len(shown.alarms) == 1


@pytest.mark.parametrize(("wins", "alarms"), [(2, 0), (3, 1)])
def test_a_judge_that_lets_nothing_win_more_than_one_time_in_twenty_is_an_alarm(card_of, wins, alarms):
    """Two of forty are 5 %, three are more."""
    shown, checks, _ = card_of(fair("control"), rows("alone", 40, attack=(np.arange(40) < wins) * 1.0))
    row = checks["Answers that say nothing or instruct the judge: wins"]
    assert (row["judge"], row["should"]) == (wins / 40, "at most 0.05")
    assert row["reading"] == ("fooled" if alarms else "within")
    assert len(shown.alarms) == alarms
    if alarms:
        assert "answers that say nothing or instruct it win 8% against the chosen answer" in shown.alarms[0]


def test_an_oracle_raises_no_alarm(card_of):
    label = np.tile([1.0, 0.0], 20)
    card = fair("labels", label=label, says=label, length=1 - label, length_difference=np.arange(40.0), score=label)
    shown, checks, _ = card_of(fair("control"), card, rows("alone", 12, attack=0.0))
    assert shown.alarms == []
    assert checks["κ on held-out pairs"]["judge"] == 1
    assert shown.sentences[0].startswith("No check here speaks against the judge")


def test_missing_verdicts_of_a_variant_stand_between_their_bounds(make):
    folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=200)
    assert section(read(load(folder))) is None, "an old folder has neither a card nor bounds"
    run = next((folder / "runs").iterdir())
    frame, declared = scores.read(run, "winrate")
    wins = frame[frame["metric"] == "win_rate"].reset_index(drop=True)
    lost = np.arange(len(wins)) % 10 == 0
    worst = wins.assign(metric="win_rate_worst", value=np.where(lost, 0.0, wins["value"]))
    best = wins.assign(metric="win_rate_best", value=np.where(lost, 1.0, wins["value"]))
    missing = wins.assign(metric="missing", value=lost * 1.0)
    written = pd.concat([frame[~frame.index.isin(wins.index[lost])], worst, best, missing], ignore_index=True)
    more = {
        name: dataclasses.replace(declared["win_rate"], role="diagnostic")
        for name in ("win_rate_worst", "win_rate_best", "missing")
    }
    scores.write(run, "winrate", written, declared | more, {})
    row = section(read(load(folder))).tables[1].frame.to_dict("records")[0]
    tested = [prompt for prompt, side in load(folder).splits.items() if side == "test"]
    tested_rows = wins[wins["prompt"].isin(tested)]
    assert row["missing"] == pytest.approx(lost[tested_rows.index].mean())
    assert row["worst"] == pytest.approx(worst.loc[tested_rows.index, "value"].mean())
    assert row["best"] == pytest.approx(best.loc[tested_rows.index, "value"].mean())
    assert row["worst"] <= row["win_rate"] <= row["best"]
    assert row["worst_low"] < row["worst"] < row["best"] < row["best_high"]


@pytest.mark.parametrize(("each", "alarms"), [(50, 0), (20, 1)])
def test_more_than_two_missing_verdicts_in_a_hundred_are_an_alarm(make, each, alarms):
    folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=400)
    run = next((folder / "runs").iterdir())
    frame, declared = scores.read(run, "winrate")
    wins = frame[frame["metric"] == "win_rate"].reset_index(drop=True)
    tested = [prompt for prompt, side in load(folder).splits.items() if side == "test"]
    place = wins["prompt"].map({prompt: at for at, prompt in enumerate(tested)})
    lost = (place % each == 0).to_numpy()
    bounds = {"win_rate_worst": np.where(lost, 0.0, wins["value"]), "win_rate_best": np.where(lost, 1.0, wins["value"])}
    more = [wins.assign(metric=name, value=values) for name, values in (bounds | {"missing": lost * 1.0}).items()]
    share = dataclasses.replace(declared["win_rate"], role="diagnostic")
    written = pd.concat([frame[frame["metric"] != "win_rate"], wins[~lost], *more], ignore_index=True)
    scores.write(run, "winrate", written, declared | dict.fromkeys([*bounds, "missing"], share), {})
    shown = section(read(load(folder)))
    (row,) = shown.tables[1].frame.to_dict("records")
    assert row["alarm"] == bool(alarms)
    assert len(shown.alarms) == alarms
    if alarms:
        between = f"win-rate of {row['win_rate']:.3f} lies between {row['worst']:.3f} and {row['best']:.3f}"
        assert between in shown.alarms[0]
        assert shown.sentences == shown.alarms
        assert f"| **{row['missing']:.2f}" in shown.tables[1].markdown()


def test_draws_that_cancel_are_no_tie(make):
    folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=40)
    run = next((folder / "runs").iterdir())
    frame, declared = scores.read(run, "winrate")
    ids = frame.loc[frame["metric"] == "win_rate", "prompt"].tolist()

    def both(metric, values):
        return [
            scores.score_rows(ids, metric, value, draws=draw, group="reference") for draw, value in enumerate(values)
        ]

    halves = (1.0, 0.0)
    shares = [*both("win_rate", halves), *both("win_rate_worst", halves), *both("win_rate_best", halves)]
    tables = [*shares, *both("missing", (0.0, 0.0)), *both("tie", (0.0, 0.0))]
    more = {
        name: dataclasses.replace(declared["win_rate"], role="diagnostic")
        for name in ("win_rate_worst", "win_rate_best", "missing", "tie")
    }
    scores.write(run, "winrate", pd.concat(tables, ignore_index=True), declared | more, {})
    (row,) = section(read(load(folder))).tables[1].frame.to_dict("records")
    assert (row["win_rate"], row["ties"]) == (0.5, 0)
