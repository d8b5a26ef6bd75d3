"""From an experiment to jobs: what the runs of each condition share is made once, then everything is unfolded and written down."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from dpobench.artifacts.files import building, folder_hash, read_json, write_json
from dpobench.data.perturb import Condition, columns_of_the_pair
from dpobench.errors import UserError
from dpobench.evaluation.plan import Plan, plan
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import Experiment
from dpobench.experiment.studies import QUALITY, ROUND, successor
from dpobench.losses.registry import variants
from dpobench.losses.variant import Variant
from dpobench.models.checkpoint import model_hash
from dpobench.sweep import rounds
from dpobench.sweep.inputs import Inputs, Say, gather
from dpobench.sweep.job import Job, keep_replies
from dpobench.sweep.prepare import heldout_folder, need_folders, training_folder
from dpobench.training.reference import beyond_pairs, check_pairs
from dpobench.training.run import Run


@dataclass(frozen=True)
class Machine:
    """Where and how wide to work; decides no result but through the number of threads.

    Args:
        device: "cpu" or "cuda".
        workers: runs at a time.
        threads: of each run.
        cache: where embedded defaults are kept between experiments.
        save_every: seconds between resumable states of a long training.
    """

    device: str
    workers: int
    threads: int
    cache: Path
    save_every: float = 600.0


@dataclass(frozen=True)
class Shared:
    """What the runs of one condition share.

    Args:
        condition: of a study; empty for the experiment proper.
        inputs: model and data.
        training: folder of the training pairs.
        needs: folders of what else losses declared.
        heldout: folder of the held-out inputs.
        scoring: how checkpoints are scored.
        told: what the plan says of the condition beside its folders.
    """

    condition: Condition
    inputs: Inputs
    training: Path
    needs: Mapping[str, Path]
    heldout: Path
    scoring: Plan
    told: Mapping[str, Any]


def plan_jobs(
    experiment: Experiment, out: Path, where: Machine, console: Console, baselines: Collection[str] = ()
) -> list[Job]:
    """Prepare what runs share, unfold them, and write the plan down.

    Args:
        experiment: what was asked for, its baselines among the variants.
        out: its folder.
        where: device and cache.
        console: where progress is printed.
        baselines: which of the variants are no candidates.

    Returns: the jobs, in an order in which a run of a later round comes after the one before it.

    Raises:
        UserError: model, data or settings cannot be used; nothing has been trained.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    keep_replies(where.cache, out)
    inputs = gather(experiment, out, where.cache, say)
    losses = {name: variants.get(name) for name in experiment.variants}
    _check(experiment, inputs, losses)
    if experiment.studies.label_noise and (
        left := columns_of_the_pair({name: 0 for loss in losses.values() for name in loss.columns})
    ):
        say(
            f"--label-noise: of the columns that losses read, {', '.join(left)} stay as they are where a label is turned round"
        )
    shared = _conditions(experiment, inputs, out, where, say)
    jobs = [
        _job(run, one, experiment, out, where)
        for one in shared
        for run in experiment.runs(one.training.name, one.condition)
    ]
    jobs += _later_rounds(experiment, shared[0], jobs)
    _write_plan(experiment, shared, [job.run for job in jobs], baselines, out)
    return jobs


def _check(experiment: Experiment, inputs: Inputs, losses: Mapping[str, Variant]) -> None:
    """Refuse what the data cannot give."""
    check_pairs(losses.values(), inputs.train)
    experiment.studies.check_size(len(inputs.train))
    recipe = experiment.recipe
    if recipe.reference_every >= (steps := recipe.steps(len(inputs.train))):
        raise UserError(
            f"recipe.reference_every = {recipe.reference_every} has no effect in {steps} steps; choose a smaller number"
        )
    if experiment.studies.rounds > 1:
        planned = plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout="")
        rounds.check_rounds(experiment.studies, planned, losses.values())


def _conditions(experiment: Experiment, inputs: Inputs, out: Path, where: Machine, say: Say) -> list[Shared]:
    """What each condition's runs share; the experiment proper comes first."""
    found = [_shared(experiment, inputs, out, where, say)]
    if experiment.studies.reference_quality:
        found = [replace(found[0], told={"measured": _measured(out)})]
    for condition in experiment.studies.conditions(len(inputs.train)):
        if QUALITY not in condition:
            found.append(replace(found[0], condition=condition))
            continue
        say(f"reference_quality={condition[QUALITY]:g}: an under-trained reference")
        model, told = _undertrained(experiment, condition[QUALITY], out, where.cache)
        weaker = replace(inputs, model=model, model_hash=model_hash(model))
        found.append(
            replace(_shared(experiment, weaker, out, where, say), condition=condition, told={"measured": told})
        )
    return found


def _shared(experiment: Experiment, inputs: Inputs, out: Path, where: Machine, say: Say) -> Shared:
    def planned(key: str) -> Plan:
        return plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout=key)

    heldout = heldout_folder(inputs, planned, out, where.device, say)
    training = training_folder(inputs, out, experiment.recipe.precision, where.device, say)
    names = {name for variant in experiment.variants for name in variants.get(variant).needs}
    needs = need_folders(inputs, training, names, experiment.recipe, where.device, say)
    return Shared({}, inputs, training, needs, heldout, planned(heldout.name), {})


def _measured(out: Path) -> dict[str, Any]:
    """What was measured of the embedded base model, whose training was whole."""
    told = read_json(out / "world" / "world.json")
    return {"steps": told["settings"]["steps"], **told["measured"]}


def _undertrained(experiment: Experiment, quality: float, out: Path, cache: Path) -> tuple[Path, Mapping[str, Any]]:
    """The embedded base model after a share of its training, laid into the experiment's folder; and what was measured of it."""
    from dpobench.synthetic import embedded

    built = embedded.undertrained(experiment.world, cache, quality)
    folder = out / "undertrained" / built.name
    if not folder.is_dir() or folder_hash(folder) != folder_hash(built):
        with building(folder) as part:
            shutil.copytree(built, part, dirs_exist_ok=True)
    return folder / "model", read_json(folder / "measured.json")


def _job(run: Run, shared: Shared, experiment: Experiment, out: Path, where: Machine) -> Job:
    evaluation = shared.inputs.evaluation
    # Within their trainings only runs of the experiment proper are looked at: a study compares ends.
    evaluation = _without_checkpoints(evaluation) if run.condition else evaluation
    return Job(
        run=run,
        out=out,
        model=shared.inputs.model,
        shared=shared.training,
        needs={name: folder for name, folder in shared.needs.items() if name in variants.get(run.variant).needs},
        heldout=shared.heldout,
        evaluation=evaluation,
        plugins=experiment.plugins,
        device=where.device,
        data_hash=shared.training.name,
        model_hash=shared.inputs.model_hash,
        scored_as=_scored_as(shared.scoring.key, evaluation),
        save_every=where.save_every,
        cache=where.cache,
    )


def _without_checkpoints(evaluation: Evaluation) -> Evaluation:
    return evaluation.model_copy(update={"checkpoints": 0})


def _scored_as(key: str, evaluation: Evaluation) -> str:
    return f"{key}+{evaluation.checkpoints}" if evaluation.checkpoints else key


def _later_rounds(experiment: Experiment, proper: Shared, jobs: Sequence[Job]) -> list[Job]:
    """Every run of the experiment proper once more in each later round, from the policy of the round before."""
    if experiment.studies.rounds == 1:
        return []
    asked = rounds.write_asked(proper.inputs, proper.training)
    key = rounds.key(asked, experiment.studies, proper.inputs.evaluation, proper.scoring)
    found: list[Job] = []
    before = [job for job in jobs if not job.run.condition]
    for number in experiment.studies.later_rounds:
        before = [_after(job, number, key, asked, experiment.studies.answers) for job in before]
        found += before
    return found


def _after(job: Job, number: int, key: str, asked: Path, answers: int) -> Job:
    run = successor(job.run, number, key)
    made = {"shared": job.shared.with_name(run.reference), "needs": {}, "data_hash": run.reference}
    made |= {"evaluation": _without_checkpoints(job.evaluation), "scored_as": job.scored_as.partition("+")[0]}
    return job.model_copy(update={"run": run, "predecessor": job.run.id, "asked": asked, "answers": answers, **made})


def stages(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups, each of which needs nothing but those before it."""
    by_round = groupby(sorted(jobs, key=_round), _round)
    return [list(group) for _, group in by_round]


def _round(job: Job) -> int:
    return int(job.run.condition.get(ROUND, 1))


def _write_plan(
    experiment: Experiment, shared: Sequence[Shared], runs: Sequence[Run], baselines: Collection[str], out: Path
) -> None:
    proper = shared[0]
    candidates = [name for name in experiment.variants if name not in baselines]
    told = experiment.model_dump(mode="json") | {"variants": candidates}
    told |= {
        "name": out.name,
        "control": experiment.control or experiment.variants[0],
        "alpha": experiment.evaluation.alpha,
    }
    write_json(out / "experiment.json", told)
    beside = [_told(one) for one in shared[1:]]
    beside += [_told(replace(proper, condition={ROUND: number})) for number in experiment.studies.later_rounds]
    content = {
        "runs": [one.describe() for one in runs],
        "conditions": beside,
        "baselines": list(baselines),
        "left_out": list(proper.scoring.left_out),
        "given": {name: beyond_pairs(variants.get(name)) for name in experiment.variants},
        "states_probability": [name for name in experiment.variants if variants.get(name).spec.states_probability],
        "data": dict(proper.inputs.counts),
        "model_hash": proper.inputs.model_hash,
        "reference": proper.heldout.name,
        "training": runs[0].reference if runs else "",
        **proper.told,
    }
    write_json(out / "plan.json", content)


def _told(shared: Shared) -> dict[str, Any]:
    return {
        "condition": dict(shared.condition),
        "reference": shared.heldout.name,
        "training": shared.training.name,
        "model_hash": shared.inputs.model_hash,
        **shared.told,
    }
