"""From a source to rows that can be used: read, convert, examine."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from dpobench.data.check import DataReport, examine
from dpobench.data.files import load
from dpobench.data.layouts import OnBadRow, convert


def read(
    source: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    layout: str | None = None,
    columns: Mapping[str, str] | None = None,
    on_bad_row: OnBadRow = "error",
    control: Collection[str] = (),
) -> DataReport:
    """Read, convert and examine a data set; `report.require_usable().kept` are the rows to use.

    Args:
        source: file, saved folder or hub name; see `load`.
        split: of a saved or hub data set.
        subset: configuration name of a hub data set.
        layout: one of `LAYOUTS`; found out by itself if None.
        columns: our name -> the name in the data.
        on_bad_row: whether a malformed row is an error or is left out and counted.
        control: texts of the tokenizer's control tokens, to be counted; see `control_tokens`.

    Raises:
        UserError: the source cannot be read, or a row is malformed.
    """
    raw, name = load(source, split=split, subset=subset)
    made = convert(raw, name, layout=layout, columns=columns, on_bad_row=on_bad_row)
    report = examine(
        made.rows,
        name=name,
        layout=made.layout,
        findings=made.findings,
        control_tokens=control,
        drop_wrong_roles=on_bad_row == "drop",
    )
    return replace(report, columns=made.columns, ignored=made.ignored)
