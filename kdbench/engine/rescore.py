"""Compute the metrics that an old row lacks with the kept detector of its cell; nothing is trained again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kdbench.data.store import open_truth
from kdbench.engine.device import threads
from kdbench.engine.evaluate import measure
from kdbench.engine.kept import Tick, not_kept, one_dataset, open_kept
from kdbench.errors import DataError, RequestError, number_of
from kdbench.metrics.exact import DEFINITIONS
from kdbench.metrics.legacy import LEGACY_METRICS
from kdbench.metrics.presets import PRESETS, metric_version
from kdbench.results.schema import MEASURED
from kdbench.results.store import CELLS, Results, read

COMPARED = (*MEASURED, *LEGACY_METRICS)


def rescore(
    results: Results, root: Path | None, weights: Path | None, device: torch.device, tick: Tick
) -> tuple[int, list[str]]:
    """Fill the metrics that rows lack, of every cell whose detector was kept.

    Returns how many cells got some, and for each other cell a line with the reason. Raises RequestError if
    `root` is given for detectors of several datasets.
    """
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in read(results.storage, CELLS).to_pylist():
        if row["status"] == "ok" and row["outside_sha256"] is None:
            cells.setdefault(row["cell_id"], []).append(row)
    count, why = 0, list[str]()
    todo = [rows for rows in cells.values() if any(lacks(row) for row in rows)]
    one_dataset([rows[0] for rows in todo], root, "scored again")
    for rows in todo:
        try:
            with threads(rows[0]["num_threads"]):
                found = rescored(results, rows, root, weights, device, tick)
            results.write(CELLS, found)
            count += 1
        except (DataError, RequestError) as error:
            row = rows[0]
            label = f"{row['method']} {row['dataset']}/{'+'.join(row['categories'])} seed {row['seed']}"
            why.append(f"{label} ({row['cell_id']}): {' '.join(str(error).splitlines())}")
    return count, why


def lacks(row: dict[str, Any]) -> bool:
    """Whether a row has no value of a metric that every row has, or every row of a category with masks."""
    masks = row["aupro"] is not None
    return any(
        row[one.name] is None for one in DEFINITIONS if one.of == "image" or (one.of == "pixel" and masks)
    )


def rescored(
    results: Results,
    rows: Sequence[dict[str, Any]],
    root: Path | None,
    weights: Path | None,
    device: torch.device,
    tick: Tick,
) -> list[dict[str, Any]]:
    """The rows of a cell with the metrics that they lack; no value that they have changes.

    Raises DataError if a value that they have differs when it is computed again, or if the images changed;
    RequestError for another teacher or without a detector.
    """
    first = rows[0]
    if reason := not_kept(results, first["cell_id"]):
        raise RequestError([reason])
    if first["metric_version"] != metric_version(first["preset"]):
        raise RequestError([f"its numbers are of metrics v{first['metric_version']}: run it again"])
    kept = open_kept(results, first, root, weights, device)
    found = []
    for row in rows:
        category, own = kept.categories[row["category"]]
        preset = PRESETS[row["preset"]]
        truth = open_truth(kept.dataset, category, own, preset)
        values = measure(kept.scored(category, own), truth, preset).metrics
        other = [name for name in COMPARED if row[name] is not None and row[name] != values[name]]
        if other:
            pairs = ", ".join(f"{name} {row[name]!r} is {values[name]!r} now" for name in other)
            threads = number_of(row["num_threads"], "thread")
            where = f"{row['device_name']}, {threads}, torch {row['torch_version']}"
            raise DataError(
                f"{row['category']}: {pairs}. Nothing is written: new numbers would be of another detector. "
                f"It was scored on {where}: do it there, or run the cell again"
            )
        tick(row["method"], row["category"])
        found.append(row | {name: values[name] for name in COMPARED if row[name] is None})
    return found
