"""The camera that photographs a scene."""

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kdbench.datasets._draw.scene import SIZE, Array, Scene


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
    planes = [ndimage.gaussian_filter(plane * matt + mirror, focus, truncate=3) for plane in scene.colour]
    return np.clip(np.stack(planes) * exposure, 0, 1)


def _shadow(height: Array, way: Array, slope: float, reach: int = 14) -> Array:
    """How deep each pixel [SIZE,SIZE] lies in the shadow of higher pixels within reach towards the light."""
    padded = np.pad(height, reach, mode="edge")
    blocker = np.full_like(height, -np.inf)
    for step in range(1, reach + 1):
        dx, dy = np.rint(step * way).astype(int) + reach
        blocker = np.maximum(blocker, padded[dy : dy + SIZE, dx : dx + SIZE] - step * slope)
    return ndimage.gaussian_filter(np.clip((blocker - height) / 2, 0, 1), 0.8)
