"""A long training, put down every few minutes, so that a lost worker costs minutes and not the night."""

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
    """The last state of one cell's training; `made_by` is the code and hardware that it is good for."""

    def __init__(self, storage: Storage, cell_id: str, *, every_s: float, made_by: dict[str, Any]) -> None:
        self.storage, self.name = storage, CHECKPOINTS.name(cell_id)
        self.every_s, self.made_by = every_s, made_by
        self.started = self.written = time.monotonic()
        self.earlier_s = 0.0  # spent on training before it was taken up again
        self.problem = ""  # why the last one could not be written

    def load(self) -> State | None:
        """The training to go on with. None if there is none, or another code or device made it: its numbers
        would be neither's. ValueError for a damaged file."""
        try:
            content = self.storage.read(self.name)
        except FileNotFoundError:
            return None
        try:
            found: State = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:  # torch says a damaged file in many ways
            path = self.storage.path(self.name)
            raise ValueError(f"{path} is damaged. Delete it: the cell will be trained anew") from error
        if found["made_by"] != self.made_by:
            return None
        self.earlier_s = found["train_s"]
        state: State = found["training"]
        return state

    def after_epoch(self, state: Callable[[], State]) -> None:
        """Write the state if the last one is old enough; never if `every_s` is 0.

        A full disk costs no training: the earlier file stays, and the next epoch tries again.
        """
        if not self.every_s or time.monotonic() - self.written < self.every_s:
            return
        buffer = io.BytesIO()
        torch.save({"made_by": self.made_by, "train_s": self.train_s, "training": state()}, buffer)
        try:
            self.storage.write(self.name, buffer.getbuffer())
        except OSError as error:
            self.problem = f"no checkpoint: {reason(error)}"
            return
        self.written, self.problem = time.monotonic(), ""

    @property
    def train_s(self) -> float:
        """Seconds of training so far, those before it was taken up again included."""
        return self.earlier_s + time.monotonic() - self.started


def remove_checkpoint(storage: Storage, cell_id: str) -> None:
    """Forget the training of a cell that has ended."""
    storage.remove(CHECKPOINTS.name(cell_id))
