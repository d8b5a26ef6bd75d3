"""The section on checkpoints within trainings, from a made-up experiment in which one variant is better half-way."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.points import points
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.artifacts.files import write_json
from dpobench.report import figures
from dpobench.report.sections import tradeoff, within
from dpobench.report.write import write_report
from tests.report.conftest import METRICS, World, prompt_ids, seeded

# What a policy is worth after a third, after two thirds and at the end of its training, and how far it is then.
WORTH = {"dpo": (0.62, 0.70), "ipo": (0.90, 0.85)}
AT = (21, 43)


def write_checkpoint(folder, run, step, worth, far):
    ids, rng = prompt_ids(World()), seeded(run, step)
    wins = (rng.random(len(ids)) < worth).astype(float)
    tables = {
        "winrate": [
            scores.score_rows(ids, "win_rate", wins, group="reference"),
            scores.score_rows(ids, "reward", rng.normal(worth, 1, len(ids))),
        ],
        "kl": [
            scores.score_rows(ids, "kl", far * rng.gamma(3.0, 1 / 3, len(ids))),
            scores.score_rows(ids, "kl_k1", far + rng.normal(0, 1, len(ids))),
        ],
    }
    metrics = {**METRICS, "kl": METRICS["kl"] | {"kl_k1": METRICS["kl"]["kl"]}}
    for name, parts in tables.items():
        frame = pd.concat(parts, ignore_index=True)
        scores.write(scores.within(folder, step), name, frame, metrics[name], {"seed": 0})


@pytest.fixture(scope="module")
def passed(make):
    """Two variants, three seeds; win-rate 0.70 at the end for both, and for `ipo` 0.9 on the way to it."""
    folder = make(variants=("dpo", "ipo"), betas=(0.1,))
    record = json.loads((folder / "experiment.json").read_text()) | {"evaluation": {"checkpoints": 2}}
    write_json(folder / "experiment.json", record)
    for run in json.loads((folder / "plan.json").read_text())["runs"]:
        place = folder / "runs" / run["id"]
        for step, worth, share in zip(AT, WORTH[run["variant"]], (0.3, 0.7), strict=True):
            write_checkpoint(place, run["id"], step, worth, 6.0 * share)
        # The log-ratio of the policy's answers at the end, with the KL of 6 nats.
        frame, meaning = scores.read(place, "kl")
        further = scores.score_rows(prompt_ids(World()), "kl_k1", 6 + seeded(run["id"]).normal(0, 1, 512))
        frame = pd.concat([frame, further], ignore_index=True)
        scores.write(place, "kl", frame, meaning | {"kl_k1": meaning["kl"]}, {"seed": 0})
    return folder


@pytest.fixture(scope="module")
def findings(passed):
    return read(load(passed))


def section(findings):
    with figures.drawing():
        return within.section(findings)


def frame_of(part, name):
    (table,) = [table for table in part.tables if table.name == name]
    return table.frame


def test_every_cell_stands_there_at_each_step_and_at_its_end(findings):
    frame = frame_of(section(findings), "within_cells")
    assert frame.groupby("variant")["taken"].apply(list).to_dict() == {"dpo": [21, 43, 64], "ipo": [21, 43, 64]}
    assert frame["at_end"].tolist() == [False, False, True] * 2
    assert (frame["seeds"] == 3).all()
    held = frame[(frame["variant"] == "ipo") & (frame["taken"] == 21)].iloc[0]
    assert held["ranking_low"] < 0.90 < held["ranking_high"]
    assert held["gained_low"] < -0.20 < held["gained_high"]
    assert held["distance_low"] < 1.8 < held["distance_high"]


def test_only_the_variant_that_was_better_within_its_training_is_reported(findings):
    better, gap = section(findings).sentences
    assert "Of 2 cells, 1 had a better win-rate before the end" in better
    assert "ipo at β 0.1 after 21 of 64 steps" in better
    assert "dpo" not in better
    assert "implicit reward rose while the judge's fell: ipo at β 0.1 after 21 of 64 steps" in gap
    assert "dpo" not in gap


def test_the_end_is_compared_with_the_checkpoint_training_by_training(findings):
    """A spread between seeds that end and checkpoint share is no error of their difference."""
    cell = findings.chosen["ipo"]
    best = within.best_earlier(findings, cell)
    assert best is not None
    point = best.point
    assert [p.step for p in (point, *best.of)] == [21] * 4
    gain, end = within.gained(findings, cell, best.of, "win_rate"), findings.estimate(cell.ids, "win_rate")
    now = findings.results.table("win_rate", cell.ids, None, "test")
    then = point.findings.results.table("win_rate", list(point.ids), None, "test")
    assert gain.value == pytest.approx(float(now.to_numpy().mean() - then[now.columns].to_numpy().mean()))
    assert (gain.seeds, gain.n_prompts) == (3, end.n_prompts)
    # Every training moved by as much: end and checkpoint both go up, their difference and its error stay.
    moved = findings.results.scores.copy()
    places = {run: 0.1 * place for place, run in enumerate(cell.ids)}
    moved["value"] += moved["run"].map(places).fillna(0.0) * (moved["metric"] == "win_rate")
    then = point.findings.results.scores.copy()
    then["value"] += then["run"].map(dict(zip(point.ids, places.values(), strict=True))).fillna(0.0) * (
        then["metric"] == "win_rate"
    )
    whole = read(replace(findings.results, scores=moved, within=replace(point.findings.results, scores=then)))
    same = whole.chosen["ipo"]
    again = within.gained(whole, same, within.best_earlier(whole, same).of, "win_rate")
    assert again.se == pytest.approx(gain.se)
    assert whole.estimate(cell.ids, "win_rate").se > 2 * end.se


def test_a_training_is_read_at_the_checkpoint_that_the_others_pick(findings):
    """One lucky training would otherwise pick itself."""
    cell = findings.chosen["ipo"]
    scores_ = findings.results.within.scores.copy()
    wins = scores_["metric"] == "win_rate"
    # Half-way all are at 0.6, and later at 0.7; but the first training is at 1 half-way, which decides the sum.
    for place, run in enumerate(cell.ids):
        for step, value in zip(AT, (1.0 if place == 0 else 0.6, 0.7), strict=True):
            scores_.loc[wins & scores_["run"].eq(scores.step_of(run, step)), "value"] = value
    moved = read(replace(findings.results, within=replace(findings.results.within, scores=scores_)))
    best = within.best_earlier(moved, moved.chosen["ipo"])
    assert best.point.step == 21
    assert [p.step for p in best.of] == [43, 21, 21]


def test_checkpoints_scored_for_some_seeds_only_are_no_points(findings):
    known = findings.results.within.scores
    lacking = scores.step_of(findings.chosen["ipo"].ids[0], 43)
    part = replace(findings.results, within=replace(findings.results.within, scores=known[known["run"] != lacking]))
    steps = [p.step for p in points(read(part)) if p.cell.variant == "ipo"]
    assert steps == [21, None]


def test_checkpoints_without_the_ranking_metric_say_nothing(findings):
    known = findings.results.within.scores
    without = replace(findings.results.within, scores=known[known["metric"] != "win_rate"])
    assert section(read(replace(findings.results, within=without))).sentences == []


def test_scores_of_checkpoints_that_are_no_numbers_are_counted(make):
    folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=64)
    record = json.loads((folder / "experiment.json").read_text()) | {"evaluation": {"checkpoints": 1}}
    write_json(folder / "experiment.json", record)
    (run,) = (folder / "runs").iterdir()
    frame = scores.score_rows(prompt_ids(World(prompts=64)), "kl", [float("nan")] * 3 + [1.0] * 61)
    scores.write(scores.within(run, 32), "kl", frame, METRICS["kl"], {"seed": 0})
    assert load(folder).not_finite == {"kl": 3}


def test_checkpoints_are_points_of_the_trade_off(findings):
    assert [p.label for p in points(findings)][:3] == ["0.1 after 21 of 64 steps", "0.1 after 43 of 64 steps", "0.1"]
    with figures.drawing():
        shown = tradeoff.section(findings)
    cells = frame_of(shown, "tradeoff_cells")
    assert len(cells) == 6
    best = cells.loc[cells["pareto_probability"].astype(float).idxmax()]
    assert (best["variant"], best["beta"]) == ("ipo", "0.1 after 21 of 64 steps")
    rows = frame_of(shown, "tradeoff_variants").set_index("variant")
    assert rows.loc["ipo", "frontier"].startswith("0.1 after 21 of 64 steps")
    # At 3 nats the policy of a third of the steps is read, which wins nine in ten.
    assert rows.loc["ipo", "at_3_low"] < 0.9 < rows.loc["ipo", "at_3_high"]


def test_verdict_and_selection_are_of_the_ends_alone(findings, passed):
    with_them = read(load(passed))
    assert {v: c.key for v, c in with_them.chosen.items()} == {v: c.key for v, c in findings.chosen.items()}
    assert not any("@" in run for run in with_them.results.scores["run"].unique())


def test_the_section_is_on_the_page_and_nowhere_without_checkpoints(passed, equal):
    write_report(passed)
    page = (passed / "report" / "report.md").read_text()
    assert "### Along the training" in page
    assert (passed / "report" / "figures" / "within.svg").is_file()
    assert section(read(load(equal))) is None


def test_checkpoints_that_are_no_longer_requested_are_not_reported(passed):
    record = json.loads((passed / "experiment.json").read_text())
    write_json(passed / "experiment.json", record | {"evaluation": {"checkpoints": 0}})
    try:
        assert load(passed).within is None
    finally:
        write_json(passed / "experiment.json", record)
