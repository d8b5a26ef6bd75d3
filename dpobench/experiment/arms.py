"""Further arms of an experiment: baselines, conditions of studies, later rounds."""

from dpobench.artifacts.files import digest
from dpobench.errors import UserError
from dpobench.experiment.config import Experiment
from dpobench.experiment.studies import ROUND
from dpobench.losses.mixture import Mixture
from dpobench.plugins.registry import Registry
from dpobench.training.run import Run


def successor(run: Run, number: int, key: str) -> Run:
    """The run of a later round that starts from another one's policy.

    Args:
        run: the one before it.
        number: of the round.
        key: of all else that decides the pairs it is trained on: the prompts, how answers are drawn, the judge.
    """
    return run.model_copy(update={"reference": digest("round", run.id, key), "condition": {ROUND: number}})


def baselines(experiment: Experiment, registry: Registry) -> tuple[str, ...]:
    """Losses that are trained beside the variants, because they say so, and are none of them."""
    if not experiment.baselines:
        return ()
    taken = {name for name in experiment.variants if not isinstance(registry.get(name), Mixture)}
    taken |= {
        name
        for mixed in map(registry.get, experiment.variants)
        if isinstance(mixed, Mixture) and len(mixed.recipe) == 1
        for name in mixed.recipe
    }
    return tuple(name for name in registry.names() if name not in taken and registry.get(name).declared["baseline"])


def with_baselines(experiment: Experiment, registry: Registry) -> Experiment:
    """The experiment with its baselines among the variants, to be trained like them; the control stays the same."""
    names = (*experiment.variants, *baselines(experiment, registry))
    control = experiment.control or next(iter(experiment.variants), None)
    return experiment.model_copy(update={"variants": names, "control": control})


def check_studies(experiment: Experiment) -> None:
    """Refuse studies that cannot be made of this experiment.

    Raises:
        UserError: a value named twice or too small, an under-trained reference without the embedded default, rounds without a judge.
    """
    studies = experiment.studies
    studies.check(experiment.recipe.batch)
    if studies.reference_quality and not experiment.world:
        raise UserError(
            "--reference-quality trains the base model of the embedded default for fewer steps; leave out --model and --data, "
            "or run once per reference of your own"
        )
    if studies.rounds > 1 and experiment.evaluation.judge is None:
        raise UserError(
            f"--rounds {studies.rounds}: from the second round on a judge makes the labels; name one with --judge"
        )
    for size in studies.train_size:
        if 0 < experiment.recipe.steps(size) <= experiment.recipe.reference_every:
            raise UserError(
                f"recipe.reference_every = {experiment.recipe.reference_every} has no effect in the "
                f"{experiment.recipe.steps(size)} steps of studies.train_size = {size}; choose a smaller number"
            )
