"""Fabricated rows for tests of reports: no detector made these numbers, and the names say so."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.cell import canonical_json
from kdbench.metrics.exact import MAD_METRICS, METRICS, image_metrics
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, LATENCY, SCORES, Results, read

DATASETS = {
    "fabricated_15": tuple(f"category_{i:02}" for i in range(15)),
    "fabricated_12": tuple(f"category_{i:02}" for i in range(12)),
}
METHODS = tuple(f"fabricated_{letter}" for letter in "abcde")


def row(**changes: Any) -> dict[str, Any]:
    """A row of a cell that succeeded, without metrics."""
    config = canonical_json({"epochs": 2})
    return {
        "schema_version": 1,
        "cell_id": "c0",
        "run_id": "fabricated",
        "method": "fabricated_a",
        "config": config,
        "dataset": "fabricated",
        "setting": "multiclass",
        "category": "a",
        "categories": ["a", "b"],
        "dataset_categories": ["a", "b"],
        "seed": 0,
        "profile": "paper",
        "selection": "heldout",
        "preset": "exact",
        "metric_version": 1,
        "teacher_sha256": "0123456789",
        "status": "ok",
        "device": "cuda",
        "device_name": "fabricated GPU",
    } | changes


def all_metrics(value: float | None) -> dict[str, float | None]:
    """The same value for every metric."""
    return dict.fromkeys((*METRICS, "mad"), value)


def scores(
    cell_id: str, category: str, *, merit: float, seed: int, num_images: int = 120
) -> list[dict[str, Any]]:
    """Scores of test images, a third of them normal, whose defects lie `merit` deviations higher."""
    label = np.arange(num_images) >= num_images // 3
    values = np.random.default_rng(seed).normal(size=num_images) + merit * label
    return [
        {
            "cell_id": cell_id,
            "category": category,
            "image": f"{i:03}.png",
            "defect": "fabricated" if label[i] else "good",
            "label": bool(label[i]),
            "image_score": float(values[i]),
        }
        for i in range(num_images)
    ]


def write_scores(folder: Path | Storage, own: list[dict[str, Any]]) -> None:
    """Write image scores, and give the rows of their cells the image AUROC that follows from them."""
    Results(folder).write(SCORES, own)
    rows = read(folder, CELLS).to_pylist()
    for cell_id in {one["cell_id"] for one in own}:
        cell = [one for one in rows if one["cell_id"] == cell_id]
        for one in cell:
            if images := [image for image in own if image["category"] == one["category"]]:
                values, label = (
                    np.array([image[name] for image in images]) for name in ("image_score", "label")
                )
                one["image_auroc"] = image_metrics(values, label)["image_auroc"]
        if cell:
            Results(folder).write(CELLS, cell)


def fabricate(folder: Path, *, methods: tuple[str, ...] = METHODS, num_seeds: int = 5) -> int:
    """Cells of methods x settings x datasets x seeds with scores and timings; returns how many."""
    results, count = Results(folder), 0
    for dataset, categories in DATASETS.items():
        for i, method in enumerate(methods):
            for seed in range(num_seeds):
                groups = [("multiclass", categories), *(("oneclass", (name,)) for name in categories)]
                for setting, group in groups:
                    cell_id = f"{count:020}"
                    _write(
                        results,
                        cell_id,
                        i,
                        method=method,
                        dataset=dataset,
                        setting=setting,
                        group=group,
                        seed=seed,
                    )
                    count += 1
    return count


def _write(results: Results, cell_id: str, i: int, *, group: tuple[str, ...], **names: Any) -> None:
    rows, all_scores = [], []
    for category in group:
        # The later the method, the better; multiclass is worse; every category and seed has its own noise.
        number = int(category[-2:])
        merit = 1 + 0.2 * i - 0.3 * (names["setting"] == "multiclass") + 0.05 * number
        own = scores(cell_id, category, merit=merit, seed=1000 * i + 100 * names["seed"] + number)
        all_scores += own
        of_images = image_metrics(
            np.array([one["image_score"] for one in own]), np.array([one["label"] for one in own])
        )
        metrics = dict.fromkeys(METRICS, of_images["image_auroc"] - 0.05) | of_images
        metrics["mad"] = sum(metrics[name] for name in MAD_METRICS) / len(MAD_METRICS)
        facts = {
            "cell_id": cell_id,
            "category": category,
            "categories": list(group),
            "dataset_categories": list(DATASETS[names["dataset"]]),
            "texture": number < 5,
            "train_s": 60.0 + i,
            "num_parameters": 10_000_000,
            "peak_memory_bytes": 2**30,
        }
        rows.append(row(**facts, **names, **metrics))
    results.write(SCORES, all_scores)
    results.write(CELLS, rows)
    kept = ("cell_id", "run_id", "method", "config", "dataset", "setting", "seed", "profile", "device_name")
    timing = {name: rows[0][name] for name in kept} | {"device": "cuda", "precision": "fp32", "busy": False}
    results.write(
        LATENCY,
        [
            timing
            | {"batch_size": batch, "p50_ms": 1.0 + i, "p99_ms": 2.0 + i, "images_per_s": 100.0 * batch}
            for batch in (1, 32)
        ],
    )


def trial_row(
    number: int, value: float | None, searched: dict[str, Any] | None = None, **changes: Any
) -> dict:
    """A trial that was trained to the end of its 9 epochs."""
    return {
        "schema_version": 1,
        "trial_id": f"s1-t{number:03}",
        "sweep_id": "s1",
        "method": "stfpm",
        "config": "{}",
        "searched": json.dumps(searched or {"lr": 0.1 * number}),
        "is_default": number == 0,
        "dataset": "mvtec_ad",
        "setting": "oneclass",
        "categories": ["bottle"],
        "seeds": [0],
        "search": "random",
        "scheduler": "asha",
        "selection": "synthetic",
        "objective": "mad",
        "objective_value": value,
        "objective_epochs": [3, 9],
        "objective_history": [0.5, value],
        "status": "ok",
        "epochs": 9,
        "epochs_trained": 9,
        "stopped_early": False,
        "started_at": f"2026-01-01T00:{number:02}:00+00:00",
        "ended_at": f"2026-01-01T00:{number:02}:30+00:00",
        **changes,
    }
