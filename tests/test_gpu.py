"""What only a CUDA device can show: the same job there, in float32 and in bf16."""

import csv
import os
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_main_job_runs_on_a_gpu(precision, tmp_path):
    command = [sys.executable, "-m", "dpobench", "run", "--preset", "tiny", "--variants", "dpo,ipo", "--device", "cuda"]
    options = ["--set", f"recipe.precision={precision}", "--out", str(tmp_path / "out")]
    environment = os.environ | {"DPOBENCH_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command + options, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "out" / "report" / "tables" / "leaderboard.csv").open() as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream)}
    assert float(rows["dpo"]["kl"]) > 0
