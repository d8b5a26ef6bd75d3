"""What only a CUDA device can show: the same job there, in float32 and in bf16, with rows packed as on a CPU."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

from dpobench.models.logprobs import completion_logps, pair_batch
from dpobench.models.packing import NAME, adopt, packed_pairs
from tests.training import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # Compilers of kernels warn of what they could do better on the device at hand.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_main_job_runs_on_a_gpu(precision, tmp_path):
    command = [
        sys.executable,
        "-m",
        "dpobench",
        "run",
        "--preset",
        "tiny",
        "--variants",
        "dpo,ipo",
        "--device",
        "cuda",
        "--no-baselines",
    ]
    options = ["--set", f"recipe.precision={precision}", "--out", str(tmp_path / "out")]
    environment = os.environ | {"DPOBENCH_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command + options, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "out" / "report" / "tables" / "leaderboard.csv").open() as stream:
        rows = {row["variant"]: row for row in csv.DictReader(stream)}
    assert float(rows["dpo"]["kl"]) > 0
    notes = [json.loads(path.read_text()) for path in (tmp_path / "out" / "runs").glob("*/run.json")]
    assert {note["variant"]: note["layout"] for note in notes} == {"dpo": "packed", "ipo": "packed"}


def policy(**shape):
    """Its attention is CUDA's own until it adopts packed rows."""
    return tiny.llama(num_key_value_heads=2, initializer_range=0.1, **shape).cuda().eval()


def taken(model, lay, rows, low=False):
    """Log-probabilities of all completion tokens, and the gradient of a weighted sum of them."""
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=low):
        logps = completion_logps(model, lay(rows, model.device))
    (logps * torch.linspace(-1, 1, logps.numel(), device=model.device).view_as(logps)).sum().backward()
    return logps.detach(), tiny.gradients(model)


# Heads of 16 and of 8: the kernel takes none narrower than 16.
@pytest.mark.parametrize("width", [64, 32])
def test_packed_rows_have_the_same_log_probabilities_and_gradient_as_padded_ones(width):
    model, rows = policy(hidden_size=width), tiny.rows(16, seed=3)
    logps, gradient = taken(model, pair_batch, rows)
    assert adopt(model, rows) is None
    found = taken(model, packed_pairs, rows)
    assert tiny.apart(found[0], logps) <= 5e-6
    assert tiny.apart(found[1], gradient) <= 5e-6


def test_in_bf16_packed_rows_are_as_near_to_padded_ones_as_its_rounding_allows():
    model, rows = policy(hidden_size=64), tiny.rows(16, seed=3)
    logps, gradient = taken(model, pair_batch, rows, low=True)
    assert logps.dtype == torch.float32
    assert adopt(model, rows) is None
    assert model.config._attn_implementation == NAME
    found = taken(model, packed_pairs, rows, low=True)
    # On a CPU the layouts are 0.0023 and 0.0093 apart, and each as far from float32: three times that.
    assert tiny.apart(found[0], logps) <= 0.01
    assert tiny.apart(found[1], gradient) <= 0.03


def test_rows_of_changing_lengths_are_each_read_right():
    model, rows = policy(hidden_size=64), tiny.rows(64, seed=3)
    wanted = [taken(model, pair_batch, rows[:count])[1] for count in (2, 11, 40, 64, 5)]
    assert adopt(model, rows) is None
    for count, gradient in zip((2, 11, 40, 64, 5), wanted, strict=True):
        assert tiny.apart(taken(model, packed_pairs, rows[:count])[1], gradient) <= 5e-6
