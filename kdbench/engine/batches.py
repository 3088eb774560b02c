"""Images in batches, with the teacher's levels of them; and the split into trained and held-out images."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from kdbench import machine
from kdbench.backbone import FeaturePyramid, normalisation
from kdbench.cell import Cache
from kdbench.engine.device import autocast_for, choose_precision, device_of, free_memory
from kdbench.engine.features import Features, Shared
from kdbench.method import Method

# Cached teacher features may take this share of the free memory of the device.
CACHE_SHARE = 0.4


class Batches:
    """Normalised images and the teacher's levels of them.

    `pixels` is uint8 [N,S,S,3]. The levels are constants, so that they are computed once if there is room:
    on the device (`cache` is "device"), else in files of `shared`, if it is given ("disk"). A GPU would wait
    for files longer than it computes. There, and without room, they are computed for every batch
    ("recomputed"). All three are equal up to rounding. `keep` can ask for the device, or for none.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        teacher: FeaturePyramid,
        backbone: str,
        *,
        device: torch.device,
        precision: str,
        batch_size: int,
        cached: bool = True,
        keep: Cache = "auto",
        shared: Shared | None = None,
    ) -> None:
        # torch shares memory only with writable arrays.
        writable = pixels if pixels.flags.writeable else pixels.copy()
        self.pixels = torch.from_numpy(writable).to(device)
        self.teacher, self.precision, self.batch_size = teacher, precision, batch_size
        mean, std = normalisation(backbone)
        self.mean = torch.tensor(mean, device=device)[:, None, None] * 255
        self.std = torch.tensor(std, device=device)[:, None, None] * 255
        self.levels: list[Tensor] | None = None
        self.features: Features | None = None
        if not cached or not len(pixels) or keep == "recomputed":
            return
        one = self._bytes_per_image()
        room = CACHE_SHARE * _own_share(device) * free_memory(device)
        if keep == "device" or len(pixels) * one <= room:
            self.levels = self._teach_all()
        elif shared is not None and device.type != "cuda" and shared.fits(one):
            self.features = shared.open(self._teach_pixels, batch_size)

    @property
    def autocast(self) -> AbstractContextManager:
        """The context in which networks run; a new one each time, since one must not be entered twice."""
        return autocast_for(self.precision, self.pixels.device)

    @property
    def cache(self) -> str:
        """Where the levels are kept: device, disk or recomputed."""
        if self.features is not None:
            return "disk"
        return "recomputed" if self.levels is None else "device"

    def __len__(self) -> int:
        return len(self.pixels)

    def in_order(self) -> Iterator[Tensor]:
        """Indices of consecutive batches."""
        yield from torch.arange(len(self.pixels), device=self.pixels.device).split(self.batch_size)

    def shuffled(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Indices of random batches; the last may be smaller."""
        order = torch.randperm(len(self.pixels), generator=generator).to(self.pixels.device)
        return order.split(self.batch_size)

    @torch.no_grad()
    def pairs(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Normalised images and the teacher's levels of them, batch after batch in order."""
        for index in self.in_order():
            images = self.images(index)
            yield images, self.taught(index, images)

    def images(self, index: Tensor) -> Tensor:
        """Normalised images [B,3,S,S] in channels-last order."""
        return self._normalised(self.pixels[index])

    def taught(self, index: Tensor, images: Tensor) -> list[Tensor]:
        """The teacher's levels for these images."""
        if self.features is not None:
            return self.features.take(index)
        return self._teach(images) if self.levels is None else [level[index] for level in self.levels]

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std

    @torch.no_grad()
    def _teach(self, images: Tensor) -> list[Tensor]:
        with self.autocast:
            return self.teacher(images)

    def _teach_all(self) -> list[Tensor]:
        """The levels [N,C,h,w] of all images, written in place: joining batches would need them twice."""
        levels: list[Tensor] = []
        for first, index in zip(range(0, len(self), self.batch_size), self.in_order(), strict=True):
            of_batch = self._teach(self.images(index))
            if not levels:
                levels = [
                    torch.empty(
                        (len(self), *level.shape[1:]),
                        dtype=level.dtype,
                        device=level.device,
                        memory_format=torch.channels_last,
                    )
                    for level in of_batch
                ]
            for level, part in zip(levels, of_batch, strict=True):
                level[first : first + len(part)] = part
        return levels

    def _teach_pixels(self, pixels: np.ndarray) -> list[Tensor]:
        return self._teach(self._normalised(torch.from_numpy(pixels.copy()).to(self.pixels.device)))

    def _bytes_per_image(self) -> int:
        one = self._teach(self.images(torch.zeros(1, dtype=torch.long, device=self.pixels.device)))
        return sum(level.nbytes for level in one)


def batches_of(
    method: Method,
    pixels: np.ndarray,
    *,
    precision: str | None = None,
    cached: bool = False,
    keep: Cache = "auto",
    shared: Shared | None = None,
) -> Batches:
    """Batches of uint8 images [N,S,S,3] for a method: its teacher, batch size, device, and its own precision
    unless another is given.
    """
    device = device_of(method)
    return Batches(
        pixels,
        method.teacher,
        method.config.backbone,
        device=device,
        precision=precision or choose_precision(method.config.precision, device, method),
        batch_size=method.config.batch_size,
        cached=cached,
        keep=keep,
        shared=shared,
    )


class Split(NamedTuple):
    """Indices of training images into the concatenated categories; each image is in one of the three."""

    fitted: np.ndarray
    heldout: np.ndarray  # chooses the epoch, or calibrates
    unseen: np.ndarray  # thresholds are from its scores; nothing else looks at it


def split(counts: Sequence[int], config: Method.Config, seed: int, *, holds_out: bool) -> Split:
    """Split the images of categories, `counts` of each: the share `hold_out` stays unseen. Of the rest,
    `heldout_share` is held out if `holds_out` says that the training needs it.

    Raises ValueError for a category with too few images.
    """
    none = np.arange(0)
    rest, unseen, left = np.arange(sum(counts)), none, list(counts)
    if config.hold_out:
        rest, unseen = split_heldout(counts, config.hold_out, seed, of=0x7E57)
        bounds = np.cumsum([0, *counts])
        left = [int(((rest >= low) & (rest < high)).sum()) for low, high in pairwise(bounds)]
    if not holds_out:
        return Split(rest, none, unseen)
    fitted, heldout = split_heldout(left, config.heldout_share, seed)
    return Split(rest[fitted], rest[heldout], unseen)


def split_heldout(
    counts: Sequence[int], share: float, seed: int, *, of: int = 0x5B117
) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held out) into the concatenated categories: `share` of each, at least one image.

    Splits with another `of` are independent draws. Raises ValueError for a category with fewer than two
    images.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, of]))
    train, heldout, offset = [], [], 0
    for count in counts:
        if count < 2:
            raise ValueError(f"a held-out split needs at least 2 train images, there are {count}")
        order = offset + generator.permutation(count)
        cut = min(max(1, round(share * count)), count - 1)
        heldout.append(np.sort(order[:cut]))
        train.append(np.sort(order[cut:]))
        offset += count
    return np.concatenate(train), np.concatenate(heldout)


def _own_share(device: torch.device) -> float:
    """The part of a device's memory that is this cell's: cells on a CPU share it as they share its cores."""
    cores = min(psutil.cpu_count(logical=False) or machine.cores(), machine.cores())
    return 1.0 if device.type == "cuda" else min(1.0, torch.get_num_threads() / cores)
