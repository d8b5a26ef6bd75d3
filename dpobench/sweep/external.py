"""Checkpoints trained elsewhere, scored as our runs are and put into the same report."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dpobench.artifacts.files import (
    MANIFEST,
    digest,
    locked,
    seal,
    sealed,
    sweep_parts,
    verify,
    write_bytes,
)
from dpobench.artifacts.records import PlannedRun, PlanRecord, json_values
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.plan import ScoringPlan, scoring_plan
from dpobench.evaluation.score import score
from dpobench.experiment.config import Experiment
from dpobench.experiment.validate import validate
from dpobench.models.checkpoint import (
    Checkpoint,
    check_weights,
)
from dpobench.sweep.checkpoint_specs import CheckpointSpec, read_specs
from dpobench.sweep.external_checkpoint import OTHER_BASE, OTHER_START, ExternalCheckpoint, read_checkpoint
from dpobench.sweep.inputs import Inputs, Say, gather_heldout
from dpobench.sweep.job import keep_replies
from dpobench.sweep.plan import Machine, experiment_record, left_out
from dpobench.sweep.prepare import heldout_folder
from dpobench.sweep.run import finish
from dpobench.sweep.workers import quiet


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

    def planned(key: str) -> ScoringPlan:
        return scoring_plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout=key)

    specs = read_specs(checkpoints)
    with locked(out):
        _refuse_experiment(out)
        sweep_parts(out)
        inputs = gather_heldout(experiment, say)
        scored = [read_checkpoint(spec, experiment.model or "", inputs, where.device) for spec in specs]
        records = [one.record for one in scored]
        _refuse_twins(scored)
        _refuse_mixed(specs, scored)
        control = _control(experiment.control, scored)
        for one in scored:
            if not _is_sealed(out / "runs" / one.record.id):
                check_weights(one.folder)
            for flag in one.record.flags:
                if flag in (OTHER_START, OTHER_BASE):
                    say(f"warning: {one.record.variant} ({one.folder}): {flag} than the reference")
        heldout = heldout_folder(inputs, planned, out, where.device, say)
        scoring = planned(heldout.name)
        for one in scored:
            _score(one, inputs, heldout, scoring, out, where, say)
        names = list(dict.fromkeys(record.variant for record in records))
        seeds = sorted({record.seed for record in records})
        experiment_record(experiment, out.name, control, names, seeds).write(out)
        _plan_record(control, scored, scoring, inputs, heldout).write(out)
        return finish(out, {record.id: "done" for record in records}, console)


def _refuse_mixed(specs: Sequence[CheckpointSpec], scored: Sequence[ExternalCheckpoint]) -> None:
    """Several folders of one given name are seeds of one method: our runs of other settings are none.

    Raises:
        UserError: two of them had another loss or other settings.
    """
    first: dict[str, tuple[str, str]] = {}
    for spec, one in zip(specs, scored, strict=True):
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


def _refuse_twins(scored: Sequence[ExternalCheckpoint]) -> None:
    """Two rows of one method and seed, or one model scored twice, would be counted as independent."""
    cells: dict[str, str] = {}
    contents: dict[str, str] = {}
    for one in scored:
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


def _control(requested: str | None, scored: Sequence[ExternalCheckpoint]) -> str:
    """The checkpoint that the others are tested against: the requested one, or the first that was no baseline."""
    names = list(dict.fromkeys(one.record.variant for one in scored))
    if requested is not None and requested not in names:
        raise UnknownName("checkpoint", requested, names)
    candidates = [one.record.variant for one in scored if not one.source.baseline]
    return requested or next(iter(candidates), names[0])


def _is_sealed(folder: Path) -> bool:
    """Whether a folder was sealed; what is in it is compared with its manifest."""
    if not sealed(folder):
        return False
    verify(folder)
    return True


def _score(
    external: ExternalCheckpoint,
    inputs: Inputs,
    heldout: Path,
    planned: ScoringPlan,
    out: Path,
    where: Machine,
    say: Say,
) -> None:
    """Score one checkpoint; scores under the same settings stay."""
    record, source = external.record, external.source
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
        external.folder,
        inputs.model,
        where.device,
        run=external.loss,
        reference_hash=inputs.model_hash,
        base=external.base,
    )
    score(checkpoint, folder, heldout, inputs.evaluation, planned, seed=record.seed, progress=progress)
    if source.log and Path(source.log).is_file():
        write_bytes(folder / "log.jsonl", Path(source.log).read_bytes())
    record.updated(scored_as=planned.key).write(folder)
    seal(folder)
    if not parts:
        say(f"{record.variant}, seed {record.seed}: scored before")


def _plan_record(
    control: str, scored: Sequence[ExternalCheckpoint], planned: ScoringPlan, inputs: Inputs, heldout: Path
) -> PlanRecord:
    shown = set(PlannedRun.model_fields)
    runs = [PlannedRun(**{name: value for name, value in one.record if name in shown}) for one in scored]
    return PlanRecord(
        runs=tuple(runs),
        left_out=left_out(planned),
        states_probability=tuple(sorted({one.record.variant for one in scored if one.source.states_probability})),
        baselines=tuple(sorted({one.record.variant for one in scored if one.source.baseline} - {control})),
        given={one.record.variant: one.source.given for one in scored},
        data=json_values(inputs.counts),
        model_hash=inputs.model_hash,
        reference=heldout.name,
    )
