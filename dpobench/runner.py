"""An experiment from what was asked to the report: check, prepare once, run what is missing, report."""

import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dpobench import store, studies
from dpobench.arms import baselines, check_studies, successor, with_baselines
from dpobench.checkpoint import resolve
from dpobench.errors import UserError
from dpobench.evaluate import plan
from dpobench.execute import Job, check_judge, execute, is_done, is_trained, register, status_of
from dpobench.experiment import Experiment, Run, check_experiment, unequal_trials, unfold
from dpobench.kept import cache_folder
from dpobench.mixture import Mixture
from dpobench.planning import Machine as Machine
from dpobench.planning import plan_jobs as plan_jobs
from dpobench.planning import stages
from dpobench.progress import Display, describe
from dpobench.registry import judges, variants
from dpobench.synthetic.abilities import DESCRIPTIONS
from dpobench.tasks import check_tasks
from dpobench.testing import require
from dpobench.workers import Workers, quiet


def machine(device: str | None, workers: int | None, threads: int | None) -> Machine:
    """Choose device and width.

    On a CPU: one worker per core with one thread each, so that the number of threads (on which rounding depends) does not
    depend on how many runs are left. On GPUs: one worker per device.

    Raises:
        UserError: CUDA was asked for and is not there.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: torch sees no CUDA device; leave --device out, or install a CUDA build of torch"
        )
    cores = len(os.sched_getaffinity(0))
    workers = workers or (torch.cuda.device_count() if device == "cuda" else cores)
    return Machine(device, workers, threads or max(1, cores // workers), cache_folder())


def run(experiment: Experiment, out: Path, where: Machine, console: Console) -> int:
    """Do what is missing of an experiment and write its report.

    Returns: exit status: 0; 2 if some runs failed; 4 if all did.

    Raises:
        UserError: something asked for is impossible; nothing has been trained.
        Locked: another process holds the folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _run_together(experiment, out, where, console)
    check(experiment)
    check_judge(experiment.evaluation)
    beside = baselines(experiment, variants)
    with store.locked(out):
        store.sweep_parts(out)
        with Workers(where.workers, where.threads, _devices(where)) as workers:
            jobs = plan_jobs(with_baselines(experiment, variants), out, where, console, beside)
            _warn(console, [job.run for job in jobs], beside)
            missing = [job for job in jobs if not is_done(job)]
            _check_disk(missing, out, where.workers)
            ended = {job.run.id: status_of(job.folder) for job in jobs if job not in missing}
            console.print(f"{len(jobs)} runs planned, {len(jobs) - len(missing)} done already", highlight=False)
            _say_again(missing, console)
            with Display({job.run.id: job.run for job in jobs}, console, ended) as display:
                for stage in stages(missing):
                    ended |= workers.run(stage, display)
        return finish(out, ended, console)


def _say_again(missing: Sequence[Job], console: Console) -> None:
    """Say of finished runs why they are not done."""
    trained = [job for job in missing if status_of(job.folder) == "done"]
    again = sum(not is_trained(job) for job in trained)
    if again:
        console.print(
            f"{again} of them are trained again, to the same end: they kept no checkpoints within", highlight=False
        )
    if len(trained) > again:
        console.print(f"{len(trained) - again} of them are trained, and are scored as it is asked now", highlight=False)


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


def _devices(where: Machine) -> list[str]:
    """The CUDA devices this process may use, as its environment names them; workers share them in turn."""
    import torch

    if where.device != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def _check_disk(missing: Sequence[Job], out: Path, workers: int) -> None:
    """Refuse a sweep whose checkpoints would not fit."""
    if not missing:
        return
    weights = sum(file.stat().st_size for file in missing[0].model.glob("*.safetensors"))
    # A resumable state holds weights and two moments, and a reference that moves.
    state = 4 if missing[0].run.recipe.reference_every else 3
    kept = sum(1 + job.evaluation.checkpoints for job in missing if not is_trained(job))
    needed = int(1.1 * weights * (kept + state * workers))
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{len(missing)} runs need about {needed / 1e9:.1f} GB in {out}, {free / 1e9:.1f} GB are free; "
            "free some, choose another --out, or fewer grid points or --checkpoints"
        )


def finish(out: Path, ended: Mapping[str, str], console: Console) -> int:
    """Write the report and say what came out."""
    from dpobench import tournament
    from dpobench.report import write_report

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    tournament.play(out, say=say)
    report = write_report(out)
    for line in summary_lines(report.parent):
        console.print(line, highlight=False, markup=False, no_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    bad = {name: status for name, status in ended.items() if status not in ("done", "diverged")}
    for name, status in bad.items():
        note = store.read_json(out / "runs" / name / "run.json")
        console.print(f"{status}: {name}: {note['reason']} (run again to retry)", highlight=False, markup=False)
    if not bad:
        return 0
    return 4 if len(bad) == len(ended) else 2


def summary_lines(report: Path) -> Iterator[str]:
    """The verdict and the leaderboard as a terminal shows them, read from the report's own files."""
    from dpobench.report.text import UNEVEN

    verdict, *notes = (report / "verdict.txt").read_text(encoding="utf-8").splitlines()
    yield verdict
    yield from (note for note in notes if note.startswith(UNEVEN))
    with (report / "tables" / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if "verdict" in row]
    if not rows:
        return
    measured = [name.removesuffix("_low") for name in rows[0] if name.endswith("_low")]
    shown = [name for name in measured if any(row[name] for row in rows)][:4]
    table = [["variant", "beta", "seeds", *shown, "p_adjusted", "verdict"]]
    for row in rows:
        cells = [_with_interval(row, name) for name in shown]
        p = f"{float(row['p_adjusted']):.3f}" if row["p_adjusted"] else ""
        table.append([row["variant"], row["beta"], row["seeds"], *cells, p, row["verdict"]])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _with_interval(row: Mapping[str, str], name: str) -> str:
    numbers = [f"{float(row[key]):.3g}" if row[key] else "" for key in (name, f"{name}_low", f"{name}_high")]
    # The reference against itself is exact.
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if numbers[1] != numbers[2] else numbers[0]


def dry_run(experiment: Experiment, console: Console) -> None:
    """Check everything that needs no model, list the runs and count them, condition by condition."""
    check(experiment)
    check_judge(experiment.evaluation, free=True)
    beside = baselines(experiment, variants)
    whole = with_baselines(experiment, variants)
    proper = unfold(whole, variants, reference="")
    runs = [*proper, *_beside(whole, proper)]
    for one in runs:
        console.print(describe(one), highlight=False, markup=False)
    _warn(console, runs, beside)
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
    if judge is None or judge.declared["estimate"] is None:
        return ""
    opponents = plan(asked, has_pairs=True, heldout="").opponents
    answered = len(opponents) * runs + len(opponents[:1]) * asked.checkpoints * proper
    comparisons = 2 * asked.prompts * asked.draws * answered
    lengths = experiment.recipe.max_prompt_tokens, asked.max_new_tokens
    told = judge.declared["estimate"](comparisons, *lengths, **judge.arguments(asked.judge_settings))
    return f"{told} (win-rates alone: the judge card, the tournament, objectives and second questions come on top)"


def _beside(experiment: Experiment, proper: Sequence[Run]) -> Iterator[Run]:
    """The runs of all studies, as a plan would have them."""
    for condition in experiment.studies.conditions():
        yield from unfold(experiment, variants, reference="", condition=condition)
    for number in experiment.studies.later_rounds:
        yield from (successor(run, number, "") for run in proper)


def _warn(console: Console, runs: Sequence[Run], beside: Sequence[str]) -> None:
    if warning := unequal_trials([one for one in runs if one.variant not in beside]):
        console.print(f"warning: {warning}", highlight=False, markup=False)


def _run_together(experiment: Experiment, out: Path, where: Machine, console: Console) -> int:
    """Under torchrun: every process takes part in every run; the first one prepares, scores and reports."""
    from accelerate.utils import broadcast_object_list

    from dpobench.train import accelerator_for

    quiet(where.threads)
    register(experiment.plugins)
    accelerator = accelerator_for(where.device, experiment.recipe.precision)
    world = int(os.environ["WORLD_SIZE"])
    if accelerator.num_processes != world:
        raise UserError(
            f"{world} processes were started, accelerate sees {accelerator.num_processes}; start with torchrun"
        )
    told: list[Any] = [None]
    if accelerator.is_main_process:
        check(experiment)
        check_judge(experiment.evaluation)
        with store.locked(out):
            store.sweep_parts(out)
            beside = baselines(experiment, variants)
            jobs = plan_jobs(with_baselines(experiment, variants), out, where, console, beside)
            _warn(console, [job.run for job in jobs], beside)
            _check_disk([job for job in jobs if not is_done(job)], out, where.workers)
            told = [[job.model_dump_json() for job in jobs]]
            _execute_all(told, accelerator, broadcast_object_list)
            return finish(out, {job.run.id: status_of(job.folder) for job in jobs}, console)
    _execute_all(told, accelerator, broadcast_object_list)
    return 0


def _execute_all(told: list[Any], accelerator: Any, broadcast: Any) -> None:
    broadcast(told)
    for text in told[0]:
        execute(Job.model_validate_json(text))
    accelerator.wait_for_everyone()


def summary(out: Path) -> list[tuple[str, str, str]]:
    """State of every planned run: id, status, reason.

    Raises:
        UserError: the folder holds no plan.
    """
    if not (out / "plan.json").is_file():
        raise UserError(f"{out}: no plan.json, so no experiment; name the folder that `dpobench run --out` wrote")
    rows = []
    for entry in store.read_json(out / "plan.json")["runs"]:
        note = out / "runs" / entry["id"] / "run.json"
        if not note.is_file():
            rows.append((entry["id"], "missing", ""))
            continue
        content = store.read_json(note)
        status = "scoring" if content["status"] == "done" and not store.sealed(note.parent) else content["status"]
        rows.append((entry["id"], status, content["reason"] or ""))
    return rows
