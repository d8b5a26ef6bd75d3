"""Starting an experiment from Python, with the options of the command."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from dpobench.api.results import Results, load
from dpobench.errors import DpobenchError
from dpobench.experiment.options import BARE, Options, default_folder
from dpobench.sweep import run as sweep

Values = Sequence[bool | int | float | str]


def run(
    variants: Sequence[str],
    *,
    beta_grid: bool | Sequence[float] | Mapping[str, Sequence[float]] = False,
    grid: Mapping[str, Values] | None = None,
    seeds: Sequence[int] = (),
    out: str | Path | None = None,
    settings: Mapping[str, bool | int | float | str | Values] | None = None,
    quiet: bool = False,
    **options: object,
) -> Results:
    """Train every variant over its grid, score the checkpoints, write the report: what `dpobench run` does. Again: only what is missing.

    Several runs at a time need processes of their own, as everywhere in Python: call it under `if __name__ == "__main__":`.

    Args:
        variants: names of losses; the first is the control.
        beta_grid: True for each variant's own grid; numbers for all variants; or numbers by variant.
        grid: values of any hyper-parameter, by "VARIANT.PARAMETER".
        seeds: of the trainings; one training of every configuration each.
        out: folder of the experiment; None for one below `results/`.
        settings: any setting by its path, e.g. {"recipe.epochs": 2}; what `--set` is for.
        quiet: whether nothing is printed.
        options: the other options of the command, by their names: `lr_grid`, `control`, `preset`, `model`, `data`, `heldout`, `judge`,
            `tasks`, `objectives`, `checkpoints`, `label_noise`, `train_size`, `reference_quality`, `rounds`, `baselines`, `plugins`,
            `config`; and `device`, `workers`, `threads` of the machine.

    Returns: the results, as `load` gives them; runs that failed have their reason in `results.runs`.

    Raises:
        UserError: a name, option or value is impossible; nothing has been trained.
        Locked: another process holds the folder.
        DpobenchError: every run failed.

    Example:
        >>> results = run(["dpo", "ipo"], beta_grid=True, seeds=range(3), out="results/mine")     # doctest: +SKIP
        >>> results.verdict                                                                       # doctest: +SKIP
    """
    machine = {name: options.pop(name, None) for name in ("device", "workers", "threads")}
    _refuse_unknown(options)
    requested = Options(
        variants=list(variants),
        beta_grid=_beta_grid(beta_grid),
        grid=[f"{name}={_comma_separated(values)}" for name, values in (grid or {}).items()],
        seeds=list(seeds),
        assignments=[f"{path}={_toml(value)}" for path, value in (settings or {}).items()],
        **options,  # type: ignore[arg-type]  # pydantic checks each value when the experiment is made
    )
    console = Console(quiet=quiet, soft_wrap=True, file=sys.stdout)
    experiment, warnings = requested.experiment()
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False)
    folder = Path(out) if out is not None else default_folder(experiment)
    status = sweep.run(experiment, folder, sweep.machine(**machine), console)  # type: ignore[arg-type]
    results = load(folder)
    if status == 4:
        raise DpobenchError(
            f"every run failed: {results.runs['reason'].iloc[0]}; `dpobench status {folder}` lists them"
        )
    return results


def _refuse_unknown(options: Mapping[str, object]) -> None:
    """Refuse a mistyped option; the nearest is named."""
    from dpobench.errors import UnknownName

    known = {*Options.__dataclass_fields__, "device", "workers", "threads"} - {"assignments"}
    for name in options:
        if name not in known:
            raise UnknownName("option of dpobench.run", name, known)


def _beta_grid(values: bool | Sequence[float] | Mapping[str, Sequence[float]]) -> list[str]:
    if isinstance(values, bool):
        return [BARE] if values else []
    if isinstance(values, Mapping):
        return [f"{name}={_comma_separated(betas)}" for name, betas in values.items()]
    return [_comma_separated(values)]


def _comma_separated(values: Values) -> str:
    return ",".join(map(_toml, values))


def _toml(value: bool | int | float | str | Values) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return "'" + value + "'"
    return f"[{_comma_separated(value)}]"
