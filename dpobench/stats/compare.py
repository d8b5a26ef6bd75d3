"""The primary family: each variant against the declared control on the same prompts, Holm over the family."""

import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import false_discovery_control

from dpobench.stats.crossed import Estimate


@dataclass(frozen=True)
class Comparison:
    """A variant less the control.

    Args:
        variant: what is compared with the control.
        control: the variant that all are compared with.
        estimate: mean difference on the paired prompts, in the unit of the metric.
        low: lower end of its interval, not adjusted for the family.
        high: upper end.
        se: standard error over prompts and seeds.
        df: degrees of freedom.
        n_prompts: paired prompts.
        seeds: trainings of the variant or of the control, whichever has fewer.
        p: two-sided p-value of "no difference".
        p_adjusted: the same after Holm over the family.
        level: "method" with two seeds or more of both, else "checkpoint": then nothing is claimed of the methods.
    """

    variant: str
    control: str
    estimate: float
    low: float
    high: float
    se: float
    df: float
    n_prompts: int
    seeds: int
    p: float
    p_adjusted: float
    level: str

    def verdict(self, better: Literal["higher", "lower", "none"], alpha: float = 0.05) -> str:
        """In words: "better than X", "worse than X", or "no difference shown"; at the level of a checkpoint with these words added.

        Args:
            better: direction of the metric.
            alpha: level of the family.
        """
        if self.p_adjusted < alpha and better != "none":
            ahead = (self.estimate > 0) == (better == "higher")
            verdict = f"{'better' if ahead else 'worse'} than {self.control}"
        else:
            verdict = "no difference shown"
        return verdict if self.level == "method" else f"{verdict} (this checkpoint only)"


def family(differences: Mapping[str, Estimate], control: str) -> dict[str, Comparison]:
    """Adjust a family of differences to one control by Holm's method.

    Args:
        differences: of each variant to the control, by variant.
        control: name of the control.

    Returns: one comparison per variant, in the order given, p-values adjusted over all of them.
    """
    adjusted = holm([difference.p for difference in differences.values()])
    return {
        variant: Comparison(
            variant, control, d.value, d.low, d.high, d.se, d.df, d.n_prompts, d.seeds, d.p, p_adjusted, d.level
        )
        for (variant, d), p_adjusted in zip(differences.items(), adjusted, strict=True)
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that the chance of any false claim in the family stays at alpha.

    References: Holm 1979, https://www.jstor.org/stable/4615733.
    """
    # By hand: statsmodels' multipletests runs the garbage collector at each call, 0.08 s; a test holds the two equal.
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1.0)
    return [float(p) for p in adjusted]


def step_up(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted so that the expected share of false claims among the claims stays at alpha.

    References: Benjamini and Hochberg 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x.
    """
    return [float(p) for p in false_discovery_control(p_values, method="bh")] if len(p_values) else []


MARGIN = 0.02


@dataclass(frozen=True)
class Equivalence:
    """Whether a difference lies within a margin of zero.

    Args:
        margin: declared before the scores are known, in the unit of the metric.
        p: p-value of "the difference is the margin or more, either way".
        p_adjusted: the same after Holm over the family.
        level: "method" or "checkpoint", as of the difference.
    """

    margin: float
    p: float
    p_adjusted: float
    level: str

    def shown(self, alpha: float = 0.05) -> bool:
        """Whether equivalence within the margin is shown at this level."""
        return self.p_adjusted < alpha

    def verdict(self, p_difference: float, alpha: float = 0.05) -> str:
        """In words, given the adjusted p-value of "no difference": a difference may be real and yet too small to matter.

        Args:
            p_difference: adjusted p-value of the test of a difference.
            alpha: level of both families.
        """
        within = f"within {self.margin:g}"
        if self.shown(alpha):
            verdict = f"different, yet {within}" if p_difference < alpha else f"equivalent {within}"
        else:
            verdict = f"different, not shown {within}" if p_difference < alpha else "neither shown"
        return verdict if self.level == "method" else f"{verdict} (this checkpoint only)"


def two_one_sided(difference: Estimate, margin: float = MARGIN, largest: float | None = None) -> float:
    """P-value of two one-sided tests: the larger of "it is -margin or less" and "it is margin or more".

    Args:
        difference: with its error.
        margin: above zero, in the unit of the metric.
        largest: the most that one prompt's difference can be, where it is known; 1 for shares.

    Returns: p; below alpha exactly where the interval of coverage 1 - 2 alpha lies within the margin. Where no prompt differed at all
        there is no standard error: if the difference were the margin, a prompt would differ with a chance of margin / largest at
        least, and none of N would with (1 - margin / largest)^N at most. That is p; where no bound is known it is 1.

    Raises:
        ValueError: the margin is not above zero.

    References: Schuirmann 1987, https://doi.org/10.1007/BF01068419.
    """
    if not margin > 0:
        raise ValueError(f"margin {margin}: must be above zero")
    if difference.se == 0 and difference.value == 0:
        return 1.0 if largest is None else max(0.0, 1 - margin / largest) ** difference.n_prompts
    below, above = difference.p_of(-margin) / 2, difference.p_of(margin) / 2
    return max(below if difference.value > -margin else 1 - below, above if difference.value < margin else 1 - above)


def equivalences(
    differences: Mapping[str, Estimate], margin: float = MARGIN, largest: float | None = None
) -> dict[str, Equivalence]:
    """Test a family of differences, such as those of all variants to the control; p-values adjusted by Holm.

    Args:
        differences: by name.
        margin: above zero.
        largest: the most that one prompt's difference can be, where it is known.
    """
    p_values = {name: two_one_sided(difference, margin, largest) for name, difference in differences.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {name: Equivalence(margin, p, adjusted[name], differences[name].level) for name, p in p_values.items()}


def letters(names: Sequence[str], different: Collection[tuple[str, str]]) -> dict[str, str]:
    """Give each name its letters.

    Args:
        names: in the order the letters are to run, usually best first.
        different: pairs shown to differ, in either order.

    Returns: for each name its letters; a and b share one exactly where (a, b) is not among the different.

    References: Piepho 2004, https://doi.org/10.1198/1061860043515 (insert and absorb).
    """
    columns: list[frozenset[str]] = [frozenset(names)] if names else []
    place = {name: i for i, name in enumerate(names)}
    # In the order of the names the columns in between stay as few as the letters; in any order they may double with each pair.
    for first, second in sorted(different, key=lambda pair: sorted(place[name] for name in pair)):
        split = []
        for column in columns:
            split += [column - {first}, column - {second}] if {first, second} <= column else [column]
        # A column within another adds no information.
        unique = list(dict.fromkeys(split))
        columns = [column for column in unique if not any(column < other for other in unique)]
    columns.sort(key=lambda column: sorted(place[name] for name in column))
    return {name: "".join(_letter(i) for i, column in enumerate(columns) if name in column) for name in names}


def _letter(number: int) -> str:
    """One of a to z, then A to Z, then a number in brackets."""
    known = string.ascii_letters
    return known[number] if number < len(known) else f"({number + 1})"


@dataclass(frozen=True)
class Candidate:
    """One configuration of a variant on the selection prompts, its seeds pooled.

    Args:
        configuration: its key.
        variant: its variant.
        value: mean of the ranking metric.
        se: its standard error.
        distance: from the reference; None where it was not measured.
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
