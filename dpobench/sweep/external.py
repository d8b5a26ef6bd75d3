"""Checkpoints trained elsewhere, scored like our own and put into the same report."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rich.console import Console

from dpobench.artifacts import provenance
from dpobench.artifacts.files import (
    MANIFEST,
    digest,
    file_hash,
    locked,
    read_json,
    seal,
    sealed,
    sweep_parts,
    verify,
    write_bytes,
)
from dpobench.artifacts.records import CheckpointSource, PlannedRun, PlanRecord, RunRecord, Values, json_values
from dpobench.artifacts.scores import WITHIN
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.plan import Plan, plan
from dpobench.evaluation.score import score
from dpobench.experiment.config import Experiment
from dpobench.experiment.validate import validate
from dpobench.losses.registry import variants
from dpobench.models import adapters
from dpobench.models.checkpoint import (
    Checkpoint,
    check_weights,
    load_tokenizer,
    locate,
    model_hash,
    resolve,
    weights_hash,
)
from dpobench.sweep.checkpoint_specs import RESERVED, CheckpointSpec, expanded, read_specs
from dpobench.sweep.inputs import Inputs, Say, gather_heldout
from dpobench.sweep.job import keep_replies
from dpobench.sweep.plan import Machine, experiment_record, left_out
from dpobench.sweep.prepare import heldout_folder
from dpobench.sweep.run import finish
from dpobench.sweep.workers import quiet

# What a checkpoint takes over from the record of the run that left it.
_TAKEN = ("strength", "beta", "unit", "learning_rate", "recipe", "harness", "checks", "seconds", "tokens", "steps")
ELSEWHERE, OTHER_START, OTHER_BASE = "trained elsewhere", "trained from another start", "adapter of another base"


def evaluate(checkpoints: Sequence[str], experiment: Experiment, out: Path, where: Machine, console: Console) -> int:
    """Score checkpoints against their reference and write the report; again: only what is missing.

    Args:
        checkpoints: what `read_specs` reads: folders or hub names of models, of `peft` adapters, or of our runs.
        experiment: model (the reference), data (all held out) and evaluation; no variants. `control` is one of the names.
        out: folder of scores and report.
        where: device and threads.
        console: where progress is printed.

    Returns: exit status.

    Raises:
        UserError: a checkpoint cannot be read or has another vocabulary than the reference, two are one, no such control; nothing
            has been scored then.
    """
    validate(experiment, trains=False)
    keep_replies(where.cache, out)
    quiet(where.threads)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    def planned(key: str) -> Plan:
        return plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout=key)

    specs = read_specs(checkpoints)
    with locked(out):
        _refuse_experiment(out)
        sweep_parts(out)
        inputs = gather_heldout(experiment, say)
        entered = [_enter(spec, experiment, inputs, where) for spec in specs]
        records = [one.record for one in entered]
        _refuse_twins(entered)
        _refuse_mixed(specs, entered)
        control = _control(experiment, entered)
        for one in entered:
            if not _scored(out / "runs" / one.record.id):
                check_weights(one.folder)
            for flag in one.record.flags:
                if flag in (OTHER_START, OTHER_BASE):
                    say(f"warning: {one.record.variant} ({one.folder}): {flag} than the reference")
        heldout = heldout_folder(inputs, planned, out, where.device, say)
        scoring = planned(heldout.name)
        for one in entered:
            _score(one, inputs, heldout, scoring, out, where, say)
        names = list(dict.fromkeys(record.variant for record in records))
        seeds = sorted({record.seed for record in records})
        experiment_record(experiment, out.name, control, names, seeds).write(out)
        _plan_record(control, entered, scoring, inputs, heldout).write(out)
        return finish(out, {record.id: "done" for record in records}, console)


@dataclass(frozen=True)
class Entered:
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


def _refuse_mixed(specs: Sequence[CheckpointSpec], entered: Sequence[Entered]) -> None:
    """Several folders of one given name are seeds of one method: our runs of other settings are none.

    Raises:
        UserError: two of them had another loss or other settings.
    """
    first: dict[str, tuple[str, str]] = {}
    for spec, one in zip(specs, entered, strict=True):
        record, loss = one.record, one.source.trained_with
        if not spec.method or loss is None:
            continue
        params = [f"{name}={value}" for name, value in record.params.items()]
        settings = ", ".join([loss, *params, f"learning rate {record.learning_rate}"])
        place, before = first.setdefault(spec.method, (spec.place, settings))
        if before != settings:
            raise UserError(
                f"{spec.method}: {place} ({before}) and {spec.place} ({settings}) are no seeds of one method; give "
                "them names of their own, or leave the names out"
            )


def _refuse_experiment(out: Path) -> None:
    """The plan of trained runs must not be lost to a list of checkpoints."""
    if PlanRecord.lies_in(out) and PlanRecord.read(out).training:
        raise UserError(f"{out} holds an experiment that was trained there; choose another --out")


def _enter(spec: CheckpointSpec, experiment: Experiment, inputs: Inputs, where: Machine) -> Entered:
    """Read a checkpoint's folder and check that it can be compared with the reference."""
    folder, ours = _locate(spec.place)
    base = _base(folder, experiment, inputs) if adapters.is_adapter(folder) else None
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
            "provenance": provenance.environment(where.device, "float32", model_hash=content, data_hash=data_hash),
            "source": source,
        }
    )
    return Entered(record, source, content, _known_loss(ours.record) if ours else {})


@dataclass(frozen=True)
class OurRun:
    """What is known of a checkpoint that one of our runs left.

    Args:
        record: of the run.
        changed: what a study changed, and the step of a checkpoint within a training: hyper-parameters, to a table.
        states_probability: whether the plan names its loss among those that state a probability.
        is_baseline: whether the plan names its loss among the baselines.
        given: what of the data its loss read beside prompts and answers.
    """

    record: RunRecord
    changed: Values
    states_probability: bool = False
    is_baseline: bool = False
    given: tuple[str, ...] = ()


def _locate(name: str) -> tuple[Path, OurRun | None]:
    """Folder of a checkpoint, and its run where it is one of ours."""
    folder = locate(name)
    if RunRecord.lies_in(folder) and not (folder / "config.json").is_file():
        folder = _checkpoint_of(folder)
    folder = folder.resolve() if adapters.is_adapter(folder) else resolve(str(folder))
    # A checkpoint within a training of ours lies two folders further down, and is named after its step.
    step = int(folder.parent.name) if folder.parent.parent.name == WITHIN else None
    run = folder.parents[0 if step is None else 2]
    if folder.name != "checkpoint" or not _is_our_run(run):
        return folder, None
    record = RunRecord.read(run)
    changed: Values = json_values(record.condition.changed)
    if step is not None:
        record, changed = record.updated(steps=step), changed | {"step": step}
    experiment = run.parents[1]
    if not PlanRecord.lies_in(experiment):
        return folder, OurRun(record, changed)
    known = PlanRecord.read(experiment)
    loss = record.variant
    return folder, OurRun(
        record, changed, loss in known.states_probability, loss in known.baselines, known.given.get(loss, ())
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


def _base(folder: Path, experiment: Experiment, inputs: Inputs) -> Path:
    """The model that an adapter was trained on: the reference where it is that, else what its own name leads to."""
    adapter = adapters.read(folder)
    adapters.check(adapter)
    if adapter.base == experiment.model and adapter.revision is None:
        return inputs.model
    try:
        base = resolve(adapter.base, adapter.revision)
    except UserError as error:
        raise UserError(
            f"adapter {folder}: its base is not to be had: {error}. Where the reference is its base, write {experiment.model} under "
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
    own, wanted = (load_tokenizer(one).get_vocab() for one in (place, reference))
    if own != wanted:
        word = min(word for word in {*own, *wanted} if own.get(word) != wanted.get(word))
        raise UserError(
            f"{folder}: its tokenizer differs from the reference's ({len(own):,} and {len(wanted):,} words; {word!r} is number "
            f"{own.get(word)} and {wanted.get(word)}); only models of one vocabulary can be compared"
        )
    sizes = [
        AutoConfig.from_pretrained(one, local_files_only=True).get_text_config().vocab_size for one in (base, reference)
    ]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{folder}: its embedding has {sizes[0]:,} rows, the reference's {sizes[1]:,}; only models of one vocabulary can be "
            "compared: cut or pad one of them with resize_token_embeddings"
        )


def _refuse_twins(entered: Sequence[Entered]) -> None:
    """Two rows of one method and seed, or one model entered twice, would be counted as independent."""
    cells: dict[str, str] = {}
    contents: dict[str, str] = {}
    for one in entered:
        record, place = one.record, one.source.folder
        if one.content in contents:
            raise UserError(f"{contents[one.content]} and {place} hold the same weights; leave one out")
        contents[one.content] = place
        cell = digest(record.variant, record.params, record.beta, record.learning_rate, record.seed)
        if cell in cells:
            raise UserError(
                f"{cells[cell]} and {place} are both {record.variant}, seed {record.seed}; tell them apart by NAME=FOLDER, or enter "
                f"them as seeds of one method: {record.variant}=FOLDER,FOLDER"
            )
        cells[cell] = place


def _control(experiment: Experiment, entered: Sequence[Entered]) -> str:
    names = list(dict.fromkeys(one.record.variant for one in entered))
    if experiment.control is not None and experiment.control not in names:
        raise UnknownName("checkpoint", experiment.control, names)
    candidates = [one.record.variant for one in entered if not one.source.baseline]
    return experiment.control or next(iter(candidates), names[0])


def _scored(folder: Path) -> bool:
    """Whether a folder was sealed; what is in it is compared with its manifest."""
    if not sealed(folder):
        return False
    verify(folder)
    return True


def _score(entered: Entered, inputs: Inputs, heldout: Path, planned: Plan, out: Path, where: Machine, say: Say) -> None:
    """Score one checkpoint; what lies there under the same settings is kept."""
    record, source = entered.record, entered.source
    folder = out / "runs" / record.id
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[str] = []

    def progress(part: str) -> None:
        if not parts:
            say(f"scoring {record.variant}, seed {record.seed} ({source.folder})")
        parts.append(part)
        say(f"  {part}")

    (folder / MANIFEST).unlink(missing_ok=True)
    checkpoint = Checkpoint(
        entered.folder,
        inputs.model,
        where.device,
        run=entered.loss,
        reference_hash=inputs.model_hash,
        base=entered.base,
    )
    score(checkpoint, folder, heldout, inputs.evaluation, planned, seed=record.seed, progress=progress)
    if source.log and Path(source.log).is_file():
        write_bytes(folder / "log.jsonl", Path(source.log).read_bytes())
    record.updated(scored_as=planned.key).write(folder)
    seal(folder)
    if not parts:
        say(f"{record.variant}, seed {record.seed}: scored before")


def _plan_record(control: str, entered: Sequence[Entered], planned: Plan, inputs: Inputs, heldout: Path) -> PlanRecord:
    shown = set(PlannedRun.model_fields)
    runs = [PlannedRun(**{name: value for name, value in one.record if name in shown}) for one in entered]
    return PlanRecord(
        runs=tuple(runs),
        left_out=left_out(planned),
        states_probability=tuple(sorted({one.record.variant for one in entered if one.source.states_probability})),
        baselines=tuple(sorted({one.record.variant for one in entered if one.source.baseline} - {control})),
        given={one.record.variant: one.source.given for one in entered},
        data=json_values(inputs.counts),
        model_hash=inputs.model_hash,
        reference=heldout.name,
    )
