"""What became of the runs of an experiment, as a terminal shows it."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from dpobench.artifacts.files import sealed
from dpobench.artifacts.records import PlanRecord, RunRecord
from dpobench.errors import UserError


def summary_lines(report: Path) -> Iterator[str]:
    """The verdict and the leaderboard as a terminal shows them, read from the files of the report."""
    from dpobench.report.text import UNEVEN

    verdict, *notes = (report / "verdict.txt").read_text(encoding="utf-8").splitlines()
    yield verdict
    yield from (note for note in notes if note.startswith(UNEVEN))
    with (report / "tables" / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if "verdict" in row]
    if not rows:
        return
    measured = [name.removesuffix("_low") for name in rows[0] if name.endswith("_low")]
    shown = [name for name in measured if any(row[name] for row in rows)][:4]
    table = [["variant", "beta", "seeds", *shown, "p_adjusted", "verdict"]]
    for row in rows:
        cells = [_with_interval(row, name) for name in shown]
        p = f"{float(row['p_adjusted']):.3f}" if row["p_adjusted"] else ""
        table.append([row["variant"], row["beta"], row["seeds"], *cells, p, row["verdict"]])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def _with_interval(row: Mapping[str, str], name: str) -> str:
    numbers = [f"{float(row[key]):.3g}" if row[key] else "" for key in (name, f"{name}_low", f"{name}_high")]
    # The reference against itself is exact.
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if numbers[1] != numbers[2] else numbers[0]


def summary(out: Path) -> list[tuple[str, str, str]]:
    """State of every planned run: id, status, reason.

    Raises:
        UserError: the folder holds no plan.
    """
    if not PlanRecord.lies_in(out):
        raise UserError(f"{out}: no plan.json, so no experiment; name the folder that `dpobench run --out` wrote")
    rows = []
    for planned in PlanRecord.read(out).runs:
        folder = out / "runs" / planned.id
        record = RunRecord.read(folder) if RunRecord.lies_in(folder) else None
        if record is None:
            rows.append((planned.id, "missing", ""))
        else:
            status = "scoring" if record.status == "done" and not sealed(folder) else record.status
            rows.append((planned.id, status, record.reason or ""))
    return rows
