"""Lines that the lists and portraits of all kinds of plugins share."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dpobench.plugins.plugin import Parameter


def fitted(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows as lines, every column but the last as wide as its widest cell; what is beyond the width is cut off.

    Args:
        rows: cells, the same number in each row.
        width: most characters of a line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = []
    for row in rows:
        cells = [*(cell.ljust(room) for cell, room in zip(row, widths, strict=False)), row[-1]]
        line = "  ".join(cells)
        lines.append(line if len(line) <= width else line[: width - 1].rstrip(" ,") + "…")
    return lines


def short_path(file: Path) -> str:
    """Relative to the folder the user is in, where the file lies below it."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def parameters(named: Sequence[Parameter]) -> Iterator[str]:
    """A line for each hyper-parameter: default, bounds, grid."""
    for parameter in named:
        bounds = f"  in {parameter.bounds.text}" if parameter.bounds else ""
        grid = f"  grid {', '.join(f'{value:g}' for value in parameter.grid)}" if parameter.grid else ""
        yield f"{parameter.name} = {parameter.default!r}{bounds}{grid}"
