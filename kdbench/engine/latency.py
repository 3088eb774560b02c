"""The speed of a trained detector, measured in a process of its own that has the whole device.

With torch a timed call starts with normalised images on the device and finishes, synchronised, with anomaly
maps and image scores on it; the copy of the images to a GPU is timed separately. In every other runtime it is
one call of the exported detector: from the pixels of images in main memory to maps and scores there.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from kdbench.cell import Cell, Place
from kdbench.deploy.runtimes import TORCH
from kdbench.engine import provenance
from kdbench.engine.build import load_detector
from kdbench.engine.deployed import Exported, Way, each_way, normal_images, write_beside
from kdbench.engine.device import (
    autocast_for,
    broken_gpu,
    choose_precision,
    peak_memory_bytes,
    start_peak_memory,
    synchronise,
)
from kdbench.engine.nvidia import SmiError, others_on_gpu, own_numbers
from kdbench.engine.ready import ready_cell
from kdbench.machine import Others
from kdbench.method import Method
from kdbench.results.schema import CODE, MACHINE, RECIPE, SCHEMA_VERSION, picked
from kdbench.results.store import CELLS, LATENCY, Results, read

# Columns that the row of a timing copies from a row of its cell.
FROM_CELL = ("cell_id", *RECIPE, "seed", "profile", "backbone", "teacher_sha256", "num_parameters", "flops")
BATCH_SIZES = (1, 32)  # the latency of one image; throughput
NUM_WARMUP = {"cpu": 5, "cuda": 20}  # a GPU's first calls choose kernels and raise its clock
BUDGET_S = 3.0  # of one batch size and precision; at least MIN_REPEATS, at most MAX_REPEATS
MIN_REPEATS, MAX_REPEATS = 10, 200
# On a machine that nobody uses, other processes take a few per cent of one core.
BUSY_CORES = 0.1
BUSY_SHARE = 0.25  # of the processors of a machine: beside a timing on a GPU, others may take so many


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of each call and of the copy of the batch to the device; what else ran meanwhile."""

    times_ms: list[float]
    copy_ms: float | None
    neighbours: list[str]


def numbers_on_gpu(device: torch.device) -> frozenset[str]:
    """The numbers of this process on a GPU, which it begins to use by this call; none on a CPU."""
    return own_numbers(partial(broken_gpu, device)) if device.type == "cuda" else frozenset()


def time_detector(cell: Cell, place: Place, run_id: str, trained: frozenset[str] = frozenset()) -> list[str]:
    """Time the detector of a cell at every batch size, in each runtime and precision; write the rows.

    `trained` are the numbers on the GPU of a process that trained here and waits for this one: it is no
    neighbour. Returns what went wrong; each of it is a row without times, too.
    """
    device, results = torch.device(place.device), Results(place.results)
    ours = trained | numbers_on_gpu(device)
    if place.num_threads is not None:
        torch.set_num_threads(place.num_threads)
    finished = read(results.storage, CELLS, only=[cell.id]).to_pylist()[0]
    method = load_detector(results, finished, weights=place.weights, device=device)
    common = {
        **picked(finished, *FROM_CELL),
        **picked(provenance.code_provenance(), *CODE),
        **picked(provenance.machine_provenance(device), *MACHINE),
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def work(files: Exported, way: Way) -> list[dict[str, Any]]:
        in_torch = way.runtime == TORCH
        found = _in_torch(method, way, device, ours) if in_torch else _in_runtime(files, way, device, ours)
        measured = {**way._asdict(), "num_warmup": NUM_WARMUP[device.type]}
        return [common | measured | row for row in found]

    def hole(way: Way, why: str) -> list[dict[str, Any]]:
        return [common | way._asdict() | {"batch_size": size, "why_not": why} for size in BATCH_SIZES]

    with tempfile.TemporaryDirectory(prefix="kdbench-") as folder:
        files = Exported(method, Path(folder), lambda: normal_images(ready_cell(cell, place)))
        own_precision = choose_precision(method.config.precision, device, method)
        found = each_way(files, place, own_precision, work, hole)
    write_beside(results, LATENCY, found.rows)
    return found.complaints


def _in_torch(method: Method, way: Way, device: torch.device, ours: Set[str]) -> Iterator[dict[str, Any]]:
    """The measured columns of each batch size, of the method as it was trained."""
    for batch_size in BATCH_SIZES:
        start_peak_memory(device)
        timing = time_calls(method, batch_size, way.precision, device, ours)
        peak = {"peak_memory_bytes": peak_memory_bytes(device)}
        yield {**summary(timing, batch_size), **peak, "runtime_version": torch.__version__}


def _in_runtime(files: Exported, way: Way, device: torch.device, ours: Set[str]) -> Iterator[dict[str, Any]]:
    """The measured columns of each batch size, of the exported detector.

    Its memory is unknown: torch has memory of its own in this process.
    """
    runtime = files.open(way, device)
    for batch_size in BATCH_SIZES:
        shape = (batch_size, files.image_size, files.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        times_ms, neighbours = _timed(partial(runtime.run, pixels), device, ours)
        timing = Timing(times_ms=times_ms, copy_ms=None, neighbours=neighbours)
        yield {**summary(timing, batch_size), "runtime_version": runtime.version}


@torch.inference_mode()
def time_calls(
    method: Method, batch_size: int, precision: str, device: torch.device, ours: Set[str] = frozenset()
) -> Timing:
    """Time the detector on noise: what it computes takes the same time for every image."""
    size = method.config.image_size
    generator = torch.Generator().manual_seed(0)
    host = torch.randn(batch_size, 3, size, size, generator=generator)
    host = host.contiguous(memory_format=torch.channels_last)
    images = host.to(device)

    def call() -> None:
        with autocast_for(precision, device):
            maps = method.anomaly_map(images, method.teacher(images))
        method.image_score(maps)

    times_ms, neighbours = _timed(call, device, ours)
    if device.type != "cuda":
        return Timing(times_ms=times_ms, copy_ms=None, neighbours=neighbours)
    pinned = host.pin_memory()
    copies = _repeat(lambda: pinned.to(device, non_blocking=True), device)
    return Timing(times_ms=times_ms, copy_ms=median(copies), neighbours=neighbours)


def summary(timing: Timing, batch_size: int) -> dict[str, Any]:
    """The measured columns; percentiles interpolate linearly, as NumPy does."""
    p50, p90, p99 = np.percentile(timing.times_ms, (50, 90, 99)).tolist()
    return {
        "batch_size": batch_size,
        "times_ms": timing.times_ms,
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
        "images_per_s": 1000 * batch_size / p50,
        "copy_ms": timing.copy_ms,
        "busy": bool(timing.neighbours),
        "neighbours": "; ".join(timing.neighbours),
    }


def _timed(call: Callable[[], Any], device: torch.device, ours: Set[str]) -> tuple[list[float], list[str]]:
    """Milliseconds of each call after the warm-up, and what else ran meanwhile."""
    _repeat(call, device, count=NUM_WARMUP[device.type])
    watched = _Neighbours(device, ours)
    return _repeat(call, device), watched.found()


def _repeat(call: Callable[[], Any], device: torch.device, count: int | None = None) -> list[float]:
    """Milliseconds of each call, the device idle before and after it."""
    times: list[float] = []
    started = time.perf_counter()
    while count is None or len(times) < count:
        if count is None and len(times) >= MAX_REPEATS:
            break
        if count is None and len(times) >= MIN_REPEATS and time.perf_counter() - started > BUDGET_S:
            break
        synchronise(device)
        before = time.perf_counter()
        call()
        synchronise(device)
        times.append(1000 * (time.perf_counter() - before))
    return times


class _Neighbours:
    """Sees what else uses the processor or the GPU, from now until `found` is called.

    `ours` are the numbers of processes on the GPU that do not count.
    """

    def __init__(self, device: torch.device, ours: Set[str] = frozenset()) -> None:
        self.device, self.ours, self.others = device, ours, Others()

    def found(self) -> list[str]:
        """Descriptions, the busiest first; none if the device was ours alone."""
        used = self.others.used({os.getpid()})
        cores = sum(share for _, share in used)
        named = [f"{name}: {share:.2f} cores" for name, share in used if share > BUSY_CORES / 4]
        on_gpu = self.device.type == "cuda"
        # A call on a GPU needs a core or two: services and other users of a large node take none of these.
        allowed = max(BUSY_CORES, BUSY_SHARE * (os.cpu_count() or 1)) if on_gpu else BUSY_CORES
        on_cpu = (named or [f"others: {cores:.2f} cores"]) if cores > allowed else []
        return on_cpu + (_on_gpu(self.device, self.ours) if on_gpu else [])


def _on_gpu(device: torch.device, ours: Set[str]) -> list[str]:
    """Other processes that have memory on this GPU; one that is unknown if nobody can be asked."""
    try:
        return others_on_gpu(f"GPU-{torch.cuda.get_device_properties(device).uuid}", ours)
    except SmiError as error:
        return [f"unknown: {error}"]
