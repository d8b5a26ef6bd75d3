"""The tables of troubles, against numbers worked out from the very files they were made from."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.artifacts.scores import Metric
from dpobench.data.prompts import split_of
from dpobench.report.figures import drawing
from dpobench.report.sections import displacement, optimisation, trouble
from dpobench.report.sections.training_dynamics import counted
from dpobench.report.table import Column
from dpobench.report.write import write_report

MORE = {
    "kl": {"kl_k1": Metric("nats per sequence", "none")},
    "preference": {
        "mean_accuracy": Metric("share", "higher"),
        "own_accuracy": Metric("share", "higher"),
        "saturated": Metric("share", "none"),
        "length_difference": Metric("tokens", "none"),
    },
    "samples": {"entropy": Metric("nats per token", "none"), "chosen_length": Metric("tokens", "none")},
}
DATA = {
    "train": {
        "read": 2048,
        "prompts": 2000,
        "kept": 2040,
        "length": {"longer_wins": 0.6, "low": 0.57, "high": 0.63, "n": 2000, "equal": 40},
        "problems": {"negative score margin": "580 rows, action: warn", "identical answers": "8 rows, action: drop"},
    },
    "heldout": {"read": 512, "prompts": 512, "kept": 512, "problems": "none"},
    "tokens": {"kept": 2040, "cut_answers": 3, "dropped": {"prompt too long": 2}, "tokens": {"chosen": {"median": 30.0, "p90": 41.5}}},
    "overlap": 5,
    "prompts": {"selection": 250, "test": 262},
    "told elsewhere": {"asked": 0.15},
}  # fmt: skip


def frame_of(folder, evaluator, metric):
    frame, _ = scores.read(folder, evaluator)
    return frame[frame["metric"] == metric].set_index("prompt")["value"]


def enrich(folder, *, reference=False):
    """Write what the newer evaluators add, each number a simple function of what is there."""
    prompts = frame_of(folder, "preference", "accuracy").index
    place = np.arange(len(prompts))
    reward = frame_of(folder, "winrate", "reward")
    added = {
        "kl": {"kl_k1": frame_of(folder, "kl", "kl") - 0.2 * reward},
        "preference": {"length_difference": pd.Series(np.array([4.0, 3.0, 0.0, -2.0])[place % 4], prompts)},
        "samples": {"entropy": pd.Series(0.5 + place / 1000, prompts)},
    }
    if reference:
        added["samples"]["chosen_length"] = pd.Series(20.0 + place % 5, prompts)
    else:
        right = frame_of(folder, "preference", "accuracy")
        added["preference"] |= {
            "mean_accuracy": 1 - right,
            "own_accuracy": right,
            "saturated": pd.Series((place % 10 == 0).astype(float), prompts),
        }
    for evaluator, metrics in added.items():
        frame, meaning = scores.read(folder, evaluator)
        tables = [scores.score_rows(list(values.index), name, values.to_numpy()) for name, values in metrics.items()]
        whole = pd.concat([frame, *tables], ignore_index=True)
        scores.write(folder, evaluator, whole, meaning | MORE[evaluator], scores.settings(folder, evaluator))


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture(scope="module")
def folder(make):
    made = make(variants=("dpo", "ipo"), betas=(0.01, 0.1), seeds=(0, 1, 2), prompts=400)
    enrich(made / "reference" / "0123456789ab", reference=True)
    for run in sorted((made / "runs").iterdir()):
        enrich(run)
        cost = {"forwards": 64 * 32 * 2, "backwards": 64 * 32, "peak_bytes": 512_000_000}
        edit(run / "run.json", lambda note, cost=cost: note.update(cost=cost))
    edit(made / "plan.json", lambda plan: plan.update(data=DATA, states_probability=["dpo"]))
    write_report(made)
    return made


def table(folder, name):
    with (folder / "report" / "tables" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def row_of(folder, name, variant, **wanted):
    wanted = {"variant": variant, **{key: str(value) for key, value in wanted.items()}}
    (row,) = [row for row in table(folder, name) if all(row[key] == value for key, value in wanted.items())]
    return row


def selected(folder, variant):
    """Folders of the runs of a variant's selected cell, by seed, and its strength."""
    row = row_of(folder, "leaderboard", variant)
    return [folder / "runs" / run for run in row["run_ids"].split()], float(row["beta"])


def on_test(values):
    return values[[split_of(prompt) == "test" for prompt in values.index]]


def test_accuracy_is_split_by_the_sign_of_the_difference_in_length(folder):
    runs, _ = selected(folder, "ipo")
    lengths = on_test(frame_of(runs[0], "preference", "length_difference"))
    row = row_of(folder, "pair_lengths", "ipo")
    for name, inside in (("longer", lengths > 0), ("equal", lengths == 0), ("shorter", lengths < 0)):
        means = [frame_of(run, "preference", "accuracy")[lengths.index[inside]].mean() for run in runs]
        assert float(row[name]) == pytest.approx(np.mean(means)), name
        assert int(row[f"{name}_pairs"]) == inside.sum()
        assert float(row[f"{name}_low"]) < float(row[name]) < float(row[f"{name}_high"])


def test_length_alone_is_right_on_the_same_pairs_as_often_as_counted(folder):
    """Of every four pairs two have the longer answer chosen, one the shorter, one is a tie: 0.625."""
    runs, _ = selected(folder, "dpo")
    lengths = on_test(frame_of(runs[0], "preference", "length_difference"))
    alone = np.where(lengths > 0, 1.0, np.where(lengths == 0, 0.5, 0.0)).mean()
    row = row_of(folder, "pair_accuracy", "dpo")
    assert float(row["by_length"]) == pytest.approx(alone)
    assert alone == pytest.approx(0.625, abs=0.05)
    assert float(row["over_length"]) == pytest.approx(float(row["accuracy"]) - alone)
    assert float(row["own_accuracy"]) == pytest.approx(float(row["accuracy"]))
    assert float(row["mean_accuracy"]) == pytest.approx(1 - float(row["accuracy"]))


def test_shorter_wins_is_taken_where_it_is_the_better_rule(folder, monkeypatch):
    findings = read(load(folder))
    flipped = findings.results.scores.copy()
    flipped.loc[flipped["metric"] == "length_difference", "value"] *= -1
    monkeypatch.setitem(vars(findings.results), "scores", flipped)
    table = displacement.accuracies(findings)
    assert table.frame["by_length"].iloc[0] == pytest.approx(0.625, abs=0.05)
    assert "By length alone (shorter wins)" in [column.header for column in table.columns]


def test_the_quadrants_of_the_figure_are_those_of_the_table(folder):
    row = row_of(folder, "displacement", "dpo", selected="yes")
    assert sum(float(row[name]) for name in displacement.QUADRANTS) == pytest.approx(1)
    svg = (folder / "report" / "figures" / "quadrants.svg").read_text()
    assert f">{100 * float(row['chosen up, rejected down']):.0f}<" in svg


def test_implicit_reward_is_set_against_the_judges(folder):
    for variant in ("dpo", "ipo"):
        runs, beta = selected(folder, variant)
        row = row_of(folder, "own_reward", variant, selected="yes")
        pairs = [(on_test(frame_of(run, "kl", "kl_k1")), on_test(frame_of(run, "winrate", "reward"))) for run in runs]
        assert float(row["log_ratio"]) == pytest.approx(np.mean([x.mean() for x, _ in pairs]))
        assert float(row["implicit"]) == pytest.approx(beta * float(row["log_ratio"]))
        correlations = [np.arctanh(np.corrcoef(x, y[x.index])[0, 1]) for x, y in pairs]
        assert float(row["correlation"]) == pytest.approx(np.tanh(np.mean(correlations)), abs=1e-9)
        assert float(row["correlation"]) < 0
        base = on_test(frame_of(folder / "reference" / "0123456789ab", "winrate", "reward")).mean()
        assert float(row["gold_gain"]) == pytest.approx(np.mean([y.mean() for _, y in pairs]) - base)


def test_a_cell_that_the_policy_likes_better_and_the_judge_less_is_a_gap(make):
    made = make(variants=("dpo",), betas=(0.01, 0.1), prompts=400)
    enrich(made / "reference" / "0123456789ab", reference=True)
    for run in sorted((made / "runs").iterdir()):
        far = json.loads((run / "run.json").read_text())["beta"] == 0.01
        frame, meaning = scores.read(run, "winrate")
        frame.loc[frame["metric"] == "reward", "value"] -= 2.0 * far
        scores.write(run, "winrate", frame, meaning, {"seed": 0})
        enrich(run)
    part = optimisation.section(read(load(made)))
    assert [row["reading"] for row in part.tables[0].frame.to_dict("records")] == ["gap", "selected"]
    assert part.sentences[0].startswith("The policy's implicit reward rises while the judge's falls")


def test_lengths_are_set_against_the_datas_chosen_answers_to_the_same_prompts(folder):
    runs, _ = selected(folder, "dpo")
    written = np.mean([on_test(frame_of(run, "samples", "length")).mean() for run in runs])
    chosen = on_test(frame_of(folder / "reference" / "0123456789ab", "samples", "chosen_length")).mean()
    assert float(row_of(folder, "lengths", "dpo")["chosen_ratio"]) == pytest.approx(written / chosen)
    assert "the data's chosen" in (folder / "report" / "figures" / "lengths.svg").read_text()


def test_the_form_of_answers_has_a_row_for_the_reference(folder):
    rows = {row["variant"]: row for row in table(folder, "texture")}
    assert set(rows) == {"dpo", "ipo", "reference"}
    entropies = on_test(frame_of(folder / "reference" / "0123456789ab", "samples", "entropy"))
    assert float(rows["reference"]["entropy"]) == pytest.approx(entropies.mean())


def test_the_calibration_error_has_an_interval_and_the_error_by_chance_is_given(folder):
    rows = table(folder, "calibration")
    assert {row["variant"] for row in rows} == {"dpo"}
    for row in rows:
        assert float(row["ece_low"]) <= float(row["ece"]) <= float(row["ece_high"])
        assert float(row["ece"]) <= float(row["ece_plain"])
        assert 0 < float(row["ece_chance"]) < 0.2
        stated = float(row["confidence"]) - float(row["overconfidence"])
        assert stated == pytest.approx(float(row["accuracy"]), abs=1e-9)


def test_saturation_of_held_out_pairs_stands_in_the_dynamics(folder):
    """Every tenth pair was written as saturated."""
    for row in table(folder, "dynamics"):
        assert float(row["heldout_saturation"]) == pytest.approx(0.1, abs=0.03)
        assert float(row["heldout_saturation_low"]) < 0.1 < float(row["heldout_saturation_high"])


def test_gradients_are_counted_over_all_steps_of_a_cell(folder):
    runs, beta = selected(folder, "dpo")
    logs = [pd.read_json(run / "log.jsonl", lines=True)["gradient_norm"].to_numpy() for run in runs]
    whole = np.concatenate(logs)
    row = row_of(folder, "numerical", "dpo", beta=f"{beta:g}")
    assert float(row["norm_median"]) == pytest.approx(np.median(whole))
    assert float(row["norm_high"]) == pytest.approx(np.quantile(whole, 0.99))
    assert float(row["norm_largest"]) == pytest.approx(whole.max())
    assert float(row["clipped"]) == pytest.approx((whole > 1.0).mean())
    margins = np.concatenate([frame_of(run, "preference", "margin") for run in runs])
    assert float(row["largest_margin"]) == pytest.approx(np.abs(margins).max())


def test_unlike_clipping_is_reported_at_the_head(make):
    folder = make(variants=("dpo", "ipo"), betas=(0.1,), seeds=(0,), prompts=64)
    assert trouble.section(read(load(folder))).notes == []
    for run in (folder / "runs").glob("*"):
        size = 7.0 if run.name.startswith("ipo") else 0.1
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        (run / "log.jsonl").write_text("".join(json.dumps(row | {"gradient_norm": size}) + "\n" for row in rows))
    (sentence,) = trouble.section(read(load(folder))).notes
    assert "nearly every step of ipo and seldom for dpo" in sentence


def test_a_spike_is_a_step_far_above_the_median_of_its_run(make):
    made = make(variants=("dpo",), betas=(0.1,), seeds=(0, 1), prompts=64)
    for factor, run in zip((1.0, 100.0), sorted((made / "runs").iterdir()), strict=True):
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for line in lines:
            line["gradient_norm"] = factor * (6.0 if line["step"] in (5, 9) else 1.0)
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert trouble.numerical(read(load(made))).frame["spikes"].tolist() == [4]


def test_the_spread_between_seeds_is_that_of_their_means(folder):
    runs, _ = selected(folder, "ipo")
    row = row_of(folder, "seed_spread", "ipo")
    for evaluator, metric in (("winrate", "win_rate"), ("kl", "kl"), ("preference", "accuracy")):
        means = [on_test(frame_of(run, evaluator, metric)).mean() for run in runs]
        assert float(row[metric]) == pytest.approx(np.std(means, ddof=1), rel=1e-6), metric
        assert float(row[f"{metric}_low"]) < float(row[metric]) < float(row[f"{metric}_high"])


def test_one_seed_has_no_spread(make):
    made = make(seeds=(0,), betas=(0.1,), prompts=64)
    assert len(trouble.spread(read(load(made))).frame) == 0


def test_the_counts_of_the_data_are_all_reported(folder):
    rows = {row["what"]: (row["training"], row["heldout"]) for row in table(folder, "data")}
    assert rows["Labels against the data's own scores"] == ("580 (28.3%), kept", "0")
    assert rows["Chosen and rejected identical"] == ("8 (0.4%), left out", "0")
    assert rows["The longer answer is the chosen one"] == ("60.0% [57.0%, 63.0%] of 2,000", "")
    assert rows["Tokens of the chosen answer: median (90 %)"] == ("30 (41.5)", "")
    assert rows["Left out: prompt too long"] == ("2", "")
    assert rows["Left out: their prompt is a training prompt"] == ("", "5")
    assert rows["told elsewhere, asked"] == ("0.15", "")
    assert not any("/" in what or "_" in what for what in rows)


def test_the_cost_of_a_variant_is_reported_with_the_gain_of_an_hour(folder):
    row = row_of(folder, "compute", "dpo")
    assert (float(row["forwards"]), float(row["backwards"]), float(row["peak_megabytes"])) == (2.0, 1.0, 512.0)
    # 8.5 seconds a run on one thread; the reference's win-rate is one half.
    win = float(row_of(folder, "leaderboard", "dpo")["win_rate"])
    assert float(row["gain_per_hour"]) == pytest.approx((win - 0.5) * 3600 / 8.5)
    assert float(row["gain_per_hour_low"]) < float(row["gain_per_hour"]) < float(row["gain_per_hour_high"])


def test_a_count_that_is_the_same_in_every_row_is_stated_once():
    columns = [Column("Prompts", "n", 0), Column("Seeds", "seeds", 0)]
    left, sentence = counted(
        [{"n": 3, "seeds": 1}, {"n": 4, "seeds": 1}], columns, {"n": "test prompts", "seeds": "seeds"}
    )
    assert [column.key for column in left] == ["n"]
    assert sentence == "1 seed. "


def test_a_folder_from_before_these_quantities_has_its_report_without_them(planted):
    findings = read(load(planted))
    with drawing():
        pairs = displacement.section(findings)
    assert [len(table.frame) for table in pairs.tables] == [0, 0]
    assert list(pairs.figures) == ["quadrants"]
    assert [len(table.frame) for table in optimisation.section(findings).tables] == [0, 4]
    assert len(trouble.numerical(findings).frame) == 9


@pytest.fixture(scope="module")
def twins(make):
    """Two pairs to a prompt: the second one's answers moved the other way, so that their mean moved nowhere."""
    made = make(variants=("dpo",), betas=(0.1,), seeds=(0, 1), prompts=200)
    edit(made / "plan.json", lambda plan: plan.update(states_probability=["dpo"]))
    for run in sorted((made / "runs").iterdir()):
        frame, meaning = scores.read(run, "preference")
        second = frame.assign(draw=1, value=lambda rows: -rows["value"] + (rows["metric"] == "accuracy"))
        scores.write(run, "preference", pd.concat([frame, second], ignore_index=True), meaning, {})
    write_report(made)
    return made


def test_a_quadrant_counts_pairs_and_not_the_mean_of_a_prompts_pairs(twins):
    runs = sorted((twins / "runs").iterdir())
    up, down = (np.stack([on_test(frame_of(run, "winrate", "win_rate")) * 0 for run in runs]) for _ in range(2))
    for place, run in enumerate(runs):
        frame, _ = scores.read(run, "preference")
        first = frame[frame["draw"] == 0]
        for target, name in ((up, "chosen_shift"), (down, "rejected_shift")):
            target[place] = on_test(first[first["metric"] == name].set_index("prompt")["value"])
    row = row_of(twins, "displacement", "dpo")
    assert float(row["both down"]) == pytest.approx(
        (((up < 0) & (down < 0)).mean() + ((up > 0) & (down > 0)).mean()) / 2
    )
    assert float(row["both down"]) == pytest.approx(float(row["both up"]))
    assert float(row["chosen_shift"]) == pytest.approx(0, abs=1e-9)
    svg = (twins / "report" / "figures" / "quadrants.svg").read_text()
    assert f">{100 * float(row['both up']):.0f}<" in svg


def test_a_stated_probability_is_that_of_one_pair(twins):
    """The mean margin of the two is zero: read off the mean, every probability would be one half."""
    row = row_of(twins, "calibration", "dpo")
    margins = [
        on_test(frame[(frame["metric"] == "margin") & (frame["draw"] == 0)].set_index("prompt")["value"])
        for frame in (scores.read(run, "preference")[0] for run in sorted((twins / "runs").iterdir()))
    ]
    p = 1 / (1 + np.exp(-0.1 * np.stack(margins)))
    assert float(row["confidence"]) == pytest.approx(np.maximum(p, 1 - p).mean())
    assert float(row["brier"]) == pytest.approx(((1 - p) ** 2).mean())
    assert float(row["accuracy"]) == pytest.approx((p > 0.5).mean())


def test_no_interval_leaves_what_its_number_can_be(make):
    """Two seeds that contradict each other: a t interval of two would reach beyond every bound."""
    made = make(variants=("dpo",), betas=(0.1,), seeds=(0, 1), prompts=64)
    edit(made / "plan.json", lambda plan: plan.update(states_probability=["dpo"]))
    enrich(made / "reference" / "0123456789ab", reference=True)
    for factor, run in zip((1.0, 40.0), sorted((made / "runs").iterdir()), strict=True):
        for evaluator, metric in (("preference", "margin"), ("samples", "length")):
            frame, meaning = scores.read(run, evaluator)
            frame.loc[frame["metric"] == metric, "value"] *= factor
            scores.write(run, evaluator, frame, meaning, {})
        frame, meaning = scores.read(run, "benchmarks")
        frame.loc[frame["group"] == "facts", "value"] = float(factor == 1.0)
        scores.write(run, "benchmarks", frame, meaning, {})
    write_report(made)
    brier, length = row_of(made, "calibration", "dpo"), row_of(made, "lengths", "dpo")
    assert 0 <= float(brier["brier_low"]) < float(brier["brier_high"]) <= 1
    assert float(brier["overconfidence_high"]) <= 1
    assert float(length["chosen_ratio_low"]) == 0
    delta = row_of(made, "benchmarks", "dpo", task="facts")
    assert -1 <= float(delta["delta_low"]) < float(delta["delta_high"]) <= 1


def test_a_flag_says_of_how_many_runs_it_is_true(make):
    made = make(variants=("dpo",), betas=(0.1,), seeds=(0, 1, 2), prompts=64)
    for place, run in enumerate(sorted((made / "runs").iterdir())):
        flags = ["cut"] if place == 0 else []
        edit(run / "run.json", lambda note, flags=flags: note.update(flags=[*flags, "fell"]))
    assert trouble.numerical(read(load(made))).frame["trouble"].tolist() == ["cut (1 of 3 runs); fell"]


def test_a_columns_head_keeps_the_capitals_of_its_metric(folder):
    heads = [column.header for column in trouble.spread(read(load(folder))).columns]
    assert "KL to the reference, nats per sequence" in heads
    assert "Win-rate" in heads


def test_scores_that_are_no_numbers_are_reported_at_the_head(make):
    made = make(variants=("dpo", "ipo"), betas=(0.1,), seeds=(0, 1), prompts=64)
    run = sorted((made / "runs").iterdir())[0]
    frame, meaning = scores.read(run, "kl")
    frame.loc[[3, 5], "value"] = np.inf
    scores.write(run, "kl", frame, meaning, {})
    write_report(made)
    text = (made / "report" / "report.md").read_text()
    assert "Scores that are no finite numbers were left out: KL to the reference (2)." in text


def test_a_tie_in_training_is_half_right_as_on_held_out_pairs(make):
    made = make(variants=("dpo",), betas=(0.1,), seeds=(0,), prompts=64)
    (run,) = (made / "runs").iterdir()
    lines = [{"step": 0, "accuracy": 0.0, "ties": 1.0}, {"step": 1, "accuracy": 0.75, "ties": 0.0}]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load(made).runs[0].log["accuracy"].tolist() == [0.5, 0.75]


def test_answers_drawn_for_the_distance_alone_are_not_set_against_the_judges_reward(make):
    made = make(variants=("dpo",), betas=(0.1,), prompts=64)
    enrich(made / "reference" / "0123456789ab", reference=True)
    for run in sorted((made / "runs").iterdir()):
        enrich(run)
    assert optimisation.own_reward(read(load(made))).frame["correlation"].notna().all()
    edit(made / "experiment.json", lambda record: record.update(evaluation={"temperature": 0.7}))
    table = optimisation.own_reward(read(load(made)))
    assert table.frame["correlation"].isna().all()
    assert "temperature 1" in table.note
