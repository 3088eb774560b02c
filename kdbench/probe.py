"""Cross-class interference: how well a multiclass detector notices a piece of one category in another.

It needs normal images only: normal test images of a category against (a) their Mixup with another one,
x = (x_A + x_B) / 2, and (b) themselves with a rectangle of 2 to 15 % of their area pasted from another one.
A detector that lets its categories interfere takes both for normal (a diagnostic of SNL, arXiv:2402.17091).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench import provenance, train
from kdbench.backbone import find_weights
from kdbench.dataset import fingerprint, fingerprint_of
from kdbench.detector import load_detector
from kdbench.errors import DataError, RequestError
from kdbench.evaluate import score
from kdbench.images import open_images
from kdbench.metrics import METRIC_VERSION, image_metrics, label_regions, pixel_metrics
from kdbench.registry import get_dataset, get_method
from kdbench.results import Results, detector_name, probe_name

AREA = (0.02, 0.15)  # of the pasted rectangle, as a share of the image
# What a probe's row takes over from the cell's row.
FROM_CELL = (
    "cell_id",
    "method",
    "config",
    "dataset",
    "setting",
    "categories",
    "dataset_categories",
    "fingerprint",
    "seed",
    "profile",
    "preset",
    "teacher_sha256",
)
Tick = Callable[[str, str], None]  # told the method and the category that was probed


@dataclass(frozen=True, kw_only=True)
class Composites:
    """Images of one category mixed with others, uint8 [N,S,S,3]; where rectangles were pasted [N,S,S]."""

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
) -> int:
    """Probe every multiclass detector of `rows` that has no probe yet; returns how many were probed.

    Raises RequestError where a detector was not kept or has one category, DataError where images changed.
    """
    cells = {row["cell_id"]: row for row in rows if row["setting"] == "multiclass" and row["status"] == "ok"}
    if not cells:
        raise RequestError(
            [f"{results.storage} has no multiclass detector; `kdbench run --setting multiclass`"]
        )
    todo = [row for cell_id, row in cells.items() if not results.storage.exists(probe_name(cell_id))]
    kept = {row["cell_id"]: detector_name(row["cell_id"]) for row in todo}
    complaints = [
        f"{row['method']} seed {row['seed']}: no detector {results.storage.path(kept[row['cell_id']])}; "
        "run it again without --discard-detectors (--redo all)"
        for row in todo
        if not results.storage.exists(kept[row["cell_id"]])
    ]
    complaints += [
        f"{row['method']}: a probe mixes categories, its detector has one: {row['categories'][0]}"
        for row in todo
        if len(row["categories"]) < 2
    ]
    if complaints:
        raise RequestError(complaints)
    for row in todo:
        results.write_probe(list(probe_cell(results, row, root, weights, device, tick)))
    return len(todo)


def probe_cell(
    results: Results,
    row: dict[str, Any],
    root: Path | None,
    weights: Path | None,
    device_name: str,
    tick: Tick,
) -> Iterator[dict[str, Any]]:
    """The probe's rows of one detector, one per category; the composites depend on its seed only."""
    dataset = get_dataset(row["dataset"])
    folder = dataset.root(root)
    categories = [dataset.scan(folder, name) for name in row["categories"]]
    prints = [fingerprint(dataset, category) for category in categories]
    if fingerprint_of(prints) != row["fingerprint"]:
        raise DataError(f"the images under {folder} are not those that {row['method']} was trained on")
    kind = get_method(row["method"])
    config = kind.Config.model_validate(json.loads(row["config"]))
    device = torch.device(device_name)
    found = find_weights(config.backbone, weights)
    if found.sha256 != row["teacher_sha256"]:
        raise RequestError(
            [f"{found.source} are not the weights of the teacher of {row['method']} in {row['cell_id']}"]
        )
    method = load_detector(
        results, row["cell_id"], method=row["method"], config=row["config"], weights=found, device=device
    )
    normal = []
    for category, print_ in zip(categories, prints, strict=True):
        images = open_images(dataset, category, print_, config.image_size)
        normal.append(images.test[[not sample.label for sample in category.test]])

    def scored(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batches = train.Batches(
            pixels,
            method.teacher,
            config.backbone,
            device=device,
            precision=train.choose_precision(config.precision, device),
            batch_size=config.batch_size,
            cached=False,
        )
        result = score(method, batches, lambda count: None)
        return result.image_score, result.maps

    for i, category in enumerate(categories):
        generator = np.random.default_rng(np.random.SeedSequence([row["seed"], i, 0x9B0BE]))
        others = np.concatenate([images for j, images in enumerate(normal) if j != i])
        composites = compose(normal[i], others, generator)
        plain, _ = scored(normal[i])
        mixed, _ = scored(composites.mixed)
        pasted, maps = scored(composites.pasted)
        label = np.arange(2 * len(plain)) >= len(plain)
        regions = label_regions(_at_size(composites.where, maps.shape[-1]))
        tick(row["method"], category.name)
        yield {name: row[name] for name in FROM_CELL} | {
            "category": category.name,
            "metric_version": METRIC_VERSION,
            "num_images": len(plain),
            "mixup_image_auroc": image_metrics(np.concatenate([plain, mixed]), label)["image_auroc"],
            "cutpaste_image_auroc": image_metrics(np.concatenate([plain, pasted]), label)["image_auroc"],
            "cutpaste_pixel_auroc": pixel_metrics(maps, regions)["pixel_auroc"],
            "device": device.type,
            **{k: v for k, v in provenance.code_provenance().items() if k != "ray_version"},
        }


def _at_size(masks: np.ndarray, size: int) -> np.ndarray:
    """Nearest resize of [N,S,S] bool to the maps' size."""
    index = ((np.arange(size) + 0.5) * masks.shape[1] / size).astype(int)
    return masks[:, index[:, None], index]
