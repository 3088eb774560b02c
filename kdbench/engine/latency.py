"""The speed of a trained detector, measured in a process of its own that has the whole device.

With torch a timed call starts with normalised images on the device and finishes, synchronised, with anomaly
maps and image scores on it; the copy of the images to a GPU is timed separately. In every other runtime it is
one call of the exported detector: from the pixels of images in main memory to maps and scores there.
"""

import os
import shutil
import subprocess
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
import psutil
import torch

from kdbench.cell import Cell, Place
from kdbench.deploy.runtimes import TORCH
from kdbench.engine import provenance
from kdbench.engine.build import load_detector
from kdbench.engine.deployed import Exported, Way, each_way, normal_images, write_beside
from kdbench.engine.device import (
    autocast_for,
    choose_precision,
    peak_memory_bytes,
    start_peak_memory,
    synchronise,
)
from kdbench.engine.machine import Others
from kdbench.engine.ready import ready_cell
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


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of each call and of the copy of the batch to the device; what else ran meanwhile."""

    times_ms: list[float]
    copy_ms: float | None
    neighbours: list[str]


def time_detector(cell: Cell, place: Place, run_id: str) -> list[str]:
    """Time the detector of a cell at every batch size, in each runtime and precision; write the rows.

    Returns what went wrong; each of it is a row without times, too.
    """
    device, results = torch.device(place.device), Results(place.results)
    if place.num_threads is not None:
        torch.set_num_threads(place.num_threads)
    finished = read(results.storage, CELLS, only=[cell.id]).to_pylist()[0]
    method = load_detector(
        results, cell.id, method=cell.method, config=cell.config, weights=place.weights, device=device
    )
    common = {
        **picked(finished, *FROM_CELL),
        **picked(provenance.code_provenance(), *CODE),
        **picked(provenance.machine_provenance(device), *MACHINE),
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def work(files: Exported, way: Way) -> list[dict[str, Any]]:
        found = _in_torch(method, way, device) if way.runtime == TORCH else _in_runtime(files, way, device)
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


def _in_torch(method: Method, way: Way, device: torch.device) -> Iterator[dict[str, Any]]:
    """The measured columns of each batch size, of the method as it was trained."""
    for batch_size in BATCH_SIZES:
        start_peak_memory(device)
        timing = time_calls(method, batch_size, way.precision, device)
        peak = {"peak_memory_bytes": peak_memory_bytes(device)}
        yield {**summary(timing, batch_size), **peak, "runtime_version": torch.__version__}


def _in_runtime(files: Exported, way: Way, device: torch.device) -> Iterator[dict[str, Any]]:
    """The same of the exported detector; its memory is unknown, for torch has its own in this process."""
    runtime = files.open(way, device)
    for batch_size in BATCH_SIZES:
        shape = (batch_size, files.image_size, files.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        times_ms, neighbours = _timed(partial(runtime.run, pixels), device)
        timing = Timing(times_ms=times_ms, copy_ms=None, neighbours=neighbours)
        yield {**summary(timing, batch_size), "runtime_version": runtime.version}


@torch.inference_mode()
def time_calls(method: Method, batch_size: int, precision: str, device: torch.device) -> Timing:
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

    times_ms, neighbours = _timed(call, device)
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


def _timed(call: Callable[[], Any], device: torch.device) -> tuple[list[float], list[str]]:
    """Milliseconds of each call after the warm-up, and what else ran meanwhile."""
    _repeat(call, device, count=NUM_WARMUP[device.type])
    watched = _Neighbours(device)
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
    """Sees what else uses the processor or the GPU, from now until `found` is called."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.others = device, Others()

    def found(self) -> list[str]:
        """Descriptions, the busiest first; none if the device was ours alone."""
        used = self.others.used({os.getpid()})
        cores = sum(share for _, share in used)
        named = [f"{name}: {share:.2f} cores" for name, share in used if share > BUSY_CORES / 4]
        on_cpu = (named or [f"others: {cores:.2f} cores"]) if cores > BUSY_CORES else []
        return on_cpu + (_on_gpu(self.device) if self.device.type == "cuda" else [])


def _on_gpu(device: torch.device) -> list[str]:
    """Other processes that have memory on this GPU; without nvidia-smi one unknown process is assumed."""
    words = ["nvidia-smi", "--query-compute-apps=pid,gpu_uuid,process_name", "--format=csv,noheader"]
    if shutil.which(words[0]) is None:
        return ["unknown: there is no nvidia-smi to ask"]
    listed = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    return users_of_gpu(listed, uuid, _with_parents())


def users_of_gpu(listed: str, uuid: str, ours: Set[str]) -> list[str]:
    """The processes that nvidia-smi lists for this GPU, without ours."""
    apps = [line.split(", ", 2) for line in listed.splitlines() if line.count(", ") >= 2]
    return [f"{name} on the GPU" for pid, where, name in apps if where == uuid and pid not in ours]


def _with_parents() -> set[str]:
    """This process and its parents: they trained, keep their memory on the GPU, and wait for this one."""
    own = psutil.Process()
    return {str(process.pid) for process in (own, *own.parents())}
