"""Metrics of the test images in the middle of a training. People look at them; they choose nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch

from kdbench.engine import evaluate
from kdbench.engine.batches import Batches
from kdbench.engine.ready import Ready
from kdbench.engine.train import StepEnd, calibrate, networks
from kdbench.method import Method
from kdbench.metrics.presets import PRESETS
from kdbench.results.schema import MEASURED
from kdbench.results.store import EPOCHS, Results, read


class Course:
    """The rows of a cell's measured epochs. They are stored at once, so that a resumed training has them.

    `done` epochs were trained before: the rows of these stay.
    """

    def __init__(self, ready: Ready, heldout: Batches | None, done: int) -> None:
        self.ready, self.heldout = ready, heldout
        self.results = Results(ready.place.results)
        stored = read(self.results.storage, EPOCHS, only=[ready.cell.id]).to_pylist() if done else []
        self.rows: list[dict[str, Any]] = [row for row in stored if row["epoch"] <= done]

    def after(self, epoch: int, on_step: StepEnd) -> float:
        """Measure the detector as it is after this epoch, if that is still to do; returns the seconds.

        If `on_step` raises, nothing of this epoch is kept, and the method is as before.
        """
        every, done = self.ready.place.measure_every, {row["epoch"] for row in self.rows}
        if not every or epoch % every or epoch in done:
            return 0.0
        started, found, preset = perf_counter(), [], PRESETS[self.ready.cell.preset]
        with looked_at(self.ready.method, self.heldout) as method:
            for category, store in zip(self.ready.categories, self.ready.stores, strict=True):
                scored = evaluate.score(method, self.ready.batches(store.test), on_step)
                metrics = evaluate.measure(scored, self.ready.truth(category), preset).metrics
                found.append(self._row(epoch, category.name, metrics))
        self.rows += found
        self.results.write(EPOCHS, self.rows)
        return perf_counter() - started

    def _row(self, epoch: int, category: str, metrics: Mapping[str, float | None]) -> dict[str, Any]:
        return {
            "cell_id": self.ready.cell.id,
            "category": category,
            "epoch": epoch,
            "epochs": self.ready.config.epochs,
            **{name: metrics.get(name) for name in MEASURED},
        }


@contextmanager
def looked_at(method: Method, heldout: Batches | None) -> Iterator[Method]:
    """The method, calibrated for a look at it; afterwards all of it is as before, random state included."""
    kept = {name: tensor.clone() for name, tensor in networks(method).items()}
    on_gpu: Sequence[torch.device] = [t.device for t in list(kept.values())[:1] if t.device.type == "cuda"]
    with torch.random.fork_rng(devices=on_gpu):
        try:
            calibrate(method, heldout)
            yield method
        finally:
            method.load_state_dict(kept, strict=False)
