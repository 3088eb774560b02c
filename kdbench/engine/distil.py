"""A teacher for EfficientAD: a patch description network that learns what a large network sees.

The targets are the levels 2 and 3 of the large network, joined as PatchCore joins them (Roth et al.,
arXiv:2106.08265, section 3.1): the 3x3 places around each place, averaged to fewer values.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, interpolate, mse_loss, unfold

from kdbench import machine
from kdbench.backbone import build_pdn, normalisation, pdn_channels, teacher
from kdbench.cell import Weights, canonical_json
from kdbench.data.photographs import Photographs
from kdbench.engine import provenance
from kdbench.engine.checkpoint import Checkpoints, remove_checkpoint
from kdbench.engine.device import place_networks
from kdbench.engine.recipe import Recipe
from kdbench.errors import CellStopped, RequestError
from kdbench.files import written_aside
from kdbench.method import channel_statistics
from kdbench.results.storage import Storage
from kdbench.weights import DISTILLED

LEVELS, STRIDES = (2, 3), [8, 16]  # of the large network
VALUES = 1024  # to which each of its levels is averaged

StepEnd = Callable[[int, float], None]  # told how many steps are done, and the last loss
Pair = tuple[Tensor, Tensor]  # pixels, normalised: for the large network, for the new teacher


class Distillation:
    """A new teacher during its training: `step` steps are done, and `state` has all that is needed to go on.

    Image i of the training is always the same one, so that the state says nothing of the order.
    """

    def __init__(self, recipe: Recipe, images: Photographs, weights: Weights, device: torch.device) -> None:
        self.recipe, self.images, self.device, self.step = recipe, images, device, 0
        self.large = teacher(recipe.teacher, LEVELS, weights)
        if self.large.strides != STRIDES:
            raise RequestError(
                [f"{recipe.teacher}: levels 2 and 3 have strides {self.large.strides}, not {STRIDES}"]
            )
        torch.manual_seed(recipe.seed)
        self.new = build_pdn(recipe.backbone, pdn_channels(recipe.backbone), padded=True)
        for network in (self.large, self.new):
            place_networks(network, device)
        self.optimizer = torch.optim.Adam(
            self.new.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        self.mean, self.std = Tensor(), Tensor()  # of each channel of the targets
        self.scaling = [
            tuple(torch.tensor(x, device=device)[:, None, None] * 255 for x in normalisation(backbone))
            for backbone in (recipe.teacher, recipe.backbone)
        ]

    def state(self) -> dict[str, Any]:
        """The state as tensors and plain values."""
        return {
            "step": self.step,
            "network": self.new.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "channels": [self.mean, self.std],
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go back to the moment at which `state` was taken."""
        self.step = state["step"]
        self.new.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean, self.std = (x.to(self.device) for x in state["channels"])

    def look_at_channels(self) -> None:
        """Take the mean and the standard deviation of each channel of the targets."""
        count = min(
            self.recipe.channel_images, len(self.images.paths), self.recipe.steps * self.recipe.batch_size
        )
        batches = self._batches(range(0, count, self.recipe.batch_size), count)
        mean, std = channel_statistics(self._joined(large) for large, _ in batches)
        self.mean, self.std = (x[:, None, None].to(self.device) for x in (mean, std))

    def train(self, on_step: StepEnd) -> None:
        """Take the steps that are left; `on_step` may raise to stop between two steps."""
        size, end = self.recipe.batch_size, self.recipe.steps * self.recipe.batch_size
        for large, small in self._batches(range(self.step * size, end, size), end):
            target = (self._joined(large) - self.mean) / self.std
            loss = mse_loss(self.new(small), target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.step += 1
            on_step(self.step, loss.item())

    @torch.no_grad()
    def _joined(self, images: Tensor) -> Tensor:
        return joined(self.large(images), pdn_channels(self.recipe.backbone), self.recipe.image_size // 4)

    def _batches(self, firsts: range, end: int) -> Iterator[Pair]:
        """Batches that begin at images `firsts`, up to `end`; a thread reads the next one meanwhile."""
        size = self.recipe.batch_size
        with ThreadPoolExecutor(machine.cores()) as pool:
            ahead = [
                pool.submit(self._read, i)
                for first in firsts[:1]
                for i in range(first, min(end, first + size))
            ]
            for first in firsts:
                read = [one.result() for one in ahead]
                ahead = [pool.submit(self._read, i) for i in range(first + size, min(end, first + 2 * size))]
                large, small = (torch.from_numpy(np.stack(part)) for part in zip(*read, strict=True))
                yield self._normalised(large, 0), self._normalised(small, 1)

    def _read(self, number: int) -> list[np.ndarray]:
        """Image `number` of the training at both sizes: every image once, in another order each time."""
        r, count = self.recipe, len(self.images.paths)
        order = _order(r.seed, number // count, count)
        grey = np.random.default_rng([r.seed, number, 0x63]).random() < r.grey
        return self.images.read(int(order[number % count]), (2 * r.image_size, r.image_size), grey=grey)

    def _normalised(self, pixels: Tensor, which: int) -> Tensor:
        mean, std = self.scaling[which]
        return (pixels.to(self.device).permute(0, 3, 1, 2).float() - mean) / std


def distil(
    recipe: Recipe,
    images: Photographs,
    weights: Weights,
    out: Path,
    *,
    device: torch.device,
    on_step: StepEnd,
    note: Callable[[str], None],
    checkpoint_every_s: float = 300.0,
) -> None:
    """Make a teacher and write it to `out`, with its recipe; goes on from its checkpoint beside it.

    The checkpoint is `checkpoints/NAME.pt`, written every few minutes and when `on_step` raises CellStopped.
    Raises RequestError if the large network does not fit, DataError for an image that cannot be read.
    """
    training, storage = Distillation(recipe, images, weights, device), Storage(out.parent)
    made_of = asdict(recipe) | {
        "teacher_sha256": weights.sha256,
        "num_images": len(images.paths),
        "images": images.fingerprint,
    }
    made_by = provenance.decides_digits(device) | made_of
    checkpoints = Checkpoints(storage, out.name, every_s=checkpoint_every_s, made_by=made_by)
    state = checkpoints.load()
    if state is not None:
        training.resume(state)
        note(f"it goes on after step {training.step}")
    else:
        if storage.exists(checkpoints.name):
            note(f"{storage.path(checkpoints.name)} is of another recipe, code or machine: it starts anew")
        training.look_at_channels()

    def stepped(step: int, loss: float) -> None:
        checkpoints.after_epoch(training.state)
        on_step(step, loss)

    try:
        training.train(stepped)
    except CellStopped:
        checkpoints.write(training.state)
        raise
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in training.new.state_dict().items()}
    with written_aside(out) as aside:
        save_file(tensors, aside, {DISTILLED: canonical_json(made_of)})
    remove_checkpoint(storage, out.name)


def joined(levels: list[Tensor], channels: int, places: int) -> Tensor:
    """Levels [B,C,h,w] as one map [B,channels,places,places].

    The 3x3 places around each place are averaged to VALUES values, brought to the size, and joined; all of
    them are averaged to `channels` values.
    """
    maps = []
    for level in levels:
        around = unfold(level.float(), 3, padding=1).transpose(1, 2)  # [B,hw,9C]
        values = adaptive_avg_pool1d(around, VALUES).transpose(1, 2).unflatten(2, level.shape[2:])
        maps.append(interpolate(values, (places, places), mode="bilinear", align_corners=False))
    both = torch.cat(maps, 1).flatten(2).transpose(1, 2)  # [B,places^2,2*VALUES]
    return adaptive_avg_pool1d(both, channels).transpose(1, 2).unflatten(2, (places, places))


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    """The order in which the images come in turn `turn`."""
    return np.random.default_rng([seed, turn, 0xD157]).permutation(count)
