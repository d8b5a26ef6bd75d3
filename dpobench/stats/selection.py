"""Which strength stands for a variant: chosen on the selection prompts, reported on others."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Candidate:
    """One configuration of a variant on the selection prompts, its seeds pooled.

    Args:
        configuration: its key.
        variant: whose it is.
        value: mean of the ranking metric.
        se: its standard error.
        distance: how far from the reference it went; None where nothing measured it.
        eligible: whether at least one seed finished and none diverged or failed.
        complete: whether every planned seed finished.
    """

    configuration: str
    variant: str
    value: float
    se: float
    distance: float | None = None
    eligible: bool = True
    complete: bool = True


def select(candidates: Iterable[Candidate], better: Literal["higher", "lower"] = "higher") -> dict[str, Candidate]:
    """Choose one configuration per variant.

    The best mean wins, but whatever lies within one standard error of it counts as equal, and among equals the one closest to the
    reference is taken. Configurations with all their seeds come first; an incomplete one stands in only where there is no other.

    Args:
        candidates: configurations of all variants.
        better: direction of the ranking metric.

    Returns: the chosen candidate of each variant that has an eligible one.
    """
    sign = 1.0 if better == "higher" else -1.0
    groups: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: (c.variant, c.configuration)):
        if candidate.eligible:
            groups.setdefault(candidate.variant, []).append(candidate)
    chosen = {}
    for variant, group in groups.items():
        whole = [candidate for candidate in group if candidate.complete] or group
        best = max(whole, key=lambda c: sign * c.value)
        equal = [c for c in whole if sign * (best.value - c.value) <= best.se and c.distance is not None]
        chosen[variant] = min(equal, key=lambda c: (c.distance or 0.0, -sign * c.value), default=best)
    return chosen
