"""What an experiment is made of: model, pairs and prompts, read, checked and tokenised."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpobench.artifacts.files import building, folder_hash
from dpobench.data.check import DataReport
from dpobench.data.files import load
from dpobench.data.prompts import Prompt
from dpobench.data.rows import Preference, prompt_id
from dpobench.data.settings import Data
from dpobench.data.split import hold_out, overlaps, question
from dpobench.data.tokenise import TokenReport, tokenise, tokenise_prompt
from dpobench.data.tokens import TokenPair
from dpobench.errors import BadRow, UserError
from dpobench.evaluation.objectives import read_objectives
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import Experiment
from dpobench.models.checkpoint import load_tokenizer, model_hash, resolve


def objective_pairs(
    experiment: Experiment, tokenizer: Any, train: Sequence[Preference], say: Callable[[str], None]
) -> dict[str, list[TokenPair]]:
    """Held-out pairs of the objectives that are data sets, without those whose prompt was trained on.

    Raises:
        UserError: a file cannot be read, or nothing of it is left.
    """
    found = {}
    asked = [question(row.prompt) for row in train]
    for spec in read_objectives(experiment.evaluation.objectives, judges.names()):
        if not spec.source:
            continue
        rows = _objective_rows(experiment, spec.source, tokenizer)
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


def _objective_rows(experiment: Experiment, source: str, tokenizer: Any) -> Sequence[Preference]:
    return experiment.data.read(source, tokenizer.all_special_tokens).require_usable().kept


Say = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """What an experiment is made of, read, checked and tokenised; no model has run yet.

    Args:
        model: folder of the start policy.
        model_hash: its content key.
        train: training pairs.
        heldout: held-out pairs.
        prompts: held-out prompts.
        evaluation: how to score, local tasks included.
        note: counts and findings, for plan and report.
        asked: prompts of the training pairs, each once, in their order.
        objectives: held-out pairs of the aims that are data sets.
    """

    model: Path
    model_hash: str
    train: Sequence[TokenPair]
    heldout: Sequence[TokenPair]
    prompts: Sequence[Prompt]
    evaluation: Evaluation
    note: Mapping[str, Any]
    asked: Sequence[Prompt] = ()
    objectives: Mapping[str, Sequence[TokenPair]] = field(default_factory=dict)


def gather(experiment: Experiment, out: Path, cache: Path, say: Say = lambda line: None) -> Inputs:
    """Read and check everything an experiment needs.

    Args:
        experiment: what was asked for.
        out: its folder.
        cache: where an embedded default is kept between experiments.
        say: shows a line to the user.

    Raises:
        UserError: model, data or settings cannot be used; nothing has been trained yet.
    """
    if experiment.world:
        experiment = _with_world(experiment, out, cache, say)
    if experiment.model is None or experiment.data.source is None:
        missing = "--model" if experiment.model is None else "--data"
        raise UserError(f"{missing} is missing: give --model and --data together, or neither for the embedded default")
    model = resolve(experiment.model)
    tokenizer = load_tokenizer(model)
    _check_context(model, experiment)
    train, heldout, note = _rows(experiment.data, experiment.evaluation, tokenizer, say)
    tokens, report = _tokens(train, tokenizer, experiment)
    note["tokens"] = report.to_json()
    for line in report.lines():
        say(line)
    held, report = _tokens(heldout, tokenizer, experiment)
    note["heldout_tokens"] = report.to_json()
    if len(tokens) < experiment.recipe.batch:
        raise UserError(
            f"recipe.batch = {experiment.recipe.batch}, but there are {len(tokens)} training pairs; choose a smaller batch"
        )
    prompts = _prompts(experiment, heldout, tokenizer)
    if experiment.data.prompts is not None:
        prompts, note["prompts_overlap"] = _without_overlap(prompts, train)
        if note["prompts_overlap"]:
            say(f"{note['prompts_overlap']} held-out prompts left out: they are training prompts too")
    note["prompts"] = _split_counts(prompts)
    say(f"{len(tokens):,} training pairs, {len(held):,} held-out pairs, {len(prompts):,} held-out prompts")
    asked, aimed = _asked(train, tokens), objective_pairs(experiment, tokenizer, train, say)
    return Inputs(model, model_hash(model), tokens, held, prompts, experiment.evaluation, note, asked, aimed)


def _asked(rows: Sequence[Preference], tokens: Sequence[TokenPair]) -> list[Prompt]:
    ids = {pair.id: tuple(pair.prompt.tolist()) for pair in tokens}
    found: dict[str, Prompt] = {}
    for row in rows:
        if row.id in ids:
            found.setdefault(row.prompt_id, Prompt(row.prompt_id, tuple(row.prompt), ids[row.id]))
    return list(found.values())


def gather_heldout(experiment: Experiment, say: Say = lambda line: None) -> Inputs:
    """Read what scoring alone needs: all rows of `data.source` are held out, nothing is trained.

    Raises:
        UserError: model, data or settings cannot be used.
    """
    assert experiment.model is not None
    assert experiment.data.source is not None
    model = resolve(experiment.model)
    tokenizer = load_tokenizer(model)
    report = _read(experiment.data.source, experiment.data, tokenizer, say)
    rows = sorted(report.kept, key=lambda row: row.id)[: experiment.evaluation.heldout_pairs]
    held, tokens = _tokens(rows, tokenizer, experiment)
    note = {"heldout": _counts(report), "heldout_tokens": tokens.to_json()}
    prompts = _prompts(experiment, rows, tokenizer)
    note["prompts"] = _split_counts(prompts)
    aimed = objective_pairs(experiment, tokenizer, (), say)
    return Inputs(model, model_hash(model), (), held, prompts, experiment.evaluation, note, objectives=aimed)


def _tokens(rows: Sequence[Preference], tokenizer: Any, experiment: Experiment) -> tuple[list[TokenPair], TokenReport]:
    return tokenise(
        rows,
        tokenizer,
        template=experiment.data.template,
        max_tokens=experiment.recipe.max_tokens,
        max_prompt_tokens=experiment.recipe.max_prompt_tokens,
        most_lost=experiment.data.most_lost,
    )


def _split_counts(prompts: Sequence[Prompt]) -> dict[str, int]:
    """How many prompts choose and how many are reported; at least two each."""
    counts = {split: sum(prompt.split == split for prompt in prompts) for split in ("selection", "test")}
    if min(counts.values()) < 2:
        raise UserError(
            f"{len(prompts)} held-out prompts fall on {counts}; at least 2 are needed on each: hold out more"
        )
    return counts


def _without_overlap(prompts: Sequence[Prompt], train: Sequence[Preference]) -> tuple[list[Prompt], int]:
    texts = [question(prompt.messages) for prompt in prompts]
    hits = {hit.heldout for hit in overlaps(texts, [question(row.prompt) for row in train])}
    return [prompt for index, prompt in enumerate(prompts) if index not in hits], len(hits)


def _with_world(experiment: Experiment, out: Path, cache: Path, say: Say) -> Experiment:
    """Build the embedded default, or find it in the cache, and lay its files into the experiment's folder."""
    from dpobench.synthetic import embedded

    say("embedded default: building its world and base model, or finding them in the cache")
    built = embedded.build(experiment.world, cache)
    world = out / "world"
    if not (world / "world.json").is_file() or folder_hash(world) != folder_hash(built):
        with building(world) as part:
            shutil.copytree(built, part, dirs_exist_ok=True)
    data = {
        "source": str(world / "train.jsonl"),
        "heldout": str(world / "heldout.jsonl"),
        "prompts": str(world / "prompts.jsonl"),
    }
    folders = (str(world / "tasks"), *experiment.evaluation.task_folders)
    return experiment.model_copy(
        update={
            "model": str(world / "model"),
            "data": experiment.data.model_copy(update=data),
            "evaluation": experiment.evaluation.model_copy(update={"task_folders": folders}),
        }
    )


def _check_context(model: Path, experiment: Experiment) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    recipe, answer = experiment.recipe, experiment.evaluation.max_new_tokens
    if limit is not None and recipe.max_tokens > limit:
        raise UserError(f"recipe.max_tokens = {recipe.max_tokens}, but the model reads {limit} at most; lower it")
    if limit is not None and recipe.max_prompt_tokens + answer > limit:
        raise UserError(
            f"recipe.max_prompt_tokens = {recipe.max_prompt_tokens} and evaluation.max_new_tokens = {answer}, "
            f"but the model reads {limit} together at most; lower one of them"
        )


def _read(source: str, data: Data, tokenizer: Any, say: Say) -> DataReport:
    report = data.read(source, tokenizer.all_special_tokens)
    for line in report.lines():
        say(line)
    return report.require_usable()


def _counts(report: DataReport) -> dict[str, Any]:
    """What the report of an experiment says of a data set: counts, one line a problem."""
    problems = {problem.kind: f"{problem.count:,} rows, action: {problem.action}" for problem in report.problems}
    told = {key: value for key, value in report.to_json().items() if key not in ("columns", "ignored", "problems")}
    return told | {"problems": problems or "none"}


def _rows(
    data: Data, evaluation: Evaluation, tokenizer: Any, say: Say
) -> tuple[list[Preference], list[Preference], dict[str, Any]]:
    """Training and held-out rows, disjoint in their prompts."""
    assert data.source is not None
    report = _read(data.source, data, tokenizer, say)
    note: dict[str, Any] = {"train": _counts(report)}
    if data.heldout is None:
        train, heldout = hold_out(report.kept, data.heldout_share, seed=0)
    else:
        held = _read(data.heldout, data, tokenizer, say)
        note["heldout"] = _counts(held)
        train = list(report.kept)
        hits = {
            hit.heldout
            for hit in overlaps([question(row.prompt) for row in held.kept], [question(row.prompt) for row in train])
        }
        heldout = [row for index, row in enumerate(held.kept) if index not in hits]
        note["overlap"] = len(hits)
        if hits:
            say(f"{len(hits)} held-out rows left out: their prompts are training prompts too")
    by_hash = sorted(train, key=lambda row: row.id) if data.limit else train
    kept = sorted(heldout, key=lambda row: row.id)[: evaluation.heldout_pairs]
    return by_hash[: data.limit], kept, note


def _prompts(experiment: Experiment, heldout: Sequence[Preference], tokenizer: Any) -> list[Prompt]:
    """Held-out prompts: those of a file, or those of the held-out pairs; each once, short enough, the first by hash."""
    found: dict[str, tuple[tuple[Any, ...], str | None]] = {}
    if experiment.data.prompts is not None:
        raw, name = load(experiment.data.prompts)
        for number, asked in enumerate(raw):
            messages = _messages(asked.get("prompt"), name, number)
            found.setdefault(prompt_id(messages), (messages, None))
    else:
        for row in heldout:
            found.setdefault(row.prompt_id, (row.prompt, row.chosen))
    prompts = []
    for identity in sorted(found):
        messages, chosen = found[identity]
        ids = tokenise_prompt(messages, tokenizer, experiment.data.template)
        if len(ids) <= experiment.recipe.max_prompt_tokens:
            prompts.append(Prompt(identity, tuple(messages), tuple(ids), chosen))
    return prompts[: experiment.evaluation.prompts]


def _messages(prompt: Any, name: str, row: int) -> tuple[Any, ...]:
    if isinstance(prompt, str) and prompt.strip():
        return ({"role": "user", "content": prompt},)
    turns = prompt if isinstance(prompt, list) else []
    if not turns or not all(isinstance(turn, Mapping) and isinstance(turn.get("content"), str) for turn in turns):
        raise BadRow(name, row, "prompt", f"is {prompt!r:.60}", "a text or a list of messages is expected")
    if turns[-1].get("role") != "user":
        raise BadRow(
            name, row, "prompt", f"ends with role {turns[-1].get('role')!r}", "the last message must be the user's"
        )
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
