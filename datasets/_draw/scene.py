"""A scene under the camera, a pose in it, and the shapes and noise that painters use."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike

SIZE = 256

Array = np.ndarray
Layer = Array | float | None


@dataclass
class Scene:
    """All that the camera sees: colour [3,h,w]; x, y, height in pixels, gloss, product cover [h,w]."""

    x: Array
    y: Array
    colour: Array
    height: Array
    gloss: Array
    product: Array

    @classmethod
    def plain(cls, colour: Array) -> "Scene":
        """An empty table of one colour [3,1,1]."""
        y, x = np.mgrid[:SIZE, :SIZE].astype(float)
        empty = [np.zeros((SIZE, SIZE)) for _ in range(3)]
        return cls(x, y, np.broadcast_to(colour, (3, SIZE, SIZE)).copy(), *empty)

    def window(self, centre: Array, reach: float) -> "Scene":
        """The part within reach of (x, y); painting on it paints on the whole."""
        columns, rows = (slice(max(int(c - reach), 0), max(int(c + reach) + 2, 0)) for c in centre)
        return Scene(*(getattr(self, field.name)[..., rows, columns] for field in fields(self)))

    def copy(self) -> "Scene":
        """A copy of the scene in memory of its own."""
        return Scene(*(getattr(self, field.name).copy() for field in fields(self)))

    def lay(self, alpha: Array, colour: Layer = None, height: Layer = None, gloss: Layer = None) -> None:
        """Put a material where alpha [h,w] is 1; a property that is None stays as it was."""
        if colour is not None:
            # Plane by plane: temporaries of one plane stay in the cache, which makes this four times as fast.
            for plane, value in zip(self.colour, np.broadcast_to(colour, self.colour.shape), strict=True):
                plane += alpha * (value - plane)
        for name, value in (("height", height), ("gloss", gloss)):
            if value is not None:
                field = getattr(self, name)
                field += alpha * (value - field)


@dataclass(frozen=True)
class Pose:
    """Where a part lies: its centre (x, y) in pixels, and its angle in radians."""

    centre: Array
    angle: float

    def local(self, scene: Scene) -> tuple[Array, Array]:
        """The coordinates u, v of the part at every pixel of the scene."""
        dx, dy = scene.x - self.centre[0], scene.y - self.centre[1]
        c, s = np.cos(self.angle), np.sin(self.angle)
        return c * dx + s * dy, c * dy - s * dx

    def place(self, points: ArrayLike) -> Array:
        """Points [...,2] of the part as pixels."""
        u, v = np.moveaxis(np.asarray(points, float), -1, 0)
        c, s = np.cos(self.angle), np.sin(self.angle)
        return self.centre + np.stack([c * u - s * v, s * u + c * v], axis=-1)


@dataclass(frozen=True)
class Fault:
    """A structural defect that the painter draws: its kind, place (three numbers) and strength in 0..1."""

    kind: str
    where: Array
    strength: float

    @property
    def way(self) -> Array:
        """A direction [2] of length 1."""
        return np.array([np.cos(2 * np.pi * self.where[2]), np.sin(2 * np.pi * self.where[2])])

    @property
    def side(self) -> float:
        """-1 or 1."""
        return 1.0 if self.where[1] < 0.5 else -1.0


def far(u: Array, v: Array) -> Array:
    """The distance from the origin; np.hypot guards against overflow and is many times slower."""
    return np.sqrt(u * u + v * v)


def noise(rng: Generator, rows: int, columns: int | None = None) -> Array:
    """Smooth noise [SIZE,SIZE] of mean 0 and deviation 1 with that many waves down and across."""
    grid = rng.standard_normal((rows + 3, (columns or rows) + 3))
    return _stretch(np.ascontiguousarray(_stretch(grid.T).T))


def _stretch(grid: Array) -> Array:
    """Cubic B-spline interpolation of [n+3,m] to [SIZE,m] that keeps the deviation of white noise."""
    # Four taps and no matrix product: the order of the additions, so every bit, is the same on each machine.
    position = (np.arange(SIZE) + 0.5) / SIZE * (len(grid) - 3)
    first = position.astype(int)
    f = position - first
    taps = [(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, 3 * (f + f**2 - f**3) + 1, f**3]
    scale = np.sqrt(sum(tap**2 for tap in taps))
    out = np.zeros((SIZE, grid.shape[1]))
    for k, tap in enumerate(taps):
        out += (tap / scale)[:, None] * grid[first + k]
    return out


def rgb(*colour: float) -> Array:
    """A colour [3,1,1] that broadcasts over planes; one number is a grey."""
    return np.broadcast_to(np.array(colour).reshape(-1, 1, 1), (3, 1, 1))


def tint(rng: Generator, colour: Sequence[float], spread: float = 0.04) -> Array:
    """The colour [3,1,1] with another brightness and, a quarter as much, another hue."""
    brightness, hue = 1 + spread * rng.standard_normal(), 1 + spread / 4 * rng.standard_normal((3, 1, 1))
    return rgb(*colour) * brightness * hue


def cover(depth: Array) -> Array:
    """How much of a pixel lies inside a shape, from its depth under the outline in pixels."""
    return np.clip(depth + 0.5, 0, 1)


def rise(x: Array) -> Array:
    """A soft step from 0 to 1 while x goes from 0 to 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def box(u: Array, v: Array, half_u: float, half_v: float, corner: float = 1.0) -> Array:
    """The depth inside a rounded rectangle around the origin."""
    qu, qv = np.abs(u) - half_u + corner, np.abs(v) - half_v + corner
    return corner - far(np.maximum(qu, 0), np.maximum(qv, 0)) - np.minimum(np.maximum(qu, qv), 0)


def stroke(points: Array, radius: Array | float) -> Array:
    """The depth [SIZE,SIZE] inside a line along points [n,2], at least -4; radius is a number or [n]."""
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    dense = np.linspace(0, length[-1], int(length[-1] / 0.7) + 2)
    x, y, thick = (np.interp(dense, length, np.broadcast_to(p, length.shape)) for p in (*points.T, radius))
    reach = np.arange(-int(thick.max()) - 3, int(thick.max()) + 4)
    column = np.rint(x).astype(int)[:, None, None] + reach
    row = np.rint(y).astype(int)[:, None, None] + reach[:, None]
    depth = thick[:, None, None] - far(column - x[:, None, None], row - y[:, None, None])
    row, column = np.broadcast_arrays(row, column)
    inside = (row >= 0) & (row < SIZE) & (column >= 0) & (column < SIZE)
    canvas = np.full((SIZE, SIZE), -4.0)
    np.maximum.at(canvas, (row[inside], column[inside]), depth[inside])
    return canvas
