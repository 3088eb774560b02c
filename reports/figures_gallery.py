"""The figure of one defective image of each category beside its truth and the map of every method."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from kdbench.reports import heat
from kdbench.reports.figures import Axes, Figure, Sketch, slug
from kdbench.reports.gallery import Exhibit
from kdbench.reports.rows import Group

SIDE = 1.0  # inches of a panel
TITLE = 0.22  # and of what stands above the panels
LEGEND = 0.5  # and below them
RULE = (
    "One image of each category: of its defective test images, in the order of the places of their scores "
    "(the mean over the methods), the one in the middle. Nobody chose it."
)


def strip(group: Group, found: Sequence[str], shown: Sequence[Exhibit]) -> Sketch:
    """The `median` exhibits of a section, a line for each: input, outline of the truth, maps of `found`."""
    title, name = f"What the methods saw: {group.title}", f"strip-{slug(group)}"
    coarse = any(one.coarse for exhibit in shown for one in exhibit.maps.values())
    says = " ".join([RULE, heat.SAYS, *[heat.COARSE] * coarse])
    if not any(exhibit.maps for exhibit in shown):
        why = "no cell kept pictures of a defective image and of normal ones"
        return Sketch(name=name, title=title, says=says, draw=None, why_not=why)
    return Sketch(name=name, title=title, says=says, draw=lambda: _strip(found, shown))


def _strip(found: Sequence[str], shown: Sequence[Exhibit]) -> Figure:
    columns = 2 + len(found)
    width, height = columns * SIDE + 0.3, len(shown) * SIDE + TITLE + LEGEND
    figure = Figure(figsize=(width, height))
    edges = {"left": 0.25 / width, "right": 1 - 0.05 / width, "bottom": LEGEND / height}
    edges |= {"top": 1 - TITLE / height, "wspace": 0.04, "hspace": 0.04}
    grid = figure.subplots(len(shown), columns, squeeze=False, gridspec_kw=edges)
    for axes, exhibit in zip(grid, shown, strict=True):
        _line(axes, exhibit, found)
    for axes, name in zip(grid[0], ("input", "truth", *found), strict=True):
        axes.set_title(name, fontsize=8, loc="center", pad=3, wrap=True)
    _legend(figure, width, height)
    return figure


def _line(axes: Sequence[Axes], exhibit: Exhibit, found: Sequence[str]) -> None:
    """Draw an exhibit: input, truth, maps."""
    size, image = exhibit.size, exhibit.picture
    pictures: list[NDArray[Any] | None] = [image, image]
    pictures += [
        heat.COLOURS(exhibit.maps[entry].brightness(size)) if entry in exhibit.maps else None
        for entry in found
    ]
    axes[0].set_ylabel(exhibit.candidate.category, fontsize=8, labelpad=2)
    borders = heat.borders(exhibit.mask) if exhibit.mask else []
    for i, (one, picture) in enumerate(zip(axes, pictures, strict=True)):
        one.set(xticks=[], yticks=[], xlim=(0, size[0]), ylim=(size[1], 0), facecolor="#eeeeee")
        one.spines[:].set_visible(False)
        one.grid(visible=False)
        if picture is None:
            one.text(0.5, 0.5, "no picture", transform=one.transAxes, ha="center", va="center", fontsize=7)
            continue
        one.imshow(picture, extent=(0, *size, 0), interpolation="bilinear", aspect="equal")
        for border in borders if i else []:
            one.plot(*border.T, color="#000000", linewidth=1.6, alpha=0.6)
            one.plot(*border.T, color="#35e0ff", linewidth=0.8)


def _legend(figure: Figure, width: float, height: float) -> None:
    """The scale of all maps, below them."""
    long = min(3.4, width - 0.6)
    axes = figure.add_axes(((width - long) / 2 / width, 0.2 / height, long / width, 0.1 / height))
    axes.imshow(heat.COLOURS(heat.SCALE), extent=(0, heat.DECADES, 0, 1), aspect="auto")
    axes.set(yticks=[], xticks=range(heat.DECADES + 1))
    axes.set_xticklabels(heat.TICKS, fontsize=7)
    axes.tick_params(length=2, pad=1)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_title("pixels of normal images with at least this value", fontsize=7, loc="center", pad=2)
