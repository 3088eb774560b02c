"""Figures of the terms that drive a training, and of their gradients, at a few steps."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from kdbench.reports.figures import Figure, Sketch, add_legend, filled, new_panels, slug
from kdbench.reports.rows import Group

DEAD = 1e-6  # a spread of a gate below this is none


def terms_of(section: pd.DataFrame) -> pd.DataFrame:
    """A line per cell, step and term: entry, cell_id, share of the training, name, value, gradient."""
    cells = section[section["status"] == "ok"].drop_duplicates("cell_id")
    cells = cells[filled(cells["term_steps"])]
    lists = ["term_steps", "term_names", "term_values", "term_gradients"]
    lines = cells[["entry", "cell_id", "num_steps", *lists]].explode(lists, ignore_index=True)
    # Shown from the first step on a log axis, so steps count from 1.
    lines["share"] = (lines["term_steps"].astype(float) + 1) / lines["num_steps"].astype(float)
    renamed = {"term_names": "name", "term_values": "value", "term_gradients": "gradient"}
    lines = lines.rename(columns=renamed).astype({"value": float, "gradient": float})
    return lines[["entry", "cell_id", "share", "name", "value", "gradient"]]


def drivers(group: Group, section: pd.DataFrame) -> Iterator[Sketch]:
    """Terms and gradients, one panel per entry; nothing where no row has them."""
    lines = terms_of(section)
    if lines.empty:
        return
    observed = lines["name"].str.startswith("spread of gate")
    last = lines[observed & (lines["share"] == lines.groupby("cell_id")["share"].transform("max"))]
    dead = last[last["value"] < DEAD]
    notes = [
        f" {entry}: {name} is 0 at the end (cells: {own['cell_id'].nunique()}): this attention is the "
        "same for every image."
        for (entry, name), own in dead.groupby(["entry", "name"])
    ]
    shown = lines[~observed]
    yield Sketch(
        name=f"terms-{slug(group)}",
        title=f"What drives the training: {group.title}",
        says="Each term of the loss (line, weight included) and the norm of its gradient over all trained "
        "parameters (dashed), as medians over the cells of an entry, at the first step, at 1 % and 10 % of "
        "the training and at the last step. A term whose gradient lies far below the others' has no say. "
        "Short trainings measure fewer gradients." + "".join(notes),
        draw=lambda: _drivers([(str(name), own) for name, own in shown.groupby("entry")]),
    )


def _drivers(entries: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    names = sorted({name for _, lines in entries for name in lines["name"]})
    colours = {name: f"C{i % 10}" for i, name in enumerate(names)}
    figure, grid = new_panels(len(entries), 3, names, gap=(0.5, 0.45))
    for axes, (entry, lines) in zip(grid, entries, strict=True):
        axes.set(xscale="log", yscale="log")
        for name, own in lines.groupby("name"):
            middle = own.groupby("share")[["value", "gradient"]].median()
            middle = middle.where(middle > 0, np.nan)  # nothing has a logarithm
            colour, percent = colours[str(name)], 100 * middle.index.to_numpy()
            axes.plot(percent, middle["value"], color=colour, marker=".", label=str(name))
            axes.plot(percent, middle["gradient"], color=colour, marker=".", linestyle="--", alpha=0.7)
        axes.set_title(entry, fontsize=9)
    figure.supxlabel("share of the training, %", fontsize=9, y=0.02)
    figure.supylabel("term, gradient", fontsize=9, x=0.01)
    add_legend(figure)
    return figure
