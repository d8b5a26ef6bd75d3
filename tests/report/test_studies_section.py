"""The section of the studies, and the place of a baseline in the report."""

import csv
import shutil

import numpy as np
import pandas as pd
import pytest

from dpobench.analysis.findings import read
from dpobench.analysis.results import load
from dpobench.artifacts import scores
from dpobench.artifacts.files import read_json, write_json
from dpobench.artifacts.records import Condition
from dpobench.data.prompts import split_of
from dpobench.report.sections.studies import KINDS, section
from dpobench.report.write import write_report

TWO = {"variants": ("dpo", "ipo"), "betas": (0.1, 0.3), "seeds": (0, 1), "prompts": 256}


def with_condition(folder, other, condition):
    """Put the runs of another made-up experiment beside those of this one, as what a study made of them."""
    plan, studied = read_json(folder / "plan.json"), read_json(other / "plan.json")
    for entry in studied["runs"]:
        changed = entry | {"id": f"{entry['id']}-changed", "condition": condition}
        place = folder / "runs" / changed["id"]
        shutil.copytree(other / "runs" / entry["id"], place)
        write_json(place / "run.json", read_json(place / "run.json") | changed | {"pairs": 100})
        plan["runs"].append(changed)
    conditions = [*plan.get("conditions", ()), {"condition": condition, "reference": plan["reference"]}]
    write_json(folder / "plan.json", plan | {"conditions": conditions})
    return folder


def with_baseline(folder, name):
    write_json(folder / "plan.json", read_json(folder / "plan.json") | {"baselines": [name]})
    return folder


@pytest.fixture
def noisy(make):
    """The second variant loses 0.3 of its win-rate where three labels in ten are flipped, the control nothing."""
    return with_condition(make(**TWO), make(**TWO, advantage={"ipo": -0.3}), {"label_noise": 0.3})


def study_of(folder):
    """The only section there is, and its rows by variant and value."""
    f = read(load(folder))
    (shown,) = (shown for name in KINDS if (shown := section(f, name)) is not None)
    return shown, {(row["variant"], row["value"]): row for row in shown.tables[0].frame.to_dict("records")}


def wins(folder, run):
    frame, _ = scores.read(folder / "runs" / run, "winrate")
    frame = frame[(frame["metric"] == "win_rate") & frame["prompt"].map(lambda p: split_of(p) == "test")]
    return frame.set_index("prompt")["value"]


def test_a_report_without_studies_has_no_section(make):
    f = read(load(make(**TWO)))
    assert [section(f, name) for name in KINDS] == [None] * 4


def test_the_loss_of_one_variant_is_detected_and_nothing_is_claimed_of_the_other(noisy):
    shown, row = study_of(noisy)
    assert set(row) == {("dpo", 0.0), ("dpo", 0.3), ("ipo", 0.0), ("ipo", 0.3)}
    assert row["ipo", 0.3]["change_low"] < -0.3 < row["ipo", 0.3]["change_high"] < 0
    assert row["ipo", 0.3]["p_change"] < 0.05
    assert row["dpo", 0.3]["change"] == 0
    assert row["ipo", 0.3]["p_to_control"] < 0.05
    assert "ipo at 0.3 −0." in " ".join(shown.sentences)
    assert "for the other 1 no difference is shown" in " ".join(shown.sentences)
    assert set(shown.figures) == {"study_label_noise"}


def test_a_difference_is_the_mean_over_the_test_prompts_and_seeds_of_selected_strengths(noisy):
    _, row = study_of(noisy)
    changed, proper = (
        pd.concat([wins(noisy, run) for run in row["ipo", value]["run_ids"].split()], axis=1).mean(axis=1)
        for value in (0.3, 0.0)
    )
    assert row["ipo", 0.3]["n_prompts"] == len(changed)
    assert row["ipo", 0.3]["change"] == pytest.approx(np.mean(changed - proper), abs=1e-12)


def test_the_beta_of_the_main_experiment_is_shown_with_the_one_selected(make):
    # Where the noise is, the variant does well at the other strength only.
    folder, other = (make(**(TWO | {"betas": betas})) for betas in ((0.03, 0.3), (0.3, 0.03)))
    _, row = study_of(with_condition(folder, other, {"label_noise": 0.3}))
    fixed = [run for run in read(load(folder, Condition(label_noise=0.3))).configurations if run.variant == "ipo"]
    at = next(c for c in fixed if c.beta == row["ipo", 0.0]["beta"])
    value = np.mean([wins(folder, run).mean() for run in at.ids])
    assert row["ipo", 0.3]["fixed"] == pytest.approx(value, abs=1e-12)
    assert row["ipo", 0.3]["beta"] != row["ipo", 0.0]["beta"]
    assert row["ipo", 0.3]["own"] != row["ipo", 0.3]["fixed"]


def test_another_reference_is_compared_by_what_does_not_depend_on_it(make):
    folder = with_condition(make(**TWO), make(**TWO), {"reference_quality": 0.1})
    shown, row = study_of(folder)
    assert next(c.header for c in shown.tables[0].columns if c.key == "own") == "Reward"
    assert set(row) == {("dpo", 0.1), ("dpo", 1.0), ("ipo", 0.1), ("ipo", 1.0)}


def test_rounds_are_a_path_and_a_seed_alone_claims_nothing(make):
    one = TWO | {"seeds": (0,)}
    folder = with_condition(make(**one), make(**one, advantage={"ipo": -0.4}), {"round": 2})
    shown, row = study_of(folder)
    assert [value for variant, value in row if variant == "dpo"] == [1, 2]
    assert "nothing is claimed of the methods" in " ".join(shown.sentences)
    # What the table shows is said, and of what: a seed alone is these checkpoints.
    assert "difference of these checkpoints to the main experiment (1): ipo at 2 −0." in " ".join(shown.sentences)


def test_with_one_seed_the_sentence_says_what_the_table_does_and_of_what(make):
    plain = {"betas": (0.1,), "seeds": (0,)}
    folder = with_condition(make(**plain), make(**plain, advantage={"cdpo": -0.2}), {"label_noise": 0.3})
    text = " ".join(study_of(folder)[0].sentences)
    assert "cdpo at 0.3 −0." in text
    assert "1 seed, " in text
    assert "differences of checkpoints, and nothing is claimed of the methods" in text


def test_the_section_stands_in_the_report_and_its_table_in_a_file(noisy):
    write_report(noisy)
    text = (noisy / "report" / "report.md").read_text()
    assert "## Label noise" in text
    assert "## Rounds" not in text
    with (noisy / "report" / "tables" / "study_label_noise.csv").open(newline="") as stream:
        assert [row["value"] for row in csv.DictReader(stream)] == ["0", "0.3", "0", "0.3"]


def test_a_baseline_is_no_candidate(make):
    fields = TWO | {"variants": ("dpo", "ipo", "cdpo"), "seeds": (0, 1, 2)}
    folder = make(**fields, advantage={"cdpo": 0.2})
    candidate, baseline = read(load(folder)), read(load(with_baseline(folder, "cdpo")))
    # Holm over one difference less: the raw p is the adjusted one.
    assert set(candidate.comparisons) == {"ipo", "cdpo"}
    assert set(baseline.comparisons) == {"ipo"}
    assert baseline.comparisons["ipo"].p_adjusted == candidate.comparisons["ipo"].p
    write_report(folder)
    with (folder / "report" / "tables" / "leaderboard.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["variant"] for row in rows][2:] == ["cdpo", "reference"]
    last = rows[2]
    assert last["verdict"] == "baseline"
    assert (last["p"], last["p_adjusted"]) == ("", "")
    assert float(last["difference_to_control_low"]) < 0.2 < float(last["difference_to_control_high"])
    assert "cdpo" not in (folder / "report" / "verdict.txt").read_text().splitlines()[0]
    figure = (folder / "report" / "figures" / "frontier.svg").read_text()
    assert ">cdpo<" in figure


def test_a_baseline_of_one_configuration_makes_no_unequal_trials(make):
    folder = make(variants=("dpo", "ipo", "cdpo"), seeds=(0,), betas=(0.1, 0.3), prompts=128)
    plan = read_json(folder / "plan.json")
    runs = [run for run in plan["runs"] if run["variant"] != "cdpo" or run["beta"] == 0.1]
    write_json(folder / "plan.json", plan | {"runs": runs})
    assert read(load(folder)).unequal_trials
    assert not read(load(with_baseline(folder, "cdpo"))).unequal_trials


def test_a_baseline_is_not_tested_in_a_study_either(noisy):
    shown, _ = study_of(with_baseline(noisy, "ipo"))
    frame = shown.tables[0].frame
    assert frame[frame["variant"] == "ipo"][["p_change", "p_to_control"]].isna().all().all()
    assert frame[frame["variant"] == "ipo"]["change"].notna().any()


def test_no_interval_of_a_difference_of_shares_leaves_what_is_possible(make):
    # Two seeds that differ much: Student's interval would be wider than any two shares can be apart.
    wild = TWO | {"seed_sd": 0.5}
    folder = with_condition(make(**wild), make(**wild, advantage={"ipo": -0.4}), {"label_noise": 0.3})
    shown, _ = study_of(folder)
    frame = shown.tables[0].frame
    for name in ("change", "to_control"):
        assert frame[f"{name}_low"].dropna().min() >= -1
        assert frame[f"{name}_high"].dropna().max() <= 1
        assert (frame[f"{name}_high"].dropna() == 1).any() or (frame[f"{name}_low"].dropna() == -1).any()


def test_the_measured_loss_of_weaker_references_is_reported_worst_first(make):
    folder = with_condition(make(**TWO), make(**TWO), {"reference_quality": 0.1})
    plan = read_json(folder / "plan.json")
    plan["conditions"][0]["measured"] = {"steps": 12, "held_out_loss": 24.318, "floor": 17.04}
    write_json(folder / "plan.json", plan | {"measured": {"steps": 120, "held_out_loss": 19.77, "floor": 17.04}})
    shown, _ = study_of(folder)
    assert "24.32 nats after 12 steps (0.1); 19.77 nats after 120 steps (1)" in shown.sentences[1]
    assert "no model can have less than 17.04" in shown.sentences[1]
