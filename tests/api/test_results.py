"""An experiment folder as pandas frames: every number is one that the folder holds."""

import shutil

import numpy as np
import pandas as pd
import pytest

import dpobench
from dpobench.artifacts import scores as score_files
from tests.report.conftest import World, fabricate


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Two variants at two betas and two seeds; ipo wins 0.2 more often; one run diverged. With its report."""
    from dpobench.report.write import write_report

    world = World(variants=("dpo", "ipo"), betas=(0.1, 0.3), seeds=(0, 1), advantage={"ipo": 0.2}, prompts=128)
    world.diverged = (("dpo", 0.3, 1),)
    folder = fabricate(tmp_path_factory.mktemp("api") / "experiment", world)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def results(experiment):
    return dpobench.load(experiment)


def test_scores_are_the_rows_of_the_files_with_their_run_beside_them(results, experiment):
    scores = results.scores
    assert list(scores) == [
        "run", "variant", "beta", "seed", "condition", "evaluator", "metric", "group", "split", "prompt", "draw", "value",
    ]  # fmt: skip
    run = results.runs.loc[
        lambda table: table["variant"].eq("ipo") & table["seed"].eq(1) & table["beta"].eq(0.3), "run"
    ].item()
    on_disk, _ = score_files.read(experiment / "runs" / run, "winrate")
    rows = scores[scores["run"].eq(run) & scores["evaluator"].eq("winrate")]
    columns = ["prompt", "draw", "group", "metric", "value"]
    pd.testing.assert_frame_equal(rows[columns].reset_index(drop=True), on_disk[columns], check_dtype=False)
    assert rows["variant"].eq("ipo").all()
    assert rows["seed"].eq(1).all()
    assert rows["beta"].eq(0.3).all()
    assert rows["condition"].eq("").all()
    assert set(scores["run"]) == {"reference", *results.runs.loc[results.runs["status"].eq("done"), "run"]}
    assert scores.loc[scores["run"].eq("reference"), "beta"].isna().all()


def test_runs_have_a_row_each_and_a_column_for_every_hyper_parameter(results):
    runs = results.runs
    assert len(runs) == 8
    assert runs.groupby("variant")["seed"].nunique().to_dict() == {"dpo": 2, "ipo": 2}
    assert runs["param_beta"].equals(runs["beta"])
    (broken,) = runs[runs["status"].ne("done")].to_dict("records")
    assert (broken["variant"], broken["beta"], broken["seed"], broken["status"]) == ("dpo", 0.3, 1, "diverged")
    assert "not finite" in broken["reason"]
    assert runs["commit"].eq("abc1234").all()


def test_metrics_say_unit_and_direction(results):
    assert results.metrics.loc["win_rate"].to_dict() == {
        "evaluator": "winrate",
        "unit": "share",
        "better": "higher",
        "role": "headline",
    }


def test_leaderboard_verdict_and_decisions_are_those_of_the_report(results, experiment):
    printed = pd.read_csv(experiment / "report" / "tables" / "leaderboard.csv")
    pd.testing.assert_frame_equal(results.leaderboard, printed)
    assert results.verdict == (experiment / "report" / "verdict.txt").read_text().splitlines()[0]
    (decision,) = results.decisions.to_dict("records")
    row = printed.set_index("variant").loc["ipo"]
    assert (decision["variant"], decision["control"], decision["metric"]) == ("ipo", "dpo", "win_rate")
    assert decision["decision"] == row["verdict"]
    assert decision["difference"] == pytest.approx(row["difference_to_control"], abs=1e-6)
    assert decision["p_adjusted"] == pytest.approx(row["p_adjusted"], abs=1e-6)


def test_a_folder_without_report_says_how_to_write_it(experiment, tmp_path):
    bare = shutil.copytree(experiment, tmp_path / "bare", ignore=shutil.ignore_patterns("report"))
    loaded = dpobench.load(bare)
    assert len(loaded.scores) > 0
    with pytest.raises(dpobench.UserError, match="dpobench report"):
        _ = loaded.leaderboard


def test_a_folder_that_is_no_experiment_is_refused(tmp_path):
    with pytest.raises(dpobench.UserError, match=r"no plan\.json"):
        dpobench.load(tmp_path)


def test_an_experiment_compared_with_itself_differs_by_nothing(experiment):
    table = dpobench.compare(experiment, experiment).set_index("variant")
    assert list(table.index) == ["dpo", "ipo"]
    np.testing.assert_allclose(table["difference"], 0, atol=1e-12)
    assert (table["difference_low"] <= 0).all()
    assert (table["difference_high"] >= 0).all()
    assert table["first"].equals(table["second"].rename("first"))


def test_two_experiments_on_other_inputs_have_no_difference(experiment, tmp_path):
    other = fabricate(tmp_path / "other", World(variants=("dpo", "sft"), betas=(0.1,), seeds=(0, 1), prompts=128))
    (other / "reference" / "0123456789ab").rename(other / "reference" / "ba9876543210")
    plan = other / "plan.json"
    plan.write_text(plan.read_text().replace("0123456789ab", "ba9876543210"))
    table = dpobench.compare(experiment, other).set_index("variant")
    assert table["difference"].isna().all()
    assert table.loc["dpo", ["first", "second"]].notna().all()
    assert pd.isna(table.loc["sft", "first"])
    assert table.loc["sft", "seeds_first"] == 0


def test_a_planted_difference_between_two_experiments_is_seen(experiment, tmp_path):
    world = World(variants=("dpo",), betas=(0.1,), seeds=(2, 3, 4, 5), advantage={"dpo": 0.2}, prompts=128)
    better = fabricate(tmp_path / "better", world)
    row = dpobench.compare(experiment, better).set_index("variant").loc["dpo"]
    assert row["difference"] == pytest.approx(row["second"] - row["first"], abs=1e-9)
    assert row["difference_low"] < 0.2 < row["difference_high"]
    assert row["p"] < 0.05


def test_a_run_that_is_trained_but_not_fully_scored_has_no_scores(experiment, tmp_path):
    copied = shutil.copytree(experiment, tmp_path / "copied")
    run = dpobench.load(copied).runs.query("status == 'done'")["run"].iloc[0]
    (copied / "runs" / run / "DONE").unlink()
    results = dpobench.load(copied)
    assert results.runs.set_index("run").loc[run, "status"] == "missing"
    assert run not in set(results.scores["run"])


def test_win_rates_by_different_judges_have_no_difference(experiment, tmp_path):
    other = shutil.copytree(experiment, tmp_path / "other")
    for file in other.rglob("scores/winrate.json"):
        file.write_text(file.read_text().replace('"needs": {}', '"needs": {"judge": "another"}'))
    assert "another" in next(other.rglob("scores/winrate.json")).read_text()
    table = dpobench.compare(experiment, other)
    assert table["difference"].isna().all()
    assert table["second"].notna().all()
