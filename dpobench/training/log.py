"""The log of a training: one row per step, and what a reader should know about it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpobench.artifacts.files import write_bytes
from dpobench.losses.variant import Bound
from dpobench.training.gradient import Step


def log_row(step: int, seen: Step, norm: float, rate: float, bound: Bound, seconds: float) -> dict[str, Any]:
    """One line of the log: means over the global batch, gathered over processes and micro-batches."""
    values = {name: value.double().cpu() for name, value in seen.values.items()}
    margin, mean = values["margin"], {name: float(value.mean()) for name, value in values.items()}
    factor = float(bound.params[bound.variant.strength]) if bound.variant.unit == "nat" else 1.0
    statistics = {f"statistic_{name}": value for name, value in seen.statistics.items()}
    return statistics | {
        "step": step,
        "loss": mean["loss"],
        "margin": mean["margin"],
        "accuracy": float((margin > 0).double().mean()),
        "ties": float((margin == 0).double().mean()),
        "reward_chosen": factor * mean["chosen_logratio"],
        "reward_rejected": factor * mean["rejected_logratio"],
        "reward_beta": factor,
        "chosen_logp": mean["chosen_logp"],
        "rejected_logp": mean["rejected_logp"],
        "chosen_logratio": mean["chosen_logratio"],
        "rejected_logratio": mean["rejected_logratio"],
        "gradient_norm": norm,
        "learning_rate": rate,
        "saturation": float((values["slope"] < 0.01 * values["slope_at_start"]).double().mean()),
        "tokens": seen.tokens,
        "tokens_per_s": round(seen.tokens / max(seconds, 1e-9), 1),
    }


def flags(log: Sequence[dict[str, Any]], clip: float) -> list[str]:
    """What a reader of the report should know about a training, in words."""
    found = []
    clipped = sum(row["gradient_norm"] > clip for row in log) / len(log)
    if clipped > 0.9:
        found.append(
            f"gradient clipped at {clipped:.0%} of the steps: the learning rate, not the loss, set the step size"
        )
    if log[-1]["loss"] > 10 * abs(log[0]["loss"]) + 1:
        found.append(f"loss rose from {log[0]['loss']:.3g} to {log[-1]['loss']:.3g}: unstable")
    tail = log[-max(1, len(log) // 5) :]
    if np.mean([row["saturation"] for row in tail]) > 0.5:
        found.append(
            "more than half the pairs were saturated (pull below 1 % of its start) in the last fifth of the steps"
        )
    if np.mean([row["chosen_logratio"] for row in tail]) < -1.0:
        found.append("the likelihood of chosen answers fell below the reference's")
    return found


def write_log(target: Path, log: list[dict[str, Any]], accelerator: Any) -> None:
    """Write `log.jsonl`, one row per step, from the main process."""
    if accelerator.is_main_process:
        write_bytes(target / "log.jsonl", "".join(json.dumps(row) + "\n" for row in log).encode())
