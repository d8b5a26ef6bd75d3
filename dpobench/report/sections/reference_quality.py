"""What becomes of each variant when it starts from an under-trained reference."""

from dpobench.analysis.findings import Findings
from dpobench.report.section import Topic
from dpobench.report.sections.studies import section


def topic(f: Findings) -> Topic | None:
    """The section; None without this study."""
    return section(f, "reference_quality")
