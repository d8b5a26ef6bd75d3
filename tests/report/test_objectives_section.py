"""The section of several objectives, from made-up scores."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.artifacts.files import read_json, write_json
from dpobench.artifacts.scores import Metric, ScoreSettings
from dpobench.data.prompts import split_of
from dpobench.report.sections import objectives
from tests.report.conftest import World, prompt_ids, seeded

METRICS = {
    "objective_win_rate": Metric("share", "higher", label="win-rate"),
    "objective_accuracy": Metric("share", "higher", label="held-out accuracy"),
}


def with_objectives(folder, chances, accuracy=None):
    """Scores with these chances of (helpful, harmless) by variant and beta; `accuracy` of a third aim on pairs of its own."""
    f = read(load(folder))
    ids = prompt_ids(World())
    for c in f.configurations:
        for run in c.runs:
            rng = seeded("aims", run.id)
            both = chances[c.variant, c.beta]
            frames = [
                scores.score_rows(ids, "objective_win_rate", rng.random(len(ids)) < p, group=name)
                for name, p in zip(("helpful", "harmless"), both, strict=True)
            ]
            if accuracy is not None:
                pairs = [f"pair{i}" for i in range(200)]
                frames.append(
                    scores.score_rows(
                        pairs, "objective_accuracy", rng.random(200) < accuracy[c.variant], group="honest"
                    )
                )
            scores.write(run.folder, "objectives", pd.concat(frames, ignore_index=True), METRICS, {})
    base = [
        scores.score_rows(ids, "objective_win_rate", np.full(len(ids), 0.5), group=n) for n in ("helpful", "harmless")
    ]
    if accuracy is not None:
        base.append(
            scores.score_rows([f"pair{i}" for i in range(200)], "objective_accuracy", np.full(200, 0.5), group="honest")
        )
    scores.write(folder / "reference" / "0123456789ab", "objectives", pd.concat(base, ignore_index=True), METRICS, {})
    record = read_json(folder / "experiment.json")
    write_json(
        folder / "experiment.json",
        record | {"evaluation": {"objectives": {"helpful": "", "harmless": "", "honest": ""}}},
    )
    return read(load(folder))


def rows_of(table):
    return list(csv.DictReader(io.StringIO(table.csv())))


CHANCES = {("dpo", 0.1): (0.8, 0.3), ("ipo", 0.1): (0.3, 0.8), ("cdpo", 0.1): (0.25, 0.25)}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([[1, 0], [0, 1], [0, 0]], [1, 1, 0]),
        ([[1, 1], [1, 1]], [1, 1]),
        ([[2, 1], [1, 1]], [1, 0]),
        ([[1, 2, 3], [3, 2, 1], [2, 2, 2], [1, 2, 2]], [1, 1, 1, 0]),
    ],
)
def test_a_point_is_beaten_by_one_as_good_everywhere_and_better_somewhere(values, wanted):
    assert objectives.undominated(values).tolist() == [bool(one) for one in wanted]


def test_without_objectives_there_is_no_section(make):
    assert objectives.section(read(load(make(betas=(0.1,), seeds=(0,))))) is None


def test_every_cell_has_every_aim_and_its_share_of_resamples(make):
    f = with_objectives(make(betas=(0.1,), seeds=(0, 1, 2)), CHANCES)
    shown = objectives.section(f)
    grid = {row["variant"]: row for row in rows_of(shown.tables[1])}
    assert set(grid) == {"dpo", "ipo", "cdpo", "reference"}
    tested = [i for i, prompt in enumerate(prompt_ids(World())) if split_of(prompt) == "test"]
    raw = f.results.scores
    rows_of_objective = raw[
        raw["run"].isin(f.chosen["dpo"].ids) & (raw["metric"] == "objective_win_rate") & (raw["group"] == "helpful")
    ]
    tested_ids = {prompt_ids(World())[i] for i in tested}
    assert float(grid["dpo"]["helpful"]) == pytest.approx(
        rows_of_objective[rows_of_objective["prompt"].isin(tested_ids)]["value"].mean()
    )
    assert float(grid["dpo"]["helpful_low"]) < float(grid["dpo"]["helpful"]) < float(grid["dpo"]["helpful_high"])
    assert {name: row["pareto"] for name, row in grid.items()} == {
        "dpo": "yes",
        "ipo": "yes",
        "cdpo": "no",
        "reference": "yes",
    }
    assert float(grid["dpo"]["membership"]) > 0.95
    assert float(grid["cdpo"]["membership"]) < 0.05
    assert any("dpo gains on helpful and loses on harmless" in sentence for sentence in shown.sentences)
    assert not any(sentence.startswith("cdpo") for sentence in shown.sentences)


def test_gains_and_losses_of_a_variant_are_reported_against_the_control(make):
    f = with_objectives(make(betas=(0.1,), seeds=(0, 1, 2)), CHANCES)
    rows = {row["variant"]: row for row in rows_of(objectives.section(f).tables[0])}
    assert float(rows["ipo"]["helpful_difference_high"]) < 0 < float(rows["ipo"]["harmless_difference_low"])
    assert float(rows["ipo"]["helpful_difference"]) == pytest.approx(
        float(rows["ipo"]["helpful"]) - float(rows["dpo"]["helpful"])
    )
    assert rows["dpo"]["helpful_difference"] == rows["reference"]["helpful_difference"] == ""


def test_cells_as_good_as_one_another_share_the_set(make):
    f = with_objectives(make(betas=(0.1,), seeds=(0, 1)), dict.fromkeys(CHANCES, (0.6, 0.6)))
    grid = {row["variant"]: row for row in rows_of(objectives.section(f).tables[1])}
    shares = [float(grid[name]["membership"]) for name in ("dpo", "ipo", "cdpo")]
    assert all(0.03 < share < 0.999 for share in shares), "chance alone decides among equals"
    assert float(grid["reference"]["membership"]) < 0.05


def test_a_third_objective_on_other_pairs_has_other_prompts_and_no_plane_figure(make):
    f = with_objectives(make(betas=(0.1,), seeds=(0, 1)), CHANCES, {"dpo": 0.6, "ipo": 0.6, "cdpo": 0.95})
    shown = objectives.section(f)
    grid = {row["variant"]: row for row in rows_of(shown.tables[1])}
    assert grid["cdpo"]["pareto"] == "yes", "the best on the third aim"
    assert int(grid["cdpo"]["n_honest"]) < 200 < int(grid["cdpo"]["n_helpful"])
    assert shown.figures == {}
    heads = [column.header for column in shown.tables[1].shown]
    assert "Honest, held-out accuracy" in heads
    assert {"Prompts, helpful", "Prompts, honest"} <= set(heads)


def test_the_figure_shows_every_cell_and_the_set(make):
    betas = (0.03, 0.1)
    chances = {(variant, beta): (0.5 + beta, 0.7 - beta) for variant in ("dpo", "ipo", "cdpo") for beta in betas}
    shown = objectives.section(with_objectives(make(betas=betas, seeds=(0,)), chances))
    _, figure = shown.figures["objectives"]
    (axis,) = figure.axes
    assert set(axis.get_legend_handles_labels()[1]) == {"dpo", "ipo", "cdpo", "reference", "Pareto set"}
    assert len(axis.texts) == 6


def without_verdicts(folder, variant, share):
    """Take verdicts of the aim "helpful" from a variant's runs: this share of the prompts is missing."""
    for c in (c for c in read(load(folder)).configurations if c.variant == variant):
        for run in c.runs:
            frame, _ = scores.read(run.folder, "objectives")
            rows_of_objective = frame[
                (frame["group"] == "helpful") & (frame["metric"] == "objective_win_rate")
            ].sort_values("prompt")
            lost = rows_of_objective.iloc[: round(share * len(rows_of_objective))]
            rest = frame.drop(lost.index)
            missing = rows_of_objective["prompt"].isin(lost["prompt"]).to_numpy(dtype=float)
            worst = rows_of_objective["value"].to_numpy() * (1 - missing)
            bounds = {"missing": missing, "win_rate_worst": worst, "win_rate_best": worst + missing}
            tables = [
                scores.score_rows(rows_of_objective["prompt"].tolist(), f"objective_{n}", v, group="helpful")
                for n, v in bounds.items()
            ]
            declared = {f"objective_{name}": Metric("share", "higher") for name in ("win_rate", *bounds)}
            scores.write(
                run.folder, "objectives", pd.concat([rest, *tables], ignore_index=True), declared, ScoreSettings()
            )
    return read(load(folder))


def test_missing_verdicts_are_reported_with_their_bounds(make):
    folder = make(betas=(0.1,), seeds=(0,))
    with_objectives(folder, CHANCES)
    shown = objectives.section(without_verdicts(folder, "ipo", 0.25))
    table = shown.tables[0]
    heads = [column.header for column in table.shown]
    assert {"Missing, helpful", "Helpful, missing lost", "Helpful, missing won"} <= set(heads)
    row = {row["variant"]: row for row in rows_of(table)}["ipo"]
    worst, best, missing = (float(row[f"helpful_{name}"]) for name in ("worst", "best", "missing"))
    assert 0.15 < missing < 0.35
    assert best - worst == pytest.approx(missing)
    assert worst < float(row["helpful"]) < best


def test_cells_and_objectives_without_verdicts_are_named(make):
    folder = make(betas=(0.1,), seeds=(0,))
    with_objectives(folder, CHANCES)
    shown = objectives.section(without_verdicts(folder, "ipo", 1.0))
    assert "Left out: ipo at β = 0.1, which has too few verdicts on helpful." in shown.sentences
    assert "Left out, for it has no verdict on any cell: honest." in shown.sentences
    assert {row["variant"] for row in rows_of(shown.tables[1])} == {"dpo", "cdpo", "reference"}
    for variant in ("dpo", "cdpo"):
        shown = objectives.section(without_verdicts(folder, variant, 1.0))
    assert shown.sentences == ["Left out, for it has no verdict on any cell: helpful, honest."]
    assert not shown.tables


def test_no_interval_of_a_difference_leaves_what_is_possible(make):
    f = with_objectives(make(betas=(0.1,), seeds=(0, 1)), CHANCES)
    # One seed wins everything, the other nothing.
    for c in f.configurations:
        for run in c.runs:
            frame, metrics = scores.read(run.folder, "objectives")
            value = float((run.seed == 0) == (run.variant == "dpo"))
            scores.write(run.folder, "objectives", frame.assign(value=value), metrics, {})
    shown = objectives.section(read(load(f.results.folder)))
    row = next(row for row in rows_of(shown.tables[0]) if row["variant"] == "ipo")
    assert (float(row["helpful_difference_low"]), float(row["helpful_difference_high"])) == (-1, 1)
