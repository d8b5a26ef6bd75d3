"""A section of the report that is there where its data are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from dpobench.report.table import Table


@dataclass(frozen=True)
class Topic:
    """What one module of `dpobench.report.sections` has to say.

    Args:
        name: of the section, unique in the report; also its anchor.
        title: its heading.
        tables: shown in this order; their names are the names of their files. One without rows is left out.
        said: sentences above the tables, plain text.
        figures: by name, unique in the report: caption and figure; shown after the sentences.
        notes: sentences that belong at the head of the report, because no reader may miss them.
        alarms: those among them without which the numbers would be misread; they come first, in bold.
    """

    name: str
    title: str
    tables: Sequence[Table] = ()
    said: Sequence[str] = ()
    figures: Mapping[str, tuple[str, Figure]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    alarms: Sequence[str] = ()
