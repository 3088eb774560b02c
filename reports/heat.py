"""Kept anomaly maps as colours, on one scale for all methods, and the outline of the truth.

The maps of two methods have different units, and those of a product lie near 0. So a colour stands for a
rank: for the share of the pixels of the normal test images of the category that have at least this value in
the maps of the same detector. It is the false positive rate at which the pixel would be found.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdbench.reports.figures import colormaps

DECADES = 3  # the brightest colour: at most 0.1 % of the pixels of normal images
LEVELS = 32  # colours of a map: a page of half the size, and no difference to the eye
SCALE = np.linspace(0, 1, LEVELS)[None]  # the brightness of each colour
COLOURS = colormaps["inferno"]
TICKS = ("all", *(f"{100 / 10**i:g} %" for i in range(1, DECADES)), f"≤ {100 / 10**DECADES:g} %")
SAYS = (
    "A colour says how many pixels of normal images have at least this value: of all pixels of the normal "
    "test images of the category, in the maps of the same detector. So one scale serves all methods: dark is "
    "what normal images are full of, bright is what nearly none of their pixels has."
)
COARSE = "Some maps are of older rows, which kept low values in coarse steps."
CONTOUR = 0.4  # pixels by which an outline may leave the mask's border
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A map as its row has it."""

    picture: bytes  # PNG, 8-bit grey
    lowest: float  # the value of black
    highest: float  # the value of white
    power: float  # a value between them is (grey / 255)^power of the way; 1 in older rows

    @property
    def steps(self) -> Floats:
        """The value [256] of each grey; float32, so that equal values are equal after a resize, too."""
        part = (np.arange(256) / 255) ** self.power
        return (self.lowest + part * (self.highest - self.lowest)).astype(np.float32)

    @property
    def grey(self) -> NDArray[np.uint8]:
        """The picture [h,w]."""
        with Image.open(io.BytesIO(self.picture)) as opened:
            return np.asarray(opened.convert("L"))

    def values(self, size: tuple[int, int]) -> Floats:
        """The map [height,width], stretched to a width and a height."""
        values = Image.fromarray(self.steps[self.grey])
        return np.asarray(values.resize(size, Image.Resampling.BILINEAR))


class Normals:
    """The pixels of normal images in the maps of one detector."""

    def __init__(self, maps: Iterable[Kept]) -> None:
        kept = list(maps)
        values = np.concatenate([one.steps for one in kept])
        counts = np.concatenate([np.bincount(one.grey.ravel(), minlength=256) for one in kept])
        order = np.argsort(values, kind="stable")
        self.values = values[order]
        self.above = np.append(counts[order][::-1].cumsum()[::-1], 0) / counts.sum()

    def share(self, values: Floats) -> Floats:
        """The share of the pixels that have at least each of these values."""
        return self.above[np.searchsorted(self.values, values, "left")]


@dataclass(frozen=True, kw_only=True)
class Map:
    """A kept map with the normal pixels that its colours stand for."""

    kept: Kept
    normals: Normals

    @property
    def coarse(self) -> bool:
        """Whether low values have as coarse steps as high ones."""
        return self.kept.power == 1

    def brightness(self, size: tuple[int, int]) -> Floats:
        """The map [height,width] on the scale of colours, from 0 (all) to 1 (0.1 % or fewer)."""
        with np.errstate(divide="ignore"):
            decades = -np.log10(self.normals.share(self.kept.values(size)))
        return (decades / DECADES).clip(0, 1)

    def coloured(self, size: tuple[int, int]) -> bytes:
        """The map as a coloured PNG of a width and a height."""
        return _coloured(self.brightness(size))


def legend() -> bytes:
    """The colours of the scale from left to right, a PNG of one line."""
    return _coloured(SCALE)


def outline(mask: bytes) -> str:
    """The borders of a bilevel PNG as the data of an SVG path, in its pixels."""
    from skimage.measure import approximate_polygon

    parts = []
    for line in borders(mask):
        points = [f"{x:.4g},{y:.4g}" for x, y in approximate_polygon(line, CONTOUR)[:-1]]
        parts.append(f"M{' '.join(points)}Z")
    return "".join(parts)


def borders(mask: bytes) -> list[Floats]:
    """The closed borders of a bilevel PNG: points [n,2] of x and y, in pixels from its upper left corner."""
    from skimage.measure import find_contours

    with Image.open(io.BytesIO(mask)) as opened:
        marked = np.pad(np.asarray(opened.convert("L")) > 0, 1)
    return [line[:, ::-1] - 0.5 for line in find_contours(marked.astype(float), 0.5)]


def _coloured(brightness: Floats) -> bytes:
    level = (brightness * (LEVELS - 1)).round().astype(np.uint8)
    image = Image.frombytes("P", level.shape[::-1], level.tobytes())
    palette = (255 * COLOURS(SCALE[0])[:, :3]).round().astype(np.uint8)
    image.putpalette(palette.ravel().tolist())
    memory = io.BytesIO()
    image.save(memory, "PNG")
    return memory.getvalue()
