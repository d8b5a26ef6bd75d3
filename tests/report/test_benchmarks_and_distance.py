"""Sections on benchmarks and on distance: intervals that cover, tests of single checkpoints, warnings where numbers mislead."""

import csv

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from dpobench.analysis.documents import changes, paired_delta
from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.artifacts.scores import Metric
from dpobench.report import figures
from dpobench.report.sections import benchmarks, distance, leaderboard
from dpobench.stats.crossed import crossed_mean

MEANING = {
    "kl_k1": Metric("nats per sequence", "none"),
    "kl_forward": Metric("nats per sequence", "none"),
    "kl_truncated": Metric("share", "lower"),
    "kl_noise_floor": Metric("nats per sequence", "none"),
    "kl_position": Metric("nats per token", "none", label="KL by position"),
    "tied": Metric("share", "lower"),
    "truncated": Metric("share", "lower"),
}


def findings(folder):
    return read(load(folder))


def drawn(section, folder):
    with figures.drawing():
        return section(findings(folder))


def add(folder, evaluator, rows_of):
    """Further scores for every checkpoint: `rows_of(prompts, kl)` gives {metric or (metric, group): (prompts, values)}."""
    for place in [*(folder / "runs").iterdir(), *(folder / "reference").iterdir()]:
        if "kl" not in scores.present(place):
            continue
        frame, _ = scores.read(place, "kl")
        known = frame[frame["metric"] == "kl"]
        made = []
        for name, (prompts, numbers) in rows_of(known["prompt"].tolist(), known["value"].to_numpy()).items():
            metric, group = name if isinstance(name, tuple) else (name, "")
            made.append(scores.score_rows(prompts, metric, numbers, group=group))
        scores.write(place, evaluator, pd.concat(made, ignore_index=True), MEANING, {})


@pytest.fixture(scope="module")
def measured(make):
    """An experiment whose log-ratio estimate is noise around the distance, with a third of the answers cut."""
    folder = make(betas=(0.1,), prompts=256)
    noise = np.random.default_rng(0).normal(0, 2, 256)

    def more(prompts, kl):
        cut = (np.arange(len(prompts)) % 3 == 0).astype(float)
        by = {
            ("kl_position", f"{8 * k}-{8 * k + 7}"): (prompts[: 256 - 90 * k], kl[: 256 - 90 * k] / (8 + k))
            for k in range(3)
        }
        floor = {"kl_noise_floor": (prompts[:4], [1e-5, -2e-5, 0, 0])}
        return (
            {"kl_k1": (prompts, kl + noise), "kl_forward": (prompts, 2 * kl), "kl_truncated": (prompts, cut)}
            | by
            | floor
        )

    add(folder, "kl_more", more)
    return folder


def test_the_table_of_distances_holds_every_estimate_with_its_interval(measured):
    shown = drawn(distance.section, measured)
    (table,) = shown.tables
    row = table.frame.iloc[0]
    for name in ("per_sequence", "per_token", "forward", "log_ratio", "gap", "truncated"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert row["forward"] == pytest.approx(2 * row["per_sequence"])
    assert row["gap"] == pytest.approx(row["log_ratio"] - row["per_sequence"])
    assert row["noise_floor"] == 2e-5
    assert row["reading"] == ""
    assert [note for note in shown.notes if "cut before their end for dpo (3" in note]
    assert not [note for note in shown.notes if "disagree" in note or "rounding" in note]
    axis = shown.figures["distance_profile"][1].axes[0]
    assert axis.lines[0].get_xdata().tolist() == [4.5, 12.5, 20.5]


def test_a_biased_estimate_and_a_distance_of_rounding_are_called_so(make):
    folder = make(betas=(0.1,), prompts=256)
    noise = np.random.default_rng(0).normal(0, 2, 256)

    def more(prompts, kl):
        return {"kl_k1": (prompts, kl + noise + 2.0), "kl_noise_floor": (prompts[:4], [0.9, 0.1, 0, 0])}

    add(folder, "kl_more", more)
    shown = drawn(distance.section, folder)
    # Two nats of bias against two of noise over some 128 test prompts: about eleven standard errors.
    assert set(shown.tables[0].frame["reading"]) == {"estimates disagree"}
    assert [note for note in shown.notes if "Two estimates of one distance disagree for dpo (+" in note]
    assert [
        note
        for note in shown.notes
        if "cannot be distinguished from rounding errors, which are up to 0.90 nats" in note
    ]


def test_a_folder_without_further_estimates_has_no_section(planted):
    assert distance.section(findings(planted)) is None


def test_the_row_of_one_seed_carries_the_test_of_its_checkpoint(make):
    folder = make(betas=(0.1,), seeds=(0,))
    compared = changes(findings(folder))
    for change in compared:
        tried = change.gains[0] + change.losses[0]
        p = stats.binomtest(change.gains[0], tried).pvalue if tried else 1.0
        assert (change.test, change.each) == ("McNemar", (pytest.approx(p),))
    assert any(change.losses[0] for change in compared)
    adjusted = multipletests([change.p for change in compared], method="fdr_bh")[1]
    assert [change.p_adjusted for change in compared] == pytest.approx(adjusted.tolist())


def test_with_more_seeds_the_row_counts_them_and_each_checkpoint_stands_below(planted):
    f = findings(planted)
    by_task = {(change.variant, change.task): change for change in changes(f)}
    change = by_task["ipo", "steering"]
    assert change.test == "t over documents and seeds"
    assert len(change.each) == 3
    assert change.lost == pytest.approx(np.mean(change.losses))
    assert change.delta.value == pytest.approx((change.gained - change.lost) / 80)
    (table,) = drawn(benchmarks.section, planted).tables
    rows = table.frame[(table.frame["variant"] == "ipo") & (table.frame["task"] == "steering")]
    assert rows["seed"].tolist() == [0, 1, 2]
    assert rows["lost"].tolist() == list(change.losses)
    assert rows["p"].tolist() == list(change.each)


def test_graded_documents_are_tested_by_permutation():
    from dpobench.analysis.documents import _each

    p, test = _each(np.array([[0.5, 0.75, 1.0]]), np.zeros(3))
    assert (p, test) == ((0.25,), "permutation")


def test_one_seeds_interval_is_bonett_and_prices():
    gained, lost, size = 7, 2, 60
    differences = np.array([[1.0] * gained + [-1.0] * lost + [0.0] * (size - gained - lost)])
    up, down = (gained + 1) / (size + 2), (lost + 1) / (size + 2)
    # Their variance is over n, ours over n - 1, and their quantile the normal one.
    se = np.sqrt((up + down - (up - down) ** 2) / (size + 1))
    half = stats.t.ppf(0.975, size + 1) * se
    delta = paired_delta(differences)
    assert delta.value == pytest.approx((gained - lost) / size)
    assert (delta.low, delta.high) == (pytest.approx(up - down - half), pytest.approx(up - down + half))
    still = paired_delta(np.zeros((3, 100)))
    assert still.low < 0 < still.high
    assert still.p == 1.0


@pytest.mark.parametrize(
    ("seeds", "documents", "share"), [(1, 200, 0.1), (1, 1000, 0.02), (3, 200, 0.1), (3, 1000, 0.02)]
)
def test_the_interval_of_a_paired_delta_covers(seeds, documents, share):
    draw, covered, plain, tries = np.random.default_rng(1), 0, 0, 1000
    for _ in range(tries):
        # What training changes differs between documents; seeds agree on most of it. The truth is no difference.
        liable = draw.beta(0.5, 0.5 * (1 - share) / share, documents)
        differences = draw.choice([-1.0, 1.0], documents) * (draw.random((seeds, documents)) < liable)
        delta, bare = paired_delta(differences), crossed_mean([differences])
        covered += delta.low <= 0 <= delta.high
        plain += bare.low <= 0 <= bare.high
    assert 0.93 <= covered / tries <= 0.985
    assert plain <= covered


def test_options_that_look_alike_are_a_warning_at_the_head_of_the_report(make):
    folder = make(betas=(0.1,))
    ids = [f"facts-{i}" for i in range(120)]
    add(folder, "more", lambda prompts, kl: {("tied", "facts"): (ids, [1.0] * 90 + [0.0] * 30)})
    f = findings(folder)
    (sentence,) = benchmarks.warnings(changes(f))
    assert "Options look alike to the model on many documents of facts (75 %)" in sentence
    rows = list(csv.DictReader(leaderboard.benchmarks(f).csv().splitlines()))
    assert {row["tied"] for row in rows if row["task"] == "facts"} == {"0.75"}
    assert {row["tied"] for row in rows if row["task"] != "facts"} == {""}


def test_the_heat_map_prints_every_delta_and_is_as_far_on_both_sides(planted):
    f = findings(planted)
    compared = changes(f)
    with figures.drawing():
        axis = benchmarks.heat_map(f, compared).axes[0]
    printed = sorted(text.get_text() for text in axis.texts)
    assert len(printed) == len(compared)
    worst = min(compared, key=lambda change: change.delta.value)
    assert f"−{-100 * worst.delta.value:.1f}" in printed
    colours = {text.get_text(): patch.get_facecolor() for text, patch in zip(axis.texts, axis.patches, strict=True)}
    assert len({colours["0.0"], colours[f"−{-100 * worst.delta.value:.1f}"]}) == 2


def test_a_cell_that_was_not_selected_is_checked_too(make):
    folder = make(betas=(0.1, 0.3), prompts=256, variants=("dpo",))
    noise = np.random.default_rng(0).normal(0, 2, 256)
    add(folder, "kl_more", lambda prompts, kl: {"kl_k1": (prompts, kl + noise)})
    f = findings(folder)
    (other,) = [c for c in f.configurations if c != f.chosen["dpo"]]
    assert not [note for note in drawn(distance.section, folder).notes if "disagree" in note]
    for run in other.runs:
        frame, meaning = scores.read(run.folder, "kl_more")
        scores.write(run.folder, "kl_more", frame.assign(value=frame["value"] + 2.0), meaning, {})
    (sentence,) = [note for note in drawn(distance.section, folder).notes if "disagree" in note]
    assert f"disagree for dpo at β {other.beta:g}: the samples are not" in sentence


def test_a_task_without_accuracy_is_named_and_a_cut_context_too(make):
    folder = make(betas=(0.1,))
    documents = [f"words/{place}" for place in range(20)]
    add(
        folder,
        "more",
        lambda prompts, kl: {
            ("tied", "words"): (documents, [0.0] * 20),
            ("truncated", "facts"): ([f"facts-{place}" for place in range(120)], [1.0] * 30 + [0.0] * 90),
        },
    )
    shown = drawn(benchmarks.section, folder)
    assert "for want of an accuracy or exact match: words." in shown.sentences[0]
    assert [note for note in shown.notes if "facts (25 % of the documents)" in note]
    assert drawn(benchmarks.section, make(betas=(0.1,))).sentences == []


def test_a_delta_of_shares_stays_within_one():
    delta = paired_delta(np.array([[-1.0] * 20, [0.0] * 20]))
    assert (delta.low, delta.value, delta.high) == (-1.0, -0.5, 1.0)
