"""Figures of a report, one look for all: what each shows, or why there is none.

A Sketch is drawn when it is written, so that only one figure is in memory. Colours are those of Okabe and
Ito (jfly.uni-koeln.de/color), but dark grey instead of black: nothing could be drawn on black. Lines and
points also differ by dashes and markers. The same rows give the same bytes, whatever style and backend the
environment names. Only this module imports matplotlib.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import kdbench.reports.no_backend  # noqa: F401

# isort: split
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import colormaps as colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.ticker import MaxNLocator as MaxNLocator

from kdbench.reports.rows import Group

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: every machine draws the same
    "font.size": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: a third of the size, and an editor can change it
    "svg.hashsalt": "kdbench",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#3C3C3C", "#D55E00", "#56B4E9", "#7A7A7A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (9, 3)), (0, (1, 1)))
OUTLINE = (withStroke(linewidth=2.6, foreground="white"),)  # of thin dark lines on fills of any colour
DPI = 110
LEGEND_LINE = 0.2  # inches
Draw = Callable[[], Figure]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How an entry looks in every figure."""

    number: int

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def marker(self) -> str:
        return MARKERS[(self.number + self.number // len(MARKERS)) % len(MARKERS)]

    @property
    def dash(self) -> Any:
        return DASHES[self.number % len(DASHES)]


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """A figure that can be drawn, or the reason why it cannot."""

    name: str  # of its files
    title: str
    says: str  # its content and how to read it: the caption and the alternative text
    draw: Draw | None
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The bytes of a figure."""

    svg: bytes
    png: bytes
    width: int  # in the pixels of a page
    height: int


def marks(names: Iterable[str]) -> dict[str, Mark]:
    """Entry name -> its look, the same in every section of a report."""
    return {name: Mark(number=i) for i, name in enumerate(sorted(set(names)))}


def render(sketch: Sketch) -> Drawn:
    """Draw a figure in both formats, the same bytes for the same rows."""
    assert sketch.draw
    with mpl.rc_context():
        mpl.rcdefaults()  # a `matplotlibrc` of the user or of the current folder changes nothing
        mpl.rcParams.update(STYLE)
        figure = sketch.draw()
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        FigureCanvasAgg(figure)
        if engine := figure.get_layout_engine():  # once: `savefig` would do it for each file, and draw twice
            engine.execute(figure)
            figure.set_layout_engine("none")
        svg, png = io.BytesIO(), io.BytesIO()
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
        figure.dpi = DPI
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return Drawn(svg=svg.getvalue(), png=png.getvalue(), width=width, height=height)


def new_figure(
    width: float, height: float, columns: int = 1, rows: int = 1, **options: Any
) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def new_panels(
    number: int, columns: int, legend: Sequence[str], *, gap: tuple[float, float], share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Small panels at fixed places, in inches: constrained layout takes longer than drawing them.

    `legend` has the labels that will stand above the panels.
    """
    columns = min(columns, number)
    rows, width, height, left, right, bottom = -(-number // columns), 1.7, 1.35, 0.65, 0.15, 0.5
    full_width = max(left + columns * (width + gap[0]) - gap[0] + right, 4.0)
    top = 0.4 + LEGEND_LINE * -(-len(legend) // _legend_columns(full_width, legend))
    full_height = top + rows * (height + gap[1]) - gap[1] + bottom
    figure = Figure(figsize=(full_width, full_height))
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=share,
        sharey=share,
        gridspec_kw={
            "left": left / full_width,
            "right": 1 - right / full_width,
            "bottom": bottom / full_height,
            "top": 1 - top / full_height,
            "wspace": gap[0] / width,
            "hspace": gap[1] / height,
        },
    )
    for axes in grid.flat[number:]:
        axes.set_axis_off()
    return figure, list(grid.flat[:number])


def _legend_columns(width: float, labels: Sequence[str]) -> int:
    """How many labels fit beside each other."""
    widths = [
        0.075 * len(label) + 0.5 for label in labels
    ]  # inches: the letters, and what stands before them
    return len(labels) if sum(widths) <= width else max(1, int(width // max(widths)))


def add_legend(figure: Figure) -> None:
    """One legend above all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found = dict(zip(labels, handles, strict=True)) | found
    columns = _legend_columns(figure.get_figwidth(), list(found))
    outside = figure.get_layout_engine() is not None  # else the panels left room for it
    if outside:  # a legend of many lines must not press the panels together
        lines, height = -(-len(found) // columns), figure.get_figheight()
        figure.set_figheight(height + max(0.0, LEGEND_LINE * lines - height / 3))
    where: Literal["outside upper center", "upper center"] = (
        "outside upper center" if outside else "upper center"
    )
    figure.legend(list(found.values()), list(found), loc=where, ncols=columns)


def _plain(value: float, _: Any = None) -> str:
    return f"{value:g}"


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log axis with plain numbers, also if it covers less than a decade."""
    axes.set_xscale("log")
    decades = np.log10(max(values) / min(values))
    dense = (1, 2, 3, 5, 7) if decades > 0.5 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    subs = (1, 2, 5) if decades > 1.3 else dense
    # A range of less than an octave may have only one such number, or none.
    rounded = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]) if decades < 0.3 else None
    axes.xaxis.set_major_locator(rounded or LogLocator(subs=subs, numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())


def filled(lists: pd.Series) -> pd.Series:
    """Which rows of a column of lists have a list with values."""
    return pd.Series([one is not None and len(one) > 0 for one in lists], lists.index, dtype=bool)


def slug(group: Group) -> str:
    """A section's part in a file name: letters, digits and dashes."""
    name = f"{group.dataset}-{group.setting}-{group.profile}-{group.preset}-v{group.metric_version}"
    name += "-oracle" if group.oracle else ""
    return "".join(c if (c.isalnum() and c.isascii()) or c in "-_" else "-" for c in name)
