"""Which evaluators run, with which settings, and the content key of all that decides their scores."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dpobench.artifacts.code_hash import code_hash, local_modules, module_file
from dpobench.artifacts.files import digest, file_hash
from dpobench.artifacts.records import json_values
from dpobench.artifacts.scores import ANY_NAME, ScoreSettings
from dpobench.errors import UserError
from dpobench.evaluation.benchmark_tasks import tasks_key
from dpobench.evaluation.objectives import ConfiguredJudge, judge_key, judged_objectives, objectives_key
from dpobench.evaluation.registry import evaluators, judges
from dpobench.evaluation.settings import Evaluation, SettingsTable
from dpobench.evaluation.spec import Evaluator
from dpobench.models.checkpoint import known_hash, stamp_of

HELDOUT, SAMPLES, POOL = "heldout.parquet", "samples.parquet", "pool.parquet"
# File of answers that follow the models' own distributions, next to samples of another temperature; and the need of their evaluators.
ON_POLICY_SAMPLES, ON_POLICY = "unaltered.parquet", "on_policy"
# Opponents that a checkpoint is compared with while it is scored; round robin waits until all are there.
OPPONENTS = ("reference", "chosen")


class ConfiguredEvaluator(NamedTuple):
    """An evaluator with all its settings.

    Args:
        plugin: the evaluator.
        settings: every hyper-parameter of it, by name.
    """

    plugin: Evaluator
    settings: SettingsTable


@dataclass(frozen=True)
class ScoringPlan:
    """Which evaluators run, with which settings.

    Args:
        chosen: evaluators with all their settings.
        left_out: evaluators whose needs are not met, and why.
        judge: the judge with its settings, or None.
        heldout: content key of the held-out inputs and of how answers are drawn.
        needs: content keys of what evaluators may need: the judge, the tasks, the pool.
        opponents: whose answers a checkpoint's are compared with.
        objectives: judges of several objectives, with their settings.
    """

    chosen: Sequence[ConfiguredEvaluator]
    left_out: Sequence[Mapping[str, str]]
    judge: ConfiguredJudge | None
    heldout: str
    needs: Mapping[str, str]
    opponents: Sequence[str] = OPPONENTS
    objectives: Mapping[str, ConfiguredJudge] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Content key of all that decides the scores of a run besides its checkpoint."""
        everywhere = [(plugin, arguments) for plugin, arguments in self.chosen if not scores_reference_only(plugin)]
        settings = [(plugin.name, self.settings_of(plugin, arguments)) for plugin, arguments in everywhere]
        return digest([[name, one.model_dump(mode="json")] for name, one in settings])

    @property
    def within(self) -> "ScoringPlan":
        """The same for checkpoints within a training: what is declared for them, against the opponent that tables show."""
        chosen = [evaluator for evaluator in self.chosen if evaluator.plugin.spec.within]
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


def content_hashes(settings: SettingsTable) -> dict[str, str]:
    """Hashes of the files and model folders that settings name, as in `file.py:name` or `module:name`: edited is another setting.

    Args:
        settings: of a judge or an evaluator; settings within tables and lists count as well.

    Returns: hashes by the place of the setting, as in "table.name"; of a Python file the local modules that it imports count, too.
    """
    hashes = {}
    for name, text in _texts(settings):
        place = text.rpartition(":")[0] or text
        file = _expanded(place)
        if not place.endswith(".py") and all(part.isidentifier() for part in place.split(".")):
            file = module_file(place) or file
        if _is_file(file):
            hashes[name] = file_hash(file)
            if file.suffix == ".py" and local_modules(file):
                hashes[name] += f" {code_hash(file)}"
        elif (folder := _model_folder(text)) is not None:
            hashes[name] = known_hash(folder, stamp_of(folder))
    return hashes


def _texts(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Texts among settings, each with its place."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _texts(entry, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for at, entry in enumerate(value):
            yield from _texts(entry, f"{name}.{at}")
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


def _refuse_shared_metrics(chosen: Sequence[ConfiguredEvaluator]) -> None:
    """Two evaluators that declare one metric: their numbers would be averaged."""
    declared_by: dict[str, str] = {}
    for evaluator, _ in chosen:
        for metric in set(evaluator.spec.metrics) - {ANY_NAME}:
            if metric in declared_by:
                raise UserError(
                    f"metric {metric!r} is declared by the evaluators {declared_by[metric]} and {evaluator.name}; rename one of them"
                )
            declared_by[metric] = evaluator.name


def scoring_plan(settings: Evaluation, *, has_pairs: bool, heldout: str) -> ScoringPlan:
    """Decide which evaluators run.

    Args:
        settings: the evaluators, the judge and their settings as requested.
        has_pairs: whether there are held-out pairs.
        heldout: content key of the held-out inputs.

    Raises:
        UserError: an evaluator or judge nobody registered, an unknown setting, or a requested evaluator whose needs are not met.
    """
    judge = None
    if settings.judge is not None:
        plugin = judges.get(settings.judge)
        judge = ConfiguredJudge(plugin, plugin.arguments(settings.judge_settings))
    objectives = judged_objectives(settings)
    available = {
        "judge": judge is not None,
        "pairs": has_pairs,
        "tasks": bool(settings.tasks),
        "pool": settings.pool > 0,
        "objectives": bool(settings.objectives),
        ON_POLICY: True,
    }
    remedies = {
        "judge": "name one with --judge",
        "pairs": "give held-out pairs",
        "pool": "set evaluation.pool to 1 or more",
        "objectives": "name two or more with --objectives",
        "tasks": "name lm-eval tasks with --tasks",
    }
    chosen, left_out = [], []
    for name in settings.evaluators or evaluators.names():
        evaluator = evaluators.get(name)
        missing = [need for need in evaluator.spec.needs if not available.get(need, False)]
        if missing and name in settings.evaluators:
            raise UserError(f"evaluator {name!r} needs {missing[0]}; {remedies.get(missing[0], 'leave it out')}")
        if missing == ["objectives"]:
            continue  # only there on request: nobody misses it
        if missing:
            left_out.append({"evaluator": name, "why": f"needs {missing[0]}: {remedies.get(missing[0], '')}"})
        else:
            chosen.append(ConfiguredEvaluator(evaluator, evaluator.arguments(settings.settings.get(name, {}))))
    for name in settings.settings:
        evaluators.get(name)
    _refuse_shared_metrics(chosen)
    needs = {"tasks": tasks_key(settings.tasks, settings.task_folders), "pool": digest(settings.pool)}
    opponents: tuple[str, ...] = tuple(name for name in OPPONENTS if name in settings.opponents)
    if not settings.opponents:
        # Where every comparison costs a call, the reference alone.
        opponents = OPPONENTS if judge is None or judge.plugin.spec.pointwise else OPPONENTS[:1]
    if judge is not None:
        # Who ranks answers; and, for scores, whose answers are compared with.
        needs["ranking"] = judge_key(judge, content_hashes)
        needs["judge"] = digest(needs["ranking"], *([opponents] if opponents != OPPONENTS else []))
    needs["objectives"] = objectives_key(objectives, settings, content_hashes)
    return ScoringPlan(chosen, left_out, judge, heldout, needs, opponents, objectives)
