"""Further sections of the report, one module each: a function `topic(findings)` that returns its section, or None.

A module here needs nothing but the findings, and what it says stands in the report wherever its data are there.
"""

import importlib

from dpobench.analysis.findings import Findings
from dpobench.report.section import Topic

# In the order of the page.
NAMES: tuple[str, ...] = (
    "tradeoff",
    "tournament",
    "length",
    "statistics",
    "benchmarks",
    "distance",
    "judge",
    "controls",
    "displacement",
    "optimisation",
    "within",
    "trouble",
    "label_noise",
    "train_size",
    "reference_quality",
    "rounds",
    "objectives",
)


def topics(f: Findings) -> list[Topic]:
    """The sections that have anything to say."""
    found = [importlib.import_module(f"{__name__}.{name}").topic(f) for name in NAMES]
    return [topic for topic in found if topic is not None]
