"""Scoring a checkpoint: draw answers once, then ask every evaluator for its rows."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dpobench import scores, store
from dpobench.checkpoint import Checkpoint
from dpobench.errors import UserError
from dpobench.experiment import Evaluation
from dpobench.heldout import HeldOut, Prompt
from dpobench.registry import Plugin, evaluators, judges
from dpobench.sampling import sample
from dpobench.tokens import TokenPair, read_pairs

PROMPTS, HELDOUT, SAMPLES = "prompts.jsonl", "heldout.parquet", "samples.parquet"


@dataclass(frozen=True)
class Plan:
    """Which evaluators run, with which settings.

    Args:
        chosen: evaluators with all their settings.
        left_out: evaluators whose needs are not met, and why.
        judge: the judge with its settings, or None.
        key: content key of all that decides a score beside the checkpoint.
    """

    chosen: Sequence[tuple[Plugin, Mapping[str, Any]]]
    left_out: Sequence[Mapping[str, str]]
    judge: tuple[Plugin, Mapping[str, Any]] | None
    key: str


def plan(settings: Evaluation, *, has_pairs: bool, heldout: str) -> Plan:
    """Decide which evaluators run.

    Args:
        settings: what was asked for.
        has_pairs: whether held-out pairs are at hand.
        heldout: content key of the held-out inputs.

    Raises:
        UserError: an evaluator or judge nobody registered, an unknown setting, or one asked for whose needs are not met.
    """
    judge = None
    if settings.judge is not None:
        plugin = judges.get(settings.judge)
        judge = (plugin, plugin.arguments(settings.judge_settings))
    there = {"judge": judge is not None, "pairs": has_pairs, "tasks": bool(settings.tasks)}
    remedies = {
        "judge": "name one with --judge",
        "pairs": "give held-out pairs",
        "tasks": "name lm-eval tasks with --tasks",
    }
    chosen, left_out = [], []
    for name in settings.evaluators or evaluators.names():
        plugin = evaluators.get(name)
        missing = [need for need in plugin.declared["needs"] if not there.get(need, False)]
        if missing and name in settings.evaluators:
            raise UserError(f"evaluator {name!r} needs {missing[0]}; {remedies.get(missing[0], 'leave it out')}")
        if missing:
            left_out.append({"evaluator": name, "why": f"needs {missing[0]}: {remedies.get(missing[0], '')}"})
        else:
            chosen.append((plugin, plugin.arguments(settings.settings.get(name, {}))))
    for name in settings.settings:
        evaluators.get(name)
    told = [settings.model_dump(exclude={"alpha", "settings", "evaluators"}), heldout, judge and judge[0].code_hash]
    return Plan(chosen, left_out, judge, store.digest(told))


def read_prompts(folder: Path, limit: int | None = None) -> list[Prompt]:
    """Read held-out prompts."""
    lines = (folder / PROMPTS).read_text(encoding="utf-8").splitlines()[:limit]
    rows = [json.loads(line) for line in lines]
    return [Prompt(row["id"], tuple(row["messages"]), tuple(row["token_ids"]), row["chosen"]) for row in rows]


def write_prompts(folder: Path, prompts: Sequence[Prompt]) -> None:
    """Write held-out prompts, one JSON object a line."""
    rows = [
        {"id": p.id, "split": p.split, "messages": p.messages, "token_ids": p.token_ids, "chosen": p.chosen}
        for p in prompts
    ]
    store.write_bytes(folder / PROMPTS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def score(checkpoint: Checkpoint, folder: Path, heldout: Path, settings: Evaluation, planned: Plan, *,
          seed: int = 0, progress: Callable[[str], None] = lambda name: None) -> None:  # fmt: skip
    """Write a checkpoint's samples and scores into its folder; what is there under the same settings is kept.

    Args:
        checkpoint: what to score.
        folder: its run folder, or the held-out folder itself for the reference.
        heldout: folder with prompts, held-out pairs and the reference's samples.
        settings: sampling and limits.
        planned: evaluators and judge.
        seed: the run's seed, mixed into the draws.
        progress: called with the name of each part as it begins.
    """
    key = {"heldout": planned.key, "seed": seed}
    if _stamp(folder) != key:
        (folder / SAMPLES).unlink(missing_ok=True)
        store.write_json(folder / "samples.json", key)
    prompts = read_prompts(heldout)
    if not (folder / SAMPLES).is_file():
        progress("sampling")
        with _own_random_state(0):
            drawn = sample(checkpoint.policy, checkpoint.tokenizer, prompts, settings.sampling, seed)
        store.write_bytes(folder / SAMPLES, drawn.to_parquet(index=False))
    held_out = _held_out(folder, heldout, prompts, settings, planned)
    for plugin, arguments in planned.chosen:
        told = {"key": key, "code": plugin.code_hash, "arguments": dict(arguments)}
        if plugin.name in scores.present(folder) and scores.settings(folder, plugin.name) == json.loads(
            json.dumps(told)
        ):
            continue
        progress(plugin.name)
        with _own_random_state(seed):
            frame = plugin.function(checkpoint, held_out, **arguments)
        scores.check(frame, plugin.declared["metrics"], plugin.name)
        scores.write(folder, plugin.name, frame, plugin.declared["metrics"], told)


def _stamp(folder: Path) -> Any:
    return store.read_json(folder / "samples.json") if (folder / "samples.json").is_file() else None


def _held_out(folder: Path, heldout: Path, prompts: Sequence[Prompt], settings: Evaluation, planned: Plan) -> HeldOut:
    pairs: list[TokenPair] = read_pairs(heldout / HELDOUT) if (heldout / HELDOUT).is_file() else []
    own = pd.read_parquet(folder / SAMPLES)
    reference = own if folder == heldout else pd.read_parquet(heldout / SAMPLES)
    held_out = HeldOut(
        prompts=prompts,
        samples=own,
        reference_samples=reference,
        pairs=pairs,
        tasks=settings.tasks,
        task_folders=tuple(Path(name) for name in settings.task_folders),
        sampling=settings.sampling,
    )
    if planned.judge is None:
        return held_out
    plugin, arguments = planned.judge
    return replace(held_out, judge=partial(plugin.function, **arguments))


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    """Seed every generator for a block and put the old states back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
