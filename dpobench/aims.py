"""Several aims at once: from what was asked for to what a checkpoint is scored on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dpobench import objectives, sources, store, verdicts
from dpobench.data import Preference, overlaps, tokenise
from dpobench.data.overlap import question
from dpobench.errors import UserError
from dpobench.experiment import Evaluation, Experiment
from dpobench.heldout import Aim, Once
from dpobench.registry import Plugin, judges
from dpobench.tokens import TokenPair, pairs_hash, read_pairs

Judge = tuple[Plugin, Mapping[str, Any]]


def judged(evaluation: Evaluation) -> dict[str, Judge]:
    """The objectives that a judge measures: each with its judge and all its settings.

    The setting that stands behind the judge's name is its first one; the others are those of the win-rate's judge, where it is the same.

    Raises:
        UserError: an objective that is neither a judge nor a file, a setting for a judge that takes none, or a wrong one.
    """
    found = {}
    for spec in objectives.read(evaluation.objectives, judges.names()):
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


def gather(
    experiment: Experiment, tokenizer: Any, train: Sequence[Preference], say: Callable[[str], None]
) -> dict[str, list[TokenPair]]:
    """Held-out pairs of the objectives that are data sets, without those whose prompt was trained on.

    Raises:
        UserError: a file cannot be read, or nothing of it is left.
    """
    found = {}
    asked = [question(row.prompt) for row in train]
    for spec in objectives.read(experiment.evaluation.objectives, judges.names()):
        if not spec.source:
            continue
        rows = _rows(experiment, spec.source, tokenizer)
        hits = {hit.heldout for hit in overlaps([question(row.prompt) for row in rows], asked)} if asked else set()
        kept = sorted((row for at, row in enumerate(rows) if at not in hits), key=lambda row: row.id)
        recipe = experiment.recipe
        found[spec.name], _ = tokenise(
            kept[: experiment.evaluation.heldout_pairs],
            tokenizer,
            template=experiment.data.template,
            max_tokens=recipe.max_tokens,
            max_prompt_tokens=recipe.max_prompt_tokens,
            most_lost=experiment.data.most_lost,
        )
        if len({pair.prompt.tobytes() for pair in found[spec.name]}) < 4:
            raise UserError(
                f"objective {spec.name}: {spec.source} leaves {len(found[spec.name])} pairs, {len(hits)} of {len(rows)} share a prompt "
                "with the training pairs; 4 prompts are needed at least"
            )
        say(
            f"objective {spec.name}: {len(found[spec.name]):,} held-out pairs, {len(hits):,} left out: their prompts are trained on"
        )
    return found


def _rows(experiment: Experiment, source: str, tokenizer: Any) -> Sequence[Preference]:
    return experiment.data.read(source, tokenizer.all_special_tokens).require_usable().kept


def key(pairs: Mapping[str, Sequence[TokenPair]]) -> list[Any]:
    """What of the held-out inputs' content key are the objectives' pairs; nothing where there are none."""
    return [{name: pairs_hash(own) for name, own in pairs.items()}] if pairs else []


def needs(asked: Mapping[str, Judge], evaluation: Evaluation, content: Callable[[Mapping[str, Any]], Any]) -> str:
    """Content key of the objectives: their names and values, and the code and files of their judges."""
    told = {name: judge_key(judge, content) for name, judge in asked.items()}
    return store.digest(list(evaluation.objectives.items()), told)


def judge_key(judge: Judge, content: Callable[[Mapping[str, Any]], Any]) -> str:
    """Content key of a judge: code, the settings that decide, the files that these name, and of one that compares how it is asked."""
    plugin, arguments = judge[0], judge[0].deciding(judge[1])
    asked = [] if plugin.declared["pointwise"] else [sources.code_hash(Path(verdicts.__file__))]
    return store.digest(plugin.name, plugin.code_hash, arguments, content(arguments), *asked)


def file_of(folder: Path, name: str) -> Path:
    """Where the pairs of an objective lie among the held-out inputs."""
    return folder / f"objective-{name}.parquet"


def held_out(
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
            file = file_of(folder, name)
            found[name] = Aim(pairs=once((file.name, store.file_hash(file)), partial(read_pairs, file)))
            continue
        plugin, arguments = asked[name]
        call, identity = partial(plugin.function, **arguments), judge_key(asked[name], content)
        found[name] = (
            Aim(judge=call, key=identity) if plugin.declared["pointwise"] else Aim(pairwise=call, key=identity)
        )
    return found
