"""The command line. Nothing heavy is imported before a command runs."""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dpobench import __version__
from dpobench.cli.group import Group
from dpobench.cli.plugins import evaluators, judges, variants
from dpobench.errors import DpobenchError, UserError

PRESETS = ("tiny", "small", "large")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: a mistake of the user's is one line and status 2, never a traceback."""
    try:
        status = commands.main(arguments, prog_name="dpobench", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("interrupted; run the same command again to go on", err=True)
        sys.exit(130)
    except DpobenchError as error:
        if "--debug" in (arguments or sys.argv):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show tracebacks of mistakes, too.")
def commands(debug: bool) -> None:
    """Compare preference losses: which one, at which strength, and how sure that is."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


for _group in (variants, evaluators, judges):
    commands.add_command(_group)


def _names(ctx: click.Context, param: click.Parameter, text: str | None) -> list[str]:
    """Names between commas, as a callback of an option."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _numbers(
    kind: type[int] | type[float], bare: Callable[[], Sequence[float]] | None = None
) -> Callable[[click.Context, click.Parameter, str | None], Sequence[float]]:
    """Numbers between commas, as a callback of an option.

    Args:
        kind: int or float.
        bare: gives the numbers that the option means where it stands without a value.
    """

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Sequence[float]:
        if bare is not None and text == "auto":
            return bare()
        try:
            return [kind(part) for part in _names(ctx, param, text)]
        except ValueError as error:
            raise UserError(f"{param.opts[0]} {text!r}: numbers separated by commas are expected ({error})") from error

    return read


def _qualities() -> Sequence[float]:
    from dpobench.experiment.studies import QUALITIES

    return QUALITIES


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True)


_RUN_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--variants", callback=_names, metavar="NAMES", help="Losses to compare, e.g. dpo,ipo; the first is the control."),
    click.option("--beta-grid", multiple=True, is_flag=False, flag_value="auto", metavar="[GRID]",
                 help="Bare: each variant's own grid. '0.05,0.1': for all. 'dpo=0.05,0.1': for one (repeatable)."),
    click.option("--grid", multiple=True, metavar="VARIANT.PARAM=VALUES", help="Grid of any hyper-parameter (repeatable)."),
    click.option("--lr-grid", callback=_numbers(float), metavar="VALUES", help="Grid of learning rates, alike for all variants."),
    click.option("--seeds", callback=_numbers(int), metavar="NUMBERS",
                 help="Seeds, e.g. 0,1,2. With one seed the report claims nothing about methods."),
    click.option("--control", metavar="NAME", help="Variant the others are tested against (default: the first)."),
    click.option("--preset", type=click.Choice(PRESETS), help="Embedded default (without --model and --data: small)."),
    click.option("--model", metavar="FOLDER|HUB", help="Start policy, which is also the reference."),
    click.option("--data", metavar="FILE|HUB", help="Preference pairs; the layout is recognised."),
    click.option("--heldout", metavar="FILE|HUB", help="Held-out pairs (default: a tenth of the prompts of --data)."),
    click.option("--judge", metavar="NAME", help="Judge of the win-rate."),
    click.option("--tasks", callback=_names, metavar="NAMES", help="lm-eval tasks."),
    click.option("--objectives", multiple=True, is_flag=False, flag_value="auto", metavar="[NAME=VALUE,...]",
                 help="Several objectives: a=JUDGE:SETTING,b=PAIRS.jsonl; bare: those of the embedded default."),
    click.option("--checkpoints", type=click.IntRange(0, 50), help="Checkpoints scored within each training, besides its end."),
    click.option("--label-noise", callback=_numbers(float), metavar="SHARES",
                 help="Study: shares of flipped training labels, e.g. 0,0.1,0.3."),
    click.option("--train-size", callback=_numbers(int), metavar="NUMBERS",
                 help="Study: numbers of training pairs, e.g. 1000,5000."),
    click.option("--reference-quality", callback=_numbers(float, _qualities), is_flag=False, flag_value="auto", metavar="[SHARES]",
                 help="Study: shares of the embedded base model's training; bare: 0.1,0.3."),
    click.option("--rounds", type=click.IntRange(1), help="Study: rounds of training on the policy's own answers, as judged."),
    click.option("--no-baselines", "baselines", flag_value=False, default=None, help="Train the variants alone."),
    click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder (default: one under results/)."),
    click.option("--plugin", "plugins", multiple=True, metavar="FILE.py", help="File with a loss, evaluator or judge of yours."),
    click.option("-c", "--config", type=click.Path(path_type=Path), help="Experiment file (TOML); options go before it."),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. recipe.learning_rate=5e-7."),
]  # fmt: skip
_MACHINE_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("--device", type=click.Choice(("cpu", "cuda")), help="Default: CUDA where there is one."),
    click.option("--workers", type=click.IntRange(1), help="Runs at a time (default: one per core, or per GPU)."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads of each run."),
]


def _with(decorators: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    return lambda function: functools.reduce(lambda inner, option: option(inner), reversed(decorators), function)


def _refuse_unknown_names(given: Mapping[str, Any]) -> None:
    """Refuse a mistyped loss or judge before anything heavy is imported; files of the user's may bring names of their own."""
    from dpobench.evaluation.registry import judges
    from dpobench.losses.registry import variants

    if given["plugins"] or given["config"]:
        return
    for name in given["variants"]:
        variants.require(name)
    if given["judge"] is not None:
        judges.require(given["judge"])


@commands.command()
@_with(_RUN_OPTIONS)
@_with(_MACHINE_OPTIONS)
@click.option("--dry-run", is_flag=True, help="Check names, settings, grids and plugins, and list the runs.")
def run(
    dry_run: bool, device: str | None, workers: int | None, threads: int | None, out: Path | None, **given: Any
) -> int:
    """Train every variant over its grid, score the checkpoints, write the report. Again: only what is missing."""
    _refuse_unknown_names(given)
    from dpobench.experiment.options import Options, default_folder
    from dpobench.sweep import preview, run

    console = _console()
    experiment, warnings = Options(**given).experiment()
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False)
    if dry_run:
        preview.dry_run(experiment, console)
        return 0
    where = run.machine(device, workers, threads)
    return run.run(experiment, out or default_folder(experiment), where, console)


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write the report of an experiment again, from its files alone."""
    from dpobench.report.write import write_report

    if not (folder / "plan.json").is_file():
        raise UserError(f"{folder}: no plan.json, so no experiment; name the folder that `dpobench run --out` wrote")
    click.echo(write_report(folder))


@commands.command()
@click.argument("folder", type=click.Path(path_type=Path))
def status(folder: Path) -> None:
    """Say which runs of an experiment are done, missing or failed."""
    from dpobench.sweep.status import summary

    rows = summary(folder)
    for run_id, state, reason in rows:
        click.echo(f"{run_id}  {state}{f'  {reason}' if reason else ''}")
    done = sum(state in ("done", "diverged") for _, state, _ in rows)
    click.echo(f"{done} of {len(rows)} runs done")


@commands.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="[NAME=]FOLDER[,FOLDER]...")
@click.option("--reference", "model", required=True, metavar="FOLDER|HUB", help="The policy they all started from.")
@click.option("--data", required=True, metavar="FILE|HUB", help="Held-out preference pairs.")
@click.option("--control", metavar="NAME", help="Checkpoint the others are tested against (default: the first).")
@click.option("--judge", metavar="NAME", help="Judge of the win-rate.")
@click.option("--tasks", callback=_names, metavar="NAMES", help="lm-eval tasks.")
@click.option(
    "--objectives", multiple=True, metavar="NAME=VALUE,...", help="Several objectives: judges or files of pairs."
)
@click.option("--plugin", "plugins", multiple=True, metavar="FILE.py", help="File with an evaluator or judge of yours.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. evaluation.draws=2.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of scores and report."
)
@_with(_MACHINE_OPTIONS)
def evaluate(
    checkpoints: tuple[str, ...], out: Path, device: str | None, workers: int | None, threads: int | None, **given: Any
) -> int:
    """Score checkpoints trained elsewhere against their reference and write the same report. Again: only what is missing.

    A checkpoint is a folder or hub name of a model or of a peft adapter, or a run of `dpobench run`. NAME=FOLDER,FOLDER enters
    several seeds of one method, and so does a quoted pattern: NAME='FOLDER-*'.
    """
    from dpobench.experiment.options import Options
    from dpobench.sweep import external, run

    where = run.machine(device, workers, threads)
    return external.evaluate(checkpoints, Options(**given).scoring(), out, where, _console())


@commands.command()
@click.option("--seeds", type=int, default=3, show_default=True, help="Trainings per variant.")
@click.option(
    "--prompts", type=int, default=500, show_default=True, help="Test prompts: the reported half of the held-out ones."
)
@click.option("--variants", type=int, default=2, show_default=True, help="Variants, the control among them.")
@click.option("--effect", type=float, help="Difference that must not be missed; 3 points of win-rate are 0.03.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Take the spreads of a finished experiment.",
)
@click.option("--alpha", type=float, default=0.05, show_default=True, help="Level of all tests together.")
def power(**options: Any) -> None:
    """Say before training which differences a design can detect."""
    from dpobench.analysis import power as foresight

    for line in foresight.lines(**options):
        click.echo(line)


@commands.command()
def doctor() -> int:
    """Check this installation: versions, device, plugins, disk, offline mode."""
    from dpobench.cli import doctor as clinic

    lines, healthy = clinic.examine()
    for line in lines:
        click.echo(line)
    return 0 if healthy else 2


@commands.command()
@click.option("--json", "target", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows as JSON, too.")
@click.option("--quick", is_flag=True, help="Fewer repetitions, the small model in float32 only.")
@click.option("--sweep", "whole_sweep", is_flag=True, help="Compare twelve runs with as many of TRL's, too (minutes).")
@click.option("--gpu", is_flag=True, help="On CUDA, with models of 0.5 and 7 billion weights.")
@click.option("--data", multiple=True, metavar="FILE", help="Measure on the lengths of these preference pairs instead.")
def bench(target: Path | None, quick: bool, whole_sweep: bool, gpu: bool, data: tuple[str, ...]) -> None:
    """Measure our training step against TRL's on the same work, in this process (needs the extra `parity`)."""
    from dpobench.bench.run import run
    from dpobench.bench.suites import FULL, GPU, QUICK

    for line in run(target, GPU if gpu else QUICK if quick else FULL, data=data, with_sweep=whole_sweep):
        click.echo(line)
