"""A loss drawn against the margin: in the terminal as text, or as a figure in a file."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpobench.errors import UserError
from dpobench.gallery.curves import LENGTH, Curve, Family, held

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SUFFIXES = (".svg", ".png", ".pdf")
WIDTH, HEIGHT = 61, 15
# Of the default, then of the others.
_GLYPHS = ("●", "○", "+")


@dataclass(frozen=True)
class _Line:
    """A curve of the terminal: one value a column."""

    label: str
    glyph: str
    values: tuple[float, ...]


def caption(family: Family) -> list[str]:
    """What a drawing of a loss holds fixed, in words."""
    lines = [
        f"Answers of {LENGTH} tokens; the chosen one rises and the rejected one falls by half the margin each, from "
        f"{family.level:g} nats a token."
    ]
    fixed = held(family.variant)
    return [*lines, f"Held: {'; '.join(fixed)}."] if fixed else lines


def terminal(family: Family) -> list[str]:
    """Loss and gradients against the margin, as text of 72 columns."""
    panels = [("loss", "loss")]
    mirrored = all(curve.mirrored for curve in family.curves)
    panels.append(("chosen", "gradient on the chosen answer: d loss / d log p, per nat"))
    if not mirrored:
        panels.append(("rejected", "gradient on the rejected answer: d loss / d log p, per nat"))
    lines = [*_legend(family), ""]
    for name, title in panels:
        lines += [title, *_chart(_lines(family, name), family.curves[0].margins.tolist()), ""]
    if mirrored:
        lines.insert(-1, "The gradient on the rejected answer is the same with the other sign.")
    lines[-1:] = [family.axis.label.center(WIDTH + 20).rstrip()]
    return lines + [part for text in caption(family) for part in textwrap.wrap(text, WIDTH + 11)]


def _ordered(family: Family) -> list[Curve]:
    """The default first."""
    return [family.default, *(curve for curve in family.curves if curve is not family.default)]


def _legend(family: Family) -> list[str]:
    lines = []
    for glyph, curve in zip(_GLYPHS, _ordered(family), strict=False):
        least = "" if curve.target is None else f", least loss at a margin of {_short(curve.target)}"
        lines.append(f"{glyph} {family.name(curve)}{least}")
    return lines


def _lines(family: Family, what: str) -> list[_Line]:
    drawn = []
    for glyph, curve in zip(_GLYPHS, _ordered(family), strict=False):
        values = getattr(curve, what)
        columns = [round(i * (len(values) - 1) / (WIDTH - 1)) for i in range(WIDTH)]
        drawn.append(_Line(family.name(curve), glyph, tuple(float(values[column]) for column in columns)))
    return drawn


def _chart(lines: Sequence[_Line], margins: Sequence[float]) -> list[str]:
    """Lines over axes with numbers, the first line on top of the others."""
    low, high = _limits([value for line in lines for value in line.values])

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (HEIGHT - 1))

    cells = [[" "] * WIDTH for _ in range(HEIGHT)]
    for below in cells:
        below[WIDTH // 2] = "┊"
    if low < 0 < high:
        cells[row(0.0)] = ["┈"] * WIDTH
    for line in reversed(lines):
        rows = [row(value) for value in line.values]
        for column, at in enumerate(rows):
            # A steep line is filled, from halfway to the column before.
            since = rows[max(0, column - 1)]
            for filled in range(min(at, since + (at < since)), max(at, since - (at > since)) + 1):
                cells[filled][column] = line.glyph if filled == at or abs(at - since) > 1 else cells[filled][column]
    ticks = {number: _short(high - number * (high - low) / (HEIGHT - 1)) for number in (0, HEIGHT // 2, HEIGHT - 1)}
    if low < 0 < high:
        # The number of the middle gives way to the zero, those of the ends where they would touch it.
        ticks = {n: text for n, text in ticks.items() if n != HEIGHT // 2 and n != row(0.0)} | {row(0.0): "0"}
    drawn = [f"{ticks.get(n, ''):>9} {'┤' if n in ticks else '│'}{''.join(c).rstrip()}" for n, c in enumerate(cells)]
    return [*drawn, *_bottom(margins[-1])]


def _bottom(reach: float) -> list[str]:
    places = {0: -reach, WIDTH // 4: -reach / 2, WIDTH // 2: 0.0, 3 * WIDTH // 4: reach / 2, WIDTH - 1: reach}
    axis = "".join("┬" if column in places else "─" for column in range(WIDTH))
    numbers = [" "] * (WIDTH + 16)
    for place, value in places.items():
        text = _short(value)
        start = 11 + place - len(text) // 2
        numbers[start : start + len(text)] = text
    return [f"{'└':>11}{axis}", "".join(numbers).rstrip()]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers around all values, the zero among them if it is near."""
    low, high = min(values), max(values)
    if 0 < low < 0.3 * high:
        low = 0.0
    if 0.3 * low < high < 0:
        high = 0.0
    spread = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(spread)) / 4
    return math.floor(low / step + 1e-9) * step, max(
        math.ceil(high / step - 1e-9) * step, math.floor(low / step) * step + step
    )


def _short(value: float) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e5 else f"{value:.3g}"


def write(family: Family, file: Path) -> None:
    """Draw a loss into a file, the same bytes every time.

    Raises:
        UserError: the ending is none of .svg, .png and .pdf, or the file cannot be written.
    """
    from dpobench.report.figures import png, svg

    if file.suffix not in SUFFIXES:
        raise UserError(f"--plot {file}: name a file that ends in {', '.join(SUFFIXES)}")
    figure = _figure(family)
    content = {".svg": lambda: svg(figure).encode(), ".png": lambda: png(figure), ".pdf": lambda: _pdf(figure)}
    try:
        file.write_bytes(content[file.suffix]())
    except OSError as error:
        raise UserError(f"--plot {file}: {error.strerror}") from error


def _pdf(figure: "Figure") -> bytes:
    import matplotlib

    from dpobench.report.figures import STYLE

    stream = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "pdf.fonttype": 42}):
        figure.savefig(stream, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return stream.getvalue()


def _figure(family: Family) -> "Figure":
    """Loss on the left, gradients on the right, a colour for each beta."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from dpobench.report.figures import STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        colours = matplotlib.colormaps["viridis"]
        for number, curve in enumerate(family.curves):
            _draw(family, curve, colours(0.82 * number / max(1, len(family.curves) - 1)), (left, right))
        _finish(family, figure, left, right)
    return figure


def _draw(family: Family, curve: Curve, colour: Any, axes: tuple["Axes", "Axes"]) -> None:
    left, right = axes
    look = {"color": colour, "lw": 2.2 if curve is family.default else 1.3}
    margins = curve.margins.tolist()
    least = "" if curve.target is None else f", least at {_short(curve.target)}"
    left.plot(margins, curve.loss.tolist(), label=family.name(curve) + least, **look)
    right.plot(margins, curve.chosen.tolist(), **look)
    right.plot(margins, curve.rejected.tolist(), ls=(0, (4, 2)), **look)
    if curve.target is not None and curve.target <= margins[-1]:
        place = int((curve.margins - curve.target).abs().argmin())
        for axis, values in ((left, curve.loss), (right, curve.chosen)):
            axis.plot(curve.target, float(values[place]), "o", ms=6, color=colour, mec="white", mew=0.8, zorder=3)


def _finish(family: Family, figure: "Figure", left: "Axes", right: "Axes") -> None:
    from matplotlib.lines import Line2D

    from dpobench.report.figures import GREY

    left.set_title(f"{family.variant.name}: loss")
    right.set_title("Gradient: d loss / d log p of the answer")
    left.set_ylabel("loss")
    right.set_ylabel(f"per nat, log p summed over {LENGTH} tokens")
    for axis in (left, right):
        axis.axvline(0, color=GREY, lw=0.8, zorder=1)
        axis.set_xlim(float(family.curves[0].margins[0]), float(family.curves[0].margins[-1]))
    right.axhline(0, color=GREY, lw=0.8, zorder=1)
    sides = [Line2D([], [], color=GREY, ls=style, label=label) for style, label in (("-", "chosen"), ((0, (4, 2)), "rejected"))]  # fmt: skip  # noqa: E501
    right.legend(handles=sides, loc="best", handlelength=2.4)
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.6)
    lines = caption(family)
    figure.text(0.01, 0.012, "\n".join(lines), fontsize=7.5, color=GREY, va="bottom")
    below = 0.03 + 0.032 * len(lines)
    figure.supxlabel(family.axis.label, y=below, va="bottom", fontsize=9.5)
    figure.set_layout_engine("constrained", rect=(0, below + 0.055, 1, 0.945 - below))
