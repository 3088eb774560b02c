"""Train and evaluate one cell on one device, in this process; it knows neither Ray nor other cells."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kdbench.cell import Cell, Notify, Place, Progress
from kdbench.data import pictures
from kdbench.data.store import Images, open_truth
from kdbench.dataset import Category, Dataset
from kdbench.engine import evaluate, provenance, train
from kdbench.engine.checkpoint import Checkpoints
from kdbench.engine.compiled import choose_compiler
from kdbench.engine.course import Course
from kdbench.engine.device import peak_memory_bytes, peak_ram_bytes, threads
from kdbench.engine.ready import Ready, TrainingBatches, ready_cell
from kdbench.engine.terms import columns_of
from kdbench.errors import CellTimeout
from kdbench.method import Method
from kdbench.metrics.exact import PRO_LIMIT
from kdbench.metrics.presets import PRESETS, metric_version
from kdbench.registry import method_sha256
from kdbench.results.schema import SCHEMA_VERSION
from kdbench.results.storage import Storage
from kdbench.results.store import INPUTS

# Messages of other errors that mean a lack of memory: of torch on the host, of CUDA, cuDNN and cuBLAS.
OOM = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


@dataclass(kw_only=True)
class CellOutput:
    """The results of a cell: rows, per-image scores, curves, pictures, and the detector's tensors by name."""

    rows: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    detector: dict[str, torch.Tensor]
    normals: list[dict[str, Any]] = field(default_factory=list)  # scores of held-out images
    epochs: list[dict[str, Any]] = field(default_factory=list)  # metrics of epochs before the last
    curves: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[list[dict[str, Any]]] = field(default_factory=list)  # of each category that has none stored

    def add(self, part: "CellOutput") -> None:
        """Take over the rows of one more category."""
        for name in ("rows", "scores", "curves", "pictures", "inputs"):
            getattr(self, name).extend(getattr(part, name))


def run_cell(cell: Cell, place: Place, notify: Notify) -> CellOutput:
    """Train and evaluate one cell and return its results; every error is raised to the caller."""
    with threads(place.num_threads):
        return _train_and_evaluate(cell, place, notify)


def _train_and_evaluate(cell: Cell, place: Place, notify: Notify) -> CellOutput:
    tell = _Teller(Progress(cell_id=cell.id, label=cell.label, phase="prepare"), notify)
    started = time.perf_counter()
    ready = ready_cell(cell, place)
    images = ready.training_batches()
    prepare_s = time.perf_counter() - started
    common, epochs = _train(ready, images, tell)
    common["prepare_s"] = prepare_s
    normals = _held_out_scores(ready, images)
    del images  # evaluation needs the room of the cached features

    tell.phase("evaluate", total=sum(len(store.test) for store in ready.stores))
    detector = on_cpu(ready.method.detector_state())
    output = CellOutput(rows=[], scores=[], detector=detector, normals=normals, epochs=epochs)
    for category, store in zip(ready.categories, ready.stores, strict=True):
        output.add(_evaluate(ready, category, store, tell))
    output.rows = [common | row for row in output.rows]
    peak = {"peak_memory_bytes": peak_memory_bytes(ready.device), "peak_ram_bytes": peak_ram_bytes()}
    for row in output.rows:
        row |= peak
    return output


def _train(
    ready: Ready, images: TrainingBatches, tell: "_Teller"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train the cell's method, from its checkpoint if there is one.

    Returns the columns of all its rows, and the rows of its measured epochs.
    """
    cell, place = ready.cell, ready.place
    pixels = ready.config.epochs * len(images.fitted) * ready.config.image_size**2
    compiler = choose_compiler(place.compile, ready.device, pixels)
    checkpoints = Checkpoints(
        Storage(place.results),
        cell.id,
        every_s=place.checkpoint_every_s,
        made_by=ready.made_by() | {"compiled": compiler is not None},
    )
    state = checkpoints.load()
    done = len(state["history"]["epochs"]) if state else 0
    begun = sum(map(len, state["batches"][: len(state["losses"])])) if state else 0  # images of that epoch
    epochs, num_images = ready.config.epochs, len(images.fitted)
    tell.phase("train", total=num_images * epochs, epochs=epochs, epoch=min(done + 1, epochs))
    tell.step(done * num_images + begun)

    course = Course(ready, images.heldout, done)

    def after(epoch: train.Epoch) -> None:
        checkpoints.paused_s += course.after(epoch.number, lambda count: tell.step(0))
        tell.epoch(epoch)

    def checkpoint(state: Callable[[], dict[str, Any]]) -> None:
        checkpoints.after_epoch(state)
        tell.problem(checkpoints.problem)

    history = train.fit(
        ready.method,
        images.fitted,
        images.heldout,
        generator=torch.Generator().manual_seed(cell.seed),
        on_step=tell.step,
        on_epoch=after,
        resume=state,
        checkpoint=checkpoint,
        on_stop=checkpoints.write,
        compiler=compiler,
    )
    columns = {
        **identity(cell, place, ready.dataset),
        **provenance.code_provenance(),
        **provenance.machine_provenance(ready.device),
        **_trained_how(ready, images, history),
        "status": "ok",
        "compiled": compiler.outcome if compiler else "no",
        "train_s": checkpoints.train_s,
        "resumed_at_epoch": done + 1 if state else None,
    }
    return columns, course.rows


class _Teller:
    """Keeps the progress of the cell and passes it on after every step."""

    def __init__(self, progress: Progress, notify: Notify) -> None:
        self.progress, self.notify = progress, notify
        notify(progress)

    def phase(self, name: str, **changes: Any) -> None:
        self.progress = replace(self.progress, phase=name, done=0, loss=None, problem="", **changes)
        self.notify(self.progress)

    def step(self, count: int) -> None:
        self.progress = replace(self.progress, done=self.progress.done + count)
        self.notify(self.progress)

    def epoch(self, epoch: train.Epoch) -> None:
        following = min(epoch.number + 1, self.progress.epochs)
        self.progress = replace(self.progress, epoch=following, loss=epoch.loss)
        self.notify(self.progress)

    def problem(self, text: str) -> None:
        self.progress = replace(self.progress, problem=text)  # the next step passes it on


def _trained_how(ready: Ready, images: TrainingBatches, history: train.History) -> dict[str, Any]:
    pooling = "maximum" if type(ready.method).image_score is Method.image_score else "method"
    return {
        **evaluate.cost(ready.method, images.fitted),
        "selection": ready.config.checkpoint,
        "sigma": getattr(ready.config, "sigma", None),
        "score_pooling": pooling,
        "num_train": len(images.fitted),
        "num_heldout": len(images.heldout or ()) + len(images.unseen or ()),
        "num_steps": history.num_steps,
        "best_epoch": history.best_epoch,
        "epoch_loss": [epoch.loss for epoch in history.epochs],
        "epoch_heldout": [epoch.heldout for epoch in history.epochs if epoch.heldout is not None],
        **columns_of(history.terms),
        "method_sha256": method_sha256(ready.cell.method),
        "backbone": ready.config.backbone,
        "teacher_source": ready.place.weights.source,
        "teacher_cache": images.fitted.cache,
        "precision": ready.precision,
    }


def _held_out_scores(ready: Ready, images: TrainingBatches) -> list[dict[str, Any]]:
    """The final detector's scores of the held-out images that give a threshold; none if there are none."""
    batches, indices = images.judges
    if batches is None:
        return []
    every = [
        (category.name, category.relative(path)) for category in ready.categories for path in category.train
    ]
    found = evaluate.score(ready.method, batches, lambda count: None).image_score
    return [
        {
            "cell_id": ready.cell.id,
            "category": every[i][0],
            "image": every[i][1],
            "image_score": float(value),
        }
        for i, value in zip(indices.tolist(), found, strict=True)
    ]


def _evaluate(ready: Ready, category: Category, store: Images, tell: _Teller) -> CellOutput:
    """The results of one category, and how long they took."""
    started = time.perf_counter()
    batches = ready.batches(store.test)
    scored = evaluate.score(ready.method, batches, tell.step)
    evaluate.check_alone(ready.method, batches)
    content = ready.fingerprints[category.name]
    output = output_of(ready.cell, ready.place, ready.dataset, category, content, scored)
    output.rows[0]["evaluate_s"] = time.perf_counter() - started
    return output


def output_of(
    cell: Cell,
    place: Place,
    dataset: Dataset,
    category: Category,
    fingerprint: str,
    scored: evaluate.Scored,
) -> CellOutput:
    """The results of one category from its maps and scores: metrics, per-image scores, curves and pictures.

    Without maps, only the results of image scores.
    """
    preset, has_maps = PRESETS[cell.preset], len(scored.maps) > 0
    truth = open_truth(dataset, category, fingerprint, preset)
    if not has_maps:
        truth = replace(truth, regions=None)
    measured = evaluate.measure(scored, truth, preset)
    row = {
        **measured.metrics,
        "category": category.name,
        "texture": category.name in dataset.textures,
        "num_test": len(category.test),
        "num_defective": int(truth.label.sum()),
        "num_unmarked": 0 if truth.regions is None else int((~truth.marked).sum()),
        "num_regions": None if truth.regions is None else int(truth.regions.max()),
        "num_large_masks": None if truth.regions is None else len(truth.remarks.large),
        "large_masks_accepted": None if truth.regions is None else place.large_masks,
    }
    scores = [
        {
            "cell_id": cell.id,
            "category": category.name,
            "image": category.relative(sample.path),
            "defect": sample.defect,
            "label": sample.label,
            "image_score": float(value),
        }
        for sample, value in zip(category.test, scored.image_score, strict=True)
    ]
    output = CellOutput(rows=[row], scores=scores, detector={})
    output.curves.append({"cell_id": cell.id, "category": category.name, **measured.curves})
    if place.keep_pictures and has_maps:
        kept = pictures.maps_of(category, fingerprint, scored.maps)
        output.pictures += [{"cell_id": cell.id, **picture} for picture in kept]
        if not Storage(place.results).exists(INPUTS.name(fingerprint)):
            output.inputs.append(pictures.inputs_of(dataset, category, fingerprint))
    return output


def on_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU and contiguous, as safetensors needs them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def identity(cell: Cell, place: Place, dataset: Dataset) -> dict[str, Any]:
    """The columns that say which cell a row belongs to and which rules it was measured by."""
    of_cell = {k: v for k, v in asdict(cell).items() if k != "categories"}
    preset = PRESETS[cell.preset]
    return {
        **of_cell,
        "schema_version": SCHEMA_VERSION,
        "cell_id": cell.id,
        "categories": list(cell.categories),
        "dataset_categories": list(dataset.all_categories(Path(place.root))),
        "split_sha256": dataset.split_sha256(Path(place.root)),
        "metric_version": metric_version(cell.preset),
        "evaluation_size": preset.evaluation_size,
        "mask_rule": preset.mask_rule,
        "pro_limit": PRO_LIMIT,
    }


def status_of(error: Exception) -> str:
    """The status of a cell that raised this error: timeout, oom or failed."""
    if isinstance(error, CellTimeout):
        return "timeout"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in OOM):
        return "oom"
    return "failed"
