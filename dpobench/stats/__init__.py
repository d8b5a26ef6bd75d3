"""Statistics: pure functions of arrays. The unit is the prompt; seeds are a second, crossed source of chance.

`crossed` estimates means with an interval that knows both, `intervals` has those for single samples, `compare` is the primary
family of tests against the control, `selection` picks a strength per variant, `frontier` the Pareto set, `calibration`
reads probabilities against outcomes, `simulate` measures how often all this errs.
"""

from dpobench.stats.calibration import Calibration, calibration
from dpobench.stats.compare import Comparison, compare_with_control, holm, step_up
from dpobench.stats.crossed import Estimate, crossed_difference, crossed_mean, crossed_ratio, share_interval
from dpobench.stats.frontier import pareto
from dpobench.stats.intervals import bootstrap_mean, paired_bootstrap, t_mean, wilson
from dpobench.stats.selection import Candidate, select

__all__ = [
    "Calibration",
    "Candidate",
    "Comparison",
    "Estimate",
    "bootstrap_mean",
    "calibration",
    "compare_with_control",
    "crossed_difference",
    "crossed_mean",
    "crossed_ratio",
    "holm",
    "paired_bootstrap",
    "pareto",
    "select",
    "share_interval",
    "step_up",
    "t_mean",
    "wilson",
]
