"""The commands about losses, evaluators and judges: list them, show one, check a file, write a file to start from."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpobench.cli.group import Group
from dpobench.errors import UserError

if TYPE_CHECKING:
    from dpobench.evaluation.registry import EvaluatorRegistry, JudgeRegistry
    from dpobench.gallery.verdict import AnyRegistry
    from dpobench.losses.registry import LossRegistry


def _losses() -> "LossRegistry":
    from dpobench.losses.registry import variants

    return variants


def _evaluators() -> "EvaluatorRegistry":
    from dpobench.evaluation.registry import evaluators

    return evaluators


def _judges() -> "JudgeRegistry":
    from dpobench.evaluation.registry import judges

    return judges


def _echo(lines: Iterable[object]) -> None:
    for line in lines:
        click.echo(line)


def _plugin_option(word: str) -> Callable[[Any], Any]:
    return click.option("--plugin", "plugins", multiple=True, metavar="FILE.py", help=f"File with {word} of yours.")


def _add(registry: "AnyRegistry", plugins: Iterable[str]) -> None:
    for file in plugins:
        registry.add_file(Path(file))


def _check(group: click.Group, registry: "Callable[[], AnyRegistry]", words: str, *, settings: bool) -> None:
    """Give a group the command `check`."""

    def check_file(file: Path, assignments: tuple[str, ...] = ()) -> int:
        from dpobench.gallery.verdict import verdict

        values: dict[str, Any] = {}
        if assignments:
            from dpobench.experiment.config import set_path

            for assignment in assignments:
                set_path(values, assignment)
        lines, passed = verdict(file, registry(), values)
        _echo(lines)
        return 0 if passed else 2

    arguments: list[click.Parameter] = [click.Argument(["file"], type=click.Path(path_type=Path))]
    if settings:
        help_text = "Any setting of theirs, e.g. model=FOLDER (repeatable)."
        arguments.append(click.Option(["--set", "assignments"], multiple=True, metavar="NAME=VALUE", help=help_text))
    group.add_command(
        click.Command(
            "check", params=arguments, callback=check_file, help=f"Try the laws on the {words} of a file of yours."
        )
    )


def _new(group: click.Group, registry: "Callable[[], AnyRegistry]", words: str) -> None:
    """Give a group the command `new`."""

    @group.command(help=f"Write {words} to start from, and a test for it.")
    @click.argument("name")
    @click.option(
        "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where to write it."
    )
    def new(name: str, folder: Path) -> None:
        from dpobench.gallery import starter

        _echo(starter.write(name, folder, registry()))


@click.group(cls=Group, invoke_without_command=True)
@_plugin_option("a loss")
@click.pass_context
def variants(ctx: click.Context, plugins: tuple[str, ...]) -> None:
    """List the losses; `show`, `check` and `new` look closer."""
    from dpobench.gallery import portrait

    _add(_losses(), plugins)
    if ctx.invoked_subcommand is None:
        _echo(portrait.listing())


@variants.command()
@click.argument("name", required=False)
@click.option("--plot", is_flag=False, flag_value="", metavar="[FILE]",
              help="Draw loss and gradient against the margin: bare, in the terminal; or into a .svg, .png or .pdf.")  # fmt: skip
def show(name: str | None, plot: str | None) -> None:
    """Everything about one loss, or about a sum of them: show dpo:0.8+sft."""
    from dpobench.gallery import portrait

    if name is None and plot:
        # The bare option stood before the name and took it for its value.
        name, plot = plot, ""
    if name is None:
        raise UserError("variants show: no loss is named; `dpobench variants` lists them")
    _echo(portrait.portrait(name, plot))


@click.group(cls=Group, invoke_without_command=True)
@_plugin_option("an evaluator")
@click.pass_context
def evaluators(ctx: click.Context, plugins: tuple[str, ...]) -> None:
    """List the evaluators; `show`, `check` and `new` look closer."""
    from dpobench.gallery import scoring

    _add(_evaluators(), plugins)
    if ctx.invoked_subcommand is None:
        _echo(scoring.listing(_evaluators()))


@evaluators.command(name="show")
@click.argument("name")
def show_evaluator(name: str) -> None:
    """Everything about one evaluator: metrics, needs, settings."""
    from dpobench.gallery import scoring

    _echo(scoring.portrait(_evaluators().get(name)))


@click.group(cls=Group, invoke_without_command=True)
@_plugin_option("a judge")
@click.pass_context
def judges(ctx: click.Context, plugins: tuple[str, ...]) -> None:
    """List the judges; `show`, `check` and `new` look closer."""
    from dpobench.gallery import scoring

    _add(_judges(), plugins)
    if ctx.invoked_subcommand is None:
        _echo(scoring.listing(_judges()))


@judges.command(name="show")
@click.argument("name")
def show_judge(name: str) -> None:
    """Everything about one judge: kind, settings."""
    from dpobench.gallery import scoring

    _echo(scoring.portrait(_judges().get(name)))


_check(variants, _losses, "losses", settings=False)
_new(variants, _losses, "a loss")
_check(evaluators, _evaluators, "evaluators", settings=True)
_new(evaluators, _evaluators, "an evaluator")
_check(judges, _judges, "judges", settings=True)
_new(judges, _judges, "a judge")
