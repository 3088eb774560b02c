"""Painters of textures. A painter lays out a scene, with a structural defect if it gets one."""

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kdbench.datasets._draw.scene import SIZE, Fault, Pose, Scene, cover, far, noise, rgb, rise, stroke, tint


def fabric(rng: Generator, fault: Fault | None = None) -> Scene:
    """A plain weave of two yarns that wander and differ in thickness and dye."""
    pitch, angle = rng.uniform(7.8, 8.6), rng.normal(0, 0.04)
    warp_dye, weft_dye = tint(rng, (0.40, 0.47, 0.58), 0.04), tint(rng, (0.66, 0.66, 0.62), 0.04)
    scene = Scene.plain(warp_dye)
    u, v = Pose(rng.uniform(0, 40, 2), angle).local(scene)
    u, v = u / pitch + 0.18 * noise(rng, 4, 3), v / pitch + 0.18 * noise(rng, 3, 4)
    thick, dye = 1 + 0.06 * rng.standard_normal((2, 96)), 0.04 * rng.standard_normal((2, 96))
    fuzz, dirt = noise(rng, 110), noise(rng, 5)
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
    depth = 0.62 + 0.38 * rise((upper + 0.2) / 1.3)
    scene.colour = (warp_dye + front * (weft_dye - warp_dye)) * ((1 + shade) * depth)
    scene.height, scene.gloss, scene.product = 1.3 * upper + 0.15 * fuzz, 0.03 + 0 * u, 1 + 0 * u
    return scene


def wood(rng: Generator, fault: Fault | None = None) -> Scene:
    """A planed board: growth rings cut lengthwise, fibres and pores."""
    light, dark = tint(rng, (0.80, 0.62, 0.42), 0.05), tint(rng, (0.55, 0.36, 0.20), 0.05)
    scene = Scene.plain(light)
    rings = (scene.x - 128) / rng.uniform(17, 30) + rng.uniform(0, 9)
    rings += rng.uniform(0.6, 1.4) * noise(rng, 2, 3) + 0.12 * noise(rng, 6, 8) + 0.04 * noise(rng, 9, 60)
    fibre, pore, cloud = noise(rng, 9, 150), noise(rng, 26, 150), noise(rng, 3, 5)
    strength, heart = rng.uniform(0.45, 0.8, 64), np.zeros(1)
    if fault:
        x, y = 40 + 176 * fault.where[:2]
        size = 7 + 15 * fault.strength
        radius = far(scene.x - x, 0.62 * (scene.y - y))
        rings = rings + (0.8 + 1.6 * fault.strength) * np.exp(-((radius / size) ** 2))
        heart = (0.25 + 0.5 * fault.strength) * np.exp(-((1.8 * radius / size) ** 2))
    ring = np.floor(rings).astype(int)
    part = rings - ring
    late = strength[ring % 64] * part**2 * np.clip(9 * (1 - part), 0, 1)
    vessel = np.clip(1.6 * (pore - 1.7), 0, 1)
    amount = np.clip(late + heart + 0.07 * fibre + 0.08 * cloud + 0.05, 0, 1.3)
    scene.colour = (light + amount * (dark - light)) * (1 - 0.35 * vessel)
    scene.height = 0.25 * fibre - 0.8 * vessel - 0.3 * late
    scene.gloss, scene.product = 0.10 - 0.05 * late, 1 + 0 * fibre
    return scene


def mesh(rng: Generator, fault: Fault | None = None) -> Scene:
    """A brushed steel sheet with punched holes in a hexagonal pattern."""
    pitch, radius = rng.uniform(25.5, 27.5), rng.uniform(7.8, 8.4)
    scene = Scene.plain(tint(rng, (0.60, 0.61, 0.63)))
    u, v = Pose(128 + rng.uniform(-12, 12, 2), rng.normal(0, 0.03)).local(scene)
    brush, dirt = 0.6 * noise(rng, 150, 3) + 0.5 * noise(rng, 220, 12), noise(rng, 5)
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
        away = far(u - start - column * pitch - shift[0][key], v - row * high - shift[1][key])
        depth = np.maximum(depth, size[key] - away)
    scene.colour *= 1 + 0.05 * brush + 0.03 * dirt
    scene.height, scene.gloss = 0.12 * brush, 0.30 + 0.03 * brush
    scene.height -= 1.2 * rise((depth + 2.5) / 2.5)
    scene.product = 1 - cover(depth)
    scene.lay(cover(depth), colour=rgb(0.07, 0.07, 0.08), height=-7.0, gloss=0.0)
    return scene


GRAINS = ((0.27, 0.27, 0.28), (0.45, 0.45, 0.46), (0.54, 0.53, 0.53), (0.62, 0.54, 0.50), (0.67, 0.66, 0.63))


def granite(rng: Generator, fault: Fault | None = None) -> Scene:
    """A polished slab: mica, dark and grey quartz, pink and pale feldspar, as grains around random seeds."""
    pitch, shares = rng.uniform(4.6, 5.1), np.array([0.08, 0.22, 0.62, 0.78]) + rng.uniform(-0.015, 0.015, 4)
    palette = np.concatenate([tint(rng, grain, 0.04) for grain in GRAINS], axis=1)[..., 0]  # [3,5]
    count = int(SIZE / pitch) + 2
    at = (np.mgrid[:count, :count] + rng.uniform(-0.6, 0.4, (2, count, count))) * pitch
    seeds = np.zeros((SIZE, SIZE), bool)
    seeds[tuple(np.clip(at, 0, SIZE - 1).astype(int))] = True
    row, column = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    kind = np.digitize(rng.random((SIZE, SIZE)) + 0.07 * noise(rng, 14), shares)
    tone = 0.05 * rng.standard_normal((SIZE, SIZE))
    if fault:
        start, half = 50 + 156 * fault.where[:2], (12 + 34 * fault.strength) * fault.way
        line = np.array([start - half, start + 0.3 * half[::-1], start + half])
        vein = stroke(line, 2.5 + 4 * fault.strength)
        kind = np.where(vein > 0, 4, kind)
    scene = Scene.plain(rgb(0.5))
    scene.colour = palette[:, kind[row, column]] * (1 + tone[row, column] + 0.04 * noise(rng, 110))
    scene.height, scene.gloss, scene.product = 0.05 * noise(rng, 3), 0.2 + 0 * scene.x, 1 + 0 * scene.x
    return scene
