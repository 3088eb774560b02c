"""The training loop that all methods share: cached teacher, held-out selection, no test images."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from kdbench.engine.batches import Batches
from kdbench.engine.compiled import Compiler
from kdbench.engine.device import device_of
from kdbench.engine.terms import TermAtStep, differentiated_steps, gradient_norms, watched_steps
from kdbench.errors import CellStopped
from kdbench.method import Method, compiled_by, named_terms, total

EpochEnd = Callable[["Epoch"], None]
StepEnd = Callable[[int], None]  # told how many images were just trained on
Checkpoint = Callable[[Callable[[], dict[str, Any]]], None]


class TrainingDiverged(RuntimeError):
    """A loss or a held-out value is not finite: the training is worthless."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The result of one epoch."""

    number: int
    loss: float
    heldout: float | None
    images_per_s: float


@dataclass(kw_only=True)
class History:
    """The course of a training: its epochs, which of them was kept, and what drove it."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    num_steps: int = 0
    terms: list[TermAtStep] = field(default_factory=list)  # of the watched steps that are done


class Training:
    """The mutable state of a training; it can be saved and resumed."""

    def __init__(
        self, method: Method, precision: str, generator: torch.Generator, compiler: Compiler | None = None
    ) -> None:
        self.method, self.generator, self.compiler = method, generator, compiler
        self.optimizer = fused(method.optimizer(), device_of(method))
        self.scheduler = method.scheduler(self.optimizer)
        # fp16 gradients underflow without scaling; for other precisions the scaler does nothing.
        self.scaler = torch.amp.GradScaler(device_of(method).type, enabled=precision == "fp16")
        self.history = History()
        self.best, self.kept = float("inf"), dict[str, Tensor]()
        self.batches: tuple[Tensor, ...] = ()  # of the epoch that is being trained: indices of its images
        self.losses: list[Tensor] = []  # of those batches that are done

    def state(self) -> dict[str, Any]:
        """The state as tensors and plain values, so that reading it runs no code (`weights_only`)."""
        device = device_of(self.method)
        return {
            "networks": networks(self.method),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "scaler": self.scaler.state_dict(),
            "shuffling": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "history": asdict(self.history),
            "best": self.best,
            "kept": self.kept,
            "batches": list(self.batches),
            "losses": self.losses,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go back to the moment at which `state` was taken."""
        self.method.load_state_dict(state["networks"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["shuffling"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], device_of(self.method))
        epochs = [Epoch(**epoch) for epoch in state["history"].pop("epochs")]
        terms = [TermAtStep(**term) for term in state["history"].pop("terms")]
        self.history = History(epochs=epochs, terms=terms, **state["history"])
        self.best, self.kept = state["best"], state["kept"]
        device = device_of(self.method)
        self.batches = tuple(index.to(device) for index in state["batches"])
        self.losses = [loss.to(device) for loss in state["losses"]]

    def epoch(self, train: Batches, heldout: Batches | None, on_step: StepEnd) -> Epoch:
        """Train on every image once and look at the held-out ones; TrainingDiverged if a value is not finite.

        Before the first epoch the method prepares. With the checkpoint rule "heldout", `finish` restores the
        epoch whose mean anomaly map on held-out images was the lowest.
        """
        if not self.history.epochs and not self.batches:
            with train.autocast:
                self.method.prepare(train.pairs())
        number, started = len(self.history.epochs) + 1, perf_counter()
        num_left = len(train) - sum(map(len, self.batches[: len(self.losses)]))
        loss = _finite(self._train(train, on_step), "loss", number)
        speed = num_left / (perf_counter() - started)
        mean_map = _finite(self._heldout_mean(heldout), "held-out map", number) if heldout else None
        chooses = self.method.config.checkpoint == "heldout"
        if chooses and mean_map is not None and mean_map < self.best:
            self.best, self.history.best_epoch = mean_map, number
            self.kept = {name: tensor.clone() for name, tensor in self.method.detector_state().items()}
        self.history.epochs.append(Epoch(number=number, loss=loss, heldout=mean_map, images_per_s=speed))
        return self.history.epochs[-1]

    def finish(self, heldout: Batches | None) -> History:
        """Restore the best epoch on held-out images, else keep the last; then calibrate on these images."""
        if self.kept:
            self.method.load_detector(self.kept)
        else:
            self.history.best_epoch = len(self.history.epochs)
        calibrate(self.method, heldout)
        return self.history

    def _train(self, train: Batches, on_step: StepEnd) -> float:
        """Train on every image once, or on those that are left of an epoch; returns the epoch's mean loss."""
        self.batches = self.batches or train.shuffled(self.generator)
        self.method.train()
        self.method.num_steps = self.method.config.epochs * -(-len(train) // train.batch_size)
        for index in self.batches[len(self.losses) :]:
            self.method.step = self.history.num_steps
            images = train.images(index)
            taught = train.taught(index, images)
            with train.autocast, self._compiled(train, index):
                terms = named_terms(self.method, images, taught)
                loss = total(terms)
            self.optimizer.zero_grad(set_to_none=True)
            self._watch(terms)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scheduler and self.method.scheduler_every == "step":
                self.scheduler.step()
            self.losses.append(loss.detach() * len(index))
            self.history.num_steps += 1
            on_step(len(index))
        if self.scheduler and self.method.scheduler_every == "epoch":
            self.scheduler.step()
        losses, self.batches, self.losses = self.losses, (), []
        return torch.stack(losses).sum().item() / len(train)

    @torch.no_grad()
    def _heldout_mean(self, batches: Batches) -> float:
        """The mean anomaly map of held-out normal images."""
        self.method.eval()
        total = torch.zeros((), dtype=torch.float64, device=batches.pixels.device)  # read once: reading waits
        for index in batches.in_order():
            images = batches.images(index)
            taught = batches.taught(index, images)
            with batches.autocast, self._compiled(batches, index):
                maps = self.method.anomaly_map(images, taught)
            total += maps.double().mean((1, 2)).sum()
        return total.item() / len(batches)

    def _compiled(self, batches: Batches, index: Tensor) -> AbstractContextManager[None]:
        """The context of a batch: its losses and maps are compiled if it is a full one."""
        return compiled_by(self.compiler if len(index) == batches.batch_size else None)

    def _watch(self, terms: Mapping[str, Tensor]) -> None:
        """Keep what drives the training, if this is one of the steps to look at; nothing else changes."""
        method, norms = self.method, dict[str, float]()
        if method.step not in watched_steps(method.num_steps):
            return
        if method.step in differentiated_steps(method.num_steps, len(terms)):
            norms = gradient_norms(terms, method.trained(), self.scaler)
        numbers = {**terms, **method.observed()}
        self.history.terms += [
            TermAtStep(step=method.step, name=name, value=number.sum().item(), gradient=norms.get(name))
            for name, number in numbers.items()
        ]


def fit(
    method: Method,
    train: Batches,
    heldout: Batches | None,
    *,
    generator: torch.Generator,
    on_step: StepEnd,
    on_epoch: EpochEnd,
    resume: dict[str, Any] | None = None,
    checkpoint: Checkpoint = lambda state: None,
    on_stop: Checkpoint = lambda state: None,
    compiler: Compiler | None = None,
) -> History:
    """Train in place to the last epoch, from the first or from the state `resume`.

    After every epoch `checkpoint` gets the function that returns the state, and so does `on_stop` when
    `on_step` or `on_epoch` raises CellStopped. A training that resumes between two epochs tells `on_epoch`
    of the last one again. Raises TrainingDiverged when a loss or a held-out value is not
    finite.
    """
    training = Training(method, train.precision, generator, compiler)
    if resume is not None:
        training.resume(resume)
    try:
        if training.history.epochs and not training.batches:
            on_epoch(training.history.epochs[-1])  # which may have been stopped before it was done
        while len(training.history.epochs) < method.config.epochs:
            on_epoch(training.epoch(train, heldout, on_step))
            if len(training.history.epochs) < method.config.epochs:
                checkpoint(training.state)
    except CellStopped:
        on_stop(training.state)
        raise
    return training.finish(heldout)


def networks(method: Method) -> dict[str, Tensor]:
    """The tensors of a method that its training changes: all but the teacher's, not copied."""
    return {name: t for name, t in method.state_dict().items() if not name.startswith("teacher.")}


def calibrate(method: Method, heldout: Batches | None) -> None:
    """Let the method calibrate its maps on held-out normal images, if there are any."""
    if heldout:
        method.eval()
        with torch.no_grad(), heldout.autocast:
            method.calibrate(heldout.pairs())


def fused(optimizer: Optimizer, device: torch.device) -> Optimizer:
    """The optimizer; on a GPU with one kernel for all parameters, if it has one. Last digits may differ.

    Not on a CPU: there a training step of Adam was 3 % faster at best, and its digits were others; those of
    SGD were the same, and so was its time.
    """
    for group in optimizer.param_groups if device.type == "cuda" else ():
        if "fused" in group:
            group["fused"], group["foreach"] = True, False
    return optimizer


def _finite(value: float, what: str, epoch: int) -> float:
    if not np.isfinite(value):
        raise TrainingDiverged(f"the {what} of epoch {epoch} is {value}; a lower learning rate may help")
    return value
