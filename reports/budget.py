"""When may one stop: whether trainings have flattened, and test metrics in the middle of them."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from kdbench.reports.entries import MAIN, TITLES, Entry
from kdbench.reports.figures import Figure, Mark, Sketch, add_legend, new_panels, slug
from kdbench.reports.rows import Group, Rows
from kdbench.reports.tables import Table, Value, hole, number, percent, text

FEWEST = 8  # epochs: a quarter of fewer is a single one
FLAT = 0.05  # a flat curve may change by so much in the last quarter of the training
SHARES = (0.25, 0.5, 1.0)  # of the training
SHOWN = tuple(name for name in MAIN if name != "mad")


def change(curve: Sequence[float] | None) -> float:
    """By what share the mean of the last quarter lies below that of the quarter before.

    NaN for fewer than eight epochs, and for values that are not all positive: a share of them means nothing.
    """
    if curve is None or len(curve) < FEWEST or min(curve) <= 0:
        return float("nan")
    quarter = len(curve) // 4
    last, before = np.mean(curve[-quarter:]), np.mean(curve[-2 * quarter : -quarter])
    return float(1 - last / before)


def flattened(group: Group, found: Sequence[Entry], rows: Rows) -> Iterator[Table]:
    """The changes in the last quarter of each training; nothing if no training has enough epochs."""
    cells = rows.cells.drop_duplicates("cell_id").set_index("cell_id")
    every = {cell_id for entry in found for cell_id in entry.ok["cell_id"]}
    changes = cells.loc[cells.index.isin(every), ["epoch_loss", "epoch_heldout"]].map(change)
    if changes["epoch_loss"].isna().all():
        return
    yield Table(
        title=f"When may one stop: {group.title}",
        head=("method", "steps", "loss", "held-out map", "flat"),
        body=tuple(_line(entry, changes) for entry in found),
        notes=(
            "Loss, held-out map: by how much, in percent, the mean over the last quarter of the epochs lies "
            "below that of the quarter before; a negative number says that it rose. The held-out map is the "
            "mean anomaly map of the normal images that a training left out, if it left some out. Flat: how "
            f"many detectors changed by less than {100 * FLAT:g} % in both. Fewer than {FEWEST} epochs do "
            "not tell.",
        ),
    )


def _line(entry: Entry, changes: pd.DataFrame) -> tuple[Value, ...]:
    own = changes.loc[[*dict.fromkeys(entry.ok["cell_id"])]]
    ids, known = tuple(own.index), own["epoch_loss"].notna()
    still = own[known].abs()
    flat = (still["epoch_loss"] < FLAT) & ~(still["epoch_heldout"] >= FLAT)
    of = number(int(flat.sum()), f"{flat.sum()} of {len(own)}", ids) if known.any() else hole(cell_ids=ids)
    changed = (_share(own[column], ids) for column in ("epoch_loss", "epoch_heldout"))
    return (text(entry.name), text(entry.conditions.num_steps), *changed, of)


def in_between(group: Group, found: Sequence[Entry], rows: Rows) -> Iterator[Table]:
    """Test metrics after a quarter, half and all of the training; nothing where no epoch was measured."""
    if not any(rows.epochs["cell_id"].isin(entry.cell_ids).any() for entry in found):
        return
    yield Table(
        title=f"Test metrics in the middle of the training: {group.title}",
        head=("method", *(f"{TITLES[name]} at {100 * share:g} %" for name in SHOWN for share in SHARES)),
        body=tuple(
            (text(entry.name), *(_at(entry, rows.epochs, name, share) for name in SHOWN for share in SHARES))
            for entry in found
        ),
        notes=(
            "By the detector as it was after that share of the epochs: means over the categories, then over "
            "the seeds that were measured (--measure-every). They chose nothing. If held-out images chose an "
            "earlier epoch, the ranking shows another detector.",
        ),
    )


def _share(changes: pd.Series, cell_ids: Sequence[str]) -> Value:
    """The mean change in percent; a hole where no cell has one."""
    return hole(cell_ids=cell_ids) if changes.isna().all() else percent(changes.mean(), cell_ids=cell_ids)


def _at(entry: Entry, measured: pd.DataFrame, name: str, share: float) -> Value:
    """A test metric after a share of the training; a hole if not all categories were measured then."""
    own = measured[measured["cell_id"].isin(entry.cell_ids)]
    there = own[own["epoch"] == (share * own["epochs"]).round()]
    there = there.merge(entry.ok[["cell_id", "category", "seed"]], on=["cell_id", "category"])
    whole = there.groupby("seed")["category"].nunique() == entry.ok["category"].nunique()
    there = there[there["seed"].isin(whole.index[whole])]
    if there.empty or there[name].isna().any():
        return hole(cell_ids=entry.cell_ids)
    by_seed = there.groupby("seed")[name].mean()
    return percent(by_seed.mean(), by_seed.std(ddof=1), cell_ids=tuple(dict.fromkeys(there["cell_id"])))


def courses(group: Group, found: Sequence[Entry], rows: Rows, look: dict[str, Mark]) -> Iterator[Sketch]:
    """Test metrics over the steps of the training; nothing where no epoch was measured."""
    lines = [(entry, _course(entry, rows.epochs)) for entry in found]
    lines = [(entry, course) for entry, course in lines if len(course)]
    if not lines:
        return
    yield Sketch(
        name=f"budget-{slug(group)}",
        title=f"When may one stop: {group.title}",
        says="Test metrics of the detector as it was after some epochs, over the optimizer's steps: "
        "means over the categories, then over the seeds that were measured. They chose nothing.",
        draw=lambda: _courses([(entry.name, course) for entry, course in lines], look),
    )


def _course(entry: Entry, epochs: pd.DataFrame) -> pd.DataFrame:
    """Means of the metrics by `steps`, where all measured seeds have all categories of the entry."""
    own = epochs.merge(entry.ok[["cell_id", "category", "seed", "num_steps"]], on=["cell_id", "category"])
    own = own.assign(steps=own["num_steps"] * own["epoch"] / own["epochs"])
    sizes = own.groupby("epoch").size()
    own = own[own["epoch"].isin(sizes.index[sizes == sizes.max()])]
    by_seed = own.groupby(["epoch", "seed"])[["steps", *SHOWN]].mean()
    return by_seed.groupby("epoch").mean().set_index("steps")


def _courses(lines: Sequence[tuple[str, pd.DataFrame]], look: dict[str, Mark]) -> Figure:
    figure, grid = new_panels(len(SHOWN), 3, [name for name, _ in lines], gap=(0.6, 0.45))
    for axes, metric in zip(grid, SHOWN, strict=True):
        for name, course in lines:
            mark = look[name]
            axes.plot(
                *(course.index, 100 * course[metric]),
                color=mark.colour,
                linestyle=mark.dash,
                marker=mark.marker,
                markersize=3,
                label=name,
            )
        axes.set_title(f"{TITLES[metric]}, %", fontsize=9)
    figure.supxlabel("optimizer steps", fontsize=9, y=0.02)
    add_legend(figure)
    return figure
