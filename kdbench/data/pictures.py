"""Pictures for people: small copies of anomaly maps, and of the inputs and masks that they belong to.

Reports are made from rows alone, often on a machine without the images, so a cell keeps what a person needs
to see what it did. Nothing is computed from these pictures: the metrics are of the maps at full size.
"""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from kdbench import machine
from kdbench.data.masks import read_mask
from kdbench.dataset import Category, Dataset, Sample
from kdbench.picture import open_image

SIDE = 128  # pixels; the longer side of a picture
POWER = 3.0  # grey is the root of the value: a product of three levels has most of its pixels near 0


def maps_of(
    category: Category, fingerprint: str, maps: np.ndarray | Sequence[np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Rows of PICTURE_SCHEMA, but for the cell, of the anomaly maps [H,W] of a category's test images."""
    for sample, anomaly_map in zip(category.test, maps, strict=True):
        lowest, highest = float(anomaly_map.min()), float(anomaly_map.max())
        if not np.isfinite([lowest, highest]).all():
            raise ValueError(f"the anomaly map of {sample.path} goes from {lowest} to {highest}")
        yield {
            "category": category.name,
            "category_fingerprint": fingerprint,
            "image": category.relative(sample.path),
            "anomaly_map": _encoded(grey(anomaly_map, lowest, highest, POWER), "PNG", compress_level=9),
            "lowest": lowest,
            "highest": highest,
            "grey_power": POWER,
        }


def grey(anomaly_map: np.ndarray, lowest: float, highest: float, power: float = 1.0) -> Image.Image:
    """A map [H,W] as 8-bit grey, `lowest` black and `highest` white; the longer side has at most SIDE pixels.

    A value is lowest + (highest - lowest) * (grey / 255)^power.
    """
    small = Image.fromarray(anomaly_map.astype(np.float32))
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=None)
    share = (np.asarray(small, np.float64) - lowest) / ((highest - lowest) or 1.0)
    return Image.fromarray((255 * share.clip(0, 1) ** (1 / power)).round().astype(np.uint8))


def inputs_of(dataset: Dataset, category: Category, fingerprint: str) -> list[dict[str, Any]]:
    """Rows of INPUT_SCHEMA of a category's test images; the same for every cell, whatever its image size."""

    def row(sample: Sample) -> dict[str, Any]:
        image = open_image(sample.path).image
        size = image.size
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        return {
            "category_fingerprint": fingerprint,
            "category": category.name,
            "image": category.relative(sample.path),
            "width": size[0],
            "height": size[1],
            "input": _encoded(image, "JPEG", quality=80),
            "mask": None if sample.mask is None else _mask(read_mask(dataset, sample).marked, image.size),
        }

    with ThreadPoolExecutor(machine.cores()) as pool:
        return list(pool.map(row, category.test))


def _mask(marked: np.ndarray, size: tuple[int, int]) -> bytes:
    """A bilevel PNG; every pixel that the defect touches is white, so that small defects stay visible."""
    share = Image.fromarray(marked.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return _encoded(Image.fromarray(np.asarray(share) > 0), "PNG", compress_level=9)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    memory = io.BytesIO()
    image.save(memory, kind, **options)
    return memory.getvalue()
