"""The sections of the report, one module each: `section(findings)` returns the section, or None where its data are missing.

A module here needs nothing but the findings. Where its section stands on the page is stated in `dpobench.report.layout`.
"""

from collections.abc import Callable
from functools import partial

from dpobench.analysis.findings import Findings
from dpobench.report.section import Section
from dpobench.report.sections import (
    benchmarks,
    controls,
    displacement,
    distance,
    further,
    judge,
    length,
    objectives,
    optimisation,
    statistics,
    studies,
    tournament,
    tradeoff,
    trouble,
    within,
)

SECTIONS: tuple[Callable[[Findings], Section | None], ...] = (
    *(module.section for module in (benchmarks, controls, displacement, distance, further, judge, length)),
    *(module.section for module in (objectives, optimisation, statistics, tournament, tradeoff, trouble, within)),
    *(partial(studies.section, name=name) for name in studies.KINDS),
)


def sections(f: Findings) -> list[Section]:
    """Every section that has something to show, in no particular order."""
    made = [make(f) for make in SECTIONS]
    return [section for section in made if section is not None]
