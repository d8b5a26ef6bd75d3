"""Two processes on one batch give what one process gives: in the gradient, in the log and in the final weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpobench.data.tokens import write_pairs
from dpobench.training.accelerate import accelerator_for
from dpobench.training.gradient import gradient
from dpobench.training.train import train
from tests.training import tiny

LOSSES = tiny.losses()
ROOT = Path(__file__).parents[2]


def by_two(start, pairs, drifted, out):
    """What two processes make of these pairs: all gradients; their run is left in `out`."""
    files = out / "pairs.parquet", out / "drifted.parquet"
    for file, given in zip(files, (pairs, drifted), strict=True):
        write_pairs(file, given)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(Path(__file__).with_name("two_processes.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    command += [script, str(start), *map(str, files), str(out)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        # Asked to end, the launcher ends its workers, too.
        process.terminate()
        process.wait()
    assert process.returncode == 0, output[-3000:]
    return load_file(out / "gradients.safetensors")


@pytest.fixture(scope="module")
def together(start, pairs, drifted, tmp_path_factory):
    """What two processes found, and the folder of their run."""
    out = tmp_path_factory.mktemp("two")
    return by_two(start, pairs, drifted, out), out / "run"


def test_there_were_two(together):
    assert together[0]["processes"] == 2


@pytest.mark.parametrize("name", LOSSES.names())
def test_two_processes_give_the_gradient_of_one(name, together, drifted, accelerator):
    model, bound = tiny.llama(dtype=torch.float64), LOSSES.get(name).bind()
    reference = tiny.llama(seed=5, dtype=torch.float64)
    measured = gradient(model, bound, drifted, accelerator, 120, tiny.auxiliary(bound, reference))
    by_two_processes = together[0]
    assert tiny.apart(by_two_processes[f"{name}.gradient"], tiny.gradients(model)) <= 1e-6
    for key, value in measured.per_pair.items():
        torch.testing.assert_close(by_two_processes[f"{name}.{key}"], value, rtol=2e-5, atol=2e-5, msg=key)


def test_two_processes_train_to_the_weights_and_the_log_of_one(together, start, pairs, tmp_path):
    bound = LOSSES.get("dpo").bind(beta=0.2)
    train(tiny.run_of(bound), bound, pairs, start, tmp_path, accelerator=accelerator_for("cpu", "float32"))
    before, one, two = (
        load_file(folder / "model.safetensors")
        for folder in (start, tmp_path / "checkpoint", together[1] / "checkpoint")
    )
    moved = tiny.flat(one[name] - before[name] for name in one)
    assert float(tiny.flat(two[name] - one[name] for name in one).norm() / moved.norm()) <= 1e-5
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (tmp_path, together[1])
    ]
    for alone, shared in zip(*logs, strict=True):
        for name in set(alone) - {"seconds", "tokens_per_s"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), name
