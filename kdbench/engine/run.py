"""run_cell(cell) -> rows: plain Python, no Ray; what every executor calls."""

import gc
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from kdbench.backbone import teacher
from kdbench.cell import ELSEWHERE, Cell, Notify, Outcome, Place, Progress, canonical_json
from kdbench.data import pictures
from kdbench.data.store import Images, open_images, open_truth, store_name
from kdbench.dataset import Category, Dataset, fingerprint, fingerprint_of
from kdbench.engine import evaluate, provenance, train
from kdbench.engine.checkpoint import Checkpoints, remove_checkpoint
from kdbench.engine.features import Shared
from kdbench.errors import DataError, ResultsError, last_line
from kdbench.grid.lease import Holder, acquire
from kdbench.method import Method
from kdbench.metrics.exact import METRIC_VERSION, PRO_LIMIT
from kdbench.metrics.presets import PRESETS
from kdbench.registry import get_dataset, get_method
from kdbench.results.storage import Storage
from kdbench.results.store import SCHEMA_VERSION, Results, input_name


class CellTimeout(RuntimeError):
    """The cell took longer than it may."""


@dataclass(kw_only=True)
class Ended:
    """What a cell gave: rows, per-image scores, curves, pictures, and the trained detector by tensor name."""

    rows: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    detector: dict[str, torch.Tensor]
    curves: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[dict[str, Any]] = field(default_factory=list)
    inputs: list[list[dict[str, Any]]] = field(default_factory=list)  # per category that had none yet


def execute_cell(
    cell: Cell, place: Place, run_id: str, notify: Notify, timeout_s: float | None = None
) -> Outcome:
    """Run a cell and write its rows, whatever happens in it; only ResultsError is raised.

    The outcome is `elsewhere`, and nothing was done, while another process runs the cell.
    """
    started, last = time.perf_counter(), dict[str, Any]()

    def watched(progress: Progress) -> None:
        last.update(asdict(progress))
        if timeout_s is not None and time.perf_counter() - started > timeout_s:
            raise CellTimeout(f"stopped after {timeout_s:g} s (--timeout), in phase {progress.phase!r}")
        notify(progress)

    results = Results(place.results)
    try:
        lease = acquire(results.storage, Holder(cell_id=cell.id, run_id=run_id, label=cell.label))
        if lease is None:
            return outcome_of(cell, ELSEWHERE, 0.0)
        with lease.kept(lambda: dict(last)):
            there = results.end_of(cell.id)
            if there is not None and there.run_id != place.replaces:
                return outcome_of(cell, there.status, 0.0)
            status, error, ended = _attempt(cell, place, watched)
            if not lease.held():  # this process was stopped for so long that another one took over
                return outcome_of(cell, ELSEWHERE, time.perf_counter() - started)
            _write(results, cell, place, run_id, status, ended)
    except (OSError, DataError) as raised:
        raise ResultsError(str(raised)) from raised
    summary = _summary(ended.rows) if status == "ok" else ""
    return outcome_of(cell, status, time.perf_counter() - started, error=error, summary=summary)


def record_end(cell: Cell, place: Place, run_id: str, status: str, error: str) -> Outcome:
    """Write the rows of a cell whose process is gone: it was killed for its time, or died too often.

    The outcome is another run's, and nothing is written, where that run ended the cell or is running it.
    """
    # The machine it ran on is gone with it, and this one may have no such device.
    rows = _failed_rows(cell, place, status, error, {"device": torch.device(place.device).type})
    results = Results(place.results)
    try:
        lease = acquire(results.storage, Holder(cell_id=cell.id, run_id=run_id, label=cell.label))
        if lease is None:
            return outcome_of(cell, ELSEWHERE, 0.0)
        with lease.kept(dict):
            there = results.end_of(cell.id)
            if there is not None and there.run_id != place.replaces:
                return outcome_of(cell, there.status, 0.0)
            _write(results, cell, place, run_id, status, Ended(rows=rows, scores=[], detector={}))
    except (OSError, DataError) as raised:
        raise ResultsError(str(raised)) from raised
    return outcome_of(cell, status, 0.0, error=last_line(error))


def outcome_of(cell: Cell, status: str, seconds: float, *, error: str = "", summary: str = "") -> Outcome:
    """How a cell ended, in the words of its label."""
    return Outcome(
        cell_id=cell.id, label=cell.label, status=status, error=error, seconds=seconds, summary=summary
    )


def _attempt(cell: Cell, place: Place, notify: Notify) -> tuple[str, str, Ended]:
    """Status, error in one line, and what the cell gave, be it the rows of a failure."""
    status, error, begun = "ok", "", datetime.now(UTC).isoformat(timespec="seconds")
    try:
        train.cap_memory(torch.device(place.device), place.gpu_share)  # also lifts that of the cell before
        ended = run_cell(cell, place, notify)
    except Exception as raised:
        status, error = status_of(raised), _text(f"{type(raised).__name__}: {raised}").splitlines()[0][:500]
        machine = provenance.machine_provenance(torch.device(place.device))
        rows = _failed_rows(cell, place, status, _text(traceback.format_exc()), machine)
        ended = Ended(rows=rows, scores=[], detector={})
        del raised  # its traceback holds the tensors of the cell
    gc.collect()
    if place.device.startswith("cuda"):
        torch.cuda.empty_cache()
    for row in ended.rows:
        row["started_at"] = begun
    return status, error, ended


def _write(results: Results, cell: Cell, place: Place, run_id: str, status: str, ended: Ended) -> None:
    """Everything that belongs to the rows first, then the rows: from then on the cell has ended."""
    results.discard(cell.id)
    if status == "ok":
        results.write_scores(cell.id, ended.scores)
        results.write_curves(cell.id, ended.curves)
    for inputs in ended.inputs:
        results.write_inputs(inputs)
    if ended.pictures:
        results.write_pictures(cell.id, ended.pictures)
    if status == "ok" and place.keep_detectors:
        results.write_detector(cell.id, save(ended.detector))
    results.write_rows([row | {"run_id": run_id} for row in ended.rows])
    if status != "timeout":  # with more time it goes on where it was
        remove_checkpoint(results.storage, cell.id)


def run_cell(cell: Cell, place: Place, notify: Notify) -> Ended:
    """Train and evaluate one cell; returns its rows and per-image scores, raises whatever goes wrong."""
    with threads(place.num_threads):
        return _train_and_evaluate(cell, place, notify)


def _train_and_evaluate(cell: Cell, place: Place, notify: Notify) -> Ended:
    tell = _Teller(Progress(cell_id=cell.id, label=cell.label, phase="prepare"), notify)
    clock = time.perf_counter()
    ready = prepare(cell, place)
    fitted, heldout = _training_images(cell, ready)
    prepare_s = time.perf_counter() - clock

    checkpoints = Checkpoints(
        Storage(place.results),
        cell.id,
        every_s=place.checkpoint_every_s,
        made_by=made_by(ready),
    )
    state = checkpoints.load()
    done = len(state["history"]["epochs"]) if state else 0
    epochs = ready.config.epochs
    tell.phase("train", total=len(fitted) * epochs, epochs=epochs, epoch=min(done + 1, epochs))
    tell.step(done * len(fitted))
    generator = torch.Generator().manual_seed(cell.seed)

    def checkpoint(state: Callable[[], dict[str, Any]]) -> None:
        checkpoints.after_epoch(state)
        tell.problem(checkpoints.problem)

    history = train.fit(
        ready.method,
        fitted,
        heldout,
        generator=generator,
        on_step=tell.step,
        on_epoch=tell.epoch,
        resume=state,
        checkpoint=checkpoint,
    )
    common = {
        **_identity(cell, place, ready.dataset),
        **provenance.code_provenance(),
        **provenance.machine_provenance(ready.device),
        **_trained_how(ready, place, fitted, heldout, history),
        "status": "ok",
        "prepare_s": prepare_s,
        "train_s": checkpoints.train_s,
        "resumed_at_epoch": done + 1 if state else None,
    }
    del fitted, heldout  # the cached features are not needed any more, and evaluation needs the room

    tell.phase("evaluate", total=sum(len(store.test) for store in ready.stores))
    ended = Ended(rows=[], scores=[], detector=on_cpu(ready.method.detector_state()))
    for category, store in zip(ready.categories, ready.stores, strict=True):
        part = _evaluate(cell, place, ready, category, store, tell)
        ended.rows += [common | row for row in part.rows]
        ended.scores += part.scores
        ended.curves += part.curves
        ended.pictures += part.pictures
        ended.inputs += part.inputs
    peak = provenance.peak_memory_bytes(ready.device)
    for row in ended.rows:
        row["peak_memory_bytes"] = peak
    return ended


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use so many threads; another number adds up in another order and changes last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Teller:
    """Keeps where the cell is and passes it on after every step."""

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

    def problem(self, said: str) -> None:
        self.progress = replace(self.progress, problem=said)  # the next step passes it on


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a cell needs, in place on its device."""

    dataset: Dataset
    categories: list[Category]
    prints: dict[str, str]
    stores: list[Images]
    method: Method
    device: torch.device
    precision: str

    @property
    def config(self) -> Any:
        return self.method.config

    def batches(
        self, pixels: np.ndarray, *, cached: bool = False, shared: Shared | None = None
    ) -> train.Batches:
        return train.Batches(
            pixels,
            self.method.teacher,
            self.config.backbone,
            device=self.device,
            precision=self.precision,
            batch_size=self.config.batch_size,
            cached=cached,
            shared=shared,
        )


def prepare(cell: Cell, place: Place) -> Ready:
    """Images, teacher and untrained method of a cell, on its device; DataError if the images changed."""
    device = torch.device(place.device)
    provenance.start_peak_memory(device)
    torch.manual_seed(cell.seed)
    dataset = get_dataset(cell.dataset)
    categories, prints = _scan(cell, place, dataset)
    kind = get_method(cell.method)
    config = kind.Config.model_validate(json.loads(cell.config))
    method = kind(config, teacher(config.backbone, config.levels, place.weights))
    train.place_networks(method, device)
    return Ready(
        dataset=dataset,
        categories=categories,
        prints=prints,
        stores=[open_images(dataset, c, prints[c.name], config.image_size) for c in categories],
        method=method,
        device=device,
        precision=train.choose_precision(config.precision, device),
    )


def _training_images(cell: Cell, ready: Ready) -> tuple[train.Batches, train.Batches | None]:
    """Batches to train on, and held-out ones if the checkpoint is chosen on them."""
    stored = [store.train for store in ready.stores]
    normal = np.concatenate(stored)
    size = ready.config.image_size
    names = [store_name(ready.dataset, c, ready.prints[c.name], size) for c in ready.categories]
    # The hardware and torch are in it: another machine that shares the cache rounds in another way.
    hardware = provenance.machine_provenance(ready.device)["device_name"]
    network = [cell.teacher_sha256, ready.config.backbone, ready.config.levels, ready.precision]
    made_by = canonical_json([network, torch.__version__, hardware])

    def batches(rows: np.ndarray) -> train.Batches:
        shared = Shared(names=names, pixels=stored, rows=rows, made_by=made_by)
        return ready.batches(normal[rows], cached=True, shared=shared)

    if ready.config.checkpoint != "heldout":
        return batches(np.arange(len(normal))), None
    kept, aside = train.split_heldout([len(s) for s in stored], ready.config.heldout_share, cell.seed)
    return batches(kept), batches(aside)


def made_by(ready: Ready) -> dict[str, Any]:
    """What must be the same for a training to go on as if it had never stopped."""
    machine = provenance.machine_provenance(ready.device)
    hardware = {name: machine[name] for name in ("device_name", "num_threads")}
    return {**provenance.code_provenance(), **hardware, "precision": ready.precision}


def _trained_how(
    ready: Ready,
    place: Place,
    fitted: train.Batches,
    heldout: train.Batches | None,
    history: train.History,
) -> dict[str, Any]:
    pooling = "maximum" if type(ready.method).image_score is Method.image_score else "method"
    return {
        **evaluate.cost(ready.method, fitted),
        "selection": ready.config.checkpoint,
        "sigma": getattr(ready.config, "sigma", None),
        "score_pooling": pooling,
        "num_train": len(fitted),
        "num_heldout": len(heldout) if heldout else 0,
        "num_steps": history.num_steps,
        "best_epoch": history.best_epoch,
        "epoch_loss": [epoch.loss for epoch in history.epochs],
        "epoch_heldout": [epoch.heldout for epoch in history.epochs if epoch.heldout is not None],
        "backbone": ready.config.backbone,
        "teacher_source": place.weights.source,
        "teacher_cache": fitted.cache,
        "precision": ready.precision,
    }


def _evaluate(
    cell: Cell, place: Place, ready: Ready, category: Category, store: Images, tell: _Teller
) -> Ended:
    """What one category gives: metrics, per-image scores, curves and pictures."""
    clock, preset, print_ = time.perf_counter(), PRESETS[cell.preset], ready.prints[category.name]
    truth = open_truth(ready.dataset, category, print_, preset)
    scored = evaluate.score(ready.method, ready.batches(store.test), tell.step)
    measured = evaluate.measure(scored, truth, preset)
    row = {
        **measured.metrics,
        "category": category.name,
        "texture": category.name in ready.dataset.textures,
        "num_test": len(category.test),
        "num_defective": int(truth.label.sum()),
        "num_unmarked": 0 if truth.regions is None else int((~truth.marked).sum()),
        "num_regions": None if truth.regions is None else int(truth.regions.max()),
        "evaluate_s": time.perf_counter() - clock,
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
    ended = Ended(rows=[row], scores=scores, detector={})
    ended.curves.append({"cell_id": cell.id, "category": category.name, **measured.curves})
    if place.keep_pictures:
        kept = pictures.maps_of(category, print_, scored.maps)
        ended.pictures += [{"cell_id": cell.id, **picture} for picture in kept]
        if not Storage(place.results).exists(input_name(print_)):
            ended.inputs.append(pictures.inputs_of(ready.dataset, category, print_))
    return ended


def on_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as safetensors writes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def _scan(cell: Cell, place: Place, dataset: Dataset) -> tuple[list[Category], dict[str, str]]:
    root = dataset.root(Path(place.root))
    categories = [dataset.scan(root, name) for name in cell.categories]
    prints = {category.name: fingerprint(dataset, category) for category in categories}
    if fingerprint_of(prints.values()) != cell.fingerprint:
        raise DataError(f"the images under {root} changed since the run was planned; run the command again")
    return categories, prints


def _identity(cell: Cell, place: Place, dataset: Dataset) -> dict[str, Any]:
    asked = {k: v for k, v in asdict(cell).items() if k != "categories"}
    preset = PRESETS[cell.preset]
    return {
        **asked,
        "schema_version": SCHEMA_VERSION,
        "cell_id": cell.id,
        "categories": list(cell.categories),
        "dataset_categories": list(dataset.all_categories(Path(place.root))),
        "split_sha256": dataset.split_sha256(Path(place.root)),
        "metric_version": METRIC_VERSION,
        "evaluation_size": preset.evaluation_size,
        "mask_rule": preset.mask_rule,
        "pro_limit": PRO_LIMIT,
    }


def _failed_rows(
    cell: Cell, place: Place, status: str, error: str, machine: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row per category, so that every hole has its place; metrics are null."""
    dataset = get_dataset(cell.dataset)
    common = {
        **_identity(cell, place, dataset),
        **provenance.code_provenance(),
        **machine,
        "status": status,
        "error": error,
        "backbone": json.loads(cell.config).get("backbone"),
        "teacher_source": place.weights.source,
    }
    return [common | {"category": name, "texture": name in dataset.textures} for name in cell.categories]


def _text(said: str) -> str:
    """Without what UTF-8 cannot say, such as undecodable file names in a message."""
    return said.encode("utf-8", "replace").decode("utf-8")


def status_of(error: Exception) -> str:
    """How a cell that raised this ended: timeout, oom or failed."""
    if isinstance(error, CellTimeout):
        return "timeout"
    # torch says out of memory of the host as a plain RuntimeError
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "oom"
    return "failed"


def _summary(rows: list[dict[str, Any]]) -> str:
    """One line for people: means over the cell's categories, times 100."""
    parts = []
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        values = [row[name] for row in rows if row[name] is not None]
        if len(values) == len(rows):
            parts.append(f"{name} {100 * sum(values) / len(values):.2f}")
    return ", ".join(parts)
