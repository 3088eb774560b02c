"""GPU hours of a grid, from its operations alone: an estimate that no GPU has confirmed."""

import json
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdbench.data.found import Found
from kdbench.engine.build import build_method
from kdbench.grid.costs import STEP_IMAGES, num_images, recipe_of
from kdbench.grid.plan import Job

# Operations in a second that an NVIDIA A100 does at most, by its data sheet (dense; fp32 without TF32, which
# kdbench switches off), times the share of it that we assume. `auto` is bf16 there.
SPEED = {"fp32": 0.4 * 19.5e12, **dict.fromkeys(("bf16", "fp16", "auto"), 0.1 * 312e12)}
SAYS = (
    "the operations of the networks at 40 % of the peak of an NVIDIA A100 in fp32, 10 % in bf16. No GPU has "
    "confirmed this estimate; reading images and metrics come on top"
)


def gpu_hours(jobs: Sequence[Job], data: Mapping[str, Found]) -> float:
    """Hours of one GPU that these cells take, by the operations of their networks."""
    known: dict[Hashable, tuple[int, int]] = {}
    seconds = 0.0
    for job in jobs:
        config = json.loads(job.cell.config)
        recipe = recipe_of(job.cell.method, config)
        if recipe not in known:
            known[recipe] = operations(job)
        (train, test), (num_train, num_test) = known[recipe], num_images(job.cell, data)
        count = train * num_train * config["epochs"] + test * num_test
        seconds += count / SPEED[config["precision"]]
    return seconds / 3600


def operations(job: Job) -> tuple[int, int]:
    """FLOPs of one image: of a training step with the teacher, and of a map. A multiply-add is two."""
    cell, cpu = job.cell, torch.device("cpu")
    method = build_method(cell.method, cell.config, job.place.weights, cpu)
    size = method.config.image_size
    images = torch.randn(STEP_IMAGES, 3, size, size)
    with FlopCounterMode(display=False) as training:
        with torch.no_grad():
            taught = method.teacher(images)
        method.train()
        method.loss(images, taught).backward()
    method.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as testing:
        method.anomaly_map(images, method.teacher(images))
    return training.get_total_flops() // STEP_IMAGES, testing.get_total_flops() // STEP_IMAGES
