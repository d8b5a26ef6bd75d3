"""What is refused before anything is computed."""

from collections.abc import Sequence
from typing import Any

from dpobench.errors import UserError
from dpobench.evaluation.benchmark_tasks import check_tasks
from dpobench.evaluation.objectives import judged
from dpobench.evaluation.plan import plan
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.arms import check_studies, with_baselines
from dpobench.experiment.config import Experiment, check_experiment, unfold
from dpobench.experiment.plugin_files import register
from dpobench.losses.mixture import Mixture
from dpobench.losses.registry import variants
from dpobench.models.checkpoint import resolve
from dpobench.synthetic.abilities import DESCRIPTIONS
from dpobench.testing import require


def check_judge(asked: Evaluation, *, free: bool = False) -> None:
    """Try the judges, of the win-rate and of objectives, before anything is computed, where they can be tried.

    Args:
        asked: the judges and their settings.
        free: only those that no call is paid for.

    Raises:
        UserError: one cannot be asked as it is set.
    """
    named = judges.get(asked.judge) if asked.judge else None
    found = [(named, named.arguments(asked.judge_settings))] if named is not None else []
    for judge, arguments in [*found, *judged(asked).values()]:
        if judge.declared["check"] is not None and not (free and judge.declared["estimate"]):
            judge.declared["check"](**arguments)


def check(experiment: Experiment) -> None:
    """Refuse what cannot work before anything is computed.

    Raises:
        UserError: an unknown name or value; a plugin that breaks its laws.
    """
    register(experiment.plugins)
    check_experiment(experiment)
    check_studies(experiment)
    if experiment.model is not None:
        resolve(experiment.model)
    # The laws look at variant and hyper-parameters: once for all seeds and learning rates.
    once = experiment.model_copy(update={"seeds": experiment.seeds[:1], "learning_rates": ()})
    for one in unfold(with_baselines(once, variants), variants, reference=""):
        require(variants.get(one.variant), one.params)
    _check_twins(experiment.variants)
    _check_moving_reference(experiment)
    check_tasks(
        experiment.evaluation.tasks,
        experiment.evaluation.task_folders,
        () if experiment.model else tuple(DESCRIPTIONS),
    )
    planned = plan(experiment.evaluation, has_pairs=True, heldout="")
    if experiment.evaluation.checkpoints and not planned.within.chosen:
        raise UserError(
            f"evaluation.checkpoints = {experiment.evaluation.checkpoints} has no effect: none of the evaluators that are asked for "
            "scores checkpoints within a training; add winrate, or leave it out"
        )


def _check_twins(names: Sequence[str]) -> None:
    """One loss under two names would be trained twice and counted twice."""
    seen: dict[frozenset[Any], str] = {}
    for name in names:
        loss = variants.get(name)
        parts = frozenset((loss.recipe if isinstance(loss, Mixture) else {name: 1.0}).items())
        if parts in seen:
            raise UserError(f"variants: {seen[parts]} and {name} are one loss; leave one out")
        seen[parts] = name


def _check_moving_reference(experiment: Experiment) -> None:
    """An option without effect is a mistake."""
    recipe = experiment.recipe
    if recipe.reference_every == 0 and recipe.reference_mix != 1.0:
        raise UserError(
            f"recipe.reference_mix = {recipe.reference_mix} has no effect while the reference stays; set recipe.reference_every"
        )
    if recipe.reference_every and not any(variants.get(name).declared["reference"] for name in experiment.variants):
        raise UserError(
            f"recipe.reference_every = {recipe.reference_every} has no effect: none of the variants has a reference"
        )
