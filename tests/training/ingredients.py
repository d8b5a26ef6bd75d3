"""What each ingredient of the step gives: the step with one of them taken away, in turns with the whole, as the table in the docs.

    python -m tests.training.ingredients

One thread; processor seconds, medians of five turns. The allocator cannot be set back, so it is tried in a process of its own.
"""

import contextlib
import statistics
import subprocess
import sys
import time
from unittest import mock

import torch

from dpobench.bench.memory import read_texts
from dpobench.bench.sides import HarnessSide, logistic_loss
from dpobench.bench.workloads import LARGER, SMALL, WORKLOADS, draw_texts, llama, perturbed
from dpobench.models import logprobs, prefix_attention
from dpobench.models.activation_checkpointing import recompute
from dpobench.sweep.allocator import keep_pages
from dpobench.training import gradient as step_gradient
from dpobench.training.loss_inputs import AuxiliaryState, lay_out

CASES = [
    (SMALL, "float32", WORKLOADS[0]),
    (SMALL, "bf16", WORKLOADS[0]),
    (SMALL, "bf16", WORKLOADS[2]),
    (LARGER, "bf16", WORKLOADS[0]),
]


def plain_head(hidden, projection, targets):
    """The head through autograd: the table whole, a second one for its gradient."""
    logits = torch.nn.functional.linear(hidden, projection.weight).float()
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def narrowed_each_time(*given, **options):
    torch.clear_autocast_cache()
    return step_layout(*given, **options)


step_layout = lay_out
WITHOUT = {
    "packed rows (padded instead)": None,
    "attention's own backward": lambda: mock.patch.object(
        prefix_attention._Calls, "apply", prefix_attention._by_dispatch
    ),
    "the head's own backward": lambda: mock.patch.object(logprobs, "token_logps", plain_head),
    "weights narrowed once a step": lambda: mock.patch.object(step_gradient, "lay_out", narrowed_each_time),
    "micro-batches of 1,536 tokens (8,192 instead)": lambda: mock.patch.object(logprobs, "CPU_TOKENS", 8192),
    "micro-batches of 1,536 tokens (512 instead)": lambda: mock.patch.object(logprobs, "CPU_TOKENS", 512),
}


def seconds(side):
    began = time.process_time()
    side.step()
    return time.process_time() - began


def side_of(shape, precision, work, layout="packed", *, again=False):
    reference = llama(shape)
    rows = read_texts(reference, draw_texts(work, 8, vocabulary=shape.vocabulary))
    side = HarnessSide(perturbed(reference), rows, logistic_loss(), precision)
    if layout == "padded":
        # The library's own attention again.
        side.model.set_attn_implementation("sdpa")
        side.auxiliary = AuxiliaryState()
    if again:
        recompute(side.model)
    return side


def measure(shape, precision, work):
    """Seconds of the whole step, and how many times as long it takes without each ingredient."""
    whole, padded = side_of(shape, precision, work), side_of(shape, precision, work, "padded")
    again = side_of(shape, precision, work, again=True)
    turns = {"": (whole, contextlib.nullcontext)}
    turns |= {
        name: (whole, without) if without else (padded, contextlib.nullcontext) for name, without in WITHOUT.items()
    }
    turns["activations in memory (computed again instead)"] = again, contextlib.nullcontext
    taken = {name: [] for name in turns}
    for number in range(6):
        for name, (side, without) in turns.items():
            with without():
                spent = seconds(side)
            if number:
                taken[name].append(spent)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    whole_step = medians.pop("")
    return whole_step, {name: spent / whole_step for name, spent in medians.items()}


def alone(number):
    """Median seconds of the whole step in this process."""
    side = side_of(*CASES[number])
    return statistics.median([seconds(side) for _ in range(6)][1:])


def usual_allocator(number):
    """How many times as long the whole step takes where freed memory goes back to the system."""
    command = [sys.executable, "-m", "tests.training.ingredients", str(number)]
    keeping, usual = (
        float(subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout)
        for more in ([], ["usual"])
    )
    return usual / keeping


def main():
    keep_pages()
    columns = []
    for number, (shape, precision, work) in enumerate(CASES):
        whole, ratios = measure(shape, precision, work)
        ratios["freed memory kept"] = usual_allocator(number)
        columns.append((f"{work.name}, {precision}, {shape.name}", whole, ratios))
    lines = ["| without | " + " | ".join(title for title, _, _ in columns) + " |", "|---|" + "---|" * len(columns)]
    lines.append("| *the whole step, s* | " + " | ".join(f"*{whole:.3f}*" for _, whole, _ in columns) + " |")
    for name in columns[0][2]:
        lines.append(f"| {name} | " + " | ".join(f"{ratios[name]:.2f} x" for _, _, ratios in columns) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:]:
        if "usual" not in sys.argv:
            keep_pages()
        sys.stdout.write(str(alone(int(sys.argv[1]))))
    else:
        main()
