"""One trial: all models of a sweep with one configuration, trained side by side and judged every few epochs.

The objective is the mean of an exact metric over the categories of the models. Its images are the held-out
normal images, each once as it is and once with a synthetic defect. So it does not matter which image gets a
defect, and each of the few images counts on both sides. No test image is read, unless the sweep studies the
bias of choosing on test images (`selection` is "test").
"""

import json
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from kdbench.cell import Cell, Place, canonical_json
from kdbench.data.store import Images, Truth, open_truth
from kdbench.dataset import Category
from kdbench.defects import make_defects
from kdbench.engine import evaluate, provenance, train
from kdbench.engine.batches import Batches
from kdbench.engine.build import write_detector
from kdbench.engine.checkpoint import Checkpoints, remove_checkpoint
from kdbench.engine.device import cap_memory, peak_memory_bytes, threads
from kdbench.engine.ready import Ready, ready_cell
from kdbench.engine.run import on_cpu, status_of
from kdbench.metrics.exact import METRIC_VERSION, label_regions
from kdbench.metrics.presets import PRESETS
from kdbench.registry import get_dataset, get_method
from kdbench.results.schema import MACHINE, SCHEMA_VERSION, picked
from kdbench.results.store import TRIALS, Results, read

WORST = 0.0  # the objective of a configuration that cannot be trained
PRESET = PRESETS["exact"]  # of a sweep that looks at test images
# The same configuration would fail again: another attempt only costs time.
HOPELESS = (train.TrainingDiverged, ValidationError)

Report = Callable[[int, float], None]  # takes an epoch and its objective; may not return


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All that the trials of a sweep share: plain data, which any process can receive."""

    id: str
    cells: tuple[Cell, ...]  # of the default configuration; a trial trains all of them
    place: Place
    objective: str
    selection: str  # synthetic, or test
    report_every: int  # epochs
    search: str
    scheduler: str

    @property
    def epochs(self) -> int:
        """The epochs of a whole training."""
        return int(json.loads(self.cells[0].config)["epochs"])

    def config(self, searched: dict[str, Any]) -> str:
        """The whole configuration of a trial as canonical JSON; ValidationError if the method refuses it."""
        method_class = get_method(self.cells[0].method)
        config = method_class.Config.model_validate(json.loads(self.cells[0].config) | searched)
        return canonical_json(config.model_dump(mode="json"))

    def trial_id(self, searched: dict[str, Any]) -> str:
        """An id that is equal for equal configurations: one that is drawn twice is trained once."""
        return f"{self.id}-{sha256(self.said(searched).encode()).hexdigest()[:10]}"

    def said(self, searched: dict[str, Any]) -> str:
        """The configuration as canonical JSON, even if the method refuses it."""
        try:
            return self.config(searched)
        except ValidationError:
            return canonical_json(json.loads(self.cells[0].config) | searched)

    def written(self, searched: dict[str, Any]) -> dict[str, Any] | None:
        """The row of a trial in the results folder; None before its first report."""
        rows = read(self.place.results, TRIALS, only=[self.trial_id(searched)]).to_pylist()
        return rows[0] if rows else None

    def row(self, searched: dict[str, Any]) -> dict[str, Any]:
        """A trial's row before anything is trained."""
        first, config = self.cells[0], self.said(searched)
        dataset = get_dataset(first.dataset)
        return {
            "schema_version": SCHEMA_VERSION,
            "trial_id": self.trial_id(searched),
            "sweep_id": self.id,
            "method": first.method,
            "config": config,
            "searched": canonical_json(searched),
            "is_default": config == first.config,
            "dataset": first.dataset,
            "setting": first.setting,
            "categories": list(dict.fromkeys(c for cell in self.cells for c in cell.categories)),
            "dataset_categories": list(dataset.all_categories(dataset.root(Path(self.place.root)))),
            "fingerprints": list(dict.fromkeys(cell.fingerprint for cell in self.cells)),
            "seeds": list(dict.fromkeys(cell.seed for cell in self.cells)),
            "profile": first.profile,
            "search": self.search,
            "scheduler": self.scheduler,
            "selection": self.selection,
            "objective": self.objective,
            "objective_epochs": [],
            "objective_history": [],
            "metric_version": METRIC_VERSION,
            "status": "running",
            "epochs": self.epochs,
            "epochs_trained": 0,
            "stopped_early": False,
            "started_at": now(),
            "backbone": json.loads(first.config)["backbone"],
            "teacher_source": self.place.weights.source,
            "teacher_sha256": first.teacher_sha256,
            **provenance.code_provenance(),
            **_machine(self.place),
        }


def run_trial(sweep: Sweep, searched: dict[str, Any], report: Report) -> None:
    """Train and judge one configuration; its row is written before each report and after an error.

    A trial that has succeeded is only reported again. A configuration that cannot be trained is reported as
    the worst. Any other error is raised, and the caller may try again.
    """
    results = Results(sweep.place.results)
    before = sweep.written(searched)
    if before is not None and before["status"] == "ok":
        for epoch, value in zip(before["objective_epochs"], before["objective_history"], strict=True):
            report(epoch, value)
        return
    row = sweep.row(searched) | ({"started_at": before["started_at"]} if before else {})
    cap_memory(torch.device(sweep.place.device), sweep.place.gpu_share)
    try:
        with threads(sweep.place.num_threads):
            row["num_threads"] = torch.get_num_threads()
            _train(sweep, searched, row, before, report)
    except Exception as error:
        row |= {"status": status_of(error), "error": traceback.format_exc(), "ended_at": now()}
        results.write(TRIALS, [row])
        if not isinstance(error, HOPELESS):
            raise
        report(sweep.epochs, WORST)


def end_trial(sweep: Sweep, searched: dict[str, Any], error: str | None) -> None:
    """Complete the row of a trial whose own process could not: it was stopped early, or killed."""
    results = Results(sweep.place.results)
    row = sweep.written(searched)
    if error is not None:
        if row is None or row["status"] == "running":
            row = row or sweep.row(searched)
            results.write(TRIALS, [row | {"status": "failed", "error": error, "ended_at": now()}])
    elif row is not None and row["status"] == "running":
        row |= {"status": "ok", "stopped_early": row["epochs_trained"] < row["epochs"], "ended_at": now()}
        results.write(TRIALS, [row])
    remove_checkpoint(results.storage, sweep.trial_id(searched))


@dataclass(kw_only=True)
class _Judged:
    """Images of one category that the objective is computed on."""

    batches: Batches
    truth: Truth


class _Model:
    """One cell of a trial: its training, and the images that judge it."""

    def __init__(self, sweep: Sweep, cell: Cell) -> None:
        self.cell, self.objective = cell, sweep.objective
        self.ready = ready_cell(cell, sweep.place)
        stores = self.ready.stores
        counts = [len(store.train) for store in stores]
        # The split and order of `kdbench run`. No checkpoint rule trains on an image that judges.
        images = self.ready.training_batches(always_split=True)
        self.fitted, self.heldout, self.num_heldout = images.fitted, images.heldout, len(images.split.heldout)
        self.training = train.Training(
            self.ready.method,
            self.fitted.precision,
            torch.Generator().manual_seed(cell.seed),
        )
        if sweep.selection == "test":
            self.judged = [
                judged_on_test(self.ready, category, store, cached=True)
                for category, store in zip(self.ready.categories, stores, strict=True)
            ]
        else:
            own = split_by_category(counts, images.split.heldout)
            self.judged = [
                _judged_on_defects(self.ready, store, indices, cell.seed)
                for store, indices in zip(stores, own, strict=True)
            ]

    def epoch(self) -> None:
        self.training.epoch(self.fitted, self.heldout, lambda count: None)

    def value(self) -> float:
        """The objective: mean over the categories."""
        return float(np.mean([self._value(judged) for judged in self.judged]))

    def _value(self, judged: _Judged) -> float:
        scored = evaluate.score(self.ready.method, judged.batches, lambda count: None)
        value = evaluate.measure(scored, judged.truth, PRESET).metrics[self.objective]
        assert value is not None, self.objective
        return value

    def detector(self) -> dict[str, torch.Tensor]:
        state = on_cpu(self.ready.method.detector_state())
        return {detector_key(self.cell, name): tensor for name, tensor in state.items()}


def detector_key(cell: Cell, name: str) -> str:
    """The name of a tensor in the file of all models of a trial."""
    return f"{cell.seed}/{cell.category}/{name}"


def split_by_category(counts: list[int], aside: np.ndarray) -> Iterator[np.ndarray]:
    """Held-out indices of the concatenated categories, as indices of each category."""
    offset = 0
    for count in counts:
        yield aside[(aside >= offset) & (aside < offset + count)] - offset
        offset += count


def _judged_on_defects(ready: Ready, store: Images, aside: np.ndarray, seed: int) -> _Judged:
    normal = store.train[aside]
    defective = make_defects(normal, seed)
    masks = np.concatenate([np.zeros_like(defective.masks), defective.masks])
    truth = Truth(
        label=np.arange(len(masks)) >= len(normal),
        marked=np.ones(len(masks), bool),
        regions=label_regions(masks).ravel(),
        shapes=np.full((len(masks), 2), masks.shape[1]),
    )
    return _Judged(
        batches=ready.batches(np.concatenate([normal, defective.images]), cached=True), truth=truth
    )


def judged_on_test(ready: Ready, category: Category, store: Images, *, cached: bool) -> _Judged:
    """The test images of a category."""
    truth = open_truth(ready.dataset, category, ready.fingerprints[category.name], PRESET)
    return _Judged(batches=ready.batches(store.test, cached=cached), truth=truth)


def _train(
    sweep: Sweep,
    searched: dict[str, Any],
    row: dict[str, Any],
    before: dict[str, Any] | None,
    report: Report,
) -> None:
    """Train all models; fill in the row and write it before each report."""
    results = Results(sweep.place.results)
    config = sweep.config(searched)
    models = [_Model(sweep, replace(cell, config=config)) for cell in sweep.cells]
    row |= {
        "precision": models[0].ready.precision,
        "num_train": sum(len(model.fitted) for model in models),
        "num_heldout": sum(model.num_heldout for model in models),
    }
    checkpoints = Checkpoints(
        results.storage,
        row["trial_id"],
        every_s=sweep.place.checkpoint_every_s,
        made_by=models[0].ready.made_by(),
    )
    done = _resume(models, checkpoints)
    if before is not None:
        kept = sum(epoch <= done for epoch in before["objective_epochs"])
        row["objective_epochs"] = before["objective_epochs"][:kept]
        row["objective_history"] = before["objective_history"][:kept]
    for epoch in range(done + 1, sweep.epochs + 1):
        for model in models:
            model.epoch()
        last = epoch == sweep.epochs
        if not last and epoch % sweep.report_every:
            continue
        if last:  # judge the model that is kept, as `kdbench run` keeps it
            for model in models:
                model.training.finish(model.heldout)
        value = float(np.mean([model.value() for model in models]))
        row["objective_epochs"], row["objective_history"] = (
            [*row["objective_epochs"], epoch],
            [*row["objective_history"], value],
        )
        row |= {
            "objective_value": value,
            "epochs_trained": epoch,
            "trial_s": checkpoints.train_s,
            "peak_memory_bytes": peak_memory_bytes(models[0].ready.device),
        }
        if last:
            if sweep.place.keep_detectors:
                tensors = {k: t for model in models for k, t in model.detector().items()}
                write_detector(results, row["trial_id"], tensors)
            row |= {"status": "ok", "ended_at": now()}
        else:
            checkpoints.after_epoch(lambda: {"models": [model.training.state() for model in models]})
        results.write(TRIALS, [row])
        if last:
            remove_checkpoint(results.storage, row["trial_id"])
        report(epoch, value)


def _resume(models: list[_Model], checkpoints: Checkpoints) -> int:
    """Go on from a checkpoint if there is one; returns how many epochs it had."""
    state = checkpoints.load()
    if state is None:
        return 0
    for model, of_model in zip(models, state["models"], strict=True):
        model.training.resume(of_model)
    return len(models[0].training.history.epochs)


def now() -> str:
    """The time now, in the format of rows."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _machine(place: Place) -> dict[str, Any]:
    machine = provenance.machine_provenance(torch.device(place.device))
    return picked(machine, *MACHINE)
