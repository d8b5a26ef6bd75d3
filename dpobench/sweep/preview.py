"""What `--dry-run` says: the runs, the number of trials, and what a judge would cost."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console

from dpobench.evaluation.plan import plan
from dpobench.evaluation.registry import judges
from dpobench.experiment import studies
from dpobench.experiment.config import Experiment, unequal_trials
from dpobench.experiment.validate import validate
from dpobench.sweep.progress import describe
from dpobench.training.run import Run


def dry_run(experiment: Experiment, console: Console) -> None:
    """Check everything that needs no model, list the runs and count them, condition by condition."""
    validate(experiment, may_pay=False)
    beside = experiment.baseline_names()
    whole = experiment.with_baselines()
    proper = whole.runs(reference="")
    runs = [*proper, *_beside(whole, proper)]
    for one in runs:
        console.print(describe(one), highlight=False, markup=False)
    warn_of_unequal_trials(console, runs, beside)
    trials = Counter(one.variant for one in proper if one.variant not in beside)
    told = ", ".join(f"{name} {count // len(experiment.seeds)}" for name, count in trials.items())
    for name, count in Counter(studies.describe(one.condition) or "the experiment proper" for one in runs).items():
        console.print(f"{count} runs: {name}", highlight=False, markup=False)
    named = f"; baselines: {', '.join(beside)}" if beside else ""
    console.print(f"{len(runs)} runs; configurations per variant: {told}{named}", highlight=False)
    if line := _judge_estimate(experiment, len(runs), len(proper)):
        console.print(line, highlight=False, markup=False)


def _judge_estimate(experiment: Experiment, runs: int, proper: int) -> str:
    """What the win-rates by a judge that is paid for would cost; nothing for others.

    Args:
        experiment: judge, prompts and draws.
        runs: all of them.
        proper: those of the experiment proper, which are scored within their trainings, too.
    """
    asked = experiment.evaluation
    judge = judges.get(asked.judge) if asked.judge else None
    if judge is None or judge.spec.estimate is None:
        return ""
    opponents = plan(asked, has_pairs=True, heldout="").opponents
    answered = len(opponents) * runs + len(opponents[:1]) * asked.checkpoints * proper
    comparisons = 2 * asked.prompts * asked.draws * answered
    lengths = experiment.recipe.max_prompt_tokens, asked.max_new_tokens
    told = judge.spec.estimate(comparisons, *lengths, **judge.arguments(asked.judge_settings))
    return f"{told} (win-rates alone: the judge card, the tournament, objectives and second questions come on top)"


def _beside(experiment: Experiment, proper: Sequence[Run]) -> Iterator[Run]:
    """The runs of all studies, as a plan would have them."""
    for condition in experiment.studies.conditions():
        yield from experiment.runs(reference="", condition=condition)
    for number in experiment.studies.later_rounds:
        yield from (studies.successor(run, number, "") for run in proper)


def warn_of_unequal_trials(console: Console, runs: Sequence[Run], beside: Sequence[str]) -> None:
    """Say where variants have unequal numbers of configurations, and so unequal luck."""
    if warning := unequal_trials([one for one in runs if one.variant not in beside]):
        console.print(f"warning: {warning}", highlight=False, markup=False)
