"""Tables of exported detectors: what a runtime gains in speed, and what it costs in accuracy."""

from collections.abc import Iterator, Sequence

import pandas as pd

from kdbench.reports import estimates
from kdbench.reports.costs import WAY, shown_mean
from kdbench.reports.entries import COLUMNS, MAIN, TITLES, Entry
from kdbench.reports.estimates import Sample
from kdbench.reports.evidence import Evidence
from kdbench.reports.rows import TORCH, Group, Rows, is_busy
from kdbench.reports.significance import paired_difference
from kdbench.reports.tables import Table, Value, hole, number, percent, text

# Not F1-max: its bias is taken out of what leaving out images says, so that an interval may miss the value.
TESTED = ("image_auroc", "image_ap")
TRAINED = "torch, as trained"


def runtimes(
    group: Group, found: Sequence[Entry], rows: pd.DataFrame, untimed: pd.DataFrame
) -> Iterator[Table]:
    """All runtimes of a machine side by side, where there is another one than torch."""
    cell_ids = [cell_id for entry in found for cell_id in entry.cell_ids]
    every = pd.concat([rows, untimed], ignore_index=True)
    for machine, own in every[every["cell_id"].isin(cell_ids)].groupby("machine"):
        if set(own["runtime"]) <= {TORCH}:
            continue
        body: list[tuple[Value, ...]] = []
        for (_, entry), of_entry in own.groupby(["batch_size", "entry"]):
            torch_fp32 = of_entry[(of_entry["runtime"] == TORCH) & (of_entry["precision"] == "fp32")]
            base = torch_fp32["p50_ms"].mean()
            ways = [(of_way["p50_ms"].mean(), of_way) for _, of_way in of_entry.groupby(["runtime", *WAY])]
            # Without times last, in the order of their names.
            ways.sort(key=lambda way: (pd.isna(way[0]), way[0] if pd.notna(way[0]) else 0.0))
            body += [_runtime(str(entry), of_way, base) for _, of_way in ways]
        yield Table(
            title=f"Runtimes on {machine}: {group.title}",
            head=("method", "batch", "runtime", "version", "precision", "p50 ms", "x torch fp32", "remark"),
            body=tuple(body),
            keys=("method", "batch", "runtime", "precision"),
            notes=(
                "Median milliseconds of a batch, the fastest first. torch: from images on the device to maps "
                "and scores on it; the others: of the exported detector, from pixels in main memory to maps "
                "and scores there. x torch fp32: how many times as fast.",
            ),
        )


def _runtime(entry: str, rows: pd.DataFrame, base: float) -> tuple[Value, ...]:
    first = rows.iloc[0]
    version = text(", ".join(sorted(rows["runtime_version"].dropna().unique())))
    names = (text(entry), text(int(first["batch_size"])), text(first["runtime"]), version)
    median = shown_mean(rows["p50_ms"], rows)
    if median.mean is None:
        why = next(iter(rows["why_not"].dropna()), "")
        return (*names, text(first["precision"]), median, hole(cell_ids=median.cell_ids), text(why))
    times = base / median.mean
    gain = hole() if pd.isna(times) else number(times, f"{times:.2f}", median.cell_ids)
    busy = "busy: something else ran meanwhile" if is_busy(rows).any() else ""
    return (*names, text(first["precision"]), median, gain, text(busy))


def exported(group: Group, found: Sequence[Entry], rows: Rows) -> Iterator[Table]:
    """The metrics of exported detectors beside those of torch, and what each way costs, with intervals."""
    cell_ids = [cell_id for entry in found for cell_id in entry.cell_ids]
    ours = rows.deployed[rows.deployed["cell_id"].isin(cell_ids)]
    trained = rows.cells[rows.cells["status"] == "ok"].set_index(["cell_id", "category"])
    metrics: list[tuple[Value, ...]] = []
    costs: list[tuple[Value, ...]] = []
    for (machine, entry), of_entry in ours.groupby(["machine", "entry"]):
        keys = of_entry[["cell_id", "category"]].drop_duplicates()
        base = trained.loc[pd.MultiIndex.from_frame(keys)].reset_index()
        metrics.append(_metrics(str(entry), str(machine), base, TRAINED, base["precision"].iloc[0], ""))
        for (runtime, precision), of_way in of_entry.groupby(["runtime", "precision"]):
            way = (str(entry), str(machine), of_way, f"{runtime}, exported", precision)
            metrics.append(_metrics(*way, next(iter(of_way["why_not"].dropna()), "")))
            if of_way["why_not"].isna().all():
                costs.append(_cost(str(entry), str(machine), of_way, base, rows.scores))
    if metrics:
        yield Table(
            title=f"Exported detectors: {group.title}",
            head=(
                "method",
                "machine",
                "runtime",
                "precision",
                *(TITLES[name] for name in COLUMNS),
                "rows",
                "remark",
            ),
            body=tuple(metrics),
            keys=("method", "machine", "runtime", "precision"),
            notes=(
                "The mean over the categories and seeds whose detectors were exported, the same in each line "
                "of a method. int8 is calibrated on normal training images only.",
            ),
        )
    if costs:
        yield Table(
            title=f"What does int8 cost?: {group.title}",
            head=(
                *("method", "machine", "runtime", "precision"),
                *(part for name in TESTED for part in (TITLES[name], f"{TITLES[name]}, 95 % interval")),
                *(TITLES[name] for name in MAIN if name not in TESTED),
                "calibrated on",
            ),
            body=tuple(costs),
            keys=("method", "machine", "runtime", "precision"),
            notes=(
                "Points of percent that the exported detector has more than the same detector in torch, as "
                "it was trained; fp32 and bf16 stand beside int8 for comparison. The intervals of image "
                "AUROC and AP are over test images and seeds, paired by image and detector. Calibrated on: "
                "normal training images of a detector.",
            ),
        )


def _metrics(
    entry: str, machine: str, rows: pd.DataFrame, runtime: str, precision: str, why: str
) -> tuple[Value, ...]:
    cell_ids = [*dict.fromkeys(rows["cell_id"])]
    values = [
        hole(cell_ids=cell_ids) if rows[name].isna().any() else percent(rows[name].mean(), cell_ids=cell_ids)
        for name in COLUMNS
    ]
    names = (text(entry), text(machine), text(runtime), text(precision))
    return (*names, *values, number(len(rows)), text(why))


def _cost(
    entry: str, machine: str, rows: pd.DataFrame, base: pd.DataFrame, scores: pd.DataFrame
) -> tuple[Value, ...]:
    """The differences of a runtime and precision from torch; `base` are torch's rows of these detectors."""
    keys, cell_ids = ["cell_id", "category"], [*dict.fromkeys(rows["cell_id"])]
    both = rows.merge(base[[*keys, *COLUMNS]], on=keys, suffixes=("", "_torch"))
    samples = _paired(rows, scores)
    values: list[Value] = []
    for name in (*TESTED, *(name for name in MAIN if name not in TESTED)):
        known = both.dropna(subset=[name, f"{name}_torch"])
        differences = (known[name] - known[f"{name}_torch"]).groupby(known["category"]).mean().to_numpy()
        over = [of_category[name] for of_category in samples] if name in TESTED else []
        estimate = estimates.mean_over_images(over) if over else None
        if not len(differences):
            values += [hole(cell_ids=cell_ids)] * (2 if name in TESTED else 1)
            continue
        pair = paired_difference(differences, estimate, cell_ids)
        values += [pair.value, *([pair.within] if name in TESTED else [])]
    names = (text(entry), text(machine), text(rows["runtime"].iloc[0]), text(rows["precision"].iloc[0]))
    calibrated = sorted({int(count) for count in rows["num_calibration"].dropna()})
    return (*names, *values, text(", ".join(map(str, calibrated))))


def _paired(rows: pd.DataFrame, scores: pd.DataFrame) -> list[dict[str, Sample]]:
    """Per category and image metric: exported less torch, detector by detector on the same images."""
    ours = rows[["cell_id", "category", "images", "image_scores"]].explode(["images", "image_scores"])
    ours = ours.rename(columns={"images": "image", "image_scores": "exported"})
    both = scores.merge(ours, on=["cell_id", "category", "image"])
    sides = [
        Evidence(both.assign(image_score=both[name].astype(float))) for name in ("exported", "image_score")
    ]
    found = []
    for _, of_category in rows.sort_values("cell_id").groupby("category"):
        a, b = (side.of_category(of_category) for side in sides)
        if a is None or b is None:
            return []
        found.append({name: estimates.paired(a.samples[name], b.samples[name]) for name in TESTED})
    return found
