"""The main job end to end on the smallest embedded default: run, run again, kill and run, break one run, read the report."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
COMMAND = ("run", "--preset", "tiny", "--variants", "dpo,ipo", "--beta-grid", "0.1,0.5", "--seeds", "0,1")
# For tests of something else than benchmarks, baselines and controls.
SHORT = ("--no-baselines", "--set", "evaluation.tasks=[]", "--set", "evaluation.pool=0")
COLUMNS = {
    "variant",
    "beta",
    "seeds",
    "win_rate",
    "win_rate_low",
    "win_rate_high",
    "kl",
    "kl_low",
    "kl_high",
    "benchmark_delta",
    "p_adjusted",
    "level",
}


@pytest.fixture(scope="module")
def finished(dpobench, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "tiny"
    done = dpobench(*COMMAND, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def leaderboard(out):
    with (out / "report" / "tables" / "leaderboard.csv").open() as stream:
        return {row["variant"]: row for row in csv.DictReader(stream)}


def hashes(folder, pattern="*"):
    return {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob(pattern))
        if f.is_file()
    }


def test_leaderboard_has_its_columns_and_every_variant_beside_the_reference(finished):
    rows = leaderboard(finished)
    assert set(rows["dpo"]) >= COLUMNS
    assert set(rows) == {"dpo", "ipo", "sft", "reference", "best of 4 of the reference"}
    for name in ("dpo", "ipo"):
        row = rows[name]
        assert row["seeds"] == "2"
        assert row["level"] == "method"
        assert float(row["win_rate_low"]) <= float(row["win_rate"]) <= float(row["win_rate_high"])
        assert 0 <= float(row["kl_low"]) <= float(row["kl"])
        assert float(row["kl"]) > 0
    assert float(rows["reference"]["win_rate"]) == 0.5
    assert float(rows["reference"]["kl"]) == 0.0


def test_every_number_leads_to_a_run_a_commit_a_data_hash_and_a_seed(finished):
    plan = json.loads((finished / "plan.json").read_text())
    # Two variants at two betas, and the baseline at its default; two seeds.
    assert len(plan["runs"]) == (2 * 2 + 1) * 2
    for entry in plan["runs"]:
        note = json.loads((finished / "runs" / entry["id"] / "run.json").read_text())
        assert note["status"] == "done"
        assert note["seed"] in (0, 1)
        assert {"commit", "versions", "data_hash", "model_hash", "threads", "device"} <= set(note["provenance"])
        assert note["checks"]["start_margin"] < 2e-5
        # The baseline's likelihood has no value that is known beforehand.
        assert (note["checks"]["start_declared"] is None) == (note["variant"] == "sft")
        if note["variant"] != "sft":
            assert note["checks"]["start_loss"] == pytest.approx(note["checks"]["start_declared"], rel=1e-4)
        assert note["checks"]["reload_max_difference"] <= 1e-5
    listed = leaderboard(finished)["dpo"]["run_ids"]
    assert any(entry["id"] in listed for entry in plan["runs"])


def test_the_same_run_again_does_nothing_and_writes_the_same_report(dpobench, finished):
    before = hashes(finished / "report")
    times = {f: f.stat().st_mtime_ns for f in (finished / "runs").rglob("*") if f.is_file()}
    done = dpobench(*COMMAND, "--out", finished)
    assert "10 runs planned, 10 done already" in done.stdout
    assert hashes(finished / "report") == before
    assert {f: f.stat().st_mtime_ns for f in (finished / "runs").rglob("*") if f.is_file()} == times


def test_a_further_grid_point_trains_that_point_alone(dpobench, finished, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(finished, out)
    done = dpobench(*COMMAND, "--beta-grid", "dpo=0.1,0.3,0.5", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 runs planned, 10 done already" in done.stdout


def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_numbers(dpobench, finished, tmp_path):
    out = tmp_path / "tiny"
    draw = random.Random(3)
    for _ in range(3):
        call = dpobench.start(*COMMAND, "--out", out)
        time.sleep(draw.uniform(1, 9))
        call.kill()
        assert call.wait().returncode == -signal.SIGKILL
    done = dpobench(*COMMAND, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert hashes(out / "runs", "*.safetensors") == {
        k: v for k, v in hashes(finished / "runs", "*.safetensors").items() if (out / "runs" / k).exists()
    }
    assert hashes(out / "runs", "*.parquet").items() <= hashes(finished / "runs", "*.parquet").items()
    assert leaderboard(out) == leaderboard(finished)
    assert not list(out.rglob("*.part"))


ROUNDS = (
    "run", "--preset", "tiny", "--variants", "dpo", "--rounds", "2", "--no-baselines", "--label-noise", "0.3", "--workers", "1",
    "--checkpoints", "1", "--threads", "1",
    "--set", "evaluation.evaluators=['winrate','kl']", "--set", "evaluation.tasks=[]", "--set", "evaluation.pool=0",
)  # fmt: skip


def test_killed_in_the_second_round_it_ends_with_the_same_numbers(dpobench, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    done = dpobench(*ROUNDS, "--out", whole)
    assert done.returncode == 0, done.stdout + done.stderr
    planned = json.loads((whole / "plan.json").read_text())["runs"]
    assert [run["condition"] for run in planned] == [{}, {"label_noise": 0.3}, {"round": 2}]
    pairs = whole / "reference" / planned[2]["reference"]
    call = dpobench.start(*ROUNDS, "--out", out)
    # As soon as the run of the second round is being given its pairs, or has them.
    while call.is_running and not list((out / "reference").glob(f"*{pairs.name}*")):
        time.sleep(0.02)
    call.kill()
    assert call.wait().returncode == -signal.SIGKILL
    assert "2 of 3 runs done" in dpobench("status", out).stdout
    done = dpobench(*ROUNDS, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("*.safetensors", "*.parquet"):
        assert hashes(out / "runs", name) == hashes(whole / "runs", name)
    assert leaderboard(out) == leaderboard(whole)
    first, noisy, second = (json.loads((whole / "runs" / run["id"] / "run.json").read_text()) for run in planned)
    assert second["answered"] == json.loads((pairs / "counts.json").read_text())["counts"]
    assert second["predecessor"] == first["id"]
    assert second["checks"]["start_margin"] < 2e-5
    assert (noisy["pairs"], noisy["flipped"]) == (256, 77)
    # Looked at on their way are the runs of the main experiment alone.
    assert [place.parent.name for place in out.glob("runs/*/within")] == [first["id"]]


def test_a_round_whose_predecessor_diverged_says_so_and_costs_nothing_else(dpobench, tmp_path):
    out = tmp_path / "out"
    done = dpobench(*ROUNDS, "--lr-grid", "5e-4,1.0", "--set", "recipe.weight_decay=1e3", "--out", out)
    assert done.returncode == 2, done.stdout + done.stderr
    states = [line.split("  ") for line in dpobench("status", out).stdout.splitlines()[:-1]]
    assert [state[1] for state in states] == ["done", "diverged", "done", "diverged", "done", "failed"]
    assert "is diverged: there is no policy to go on from" in states[-1][2]


def test_checkpoints_that_nothing_scores_are_refused(dpobench, tmp_path):
    arguments = ("run", "--preset", "tiny", "--variants", "dpo", "--checkpoints", "3", "--out", tmp_path / "out")
    done = dpobench(*arguments, "--set", "evaluation.evaluators=['benchmarks']", "--dry-run")
    assert done.returncode == 2
    assert "evaluation.checkpoints = 3 has no effect" in done.stderr


def test_checkpoints_within_a_training_may_be_added_later_and_move_no_number(dpobench, tmp_path):
    out = tmp_path / "out"
    command = ("run", "--preset", "tiny", "--variants", "dpo", *SHORT, "--threads", "1", "--out", out)
    assert dpobench(*command).returncode == 0
    (run,) = (out / "runs").iterdir()
    before, board = hashes(run / "checkpoint"), leaderboard(out)
    done = dpobench(*command, "--checkpoints", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 runs planned, 0 done already" in done.stdout
    assert hashes(run / "checkpoint") == before
    assert leaderboard(out) == board
    # Eight steps, cut into four equal parts.
    assert sorted(place.name for place in (run / "within").iterdir()) == ["2", "4", "6"]
    weights = {step: hashes(run / "within" / step / "checkpoint", "*.safetensors") for step in ("2", "4", "6")}
    assert len({str(hashes_of_files) for hashes_of_files in weights.values()}) == 3
    for step in weights:
        evaluators = {file.stem for file in (run / "within" / step / "scores").glob("*.parquet")}
        assert evaluators == {"kl", "preference", "samples", "winrate"}
    assert "### Along the training" in (out / "report" / "report.md").read_text()
    assert not (out / "states").exists() or not list((out / "states").iterdir())
    times = {f: f.stat().st_mtime_ns for f in (out / "runs").rglob("*") if f.is_file()}
    assert "1 runs planned, 1 done already" in dpobench(*command, "--checkpoints", "3").stdout
    assert {f: f.stat().st_mtime_ns for f in (out / "runs").rglob("*") if f.is_file()} == times


def test_a_run_that_fails_costs_itself_alone(dpobench, finished, tmp_path):
    plugin = tmp_path / "faulty.py"
    plugin.write_text(
        '''"""Losses that pass the laws and fail in training."""
import math
import os
import signal

import torch.nn.functional as F

from dpobench import Pairs, PerPair, loss


@loss(source="a test", beta_grid=(0.1,), start=math.log(2))
def raises(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Raises on real data, away from the start."""
    if "score_chosen" in pairs.columns and float(pairs.margin.detach().abs().max()) > 1e-3:
        raise RuntimeError("a fault in step two")
    return -F.logsigmoid(beta * pairs.margin)


@loss(source="a test", beta_grid=(0.1,), start=math.log(2))
def dies(pairs: Pairs, *, beta: float = 0.1) -> PerPair:
    """Kills its process likewise."""
    if "score_chosen" in pairs.columns and float(pairs.margin.detach().abs().max()) > 1e-3:
        os.kill(os.getpid(), signal.SIGKILL)
    return -F.logsigmoid(beta * pairs.margin)
'''
    )
    out = tmp_path / "faulty"
    done = dpobench(
        "run", "--preset", "tiny", "--variants", "dpo,raises,dies", "--plugin", plugin, *SHORT, "--out", out
    )
    assert done.returncode == 2, done.stdout + done.stderr
    states = {row.split("  ")[0].split("-")[0]: row for row in dpobench("status", out).stdout.splitlines()}
    assert "done" in states["dpo"]
    assert "RuntimeError: a fault in step two" in states["raises"]
    assert "killed by signal 9" in states["dies"]
    grid = (out / "report" / "tables" / "grid.csv").read_text()
    assert "a fault in step two" in grid
    assert "killed by signal 9" in grid


def test_divergence_is_named_with_its_step_and_stands_in_the_report(dpobench, tmp_path):
    out = tmp_path / "diverging"
    command = ("run", "--preset", "tiny", "--variants", "dpo", "--lr-grid", "5e-4,1.0", *SHORT, "--out", out)
    done = dpobench(*command, "--set", "recipe.weight_decay=1e3")
    assert done.returncode == 0, done.stdout + done.stderr
    states = [json.loads(f.read_text()) for f in sorted((out / "runs").glob("*/run.json"))]
    bad = [state for state in states if state["status"] == "diverged"]
    assert [state["learning_rate"] for state in bad] == [1.0]
    assert all("is not finite at step" in state["reason"] for state in bad)
    assert "not finite at step" in (out / "report" / "tables" / "grid.csv").read_text()


def test_a_second_process_on_the_folder_is_refused_with_the_number_of_the_first(dpobench, tmp_path):
    from dpobench.artifacts.files import locked

    with locked(tmp_path / "busy"):
        done = dpobench("run", "--preset", "tiny", "--variants", "dpo", "--out", tmp_path / "busy")
    assert done.returncode == 3
    assert f"process {os.getpid()}" in done.stderr


def test_a_damaged_file_is_named(dpobench, finished, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(finished, out)
    planned = json.loads((out / "plan.json").read_text())["runs"]
    first = next(run["id"] for run in planned if run["variant"] == "dpo")
    weights = out / "runs" / first / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    done = dpobench(*COMMAND, "--out", out)
    assert done.returncode == 2
    assert "model.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_checkpoints_trained_elsewhere_enter_the_same_report(dpobench, finished, tmp_path):
    checkpoint = next((finished / "runs").glob("ipo-*/checkpoint"))
    elsewhere = tmp_path / "my-model"
    elsewhere.symlink_to(checkpoint)
    out = tmp_path / "scored"
    world = finished / "world"
    done = dpobench(
        "evaluate", elsewhere, "--reference", world / "model", "--data", world / "heldout.jsonl", "--out", out, "--judge", "gold",
        "--set", "evaluation.judge_settings.function='dpobench.synthetic.gold:score'", "--set", "evaluation.max_new_tokens=48",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = leaderboard(out)
    (name,) = set(rows) - {"reference", "best of 4 of the reference"}
    assert float(rows[name]["kl"]) > 0
    assert rows[name]["win_rate"]


def test_report_command_needs_the_files_alone(finished):
    """A process of its own, with another seed of hashes than that which wrote the report before."""
    before = hashes(finished / "report")
    done = subprocess.run([sys.executable, "-m", "dpobench", "report", str(finished)], check=False)
    assert done.returncode == 0
    assert hashes(finished / "report") == before


def test_under_torchrun_two_processes_train_the_same_policy(finished, tmp_path):
    out = tmp_path / "tiny"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29533")
    arguments = (
        "-m",
        "dpobench",
        "run",
        "--preset",
        "tiny",
        "--variants",
        "dpo",
        "--beta-grid",
        "0.1",
        "--device",
        "cpu",
    )
    arguments += ("--threads", "1", *SHORT, "--out", str(out))
    done = subprocess.run(launcher + arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (alone,) = (
        json.loads(f.read_text())
        for f in (finished / "runs").glob("dpo-*/run.json")
        if json.loads(f.read_text())["params"]["beta"] == 0.1 and json.loads(f.read_text())["seed"] == 0
    )
    logs = [
        [json.loads(line) for line in (folder / alone["id"] / "log.jsonl").read_text().splitlines()]
        for folder in (finished / "runs", out / "runs")
    ]
    for one, two in zip(*logs, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=5e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=2e-3)
    note = json.loads((Path(out) / "runs" / alone["id"] / "run.json").read_text())
    assert note["provenance"]["world_size"] == 2
