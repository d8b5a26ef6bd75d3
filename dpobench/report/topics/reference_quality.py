"""What becomes of each variant when it starts from an under-trained reference."""

from dpobench.report.findings import Findings
from dpobench.report.studies import section
from dpobench.report.topic import Topic


def topic(f: Findings) -> Topic | None:
    """The section; None without this study."""
    return section(f, "reference_quality")
