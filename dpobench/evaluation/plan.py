"""Which evaluators run, with which settings, and the content key of all that decides their scores."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpobench.artifacts.code_hash import code_hash, local_modules, module_file
from dpobench.artifacts.files import digest, file_hash
from dpobench.artifacts.records import json_values
from dpobench.artifacts.scores import ScoreSettings
from dpobench.errors import UserError
from dpobench.evaluation.benchmark_tasks import tasks_key
from dpobench.evaluation.objectives import Judge, judge_key, judged, objectives_key
from dpobench.evaluation.registry import evaluators, judges
from dpobench.evaluation.settings import Evaluation
from dpobench.evaluation.spec import Evaluator
from dpobench.models.checkpoint import known_hash, stamp_of

HELDOUT, SAMPLES, POOL = "heldout.parquet", "samples.parquet", "pool.parquet"
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

    chosen: Sequence[tuple[Evaluator, Mapping[str, Any]]]
    left_out: Sequence[Mapping[str, str]]
    judge: Judge | None
    heldout: str
    needs: Mapping[str, str]
    opponents: Sequence[str] = OPPONENTS
    objectives: Mapping[str, Judge] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Content key of all that decides the scores of a run beside its checkpoint."""
        everywhere = [(plugin, arguments) for plugin, arguments in self.chosen if not scores_reference_only(plugin)]
        settings = [(plugin.name, self.settings_of(plugin, arguments)) for plugin, arguments in everywhere]
        return digest([[name, one.model_dump(mode="json")] for name, one in settings])

    @property
    def within(self) -> "Plan":
        """The same for checkpoints within a training: what is declared for them, against the opponent that tables show."""
        chosen = [(plugin, arguments) for plugin, arguments in self.chosen if plugin.spec.within]
        return replace(self, chosen=chosen, opponents=self.opponents[:1], objectives={})

    def settings_of(self, plugin: Evaluator, arguments: Mapping[str, Any], seed: int | None = None) -> ScoreSettings:
        """All that decides one evaluator's scores besides the checkpoint; written with them.

        Args:
            plugin: the evaluator.
            arguments: its hyper-parameters.
            seed: mixed into the draws of one checkpoint; None for what all checkpoints share.
        """
        read = {*plugin.spec.needs, *(("pool", "pairs") if scores_reference_only(plugin) else ())}
        return ScoreSettings(
            heldout=self.heldout,
            seed=seed,
            needs={name: key for name, key in self.needs.items() if name in read},
            code=plugin.code_hash,
            arguments=json_values(arguments),
            content=content_hashes(arguments),
        )


def scores_reference_only(plugin: Evaluator) -> bool:
    """Whether an evaluator scores the reference alone."""
    return plugin.spec.reference_only


def content_hashes(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files and model folders that settings name, as in `file.py:name` or `module:name`: edited is another setting.

    Settings within tables and lists count as well, and of Python files the local modules that they import.
    """
    found = {}
    for name, value in _leaves(settings):
        place = value.rpartition(":")[0] or value
        file = _expanded(place)
        if not place.endswith(".py") and all(part.isidentifier() for part in place.split(".")):
            file = module_file(place) or file
        if _is_file(file):
            found[name] = file_hash(file)
            if file.suffix == ".py" and local_modules(file):
                found[name] += f" {code_hash(file)}"
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
        named = judges.get(settings.judge)
        judge = (named, named.arguments(settings.judge_settings))
    objectives = judged(settings)
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
        missing = [need for need in plugin.spec.needs if not there.get(need, False)]
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
    needs = {"tasks": tasks_key(settings.tasks, settings.task_folders), "pool": digest(settings.pool)}
    opponents = _opponents(settings, judge)
    if judge is not None:
        told = [opponents] if opponents != OPPONENTS else []
        # Who ranks answers; and, for scores, whose answers are compared with.
        needs["ranking"] = judge_key(judge, content_hashes)
        needs["judge"] = digest(needs["ranking"], *told)
    needs["objectives"] = objectives_key(objectives, settings, content_hashes)
    return Plan(chosen, left_out, judge, heldout, needs, opponents, objectives)


def _opponents(settings: Evaluation, judge: Judge | None) -> tuple[str, ...]:
    """Those asked for; without a word the reference alone where every comparison costs a call, else all."""
    asked = tuple(getattr(settings, "opponents", ()))
    if not asked:
        return OPPONENTS if judge is None or judge[0].spec.pointwise else OPPONENTS[:1]
    return tuple(name for name in OPPONENTS if name in asked)
