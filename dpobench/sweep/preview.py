"""What `--dry-run` shows: the runs, the number of trials, and what a judge would cost."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from dpobench.evaluation.plan import scoring_plan
from dpobench.evaluation.registry import judges
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment import studies
from dpobench.experiment.config import Experiment, unequal_trials
from dpobench.experiment.validate import validate
from dpobench.sweep.progress import describe
from dpobench.training.run import Run


def dry_run(experiment: Experiment, console: Console) -> None:
    """Check everything that needs no model, list the runs and count them, condition by condition."""
    validate(experiment, may_pay=False)
    baselines = experiment.baseline_names()
    whole = experiment.with_baselines()
    main = whole.runs(reference="")
    runs = list(main)
    for condition in experiment.studies.conditions():
        runs += whole.runs(reference="", condition=condition)
    for number in experiment.studies.later_rounds:
        runs += [studies.successor(run, number, "") for run in main]
    for one in runs:
        console.print(describe(one), highlight=False, markup=False)
    warn_of_unequal_trials(console, runs, baselines)
    for name, count in Counter(studies.describe(one.condition) or "main experiment" for one in runs).items():
        console.print(f"{count} runs: {name}", highlight=False, markup=False)
    trials = Counter(one.variant for one in main if one.variant not in baselines)
    counts = ", ".join(f"{name} {count // len(experiment.seeds)}" for name, count in trials.items())
    trained_along = f"; baselines: {', '.join(baselines)}" if baselines else ""
    console.print(f"{len(runs)} runs; configurations per variant: {counts}{trained_along}", highlight=False)
    if line := _judge_estimate(experiment.evaluation, experiment.recipe.max_prompt_tokens, len(runs), len(main)):
        console.print(line, highlight=False, markup=False)


def _judge_estimate(scoring: Evaluation, prompt_tokens: int, runs: int, main: int) -> str:
    """What the win-rates by a judge that is paid for would cost; nothing for others.

    Args:
        scoring: judge, prompts and draws.
        prompt_tokens: of the longest prompt.
        runs: number of all runs.
        main: number of those of the main experiment, whose checkpoints within their trainings are scored, too.
    """
    judge = judges.get(scoring.judge) if scoring.judge else None
    if judge is None or judge.spec.estimate is None:
        return ""
    opponents = scoring_plan(scoring, has_pairs=True, heldout="").opponents
    scored = len(opponents) * runs + len(opponents[:1]) * scoring.checkpoints * main
    comparisons = 2 * scoring.prompts * scoring.draws * scored
    cost = judge.spec.estimate(
        comparisons, prompt_tokens, scoring.max_new_tokens, **judge.arguments(scoring.judge_settings)
    )
    return f"{cost} (win-rates alone: the judge card, the tournament, objectives and second questions come on top)"


def warn_of_unequal_trials(console: Console, runs: Sequence[Run], baselines: Sequence[str]) -> None:
    """Say where variants have unequal numbers of configurations, and so unequal luck."""
    if warning := unequal_trials([one for one in runs if one.variant not in baselines]):
        console.print(f"warning: {warning}", highlight=False, markup=False)
