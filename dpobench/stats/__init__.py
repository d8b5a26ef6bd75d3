"""Statistics: pure functions of arrays. The unit is the prompt; seeds are a second, crossed source of chance.

`crossed` estimates means with an interval that knows both, `intervals` has those for single samples, `compare` is the primary
family of tests against the control, `equivalence` and `letters` say what may count as equal, `components` and `power` what a
design can see, `selection` picks a strength per variant, `frontier` the Pareto set, `calibration`
reads probabilities against outcomes, `simulate` measures how often all this errs.
"""

from dpobench.stats.calibration import Calibration, calibration
from dpobench.stats.compare import Comparison, compare_with_control, holm, step_up
from dpobench.stats.components import Alternative, Components, advice, alternatives, components, to_halve
from dpobench.stats.crossed import (
    Estimate,
    crossed_difference,
    crossed_mean,
    crossed_ratio,
    share_difference,
    share_interval,
)
from dpobench.stats.equivalence import MARGIN, Equivalence, equivalences, two_one_sided
from dpobench.stats.frontier import pareto
from dpobench.stats.intervals import bootstrap_mean, paired_bootstrap, t_mean, wilson
from dpobench.stats.letters import letters
from dpobench.stats.power import power, prompts_needed, seeds_needed, smallest_effect
from dpobench.stats.selection import Candidate, select

__all__ = [
    "MARGIN",
    "Alternative",
    "Calibration",
    "Candidate",
    "Comparison",
    "Components",
    "Equivalence",
    "Estimate",
    "advice",
    "alternatives",
    "bootstrap_mean",
    "calibration",
    "compare_with_control",
    "components",
    "crossed_difference",
    "crossed_mean",
    "crossed_ratio",
    "equivalences",
    "holm",
    "letters",
    "paired_bootstrap",
    "pareto",
    "power",
    "prompts_needed",
    "seeds_needed",
    "select",
    "share_difference",
    "share_interval",
    "smallest_effect",
    "step_up",
    "t_mean",
    "to_halve",
    "two_one_sided",
    "wilson",
]
