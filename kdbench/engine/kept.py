"""A kept detector with the images that it was trained for: later commands compute more with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.data.fingerprint import fingerprint, fingerprint_of
from kdbench.data.store import open_images
from kdbench.dataset import Category, Dataset
from kdbench.engine.batches import batches_of
from kdbench.engine.build import NOT_KEPT, detector_of
from kdbench.engine.evaluate import Scored, score
from kdbench.errors import DataError, RequestError
from kdbench.method import Method
from kdbench.registry import get_dataset
from kdbench.results.store import DETECTORS, Results

Tick = Callable[[str, str], None]  # called with the method and the category that was scored


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A detector in eval mode; its categories with their fingerprints, by name."""

    method: Method
    row: dict[str, Any]
    dataset: Dataset
    categories: dict[str, tuple[Category, str]]

    def scored(self, category: Category, own_fingerprint: str) -> Scored:
        """Maps and scores of a category's test images, in the precision of the row."""
        images = open_images(self.dataset, category, own_fingerprint, self.method.config.image_size)
        batches = batches_of(self.method, np.asarray(images.test), precision=self.row["precision"])
        return score(self.method, batches, lambda count: None)


def not_kept(results: Results, cell_id: str) -> str:
    """Why a cell has no detector that can be opened; empty if it has one."""
    if results.storage.exists(DETECTORS.name(cell_id)):
        return ""
    return NOT_KEPT


def open_kept(
    results: Results, row: dict[str, Any], root: Path | None, weights: Path | None, device: torch.device
) -> Kept:
    """The detector of a cell, by one of its rows.

    Raises DataError if its images are missing or changed, and as `detector_of`.
    """
    categories = unchanged(row, root)
    method = detector_of(results, row, weights, device)
    return Kept(method=method, row=row, dataset=get_dataset(row["dataset"]), categories=categories)


def unchanged(row: dict[str, Any], root: Path | None) -> dict[str, tuple[Category, str]]:
    """The categories of a row with their fingerprints, by name; DataError unless the images are the row's."""
    dataset = get_dataset(row["dataset"])
    folder = dataset.root(root)
    categories = [dataset.scan(folder, name) for name in row["categories"]]
    by_name = {category.name: (category, fingerprint(dataset, category)) for category in categories}
    if fingerprint_of(of_category for _, of_category in by_name.values()) != row["fingerprint"]:
        raise DataError(f"the images under {folder} are not those that it was trained on")
    return by_name


def one_dataset(rows: list[dict[str, Any]], root: Path | None, done: str) -> None:
    """Raise RequestError if `root` is given for rows of several datasets; `done` is a word as "probed"."""
    datasets = sorted({row["dataset"] for row in rows})
    if root is not None and len(datasets) > 1:
        raise RequestError(
            [
                f"--root is the folder of one dataset, and detectors of {', '.join(datasets)} are to be "
                f"{done}; set KDBENCH_DATA to the parent of their folders"
            ]
        )
