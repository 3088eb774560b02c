"""The tables of costs: size, latency and training of the detectors, a table per device."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from kdbench.reports.entries import Entry
from kdbench.reports.rows import TORCH, Group, is_busy
from kdbench.reports.tables import HOLE, Table, Value, hole, number, text
from kdbench.results.schema import GIVEN

MIB = 2**20
P99_BATCHES = 100  # with fewer timed batches the 99th percentile is little more than the slowest one
FEW = f"fewer than {P99_BATCHES} batches"
SPAN = "from images on the device to maps and scores on it"
SPAN_OF_EXPORTED = "of the exported detector, from pixels in main memory to maps and scores there"
WAY = ["entry", "place", "precision", "batch_size"]
RANKED_BY_ONE = "A rank from one detector says nothing about how much the detectors of a method differ."


def sizes(group: Group, found: Sequence[Entry]) -> Iterator[Table]:
    """Parameters and FLOPs of the detectors; they are the same on every device."""
    body = []
    for entry in found:
        cells = _ended(entry)
        if len(cells) and not entry.outside:
            names = ("num_parameters", "num_trained_parameters", "flops")
            body.append((text(entry.name), *(_one(cells, name) for name in names)))
    if body:
        yield Table(
            title=f"Size: {group.title}",
            head=("method", "parameters", "trained parameters", "FLOPs per image"),
            body=tuple(body),
            notes=("Parameters and FLOPs at inference, teacher included; a multiply-add counts 2.",),
        )


def latencies(
    group: Group, found: Sequence[Entry], rows: pd.DataFrame, untimed: pd.DataFrame
) -> Iterator[Table]:
    """Timings, a table per device and runtime; ranked by the median within one precision and batch size.

    `untimed` has the rows of runtimes that have no times; their remark says why.
    """
    cell_ids = [cell_id for entry in found for cell_id in entry.cell_ids]
    own, without = (part[part["cell_id"].isin(cell_ids)] for part in (rows, untimed))
    for place in sorted({*own["place"], *without["place"]}):
        body, timed, holes = [], own[own["place"] == place], without[without["place"] == place]
        for (precision, batch), block in timed.groupby(["precision", "batch_size"]):
            body += _timed(block, str(precision), int(batch))
        measured, whole = [line[-2] for line in body], set(timed["runtime"]) <= {TORCH}
        body += [_untimed(row) for row in holes.drop_duplicates(WAY).to_dict("records")]
        ranked_by_one = any(line[0].mean is not None and line[-2].mean == 1 for line in body)
        yield Table(
            title=f"Latency on {place}: {group.title}",
            head=(
                *("rank", "method", "precision", "batch", "p50 ms", "p99 ms", "images/s"),
                *("peak memory MiB", "detectors", "remark"),
            ),
            body=tuple(body),
            keys=("method", "precision", "batch"),
            notes=(
                f"{_over(measured, 'timed')}; for a batch, {SPAN if whole else SPAN_OF_EXPORTED}. "
                "A timing has a rank only if nothing else used the device.",
                *([RANKED_BY_ONE] if ranked_by_one else []),
            ),
        )


def training(group: Group, found: Sequence[Entry]) -> Iterator[Table]:
    """Seconds and memory of training a detector, a table per device."""
    ended = [(entry, _ended(entry)) for entry in found if not entry.outside]
    for place in sorted({place for _, cells in ended for place in cells["place"]}):
        body = []
        for entry, cells in ended:
            here = cells[cells["place"] == place]
            if len(here):
                values = (
                    shown_mean(here["train_s"], here),
                    shown_mean(here["peak_memory_bytes"] / MIB, here),
                )
                body.append((text(entry.name), *values, number(len(here))))
        yield Table(
            title=f"Training on {place}: {group.title}",
            head=("method", "train s", "peak memory MiB", "detectors"),
            body=tuple(body),
            notes=(f"{_over([line[-1] for line in body], 'trained, one per cell')}.",),
        )


def _untimed(row: dict[str, Any]) -> tuple[Value, ...]:
    names = (text(HOLE), text(row["entry"]), text(row["precision"]), text(int(row["batch_size"])))
    return (*names, *[hole(cell_ids=[row["cell_id"]])] * 5, text(row["why_not"]))


def _timed(rows: pd.DataFrame, precision: str, batch: int) -> list[tuple[Value, ...]]:
    """The lines of one precision and batch size: the ranked ones by their median, then the busy ones."""
    lines, quiet = [], rows[~is_busy(rows)]
    alone = {str(name): own for name, own in quiet.groupby("entry")}
    medians = {name: float(own["p50_ms"].mean()) for name, own in alone.items()}
    for name, own in rows.groupby("entry"):
        used = alone.get(str(name), own)
        busy = str(name) not in alone
        faster = sum(other < medians[str(name)] for other in medians.values()) if not busy else 0
        values = [
            shown_mean(used["p50_ms"], used),
            hole(FEW, [*used["cell_id"]]) if few_batches(used) else shown_mean(used["p99_ms"], used),
            shown_mean(used["images_per_s"], used),
            shown_mean(used["peak_memory_bytes"] / MIB, used),
        ]
        names = (text(name), text(precision), text(batch))
        rank = text(HOLE) if busy else number(1 + faster)
        remark = text(_unranked(used)) if busy else text("")
        merit = (busy, medians.get(str(name), 0.0), str(name))
        lines.append((merit, (rank, *names, *values, number(used["cell_id"].nunique()), remark)))
    return [line for _, line in sorted(lines, key=lambda pair: pair[0])]


def few_batches(timings: pd.DataFrame) -> bool:
    """Whether a timing has too few batches for a 99th percentile; rows without times do not count."""
    return any(times is not None and len(times) < P99_BATCHES for times in timings["times_ms"])


def _over(detectors: Sequence[Value], done: str) -> str:
    """How many detectors the means of a table are over, from its column of counts."""
    alone = all(count.mean == 1 for count in detectors)
    return "One detector each" if alone else f"Mean ± standard deviation over the detectors {done}"


def _unranked(timings: pd.DataFrame) -> str:
    """Why timings have no rank."""
    given = timings["neighbours"].eq(GIVEN).all()
    return GIVEN if given else "busy: " + _neighbours(timings)


def _neighbours(rows: pd.DataFrame) -> str:
    neighbours = dict.fromkeys(str(one) for one in rows["neighbours"].dropna() if one)
    return "; ".join(neighbours) or "it is not known with what"


def _ended(entry: Entry) -> pd.DataFrame:
    """One row per cell that succeeded: a multiclass cell repeats its costs in the row of each category."""
    return entry.rows[entry.rows["status"] == "ok"].drop_duplicates("cell_id")


def _one(cells: pd.DataFrame, column: str) -> Value:
    """A count that all cells should share; if they differ, the range (it is no interval of a mean)."""
    known = cells[column].dropna()
    if known.empty:
        return hole(cell_ids=[*cells["cell_id"]])
    low, high = float(known.min()), float(known.max())
    shown = _count(low) if low == high else f"{_count(low)} to {_count(high)}"
    return number(float(known.mean()), shown, tuple(cells["cell_id"]))


def _count(value: float) -> str:
    for scale, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.0f}"


def shown_mean(values: pd.Series, rows: pd.DataFrame) -> Value:
    """The mean of a column with its deviation, in three significant digits; a hole if no value is known."""
    known, ids = values.dropna(), tuple(dict.fromkeys(rows["cell_id"]))
    if known.empty:
        return hole(cell_ids=ids)
    mean, std = float(known.mean()), float(known.std(ddof=1))
    digits = max(0, 2 - math.floor(math.log10(abs(mean)))) if mean else 0  # three significant ones
    shown = f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")
    return Value(text=shown, mean=mean, std=None if math.isnan(std) else std, cell_ids=ids)
