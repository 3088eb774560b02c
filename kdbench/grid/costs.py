"""Estimate the cost of cells: by the rows of earlier cells, else by a few training steps, measured here."""

import json
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from kdbench.cell import Cache, Cell
from kdbench.data.found import Found
from kdbench.engine.build import build_method
from kdbench.engine.device import CONTEXT_BYTES, autocast_for, choose_precision, synchronise, threads
from kdbench.errors import RequestError
from kdbench.grid.cluster import Cluster, Need, makespan_s
from kdbench.grid.plan import Job
from kdbench.grid.request import Request
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, read

if TYPE_CHECKING:
    from kdbench.grid.grid import Grid

STEP_IMAGES = 4  # in a measured step: enough to keep two cores busy
MEMORY_MARGIN = 1.25  # on the memory that earlier cells took
ALIKE = 2  # cells whose numbers of images differ by at most this factor take about the same RAM
GPU_STEP = 0.1  # shares of a GPU are rounded up to a multiple of it
COST_COLUMNS = (
    *("cell_id", "status", "method", "config", "device", "num_threads"),
    *("num_train", "num_heldout", "num_test", "prepare_s", "train_s", "evaluate_s"),
    *("peak_memory_bytes", "peak_ram_bytes", "device_memory_bytes", "teacher_cache"),
)


@dataclass(frozen=True, kw_only=True)
class OnGpu:
    """The use of a GPU by one cell."""

    num_train: int  # its images for training and to hold out
    needed: int  # bytes of the GPU's memory, with a margin
    memory_bytes: int  # of the GPU
    cache: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """How long one cell took."""

    prepare_s: float
    train_s: float  # per image and epoch
    evaluate_s: float  # per test image
    pixels: int  # of an input image


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a grid will take, in seconds; None where nobody can know."""

    cells: Mapping[str, float | None]  # cell id -> seconds
    one_by_one_s: float | None
    together_s: float | None  # on the machines that the grid has


class Costs:
    """The costs of cells that are still to run, by the rows of a results folder."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        cells: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row["status"] == "ok" and row["train_s"] is not None:  # else another program trained it
                cells.setdefault(row["cell_id"], []).append(row)
        by_group: dict[Hashable, list[Cost]] = {}
        self.on_gpu: dict[Hashable, list[OnGpu]] = {}
        self.memory: dict[Hashable, list[tuple[int, int]]] = {}  # (trained images, bytes of RAM)
        for of_cell in cells.values():
            first, cost = of_cell[0], _cost(of_cell)
            config = json.loads(first["config"])
            for group in _groups(first["method"], config, first["device"], first["num_threads"]):
                by_group.setdefault(group, []).append(cost)
            recipe = recipe_of(first["method"], config)
            self.on_gpu.setdefault(recipe, []).extend(_on_gpu(first))
            self.memory.setdefault((*recipe, first["device"]), []).extend(_ram(first))
        self.known = {group: _median(costs) for group, costs in by_group.items()}

    def of(self, job: Job) -> Cost | None:
        """The cost of the most similar cells; None if no cell of the method has finished on such a device."""
        config = json.loads(job.cell.config)
        for group in _groups(job.cell.method, config, device_type(job), job.place.num_threads):
            if group in self.known:
                cost = self.known[group]
                scale = config["image_size"] ** 2 / cost.pixels
                return replace(cost, train_s=cost.train_s * scale, evaluate_s=cost.evaluate_s * scale)
        return None

    def gpu_share(self, cell: Cell, num_train: int, gpu_bytes: int = 0) -> tuple[float, Cache]:
        """The share of a GPU that a cell needs, and where it caches the teacher's levels.

        `gpu_bytes` is the memory of the smallest GPU it may run on; 0: unknown. A cell cannot get more than
        its share, so only finished cells with at least as many images tell it, and the cell caches where
        they did. Without such cells, the share is a whole GPU.
        """
        known = self.on_gpu.get(recipe_of(cell.method, json.loads(cell.config)), ())
        larger = [one for one in known if one.num_train >= num_train]
        if not larger:
            return 1.0, "auto"
        share = max(one.needed / min(one.memory_bytes, gpu_bytes or one.memory_bytes) for one in larger)
        stepped = round(GPU_STEP * -(-share // GPU_STEP), 6)
        if stepped >= 1:
            return 1.0, "auto"
        return stepped, "device" if any(one.cache == "device" for one in larger) else "recomputed"

    def memory_bytes(self, job: Job, num_train: int) -> int:
        """The RAM in bytes that a cell needs, by finished cells of its config and device; 0 without any.

        They must have about as many images: with the need of a multiclass cell, too few oneclass cells would
        run at once.
        """
        recipe = recipe_of(job.cell.method, json.loads(job.cell.config))
        known = self.memory.get((*recipe, device_type(job)), ())
        return max((taken for count, taken in known if 1 / ALIKE <= num_train / count <= ALIKE), default=0)


def known_costs(results: Storage) -> Costs:
    """The costs by the rows in `results`; a folder without rows tells none."""
    try:
        return Costs(read(results, CELLS, columns=COST_COLUMNS).to_pylist())
    except FileNotFoundError:
        return Costs([])


def with_needs(
    jobs: Sequence[Job], request: Request, cluster: Cluster, costs: Costs, data: Mapping[str, Found]
) -> list[Job]:
    """Each job with its need: that of the request, else that of earlier cells, else a fair share of the CPUs.

    The share follows from the whole grid, even if a part of it has finished: another number of threads would
    change the last digits of a cell. With `--executor local`, one cell runs at a time and has all cores.
    """
    alone, largest = request.executor == "local", max(cluster.nodes, key=lambda node: node.cpus)
    if not largest.cpus:
        raise RequestError([f"no node has a CPU for a cell. The cluster has {cluster}"])
    share = int(largest.cpus if alone else min(largest.cpus, max(1, cluster.cpus // max(1, len(jobs)))))
    # The GPU node with the fewest cores for each GPU decides: on all others a cell fits as well.
    beside_gpu = min((node.cpus / node.gpus for node in cluster.nodes if node.gpus), default=1.0)
    shares, needing = _shares(request, cluster, costs), []
    for job in jobs:
        on_gpu, num_train = job.place.device.startswith("cuda"), num_images(job.cell, data)[0]
        share_of_gpu, cache = shares(job.cell, num_train)
        cores = _cpus(beside_gpu * share_of_gpu) if on_gpu and not alone else share
        need = Need(
            cpus=request.cpus_per_cell or cores,
            gpus=share_of_gpu if on_gpu else 0.0,
        )
        if request.memory_per_cell is not None:
            need = replace(need, memory_bytes=int(request.memory_per_cell * 2**30))
        else:  # a guess must not refuse a cell
            most = max((node.memory_bytes for node in cluster.nodes if node.fits(need)), default=0)
            need = replace(need, memory_bytes=int(min(costs.memory_bytes(job, num_train), most)))
        whole = request.cpus_per_cell is None and need.cpus == largest.cpus and not largest.limited
        threads = None if whole else need.cpus  # on a whole machine torch chooses better than we
        place = replace(job.place, num_threads=threads)
        if on_gpu:
            place = replace(place, gpu_share=need.gpus, cache=cache)
        needing.append(replace(job, need=need, place=place))
    return needing


def _shares(request: Request, cluster: Cluster, costs: Costs) -> Callable[[Cell, int], tuple[float, Cache]]:
    """The share of a GPU that a cell with so many images gets, and where it caches.

    Raises RequestError for a share that was asked for where a GPU takes one process only.
    """
    gpus, asked = cluster.gpus_are, request.gpus_per_cell
    if gpus.exclusive and asked is not None and asked < 1:
        raise RequestError(
            [f"--gpus-per-cell {asked:g}: a GPU here takes one process only (compute mode Exclusive_Process)"]
        )
    if gpus.exclusive or asked is not None:
        return lambda cell, num_train: (asked or 1.0, "auto")
    return lambda cell, num_train: costs.gpu_share(cell, num_train, gpus.memory_bytes)


def _cpus(share: float) -> int:
    """The cores of a cell on a GPU: its share of them, at least one, at most four, since more do not help."""
    return min(4, max(1, int(share + 1e-9)))


def longest_first(jobs: Sequence[Job], data: Mapping[str, Found], costs: Costs) -> list[Job]:
    """The jobs, the longest first: a long job that started last would run alone at the end."""
    expected = expected_seconds(jobs, data, costs)
    # A stable sort: jobs of equal time stay in the order of the request.
    return sorted(jobs, key=lambda job: expected[job.cell.id], reverse=True)


def expected_seconds(jobs: Sequence[Job], data: Mapping[str, Found], costs: Costs) -> dict[str, float]:
    """Cell id -> seconds by earlier rows; without such rows, in proportion to images and pixels."""
    known = {job.cell.id: known_seconds(job, data, costs) for job in jobs}
    works = {job.cell.id: _work(job.cell, data) for job in jobs}
    speeds = [seconds / works[cell_id] for cell_id, seconds in known.items() if seconds is not None]
    speed = median(speeds) if speeds else 1e-6  # seconds per pixel and epoch; only proportions matter
    return {i: speed * works[i] if seconds is None else seconds for i, seconds in known.items()}


def known_seconds(job: Job, data: Mapping[str, Found], costs: Costs) -> float | None:
    """How long a cell will take by earlier rows, in seconds; None if they do not tell."""
    cost = costs.of(job)
    if cost is None:
        return None
    num_train, num_test = num_images(job.cell, data)
    epochs = json.loads(job.cell.config)["epochs"]
    return cost.prepare_s + cost.train_s * num_train * epochs + cost.evaluate_s * num_test


def estimate_seconds(jobs: Sequence[Job], data: Mapping[str, Found], costs: Costs) -> dict[str, float | None]:
    """Cell id -> seconds: by rows of similar cells, else by training steps that are measured here on noise.

    None if neither is possible, because only other nodes of the cluster have a GPU.
    """
    measured: dict[Hashable, float] = {}
    estimates = {}
    for job in jobs:
        known = known_seconds(job, data, costs)
        if known is None and (job.place.device == "cpu" or torch.cuda.is_available()):
            config = json.loads(job.cell.config)
            group = (*recipe_of(job.cell.method, config), job.place.num_threads)
            if group not in measured:
                measured[group] = _measured(job)
            known = measured[group] * num_images(job.cell, data)[0] * config["epochs"]
        estimates[job.cell.id] = known
    return estimates


def _cost(of_cell: Sequence[Mapping[str, Any]]) -> Cost:
    first = of_cell[0]
    config = json.loads(first["config"])
    trained = (first["num_train"] + first["num_heldout"]) * config["epochs"]
    return Cost(
        prepare_s=first["prepare_s"],
        train_s=first["train_s"] / trained,
        evaluate_s=sum(row["evaluate_s"] for row in of_cell) / sum(row["num_test"] for row in of_cell),
        pixels=config["image_size"] ** 2,
    )


def _median(costs: Sequence[Cost]) -> Cost:
    """The median of each field."""
    return Cost(
        **{name: median(getattr(c, name) for c in costs) for name in ("prepare_s", "train_s", "evaluate_s")},
        pixels=costs[0].pixels,
    )


def _groups(method: str, config: Mapping[str, Any], device: str, threads: int | None) -> list[Hashable]:
    """The groups of similar cells that a cell belongs to: the most similar first, then ever larger ones."""
    exact = recipe_of(method, config)
    network = (method, config["backbone"], config["image_size"])
    return [
        (*exact, device, threads),
        (*exact, device),
        (*network, device, threads),
        (*network, device),
        (method, config["backbone"], device),
        (method, device),
    ]


def device_type(job: Job) -> str:
    """`cpu` or `cuda`, as in the column `device`."""
    return torch.device(job.place.device).type


def recipe_of(method: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """A key that is equal for cells which differ only in epochs, data and seed."""
    without_epochs = {key: value for key, value in config.items() if key != "epochs"}
    return method, json.dumps(without_epochs, sort_keys=True)


def estimate(grid: "Grid") -> Estimate:
    """How long the cells to run will take: by earlier rows, else by training steps measured now."""
    cells = estimate_seconds(grid.todo, grid.data, grid.costs)
    known = {cell_id: seconds for cell_id, seconds in cells.items() if seconds is not None}
    if len(known) < len(cells):
        return Estimate(cells=cells, one_by_one_s=None, together_s=None)
    total = sum(known.values())
    if grid.executor == "local":
        return Estimate(cells=cells, one_by_one_s=total, together_s=total)
    together = makespan_s([(known[job.cell.id], job.need) for job in grid.todo], grid.cluster)
    return Estimate(cells=cells, one_by_one_s=total, together_s=together)


def num_images(cell: Cell, data: Mapping[str, Found]) -> tuple[int, int]:
    """How many training images and how many test images a cell has."""
    found = data[cell.dataset].categories
    categories = [found[name] for name in cell.categories]
    return sum(len(c.train) for c in categories), sum(len(c.test) for c in categories)


def _work(cell: Cell, data: Mapping[str, Found]) -> float:
    config = json.loads(cell.config)
    return float(sum(num_images(cell, data)) * config["epochs"] * config["image_size"] ** 2)


def _on_gpu(row: Mapping[str, Any]) -> list[OnGpu]:
    """The use of a GPU by the cell of this row; empty for a cell without a GPU."""
    if row["device"] != "cuda" or not row["peak_memory_bytes"] or not row["device_memory_bytes"]:
        return []
    return [
        OnGpu(
            num_train=row["num_train"] + row["num_heldout"],
            needed=int(MEMORY_MARGIN * row["peak_memory_bytes"]) + CONTEXT_BYTES,
            memory_bytes=row["device_memory_bytes"],
            cache=row["teacher_cache"],
        )
    ]


def _ram(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The trained images of a cell and the RAM that suffices, in bytes; empty if the row does not have it."""
    taken = row["peak_memory_bytes"] if row["device"] == "cpu" else row["peak_ram_bytes"]
    return [(row["num_train"] + row["num_heldout"], int(MEMORY_MARGIN * taken))] if taken else []


def _measured(job: Job) -> float:
    """Seconds per image of training on noise, without the teacher, which runs only once per image.

    The optimizer takes the same time for a few images as for a batch, so its time is divided by the batch.
    """
    cell, device = job.cell, torch.device(job.place.device)
    method = build_method(cell.method, cell.config, job.place.weights, device)
    method.train()
    optimizer = method.optimizer()
    size = method.config.image_size
    images = torch.randn(STEP_IMAGES, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    precision = choose_precision(method.config.precision, device, method)
    with threads(job.place.num_threads):
        with torch.no_grad(), autocast_for(precision, device):
            taught = method.teacher(images)
        for _ in range(3):  # the first two warm up
            started = _now(device)
            with autocast_for(precision, device):
                loss = method.loss(images, taught)
            optimizer.zero_grad()
            loss.backward()
            differentiated = _now(device)
            optimizer.step()
        stepped = _now(device)
    return (differentiated - started) / STEP_IMAGES + (stepped - differentiated) / method.config.batch_size


def _now(device: torch.device) -> float:
    """The time in seconds, after the device has finished all its work."""
    synchronise(device)
    return time.perf_counter()
