"""The sections on trade-off, tournament and length, from a made-up experiment."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpobench.analysis.findings import Findings, read
from dpobench.analysis.results import load
from dpobench.report import figures
from dpobench.report.sections import length, tournament, tradeoff


@pytest.fixture(scope="module")
def findings(planted: Path) -> Findings:
    return read(load(planted))


def frame_of(part, name: str) -> pd.DataFrame:
    (table,) = [table for table in part.tables if table.name == name]
    return table.frame


def test_the_better_variant_buys_more_at_every_distance(findings):
    with figures.drawing():
        shown = tradeoff.section(findings)
    rows = frame_of(shown, "tradeoff_variants").set_index("variant")
    assert rows.loc["ipo", "to_control_low"] > 0.03
    assert rows.loc["cdpo", "to_control_low"] < 0 < rows.loc["cdpo", "to_control_high"]
    # The control's true win-rate is about 0.70 at 6 nats, the better one's 0.82 there and beyond.
    assert rows.loc["ipo", "at_10_low"] < 0.82 < rows.loc["ipo", "at_10_high"]
    assert rows.loc["dpo", "to_control"] is None
    assert set(shown.figures) == {"tradeoff"}


def test_the_pareto_set_is_the_better_variants(findings):
    with figures.drawing():
        cells = frame_of(tradeoff.section(findings), "tradeoff_cells")
    best = cells.loc[cells["pareto_probability"].astype(float).idxmax()]
    assert best["variant"] == "ipo"
    assert len(cells) == 9


def test_the_tournament_is_played_from_rewards_at_the_selected_cells(findings):
    with figures.drawing():
        shown = tournament.section(findings)
    strengths = frame_of(shown, "tournament_strengths").set_index("player")
    assert set(strengths.index) == {"dpo", "ipo", "cdpo", "reference"}
    assert strengths.loc["dpo", "strength"] == 0.0
    assert strengths.loc["reference", "strength_high"] < 0.1
    matrix = frame_of(shown, "tournament_matrix")
    observed = matrix[[f"against_{i}" for i in range(4)]].to_numpy(dtype=float)
    apart = ~np.eye(4, dtype=bool)
    assert np.allclose((observed + observed.T)[apart], 1.0)
    assert np.isnan(np.diag(observed)).all()


def test_comparisons_in_the_experiments_folder_are_used_instead_of_rewards(make):
    folder = make(variants=("dpo", "ipo"), betas=(0.1,), seeds=(0, 1), prompts=128)
    runs = sorted(path.name for path in (folder / "runs").iterdir())
    rows = []
    for prompt in pd.read_json(next((folder / "reference").glob("*/prompts.jsonl")), lines=True, dtype=False)["id"]:
        for a in runs:
            rows += [(prompt, 0, "reference", a, 0.25)] + [
                (prompt, 0, a, b, 0.5) for b in runs if a[:3] == "dpo" and b[:3] == "ipo"
            ]
    (folder / "tournament").mkdir()
    pd.DataFrame(rows, columns=["prompt", "draw", "a", "b", "score"]).to_parquet(folder / tournament.VERDICTS)
    shown = tournament.section(read(load(folder)))
    strengths = frame_of(shown, "tournament_strengths").set_index("player")
    # Three of four against the reference, even among themselves: log-odds of 1/4.
    assert strengths.loc["reference", "strength"] == pytest.approx(np.log(1 / 3), abs=1e-6)
    assert strengths.loc["ipo", "strength"] == pytest.approx(0, abs=1e-6)
    assert "comparisons" in shown.sentences[0]


def test_the_curve_of_trials_rises_to_the_selected_cell(findings):
    with figures.drawing():
        rows = frame_of(tournament.section(findings), "best_of_trials").set_index("variant")
    selected = findings.estimate(findings.chosen["ipo"].ids, findings.ranking)
    assert rows.loc["ipo", "best_of_1"] < rows.loc["ipo", "best_of_3"]
    assert rows.loc["ipo", "best_of_3"] == pytest.approx(selected.value, abs=0.02)


def test_where_length_does_not_matter_its_control_changes_little(findings):
    controlled = length.length_controlled_of(findings)
    for variant, estimate in controlled.items():
        plain = findings.estimate(findings.chosen[variant].ids, findings.headline)
        assert estimate.low < plain.value < estimate.high
    rows = frame_of(length.section(findings), "length_quintiles").set_index("variant")
    assert rows.loc["dpo", [f"pairs_{i}" for i in range(1, 6)]].sum() == 3 * rows.loc["dpo", "n_prompts"]


def test_without_a_judge_there_is_neither_tournament_nor_length_control(make):
    findings = read(load(make(betas=(0.1,), seeds=(0,), judge=False, prompts=96)))
    assert tournament.section(findings) is None
    assert length.section(findings) is None
    assert length.length_controlled_of(findings) == {}
    with figures.drawing():
        assert tradeoff.section(findings) is not None  # the held-out preference ranks instead


def test_before_any_run_has_finished_there_is_nothing_to_say(make):
    folder = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=64, diverged=(("dpo", 0.1, 0),))
    findings = read(load(folder))
    assert [part.section(findings) for part in (tradeoff, tournament, length)] == [None, None, None]
