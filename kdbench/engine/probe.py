"""Cross-class interference: how well a multiclass detector notices a piece of one category in another.

It needs normal test images only. They are told apart from (a) their Mixup with an image of another category,
x = (x_A + x_B) / 2, and (b) copies with a pasted rectangle, 2 to 15 % of the area, of another category. A
detector whose categories interfere takes both for normal (a diagnostic of SNL, arXiv:2402.17091).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.data.store import open_images
from kdbench.dataset import Category, Dataset
from kdbench.engine import provenance
from kdbench.engine.batches import batches_of
from kdbench.engine.evaluate import score
from kdbench.engine.kept import Tick, not_kept, one_dataset, open_kept
from kdbench.errors import DataError, RequestError
from kdbench.method import Method
from kdbench.metrics.exact import METRIC_VERSION, image_metrics, label_regions, pixel_metrics
from kdbench.results.attempts import read_beside
from kdbench.results.schema import CODE, IDENTITY, picked
from kdbench.results.store import PROBES, Results

NAMED = 3  # so many cells are named in a line
AREA = (0.02, 0.15)  # of the pasted rectangle, as a share of the image


@dataclass(frozen=True, kw_only=True)
class Composites:
    """Images of one category mixed with others, uint8 [N,S,S,3]; `where` marks the rectangles [N,S,S]."""

    mixed: np.ndarray
    pasted: np.ndarray
    where: np.ndarray


def compose(own: np.ndarray, others: np.ndarray, generator: np.random.Generator) -> Composites:
    """Mix every image of `own` [N,S,S,3] with one drawn from `others` [M,S,S,3]."""
    partner = others[generator.integers(len(others), size=len(own))]
    mixed = ((own.astype(np.uint16) + partner + 1) // 2).astype(np.uint8)
    pasted, where, size = own.copy(), np.zeros(own.shape[:3], bool), own.shape[1]
    for i in range(len(own)):
        area, ratio = generator.uniform(*AREA), np.exp(generator.uniform(-0.7, 0.7))
        height, width = (max(1, min(size, round(size * (area * r) ** 0.5))) for r in (ratio, 1 / ratio))
        top, left, y, x = (generator.integers(size - n + 1) for n in (height, width, height, width))
        pasted[i, top : top + height, left : left + width] = partner[i, y : y + height, x : x + width]
        where[i, top : top + height, left : left + width] = True
    return Composites(mixed=mixed, pasted=pasted, where=where)


def probe(
    results: Results,
    rows: Sequence[dict[str, Any]],
    root: Path | None,
    weights: Path | None,
    device: str,
    tick: Tick,
) -> tuple[int, list[str]]:
    """Probe every multiclass detector of `rows` that can be and has no probe yet.

    Returns how many were probed, and a line for each reason why others were left out. Raises RequestError
    with these if no detector has a probe then.
    """
    cells = {row["cell_id"]: row for row in rows if row["setting"] == "multiclass" and row["status"] == "ok"}
    if not cells:
        raise RequestError(
            [f"{results.storage} has no multiclass detector; `kdbench run --setting multiclass`"]
        )
    left_out: dict[str, list[dict[str, Any]]] = {}
    todo = []
    for cell_id, row in cells.items():
        if read_beside(results.storage, PROBES, only=[cell_id]).num_rows:
            continue
        reason = _unable(results, row)
        if reason:
            left_out.setdefault(reason, []).append(row)
        else:
            todo.append(row)
    one_dataset(todo, root, "probed")
    count = 0
    for row in todo:
        try:
            results.write(PROBES, list(probe_cell(results, row, root, weights, device, tick)))
            count += 1
        except (DataError, RequestError) as error:
            left_out.setdefault(" ".join(str(error).splitlines()), []).append(row)
    lines = [f"{_named(of)}: {reason}" for reason, of in left_out.items()]
    if sum(map(len, left_out.values())) == len(cells):
        raise RequestError(lines)
    return count, lines


def _unable(results: Results, row: dict[str, Any]) -> str:
    """Why a cell has no detector that can be probed, by its row and the folder; empty if it has one."""
    if len(row["categories"]) < 2:
        return f"a probe mixes categories, its detector has one: {row['categories'][0]}"
    return not_kept(results, row["cell_id"])


def _named(rows: Sequence[dict[str, Any]]) -> str:
    """The first few cells in words, and how many more there are."""
    names = [
        f"{row['method']} on {row['dataset']}, seed {row['seed']} ({row['cell_id']})" for row in rows[:NAMED]
    ]
    return "; ".join(names) + (f"; {len(rows) - NAMED} more" if len(rows) > NAMED else "")


def probe_cell(
    results: Results,
    row: dict[str, Any],
    root: Path | None,
    weights: Path | None,
    device_name: str,
    tick: Tick,
) -> Iterator[dict[str, Any]]:
    """The probe's rows of one detector, one per category; the composites depend on its seed only.

    Raises DataError if its images are missing or changed, RequestError for another teacher.
    """
    device = torch.device(device_name)
    kept = open_kept(results, row, root, weights, device)
    dataset, method, categories = kept.dataset, kept.method, kept.categories
    size = method.config.image_size
    normal = [_normal_images(dataset, *of_category, size) for of_category in categories.values()]
    for i, name in enumerate(categories):
        generator = np.random.default_rng(np.random.SeedSequence([row["seed"], i, 0x9B0BE]))
        others = np.concatenate([images for j, images in enumerate(normal) if j != i])
        values = _probed(method, normal[i], compose(normal[i], others, generator))
        tick(row["method"], name)
        yield picked(row, "cell_id", "attempt_id", *IDENTITY, "preset", "teacher_sha256") | {
            "category": name,
            "metric_version": METRIC_VERSION,
            "num_images": len(normal[i]),
            **values,
            "device": device.type,
            **picked(provenance.code_provenance(), *CODE),
        }


def _normal_images(dataset: Dataset, category: Category, own_fingerprint: str, size: int) -> np.ndarray:
    """The normal test images of a category, uint8 [N,S,S,3]."""
    images = open_images(dataset, category, own_fingerprint, size)
    return images.test[[not sample.label for sample in category.test]]


def _probed(method: Method, normal: np.ndarray, composites: Composites) -> dict[str, float]:
    """How well a detector tells composites from the normal images of which they are made."""
    plain, mixed, pasted = (
        score(method, batches_of(method, pixels), lambda count: None)
        for pixels in (normal, composites.mixed, composites.pasted)
    )
    label = np.arange(2 * len(normal)) >= len(normal)
    regions = label_regions(_at_size(composites.where, pasted.stack.shape[-1]))
    both = (np.concatenate([plain.image_score, other.image_score]) for other in (mixed, pasted))
    on_mixed, on_pasted = (image_metrics(scores, label)["image_auroc"] for scores in both)
    return {
        "mixup_image_auroc": on_mixed,
        "cutpaste_image_auroc": on_pasted,
        "cutpaste_pixel_auroc": pixel_metrics(pasted.stack, regions)["pixel_auroc"],
    }


def _at_size(masks: np.ndarray, size: int) -> np.ndarray:
    """Masks [N,S,S] bool at the size of the maps, nearest pixel."""
    index = ((np.arange(size) + 0.5) * masks.shape[1] / size).astype(int)
    return masks[:, index[:, None], index]
