"""One model of a table; CSV, LaTeX, Markdown and HTML are views of it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from dpobench.artifacts.records import Cell
from dpobench.report import text

# Columns are named by the key; a truth value is a number.
Row = dict[str, Cell]
# Characters that a row of the page holds.
PAGE = 150


@dataclass(frozen=True)
class Column:
    """One column as a reader sees it.

    Args:
        header: its title.
        key: column of the frame it shows.
        digits: decimals of numbers; None for text.
        interval: whether `key_low` and `key_high` are shown after it.
        signed: whether a plus sign is shown.
        bold: column of the frame that says whether the cell is printed bold.
    """

    header: str
    key: str
    digits: int | None = None
    interval: bool = False
    signed: bool = False
    bold: str = ""


@dataclass(frozen=True)
class PrintedCell:
    """One printed cell.

    Args:
        text: all of it, the interval included.
        bold: whether it is printed bold.
        number: whether it is a number.
        ends: the part of the text that is the interval; empty where there is none.
    """

    text: str
    bold: bool = False
    number: bool = False
    ends: str = ""

    @property
    def value(self) -> str:
        """What is printed without the interval."""
        return self.text.removesuffix(self.ends).rstrip() if self.ends else self.text


@dataclass(frozen=True)
class Table:
    """Rows with every number, and which of their columns are printed.

    Args:
        name: of its files.
        title: above it.
        frame: every column; goes to CSV in full.
        columns: what the printed views show.
        note: a sentence or two below it.
        marked: column of the frame that says whether a row is set apart.
        hidden: columns of the frame that are for the printed views only and not in the CSV.
    """

    name: str
    title: str
    frame: pd.DataFrame
    columns: Sequence[Column]
    note: str = ""
    marked: str = ""
    hidden: Sequence[str] = field(default_factory=tuple)

    @cached_property
    def shown(self) -> list[Column]:
        """Columns that have anything to show."""
        return [c for c in self.columns if c.key in self.frame and not self.frame[c.key].map(is_missing).all()]

    @cached_property
    def cells(self) -> list[list[PrintedCell]]:
        """Printed cells, row by row."""
        return [[_cell(column, row) for column in self.shown] for row in self.records]

    @cached_property
    def is_wide(self) -> bool:
        """Whether its rows are too long for a page: there intervals stand below their numbers."""
        widths = [
            max(
                [*(len(word) for word in column.header.split()), *(min(len(row[place].text), 30) for row in self.cells)]
            )
            for place, column in enumerate(self.shown)
        ]
        return sum(widths) + 2 * len(widths) > PAGE

    @property
    def records(self) -> list[Row]:
        """The frame row by row."""
        return [{str(key): value for key, value in row.items()} for row in self.frame.to_dict("records")]

    @property
    def marks(self) -> list[bool]:
        """Which rows are set apart."""
        return [bool(value) for value in self.frame[self.marked]] if self.marked else [False] * len(self.frame)

    def csv(self) -> str:
        """Every column as CSV, shortest exact-enough numbers, formulas defused."""
        clean = self.frame.drop(columns=[name for name in self.hidden if name in self.frame])
        clean = clean.rename(columns=lambda name: str(text.csv_cell(str(name)))).map(_raw)
        stream = io.StringIO()
        clean.to_csv(stream, index=False, lineterminator="\n")
        return stream.getvalue()

    def markdown(self) -> str:
        """A Markdown table."""
        heads = [text.markdown(column.header) for column in self.shown]
        rule = ["---" if column.digits is None else "---:" for column in self.shown]
        body = [
            [f"**{text.markdown(c.text)}**" if c.bold else text.markdown(c.text) for c in row] for row in self.cells
        ]
        return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *body])

    def latex(self) -> str:
        """A LaTeX tabular for booktabs."""
        align = "".join("l" if column.digits is None else "r" for column in self.shown)
        heads = " & ".join(text.latex(column.header) for column in self.shown)
        body = [
            " & ".join(rf"\textbf{{{text.latex(c.text)}}}" if c.bold else text.latex(c.text) for c in row) + r" \\"
            for row in self.cells
        ]
        inner = "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", heads + r" \\", r"\midrule", *body])
        return f"% {text.latex(self.title)}\n{inner}\n\\bottomrule\n\\end{{tabular}}\n"


def is_missing(value: Cell) -> bool:
    """Whether a cell holds nothing."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def number(value: Cell, digits: int, signed: bool = False) -> str:
    """A number as tables print it: fixed decimals, or three figures where it is too large or small for them."""
    if is_missing(value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text.line(value)
    if value == 0 and digits > 3:
        return "0"
    sign = "+" if signed and value != 0 else ""
    small = value != 0 and abs(value) < 0.5 * 10**-digits
    shown = format(
        value, f"{sign}.2g" if small and digits else f"{sign},.0f" if abs(value) >= 1000 else f"{sign}.{digits}f"
    )
    return shown.replace("-", "−")


def interval(value: Cell, low: Cell, high: Cell, digits: int = 2, signed: bool = False) -> str:
    """An estimate with its interval, as in 0.62 [0.58, 0.66]."""
    # Where all units agree, as for the reference against itself, the number is exact and has no interval.
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low != low or low == high:
        return number(value, digits, signed)
    return f"{number(value, digits, signed)} [{_fixed(low, digits)}, {_fixed(high, digits)}]"


def probability(value: Cell) -> str:
    """A p-value as tables print it."""
    if not isinstance(value, (int, float)) or value != value:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _fixed(value: float, digits: int) -> str:
    shown = format(value, f".{digits}f")
    return shown.replace("-", "−") if float(shown) else shown.replace("-", "")


def _cell(column: Column, row: Row) -> PrintedCell:
    value, bold = row.get(column.key), bool(column.bold and row.get(column.bold))
    if column.digits is None or isinstance(value, str):
        shown = "–" if is_missing(value) else text.line(f"{value:g}" if isinstance(value, float) else value)
        return PrintedCell(shown, bold, isinstance(value, (int, float)) and not isinstance(value, bool))
    if column.key.startswith("p_") or column.key == "p":
        return PrintedCell(probability(value), bold, True)
    if column.interval:
        ends = row.get(f"{column.key}_low"), row.get(f"{column.key}_high")
        shown = interval(value, *ends, column.digits, column.signed)
        return PrintedCell(shown, bold, True, shown[shown.index("[") :] if "[" in shown else "")
    return PrintedCell(number(value, column.digits, column.signed), bold, True)


def _raw(value: Cell) -> object:
    if is_missing(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.10g}" if isinstance(value, float) else text.csv_cell(value)
