"""Started by torchrun: the gradient of every loss and a whole training, written by the first process.

As a script: `python -m torch.distributed.run --nproc-per-node 2 two_processes.py START PAIRS DRIFTED OUT`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from dpobench.step import gradient
from dpobench.tokens import read_pairs
from dpobench.train import accelerator_for, load_policy, train
from tests.train import tiny


def gradients(start, drifted, accelerator, losses):
    found = {"processes": torch.tensor(accelerator.num_processes)}
    model, _ = load_policy(start, accelerator)
    for name in losses.names():
        model.zero_grad()
        seen = gradient(model, losses.get(name).bind(), read_pairs(drifted), accelerator, 120)
        found[f"{name}.gradient"] = tiny.gradients(accelerator.unwrap_model(model))
        found |= {f"{name}.{key}": value.contiguous() for key, value in seen.values.items()}
    return found


def main(start, pairs, drifted, out):
    torch.set_num_threads(1)
    accelerator, losses = accelerator_for("cpu", "float32"), tiny.losses()
    found, bound = gradients(start, drifted, accelerator, losses), losses.get("dpo").bind(beta=0.2)
    train(tiny.run_of(bound), bound, read_pairs(pairs), start, out / "run", accelerator=accelerator)
    if accelerator.is_main_process:
        save_file(found, out / "found.safetensors")
    # No wrapped model is left here: one that outlives its process group can keep the process from ending.
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
