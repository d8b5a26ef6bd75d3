"""The primary family: each variant against the declared control on the same prompts, Holm over the family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import false_discovery_control

from dpobench.stats.crossed import Array, Estimate, crossed_difference


@dataclass(frozen=True)
class Comparison:
    """A variant less the control.

    Args:
        variant: who is compared.
        control: with whom.
        estimate: mean difference on the paired prompts, in the unit of the metric.
        low: lower end of its interval, not adjusted for the family.
        high: upper end.
        se: standard error over prompts and seeds.
        df: degrees of freedom.
        n_prompts: paired prompts.
        seeds: trainings behind the smaller arm.
        p: two-sided p-value of "no difference".
        p_adjusted: the same after Holm over the family.
        level: "method" with two seeds or more in both arms, else "checkpoint": then nothing is claimed of the methods.
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
        """In words: "better than X", "worse than X", or "no difference shown"; a checkpoint's verdict says that it is one."""
        if self.p_adjusted < alpha and better != "none":
            ahead = (self.estimate > 0) == (better == "higher")
            said = f"{'better' if ahead else 'worse'} than {self.control}"
        else:
            said = "no difference shown"
        return said if self.level == "method" else f"{said} (this checkpoint only)"


def compare_with_control(
    arms: Mapping[str, Array], control: Array, name: str, confidence: float = 0.95
) -> dict[str, Comparison]:
    """Test each arm against the control.

    Args:
        arms: for each variant an array [S, N].
        control: array [S', N]; its columns are the same prompts.
        name: what the control is called.
        confidence: coverage of each interval.

    Returns: one comparison per variant, in the order given, p-values adjusted over all of them.
    """
    found = {variant: crossed_difference([values], [control], confidence) for variant, values in arms.items()}
    return family(found, name)


def family(differences: Mapping[str, Estimate], control: str) -> dict[str, Comparison]:
    """Adjust a family of differences to one control by Holm's method."""
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
