"""What becomes of each variant on fewer training pairs."""

from dpobench.report.findings import Findings
from dpobench.report.studies import section
from dpobench.report.topic import Topic


def topic(f: Findings) -> Topic | None:
    """The section; None without this study."""
    return section(f, "train_size")
