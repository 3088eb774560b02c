"""The figure of exported detectors: the latency of every runtime side by side."""

from collections.abc import Iterator, Sequence
from functools import partial

import pandas as pd

from kdbench.reports.entries import Entry
from kdbench.reports.figures import Figure, Mark, Sketch, add_legend, log_axis, new_figure, slug
from kdbench.reports.rows import TORCH, Group, is_busy


def runtimes(group: Group, found: Sequence[Entry], latencies: pd.DataFrame) -> Iterator[Sketch]:
    """One figure per machine with another runtime than torch, one panel per batch size."""
    cell_ids = [cell_id for entry in found for cell_id in entry.cell_ids]
    own = latencies[latencies["cell_id"].isin(cell_ids)]
    for number, (machine, timed) in enumerate(own.groupby("machine")):
        if set(timed["runtime"]) > {TORCH}:
            yield Sketch(
                name=f"runtimes-{slug(group)}-{number}",
                title=f"Runtimes on {machine}: {group.title}",
                says="Median time of a batch in each runtime and precision, mean over the detectors timed; "
                "left is better. Hollow: something else ran during a timing.",
                draw=partial(_runtimes, timed),
            )


def _runtimes(timed: pd.DataFrame) -> Figure:
    sizes, names = sorted(timed["batch_size"].unique())[:4], sorted(timed["entry"].unique(), reverse=True)
    ways = sorted({*zip(timed["runtime"], timed["precision"], strict=True)})
    looks = {way: Mark(number=number) for number, way in enumerate(ways)}
    figure, grid = new_figure(
        min(3.6 * len(sizes) + 1.6, 11), 0.5 * len(names) + 1.7, columns=len(sizes), sharey=True
    )
    for axes, size in zip(grid[0], sizes, strict=True):
        of_size = timed[timed["batch_size"] == size]
        for (name, *way), own in of_size.groupby(["entry", "runtime", "precision"]):
            look = looks[way[0], way[1]]
            axes.plot(
                [own["p50_ms"].mean()],
                [names.index(name)],
                color=look.colour,
                marker=look.marker,
                markersize=9,
                markerfacecolor="white" if is_busy(own).any() else look.colour,
                markeredgewidth=1.5,
                linestyle="none",
                label=f"{way[0]}, {way[1]}",
            )
        log_axis(axes, [*of_size["p50_ms"]])
        axes.margins(x=0.12)
        axes.set(title=f"batch of {size}", xlabel="ms per batch")
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].set_ylim(-0.6, len(names) - 0.4)
    add_legend(figure)
    return figure
