"""The report says where a comparison was not even: other numbers of tries, other information."""

import csv
import shutil

import pytest

from dpobench.artifacts.files import read_json, write_json
from dpobench.artifacts.records import RunRecord
from dpobench.report.write import write_report


def report_of(folder):
    write_report(folder)
    with (folder / "report" / "tables" / "trials.csv").open(newline="") as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream)}
    return (folder / "report" / "report.md").read_text(), rows


@pytest.fixture
def uneven(make):
    folder = make(variants=("dpo", "ipo"), seeds=(0,), betas=(0.1, 0.3), prompts=128)
    plan = read_json(folder / "plan.json")
    gone = next(run for run in plan["runs"] if run["variant"] == "ipo" and run["beta"] == 0.3)
    write_json(folder / "plan.json", plan | {"runs": [run for run in plan["runs"] if run is not gone]})
    shutil.rmtree(folder / "runs" / gone["id"])
    return folder


def test_unequal_trials_are_a_sentence_and_a_column(uneven):
    text, rows = report_of(uneven)
    assert "unequal numbers of trials" in text
    assert "| Trials |" in next(line for line in text.splitlines() if line.startswith("| Variant"))
    assert {name: row["trials"] for name, row in rows.items()} == {"dpo": "2", "ipo": "1"}


def test_equal_trials_take_no_column(make):
    text, _ = report_of(make(variants=("dpo", "ipo"), seeds=(0,), betas=(0.1, 0.3), prompts=128))
    assert "Every variant had the same number of trials." in text
    assert "| Trials |" not in text


def test_a_loss_that_read_more_of_the_data_is_named(make):
    folder = make(variants=("dpo", "ipo"), seeds=(0,), betas=(0.1,), prompts=128)
    given = {"dpo": [], "ipo": ["gold"]}
    write_json(folder / "plan.json", read_json(folder / "plan.json") | {"given": given})
    text, rows = report_of(folder)
    assert "Given more of the data than the others: ipo (gold)." in text
    assert [rows[name]["given"] for name in ("dpo", "ipo")] == ["", "gold"]


def test_of_many_variants_the_control_and_the_best_stand_out_and_the_others_are_counted(make):
    names = ("dpo", *(f"v{number:02d}" for number in range(13)))
    folder = make(variants=names, seeds=(0,), betas=(0.1,), prompts=128, advantage={"v07": 0.3})
    write_report(folder)
    figure = (folder / "report" / "figures" / "frontier.svg").read_text()
    assert "8 others" in figure
    assert ">v07<" in figure
    assert ">dpo<" in figure


def test_variants_worse_than_what_they_started_from_are_named(make):
    folder = make(variants=("dpo", "ipo"), seeds=(0,), betas=(0.1,), prompts=256, advantage={"ipo": -0.6})
    text, _ = report_of(folder)
    assert "Worse than the reference they started from, on these prompts: ipo." in text


def test_a_difference_that_cannot_be_is_not_called_detectable(make):
    folder = make(variants=("dpo", "ipo"), seeds=(0, 1), betas=(0.1,), prompts=64, seed_sd=0.6)
    text, _ = report_of(folder)
    assert "Any difference in win-rate at all could have been missed" in text
    assert "below about 1" not in text


def test_runs_of_several_versions_of_the_harness_are_an_alarm_at_the_head(make):
    folder = make(variants=("dpo", "ipo"), seeds=(0,), betas=(0.1,), prompts=128)
    write_report(folder)
    sentence = "The runs were trained by 2 versions of the harness"
    assert sentence not in (folder / "report" / "report.md").read_text()
    run = next((folder / "runs").glob("ipo-*"))
    record = RunRecord.read(run)
    record.updated(harness=record.harness + 1).write(run)
    write_report(folder)
    text = (folder / "report" / "report.md").read_text()
    assert f"version {record.harness + 1}: {run.name})" in text
    assert text.index(sentence) < text.index("## ")
    assert sentence in (folder / "report" / "verdict.txt").read_text()
