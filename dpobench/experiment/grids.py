"""Grids as they are written on the command line."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from dpobench.errors import UnknownName, UserError
from dpobench.losses.variant import UNITS, Variant
from dpobench.plugins.registry import Registry


def parse_grids(
    betas: Sequence[str], grids: Sequence[str], names: Sequence[str], registry: Registry
) -> tuple[dict[str, dict[str, tuple[Any, ...]]], list[str]]:
    """Unfold `--beta-grid` and `--grid`.

    Args:
        betas: "auto" (each variant's own grid), "0.05,0.1" (these for every variant) or "dpo=0.05,0.1" (for one).
        grids: "cdpo.flip=0.1,0.2".
        names: the chosen variants.
        registry: where variants are found.

    Returns: values by variant and parameter, and warnings to show.

    Raises:
        UserError: a variant that was not chosen, an unknown parameter, a value that is no number or out of bounds.
    """
    chosen: dict[str, Variant] = {name: registry.get(name) for name in names}
    found: dict[str, dict[str, tuple[Any, ...]]] = {name: {} for name in chosen}
    warnings = []
    for text in sorted(betas, key=lambda text: ("=" in text, text != "auto")):
        owner, sign, values = text.rpartition("=")
        for name in [owner] if sign else chosen:
            variant = _one_of(chosen, name, f"--beta-grid {text}")
            found[name][variant.strength] = (
                variant.beta_grid if text == "auto" else _numbers(values, variant, variant.strength)
            )
            if not sign and text != "auto" and variant.unit != "nat":
                warnings.append(f"--beta-grid {text}: the {variant.strength} of {name} {UNITS[variant.unit]}; its own grid is "
                                f"{', '.join(f'{value:g}' for value in variant.beta_grid)}")  # fmt: skip
    for text in grids:
        path, sign, values = text.partition("=")
        # A mixture has dots in its name.
        owner = max((name for name in chosen if path.startswith(f"{name}.")), key=len, default=path.partition(".")[0])
        name, parameter = owner, path[len(owner) + 1 :]
        if not sign or not parameter:
            raise UserError(f"--grid {text!r}: write VARIANT.PARAMETER=VALUE,VALUE")
        variant = _one_of(chosen, name, f"--grid {text}")
        found[name][parameter] = _numbers(values, variant, parameter)
    return found, warnings


def _one_of(chosen: Mapping[str, Variant], name: str, option: str) -> Variant:
    if name not in chosen:
        raise UnknownName("chosen variant", name, chosen, f" ({option}; add it to --variants, or mend the name)")
    return chosen[name]


def _numbers(text: str, variant: Variant, parameter: str) -> tuple[Any, ...]:
    values: list[Any] = []
    for part in text.split(","):
        try:
            value: Any = tomllib.loads(f"value = {part.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = part.strip()
        values.append(variant.arguments({parameter: value})[parameter])
    if len(set(values)) < len(values):
        raise UserError(f"{variant.name}.{parameter}: {text} names a value twice")
    return tuple(values)
