"""An experiment from its settings to its report: check, prepare once, run what is missing, report."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from dpobench.artifacts.files import cache_folder, locked, sweep_parts
from dpobench.artifacts.records import RunRecord, Status
from dpobench.errors import UserError
from dpobench.experiment.config import Experiment
from dpobench.experiment.plugin_files import register
from dpobench.experiment.validate import validate
from dpobench.sweep.collectives import agreed
from dpobench.sweep.job import Job, execute, is_done, is_trained, status_of
from dpobench.sweep.plan import Machine, plan_jobs, stages
from dpobench.sweep.preview import warn_of_unequal_trials
from dpobench.sweep.progress import Display
from dpobench.sweep.status import summary_lines
from dpobench.sweep.workers import Workers, quiet
from dpobench.training.accelerate import Accelerator, accelerator_for


def machine(device: str | None, workers: int | None, threads: int | None) -> Machine:
    """Choose device and width.

    On a CPU: one worker per core with one thread each, so that the number of threads (on which rounding depends) does not
    depend on how many runs are left. On GPUs: one worker per device.

    Raises:
        UserError: CUDA was requested and there is none.
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
        UserError: the settings ask for something impossible; nothing has been trained.
        Locked: another process holds the folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _run_together(experiment, out, where, console)
    validate(experiment)
    baselines = experiment.baseline_names()
    with locked(out):
        sweep_parts(out)
        with Workers(where.workers, where.threads, _devices(where)) as workers:
            jobs = plan_jobs(experiment.with_baselines(), out, where, console, baselines)
            warn_of_unequal_trials(console, [job.run for job in jobs], baselines)
            missing = [job for job in jobs if not is_done(job)]
            _check_disk(missing, out, where.workers)
            ended = {job.run.id: status_of(job.folder) for job in jobs if job not in missing}
            console.print(f"{len(jobs)} runs planned, {len(jobs) - len(missing)} done already", highlight=False)
            _say_why_again(missing, console)
            with Display({job.run.id: job.run for job in jobs}, console, ended) as display:
                for stage in stages(missing):
                    ended |= workers.run(stage, display)
        return finish(out, ended, console)


def _say_why_again(missing: Sequence[Job], console: Console) -> None:
    """Say of finished runs why they are not done."""
    trained = [job for job in missing if status_of(job.folder) == "done"]
    again = sum(not is_trained(job) for job in trained)
    if again:
        console.print(
            f"{again} of them are trained again, to the same end: they saved no checkpoints within", highlight=False
        )
    if len(trained) > again:
        console.print(
            f"{len(trained) - again} of them are trained, and are scored as the settings are now", highlight=False
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
    checkpoints = sum(1 + job.evaluation.checkpoints for job in missing if not is_trained(job))
    needed = int(1.1 * weights * (checkpoints + state * workers))
    free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{len(missing)} runs need about {needed / 1e9:.1f} GB in {out}, {free / 1e9:.1f} GB are free; "
            "free some, choose another --out, or fewer grid points or --checkpoints"
        )


def finish(out: Path, ended: Mapping[str, Status], console: Console) -> int:
    """Write the report and say what came out."""
    from dpobench.report.write import write_report
    from dpobench.sweep import tournament

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    tournament.play(out, say=say)
    report = write_report(out)
    for line in summary_lines(report.parent):
        console.print(line, highlight=False, markup=False, no_wrap=True)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    bad = {name: status for name, status in ended.items() if status not in ("done", "diverged")}
    for name, status in bad.items():
        reason = RunRecord.read(out / "runs" / name).reason
        console.print(f"{status}: {name}: {reason} (run again to retry)", highlight=False, markup=False)
    if not bad:
        return 0
    return 4 if len(bad) == len(ended) else 2


def _run_together(experiment: Experiment, out: Path, where: Machine, console: Console) -> int:
    """Under torchrun: every process takes part in every run; the first one prepares, scores and reports."""
    quiet(where.threads)
    register(experiment.plugins)
    accelerator = accelerator_for(where.device, experiment.recipe.precision)
    world = int(os.environ["WORLD_SIZE"])
    if accelerator.num_processes != world:
        raise UserError(
            f"{world} processes were started, accelerate sees {accelerator.num_processes}; start with torchrun"
        )
    if accelerator.is_main_process:
        validate(experiment)
        with locked(out):
            sweep_parts(out)
            baselines = experiment.baseline_names()
            jobs = plan_jobs(experiment.with_baselines(), out, where, console, baselines)
            warn_of_unequal_trials(console, [job.run for job in jobs], baselines)
            _check_disk([job for job in jobs if not is_done(job)], out, where.workers)
            _execute_all([job.model_dump_json() for job in jobs], accelerator)
            return finish(out, {job.run.id: status_of(job.folder) for job in jobs}, console)
    _execute_all([], accelerator)
    return 0


def _execute_all(texts: list[str], accelerator: Accelerator) -> None:
    """Do all jobs together.

    Args:
        texts: the jobs as JSON; those of the first process are done, on every process.
        accelerator: of this process.
    """
    for text in agreed(accelerator, texts):
        execute(Job.model_validate_json(text))
    accelerator.wait_for_everyone()
