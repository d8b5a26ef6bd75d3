"""The section of controls, from made-up scores of the reference."""

import csv
import io
import math

import numpy as np
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.artifacts.scores import Metric
from dpobench.data.prompts import split_of
from dpobench.report.sections import controls
from tests.report.conftest import World, prompt_ids, seeded

METRICS = {
    "best_of_win_rate": Metric("share", "higher", label="win-rate of the best of k"),
    "best_of_reward": Metric("reward", "higher", label="reward of the best of k"),
    "same_win_rate": Metric("share", "none", label="win-rate of the reference against itself"),
}


def with_controls(folder, same=0.5, ks=(1, 2, 4)):
    """Add what the evaluator would have written of the reference."""
    ids, rng = prompt_ids(World()), seeded("controls", same)
    frames = [scores.score_rows(ids, "same_win_rate", rng.random(len(ids)) < same)]
    for k in ks:
        wins = rng.random(len(ids)) < k / (k + 1)
        frames.append(scores.score_rows(ids, "best_of_win_rate", wins, group=str(k)))
        frames.append(scores.score_rows(ids, "best_of_reward", rng.normal(k, 1, len(ids)), group=str(k)))
    import pandas as pd

    scores.write(folder / "reference" / "0123456789ab", "best_of", pd.concat(frames, ignore_index=True), METRICS, {})
    return read(load(folder))


def table_of(f):
    shown = controls.section(f)
    (table,) = shown.tables
    return shown, list(csv.DictReader(io.StringIO(table.csv())))


def test_without_a_pool_there_is_no_section(make):
    f = read(load(make(betas=(0.1,), seeds=(0,))))
    assert controls.section(f) is None
    assert controls.best_of_rows(f) == []


def test_both_controls_are_in_the_table_of_the_variants(make):
    f = with_controls(make(betas=(0.1,), seeds=(0, 1)))
    shown, rows = table_of(f)
    tested = [i for i, prompt in enumerate(prompt_ids(World())) if split_of(prompt) == "test"]
    wins = f.results.scores
    raw = wins[(wins["metric"] == "best_of_win_rate") & (wins["group"] == "4")]["value"].to_numpy()[tested]
    by_name = {row["compared"]: row for row in rows}
    assert list(by_name)[:3] == [
        "A/A: a second draw of the reference",
        "best of 2 of the reference",
        "best of 4 of the reference",
    ]
    assert set(list(by_name)[3:]) == {"dpo", "ipo", "cdpo"}
    best = by_name["best of 4 of the reference"]
    assert float(best["win_rate"]) == pytest.approx(raw.mean())
    assert float(best["win_rate_low"]) < raw.mean() < float(best["win_rate_high"])
    assert int(best["n_prompts"]) == len(tested)
    # log 4 - 3/4
    assert float(best["kl_bound"]) == pytest.approx(0.6362943611)
    assert best["reading"] == "wins"
    assert by_name["A/A: a second draw of the reference"]["reading"] == "covers 0.5"
    assert shown.notes == []


def test_a_variant_less_the_best_of_4_is_paired_by_prompt_and_knows_its_seeds(make):
    f = with_controls(make(betas=(0.1,), seeds=(0, 1, 2)))
    _, rows = table_of(f)
    row = next(row for row in rows if row["compared"] == "dpo")
    wins = f.results.table("win_rate", f.chosen["dpo"].ids, None, "test")
    base = f.results.table("best_of_win_rate", ["reference"], "4", "test")
    differences = wins.to_numpy() - base.to_numpy()
    assert float(row["difference"]) == pytest.approx(differences.mean())
    half = (float(row["difference_high"]) - float(row["difference_low"])) / 2
    prompts_only = 1.96 * differences.mean(0).std(ddof=1) / math.sqrt(differences.shape[1])
    assert half > 0.95 * prompts_only
    assert int(row["seeds"]) == 3


def test_whatever_beats_every_variant_without_training_is_reported_at_the_head(make):
    f = with_controls(make(betas=(0.1,), seeds=(0, 1)), ks=(1, 2, 64))
    (sentence,) = controls.section(f).notes
    assert sentence.startswith("No trained variant reaches the best of 64 answers of the reference, 0.9")
    # The best of two wins two in three, and the variants more.
    assert controls.section(with_controls(make(betas=(0.1,), seeds=(0, 1)), ks=(1, 2))).notes == []


def test_a_reference_that_beats_itself_is_reported_at_the_head(make):
    shown, rows = table_of(with_controls(make(betas=(0.1,), seeds=(0,)), same=0.8))
    assert rows[0]["reading"] == "does not cover 0.5"
    assert "negative control fails" in shown.alarms[0]
    assert "does not cover 0.5" in shown.sentences[0]


def test_what_a_leaderboard_needs_of_the_best_of_k(make):
    best = controls.best_of_rows(with_controls(make(betas=(0.1,), seeds=(0,))))
    assert [(one.k, one.label) for one in best] == [
        (2, "best of 2 of the reference"),
        (4, "best of 4 of the reference"),
    ]
    assert [one.ceiling for one in best] == pytest.approx([2 / 3, 4 / 5])
    assert [one.kl_bound for one in best] == pytest.approx([math.log(2) - 0.5, math.log(4) - 0.75])
    assert all(one.win_rate.low < one.ceiling < one.win_rate.high for one in best)
    assert best[1].reward.value == pytest.approx(4, abs=0.3)


def test_the_bound_is_the_kl_of_the_best_of_n_where_answers_are_many_and_never_tie():
    # A fine uniform distribution: the best of n has density n u^(n-1); its KL by a sum over the cells.
    cells, n = 200_000, 4
    edges = np.linspace(0, 1, cells + 1)
    best = np.diff(edges**n)
    kl = float((best * np.log(best * cells)).sum())
    assert kl == pytest.approx(controls.BestOf(n, None, None).kl_bound, abs=1e-4)
    assert kl <= controls.BestOf(n, None, None).kl_bound


def test_the_figure_has_the_curve_and_every_variant(make):
    shown = controls.section(with_controls(make(betas=(0.1,), seeds=(0, 1))))
    _, figure = shown.figures["best_of"]
    (axis,) = figure.axes
    labels = axis.get_legend_handles_labels()[1]
    assert {"best of k", "dpo", "ipo", "cdpo", "k / (k + 1)", "reference"} == set(labels)
    curve = next(line for line in axis.lines if line.get_label() == "best of k")
    assert list(curve.get_xdata()) == pytest.approx([math.log(2) - 0.5, math.log(4) - 0.75])


def test_no_interval_of_a_difference_leaves_what_is_possible(make):
    _, rows = table_of(with_controls(make(betas=(0.1,), seeds=(0, 1), seed_sd=0.6)))
    ends = [(float(row["difference_low"]), float(row["difference_high"])) for row in rows if row["difference_low"]]
    assert min(low for low, _ in ends) == -1
    assert max(high for _, high in ends) <= 1
