"""From an experiment to jobs: what the runs of each condition share is made once, then everything is unfolded and written down."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from rich.console import Console

from dpobench.artifacts.files import building, folder_hash
from dpobench.artifacts.records import (
    Condition,
    EvaluationRecord,
    ExperimentRecord,
    LeftOut,
    MeasuredReference,
    PlannedCondition,
    PlanRecord,
    RecipeRecord,
    json_values,
)
from dpobench.data.perturb import columns_of_the_pair
from dpobench.errors import UserError
from dpobench.evaluation.plan import ScoringPlan, scoring_plan
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import Experiment, Tree
from dpobench.experiment.studies import Studies, successor
from dpobench.losses.registry import variants
from dpobench.losses.variant import Variant
from dpobench.models.checkpoint import model_hash
from dpobench.sweep import rounds
from dpobench.sweep.inputs import Inputs, Say, gather
from dpobench.sweep.job import Job, keep_replies
from dpobench.sweep.prepare import heldout_folder, need_folders, training_folder
from dpobench.training.reference import beyond_pairs, check_pairs
from dpobench.training.run import Recipe, Run


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
        condition: of a study; nothing for the main experiment.
        inputs: model and data.
        training: folder of the training pairs.
        needs: folders of what else losses declared.
        heldout: folder of the held-out inputs.
        scoring: how checkpoints are scored.
        measured: how well the reference writes, where the study of references measures it.
    """

    condition: Condition
    inputs: Inputs
    training: Path
    needs: Mapping[str, Path]
    heldout: Path
    scoring: ScoringPlan
    measured: MeasuredReference | None = None


def plan_jobs(
    experiment: Experiment, out: Path, where: Machine, console: Console, baselines: Collection[str] = ()
) -> list[Job]:
    """Prepare what runs share, unfold them, and write the plan down.

    Args:
        experiment: the settings, with the baselines among the variants.
        out: its folder.
        where: device and cache.
        console: where progress is printed.
        baselines: which of the variants are no candidates.

    Returns: the jobs, in an order in which a run of a later round comes after the one before it.

    Raises:
        UserError: model, data or settings cannot be used, or the folder is of another format; nothing has been trained.
    """

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    if PlanRecord.lies_in(out):
        PlanRecord.read(out)  # or the folder is of another format, and nothing in it can be used
    keep_replies(where.cache, out)
    inputs = gather(experiment, out, where.cache, say)
    losses = {name: variants.get(name) for name in experiment.variants}
    _check(experiment.studies, experiment.recipe, inputs, losses.values())
    columns = {name for loss in losses.values() for name in loss.columns}
    if experiment.studies.label_noise and (unchanged := columns_of_the_pair(sorted(columns))):
        say(
            f"--label-noise: of the columns that losses read, {', '.join(unchanged)} stay as they are where a label is flipped"
        )
    preparation = _Preparation(experiment.recipe, tuple(losses.values()), experiment.world, out, where, say)
    shared = preparation.conditions(experiment.studies, inputs)
    jobs = [
        _job(run, one, experiment.plugins, out, where)
        for one in shared
        for run in experiment.runs(one.training.name, one.condition)
    ]
    jobs += _later_rounds(experiment.studies, shared[0], jobs)
    _write_plan(experiment, shared, [job.run for job in jobs], baselines, out)
    return jobs


def _check(studies: Studies, recipe: Recipe, inputs: Inputs, losses: Collection[Variant]) -> None:
    """Refuse what the data cannot give."""
    check_pairs(losses, inputs.train)
    studies.check_size(len(inputs.train))
    if recipe.reference_every >= (steps := recipe.steps(len(inputs.train))):
        raise UserError(
            f"recipe.reference_every = {recipe.reference_every} has no effect in {steps} steps; choose a smaller number"
        )
    if studies.rounds > 1:
        planned = scoring_plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout="")
        rounds.check_rounds(studies, planned, losses)


@dataclass(frozen=True)
class _Preparation:
    """Makes what runs share, once.

    Args:
        recipe: of every run.
        losses: all that are trained.
        world: settings of the embedded default.
        out: folder of the experiment.
        where: device and cache.
        say: shows a line to the user.
    """

    recipe: Recipe
    losses: Sequence[Variant]
    world: Tree
    out: Path
    where: Machine
    say: Say

    def conditions(self, studies: Studies, inputs: Inputs) -> list[Shared]:
        """What each condition's runs share; the main experiment comes first."""
        conditions = [self.shared(inputs)]
        if studies.reference_quality:
            conditions = [replace(conditions[0], measured=MeasuredReference.of_world(self.out / "world"))]
        for condition in studies.conditions(len(inputs.train)):
            if condition.reference_quality is None:
                conditions.append(replace(conditions[0], condition=condition, measured=None))
                continue
            self.say(f"reference_quality={condition.reference_quality:g}: an under-trained reference")
            folder = self.undertrained(condition.reference_quality)
            weaker = replace(inputs, model=folder / "model", model_hash=model_hash(folder / "model"))
            measured = MeasuredReference.of_undertrained(folder)
            conditions.append(replace(self.shared(weaker), condition=condition, measured=measured))
        return conditions

    def shared(self, inputs: Inputs) -> Shared:
        """What the runs on these inputs share."""

        def planned(key: str) -> ScoringPlan:
            return scoring_plan(inputs.evaluation, has_pairs=bool(inputs.heldout), heldout=key)

        heldout = heldout_folder(inputs, planned, self.out, self.where.device, self.say)
        training = training_folder(inputs, self.out, self.recipe.precision, self.where.device, self.say)
        names = {name for loss in self.losses for name in loss.needs}
        needs = need_folders(inputs, training, names, self.recipe, self.where.device, self.say)
        return Shared(Condition(), inputs, training, needs, heldout, planned(heldout.name))

    def undertrained(self, quality: float) -> Path:
        """The embedded base model after a share of its training, copied into the experiment's folder."""
        from dpobench.synthetic import embedded

        built = embedded.undertrained(self.world, self.where.cache, quality)
        folder = self.out / "undertrained" / built.name
        if not folder.is_dir() or folder_hash(folder) != folder_hash(built):
            with building(folder) as part:
                shutil.copytree(built, part, dirs_exist_ok=True)
        return folder


def _job(run: Run, shared: Shared, plugins: tuple[str, ...], out: Path, where: Machine) -> Job:
    evaluation = shared.inputs.evaluation
    # Within their trainings only runs of the main experiment are scored: a study compares ends.
    evaluation = evaluation if run.condition.is_main else _without_checkpoints(evaluation)
    return Job(
        run=run,
        out=out,
        model=shared.inputs.model,
        shared=shared.training,
        needs={name: folder for name, folder in shared.needs.items() if name in variants.get(run.variant).needs},
        heldout=shared.heldout,
        evaluation=evaluation,
        plugins=plugins,
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


def _later_rounds(studies: Studies, main: Shared, jobs: Sequence[Job]) -> list[Job]:
    """Every run of the main experiment once more in each later round, from the policy of the round before."""
    if studies.rounds == 1:
        return []
    prompts = rounds.write_training_prompts(main.inputs, main.training)
    key = rounds.key(prompts, studies, main.inputs.evaluation, main.scoring)
    later: list[Job] = []
    before = [job for job in jobs if job.run.condition.is_main]
    for number in studies.later_rounds:
        before = [_after(job, number, key, prompts, studies.answers) for job in before]
        later += before
    return later


def _after(job: Job, number: int, key: str, prompts: Path, answers: int) -> Job:
    """The job of the next round."""
    run = successor(job.run, number, key)
    return job.model_copy(
        update={
            "run": run,
            "predecessor": job.run.id,
            "prompts": prompts,
            "answers": answers,
            "shared": job.shared.with_name(run.reference),
            "needs": {},
            "data_hash": run.reference,
            "evaluation": _without_checkpoints(job.evaluation),
            "scored_as": job.scored_as.partition("+")[0],
        }
    )


def stages(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups, each of which needs nothing but those before it."""
    by_round = groupby(sorted(jobs, key=_round), _round)
    return [list(group) for _, group in by_round]


def _round(job: Job) -> int:
    return job.run.condition.round or 1


def _write_plan(
    experiment: Experiment, shared: Sequence[Shared], runs: Sequence[Run], baselines: Collection[str], out: Path
) -> None:
    main = shared[0]
    candidates = tuple(name for name in experiment.variants if name not in baselines)
    control = experiment.control or experiment.variants[0]
    experiment_record(experiment, out.name, control, candidates, experiment.seeds).write(out)
    later = [Condition(round=number) for number in experiment.studies.later_rounds]
    conditions = [_planned_condition(one, one.condition) for one in shared[1:]]
    conditions += [_planned_condition(main, condition) for condition in later]
    PlanRecord(
        runs=tuple(one.describe() for one in runs),
        conditions=tuple(conditions),
        baselines=tuple(baselines),
        left_out=left_out(main.scoring),
        given={name: tuple(beyond_pairs(variants.get(name))) for name in experiment.variants},
        states_probability=tuple(name for name in experiment.variants if variants.get(name).spec.states_probability),
        data=json_values(main.inputs.counts),
        model_hash=main.inputs.model_hash,
        reference=main.heldout.name,
        training=runs[0].reference if runs else "",
        measured=main.measured,
    ).write(out)


def _planned_condition(shared: Shared, condition: Condition) -> PlannedCondition:
    return PlannedCondition(
        condition=condition,
        reference=shared.heldout.name,
        training=shared.training.name,
        model_hash=shared.inputs.model_hash,
        measured=shared.measured,
    )


def left_out(scoring: ScoringPlan) -> tuple[LeftOut, ...]:
    """The evaluators whose needs are not met, as the plan says it."""
    return tuple(LeftOut(evaluator=one["evaluator"], why=one["why"]) for one in scoring.left_out)


def experiment_record(
    experiment: Experiment, name: str, control: str, variants: Sequence[str], seeds: Sequence[int]
) -> ExperimentRecord:
    """The settings as they are written down.

    Args:
        experiment: the settings.
        name: of its folder.
        control: that the others are tested against.
        variants: that are compared, without baselines.
        seeds: of the runs.
    """
    settings = experiment.model_dump(mode="json")
    return ExperimentRecord(
        name=name,
        alpha=experiment.evaluation.alpha,
        recipe=RecipeRecord.model_validate(settings.pop("recipe")),
        evaluation=EvaluationRecord.model_validate(settings.pop("evaluation")),
        **settings | {"control": control, "variants": tuple(variants), "seeds": tuple(seeds)},
    )
