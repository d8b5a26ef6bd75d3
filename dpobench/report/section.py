"""A section of the report: sentences, figures and tables that answer one question, present where their data are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from dpobench.report.table import Table


@dataclass(frozen=True)
class Section:
    """What one module of `dpobench.report.sections` adds to the report.

    Args:
        name: unique in the report; also its anchor.
        title: its heading.
        tables: shown in this order; their names are the names of their files. One without rows is left out.
        sentences: shown above the figures and tables, plain text.
        figures: caption and figure by name, which is unique in the report; shown after the sentences.
        notes: sentences for the head of the report, because no reader may miss them.
        alarms: sentences for the head of the report without which the numbers would be misread; they come first, in bold.
    """

    name: str
    title: str
    tables: Sequence[Table] = ()
    sentences: Sequence[str] = ()
    figures: Mapping[str, tuple[str, Figure]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    alarms: Sequence[str] = ()
