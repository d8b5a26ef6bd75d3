"""A checkpoint to score: its folder read, its run recognised where it is one of ours, and checked against the reference."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dpobench.artifacts import provenance
from dpobench.artifacts.files import digest, file_hash, read_json
from dpobench.artifacts.records import CheckpointSource, PlanRecord, RunRecord, Values, json_values
from dpobench.artifacts.scores import WITHIN
from dpobench.errors import UserError
from dpobench.losses.registry import variants
from dpobench.models import adapters
from dpobench.models.checkpoint import load_tokenizer, locate, model_hash, resolve, weights_hash
from dpobench.sweep.checkpoint_specs import RESERVED, CheckpointSpec, expanded
from dpobench.sweep.inputs import Inputs

# What a checkpoint takes over from the record of the run that left it.
_TAKEN = ("strength", "beta", "unit", "learning_rate", "recipe", "harness", "checks", "seconds", "tokens", "steps")
ELSEWHERE, OTHER_START, OTHER_BASE = "trained elsewhere", "trained from another start", "adapter of another base"


@dataclass(frozen=True)
class ExternalCheckpoint:
    """A checkpoint that takes part.

    Args:
        record: what `run.json` says of it, but for the key of its scores.
        source: where it came from.
        content: content key of its weights.
        loss: what evaluators may know of the loss it was trained with; empty where that is not registered as it was then.
    """

    record: RunRecord
    source: CheckpointSource
    content: str
    loss: Mapping[str, object]

    @property
    def folder(self) -> Path:
        """Of the model or adapter."""
        return Path(self.source.folder)

    @property
    def base(self) -> Path | None:
        """Of the adapter's base."""
        return None if self.source.base is None else Path(self.source.base)


def read_checkpoint(spec: CheckpointSpec, reference: str, inputs: Inputs, device: str) -> ExternalCheckpoint:
    """Read a checkpoint's folder and check that it can be compared with the reference.

    Args:
        spec: the checkpoint as the command line names it.
        reference: folder or hub name of the reference, as the user named it.
        inputs: the reference's folder and content key.
        device: where it will be scored.

    Raises:
        UserError: there is no such checkpoint, or it has another vocabulary than the reference.
    """
    folder, ours = _locate(spec.place)
    base = _base(folder, reference, inputs) if adapters.is_adapter(folder) else None
    _check_vocabulary(folder, base or folder, inputs.model)
    # What a hub name leads to is called by its commit.
    last = folder.name if expanded(spec.place).is_dir() else Path(spec.place).name
    name = spec.method or (ours.record.variant if ours else re.sub(r"[^A-Za-z0-9._=+-]", "-", last).lstrip(".-"))
    if not name or name == RESERVED:
        raise UserError(f"checkpoint {spec.place!r}: {name!r} can name no row of a table; write NAME={spec.place}")
    content = model_hash(folder) if base is None else digest(_adapter_hash(folder), _weights(base))
    flags = [flag for flag in ours.record.flags if flag != ELSEWHERE] if ours else [ELSEWHERE]
    trained_from = ours.record.provenance.model_hash if ours and ours.record.provenance else ""
    if trained_from not in ("", inputs.model_hash):
        flags.append(OTHER_START)
    if base is not None and _weights(base) != _weights(inputs.model):
        flags.append(OTHER_BASE)
    source = CheckpointSource(folder=str(folder), base=None if base is None else str(base))
    if ours:
        source = source.model_copy(
            update={
                "log": str(folder.parent / "log.jsonl"),
                "trained_with": ours.record.variant,
                # Runs that were given a name of their own may have had several losses.
                "states_probability": ours.states_probability and not spec.method,
                "baseline": ours.is_baseline and not spec.method,
                "given": ours.given,
            }
        )
    data_hash = ours.record.provenance.data_hash if ours and ours.record.provenance else "unknown"
    record = RunRecord.model_validate(
        {name: getattr(ours.record, name) for name in _TAKEN if ours}
        | {
            "id": f"{name.replace(':', '_')}-{content}",
            "variant": name,
            "seed": ours.record.seed if ours else spec.number,
            "params": (ours.record.params | ours.changed) if ours else {},
            "status": "done",
            "flags": tuple(flags),
            "provenance": provenance.environment(device, "float32", model_hash=content, data_hash=data_hash),
            "source": source,
        }
    )
    return ExternalCheckpoint(record, source, content, _known_loss(ours.record) if ours else {})


@dataclass(frozen=True)
class OurRun:
    """What is known of a checkpoint that one of our runs left.

    Args:
        record: of the run.
        changed: what a study changed, and the step of a checkpoint within a training: hyper-parameters, to a table.
        states_probability: whether the plan names its loss among those that state a probability.
        is_baseline: whether the plan names its loss among the baselines.
        given: what of the data its loss read besides prompts and answers.
    """

    record: RunRecord
    changed: Values
    states_probability: bool = False
    is_baseline: bool = False
    given: tuple[str, ...] = ()


def _locate(name: str) -> tuple[Path, OurRun | None]:
    """Folder of a checkpoint, and its run where it is one of ours."""
    folder = locate(name)
    if _is_our_run(folder) and not (folder / "config.json").is_file():
        folder = _checkpoint_of(folder)
    folder = folder.resolve() if adapters.is_adapter(folder) else resolve(str(folder))
    # A checkpoint within a training of ours lies two folders further down, and is named after its step.
    is_within = folder.parent.parent.name == WITHIN
    run = folder.parents[2 if is_within else 0]
    if folder.name != "checkpoint" or not _is_our_run(run):
        return folder, None
    record = RunRecord.read(run)
    changed = json_values(record.condition.changed)
    if is_within:
        step = int(folder.parent.name)
        record, changed = record.updated(steps=step), changed | {"step": step}
    experiment = run.parents[1]
    if not PlanRecord.lies_in(experiment):
        return folder, OurRun(record, changed)
    plan, loss = PlanRecord.read(experiment), record.variant
    return folder, OurRun(
        record, changed, loss in plan.states_probability, loss in plan.baselines, plan.given.get(loss, ())
    )


def _checkpoint_of(run: Path) -> Path:
    """Where one of our runs left its policy."""
    if not (run / "checkpoint").is_dir():
        record = RunRecord.read(run)
        raise UserError(f"{run}: this run left no checkpoint ({record.status}: {record.reason}); leave it out")
    return run / "checkpoint"


def _is_our_run(folder: Path) -> bool:
    """Whether a folder holds a record of ours, in whatever format; other tools have files called `run.json`, too."""
    if not RunRecord.lies_in(folder):
        return False
    content = read_json(folder / RunRecord.FILE)
    return isinstance(content, dict) and {"variant", "params", "seed", "provenance"} <= set(content)


def _known_loss(record: RunRecord) -> dict[str, object]:
    """What evaluators may know of a run's loss: nothing where it is not registered with the code it had then."""
    try:
        if variants.get(record.variant).code_hash != record.code:
            return {}
    except UserError:
        return {}
    return {name: getattr(record, name) for name in ("variant", "params", "strength", "unit", "seed")}


def _base(folder: Path, reference: str, inputs: Inputs) -> Path:
    """The model that an adapter was trained on: the reference where it is that, else the one that the adapter names."""
    adapter = adapters.read(folder)
    adapters.check(adapter)
    if adapter.base == reference and adapter.revision is None:
        return inputs.model
    try:
        base = resolve(adapter.base, adapter.revision)
    except UserError as error:
        raise UserError(
            f"adapter {folder}: its base is not to be had: {error}. Where the reference is its base, write {reference} under "
            f"base_model_name_or_path in its {adapters.CONFIG}"
        ) from error
    return inputs.model if _weights(base) == _weights(inputs.model) else base


@lru_cache(maxsize=8)
def _weights(folder: Path) -> str:
    """Read once a command: adapters of one method share their base."""
    return weights_hash(folder)


def _adapter_hash(folder: Path) -> str:
    return digest([file_hash(folder / name) for name in (adapters.CONFIG, adapters.WEIGHTS)])


def _check_vocabulary(folder: Path, base: Path, reference: Path) -> None:
    """Refuse other words, or another number of logits, than the reference's."""
    from transformers import AutoConfig

    # A folder of an adapter may hold no tokenizer.
    place = folder if any(folder.glob("tokenizer*")) or base == folder else base
    vocabulary, expected = (load_tokenizer(one).get_vocab() for one in (place, reference))
    if vocabulary != expected:
        word = min(word for word in {*vocabulary, *expected} if vocabulary.get(word) != expected.get(word))
        raise UserError(
            f"{folder}: its tokenizer differs from the reference's ({len(vocabulary):,} and {len(expected):,} words; {word!r} is number "
            f"{vocabulary.get(word)} and {expected.get(word)}); only models of one vocabulary can be compared"
        )
    sizes = [
        AutoConfig.from_pretrained(one, local_files_only=True).get_text_config().vocab_size for one in (base, reference)
    ]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{folder}: its embedding has {sizes[0]:,} rows, the reference's {sizes[1]:,}; only models of one vocabulary can be "
            "compared: cut or pad one of them with resize_token_embeddings"
        )
