"""Scoring a checkpoint: draw answers once, then ask every evaluator for its rows."""

import importlib.util
import json
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dpobench import scores, store
from dpobench.checkpoint import Checkpoint, model_hash
from dpobench.errors import UserError
from dpobench.experiment import Evaluation
from dpobench.heldout import HeldOut, Once, Prompt
from dpobench.registry import Plugin, evaluators, judges
from dpobench.sampling import sample
from dpobench.tokens import read_pairs

PROMPTS, HELDOUT, SAMPLES = "prompts.jsonl", "heldout.parquet", "samples.parquet"


@dataclass(frozen=True)
class Plan:
    """Which evaluators run, with which settings.

    Args:
        chosen: evaluators with all their settings.
        left_out: evaluators whose needs are not met, and why.
        judge: the judge with its settings, or None.
        heldout: content key of the held-out inputs and of how answers are drawn.
        needs: content keys of what evaluators may need: the judge, the tasks.
    """

    chosen: Sequence[tuple[Plugin, Mapping[str, Any]]]
    left_out: Sequence[Mapping[str, str]]
    judge: tuple[Plugin, Mapping[str, Any]] | None
    heldout: str
    needs: Mapping[str, str]

    @property
    def key(self) -> str:
        """Content key of all that decides a checkpoint's scores beside the checkpoint."""
        return store.digest([[plugin.name, self.told(plugin, arguments)] for plugin, arguments in self.chosen])

    def told(self, plugin: Plugin, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides one evaluator's scores beside the checkpoint; written beside them."""
        needs = {name: key for name, key in self.needs.items() if name in plugin.declared["needs"]}
        shown = {"heldout": self.heldout, "needs": needs, "code": plugin.code_hash, "arguments": dict(arguments)}
        told: dict[str, Any] = json.loads(json.dumps(shown | {"content": _content(arguments)}, default=str))
        return told


def _content(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that settings name, as in `file.py:name` or `module:name`: an edited file is another setting."""
    found = {}
    for name, value in settings.items():
        place = (value.rpartition(":")[0] or value) if isinstance(value, str) else ""
        file = Path(place).expanduser()
        if place and not place.endswith(".py") and all(part.isidentifier() for part in place.split(".")):
            spec = importlib.util.find_spec(place.partition(".")[0]) and importlib.util.find_spec(place)
            file = Path(spec.origin) if spec and spec.origin else file
        if place and file.is_file():
            found[name] = store.file_hash(file)
    return found


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
    folders = [store.folder_hash(Path(folder)) for folder in settings.task_folders]
    needs = {"tasks": store.digest(settings.tasks, folders)}
    if judge is not None:
        needs["judge"] = store.digest(judge[0].name, judge[0].code_hash, judge[1], _content(judge[1]))
    return Plan(chosen, left_out, judge, heldout, needs)


def read_prompts(folder: Path) -> list[Prompt]:
    """Read held-out prompts."""
    lines = (folder / PROMPTS).read_text(encoding="utf-8").splitlines()
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
    key = {"heldout": planned.heldout, "seed": seed}
    if _stamp(folder) != key:
        (folder / SAMPLES).unlink(missing_ok=True)
        store.write_json(folder / "samples.json", key)
    prompts = read_prompts(heldout)
    if not (folder / SAMPLES).is_file():
        progress("sampling")
        with _own_random_state(0):
            drawn = sample(checkpoint.policy, checkpoint.tokenizer, prompts, settings.sampling, seed)
        store.write_bytes(folder / SAMPLES, drawn.to_parquet(index=False))
    held_out = _held_out(folder, heldout, prompts, settings, planned, once_for(checkpoint, heldout, planned))
    for plugin, arguments in planned.chosen:
        told = key | planned.told(plugin, arguments)
        if plugin.name in scores.present(folder) and scores.settings(folder, plugin.name) == told:
            continue
        progress(plugin.name)
        with _own_random_state(seed):
            frame = plugin.function(checkpoint, held_out, **arguments)
        scores.check(frame, plugin.declared["metrics"], plugin.name)
        scores.write(folder, plugin.name, frame, plugin.declared["metrics"], told)


def _stamp(folder: Path) -> Any:
    return store.read_json(folder / "samples.json") if (folder / "samples.json").is_file() else None


def once_for(checkpoint: Checkpoint, heldout: Path, planned: Plan) -> Once:
    """What remembers for all checkpoints that this process scores on the same inputs, in the same arithmetic.

    Args:
        checkpoint: what is scored; its reference, device and precision count, its policy does not.
        heldout: folder of the held-out inputs; the content of its files counts, its place does not.
        planned: the judge.
    """
    files = [file for name in (PROMPTS, HELDOUT, SAMPLES) if (file := heldout / name).is_file()]
    content = [(file.name, store.file_hash(file)) for file in files]
    reference = checkpoint.reference_hash or model_hash(checkpoint.reference_folder)
    how = (checkpoint.device, checkpoint.precision, torch.get_num_threads())
    return partial(_once, _kept(store.digest(content, reference, how, planned.needs.get("judge"))))


@lru_cache(maxsize=1)
def _kept(key: str) -> dict[Hashable, Any]:
    """What is known of one content key; the last one only."""
    return {}


def _once(kept: dict[Hashable, Any], what: Hashable, compute: Callable[[], Any]) -> Any:
    if what not in kept:
        # The seed of no run: what is kept must not depend on which run came first.
        with _own_random_state(0):
            kept[what] = compute()
    return kept[what]


def _held_out(
    folder: Path, heldout: Path, prompts: Sequence[Prompt], settings: Evaluation, planned: Plan, once: Once
) -> HeldOut:
    file = heldout / HELDOUT
    pairs = once(file.name, lambda: read_pairs(file)) if file.is_file() else []
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
        once=once,
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
