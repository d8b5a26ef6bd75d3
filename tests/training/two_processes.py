"""Started by torchrun: the gradient of every loss and a whole training, written by the first process.

As a script: `python -m torch.distributed.run --nproc-per-node 2 two_processes.py START PAIRS DRIFTED OUT`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from dpobench.data.tokens import read_pairs
from dpobench.training.accelerate import accelerator_for
from dpobench.training.gradient import gradient
from dpobench.training.train import train
from tests.training import tiny


def gradients(drifted, accelerator, losses):
    tensors = {"processes": torch.tensor(accelerator.num_processes)}
    # In float64 what is left is the arithmetic's own rounding of the exchange, not of two orders of summation.
    model = accelerator.prepare(tiny.llama(dtype=torch.float64))
    reference = tiny.llama(seed=5, dtype=torch.float64)
    rows = tiny.scored(read_pairs(drifted), tiny.llama(seed=5))
    for name in losses.names():
        model.zero_grad()
        bound = losses.get(name).bind()
        measured = gradient(model, bound, rows, accelerator, 120, tiny.auxiliary(bound, reference))
        tensors[f"{name}.gradient"] = tiny.gradients(accelerator.unwrap_model(model))
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in measured.per_pair.items()}
    return tensors


def main(start, pairs, drifted, out):
    torch.set_num_threads(1)
    accelerator, losses = accelerator_for("cpu", "float32"), tiny.losses()
    tensors, bound = gradients(drifted, accelerator, losses), losses.get("dpo").bind(beta=0.2)
    train(tiny.run_of(bound), bound, read_pairs(pairs), start, out / "run", accelerator=accelerator)
    if accelerator.is_main_process:
        save_file(tensors, out / "gradients.safetensors")
    # No wrapped model is left here: one that outlives its process group can keep the process from ending.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
