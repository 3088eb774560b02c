"""A results folder as a large comparison would leave it, without any training: for tests of reports.

Every number is drawn with a fixed generator. Image metrics are those of the drawn scores; pixel metrics and
curves are drawn near them.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from kdbench.cell import canonical_json
from kdbench.data.pictures import grey
from kdbench.metrics.curves import CURVE_COLUMNS, thinned
from kdbench.metrics.exact import MAD_METRICS, image_curve, image_metrics_of
from kdbench.results.store import CELLS, CURVES, INPUTS, LATENCY, PICTURES, PROBES, SCORES, Results

METHODS = {"dcam": 2.6, "rd4ad": 2.3, "snl": 2.2, "dskd": 2.0, "stfpm": 1.7}  # how well each tells defects
SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What was run, as it were."""

    datasets: dict[str, tuple[str, ...]]
    methods: Sequence[str] = tuple(METHODS)
    settings: Sequence[str] = ("oneclass", "multiclass")
    seeds: Sequence[int] = (0, 1, 2)
    num_images: int = 24  # of a category, half of them defective
    pictures: bool = True
    latency: bool = True
    probes: bool = True


def fabricate(folder: Path, grid: Grid) -> Results:
    """Write the results of a grid; the last method fails on the first category of each oneclass setting."""
    results, started = Results(folder), datetime(2026, 3, 1, 9, tzinfo=UTC)
    for dataset, categories in grid.datasets.items():
        if grid.pictures:
            for category in categories:
                results.write(INPUTS, _inputs(dataset, category, grid.num_images))
        for setting in grid.settings:
            groups = [categories] if setting == "multiclass" else [(category,) for category in categories]
            for seed in grid.seeds:
                for method in grid.methods:
                    for group in groups:
                        failed = (
                            method == grid.methods[-1] and group == (categories[0],) and len(categories) > 4
                        )
                        cell = _cell(dataset, categories, setting, method, seed, group, started)
                        _write(results, grid, cell, group, failed)
                        started += timedelta(seconds=20 * len(group))
    return results


def _cell(
    dataset: str,
    everything: Sequence[str],
    setting: str,
    method: str,
    seed: int,
    group: Sequence[str],
    started: datetime,
) -> dict[str, Any]:
    name = group[0] if setting == "oneclass" else "all"
    return {
        "schema_version": 1,
        "cell_id": f"{method}-{dataset}-{setting}-{name}-{seed}",
        "run_id": "20260301-090000-abcdef",
        "method": method,
        "config": canonical_json({"backbone": "resnet18.tv_in1k", "epochs": 20, "lr": 0.4, "method": method}),
        "dataset": dataset,
        "setting": setting,
        "categories": list(group),
        "dataset_categories": list(everything),
        "texture": False,
        "fingerprint": f"{dataset}-{name}",
        "seed": seed,
        "profile": "paper",
        "selection": "heldout",
        "preset": "exact",
        "metric_version": 1,
        "evaluation_size": 256,
        "mask_rule": "nearest",
        "score_pooling": "maximum",
        "pro_limit": 0.3,
        "backbone": "resnet18.tv_in1k",
        "teacher_sha256": "0123456789abcdef",
        "precision": "fp32",
        "device": "cuda",
        "device_name": "Tesla X",
        "num_threads": 8,
        "host": f"node-{len(name) % 3}",
        "started_at": started.isoformat(timespec="seconds"),
        "kdbench_version": "0.1.0",
        "python_version": "3.11.7",
        "torch_version": "2.9.0",
    }


def _write(results: Results, grid: Grid, cell: dict[str, Any], group: Sequence[str], failed: bool) -> None:
    generator = np.random.default_rng(_seed(cell["cell_id"]))
    rows, scores, curves, pictures = [], [], [], []
    loss = METHODS[cell["method"]] * 0.9 ** np.arange(20) * generator.uniform(0.9, 1.1, 20)
    for category in group:
        merit = METHODS[cell["method"]] - (0.5 if cell["setting"] == "multiclass" else 0)
        merit += np.random.default_rng(_seed(cell["dataset"] + category)).normal(0, 0.6)
        label = np.arange(grid.num_images) % 2 == 1
        hard = np.random.default_rng(_seed(category)).normal(
            0, 1, grid.num_images
        )  # the same for all methods
        score = 5 + merit * label + 0.6 * hard + 0.8 * generator.normal(0, 1, grid.num_images)
        curve = image_curve(score, label)
        of_image = image_metrics_of(curve)
        pixel = {
            "pixel_auroc": 1 - (1 - of_image["image_auroc"]) / 3,
            "pixel_ap": of_image["image_ap"] * 0.6,
            "pixel_f1_max": of_image["image_f1_max"] * 0.65,
            "aupro": 1 - (1 - of_image["image_auroc"]) * 0.8,
        }
        seven = [(of_image | pixel)[m] for m in MAD_METRICS]
        status = {"status": "failed", "error": "Traceback\nRuntimeError: <b>loss is NaN</b>"}
        if not failed:
            status = {
                "status": "ok",
                **of_image,
                **pixel,
                "aupro_05": pixel["aupro"] * 0.8,
                "mad": float(np.mean(seven)),
            }
        rows.append(
            cell
            | status
            | {
                "category": category,
                "num_train": 200,
                "num_test": grid.num_images,
                "num_defective": grid.num_images // 2,
                "epoch_loss": loss.tolist(),
                "epoch_heldout": (loss * 1.1).tolist(),
                "best_epoch": 18,
                "prepare_s": 2.0,
                "train_s": float(generator.uniform(20, 60) * len(group)),
                "evaluate_s": 3.0,
                "num_parameters": 11_000_000 + 1000 * len(cell["method"]),
                "flops": 7_000_000_000,
                "peak_memory_bytes": 2 << 30,
            }
        )
        names = {"cell_id": cell["cell_id"], "category": category}
        images = [_image(category, i, bool(label[i])) for i in range(grid.num_images)]
        scores += [
            names
            | {"image": image, "defect": "hole" if y else "good", "label": bool(y), "image_score": float(s)}
            for image, y, s in zip(images, label, score, strict=True)
        ]
        thin = dict(zip(CURVE_COLUMNS[:2], thinned(curve, curve.hits / curve.num_defective), strict=True))
        rate = np.linspace(0, 1, 80)
        thin |= {"pixel_fpr": rate, "pro_fpr": rate}
        thin |= {"pixel_tpr": rate ** (0.25 / max(merit, 0.5)), "pro": rate ** (0.4 / max(merit, 0.5))}
        curves.append(names | thin)
        if grid.pictures and not failed:
            pictures += [
                names
                | {"category_fingerprint": f"{cell['dataset']}-{category}", "image": image}
                | {
                    "anomaly_map": _map(i, bool(y), int(10 * (s - 4).clip(0, 5))),
                    "lowest": 1.0,
                    "highest": float(s),
                }
                for i, (image, y, s) in enumerate(zip(images, label, score, strict=True))
            ]
    if not failed:
        results.write(SCORES, scores)
        results.write(CURVES, curves)
        if pictures:
            results.write(PICTURES, pictures)
    if grid.latency and not failed and cell["seed"] == grid.seeds[0]:
        for device in ("Tesla X", "Other GPU 40 GB <laptop>"):
            results.write(LATENCY, _latencies(cell, device, generator))
    if grid.probes and cell["setting"] == "multiclass":
        results.write(PROBES, [_probe(cell, category, generator) for category in group])
    results.write(CELLS, rows)


def _latencies(cell: dict[str, Any], device: str, generator: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for batch_size in (1, 8):
        centre = {"dcam": 9.0, "rd4ad": 14.0, "snl": 7.5, "dskd": 6.0, "stfpm": 3.0}[cell["method"]]
        centre *= (1.0 if device == "Tesla X" else 2.6) * batch_size**0.7
        times = centre * np.exp(generator.normal(0, 0.05, 60)) + generator.exponential(0.03 * centre, 60)
        p50, p90, p99 = np.quantile(times, [0.5, 0.9, 0.99])
        shared = ("schema_version", "cell_id", "run_id", "method", "config", "dataset", "setting", "seed")
        rows.append(
            {
                name: cell[name]
                for name in (*shared, "profile", "backbone", "precision", "num_threads", "host")
            }
            | {"device": "cuda", "device_name": device, "batch_size": batch_size, "num_warmup": 10}
            | {"times_ms": times.tolist(), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
            | {"images_per_s": 1000 * batch_size / p50, "num_parameters": 11_000_000, "flops": 7 * 10**9}
            | {"busy": cell["method"] == "dskd" and device != "Tesla X", "neighbours": "python"}
        )
    return rows


def _probe(cell: dict[str, Any], category: str, generator: np.random.Generator) -> dict[str, Any]:
    names = ("cell_id", "method", "config", "dataset", "setting", "categories", "dataset_categories")
    values = 1 - generator.uniform(0, 0.45, 3) / METHODS[cell["method"]]
    columns = ("mixup_image_auroc", "cutpaste_image_auroc", "cutpaste_pixel_auroc")
    own = {
        name: cell[name] for name in (*names, "fingerprint", "seed", "profile", "preset", "metric_version")
    }
    return own | {"category": category, "num_images": 12, **dict(zip(columns, values, strict=True))}


def _inputs(dataset: str, category: str, number: int) -> list[dict[str, Any]]:
    colour = np.random.default_rng(_seed(category)).uniform(60, 200, 3)
    return [
        {
            "category_fingerprint": f"{dataset}-{category}",
            "category": category,
            "image": _image(category, i, i % 2 == 1),
            "width": 900,
            "height": 600,
            "input": _input(i, i % 2 == 1, tuple(int(c) for c in colour)),
            "mask": _mask(i) if i % 2 else None,
        }
        for i in range(number)
    ]


def _image(category: str, i: int, defective: bool) -> str:
    return f"{category}/test/{'hole' if defective else 'good'}/{i:03}.png"


@lru_cache
def _where(i: int) -> np.ndarray:
    """Where image i has its defect, [SIDE,SIDE] of 0 to 1."""
    y, x = np.random.default_rng(i).uniform(0.2, 0.8, 2) * SIDE
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.exp(-(((rows - y) / 10) ** 2 + ((columns - x) / 14) ** 2))


@lru_cache
def _noise(i: int) -> np.ndarray:
    return gaussian_filter(np.random.default_rng(i).normal(0, 1, (SIDE, SIDE)), 5) * 8


@lru_cache(maxsize=4096)
def _map(i: int, defective: bool, strength: int) -> bytes:
    return _encoded(grey(_noise(i) + _where(i) * defective * strength / 8, -3.0, 6.0), "PNG")


@lru_cache(maxsize=4096)
def _input(i: int, defective: bool, colour: tuple[int, ...]) -> bytes:
    pixels = np.asarray(colour) + 10 * _noise(i)[..., None] - 70 * defective * _where(i)[..., None]
    return _encoded(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((128, 85)), "JPEG")


@lru_cache
def _mask(i: int) -> bytes:
    return _encoded(Image.fromarray(_where(i) > 0.4).resize((128, 85)), "PNG")


def _encoded(image: Image.Image, kind: str) -> bytes:
    memory = io.BytesIO()
    image.save(memory, kind)
    return memory.getvalue()


def _seed(said: str) -> list[int]:
    return list(said.encode())
