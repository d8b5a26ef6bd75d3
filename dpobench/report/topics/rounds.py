"""What becomes of each variant in further rounds on its own answers."""

from dpobench.report.findings import Findings
from dpobench.report.studies import section
from dpobench.report.topic import Topic


def topic(f: Findings) -> Topic | None:
    """The section; None without this study."""
    return section(f, "round")
