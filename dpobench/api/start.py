"""Starting an experiment from Python, with the options of the command."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dpobench.api.results import Results, load
from dpobench.errors import DpobenchError, UnknownName, UserError
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
    options = _checked(options)
    if isinstance(variants, str):
        raise UserError(f"variants = {variants!r}: a list of names is expected, as in ['dpo', 'ipo']")
    requested = Options(
        variants=list(variants),
        beta_grid=_beta_grid(beta_grid),
        grid=[f"{name}={_comma_separated(values)}" for name, values in (grid or {}).items()],
        seeds=[int(seed) for seed in seeds],
        assignments=[f"{path}={_toml(value)}" for path, value in (settings or {}).items()],
        **options,  # type: ignore[arg-type]  # checked by name and kind above, by value where the experiment is made
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


# Options of the command that take several values.
_SEVERAL = ("lr_grid", "tasks", "objectives", "label_noise", "train_size", "reference_quality", "plugins")


def _checked(options: Mapping[str, object]) -> dict[str, object]:
    """Options by name as `Options` takes them; one that is None is not given.

    Raises:
        UserError: an unknown name, with the nearest one, or one value where several are expected.
    """
    known = {*Options.__dataclass_fields__, "device", "workers", "threads"} - {"assignments"}
    checked: dict[str, object] = {}
    for name, value in options.items():
        if name not in known:
            raise UnknownName("option of dpobench.run", name, known)
        if value is None:
            continue
        if name in _SEVERAL and (isinstance(value, str | bytes) or not isinstance(value, Iterable)):
            raise UserError(f"{name} = {value!r}: a list is expected")
        if name in _SEVERAL:
            assert isinstance(value, Iterable)
            checked[name] = [one.item() if isinstance(one, np.generic) else one for one in value]
        elif name == "config":
            checked[name] = Path(str(value))
        else:
            checked[name] = str(value) if isinstance(value, Path) else value
    return checked


def _beta_grid(values: bool | Sequence[float] | Mapping[str, Sequence[float]]) -> list[str]:
    if isinstance(values, bool):
        return [BARE] if values else []
    if isinstance(values, Mapping):
        return [f"{name}={_comma_separated(betas)}" for name, betas in values.items()]
    return [_comma_separated(values)]


def _comma_separated(values: Values) -> str:
    return ",".join(map(_toml, values))


def _toml(value: bool | int | float | str | Values) -> str:
    """A value as TOML has it; a number of numpy's is the number that it holds."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"[{_comma_separated(value)}]"
