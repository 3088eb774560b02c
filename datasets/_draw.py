"""Draws the pictures of the data set `synthetic`: eight products, photographed with and without defects.

A painter lays out a scene (color, height, gloss), a defect changes that scene, and one camera photographs
both under the same light: the mask of a defect is where the two photographs differ.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.typing import ArrayLike
from PIL import Image
from scipy import ndimage

VERSION = 1  # raise it with every change of a pixel: the name of the cache folder holds it
SIZE = 256
NUM_TRAIN, NUM_TEST_GOOD, NUM_PER_DEFECT = 40, 12, 4
TEXTURES = ("fabric", "granite", "mesh", "wood")
OBJECTS = ("capsule", "circuit", "connector", "gear")
CATEGORIES = TEXTURES + OBJECTS
_DEFECTS = {
    "fabric": "color cut cutpaste hole missing_yarn stain thick_yarn thread",
    "granite": "blur chip color crack scratch stain thread vein",
    "mesh": "blocked_hole color dent enlarged_hole misplaced_hole scratch stain thread",
    "wood": "color crack cutpaste dent hole knot scratch stain",
    "capsule": "color crack dent hole misplaced_print missing_print scratch stain",
    "circuit": "broken_trace color misplaced_part missing_part scratch solder_bridge stain thread",
    "connector": "bent_pin blur crack cut missing_pin scratch stain thread",
    "gear": "broken_tooth color crack dent misplaced_hole missing_hole scratch stain",
}
DEFECTS = {category: tuple(names.split()) for category, names in _DEFECTS.items()}
CHANGED = 0.03  # difference of two noiseless photographs that counts as changed; the noise is about 0.012
VISIBLE = 0.9  # contrast, as of _contrast, that a defect is made to have

Array = np.ndarray
Layer = Array | float | None


@dataclass
class Scene:
    """What lies under the camera: color [3,h,w]; x, y, height in pixels, gloss, product cover [h,w]."""

    x: Array
    y: Array
    color: Array
    height: Array
    gloss: Array
    product: Array

    @classmethod
    def plain(cls, color: Array) -> "Scene":
        """An empty table of one color [3,1,1]."""
        y, x = np.mgrid[:SIZE, :SIZE].astype(float)
        empty = [np.zeros((SIZE, SIZE)) for _ in range(3)]
        return cls(x, y, np.broadcast_to(color, (3, SIZE, SIZE)).copy(), *empty)

    def window(self, center: Array, reach: float) -> "Scene":
        """The part within reach of (x, y); painting on it paints on the whole."""
        columns, rows = (slice(max(int(c - reach), 0), max(int(c + reach) + 2, 0)) for c in center)
        return Scene(*(getattr(self, field.name)[..., rows, columns] for field in fields(self)))

    def copy(self) -> "Scene":
        """The same scene in memory of its own."""
        return Scene(*(getattr(self, field.name).copy() for field in fields(self)))

    def lay(self, alpha: Array, color: Layer = None, height: Layer = None, gloss: Layer = None) -> None:
        """Puts a material where alpha [h,w] is 1; a property that is None stays what it was."""
        if color is not None:
            # Plane by plane: temporaries of one plane stay in the cache, which makes this four times as fast.
            for plane, value in zip(self.color, np.broadcast_to(color, self.color.shape), strict=True):
                plane += alpha * (value - plane)
        for name, value in (("height", height), ("gloss", gloss)):
            if value is not None:
                field = getattr(self, name)
                field += alpha * (value - field)


@dataclass(frozen=True)
class Pose:
    """Where a part lies: its center (x, y) in pixels, and its angle in radians."""

    center: Array
    angle: float

    def local(self, scene: Scene) -> tuple[Array, Array]:
        """The coordinates u, v of the part at every pixel of the scene."""
        dx, dy = scene.x - self.center[0], scene.y - self.center[1]
        c, s = np.cos(self.angle), np.sin(self.angle)
        return c * dx + s * dy, c * dy - s * dx

    def place(self, points: ArrayLike) -> Array:
        """Points [...,2] of the part as pixels."""
        u, v = np.moveaxis(np.asarray(points, float), -1, 0)
        c, s = np.cos(self.angle), np.sin(self.angle)
        return self.center + np.stack([c * u - s * v, s * u + c * v], axis=-1)


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


def _far(u: Array, v: Array) -> Array:
    """The distance from the origin; np.hypot guards against overflow and is many times slower."""
    return np.sqrt(u * u + v * v)


def _noise(rng: Generator, rows: int, columns: int | None = None) -> Array:
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


def _rgb(*color: float) -> Array:
    """A color [3,1,1] that broadcasts over planes; one number is a grey."""
    return np.broadcast_to(np.array(color).reshape(-1, 1, 1), (3, 1, 1))


def _tint(rng: Generator, color: Sequence[float], spread: float = 0.04) -> Array:
    """The color [3,1,1] with another brightness and, a quarter as much, another hue."""
    brightness, hue = 1 + spread * rng.standard_normal(), 1 + spread / 4 * rng.standard_normal((3, 1, 1))
    return _rgb(*color) * brightness * hue


def _cover(depth: Array) -> Array:
    """How much of a pixel lies inside a shape, from its depth under the outline in pixels."""
    return np.clip(depth + 0.5, 0, 1)


def _rise(x: Array) -> Array:
    """A soft step from 0 to 1 while x goes from 0 to 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _box(u: Array, v: Array, half_u: float, half_v: float, corner: float = 1.0) -> Array:
    """The depth inside a rounded rectangle around the origin."""
    qu, qv = np.abs(u) - half_u + corner, np.abs(v) - half_v + corner
    return corner - _far(np.maximum(qu, 0), np.maximum(qv, 0)) - np.minimum(np.maximum(qu, qv), 0)


def _stroke(points: Array, radius: Array | float) -> Array:
    """The depth [SIZE,SIZE] inside a line along points [n,2], at least -4; radius is a number or [n]."""
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    dense = np.linspace(0, length[-1], int(length[-1] / 0.7) + 2)
    x, y, thick = (np.interp(dense, length, np.broadcast_to(p, length.shape)) for p in (*points.T, radius))
    reach = np.arange(-int(thick.max()) - 3, int(thick.max()) + 4)
    column = np.rint(x).astype(int)[:, None, None] + reach
    row = np.rint(y).astype(int)[:, None, None] + reach[:, None]
    depth = thick[:, None, None] - _far(column - x[:, None, None], row - y[:, None, None])
    row, column = np.broadcast_arrays(row, column)
    inside = (row >= 0) & (row < SIZE) & (column >= 0) & (column < SIZE)
    canvas = np.full((SIZE, SIZE), -4.0)
    np.maximum.at(canvas, (row[inside], column[inside]), depth[inside])
    return canvas


# Painters of textures


def fabric(rng: Generator, fault: Fault | None = None) -> Scene:
    """A plain weave of two yarns that wander and differ in thickness and dye."""
    pitch, angle = rng.uniform(7.8, 8.6), rng.normal(0, 0.04)
    warp_dye, weft_dye = _tint(rng, (0.40, 0.47, 0.58), 0.04), _tint(rng, (0.66, 0.66, 0.62), 0.04)
    scene = Scene.plain(warp_dye)
    u, v = Pose(rng.uniform(0, 40, 2), angle).local(scene)
    u, v = u / pitch + 0.18 * _noise(rng, 4, 3), v / pitch + 0.18 * _noise(rng, 3, 4)
    thick, dye = 1 + 0.06 * rng.standard_normal((2, 96)), 0.04 * rng.standard_normal((2, 96))
    fuzz, dirt = _noise(rng, 110), _noise(rng, 5)
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    over = np.where((row + column) % 2, 1.0, -1.0)
    across, along = u - column - 0.5, v - row - 0.5
    warp_thick, weft_thick = thick[0][column % 96], thick[1][row % 96]
    gone = np.zeros(1)
    if fault:
        # One weft yarn near the middle, over a stretch that grows with the strength.
        yarn = int((0.2 + 0.6 * fault.where[0]) * SIZE / pitch)
        stretch = np.abs(u - (0.25 + 0.5 * fault.where[1]) * SIZE / pitch) - 1.0 - 5 * fault.strength
        hit = (row == yarn + row.min() // 2) * np.clip(0.5 - 2 * stretch, 0, 1)
        gone = 4 * hit * (fault.kind == "missing_yarn")
        weft_thick = weft_thick + (0.5 + 0.9 * fault.strength) * hit * (fault.kind == "thick_yarn")
    warp = np.sqrt(np.clip(1 - (2.05 * across / warp_thick) ** 2, 0, 1)) + 0.55 * over * np.cos(np.pi * along)
    weft = np.sqrt(np.clip(1 - (2.05 * along / weft_thick) ** 2, 0, 1)) - 0.55 * over * np.cos(np.pi * across)
    warp, weft = warp + 0.25 * (warp_thick - 1), weft - gone + 0.5 * (weft_thick - 1)
    upper, front = np.maximum(warp, weft), 1 / (1 + np.exp(-12 * (weft - warp)))
    shade = (dye[1][row % 96] * front + dye[0][column % 96] * (1 - front)) + 0.035 * fuzz + 0.02 * dirt
    depth = 0.62 + 0.38 * _rise((upper + 0.2) / 1.3)
    scene.color = (warp_dye + front * (weft_dye - warp_dye)) * ((1 + shade) * depth)
    scene.height, scene.gloss, scene.product = 1.3 * upper + 0.15 * fuzz, 0.03 + 0 * u, 1 + 0 * u
    return scene


def wood(rng: Generator, fault: Fault | None = None) -> Scene:
    """A planed board: growth rings cut lengthwise, fibres and pores."""
    light, dark = _tint(rng, (0.80, 0.62, 0.42), 0.05), _tint(rng, (0.55, 0.36, 0.20), 0.05)
    scene = Scene.plain(light)
    rings = (scene.x - 128) / rng.uniform(17, 30) + rng.uniform(0, 9)
    rings += rng.uniform(0.6, 1.4) * _noise(rng, 2, 3) + 0.12 * _noise(rng, 6, 8) + 0.04 * _noise(rng, 9, 60)
    fibre, pore, cloud = _noise(rng, 9, 150), _noise(rng, 26, 150), _noise(rng, 3, 5)
    strength, heart = rng.uniform(0.45, 0.8, 64), np.zeros(1)
    if fault:
        x, y = 40 + 176 * fault.where[:2]
        size = 7 + 15 * fault.strength
        radius = _far(scene.x - x, 0.62 * (scene.y - y))
        rings = rings + (0.8 + 1.6 * fault.strength) * np.exp(-((radius / size) ** 2))
        heart = (0.25 + 0.5 * fault.strength) * np.exp(-((1.8 * radius / size) ** 2))
    ring = np.floor(rings).astype(int)
    part = rings - ring
    late = strength[ring % 64] * part**2 * np.clip(9 * (1 - part), 0, 1)
    vessel = np.clip(1.6 * (pore - 1.7), 0, 1)
    amount = np.clip(late + heart + 0.07 * fibre + 0.08 * cloud + 0.05, 0, 1.3)
    scene.color = (light + amount * (dark - light)) * (1 - 0.35 * vessel)
    scene.height = 0.25 * fibre - 0.8 * vessel - 0.3 * late
    scene.gloss, scene.product = 0.10 - 0.05 * late, 1 + 0 * fibre
    return scene


def mesh(rng: Generator, fault: Fault | None = None) -> Scene:
    """A brushed steel sheet with punched holes in a hexagonal pattern."""
    pitch, radius = rng.uniform(25.5, 27.5), rng.uniform(7.8, 8.4)
    scene = Scene.plain(_tint(rng, (0.60, 0.61, 0.63)))
    u, v = Pose(128 + rng.uniform(-12, 12, 2), rng.normal(0, 0.03)).local(scene)
    brush, dirt = 0.6 * _noise(rng, 150, 3) + 0.5 * _noise(rng, 220, 12), _noise(rng, 5)
    size, shift = radius + 0.08 * rng.standard_normal((32, 32)), 0.12 * rng.standard_normal((2, 32, 32))
    if fault:
        row, column = 12 + (8 * fault.where[:2]).astype(int)
        if fault.kind == "blocked_hole":
            size[row, column] *= 0.75 - 0.9 * fault.strength
        elif fault.kind == "enlarged_hole":
            size[row, column] += 1.5 + 2.5 * fault.strength
        else:
            shift[:, row, column] += (2.2 + 3.5 * fault.strength) * fault.way
    depth = np.full_like(u, -pitch)
    high = pitch * np.sqrt(0.75)
    near = np.floor(v / high).astype(int)
    for row in (near, near + 1):  # the nearest hole is in one of the two rows around a pixel
        start = row % 2 * pitch / 2
        column = np.rint((u - start) / pitch).astype(int)
        key = (row + 16) % 32, (column + 16) % 32
        away = _far(u - start - column * pitch - shift[0][key], v - row * high - shift[1][key])
        depth = np.maximum(depth, size[key] - away)
    scene.color *= 1 + 0.05 * brush + 0.03 * dirt
    scene.height, scene.gloss = 0.12 * brush, 0.30 + 0.03 * brush
    scene.height -= 1.2 * _rise((depth + 2.5) / 2.5)
    scene.product = 1 - _cover(depth)
    scene.lay(_cover(depth), color=_rgb(0.07, 0.07, 0.08), height=-7.0, gloss=0.0)
    return scene


GRAINS = ((0.27, 0.27, 0.28), (0.45, 0.45, 0.46), (0.54, 0.53, 0.53), (0.62, 0.54, 0.50), (0.67, 0.66, 0.63))


def granite(rng: Generator, fault: Fault | None = None) -> Scene:
    """A polished slab: mica, dark and grey quartz, pink and pale feldspar, as grains around random seeds."""
    pitch, shares = rng.uniform(4.6, 5.1), np.array([0.08, 0.22, 0.62, 0.78]) + rng.uniform(-0.015, 0.015, 4)
    palette = np.concatenate([_tint(rng, grain, 0.04) for grain in GRAINS], axis=1)[..., 0]  # [3,5]
    count = int(SIZE / pitch) + 2
    at = (np.mgrid[:count, :count] + rng.uniform(-0.6, 0.4, (2, count, count))) * pitch
    seeds = np.zeros((SIZE, SIZE), bool)
    seeds[tuple(np.clip(at, 0, SIZE - 1).astype(int))] = True
    row, column = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    kind = np.digitize(rng.random((SIZE, SIZE)) + 0.07 * _noise(rng, 14), shares)
    tone = 0.05 * rng.standard_normal((SIZE, SIZE))
    if fault:
        start, half = 50 + 156 * fault.where[:2], (12 + 34 * fault.strength) * fault.way
        line = np.array([start - half, start + 0.3 * half[::-1], start + half])
        vein = _stroke(line, 2.5 + 4 * fault.strength)
        kind = np.where(vein > 0, 4, kind)
    scene = Scene.plain(_rgb(0.5))
    scene.color = palette[:, kind[row, column]] * (1 + tone[row, column] + 0.04 * _noise(rng, 110))
    scene.height, scene.gloss, scene.product = 0.05 * _noise(rng, 3), 0.2 + 0 * scene.x, 1 + 0 * scene.x
    return scene


# Painters of objects


def _table(rng: Generator, color: Sequence[float]) -> Scene:
    """A mat with some dirt on which an object lies."""
    scene = Scene.plain(_tint(rng, color, 0.06))
    scene.color *= 1 + 0.04 * _noise(rng, 4) + 0.04 * _noise(rng, 100)
    scene.height = 0.2 * _noise(rng, 100)
    return scene


def gear(rng: Generator, fault: Fault | None = None) -> Scene:
    """A turned steel gear with a hub, a keyway and six holes, in any rotation."""
    scene, teeth = _table(rng, (0.17, 0.19, 0.22)), 20
    pose = Pose(128 + rng.uniform(-7, 7, 2), rng.uniform(0, 2 * np.pi))
    steel, glare = _tint(rng, (0.52, 0.52, 0.53), 0.05), rng.normal(-0.75, 0.12)
    marks = ndimage.gaussian_filter1d(rng.standard_normal(400), 1)
    tall = 12.5 + 0.25 * rng.standard_normal(teeth)
    hole, shift, dirt = 10.5 + 0.2 * rng.standard_normal(6), 0.3 * rng.standard_normal((2, 6)), _noise(rng, 6)
    if fault:
        one = int(6 * fault.where[0])
        if fault.kind == "broken_tooth":
            tall[int(teeth * fault.where[0])] *= 0.8 - 0.8 * fault.strength
        elif fault.kind == "missing_hole":
            hole[one] *= 0.8 - 1.2 * fault.strength
        else:
            shift[:, one] += (2.5 + 5 * fault.strength) * fault.way
    u, v = pose.local(scene)
    radius, turn = _far(u, v), np.arctan2(v, u) / (2 * np.pi)
    tooth = np.floor(turn * teeth).astype(int) % teeth
    flank = (0.31 - np.abs(turn * teeth - np.floor(turn * teeth) - 0.5)) / 0.14 + 0.5
    slope = tall[tooth] / 0.14 * teeth / (2 * np.pi * np.maximum(radius, 40)) * ((flank > 0) & (flank < 1))
    outline = (86 + tall[tooth] * np.clip(flank, 0, 1) - radius) / np.hypot(1, slope)
    sector = np.rint(turn * 6).astype(int) % 6
    off = 2 * np.pi * (turn - np.rint(turn * 6) / 6)
    away = _far(radius * np.cos(off) - 58 - shift[0][sector], radius * np.sin(off) - shift[1][sector])
    bore = np.maximum(20 - radius, _box(u - 20, v, 7, 5.5, 1))
    depth = np.minimum(outline, -np.maximum(bore, hole[sector] - away))
    hub, groove = _rise((36 - radius) / 3), np.exp(-(((radius - 75) / 1.5) ** 2))
    turned = np.interp(radius * 3, np.arange(400), marks)
    lobe = np.cos(2 * np.pi * turn + pose.angle - glare) ** 2
    shade = 1 + 0.09 * turned + 0.04 * dirt + 0.30 * lobe**6 + 0.12 * lobe - 0.2 * groove
    height = 8 * _rise((depth + 1) / 5) + 3 * hub - 1.2 * groove + 0.2 * turned
    scene.lay(_cover(depth), steel * shade, height, 0.35)
    scene.product = _cover(depth)
    return scene


CAPSULE_PRINT = (  # "K 25" as lines in a box of 4.6 x 2
    ((0, -1), (0, 1)),
    ((1, -1), (0, 0), (1, 1)),
    ((2.0, -0.6), (2.3, -1), (2.8, -1), (3.0, -0.6), (2.9, -0.1), (2.0, 1), (3.05, 1)),
    ((4.6, -1), (3.7, -1), (3.6, -0.1), (4.2, -0.2), (4.6, 0.2), (4.5, 0.8), (4.1, 1), (3.6, 0.8)),
)


def capsule(rng: Generator, fault: Fault | None = None) -> Scene:
    """A glossy capsule of two colors with a printed code."""
    scene = _table(rng, (0.74, 0.74, 0.73))
    pose = Pose(128 + rng.uniform(-16, 16, 2), rng.normal(0.5, 0.25))
    cap, body = _tint(rng, (0.62, 0.20, 0.16), 0.05), _tint(rng, (0.84, 0.76, 0.58))
    ink, seam = _tint(rng, (0.24, 0.20, 0.19), 0.1), rng.uniform(-16, -8)
    print_at, slant = rng.uniform((21, -3), (26, 3)), rng.normal(0, 0.025)
    cloud, fine = _noise(rng, 5), _noise(rng, 90)
    lines, strong = list(CAPSULE_PRINT), np.full(len(CAPSULE_PRINT), 0.8)
    if fault and fault.kind == "missing_print":
        lost = int(len(lines) * fault.where[0])
        lines[lost] = lines[lost][: max(round(len(lines[lost]) * (1 - fault.strength)), 1)]
        strong[lost] *= 0.75 - 0.4 * fault.where[1]
    elif fault:
        print_at[1] += (5 + 9 * fault.strength) * fault.side
        slant += (0.12 + 0.35 * fault.strength) * np.sign(fault.where[2] - 0.5)
    u, v = pose.local(scene)
    along = np.maximum(np.abs(u) - 50, 0)
    left = u < seam
    depth = 39 + 1.6 * left - _far(along, v)  # the cap goes over the body
    bulge = np.sqrt(np.clip(1 - (_far(along, v) / 41) ** 2, 0.02, 1))
    color = np.where(left, cap, body) * (1 + 0.02 * cloud + 0.015 * fine)
    color = color * (0.72 + 0.28 * bulge - 0.25 * np.exp(-(((u - seam - 1) / 1.8) ** 2)))
    height = 41 * bulge * 0.8 + 1.5 * _rise((seam - u + 1) / 2) + 0.02 * fine
    scene.lay(_cover(depth), color, height, 0.75)
    scene.product = _cover(depth)
    writing = Pose(pose.place(print_at), pose.angle + slant)
    for line, ink_alpha in zip(lines, strong, strict=True):
        if len(line) > 1:
            depth = _stroke(writing.place((np.array(line) - (2.3, 0)) * (9.5, 11)), 1.5)
            scene.lay(ink_alpha * _cover(depth) * scene.product, ink)
    return scene


CHIP, CAN = (-20.0, -14.0), (66.0, 46.0)  # all of the board in pixels from its center
SMALL_PARTS = (  # x, y, quarter turns, color of the body
    (52, -66, 0, (0.12, 0.12, 0.13)),
    (52, -46, 0, (0.12, 0.12, 0.13)),
    (52, -26, 0, (0.58, 0.46, 0.33)),
    (82, -46, 1, (0.58, 0.46, 0.33)),
    (-78, -40, 1, (0.58, 0.46, 0.33)),
    (-78, 2, 1, (0.12, 0.12, 0.13)),
    (10, 42, 0, (0.12, 0.12, 0.13)),
)
VIAS = ((-52, -62), (20, -70), (-60, 28), (32, 10), (-30, 42), (88, -8), (-88, 40), (30, 66))
TRACES = (
    ((-41, -38), (-41, -62), (-52, -62)),
    ((-27, -38), (-27, -76), (14, -76), (20, -70), (36, -66), (42, -66)),
    ((-13, -38), (-13, -54), (36, -54), (42, -46)),
    ((1, -38), (1, -44), (30, -44), (42, -26)),
    ((62, -66), (82, -66), (82, -56)),
    ((62, -46), (70, -36), (82, -36)),
    ((62, -26), (76, -26), (88, -8), (88, 16), (76, 30)),
    ((-41, 10), (-41, 20), (-60, 28), (-60, 76)),
    ((-27, 10), (-27, 34), (-30, 42), (-46, 58), (-46, 76)),
    ((-13, 10), (-13, 42), (0, 42)),
    ((1, 10), (1, 24), (32, 10), (40, 46), (46, 46)),
    ((20, 42), (30, 66), (56, 66)),
    ((-78, -30), (-78, -8)),
    ((-78, 12), (-88, 40), (-88, 76)),
    ((-78, -50), (-78, -62), (-52, -62)),
    ((-32, 76), (-32, 60), (10, 56), (0, 42)),
)


def circuit(rng: Generator, fault: Fault | None = None) -> Scene:
    """A populated circuit board: traces, vias, a chip, small parts, a capacitor and a row of pads."""
    scene = _table(rng, (0.62, 0.61, 0.60))
    board = Pose(128 + rng.uniform(-5, 5, 2), rng.normal(0, 0.035))
    mask, gold = _tint(rng, (0.08, 0.33, 0.20), 0.08), _tint(rng, (0.78, 0.64, 0.32), 0.05)
    u, v = board.local(scene)
    weave = 0.03 * _noise(rng, 120) + 0.03 * _noise(rng, 5)
    depth = _box(u, v, 108, 96, 5)
    scene.lay(_cover(depth), mask * (1 + weave), 4 * _rise((depth + 1) / 2), 0.22)
    scene.product = _cover(depth)
    _lay_traces(scene, board, mask, fault)
    jitter = rng.normal(0, (0.6, 0.6, 0.02), (len(SMALL_PARTS) + 2, 3))
    lost = int(len(SMALL_PARTS) * fault.where[0]) if fault else -1
    if fault and fault.kind == "misplaced_part":
        jitter[lost, :2] += (2 + 4 * fault.strength) * fault.way
        jitter[lost, 2] += (0.15 + 0.6 * fault.strength) * fault.side
    for x, y in VIAS:
        _lay_ring(scene, board.place((x, y)), gold, 5.0, 2.2)
    for x, y in itertools.product((-97, 97), (-85, 85)):
        _lay_ring(scene, board.place((x, y)), gold, 8.0, 5.0)
    for x in range(-88, -20, 14):
        _lay_ring(scene, board.place((x, 80)), gold, 5.6, 2.8)
    tones = rng.normal(1, 0.06, len(SMALL_PARTS))
    for number, (x, y, quarter, color) in enumerate(SMALL_PARTS):
        dx, dy, turn = jitter[number]
        place = Pose(board.place((x, y)), board.angle + quarter * np.pi / 2)
        part = Pose(board.place((x + dx, y + dy)), place.angle + turn)
        absent = fault is not None and fault.kind == "missing_part" and number == lost
        _lay_small_part(scene, place, None if absent else part, _rgb(*color) * tones[number], gold)
    _lay_chip(scene, Pose(board.place(CHIP + jitter[-1, :2]), board.angle + jitter[-1, 2]), fault)
    _lay_can(scene, Pose(board.place(CAN + jitter[-2, :2]), board.angle + 5 * jitter[-2, 2]))
    return scene


def _lay_traces(scene: Scene, board: Pose, mask: Array, fault: Fault | None) -> None:
    """Copper under the solder mask: lighter and a little higher."""
    depth = np.full_like(scene.x, -4.0)
    for line in TRACES:
        depth = np.maximum(depth, _stroke(board.place(line), 1.7))
    if fault and fault.kind == "broken_trace":
        cut_line = board.place(TRACES[int(len(TRACES) * fault.where[0])])
        longest = int(np.argmax(np.hypot(*np.diff(cut_line, axis=0).T)))
        x, y = cut_line[longest] + (0.3 + 0.4 * fault.where[1]) * (cut_line[longest + 1] - cut_line[longest])
        depth = np.minimum(depth, _far(scene.x - x, scene.y - y) - 3.0 - 5 * fault.strength)
    alpha = _cover(depth) * (scene.product > 0.5)
    scene.lay(alpha, color=1.45 * mask + 0.03, height=scene.height + 0.7 * alpha)


def _lay_ring(scene: Scene, place: Array, gold: Array, outer: float, inner: float) -> None:
    """A gold ring around a drilled hole."""
    scene = scene.window(place, outer + 2)
    radius = _far(scene.x - place[0], scene.y - place[1])
    scene.lay(_cover(outer - radius), gold, scene.height + 0.5, 0.55)
    scene.lay(_cover(inner - radius), _rgb(0.10), scene.height - 4, 0.0)


def _lay_small_part(scene: Scene, place: Pose, part: Pose | None, color: Array, gold: Array) -> None:
    """Two soldered pads and, if there is one, the resistor or capacitor on them."""
    scene = scene.window(place.center, 24)
    u, v = place.local(scene)
    pad = _box(np.abs(u) - 9.5, v, 5, 6.5, 1.5)
    scene.lay(_cover(pad), gold, scene.height + 0.6 * _cover(pad), 0.6)
    if part is None:
        return
    u, v = part.local(scene)
    solder, body = _box(u, v, 12, 5.8, 2.0), _box(u, v, 8, 5.4, 0.8)
    base = scene.height.copy()
    scene.lay(_cover(solder), _rgb(0.68), base + 3.5 * _rise(solder / 3), 0.8)
    scene.lay(_cover(body), color, base + 4.2 * _rise((body + 1) / 2), 0.15)


def _lay_chip(scene: Scene, pose: Pose, fault: Fault | None) -> None:
    """A black chip with eight legs on two sides, perhaps with solder between two of them."""
    scene = scene.window(pose.center, 52)
    u, v = pose.local(scene)
    leg = np.clip(np.rint(u / 7 - 0.5), -4, 3) * 7 + 3.5
    base, legs = scene.height.copy(), _box(u - leg, np.abs(v) - 24, 1.8, 5.5, 0.8)
    scene.lay(_cover(legs), _rgb(0.66), base + 2.5 * _rise((legs + 1) / 3), 0.8)
    if fault and fault.kind == "solder_bridge":
        gap = 7 * int(7 * fault.where[0]) - 21
        lump = _box(
            u - gap, v - fault.side * (25.5 - 2 * fault.strength), 3.0, 0.6 + 2.6 * fault.strength, 0.6
        )
        scene.lay(_cover(lump), _rgb(0.66), base + 2.5 * _rise((lump + 1) / 3), 0.8)
    body = _box(u, v, 29, 20, 1.5)
    scene.lay(_cover(body), _rgb(0.13, 0.13, 0.14), base + 7 * _rise((body + 1) / 3), 0.12)
    dot = 2.4 - _far(u + 23, v - 14)
    text = np.minimum(_box(u + 1, v + 6, 15, 1.2), 2 * np.sin(1.3 * u) + 1)
    scene.lay(0.5 * _cover(np.maximum(dot, text)), _rgb(0.55))


def _lay_can(scene: Scene, pose: Pose) -> None:
    """An electrolytic capacitor seen from above, with its dark sector."""
    scene = scene.window(pose.center, 26)
    u, v = pose.local(scene)
    depth = 20 - _far(u, v)
    base = scene.height.copy()
    color = np.where(u < -9, 0.20, 0.62)
    height = base + 14 * _rise((depth + 1) / 4) - 0.8 * np.exp(-((depth - 4) ** 2))
    scene.lay(_cover(depth), color, height, 0.5)


def connector(rng: Generator, fault: Fault | None = None) -> Scene:
    """A plastic housing with twelve long metal pins."""
    scene, pins, pitch = _table(rng, (0.48, 0.52, 0.56)), 12, 16.0
    pose = Pose(rng.uniform((118, 114), (138, 134)), rng.normal(0, 0.06))
    plastic, metal = _tint(rng, (0.20, 0.20, 0.21), 0.08), _tint(rng, (0.70, 0.67, 0.60), 0.05)
    grain, drawn = _noise(rng, 120), _noise(rng, 6, 140)
    bend, length = 0.5 * rng.standard_normal(pins), 74 + 0.5 * rng.standard_normal(pins)
    width = 2.7 + 0.08 * rng.standard_normal(pins)
    if fault:
        one = int(pins * fault.where[0])
        if fault.kind == "bent_pin":
            bend[one] += fault.side * (3.0 + 2.2 * fault.strength)
        else:
            length[one] *= 0.9 - 0.9 * fault.strength
    u, v = pose.local(scene)
    pin = np.clip(np.rint(u / pitch + (pins - 1) / 2), 0, pins - 1).astype(int)
    reach = np.clip((v - 5) / 74, 0, 1.2)
    across = u - (pin - (pins - 1) / 2) * pitch - bend[pin] * reach**2
    taper = 1.3 * np.clip((reach * 74 - length[pin] + 7) / 7, 0, 1)
    depth = np.minimum(width[pin] - taper - np.abs(across), np.minimum(length[pin] - (v - 5), v))
    height = 5 + 2.5 * _rise(depth / 2.5)
    scene.lay(_cover(depth), metal * (1 + 0.05 * drawn), height, 0.7)
    scene.product = _cover(depth)
    body = np.maximum(_box(u, v + 34, 104, 40, 5), _box(u, v + 76, 34, 9, 3))
    height = 20 * _rise((body + 1) / 7) - 2.5 * _rise(_box(u, v + 42, 88, 16, 3) / 3)
    slot = _box(u - (pin - (pins - 1) / 2) * pitch, v + 42, 4.5, 8.5, 1)
    notch = _box(u, v + 2, 98, 3.2, 1)
    scene.lay(_cover(body), plastic * (1 + 0.06 * grain), height + 0.06 * grain, 0.30)
    scene.product = np.maximum(scene.product, _cover(body))
    scene.lay(_cover(slot), 0.35 * plastic, height - 8 * _rise((slot + 1) / 2), 0.05)
    scene.lay(_cover(notch), 0.8 * plastic, height - 2 * _rise((notch + 1) / 2), 0.2)
    return scene


# Defects of the surface: each changes a scene in place, and strength is in 0..1.


def _spot(scene: Scene, rng: Generator, margin: int) -> Array:
    """A random pixel (x, y) at least margin away from the outline of the product, where it is that wide."""
    for distance in (margin, margin // 2, 1):
        inner = ndimage.minimum_filter(scene.product, 2 * distance + 1, mode="constant")
        candidates = np.flatnonzero(inner > 0.5)
        if len(candidates):
            break
    return np.array(divmod(int(rng.choice(candidates)), SIZE)[::-1])


def _curve(rng: Generator, start: Array, length: float, bend: float) -> Array:
    """A wandering line [n,2] of that length around start."""
    steps = max(int(length / 3), 4)
    turns = rng.uniform(0, 2 * np.pi) + bend * np.cumsum(ndimage.gaussian_filter1d(rng.normal(size=steps), 2))
    points = np.cumsum(length / steps * np.stack([np.cos(turns), np.sin(turns)], axis=1), axis=0)
    return points - points[steps // 2] + start


def _blob(scene: Scene, rng: Generator, radius: float, soft: float, margin: int = 12) -> Array:
    """A ragged patch [SIZE,SIZE] in 0..1 on the product."""
    u, v = Pose(_spot(scene, rng, margin), rng.uniform(0, np.pi)).local(scene)
    away = _far(u, v * rng.uniform(1, 1.7))
    depth = radius * (1 + 0.22 * _noise(rng, 7) + 0.08 * _noise(rng, 24)) - away
    return np.clip(depth / soft + 0.5, 0, 1) * scene.product


def scratch(scene: Scene, rng: Generator, strength: float) -> None:
    """A fine groove with a bright or dark bottom."""
    points = _curve(rng, _spot(scene, rng, 12), rng.uniform(20, 50) + 50 * strength, 0.25)
    ends = np.sin(np.linspace(0.1, np.pi - 0.1, len(points)))
    alpha = _cover(_stroke(points, (0.5 + 1.0 * strength) * ends)) * scene.product
    tone = rng.choice([-1.0, 1.0]) * (0.17 + 0.30 * strength)
    scene.height -= (0.5 + 1.0 * strength) * alpha
    scene.color += tone * alpha


def crack(scene: Scene, rng: Generator, strength: float) -> None:
    """A dark jagged line that forks."""
    points = _curve(rng, _spot(scene, rng, 10), rng.uniform(22, 45) + 45 * strength, 0.7)
    points += rng.normal(0, 1.0, points.shape)
    branch = _curve(rng, points[len(points) // 2], rng.uniform(12, 30), 0.6)[-5:]
    branch = points[len(points) // 2] + np.cumsum(np.diff(branch, axis=0, prepend=branch[:1]), axis=0)
    width = 0.35 + 1.1 * strength
    main = _stroke(points, width * np.linspace(1.0, 0.4, len(points)))
    depth = np.maximum(main, _stroke(branch, 0.6 * width))
    alpha = (0.35 + 0.6 * strength) * _cover(depth) * scene.product
    scene.lay(alpha, 0.25 * scene.color, scene.height - 2.0, 0.0)


def stain(scene: Scene, rng: Generator, strength: float) -> None:
    """A dried drop: tinted, darker at its edge, less glossy."""
    alpha = _blob(scene, rng, rng.uniform(7, 14) + 16 * strength, rng.uniform(2, 7))
    tint = ((0.55, 0.42, 0.25), (0.30, 0.30, 0.33), (0.55, 0.25, 0.12), (0.85, 0.85, 0.82))
    edge = 4 * alpha * (1 - alpha)
    amount = (0.13 + 0.40 * strength) * (alpha + 0.5 * edge)
    scene.lay(np.clip(amount, 0, 0.9), _rgb(*tint[rng.integers(4)]), gloss=0.5 * scene.gloss)


def color(scene: Scene, rng: Generator, strength: float) -> None:
    """A patch of another hue and brightness, as from heat or a bad dye."""
    alpha = _blob(scene, rng, rng.uniform(8, 16) + 16 * strength, rng.uniform(5, 12))
    shift = rng.normal() + 0.8 * rng.normal(size=(3, 1, 1))
    shift *= (0.05 + 0.13 * strength) / np.abs(shift).max()
    scene.color *= 1 + alpha * shift
    scene.color += 0.4 * alpha * shift


def hole(scene: Scene, rng: Generator, strength: float) -> None:
    """A ragged hole with a dark ground and a damaged rim."""
    x, y = _spot(scene, rng, 10)
    radius = 1.8 + 7 * strength
    depth = radius * (1 + 0.25 * _noise(rng, 24)) - _far(scene.x - x, scene.y - y)
    rim = np.exp(-(((depth + 0.8) / 1.3) ** 2)) * scene.product
    scene.height += 0.8 * rim
    scene.color *= 1 + 0.12 * rim
    alpha = _cover(depth / 1.2) * scene.product
    scene.lay((0.5 + 0.45 * strength) * alpha, 0.18 * scene.color, scene.height - 6.0, 0.0)


def chip(scene: Scene, rng: Generator, strength: float) -> None:
    """A shallow flake broken out of the surface."""
    alpha, rough = _blob(scene, rng, 8 + 10 * strength, 1.5), _noise(rng, 60)
    dust = 0.55 + 0.25 * scene.color + 0.03 * rough
    scene.lay((0.5 + 0.5 * strength) * alpha, dust, scene.height - 3 + 0.4 * rough, 0.0)


def cut(scene: Scene, rng: Generator, strength: float) -> None:
    """A straight slit that gapes in the middle."""
    points = _curve(rng, _spot(scene, rng, 12), 16 + 34 * strength, 0.02)
    gape = np.sin(np.linspace(0.05, np.pi - 0.05, len(points))) * (0.6 + 1.7 * strength)
    depth = _stroke(points, gape)
    scene.height += 0.6 * np.exp(-(((depth + 1.2) / 1.2) ** 2)) * scene.product
    alpha = (0.55 + 0.4 * strength) * _cover(depth) * scene.product
    scene.lay(alpha, 0.22 * scene.color, scene.height - 4.0, 0.0)


def thread(scene: Scene, rng: Generator, strength: float) -> None:
    """A loose fibre that lies on top and casts a shadow."""
    points = _curve(rng, _spot(scene, rng, 16), rng.uniform(30, 60) + 60 * strength, 1.0)
    depth = _stroke(points, 0.5 + 0.9 * strength)
    paint = ((0.85, 0.83, 0.78), (0.15, 0.14, 0.14), (0.55, 0.15, 0.15), (0.25, 0.35, 0.60))
    top = ndimage.grey_dilation(scene.height, 5) + 1.5
    scene.lay((0.45 + 0.5 * strength) * _cover(depth), _rgb(*paint[rng.integers(4)]), top, 0.05)


def dent(scene: Scene, rng: Generator, strength: float) -> None:
    """A shallow hollow that only its shading shows."""
    x, y = _spot(scene, rng, 14)
    radius = rng.uniform(5, 9) + 6 * strength
    away = _far(scene.x - x, scene.y - y) / radius
    scene.height -= (0.13 + 0.28 * strength) * radius * np.exp(-(away**2)) * scene.product


def blur(scene: Scene, rng: Generator, strength: float) -> None:
    """A worn patch that has lost its fine structure."""
    alpha, sigma = _blob(scene, rng, rng.uniform(10, 16) + 12 * strength, 6.0), 1.2 + 1.6 * strength
    smooth = ndimage.gaussian_filter(scene.color, (0, sigma, sigma))
    scene.lay(alpha, smooth, ndimage.gaussian_filter(scene.height, sigma))


def cutpaste(scene: Scene, rng: Generator, strength: float) -> None:
    """A piece from elsewhere, turned by a quarter."""
    half = int(10 + 16 * strength)
    to, source = _spot(scene, rng, half + 6), scene.copy().window(_spot(scene, rng, half + 6), half)
    target = scene.window(to, half)
    turned = {name: np.rot90(getattr(source, name), axes=(-2, -1)) for name in ("color", "height", "gloss")}
    alpha = _cover(_box(target.x - to[0] - 0.5, target.y - to[1] - 0.5, half - 1, 0.8 * half, 0.3 * half) / 2)
    target.lay(alpha, **turned)


PAINTERS: dict[str, Callable[..., Scene]] = {
    painter.__name__: painter for painter in (fabric, granite, mesh, wood, capsule, circuit, connector, gear)
}
SURFACE = {
    defect.__name__: defect
    for defect in (blur, chip, color, crack, cut, cutpaste, dent, hole, scratch, stain, thread)
}


# The camera


def photograph(scene: Scene, rng: Generator) -> Array:
    """A photograph [3,SIZE,SIZE] in 0..1 without noise; the same generator state gives the same light."""
    azimuth, slope = rng.normal(-2.3, 0.18), rng.uniform(1.2, 1.6)
    tilt, fall = rng.uniform(-0.08, 0.08, 2), rng.uniform(0.02, 0.08)
    exposure = rng.normal(1.0, 0.035) * (1 + 0.008 * rng.standard_normal((3, 1, 1)))
    focus, shine = rng.uniform(0.55, 0.85), rng.uniform(22, 34)
    way = np.array([np.cos(azimuth), np.sin(azimuth)])
    light = np.array([*way, slope]) / np.hypot(1, slope)
    half = np.array([*light[:2], light[2] + 1]) / np.sqrt(2 + 2 * light[2])
    down, right = np.gradient(scene.height)
    steep = 1 / np.sqrt(1 + down**2 + right**2)
    diffuse = np.clip((light[2] - light[0] * right - light[1] * down) * steep, 0, None) / light[2]
    glint = np.clip((half[2] - half[0] * right - half[1] * down) * steep, 0, 1) ** shine
    lit = 1 - 0.6 * _shadow(scene.height, way, slope)
    x, y = scene.x / 128 - 1, scene.y / 128 - 1
    gradient = 1 + tilt[0] * x + tilt[1] * y - fall * (x**2 + y**2)
    matt, mirror = (0.35 + 0.65 * diffuse * lit) * gradient, scene.gloss * glint * lit * gradient
    planes = [ndimage.gaussian_filter(plane * matt + mirror, focus, truncate=3) for plane in scene.color]
    return np.clip(np.stack(planes) * exposure, 0, 1)


def _shadow(height: Array, way: Array, slope: float, reach: int = 14) -> Array:
    """How deep each pixel [SIZE,SIZE] lies in the shadow of what stands within reach towards the light."""
    padded = np.pad(height, reach, mode="edge")
    blocker = np.full_like(height, -np.inf)
    for step in range(1, reach + 1):
        dx, dy = np.rint(step * way).astype(int) + reach
        blocker = np.maximum(blocker, padded[dy : dy + SIZE, dx : dx + SIZE] - step * slope)
    return ndimage.gaussian_filter(np.clip((blocker - height) / 2, 0, 1), 0.8)


@dataclass(frozen=True)
class Shot:
    """One picture of the data set; defect is "good" or one of the category's, split is "train" or "test"."""

    category: str
    split: str
    defect: str
    index: int

    def save(self, folder: Path, seed: int) -> None:
        """Writes the picture, and the mask of a defective one, at their places under folder."""
        image, _, mask = shoot(self, seed)
        name = folder / self.category / self.split / self.defect / f"{self.index:03d}.png"
        _write(name, image)
        if mask is not None:
            _write(folder / self.category / "ground_truth" / self.defect / f"{self.index:03d}_mask.png", mask)


def shoot(shot: Shot, seed: int) -> tuple[Array, Array, Array | None]:
    """The picture [H,W,3] uint8, the same without its defect, and the mask [H,W] of 0 and 255 or None."""
    kinds = ("good", *DEFECTS[shot.category])
    split, kind = ("train", "test").index(shot.split), kinds.index(shot.defect)
    key = (seed, CATEGORIES.index(shot.category), split, kind, shot.index)
    scene_seed, defect_seed, light_seed, noise_seed = SeedSequence(key).spawn(4)
    scene = PAINTERS[shot.category](_generator(scene_seed))
    clean, mask = photograph(scene, _generator(light_seed)), None
    if shot.defect != "good":
        image, mask = _damage(shot, scene, clean, (scene_seed, defect_seed, light_seed))
    rng = _generator(noise_seed)
    noise = rng.uniform(0.007, 0.015) * rng.standard_normal(clean.shape)
    return _pixels(clean if mask is None else image, noise), _pixels(clean, noise), mask


def _pixels(planes: Array, noise: Array) -> Array:
    """Planes [3,H,W] in 0..1 as a picture [H,W,3] uint8."""
    return np.moveaxis(np.rint(255 * np.clip(planes + noise, 0, 1)), 0, 2).astype(np.uint8)


def _damage(shot: Shot, scene: Scene, clean: Array, seeds: Sequence[SeedSequence]) -> tuple[Array, Array]:
    """The noiseless photograph of the scene with the defect, and the mask of where it differs."""
    scene_seed, defect_seed, light_seed = seeds
    for attempt in range(5):  # what would hide in the noise is drawn again, stronger
        rng = _generator(defect_seed)
        strength = min(0.45 + 0.55 * rng.random() + 0.18 * attempt, 1.0)
        if shot.defect in SURFACE:
            damaged = scene.copy()
            SURFACE[shot.defect](damaged, rng, strength)
        else:
            fault = Fault(shot.defect, rng.random(3), strength)
            damaged = PAINTERS[shot.category](_generator(scene_seed), fault)
        image = photograph(damaged, _generator(light_seed))
        difference = np.max([np.abs(a - b) for a, b in zip(image, clean, strict=True)], axis=0)
        mask = _mask(difference)
        if mask.any() and _contrast(difference, clean, mask) > VISIBLE:
            break
    assert mask.any(), f"{shot} shows nothing"
    return image, np.where(mask, 255, 0).astype(np.uint8)


def _mask(difference: Array) -> Array:
    """The changed pixels [SIZE,SIZE] bool: gaps of a few pixels are closed, lone pixels dropped."""
    changed = ndimage.binary_closing(np.pad(difference > CHANGED, 6), iterations=4)[6:-6, 6:-6]
    parts, _ = ndimage.label(changed, np.ones((3, 3)))
    large = np.bincount(parts.ravel()) >= 8
    large[0] = False
    return large[parts]


def _contrast(difference: Array, clean: Array, mask: Array) -> float:
    """How far the strongest tenth of a change stands out from the structure under it; a large area helps."""
    structure = 0.05 + 0.7 * clean.mean(axis=0)[mask].std()
    return np.quantile(difference[mask], 0.9) / structure * (mask.sum() / 300) ** 0.25


def _generator(seed: SeedSequence) -> Generator:
    """A new generator at the start of its stream."""
    return Generator(PCG64(seed))


def _write(path: Path, pixels: Array) -> None:
    """Saves a picture; the noise hardly compresses, so more effort would be lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def shots(category: str) -> list[Shot]:
    """All pictures of a category, train first."""
    counts = [("train", "good", NUM_TRAIN), ("test", "good", NUM_TEST_GOOD)]
    counts += [("test", defect, NUM_PER_DEFECT) for defect in DEFECTS[category]]
    return [Shot(category, split, defect, i) for split, defect, count in counts for i in range(count)]


def draw(folder: Path, *, seed: int = 0, workers: int | None = None) -> None:
    """Draws the whole data set in MVTec AD layout under folder; seed alone decides the pixels."""
    todo = [shot for category in CATEGORIES for shot in shots(category)]
    draw_shots(folder, todo, seed=seed, workers=workers or os.cpu_count() or 1)


def draw_shots(folder: Path, todo: list[Shot], *, seed: int, workers: int) -> None:
    """Draws these pictures under folder with that many processes."""
    if workers == 1:
        for shot in todo:
            shot.save(folder, seed)
        return
    # Not forked: the caller may have started threads of torch or ray.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(Shot.save, todo, itertools.repeat(folder), itertools.repeat(seed), chunksize=4):
            pass  # an exception of a worker is raised here
