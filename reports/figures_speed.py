"""Figures of speed: accuracy against latency, distributions of latency, and how a run used its machines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import numpy as np
import pandas as pd

from kdbench.reports.costs import FEW, P99_BATCHES, few_batches
from kdbench.reports.entries import TITLES, Entry, ranked_by
from kdbench.reports.figures import (
    OUTLINE,
    Figure,
    Mark,
    Sketch,
    add_legend,
    filled,
    log_axis,
    new_figure,
    slug,
)
from kdbench.reports.rows import Group, is_busy


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Means over the detectors of an entry, for one place, precision and batch size."""

    entry: str
    place: str
    precision: str
    batch_size: int
    p50_ms: float
    p90_ms: float
    p99_ms: float  # NaN: too few batches
    images_per_s: float
    busy: bool  # something else ran during all timings, or it is not known


@dataclass(frozen=True, kw_only=True)
class Point:
    """Speed and accuracy of an entry on one place in one precision."""

    timing: Timing
    accuracy: float  # percent
    deviation: float  # over the seeds; NaN for one
    off_front: str  # why it cannot be on a Pareto front; "" if it can


def timings(found: Sequence[Entry], latencies: pd.DataFrame) -> list[Timing]:
    """The timings of a section's entries; busy timings count only if an entry has no others."""
    times = ["p50_ms", "p90_ms", "p99_ms", "images_per_s"]
    taken = []
    for entry in found:
        own = latencies[latencies["cell_id"].isin(entry.cell_ids)]
        for (place, precision, batch_size), timed in own.groupby(["place", "precision", "batch_size"]):
            alone = timed[~is_busy(timed)]
            used = timed if alone.empty else alone
            mean = used[times].mean()  # as in the tables
            if few_batches(used):
                mean["p99_ms"] = np.nan
            taken.append(
                Timing(
                    entry=entry.name,
                    place=str(place),
                    precision=str(precision),
                    batch_size=int(batch_size),
                    busy=alone.empty,
                    **{name: float(mean[name]) for name in times},
                )
            )
    return taken


def points(found: Sequence[Entry], timed: Sequence[Timing], metric: str) -> list[Point]:
    """The entries that have both a timing and a mean of the metric."""
    placed = []
    by_name = {entry.name: entry for entry in found}
    for timing in timed:
        entry = by_name[timing.entry]
        if mean := entry.means[metric]:
            accuracy, deviation = 100 * mean.mean, 100 * mean.std
            why = off_front(entry, timing)
            placed.append(Point(timing=timing, accuracy=accuracy, deviation=deviation, off_front=why))
    return placed


def off_front(entry: Entry, timing: Timing) -> str:
    """Why an entry with this timing cannot be on a Pareto front, in words; "" if it can.

    An entry without a rank in the tables is not better than others in a figure either.
    """
    oracle = ("selected on test images",) if entry.oracle else ()
    busy = ("busy",) if timing.busy else ()
    return "; ".join((*entry.remarks, *oracle, *busy))


def front(placed: Sequence[Point]) -> list[Point]:
    """The Pareto front, fastest first: no other point is at least as good in both and better in one."""
    best: list[Point] = []
    comparable = [point for point in placed if not point.off_front]
    for point in sorted(comparable, key=lambda p: (p.timing.p50_ms, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def accuracy_latency(
    group: Group, found: Sequence[Entry], timed: Sequence[Timing], look: dict[str, Mark]
) -> Iterator[Sketch]:
    """One figure per place and precision, with the smallest batch that was timed there."""
    metric = ranked_by(found)
    title, name = f"Accuracy against latency: {group.title}", f"accuracy-latency-{slug(group)}"
    if not timed:
        yield Sketch(name=name, title=title, says="", draw=None, why_not="no detector was timed")
    for number, (place, precision) in enumerate(sorted({(t.place, t.precision) for t in timed})):
        there = [timing for timing in timed if (timing.place, timing.precision) == (place, precision)]
        where = f"{place}, {precision}"
        batch_size = min(timing.batch_size for timing in there)
        placed = points(found, [t for t in there if t.batch_size == batch_size], metric)
        if not placed:
            why = f"no entry has both a mean over the dataset and a timing on {where}"
            yield Sketch(name=f"{name}-{number}", title=title, says="", draw=None, why_not=why)
            continue
        yield Sketch(
            name=f"{name}-{number}",
            title=f"{where}: {title}",
            says=f"{TITLES[metric]} against the median time of a batch of {batch_size}, mean over the "
            "detectors timed; up and to the left is better. The line is the Pareto front. Bars: standard "
            "deviation over seeds. Hollow points are not on the front; the reason is beside the name. Busy: "
            "something else ran during the timing.",
            draw=partial(_accuracy_latency, placed, TITLES[metric], f"{where}, batch of {batch_size}", look),
        )


def _accuracy_latency(placed: Sequence[Point], metric: str, where: str, look: dict[str, Mark]) -> Figure:
    figure, ((axes,),) = new_figure(6.4, 4.2)
    best = front(placed)
    axes.step(
        [point.timing.p50_ms for point in best],
        [point.accuracy for point in best],
        where="post",
        color="#999999",
        linewidth=1.2,
        zorder=1,
    )
    for point in placed:
        mark, timing = look[point.timing.entry], point.timing
        axes.errorbar(
            timing.p50_ms,
            point.accuracy,
            yerr=point.deviation if np.isfinite(point.deviation) else None,
            color=mark.colour,
            marker=mark.marker,
            markersize=9,
            markerfacecolor="white" if point.off_front else mark.colour,
            markeredgewidth=1.5,
            linestyle="none",
            capsize=2.5,
            elinewidth=1,
            label=timing.entry + (f" ({point.off_front})" if point.off_front else ""),
        )
    log_axis(axes, [point.timing.p50_ms for point in placed])
    axes.margins(x=0.12, y=0.12)
    axes.set(xlabel=f"median latency, ms ({where})", ylabel=f"{metric}, %")
    add_legend(figure)
    return figure


def latency_distributions(
    group: Group, found: Sequence[Entry], latencies: pd.DataFrame, look: dict[str, Mark]
) -> Iterator[Sketch]:
    """One figure per device and precision, one panel per batch size."""
    own = latencies["cell_id"].isin([cell_id for entry in found for cell_id in entry.cell_ids])
    whole = latencies[own & filled(latencies["times_ms"])]
    for number, ((place, precision), timed) in enumerate(whole.groupby(["place", "precision"])):
        yield Sketch(
            name=f"latency-{slug(group)}-{number}",
            title=f"Latency on {place}, {precision}: {group.title}",
            says=f"All timed batches on {place} in {precision}. A box is the middle half with the median; "
            f"whiskers are the 1st and 99th percentile, or the lowest and highest time if {FEW} were timed. "
            "Hatched: something else ran meanwhile.",
            draw=partial(_latency_distributions, timed, look),
        )


def _latency_distributions(timed: pd.DataFrame, look: dict[str, Mark]) -> Figure:
    sizes = sorted(timed["batch_size"].unique())[:4]
    names = sorted(timed["entry"].unique(), reverse=True)
    figure, grid = new_figure(
        min(3.6 * len(sizes) + 1.6, 11), 0.42 * len(names) + 1.3, columns=len(sizes), sharey=True
    )
    for axes, size in zip(grid[0], sizes, strict=True):
        of_size = timed[timed["batch_size"] == size]
        for y, name in enumerate(names):
            own = of_size[of_size["entry"] == name]
            if own.empty:
                continue
            times = np.concatenate([np.asarray(t, float) for t in own["times_ms"]])
            ends = (0, 1) if len(times) < P99_BATCHES else (0.01, 0.99)
            low, q1, median, q3, high = np.quantile(times, [ends[0], 0.25, 0.5, 0.75, ends[1]])
            stats = {"med": median, "q1": q1, "q3": q3, "whislo": low, "whishi": high, "fliers": []}
            (box,) = axes.bxp(
                [stats],
                positions=[y],
                widths=0.55,
                orientation="horizontal",
                patch_artist=True,
                showfliers=False,
                medianprops={"color": "#000000", "linewidth": 1.6, "path_effects": OUTLINE},
            )["boxes"]
            box.set(facecolor=look[name].colour, alpha=0.75, hatch="////" if is_busy(own).any() else None)
        times = np.concatenate([np.asarray(t, float) for t in of_size["times_ms"]])
        log_axis(axes, [times.min(), times.max()])
        axes.set(title=f"batch of {size}", xlabel="ms per batch")
        axes.grid(visible=False, axis="y")
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].set_ylim(-0.6, len(names) - 0.4)
    return figure


@dataclass(frozen=True, kw_only=True)
class Span:
    """A cell while it ran, in seconds since its run's first cell began."""

    host: str
    method: str
    lane: int  # within its host
    begin: float
    end: float


def spans(cells: pd.DataFrame) -> list[Span]:
    """When each cell of one run ran, on as few lanes as each host needs.

    Rows do not say which worker ran a cell. The length of a cell is the sum of the times in its row (prepare,
    train, evaluate), without waiting and writing, so it may be too short. Cells that were resumed are left
    out: their time is spread over several starts.
    """
    by_cell = cells.groupby("cell_id").agg(
        host=("host", "first"),
        method=("method", "first"),
        started_at=("started_at", "first"),
        prepare_s=("prepare_s", "first"),
        train_s=("train_s", "first"),
        evaluate_s=("evaluate_s", "sum"),
    )
    by_cell = by_cell.dropna(subset=["started_at", "train_s"])
    if by_cell.empty:
        return []
    by_cell["begin"] = [datetime.fromisoformat(started).timestamp() for started in by_cell["started_at"]]
    by_cell["begin"] -= by_cell["begin"].min()
    by_cell["end"] = by_cell["begin"] + by_cell[["prepare_s", "train_s", "evaluate_s"]].sum(axis=1)
    placed: list[Span] = []
    for host, own in by_cell.fillna({"host": "unknown host"}).groupby("host"):
        free: list[float] = []
        for cell in own.sort_values(["begin", "end"]).itertuples():
            # `started_at` has whole seconds: a cell may seem to begin a second before the last one finished.
            lane = next((i for i, ended in enumerate(free) if ended <= cell.begin + 1), len(free))
            free[lane : lane + 1] = [cell.end]
            placed.append(
                Span(host=str(host), method=str(cell.method), lane=lane, begin=cell.begin, end=cell.end)
            )
    return placed


def workers(cells: pd.DataFrame, look: dict[str, Mark]) -> Iterator[Sketch]:
    """When the cells of the largest runs ran."""
    whole = cells[cells["resumed_at_epoch"].isna() & (cells["status"] == "ok")]
    sizes = whole.groupby("run_id")["cell_id"].nunique().sort_values(ascending=False, kind="stable")
    for number, run_id in enumerate(sizes.index[:2]):
        placed = spans(whole[whole["run_id"] == run_id])
        name, title = f"workers-{number}", f"How the cells of run {run_id} shared the machines"
        if len(placed) < 2:
            why = "fewer than two cells succeeded without a resume"
            yield Sketch(name=name, title=title, says="", draw=None, why_not=why)
            continue
        wall = max(span.end for span in placed)
        busy = sum(span.end - span.begin for span in placed)
        yield Sketch(
            name=name,
            title=title,
            says=f"{len(placed)} cells in {_duration(wall)}; one after another they would have taken "
            f"{_duration(busy)}, so {busy / wall:.1f} ran at a time. A bar is the work of one cell. Rows do "
            "not name workers, so a host has as few lanes as its cells need. Failed and resumed cells are "
            "left out.",
            draw=partial(_workers, placed, look),
        )


def _workers(placed: Sequence[Span], look: dict[str, Mark]) -> Figure:
    lanes = sorted({(span.host, span.lane) for span in placed})
    place = {lane: i for i, lane in enumerate(lanes)}
    figure, ((axes,),) = new_figure(8, min(0.24 * len(lanes), 9) + 1.4)
    unit, divisor = _unit(max(span.end for span in placed))
    methods = sorted({span.method for span in placed})
    colours = {method: Mark(number=i).colour for i, method in enumerate(methods)}
    for method in methods:
        own = [span for span in placed if span.method == method]
        axes.barh(
            [place[span.host, span.lane] for span in own],
            [(span.end - span.begin) / divisor for span in own],
            left=[span.begin / divisor for span in own],
            height=0.8,
            color=colours[method],
            edgecolor="white",
            linewidth=0.4,
            label=method,
        )
    hosts = sorted({host for host, _ in lanes})
    middles = [np.mean([place[lane] for lane in lanes if lane[0] == host]) for host in hosts]
    axes.set_yticks(middles, [f"{host} ({sum(lane[0] == host for lane in lanes)})" for host in hosts])
    for host in hosts[1:]:
        axes.axhline(place[host, 0] - 0.5, color="#222222", linewidth=0.8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=f"{unit} since the first cell began", ylabel="host (lanes)")
    add_legend(figure)
    return figure


def _unit(seconds: float) -> tuple[str, float]:
    return next(
        (name, size)
        for name, size in (("hours", 3600), ("minutes", 60), ("seconds", 1))
        if seconds >= 2 * size or size == 1
    )


def _duration(seconds: float) -> str:
    unit, size = _unit(seconds)
    return f"{seconds / size:.1f} {unit}"
