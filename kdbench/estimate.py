"""How long cells will take: learnt from the rows of earlier ones, else from a few measured training steps."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kdbench import provenance, train
from kdbench.backbone import teacher
from kdbench.registry import get_method
from kdbench.request import Found, Job
from kdbench.results import read_rows

STEP_IMAGES = 4  # of a measured step; enough to keep two cores busy


def estimate_seconds(jobs: Sequence[Job], data: Mapping[str, Found], results: Path) -> dict[str, float]:
    """Cell id -> seconds, from rows of the same kind on this device, else from steps measured on noise."""
    speeds = _seconds_per_image(results)
    estimates = {}
    for job in jobs:
        config = json.loads(job.cell.config)
        device = provenance.device_name(torch.device(job.place.device))
        kind = (job.cell.method, _without_epochs(config), device)
        if kind not in speeds:
            speeds[kind] = _measured(job, config)
        found = data[job.cell.dataset].categories
        num_images = sum(len(found[name].train) for name in job.cell.categories)
        estimates[job.cell.id] = speeds[kind] * num_images * config["epochs"]
    return estimates


def _without_epochs(config: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in config.items() if key != "epochs"}, sort_keys=True)


def _seconds_per_image(results: Path) -> dict[tuple[str, str, str], float]:
    """Seconds per image and epoch of cells that ended well: (method, configuration, device) -> median."""
    try:
        rows = read_rows(results).to_pylist()
    except FileNotFoundError:
        return {}
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in {row["cell_id"]: row for row in rows if row["status"] == "ok"}.values():
        config = json.loads(row["config"])
        kind = (row["method"], _without_epochs(config), row["device_name"])
        num_images = (row["num_train"] + row["num_heldout"]) * config["epochs"]
        seconds = row["prepare_s"] + row["train_s"] + row["evaluate_s"]
        found.setdefault(kind, []).append(seconds / num_images)
    return {kind: median(values) for kind, values in found.items()}


def _measured(job: Job, config: dict[str, Any]) -> float:
    """Seconds per image of a training step on noise, the teacher's share left out since it runs once."""
    kind, device = get_method(job.cell.method), torch.device(job.place.device)
    validated = kind.Config.model_validate(config)
    method = kind(validated, teacher(validated.backbone, validated.levels, job.place.weights))
    train.place_networks(method, device)
    method.train()
    optimizer = method.optimizer()
    images = torch.randn(STEP_IMAGES, 3, validated.image_size, validated.image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    autocast = train.autocast_for(train.choose_precision(validated.precision, device), device)
    with torch.no_grad(), autocast:
        taught = method.teacher(images)
    for _ in range(3):  # the first two warm up
        started = time.perf_counter()
        with autocast:
            loss = method.loss(images, taught)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / STEP_IMAGES
