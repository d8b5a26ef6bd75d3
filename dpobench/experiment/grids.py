"""Grids as they are written on the command line."""

import tomllib
from collections.abc import Mapping, Sequence

from dpobench.errors import UnknownName, UserError
from dpobench.experiment.config import Grid
from dpobench.losses.spec import UNITS
from dpobench.losses.variant import Variant


def parse_grids(betas: Sequence[str], grids: Sequence[str], losses: Mapping[str, Variant]) -> tuple[Grid, list[str]]:
    """Unfold `--beta-grid` and `--grid`.

    Args:
        betas: "auto" (each variant's own grid), "0.05,0.1" (these for every variant) or "dpo=0.05,0.1" (for one).
        grids: "cdpo.flip=0.1,0.2".
        losses: the chosen variants, by name.

    Returns: values by variant and parameter, and warnings to show.

    Raises:
        UserError: a variant that was not chosen, an unknown parameter, a value that is no number or out of bounds.
    """
    grid: Grid = {name: {} for name in losses}
    warnings = []
    for text in sorted(betas, key=lambda text: ("=" in text, text != "auto")):
        owner, sign, values = text.rpartition("=")
        for name in [owner] if sign else losses:
            variant = _one_of(losses, name, f"--beta-grid {text}")
            grid[name][variant.strength] = (
                variant.beta_grid if text == "auto" else _numbers(values, variant, variant.strength)
            )
            if not sign and text != "auto" and variant.unit != "nat":
                warnings.append(f"--beta-grid {text}: the {variant.strength} of {name} {UNITS[variant.unit]}; its own grid is "
                                f"{', '.join(f'{value:g}' for value in variant.beta_grid)}")  # fmt: skip
    for text in grids:
        path, sign, values = text.partition("=")
        # A mixture has dots in its name.
        owner = max((name for name in losses if path.startswith(f"{name}.")), key=len, default=path.partition(".")[0])
        name, parameter = owner, path[len(owner) + 1 :]
        if not sign or not parameter:
            raise UserError(f"--grid {text!r}: write VARIANT.PARAMETER=VALUE,VALUE")
        variant = _one_of(losses, name, f"--grid {text}")
        grid[name][parameter] = _numbers(values, variant, parameter)
    return grid, warnings


def _one_of(losses: Mapping[str, Variant], name: str, option: str) -> Variant:
    if name not in losses:
        raise UnknownName("chosen variant", name, losses, f" ({option}; add it to --variants, or mend the name)")
    return losses[name]


def _numbers(text: str, variant: Variant, parameter: str) -> tuple[bool | int | float | str, ...]:
    values = []
    for part in text.split(","):
        try:
            value = tomllib.loads(f"value = {part.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = part.strip()
        values.append(variant.arguments({parameter: value})[parameter])
    if len(set(values)) < len(values):
        raise UserError(f"{variant.name}.{parameter}: {text} names a value twice")
    return tuple(values)
