"""Checkpoints of a training every few minutes, so that a lost worker costs minutes and not hours."""

import io
import time
from collections.abc import Callable
from typing import Any

import torch

from kdbench.errors import reason
from kdbench.results.storage import Storage
from kdbench.results.store import CHECKPOINTS

State = dict[str, Any]


class Checkpoints:
    """The last checkpoint of one cell; `made_by` is the code and hardware that may resume from it."""

    def __init__(self, storage: Storage, cell_id: str, *, every_s: float, made_by: dict[str, Any]) -> None:
        self.storage, self.cell_id, self.name = storage, cell_id, CHECKPOINTS.name(cell_id)
        self.every_s, self.made_by = every_s, made_by
        self.started = self.written = time.monotonic()
        self.earlier_s = 0.0  # of training before it was resumed
        self.paused_s = 0.0  # since the start, for what is not training
        self.problem = ""  # why the last one could not be written

    def load(self) -> State | None:
        """The state to resume from, None without one.

        Also None if other code or hardware wrote it: resuming would mix the two. ValueError if it is damaged,
        or another cell's: seeds have states of the same names and shapes. Older files do not say whose.
        """
        path = self.storage.path(self.name)
        try:
            content = self.storage.read(self.name)
        except FileNotFoundError:
            return None
        try:
            stored: State = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises many types for a damaged file
            raise ValueError(f"{path} is damaged. Delete it: the cell will be trained anew") from error
        if (of := stored.get("of", self.cell_id)) != self.cell_id:
            raise ValueError(f"{path} is the checkpoint of {of}. Delete it: the cell will be trained anew")
        if stored["made_by"] != self.made_by:
            return None
        self.earlier_s = stored["train_s"]
        state: State = stored["training"]
        return state

    def after_epoch(self, state: Callable[[], State]) -> None:
        """Write a checkpoint if the last one is older than `every_s`; never if that is 0.

        If the disk is full, training goes on: the earlier file stays, and the next epoch tries again.
        """
        if time.monotonic() - self.written >= self.every_s:
            self.write(state)

    def write(self, state: Callable[[], State]) -> None:
        """Write a checkpoint, but never if `every_s` is 0; `problem` says what went wrong."""
        if not self.every_s:
            return
        buffer = io.BytesIO()
        facts = {"of": self.cell_id, "made_by": self.made_by, "train_s": self.train_s}
        torch.save(facts | {"training": state()}, buffer)
        try:
            self.storage.write(self.name, buffer.getbuffer())
        except OSError as error:
            self.problem = f"no checkpoint: {reason(error)}"
            return
        self.written, self.problem = time.monotonic(), ""

    @property
    def train_s(self) -> float:
        """Seconds of training so far, with those before it was resumed."""
        return self.earlier_s + time.monotonic() - self.started - self.paused_s


def remove_checkpoint(storage: Storage, cell_id: str) -> None:
    """Remove the checkpoint of a cell that has finished."""
    storage.remove(CHECKPOINTS.name(cell_id))
