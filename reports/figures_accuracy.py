"""Figures of accuracy: categories, curves, ranks, interference, and how the detectors were trained."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kdbench.errors import number_of
from kdbench.metrics.exact import PRO_LIMIT
from kdbench.reports.accuracy import PROBES
from kdbench.reports.entries import TITLES, Entry, ranked_by
from kdbench.reports.figures import (
    OUTLINE,
    Axes,
    Figure,
    Mark,
    MaxNLocator,
    Sketch,
    add_legend,
    filled,
    new_figure,
    new_panels,
    slug,
)
from kdbench.reports.rows import Group
from kdbench.reports.significance import rank_groups
from kdbench.reports.statistics import Ranks

ANNOTATED = 260  # cells of a heat map; with more, numbers would be too small to read
NUM_PANELS = 30  # of small multiples
NUM_RATES = 301  # at which the heights of curves are averaged


def heat_map(group: Group, found: Sequence[Entry]) -> Sketch:
    """Category x entry of the metric that ranks."""
    metric = ranked_by(found)
    seen = {category for entry in found for category in entry.rows["category"]}
    categories = [category for category in found[0].dataset_categories if category in seen]
    values = np.full((len(categories), len(found)), np.nan)
    for column, entry in enumerate(found):
        own = entry.by_category[metric]
        values[:, column] = [100 * own.get(category, np.nan) for category in categories]
    title, name = f"{TITLES[metric]} per category: {group.title}", f"categories-{slug(group)}"
    if not np.isfinite(values).any():
        return Sketch(name=name, title=title, says="", draw=None, why_not=f"no entry has {TITLES[metric]}")
    return Sketch(
        name=name,
        title=title,
        says=f"{TITLES[metric]} in percent, mean over the seeds that succeeded; lighter is better. Hatched: "
        "no value.",
        draw=lambda: _heat_map(values, categories, [entry.name for entry in found], TITLES[metric]),
    )


def _heat_map(values: np.ndarray, categories: Sequence[str], names: Sequence[str], metric: str) -> Figure:
    figure, ((axes,),) = new_figure(2.6 + 0.85 * len(names), 1.4 + 0.27 * len(categories))
    low, high = np.nanmin(values), np.nanmax(values)
    axes.set_facecolor("#eeeeee")
    axes.patch.set(hatch="////", edgecolor="#999999")
    image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=low, vmax=max(high, low + 1))
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(categories)), categories)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    if values.size <= ANNOTATED:
        middle = (low + max(high, low + 1)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=colour, fontsize=7.5)
    figure.colorbar(image, ax=axes, label=f"{metric}, %", shrink=0.8)
    return figure


class Panel(NamedTuple):
    """One kind of curve: its columns, where its rates end, and what is written at its axes."""

    x: str
    y: str
    end: float
    x_label: str
    y_label: str
    title: str


PANELS = (
    Panel("image_fpr", "image_tpr", 1.0, "false positive rate of images", "true positive rate", "image ROC"),
    Panel(
        "pixel_fpr",
        "pixel_tpr",
        PRO_LIMIT,
        "false positive rate of pixels",
        "true positive rate",
        "pixel ROC",
    ),
    Panel("pro_fpr", "pro", PRO_LIMIT, "false positive rate of pixels", "per-region overlap", "PRO"),
)


def succeeded_cells(found: Sequence[Entry]) -> pd.DataFrame:
    """The cells that succeeded: `entry`, `category`, `cell_id`, `seed`."""
    rows = pd.concat([entry.ok.assign(entry=entry.name) for entry in found])
    return rows[["entry", "category", "cell_id", "seed"]].reset_index(drop=True)


def picture_cells(found: Sequence[Entry], kept: Mapping[str, int]) -> pd.DataFrame:
    """The cells of `succeeded_cells` whose pictures are shown, one for each entry and category.

    `kept` says how many files a cell has. Of the cells with the most files the one with the lowest seed is
    chosen. Cells that were taken over from published rows have no files.
    """
    ended = succeeded_cells(found)
    lacks = [-kept.get(cell_id, 0) for cell_id in ended["cell_id"]]
    first = ended.assign(lacks=lacks).sort_values(["lacks", "seed"], kind="stable")
    return first.drop(columns="lacks").drop_duplicates(["entry", "category"]).reset_index(drop=True)


def curves(
    group: Group, found: Sequence[Entry], kept: pd.DataFrame, look: dict[str, Mark]
) -> Iterator[Sketch]:
    """Mean curves over the categories that all entries have, and the PRO (or ROC) of each category.

    `kept` has the curves of `succeeded_cells`, with their columns. Both figures show means over all seeds of
    an entry, as the tables do: the curve of one seed would hide another seed that collapsed.
    """
    name = slug(group)
    shown = [entry.name for entry in found]
    title = f"ROC and PRO curves: {group.title}"
    have = kept.groupby("category")["entry"].nunique() if len(kept) else pd.Series(dtype=int)
    common = [category for category in have.index if have[category] == len(shown)]
    if common:
        within = kept[kept["category"].isin(common)]
        yield Sketch(
            name=f"curves-{name}",
            title=title,
            says="Height at each false positive rate, mean over "
            f"{number_of(len(common), 'category')} and over {_seeds(within, found)}. Up and to "
            "the left is better; pixel curves end at 30 %, where AUPRO does.",
            draw=lambda: _mean_curves(within, shown, look),
        )
    else:
        why = (
            "the cells kept no curves of these rows"
            if kept.empty
            else "no category succeeded for every entry"
        )
        yield Sketch(name=f"curves-{name}", title=title, says="", draw=None, why_not=why)
    if kept.empty:
        return
    panel = PANELS[2] if kept["pro"].notna().any() else PANELS[0]
    categories = [c for c in found[0].dataset_categories if c in set(kept["category"])][:NUM_PANELS]
    yield Sketch(
        name=f"curves-by-category-{name}",
        title=f"{panel.title} curve of each category: {group.title}",
        says=f"The {panel.title} curve of each category: height at each false positive rate, mean over "
        f"{_seeds(kept, found)}. Up and to the left is better.",
        draw=lambda: _category_curves(kept, categories, panel, shown, look),
    )


def _seeds(kept: pd.DataFrame, found: Sequence[Entry]) -> str:
    """The seeds over which the curves are averaged, in words."""
    own = {tuple(sorted(set(seeds))) for _, seeds in kept.groupby(["entry", "category"])["seed"]}
    if len(own) > 1:
        return "the seeds of each that kept curves"
    (seeds,) = own
    *others, last = map(str, seeds)
    shown = f"seeds {', '.join(others)} and {last}" if others else f"seed {last}"
    lacking = {seed for entry in found for seed in entry.seeds} - set(seeds)
    return f"{shown} (no other seed kept curves)" if lacking else shown


def _mean_curves(kept: pd.DataFrame, names: Sequence[str], look: dict[str, Mark]) -> Figure:
    panels = [panel for panel in PANELS if kept[panel.y].notna().any()]
    figure, grid = new_figure(3.4 * len(panels) + 0.2, 3.7, columns=len(panels))
    for axes, panel in zip(grid[0], panels, strict=True):
        rate, heights = mean_heights(kept, panel)
        for name in names:
            own = [height for (entry, _), height in heights.items() if entry == name]
            if own:
                _line(axes, rate, np.mean(own, axis=0), look[name], name)
        axes.set(xlim=(0, panel.end), ylim=(0, 1.01))
        axes.set(xlabel=panel.x_label, ylabel=panel.y_label, title=panel.title)
    add_legend(figure)
    return figure


def mean_heights(kept: pd.DataFrame, panel: Panel) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """False positive rates [N], and (entry, category) -> heights [N] there, mean over the seeds."""
    rate = np.linspace(0, panel.end, NUM_RATES)
    whole = kept[kept[panel.y].notna()]
    heights = {
        (str(entry), str(category)): np.mean(
            [_height_at(rate, x, y) for x, y in zip(own[panel.x], own[panel.y], strict=True)], axis=0
        )
        for (entry, category), own in whole.groupby(["entry", "category"])
    }
    return rate, heights


def _height_at(rate: np.ndarray, x: Any, y: Any) -> np.ndarray:
    """Heights of one curve that begins at rate 0. Of two points at one rate, the upper counts.

    `np.interp` defines no value where a curve rises straight up.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    before = np.searchsorted(x, rate, side="right") - 1
    after = np.minimum(before + 1, len(x) - 1)
    run = np.where(x[after] > x[before], x[after] - x[before], 1)
    return y[before] + (y[after] - y[before]) * np.minimum((rate - x[before]) / run, 1)


def _line(axes: Axes, x: Any, y: Any, mark: Mark, name: str) -> None:
    axes.plot(x, y, color=mark.colour, linestyle=mark.dash, label=name, solid_capstyle="round")


def _category_curves(
    kept: pd.DataFrame, categories: Sequence[str], panel: Panel, names: Sequence[str], look: dict[str, Mark]
) -> Figure:
    figure, grid = new_panels(len(categories), 5, names, gap=(0.3, 0.35), share=True)
    rate, heights = mean_heights(kept, panel)
    for axes, category in zip(grid, categories, strict=True):
        for name in names:
            if (name, category) in heights:
                _line(axes, rate, heights[name, category], look[name], name)
        axes.set(xlim=(0, panel.end), ylim=(0, 1.02))
        axes.set_title(category, fontsize=8.5)
    figure.supxlabel(panel.x_label, fontsize=9, y=0.02)
    figure.supylabel(panel.y_label, fontsize=9, x=0.01)
    add_legend(figure)
    return figure


def training(group: Group, section: pd.DataFrame, look: dict[str, Mark]) -> Sketch:
    """Losses per epoch, one panel per entry: the losses of two methods have different units."""
    cells = section[section["status"] == "ok"].drop_duplicates("cell_id")
    cells = cells[filled(cells["epoch_loss"])]
    trained = [(str(name), own) for name, own in cells.groupby("entry")]
    title, name = f"Training: {group.title}", f"training-{slug(group)}"
    if not trained:
        return Sketch(name=name, title=title, says="", draw=None, why_not="no cell kept its losses")
    return Sketch(
        name=name,
        title=title,
        says="Loss per epoch: the line is the median over the cells of an entry, the band their 10th to 90th "
        "percentile. Dashed: held-out normal images. Ticks at the bottom: epochs that were kept. The losses "
        "of two methods have different units: compare shapes, not heights.",
        draw=lambda: _training(trained, look),
    )


def _training(trained: Sequence[tuple[str, pd.DataFrame]], look: dict[str, Mark]) -> Figure:
    figure, grid = new_panels(
        len(trained), 3 if len(trained) == 6 else 5, ("train", "held-out"), gap=(0.5, 0.45)
    )
    for axes, (name, cells) in zip(grid, trained, strict=True):
        for column, style, label in (("epoch_loss", "-", "train"), ("epoch_heldout", "--", "held-out")):
            series = [np.asarray(s, float) for s in cells[column] if s is not None and len(s)]
            if not series:
                continue
            longest = max(map(len, series))
            padded = np.full((len(series), longest), np.nan)
            for i, one in enumerate(series):
                padded[i, : len(one)] = one
            low, middle, high = np.nanquantile(padded, [0.1, 0.5, 0.9], axis=0)
            epochs, colour = np.arange(1, longest + 1), look[name].colour
            point = "." if longest == 1 else None
            axes.plot(epochs, middle, linestyle=style, color=colour, linewidth=1.4, label=label, marker=point)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        kept = cells["best_epoch"].dropna()
        axes.plot(kept, np.full(len(kept), 0.02), "|", color="#666666", transform=axes.get_xaxis_transform())
        axes.set_title(name, fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    figure.supxlabel("epoch", fontsize=9, y=0.02)
    figure.supylabel("loss", fontsize=9, x=0.01)
    add_legend(figure)
    return figure


def critical_differences(group: Group, found: Sequence[Entry], look: dict[str, Mark]) -> Sketch:
    """Average ranks over categories with Nemenyi's critical difference."""
    metric, ranks = ranked_by(found), rank_groups(found, ranked_by(found))
    title, name = f"Critical differences: {group.title}", f"critical-differences-{slug(group)}"
    if isinstance(ranks, str):
        return Sketch(name=name, title=title, says="", draw=None, why_not=ranks)
    return Sketch(
        name=name,
        title=title,
        says=f"Average rank by {TITLES[metric]} over {ranks.num_categories} categories, 1 is best. Methods "
        f"joined by a bar do not differ at 5 % (Nemenyi; Friedman's p is {ranks.p_friedman:.2g}).",
        draw=lambda: _critical_differences(ranks, look),
    )


def _critical_differences(ranks: Ranks, look: dict[str, Mark]) -> Figure:
    number = len(ranks.names)
    half = -(-number // 2)
    below = 0.35 + 0.28 * len(ranks.cliques)  # room for the bars of cliques; the names stand below it
    height = 1.1 + below + 0.42 * half
    # Inches: the axis, and the names at each side.
    scale, beside = 3.2, 0.08 * max(map(len, ranks.names)) + 0.9
    figure = Figure(figsize=(scale + 2 * beside, 0.55 * height + 0.3))
    axes = figure.add_axes((0, 0.02, 1, 0.96))
    axes.set_axis_off()
    margin = beside / scale * (number - 1)
    axes.set(xlim=(1 - margin, number + margin), ylim=(-height + 1.1, 1.1))
    axes.plot([1, number], [0, 0], color="#222222", linewidth=1.2)
    for tick in range(1, number + 1):
        axes.plot([tick, tick], [0, 0.1], color="#222222", linewidth=1.2)
        axes.text(tick, 0.16, str(tick), ha="center", va="bottom", fontsize=8)
    width = min(ranks.critical_difference, number - 1)
    axes.plot([1, 1 + width], [0.72, 0.72], color="#222222", linewidth=1.6, marker="|", markersize=6)
    axes.text(
        1 + width / 2, 0.78, f"critical difference {ranks.critical_difference:.2f}", ha="center", fontsize=8
    )
    place = dict(zip(ranks.names, ranks.average, strict=True))
    for i, clique in enumerate(ranks.cliques):
        ends = [place[clique[0]] - 0.03, place[clique[-1]] + 0.03]
        axes.plot(ends, [-0.22 - 0.28 * i] * 2, color="#222222", linewidth=4, solid_capstyle="round")
    for i, (name, rank) in enumerate(place.items()):
        left = i < half
        depth = -below - 0.42 * (i if left else number - 1 - i)
        edge = (1.0 if left else float(number)) + (-0.1 if left else 0.1) * (number - 1)
        axes.plot([rank, rank, edge], [0, depth, depth], color=look[name].colour, linewidth=1)
        axes.plot(rank, 0, marker=look[name].marker, color=look[name].colour, markersize=6)
        label = f"{name}  {rank:.2f}" if left else f"{rank:.2f}  {name}"
        shift = (-0.03 if left else 0.03) * (number - 1)
        axes.text(edge + shift, depth, label, ha="right" if left else "left", va="center", fontsize=8.5)
    return figure


def interference(group: Group, found: Sequence[Entry], probes: pd.DataFrame, look: dict[str, Mark]) -> Sketch:
    """How well multiclass detectors notice a piece of one category in an image of another."""
    own = probes[probes["cell_id"].isin([i for entry in found for i in entry.cell_ids])]
    title, name = f"Cross-class interference: {group.title}", f"interference-{slug(group)}"
    if own.empty:
        why = (
            "no detector was probed"
            if group.setting == "multiclass"
            else "only multiclass detectors interfere"
        )
        return Sketch(name=name, title=title, says="", draw=None, why_not=why)
    by_seed = own.groupby(["entry", "seed"])[[*PROBES]].mean().groupby("entry")
    return Sketch(
        name=name,
        title=title,
        says="How well a detector tells normal images from the same images mixed with another category, or "
        "with a piece of another category pasted in. Bars are means over categories and begin at 50 %, "
        "which is chance: there the detector takes other categories for normal. Thin bars are the standard "
        "deviation over seeds, cut at 100 %.",
        draw=lambda: _interference(100 * by_seed.mean(), 100 * by_seed.std(ddof=1), look),
    )


def _interference(mean: pd.DataFrame, deviation: pd.DataFrame, look: dict[str, Mark]) -> Figure:
    figure, ((axes,),) = new_figure(6.4, 3.6)
    number = len(mean)
    for i, name in enumerate(mean.index):
        x = np.arange(len(PROBES)) + (i - (number - 1) / 2) * 0.8 / number
        axes.bar(
            x, mean.loc[name] - 50, 0.72 / number, color=look[str(name)].colour, label=str(name), bottom=50
        )
        height, spread = mean.loc[name].to_numpy(float), deviation.loc[name].to_numpy(float)
        # Without a spread (one seed) there is no bar: one of no length would say that seeds agree.
        ends = [spread, np.minimum(spread, 100 - height)]
        bars = axes.errorbar(x, height, ends, color="#222222", fmt="none", elinewidth=1, capsize=2)
        for part in bars.get_children():
            part.set_path_effects(OUTLINE)
    axes.axhline(50, color="#222222", linewidth=1, linestyle=":")
    axes.text(-0.5, 49.6, "chance", fontsize=8, va="top")
    axes.set_xticks(range(len(PROBES)), [title.replace(", ", "\n") for title in PROBES.values()])
    axes.grid(visible=False, axis="x")
    lowest = float((mean - deviation.fillna(0)).min().min())
    axes.set(ylabel="AUROC, %", ylim=(min(45.0, lowest - 3), 101))
    add_legend(figure)
    return figure
