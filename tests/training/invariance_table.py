"""The table of the docs that shows how little the cutting of a batch changes a gradient, loss by loss.

Run from the root of the checkout as `python -m tests.training.invariance_table`; prints Markdown. The relative distance to one backward
pass through the whole batch of 16 pairs is given for micro-batches of 1, 2, 4 and 8 pairs in float64 and, the largest of the four, in
float32; that of two processes (gloo), in float64, to one process.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from dpobench.losses.registry import variants
from dpobench.training import gradient
from dpobench.training.accelerate import accelerator_for
from tests.training import tiny
from tests.training.test_gradient import at_once, cut_into, taken
from tests.training.test_processes import by_two

SIZES = (1, 2, 4, 8)


def distances(name: str, rows: list, dtype: torch.dtype) -> list[float]:
    """Of the gradient in micro-batches of each size from the gradient at once."""
    model, bound, distances_by_size = tiny.llama(dtype=dtype), variants.get(name).bind(), []
    wanted = at_once(model, bound, rows)
    by_tokens = gradient.by_tokens
    for size in SIZES:
        gradient.by_tokens = cut_into(size)
        distances_by_size.append(tiny.apart(taken(model, bound, rows, accelerator_for("cpu", "float32"))[0], wanted))
    gradient.by_tokens = by_tokens
    return distances_by_size


def of_two_processes(rows: list) -> dict[str, torch.Tensor]:
    """The gradient of every loss, by two processes."""
    with tempfile.TemporaryDirectory() as name:
        start = Path(name) / "start"
        tiny.llama().save_pretrained(start)
        tiny.words().save_pretrained(start)
        return by_two(start, tiny.scored(tiny.rows(22), tiny.llama()), rows, Path(name))


def lines() -> Iterator[str]:
    """The table, line by line."""
    rows = tiny.scored(tiny.rows(16, seed=3), tiny.llama(seed=5))
    two = of_two_processes(rows)
    yield f"| loss | {' | '.join(f'{size} a micro-batch' for size in SIZES)} | float32, worst | two processes |"
    yield "|---|" + "---|" * (len(SIZES) + 2)
    for name in variants.names():
        exact, single = distances(name, rows, torch.float64), distances(name, rows, torch.float32)
        model, bound = tiny.llama(dtype=torch.float64), variants.get(name).bind()
        whole, _ = taken(model, bound, rows, accelerator_for("cpu", "float32"), 120)
        cells = [*exact, max(single), tiny.apart(two[f"{name}.gradient"], whole)]
        yield f"| {name} | {' | '.join(f'{value:.0e}' for value in cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in lines():
        sys.stdout.write(line + "\n")
