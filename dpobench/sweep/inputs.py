"""What an experiment is made of: model, pairs and prompts, read, checked and tokenised."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from dpobench.artifacts.files import building, folder_hash
from dpobench.data.check import DataReport, LengthBiasRecord
from dpobench.data.prompts import Prompt
from dpobench.data.reading import read_dialogues
from dpobench.data.rows import Message, Preference, prompt_id
from dpobench.data.settings import Data
from dpobench.data.split import hold_out, overlapping
from dpobench.data.template import Tokenizer
from dpobench.data.tokenise import TokenRecord, TokenReport, tokenise, tokenise_prompt
from dpobench.data.tokens import TokenPair
from dpobench.errors import UserError
from dpobench.evaluation.objectives import read_objectives
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import Experiment
from dpobench.models.checkpoint import load_tokenizer, model_hash, resolve
from dpobench.synthetic import embedded
from dpobench.training.run import Recipe

Say = Callable[[str], None]


class SourceCounts(TypedDict):
    """What was counted while one data set was read, as plan and report hold it: of each problem one line."""

    name: str
    layout: str
    read: int
    prompts: int
    length: LengthBiasRecord | None
    kept: int
    problems: dict[str, str] | Literal["none"]


class DataCounts(TypedDict, total=False):
    """What was counted while the data of an experiment were read; a data set that was not read is left out.

    `overlap` and `prompts_overlap` are numbers of held-out rows and of held-out prompts that were left out because they are training
    prompts too; `prompts` are the numbers of prompts on each side of the split.
    """

    train: SourceCounts
    heldout: SourceCounts
    overlap: int
    tokens: TokenRecord
    heldout_tokens: TokenRecord
    prompts_overlap: int
    prompts: dict[str, int]


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
        counts: what was counted while the data were read, for plan and report.
        training_prompts: prompts of the training pairs, each once, in their order.
        objectives: held-out pairs of the objectives that are data sets.
    """

    model: Path
    model_hash: str
    train: Sequence[TokenPair]
    heldout: Sequence[TokenPair]
    prompts: Sequence[Prompt]
    evaluation: Evaluation
    counts: DataCounts
    training_prompts: Sequence[Prompt] = ()
    objectives: Mapping[str, Sequence[TokenPair]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Reader:
    """Reads and tokenises rows as the settings say.

    Args:
        data: where rows come from and how they are read.
        recipe: limits of the sequences.
        evaluation: how many held-out pairs and prompts there are at most.
        tokenizer: of the start policy.
        say: shows a line to the user.
    """

    data: Data
    recipe: Recipe
    evaluation: Evaluation
    tokenizer: Tokenizer
    say: Say

    def read(self, source: str) -> DataReport:
        """The usable rows of a source."""
        report = self.data.read(source, self.tokenizer.all_special_tokens)
        for line in report.lines():
            self.say(line)
        return report.require_usable()

    def tokenised(self, rows: Sequence[Preference]) -> tuple[list[TokenPair], TokenReport]:
        """Rows as token ids, and what was cut or left out."""
        return tokenise(
            rows,
            self.tokenizer,
            template=self.data.template,
            max_tokens=self.recipe.max_tokens,
            max_prompt_tokens=self.recipe.max_prompt_tokens,
            most_lost=self.data.most_lost,
        )

    def divided_rows(self) -> tuple[list[Preference], list[Preference], DataCounts]:
        """Training and held-out rows, disjoint in their prompts, and what was counted."""
        data = self.data
        assert data.source is not None
        report = self.read(data.source)
        counts: DataCounts = {"train": _source_counts(report)}
        if data.heldout is None:
            train, heldout = hold_out(report.rows, data.heldout_share, seed=0)
        else:
            train = list(report.rows)
            heldout_report = self.read(data.heldout)
            counts["heldout"] = _source_counts(heldout_report)
            hits = overlapping((row.prompt for row in heldout_report.rows), (row.prompt for row in train))
            heldout = [row for index, row in enumerate(heldout_report.rows) if index not in hits]
            counts["overlap"] = len(hits)
            if hits:
                self.say(f"{len(hits)} held-out rows left out: their prompts are training prompts too")
        if data.limit:
            train = sorted(train, key=lambda row: row.id)[: data.limit]
        return train, sorted(heldout, key=lambda row: row.id)[: self.evaluation.heldout_pairs], counts

    def prompts(self, heldout: Sequence[Preference]) -> list[Prompt]:
        """Held-out prompts: those of a file, or those of the held-out pairs; each once, short enough, the first by hash."""
        dialogues: dict[str, tuple[tuple[Message, ...], str | None]] = {}
        if self.data.prompts is not None:
            for messages in read_dialogues(self.data.prompts):
                dialogues.setdefault(prompt_id(messages), (messages, None))
        else:
            for row in heldout:
                dialogues.setdefault(row.prompt_id, (row.prompt, row.chosen))
        prompts = []
        for identity, (messages, chosen) in sorted(dialogues.items()):
            token_ids = tokenise_prompt(messages, self.tokenizer, self.data.template)
            if len(token_ids) <= self.recipe.max_prompt_tokens:
                prompts.append(Prompt(identity, messages, token_ids, chosen))
        return prompts[: self.evaluation.prompts]

    def objective_pairs(self, train: Sequence[Preference]) -> dict[str, list[TokenPair]]:
        """Held-out pairs of the objectives that are data sets, without those whose prompt is trained on.

        Args:
            train: training rows; none where nothing is trained.

        Raises:
            UserError: a file cannot be read, or fewer than four prompts of it are left.
        """
        pairs_of = {}
        for spec in read_objectives(self.evaluation.objectives, judges.names()):
            if not spec.source:
                continue
            rows = self.data.read(spec.source, self.tokenizer.all_special_tokens).require_usable().rows
            hits = overlapping((row.prompt for row in rows), (row.prompt for row in train))
            clean = sorted((row for index, row in enumerate(rows) if index not in hits), key=lambda row: row.id)
            pairs, _ = self.tokenised(clean[: self.evaluation.heldout_pairs])
            if len({pair.prompt.tobytes() for pair in pairs}) < 4:
                raise UserError(
                    f"objective {spec.name}: {spec.source} leaves {len(pairs)} pairs, {len(hits)} of {len(rows)} share a prompt "
                    "with the training pairs; 4 prompts are needed at least"
                )
            self.say(
                f"objective {spec.name}: {len(pairs):,} held-out pairs, {len(hits):,} left out: their prompts are trained on"
            )
            pairs_of[spec.name] = pairs
        return pairs_of


def gather(experiment: Experiment, out: Path, cache: Path, say: Say = lambda line: None) -> Inputs:
    """Read and check everything an experiment needs.

    Args:
        experiment: what is to be run.
        out: its folder.
        cache: where embedded defaults are stored between experiments.
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
    _check_context(model, experiment.recipe, experiment.evaluation.max_new_tokens)
    reader = _Reader(experiment.data, experiment.recipe, experiment.evaluation, load_tokenizer(model), say)
    train, heldout, counts = reader.divided_rows()
    train_pairs, report = reader.tokenised(train)
    counts["tokens"] = report.to_json()
    for line in report.lines():
        say(line)
    heldout_pairs, report = reader.tokenised(heldout)
    counts["heldout_tokens"] = report.to_json()
    if len(train_pairs) < experiment.recipe.batch:
        raise UserError(
            f"recipe.batch = {experiment.recipe.batch}, but there are {len(train_pairs)} training pairs; choose a smaller batch"
        )
    prompts = reader.prompts(heldout)
    if experiment.data.prompts is not None:
        hits = overlapping((prompt.messages for prompt in prompts), (row.prompt for row in train))
        prompts = [prompt for index, prompt in enumerate(prompts) if index not in hits]
        counts["prompts_overlap"] = len(hits)
        if hits:
            say(f"{len(hits)} held-out prompts left out: they are training prompts too")
    counts["prompts"] = _split_counts(prompts)
    say(
        f"{len(train_pairs):,} training pairs, {len(heldout_pairs):,} held-out pairs, {len(prompts):,} held-out prompts"
    )
    return Inputs(
        model,
        model_hash(model),
        train_pairs,
        heldout_pairs,
        prompts,
        experiment.evaluation,
        counts,
        _training_prompts(train, train_pairs),
        reader.objective_pairs(train),
    )


def gather_heldout(experiment: Experiment, say: Say = lambda line: None) -> Inputs:
    """Read what scoring alone needs: all rows of `data.source` are held out, nothing is trained.

    Args:
        experiment: what is to be scored; its `model` and `data.source` are given.
        say: shows a line to the user.

    Raises:
        UserError: model, data or settings cannot be used.
    """
    assert experiment.model is not None
    assert experiment.data.source is not None
    model = resolve(experiment.model)
    reader = _Reader(experiment.data, experiment.recipe, experiment.evaluation, load_tokenizer(model), say)
    report = reader.read(experiment.data.source)
    rows = sorted(report.rows, key=lambda row: row.id)[: experiment.evaluation.heldout_pairs]
    pairs, token_report = reader.tokenised(rows)
    prompts = reader.prompts(rows)
    counts: DataCounts = {
        "heldout": _source_counts(report),
        "heldout_tokens": token_report.to_json(),
        "prompts": _split_counts(prompts),
    }
    objectives = reader.objective_pairs(())
    return Inputs(model, model_hash(model), (), pairs, prompts, experiment.evaluation, counts, objectives=objectives)


def _training_prompts(rows: Sequence[Preference], pairs: Sequence[TokenPair]) -> list[Prompt]:
    """Prompts of the rows that became pairs, each once."""
    token_ids = {pair.id: tuple(pair.prompt.tolist()) for pair in pairs}
    prompts: dict[str, Prompt] = {}
    for row in rows:
        if row.id in token_ids:
            prompts.setdefault(row.prompt_id, Prompt(row.prompt_id, row.prompt, token_ids[row.id]))
    return list(prompts.values())


def _split_counts(prompts: Sequence[Prompt]) -> dict[str, int]:
    """How many prompts are on each side of the split, at least two each."""
    counts = {split: sum(prompt.split == split for prompt in prompts) for split in ("selection", "test")}
    if min(counts.values()) < 2:
        raise UserError(
            f"{len(prompts)} held-out prompts fall on {counts}; at least 2 are needed on each: hold out more"
        )
    return counts


def _with_world(experiment: Experiment, out: Path, cache: Path, say: Say) -> Experiment:
    """Build the embedded default, or take it from the cache, and copy its files into the experiment's folder."""
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


def _check_context(model: Path, recipe: Recipe, answer: int) -> None:
    """Refuse sequences longer than the model reads; `answer` is the most tokens of a sampled answer."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and recipe.max_tokens > limit:
        raise UserError(f"recipe.max_tokens = {recipe.max_tokens}, but the model reads {limit} at most; lower it")
    if limit is not None and recipe.max_prompt_tokens + answer > limit:
        raise UserError(
            f"recipe.max_prompt_tokens = {recipe.max_prompt_tokens} and evaluation.max_new_tokens = {answer}, "
            f"but the model reads {limit} together at most; lower one of them"
        )


def _source_counts(report: DataReport) -> SourceCounts:
    record = report.to_json()
    return {
        "name": record["name"],
        "layout": record["layout"],
        "read": record["read"],
        "prompts": record["prompts"],
        "length": record["length"],
        "kept": record["kept"],
        # The report of the experiment reads these lines.
        "problems": {p.kind: f"{p.count:,} rows, action: {p.action}" for p in report.problems} or "none",
    }
