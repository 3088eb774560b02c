"""Anomaly maps of kept detectors as files that other programs read: the layout of `kdbench score`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kdbench.data.maps import shape_of
from kdbench.engine.device import threads
from kdbench.engine.evaluate import at_size
from kdbench.engine.kept import Tick, not_kept, one_dataset, open_kept
from kdbench.errors import Complaints
from kdbench.files import written_aside
from kdbench.results.store import Results

SCORES = "image_scores.csv"


def export_maps(
    results: Results,
    rows: Sequence[dict[str, Any]],
    out: Path,
    *,
    root: Path | None,
    weights: Path | None,
    device: torch.device,
    original_size: bool,
    tick: Tick,
) -> int:
    """Write float32 TIFF maps and `image_scores.csv` below `out`; returns the number of maps.

    `rows` has one row of each cell. A map has the path of its image below the root of the dataset, and the
    size of the method's input, or that of the image with `original_size`. Raises RequestError with the reason
    of every cell that cannot be exported, before anything is written.
    """
    complaints, opened = Complaints(), []
    one_dataset([*rows], root, "exported")
    for row in rows:
        with complaints.collecting():
            if reason := not_kept(results, row["cell_id"]):
                complaints.add(f"{row['method']} seed {row['seed']} ({row['cell_id']}): {reason}")
            else:
                opened.append(open_kept(results, row, root, weights, device))
    complaints.check()
    lines, count = [], 0
    for kept in opened:
        for category, own in kept.categories.values():
            with threads(kept.row["num_threads"]):
                found = kept.scored(category, own)
            for sample, one, value in zip(category.test, found.maps, found.image_score, strict=True):
                name = category.relative(sample.path)
                picture = Image.fromarray(at_size(one, shape_of(sample.path)) if original_size else one)
                with written_aside((out / name).with_suffix(".tiff")) as aside:
                    picture.save(aside, "TIFF")
                lines.append((name, repr(float(value))))
            count += len(found.maps)
            tick(kept.row["method"], category.name)
    with written_aside(out / SCORES) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "image_score"))
        writer.writerows(lines)
    return count
