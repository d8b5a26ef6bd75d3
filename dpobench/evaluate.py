"""Scoring a checkpoint: draw answers once, then ask every evaluator for its rows."""

import json
import random
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dpobench import aims, scores, sources, store
from dpobench.checkpoint import Checkpoint, known_hash, model_hash, stamp_of
from dpobench.errors import UserError
from dpobench.experiment import Evaluation
from dpobench.heldout import HeldOut, Once, Prompt, Sampling
from dpobench.registry import Plugin, evaluators, judges
from dpobench.sampling import sample
from dpobench.tasks import tasks_key
from dpobench.tokens import read_pairs

PROMPTS, HELDOUT, SAMPLES, POOL = "prompts.jsonl", "heldout.parquet", "samples.parquet", "pool.parquet"
# Answers of the models' own distributions, beside samples of another temperature; and what an evaluator of them declares to need.
UNALTERED, OWN_DISTRIBUTION = "unaltered.parquet", "unaltered"
# Opponents that a checkpoint is compared with while it is scored; round robin waits until all are there.
OPPONENTS = ("reference", "chosen")


@dataclass(frozen=True)
class Plan:
    """Which evaluators run, with which settings.

    Args:
        chosen: evaluators with all their settings.
        left_out: evaluators whose needs are not met, and why.
        judge: the judge with its settings, or None.
        heldout: content key of the held-out inputs and of how answers are drawn.
        needs: content keys of what evaluators may need: the judge, the tasks, the pool.
        opponents: whose answers a checkpoint's are compared with.
        objectives: judges of several aims, with their settings.
    """

    chosen: Sequence[tuple[Plugin, Mapping[str, Any]]]
    left_out: Sequence[Mapping[str, str]]
    judge: tuple[Plugin, Mapping[str, Any]] | None
    heldout: str
    needs: Mapping[str, str]
    opponents: Sequence[str] = OPPONENTS
    objectives: Mapping[str, aims.Judge] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Content key of all that decides the scores of a run beside its checkpoint."""
        everywhere = [(plugin, arguments) for plugin, arguments in self.chosen if not _reference_only(plugin)]
        return store.digest([[plugin.name, self.told(plugin, arguments)] for plugin, arguments in everywhere])

    @property
    def within(self) -> "Plan":
        """The same for checkpoints within a training: what is declared for them, against the opponent that tables show."""
        chosen = [(plugin, arguments) for plugin, arguments in self.chosen if plugin.declared.get("within")]
        return replace(self, chosen=chosen, opponents=self.opponents[:1], objectives={})

    def told(self, plugin: Plugin, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides one evaluator's scores beside the checkpoint; written beside them."""
        read = {*plugin.declared["needs"], *(("pool", "pairs") if _reference_only(plugin) else ())}
        needs = {name: key for name, key in self.needs.items() if name in read}
        shown = {"heldout": self.heldout, "needs": needs, "code": plugin.code_hash, "arguments": dict(arguments)}
        told: dict[str, Any] = json.loads(json.dumps(shown | {"content": _content(arguments)}, default=str))
        return told


def _reference_only(plugin: Plugin) -> bool:
    return bool(plugin.declared.get("reference_only"))


def _content(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files and model folders that settings name, as in `file.py:name` or `module:name`: edited is another setting.

    Settings within tables and lists count as well, and of Python files the local modules that they import.
    """
    found = {}
    for name, value in _leaves(settings):
        place = value.rpartition(":")[0] or value
        file = _expanded(place)
        if not place.endswith(".py") and all(part.isidentifier() for part in place.split(".")):
            file = sources.module_file(place) or file
        if _is_file(file):
            found[name] = store.file_hash(file)
            if file.suffix == ".py" and sources.local_modules(file):
                found[name] += f" {sources.code_hash(file)}"
        elif (folder := _model_folder(value)) is not None:
            found[name] = known_hash(folder, stamp_of(folder))
    return found


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Texts among settings, each with its place."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for at, one in enumerate(value):
            yield from _leaves(one, f"{name}.{at}")
    elif value and isinstance(value, str | Path):
        yield name, str(value)


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a tilde before what is no user
        return Path(text)


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError:  # a text too long to be a name
        return False


def _model_folder(name: str) -> Path | None:
    """The folder of a model that a setting names: a folder, or a hub name whose files are on this machine already."""
    folder = _expanded(name)
    if _is_file(folder / "config.json"):
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name, "config.json")
    return Path(file).parent if isinstance(file, str) else None


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
    objectives = aims.judged(settings)
    there = {"judge": judge is not None, "pairs": has_pairs, "tasks": bool(settings.tasks), "pool": settings.pool > 0}
    there |= {"objectives": bool(settings.objectives), OWN_DISTRIBUTION: True}
    remedies = {
        "judge": "name one with --judge",
        "pairs": "give held-out pairs",
        "pool": "set evaluation.pool to 1 or more",
        "objectives": "name two or more with --objectives",
        "tasks": "name lm-eval tasks with --tasks",
    }
    chosen, left_out = [], []
    for name in settings.evaluators or evaluators.names():
        plugin = evaluators.get(name)
        missing = [need for need in plugin.declared["needs"] if not there.get(need, False)]
        if missing and name in settings.evaluators:
            raise UserError(f"evaluator {name!r} needs {missing[0]}; {remedies.get(missing[0], 'leave it out')}")
        if missing == ["objectives"]:
            continue  # never there unless asked for: nobody misses it
        if missing:
            left_out.append({"evaluator": name, "why": f"needs {missing[0]}: {remedies.get(missing[0], '')}"})
        else:
            chosen.append((plugin, plugin.arguments(settings.settings.get(name, {}))))
    for name in settings.settings:
        evaluators.get(name)
    needs = {"tasks": tasks_key(settings.tasks, settings.task_folders), "pool": store.digest(settings.pool)}
    opponents = _opponents(settings, judge)
    if judge is not None:
        told = [opponents] if opponents != OPPONENTS else []
        # Who ranks answers; and, for scores, whose answers are compared with.
        needs["ranking"] = aims.judge_key(judge, _content)
        needs["judge"] = store.digest(needs["ranking"], *told)
    needs["objectives"] = aims.needs(objectives, settings, _content)
    return Plan(chosen, left_out, judge, heldout, needs, opponents, objectives)


def _opponents(settings: Evaluation, judge: tuple[Plugin, Mapping[str, Any]] | None) -> tuple[str, ...]:
    """Those asked for; without a word the reference alone where every comparison costs a call, else all."""
    asked = tuple(getattr(settings, "opponents", ()))
    if not asked:
        return OPPONENTS if judge is None or judge[0].declared["pointwise"] else OPPONENTS[:1]
    return tuple(name for name in OPPONENTS if name in asked)


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
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # JSON leaves these inside strings, and readers of lines split at them.
    for mark in "\x85\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    store.write_bytes(folder / PROMPTS, text.encode())


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
        for name in (SAMPLES, UNALTERED):
            (folder / name).unlink(missing_ok=True)
        store.write_json(folder / "samples.json", key)
    prompts = read_prompts(heldout)
    if not (folder / SAMPLES).is_file():
        progress("sampling")
        _draw(checkpoint, prompts, settings.sampling, seed, folder / SAMPLES)
    if any(OWN_DISTRIBUTION in plugin.declared["needs"] for plugin, _ in planned.chosen):
        _draw_unaltered(checkpoint, folder, prompts, settings, key, progress)
    if folder == heldout:
        _draw_pool(checkpoint, folder, prompts, settings, key, progress)
    held_out = _held_out(folder, heldout, prompts, settings, planned, once_for(checkpoint, heldout, planned))
    for plugin, arguments in planned.chosen:
        if _reference_only(plugin) and folder != heldout:
            continue
        told = key | planned.told(plugin, arguments)
        if plugin.name in scores.present(folder) and scores.settings(folder, plugin.name) == told:
            continue
        progress(plugin.name)
        with _own_random_state(seed):
            frame = plugin.function(checkpoint, held_out, **arguments)
        scores.check(frame, plugin.declared["metrics"], plugin.name)
        scores.write(folder, plugin.name, frame, plugin.declared["metrics"], told)


def _stamp(folder: Path, name: str = "samples.json") -> Any:
    return store.read_json(folder / name) if (folder / name).is_file() else None


def _draw(checkpoint: Checkpoint, prompts: Sequence[Prompt], how: Sampling, seed: int, file: Path) -> None:
    """Draw a policy's answers into a file; the random state of whoever asks stays as it was."""
    with _own_random_state(0):
        drawn = sample(checkpoint.policy, checkpoint.tokenizer, prompts, how, seed)
    store.write_bytes(file, drawn.to_parquet(index=False))


def _draw_unaltered(
    checkpoint: Checkpoint,
    folder: Path,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    key: Mapping[str, Any],
    progress: Callable[[str], None],
) -> None:
    """Answers of the model's own distribution, where those to be compared are drawn from another."""
    if settings.sampling.is_policy or (folder / UNALTERED).is_file():
        return
    progress("sampling at temperature 1")
    how = replace(settings.sampling, temperature=1.0, top_p=1.0, top_k=0)
    _draw(checkpoint, prompts, how, key["seed"], folder / UNALTERED)


def _draw_pool(
    checkpoint: Checkpoint,
    folder: Path,
    prompts: Sequence[Prompt],
    settings: Evaluation,
    key: Mapping[str, Any],
    progress: Callable[[str], None],
) -> None:
    """Further answers of the reference, from a stream of their own."""
    asked = {**key, "pool": settings.pool}
    if _stamp(folder, "pool.json") == asked and (folder / POOL).is_file() == (settings.pool > 0):
        return
    (folder / POOL).unlink(missing_ok=True)
    if settings.pool > 0:
        progress("further answers")
        how = replace(settings.sampling, draws=settings.pool)
        _draw(checkpoint, prompts, how, key["seed"] + 1, folder / POOL)
    store.write_json(folder / "pool.json", asked)


def once_for(checkpoint: Checkpoint, heldout: Path, planned: Plan) -> Once:
    """What remembers for all checkpoints that this process scores on the same inputs, in the same arithmetic.

    Args:
        checkpoint: what is scored; its reference, device and precision count, its policy does not.
        heldout: folder of the held-out inputs; the content of its files counts, its place does not.
        planned: the judge.
    """
    files = [file for name in (PROMPTS, HELDOUT, SAMPLES, UNALTERED, POOL) if (file := heldout / name).is_file()]
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
        opponents=planned.opponents,
        objectives=aims.held_out(heldout, planned.objectives, settings, _content, once),
        keep=partial(_keep, folder),
    )
    if not settings.sampling.is_policy and (folder / UNALTERED).is_file():
        own, reference = (pd.read_parquet(place / UNALTERED) for place in (folder, heldout))
        held_out = replace(held_out, unaltered=(own, reference))
    if (heldout / POOL).is_file():
        held_out = replace(held_out, pool=once(POOL, lambda: pd.read_parquet(heldout / POOL)))
    if planned.judge is None:
        return held_out
    plugin, arguments = planned.judge
    asked = partial(plugin.function, **arguments)
    return replace(held_out, judge=asked) if plugin.declared["pointwise"] else replace(held_out, pairwise=asked)


def _keep(folder: Path, name: str, frame: pd.DataFrame) -> None:
    store.write_bytes(folder / f"{name}.parquet", frame.to_parquet(index=False))


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
