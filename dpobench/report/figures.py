"""What all figures share: style, canvas, colours of variants, legends, and files that are equal byte for byte for equal numbers."""

import io
import re
from contextlib import AbstractContextManager
from typing import TypedDict

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from dpobench.analysis.findings import Findings
from dpobench.report.text import line

# Okabe and Ito's palette, distinct in all common forms of colour blindness; yellow is left out, too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK, FAINT, GREY, BACK = "#1b1f24", "#d5d9de", "#6f7782", "#b3bac3"
STYLE = {
    "svg.hashsalt": "dpobench",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


class Look(TypedDict):
    """How a variant is drawn: arguments of `Axes.plot`."""

    color: str
    marker: str
    zorder: float


class Line(Look, total=False):
    """A look with what else a line may be drawn with."""

    lw: float
    alpha: float
    label: str
    ls: str
    ms: float


def drawing() -> AbstractContextManager[None]:
    """While open, figures are made in the report's style."""
    return matplotlib.rc_context(STYLE)


def svg(figure: Figure) -> str:
    """The figure as SVG, without date or programme name."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    figure.set_layout_engine("none")  # it is laid out now; once is enough
    return stream.getvalue()


def png(figure: Figure) -> bytes:
    """The figure as PNG on white, 160 dots per inch."""
    stream = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def inline(markup: str, name: str) -> str:
    """SVG to stand inside a page: without prologue, with ids that no other figure has, in the page's colours and font.

    Args:
        markup: a whole SVG file.
        name: of the figure, unique on the page.
    """
    body = markup[markup.index("<svg") :]
    body = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", body)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = (
        body.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-").replace(' xlink:href="', ' href="')
    )
    body = re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        rf'<svg class="figure" role="img" aria-labelledby="{name}-caption" \1>',
        body,
        count=1,
    )
    body = body.replace("'DejaVu Sans'", "system-ui")
    return body.replace(INK, "currentColor").replace(FAINT, "var(--rule)").replace(GREY, "var(--muted)")


def canvas(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """An empty figure of columns x rows panels, width x height inches, and its axes row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, [axis for row in panels for axis in row]


def look(f: Findings, variant: str) -> Look:
    """Colour, marker and place of a variant: the same in every figure."""
    if variant not in f.foremost:
        return {"color": BACK, "marker": "o", "zorder": 1.5}
    place = f.foremost.index(variant)
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)], "zorder": 2 + place / 100}


def entry(f: Findings, variant: str, text: str = "") -> str:
    """A variant's label in a legend; all variants in the background share one."""
    if variant in f.foremost:
        return plain(variant) + text
    others = [v for v in f.chosen if v not in f.foremost]
    return f"{len(others)} others" if variant == others[0] else "_nolegend_"


def plain(label: str) -> str:
    """A label in ASCII, on one line: all that every font can print."""
    return line(label).encode("ascii", "replace").decode()


def legend(figure: Figure, axis: Axes) -> None:
    """One legend above the figure."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        # What stands in the background is named last.
        order = sorted(range(len(labels)), key=lambda i: labels[i].endswith(" others"))
        handles, labels = [handles[i] for i in order], [labels[i] for i in order]
        figure.legend(
            handles, labels, loc="outside upper left", ncols=min(6, len(labels)), handlelength=1.4, columnspacing=1.6
        )


def log_axis(axis: Axis, values: list[float]) -> None:
    """Plain numbers at the ticks of an axis on a log scale that reaches over these values."""
    span = max(values) / min(values)
    subs = (1.0, 2.0, 5.0) if span < 100 else (1.0, 3.0) if span < 3000 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
