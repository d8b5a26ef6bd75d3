"""Several objectives at once: from the options of `--objectives` to what a checkpoint is scored on."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from pydantic import JsonValue

from dpobench.artifacts.code_hash import code_hash
from dpobench.artifacts.files import digest, file_hash
from dpobench.data.tokens import TokenPair, pairs_hash, read_pairs
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation import pairwise
from dpobench.evaluation.heldout import ComputeOnce, ObjectiveInputs
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation, SettingsTable
from dpobench.evaluation.spec import Judge

ContentHashes: TypeAlias = Callable[[SettingsTable], dict[str, str]]
"""Hashes of the files that settings name, by the place of the setting."""


class ConfiguredJudge(NamedTuple):
    """A judge with all its settings.

    Args:
        plugin: the judge.
        settings: every hyper-parameter of it, by name.
    """

    plugin: Judge
    settings: SettingsTable


def judged_objectives(evaluation: Evaluation) -> dict[str, ConfiguredJudge]:
    """The objectives that a judge measures, by name.

    The setting behind a judge's name is its first one; the others are those of the win-rate's judge, where it is the same.

    Raises:
        UserError: an objective that is neither a judge nor a file, a setting for a judge that takes none, or a wrong one.
    """
    configured: dict[str, ConfiguredJudge] = {}
    for spec in read_objectives(evaluation.objectives, judges.names()):
        if not spec.judge:
            continue
        plugin = judges.get(spec.judge)
        settings: dict[str, JsonValue] = dict(evaluation.judge_settings) if spec.judge == evaluation.judge else {}
        if spec.setting and not plugin.parameters:
            raise UserError(
                f"objective {spec.name}: judge {spec.judge} takes no setting, but {spec.setting!r} is given"
            )
        if spec.setting:
            settings[next(iter(plugin.parameters))] = spec.setting
        configured[spec.name] = ConfiguredJudge(plugin, plugin.arguments(settings))
    return configured


def pairs_key(pairs: Mapping[str, Sequence[TokenPair]]) -> list[dict[str, str]]:
    """The part of the held-out inputs' content key that stands for the objectives' pairs; empty where there are none."""
    return [{name: pairs_hash(of_objective) for name, of_objective in pairs.items()}] if pairs else []


def objectives_key(
    judges_by_name: Mapping[str, ConfiguredJudge], evaluation: Evaluation, content_hashes: ContentHashes
) -> str:
    """Content key of the objectives: their names and values, and the code and files of their judges."""
    keys = {name: judge_key(judge, content_hashes) for name, judge in judges_by_name.items()}
    return digest(list(evaluation.objectives.items()), keys)


def judge_key(judge: ConfiguredJudge, content_hashes: ContentHashes) -> str:
    """Content key of a judge: code, the settings that decide, the files that these name, and of one that compares the code of `compare`."""
    plugin, deciding = judge.plugin, judge.plugin.deciding(judge.settings)
    comparing = [] if plugin.spec.pointwise else [code_hash(Path(pairwise.__file__))]
    return digest(plugin.name, plugin.code_hash, deciding, content_hashes(deciding), *comparing)


def objective_file(folder: Path, name: str) -> Path:
    """Where the pairs of an objective lie among the held-out inputs."""
    return folder / f"objective-{name}.parquet"


def objective_inputs(
    folder: Path,
    configured: Mapping[str, ConfiguredJudge],
    evaluation: Evaluation,
    content_hashes: ContentHashes,
    compute_once: ComputeOnce,
) -> dict[str, ObjectiveInputs]:
    """The objectives as an evaluator gets them, by name.

    Args:
        folder: the held-out inputs.
        configured: from `judged_objectives`.
        evaluation: names and order.
        content_hashes: hashes of the files that settings name.
        compute_once: cache of the pairs that were read.
    """
    inputs = {}
    for name in evaluation.objectives:
        if name not in configured:
            file = objective_file(folder, name)
            inputs[name] = ObjectiveInputs(pairs=compute_once((file.name, file_hash(file)), partial(read_pairs, file)))
            continue
        plugin, settings = configured[name]
        judge, key = partial(plugin.function, **settings), judge_key(configured[name], content_hashes)
        pointwise = plugin.spec.pointwise
        inputs[name] = ObjectiveInputs(judge=judge, key=key) if pointwise else ObjectiveInputs(pairwise=judge, key=key)
    return inputs


OBJECTIVE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_HUB, _FILES = re.compile(r"[\w.-]+/[\w.-]+"), (".jsonl", ".json", ".gz", ".csv", ".parquet")
_EXAMPLE = "write for example helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"


@dataclass(frozen=True)
class ObjectiveSpec:
    """One objective as it was requested.

    Args:
        name: what tables call it.
        judge: name of a judge; empty for a set of held-out pairs.
        setting: value of the judge's first setting, empty for its default.
        source: file, folder or hub name of held-out preference pairs; empty for a judge.
    """

    name: str
    judge: str = ""
    setting: str = ""
    source: str = ""


def read_objectives(values: Mapping[str, str], judges: Collection[str]) -> list[ObjectiveSpec]:
    """Read each value: a judge where it begins with the name of one, else a file of held-out preference pairs.

    Args:
        values: by name, as `parse` returns them.
        judges: names of the judges there are.

    Raises:
        UserError: one objective alone, or a value that is neither a judge nor a file.
    """
    if len(values) == 1:
        raise UserError(f"--objectives names {next(iter(values))} alone; a trade-off needs two or more: {_EXAMPLE}")
    specs = []
    for name, value in values.items():
        if not OBJECTIVE_NAME.fullmatch(name):
            raise UserError(f"objective {name!r}: letters, digits, underscores and hyphens are expected")
        judge, _, setting = value.partition(":")
        if judge in judges:
            specs.append(ObjectiveSpec(name, judge=judge, setting=setting))
        elif Path(value).expanduser().exists() or (_HUB.fullmatch(value) and Path(value).suffix not in _FILES):
            specs.append(ObjectiveSpec(name, source=value))
        elif "/" in judge or Path(judge).suffix:
            raise UserError(f"objective {name}: {value} is no judge, and there is no such file of preference pairs")
        else:
            raise UnknownName(
                "judge", judge, sorted(judges), f" (objective {name}; a file of preference pairs would do, too)"
            )
    return specs
