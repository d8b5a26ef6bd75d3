"""What is refused before anything is computed: in one place, once, for a run, a dry run, `evaluate` and the public functions alike."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.benchmark_tasks import check_tasks
from dpobench.evaluation.objectives import ConfiguredJudge, judged_objectives
from dpobench.evaluation.plan import scoring_plan
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import Experiment
from dpobench.experiment.plugin_files import register
from dpobench.experiment.studies import Studies
from dpobench.losses.mixture import Mixture
from dpobench.losses.registry import variants
from dpobench.losses.variant import Variant
from dpobench.models.checkpoint import resolve
from dpobench.synthetic.abilities import DESCRIPTIONS
from dpobench.testing import require
from dpobench.training.run import Recipe


def validate(experiment: Experiment, *, trains: bool = True, may_pay: bool = True) -> None:
    """Refuse what cannot work.

    What only the data or the weights can tell is refused later, when they are read, still before any training.

    Args:
        experiment: every setting resolved.
        trains: whether its variants are trained; without, only what scoring needs is looked at.
        may_pay: whether judges whose calls cost money may be tried.

    Raises:
        UserError: an unknown name, an impossible value, a setting without effect, a plugin that breaks its laws, a judge that does
            not answer.
    """
    register(experiment.plugins)
    if trains:
        _check_design(experiment)
        _check_studies(
            experiment.studies, experiment.recipe, experiment.evaluation.judge, embedded=bool(experiment.world)
        )
        if experiment.model is not None:
            resolve(experiment.model)
        # The laws look at variant and hyper-parameters: once for all seeds and learning rates.
        once = experiment.model_copy(update={"seeds": experiment.seeds[:1], "learning_rates": ()})
        for run in once.with_baselines().runs(reference=""):
            require(variants.get(run.variant), run.params)
        losses = {name: variants.get(name) for name in experiment.variants}
        _check_twins(losses)
        _check_moving_reference(experiment.recipe, losses.values())
    files = {Path(file).resolve() for file in experiment.plugins}
    _check_scoring(experiment.evaluation, () if experiment.model else tuple(DESCRIPTIONS), files)
    check_judges(experiment.evaluation, may_pay=may_pay, files=files)


def _check_design(experiment: Experiment) -> None:
    """Variants, seeds and grids."""
    if not experiment.variants:
        raise UserError("no variant is chosen; write for example --variants dpo,ipo")
    lists: Mapping[str, Sequence[object]] = {
        "variants": experiment.variants,
        "seeds": experiment.seeds,
        "learning_rates": experiment.learning_rates,
    }
    for label, values in lists.items():
        if repeated := [value for value in set(values) if values.count(value) > 1]:
            raise UserError(f"{label}: {repeated[0]} is named twice")
    if not experiment.seeds or any(not 0 <= seed < 2**32 for seed in experiment.seeds):
        raise UserError(f"seeds = {list(experiment.seeds)}: at least one, each from 0 to {2**32 - 1}")
    for name, grid in experiment.grid.items():
        for parameter, choices in grid.items():
            if not choices or len(set(choices)) < len(choices):
                raise UserError(f"grid.{name}.{parameter} = {list(choices)}: at least one value, each once")
    for name in [experiment.control or experiment.variants[0], *experiment.grid]:
        if name not in experiment.variants:
            raise UnknownName("chosen variant", name, experiment.variants)


def _check_studies(studies: Studies, recipe: Recipe, judge: str | None, *, embedded: bool) -> None:
    """Studies that cannot be made of this experiment."""
    studies.check(recipe.batch)
    if studies.reference_quality and not embedded:
        raise UserError(
            "--reference-quality trains the base model of the embedded default for fewer steps; leave out --model and --data, "
            "or run once per reference of your own"
        )
    if studies.rounds > 1 and judge is None:
        raise UserError(
            f"--rounds {studies.rounds}: from the second round on a judge makes the labels; name one with --judge"
        )
    for size in studies.train_size:
        if 0 < recipe.steps(size) <= recipe.reference_every:
            raise UserError(
                f"recipe.reference_every = {recipe.reference_every} has no effect in the "
                f"{recipe.steps(size)} steps of studies.train_size = {size}; choose a smaller number"
            )


def _check_twins(losses: Mapping[str, Variant]) -> None:
    """One loss under two names would be trained twice and counted twice."""
    first_name: dict[frozenset[tuple[str, float]], str] = {}
    for name, loss in losses.items():
        parts = frozenset((loss.recipe if isinstance(loss, Mixture) else {name: 1.0}).items())
        if parts in first_name:
            raise UserError(f"variants: {first_name[parts]} and {name} are one loss; leave one out")
        first_name[parts] = name


def _check_moving_reference(recipe: Recipe, losses: Iterable[Variant]) -> None:
    """An option without effect is a mistake."""
    if recipe.reference_every == 0 and recipe.reference_mix != 1.0:
        raise UserError(
            f"recipe.reference_mix = {recipe.reference_mix} has no effect while the reference stays; set recipe.reference_every"
        )
    if recipe.reference_every and not any(loss.spec.reference for loss in losses):
        raise UserError(
            f"recipe.reference_every = {recipe.reference_every} has no effect: none of the variants has a reference"
        )


def _check_scoring(evaluation: Evaluation, embedded_tasks: Sequence[str], files: Collection[Path]) -> None:
    """Tasks and evaluators.

    Args:
        evaluation: what checkpoints are scored on.
        embedded_tasks: names of tasks that the embedded default makes.
        files: of the user's plugins, which are held to their laws.
    """
    check_tasks(evaluation.tasks, evaluation.task_folders, embedded_tasks)
    scoring = scoring_plan(evaluation, has_pairs=True, heldout="")
    for evaluator, settings in scoring.chosen:
        if evaluator.file in files:
            require(evaluator, settings)
    if evaluation.checkpoints and not scoring.within.chosen:
        raise UserError(
            f"evaluation.checkpoints = {evaluation.checkpoints} has no effect: none of the requested evaluators scores checkpoints "
            "within a training; add winrate, or leave it out"
        )


def check_judges(evaluation: Evaluation, *, may_pay: bool = True, files: Collection[Path] = ()) -> None:
    """Try the judges, of the win-rate and of objectives, where they can be tried.

    Args:
        evaluation: the judges and their settings.
        may_pay: whether those whose calls cost money are tried.
        files: of the user's plugins; judges of theirs are held to their laws, unless calls cost money.

    Raises:
        UserError: one cannot answer with these settings, or breaks a law.
    """
    requested = list(judged_objectives(evaluation).values())
    if evaluation.judge:
        headline = judges.get(evaluation.judge)
        requested.insert(0, ConfiguredJudge(headline, headline.arguments(evaluation.judge_settings)))
    for judge, arguments in requested:
        check, estimate = judge.spec.check, judge.spec.estimate
        if check is not None and (may_pay or not estimate):
            check(**arguments)
        if judge.file in files and not estimate:
            require(judge, arguments)
