"""Several aims at once: from what was asked for to what a checkpoint is scored on."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpobench.artifacts.code_hash import code_hash
from dpobench.artifacts.files import digest, file_hash
from dpobench.data.tokens import TokenPair, pairs_hash, read_pairs
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation import pairwise
from dpobench.evaluation.heldout import Aim, Once
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation
from dpobench.evaluation.spec import JudgeSpec
from dpobench.plugins.plugin import Plugin

Judge = tuple[Plugin[JudgeSpec], Mapping[str, Any]]


def judged(evaluation: Evaluation) -> dict[str, Judge]:
    """The objectives that a judge measures: each with its judge and all its settings.

    The setting that stands behind the judge's name is its first one; the others are those of the win-rate's judge, where it is the same.

    Raises:
        UserError: an objective that is neither a judge nor a file, a setting for a judge that takes none, or a wrong one.
    """
    found: dict[str, Judge] = {}
    for spec in read_objectives(evaluation.objectives, judges.names()):
        if not spec.judge:
            continue
        plugin = judges.get(spec.judge)
        settings = dict(evaluation.judge_settings) if spec.judge == evaluation.judge else {}
        if spec.setting and not plugin.parameters:
            raise UserError(
                f"objective {spec.name}: judge {spec.judge} takes no setting, but {spec.setting!r} is given"
            )
        if spec.setting:
            settings[next(iter(plugin.parameters))] = spec.setting
        found[spec.name] = (plugin, plugin.arguments(settings))
    return found


def pairs_key(pairs: Mapping[str, Sequence[TokenPair]]) -> list[Any]:
    """What of the held-out inputs' content key are the objectives' pairs; nothing where there are none."""
    return [{name: pairs_hash(own) for name, own in pairs.items()}] if pairs else []


def objectives_key(
    asked: Mapping[str, Judge], evaluation: Evaluation, content: Callable[[Mapping[str, Any]], Any]
) -> str:
    """Content key of the objectives: their names and values, and the code and files of their judges."""
    told = {name: judge_key(judge, content) for name, judge in asked.items()}
    return digest(list(evaluation.objectives.items()), told)


def judge_key(judge: Judge, content: Callable[[Mapping[str, Any]], Any]) -> str:
    """Content key of a judge: code, the settings that decide, the files that these name, and of one that compares how it is asked."""
    plugin, arguments = judge[0], judge[0].deciding(judge[1])
    asked = [] if plugin.spec.pointwise else [code_hash(Path(pairwise.__file__))]
    return digest(plugin.name, plugin.code_hash, arguments, content(arguments), *asked)


def objective_file(folder: Path, name: str) -> Path:
    """Where the pairs of an objective lie among the held-out inputs."""
    return folder / f"objective-{name}.parquet"


def objective_inputs(
    folder: Path,
    asked: Mapping[str, Judge],
    evaluation: Evaluation,
    content: Callable[[Mapping[str, Any]], Any],
    once: Once,
) -> dict[str, Aim]:
    """The objectives as an evaluator is given them.

    Args:
        folder: the held-out inputs.
        asked: from `judged`.
        evaluation: names and order.
        content: hashes of the files that settings name.
        once: keeps what was read.
    """
    found = {}
    for name in evaluation.objectives:
        if name not in asked:
            file = objective_file(folder, name)
            found[name] = Aim(pairs=once((file.name, file_hash(file)), partial(read_pairs, file)))
            continue
        plugin, arguments = asked[name]
        call, identity = partial(plugin.function, **arguments), judge_key(asked[name], content)
        found[name] = Aim(judge=call, key=identity) if plugin.spec.pointwise else Aim(pairwise=call, key=identity)
    return found


OBJECTIVE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")
_HUB, _FILES = re.compile(r"[\w.-]+/[\w.-]+"), (".jsonl", ".json", ".gz", ".csv", ".parquet")
_EXAMPLE = "write for example helpful=JUDGE:SETTING,harmless=PAIRS.jsonl"


@dataclass(frozen=True)
class ObjectiveSpec:
    """One aim as it was asked for.

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
    """What each value means: a judge where it begins with the name of one, else a file of held-out preference pairs.

    Args:
        values: by name, as `parse` returns them.
        judges: names of the judges there are.

    Raises:
        UserError: one objective alone, or a value that is neither a judge nor a file.
    """
    if len(values) == 1:
        raise UserError(f"--objectives names {next(iter(values))} alone; a trade-off needs two or more: {_EXAMPLE}")
    found = []
    for name, value in values.items():
        if not OBJECTIVE_NAME.fullmatch(name):
            raise UserError(f"objective {name!r}: letters, digits, underscores and hyphens are expected")
        judge, _, setting = value.partition(":")
        if judge in judges:
            found.append(ObjectiveSpec(name, judge=judge, setting=setting))
        elif Path(value).expanduser().exists() or (_HUB.fullmatch(value) and Path(value).suffix not in _FILES):
            found.append(ObjectiveSpec(name, source=value))
        elif "/" in judge or Path(judge).suffix:
            raise UserError(f"objective {name}: {value} is no judge, and there is no such file of preference pairs")
        else:
            raise UnknownName(
                "judge", judge, sorted(judges), f" (objective {name}; a file of preference pairs would do, too)"
            )
    return found
