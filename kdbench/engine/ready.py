"""Make a cell ready to train: its images and its untrained method, on its device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.cell import Cell, Place, canonical_json
from kdbench.data.fingerprint import fingerprint, fingerprint_of
from kdbench.data.store import Images, Truth, open_images, open_truth, store_name
from kdbench.dataset import Category, Dataset
from kdbench.engine import provenance
from kdbench.engine.batches import Batches, Split, batches_of, split
from kdbench.engine.build import build_method
from kdbench.engine.device import choose_precision, start_peak_memory
from kdbench.engine.features import Shared
from kdbench.errors import DataError
from kdbench.method import Method
from kdbench.metrics.presets import PRESETS
from kdbench.registry import get_dataset, method_sha256


@dataclass(frozen=True, kw_only=True)
class TrainingBatches:
    """The training images of all categories, one category after another.

    `heldout` has batches of `split.heldout` if the training looks at them, and `unseen` of `split.unseen` if
    there are any.
    """

    fitted: Batches
    heldout: Batches | None
    unseen: Batches | None
    split: Split

    @property
    def judges(self) -> tuple[Batches | None, np.ndarray]:
        """The images that give a threshold, with their indices: the unseen ones, else the held-out ones."""
        if self.unseen is not None:
            return self.unseen, self.split.unseen
        return self.heldout, self.split.heldout


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A cell that can be trained: images, and an untrained method on its device."""

    cell: Cell
    place: Place
    dataset: Dataset
    categories: list[Category]
    fingerprints: dict[str, str]  # by category
    stores: list[Images]
    method: Method
    device: torch.device

    @property
    def config(self) -> Method.Config:
        """The config of the method."""
        config: Method.Config = self.method.config
        return config

    @property
    def precision(self) -> str:
        """fp32, bf16 or fp16: what the config asks for, on this device."""
        return choose_precision(self.config.precision, self.device, self.method)

    def truth(self, category: Category) -> Truth:
        """The ground truth of a category's test images, by the preset of the cell."""
        return open_truth(self.dataset, category, self.fingerprints[category.name], PRESETS[self.cell.preset])

    def batches(self, pixels: np.ndarray, *, cached: bool = False) -> Batches:
        """Batches of uint8 images [N,S,S,3]; `cached`: the teacher's levels are kept, see Batches."""
        return batches_of(self.method, pixels, cached=cached)

    def training_batches(self, *, always_split: bool = False) -> TrainingBatches:
        """Batches to train on, and held-out ones if the method chooses its epoch or calibrates on them.

        With `always_split` the held-out images are left out of the training even if it never looks at them.
        """
        stored = [store.train for store in self.stores]
        normal = np.concatenate(stored)
        looks = self.method.holds_out(self.config)
        counts = [len(images) for images in stored]
        parts = split(counts, self.config, self.cell.seed, holds_out=looks or always_split)

        def batches(rows: np.ndarray) -> Batches:
            shared = self._shared(stored, rows)
            return batches_of(self.method, normal[rows], cached=True, keep=self.place.cache, shared=shared)

        return TrainingBatches(
            fitted=batches(parts.fitted),
            heldout=batches(parts.heldout) if looks else None,
            unseen=self.batches(normal[parts.unseen]) if len(parts.unseen) else None,
            split=parts,
        )

    def _shared(self, stored: list[np.ndarray], rows: np.ndarray) -> Shared:
        """Where the teacher's levels of these rows lie on disk, for all processes of the machine."""
        size = self.config.image_size
        names = [store_name(self.dataset, c, self.fingerprints[c.name], size) for c in self.categories]
        # The hardware and torch are in it: another machine that shares the cache rounds in another way.
        hardware = provenance.machine_provenance(self.device)["device_name"]
        network: list[Any] = [
            self.cell.teacher_sha256,
            self.config.backbone,
            self.config.levels,
            self.precision,
        ]
        network += [self.method.teacher.crop] if self.method.teacher.crop else []
        made_by = canonical_json([network, torch.__version__, hardware])
        return Shared(names=names, pixels=stored, rows=rows, made_by=made_by)

    def made_by(self) -> dict[str, Any]:
        """The code and hardware that must be the same for a training to resume from its checkpoint."""
        return {
            **provenance.decides_digits(self.device),
            "precision": self.precision,
            "method_sha256": method_sha256(self.cell.method),
        }


def ready_cell(cell: Cell, place: Place) -> Ready:
    """Open the images of a cell and build its method on its device; DataError if the images changed."""
    device = torch.device(place.device)
    start_peak_memory(device)
    torch.manual_seed(cell.seed)
    dataset = get_dataset(cell.dataset)
    categories, fingerprints = _scan(cell, place, dataset)
    method = build_method(cell.method, cell.config, place.weights, device)
    size = method.config.image_size
    return Ready(
        cell=cell,
        place=place,
        dataset=dataset,
        categories=categories,
        fingerprints=fingerprints,
        stores=[open_images(dataset, c, fingerprints[c.name], size) for c in categories],
        method=method,
        device=device,
    )


def _scan(cell: Cell, place: Place, dataset: Dataset) -> tuple[list[Category], dict[str, str]]:
    root = dataset.root(Path(place.root))
    categories = [dataset.scan(root, name) for name in cell.categories]
    fingerprints = {category.name: fingerprint(dataset, category) for category in categories}
    if fingerprint_of(fingerprints.values()) != cell.fingerprint:
        raise DataError(f"the images under {root} changed since the run was planned; run the command again")
    return categories, fingerprints
