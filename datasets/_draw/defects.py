"""Defects of a surface. Each changes a scene in place; its strength is 0 to 1."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from kdbench.datasets._draw.scene import SIZE, Array, Pose, Scene, box, cover, far, noise, rgb, stroke


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
    away = far(u, v * rng.uniform(1, 1.7))
    depth = radius * (1 + 0.22 * noise(rng, 7) + 0.08 * noise(rng, 24)) - away
    return np.clip(depth / soft + 0.5, 0, 1) * scene.product


def scratch(scene: Scene, rng: Generator, strength: float) -> None:
    """A fine groove with a bright or dark bottom."""
    points = _curve(rng, _spot(scene, rng, 12), rng.uniform(20, 50) + 50 * strength, 0.25)
    ends = np.sin(np.linspace(0.1, np.pi - 0.1, len(points)))
    alpha = cover(stroke(points, (0.5 + 1.0 * strength) * ends)) * scene.product
    tone = rng.choice([-1.0, 1.0]) * (0.17 + 0.30 * strength)
    scene.height -= (0.5 + 1.0 * strength) * alpha
    scene.colour += tone * alpha


def crack(scene: Scene, rng: Generator, strength: float) -> None:
    """A dark jagged line that forks."""
    points = _curve(rng, _spot(scene, rng, 10), rng.uniform(22, 45) + 45 * strength, 0.7)
    points += rng.normal(0, 1.0, points.shape)
    branch = _curve(rng, points[len(points) // 2], rng.uniform(12, 30), 0.6)[-5:]
    branch = points[len(points) // 2] + np.cumsum(np.diff(branch, axis=0, prepend=branch[:1]), axis=0)
    width = 0.35 + 1.1 * strength
    main = stroke(points, width * np.linspace(1.0, 0.4, len(points)))
    depth = np.maximum(main, stroke(branch, 0.6 * width))
    alpha = (0.35 + 0.6 * strength) * cover(depth) * scene.product
    scene.lay(alpha, 0.25 * scene.colour, scene.height - 2.0, 0.0)


def stain(scene: Scene, rng: Generator, strength: float) -> None:
    """A dried drop: tinted, darker at its edge, less glossy."""
    alpha = _blob(scene, rng, rng.uniform(7, 14) + 16 * strength, rng.uniform(2, 7))
    paints = ((0.55, 0.42, 0.25), (0.30, 0.30, 0.33), (0.55, 0.25, 0.12), (0.85, 0.85, 0.82))
    edge = 4 * alpha * (1 - alpha)
    amount = (0.13 + 0.40 * strength) * (alpha + 0.5 * edge)
    scene.lay(np.clip(amount, 0, 0.9), rgb(*paints[rng.integers(4)]), gloss=0.5 * scene.gloss)


def discolour(scene: Scene, rng: Generator, strength: float) -> None:
    """A patch of another hue and brightness, as from heat or a bad dye."""
    alpha = _blob(scene, rng, rng.uniform(8, 16) + 16 * strength, rng.uniform(5, 12))
    shift = rng.normal() + 0.8 * rng.normal(size=(3, 1, 1))
    shift *= (0.05 + 0.13 * strength) / np.abs(shift).max()
    scene.colour *= 1 + alpha * shift
    scene.colour += 0.4 * alpha * shift


def hole(scene: Scene, rng: Generator, strength: float) -> None:
    """A ragged hole with a dark ground and a damaged rim."""
    x, y = _spot(scene, rng, 10)
    radius = 1.8 + 7 * strength
    depth = radius * (1 + 0.25 * noise(rng, 24)) - far(scene.x - x, scene.y - y)
    rim = np.exp(-(((depth + 0.8) / 1.3) ** 2)) * scene.product
    scene.height += 0.8 * rim
    scene.colour *= 1 + 0.12 * rim
    alpha = cover(depth / 1.2) * scene.product
    scene.lay((0.5 + 0.45 * strength) * alpha, 0.18 * scene.colour, scene.height - 6.0, 0.0)


def chip(scene: Scene, rng: Generator, strength: float) -> None:
    """A shallow flake broken out of the surface."""
    alpha, rough = _blob(scene, rng, 8 + 10 * strength, 1.5), noise(rng, 60)
    dust = 0.55 + 0.25 * scene.colour + 0.03 * rough
    scene.lay((0.5 + 0.5 * strength) * alpha, dust, scene.height - 3 + 0.4 * rough, 0.0)


def cut(scene: Scene, rng: Generator, strength: float) -> None:
    """A straight slit that gapes in the middle."""
    points = _curve(rng, _spot(scene, rng, 12), 16 + 34 * strength, 0.02)
    gape = np.sin(np.linspace(0.05, np.pi - 0.05, len(points))) * (0.6 + 1.7 * strength)
    depth = stroke(points, gape)
    scene.height += 0.6 * np.exp(-(((depth + 1.2) / 1.2) ** 2)) * scene.product
    alpha = (0.55 + 0.4 * strength) * cover(depth) * scene.product
    scene.lay(alpha, 0.22 * scene.colour, scene.height - 4.0, 0.0)


def thread(scene: Scene, rng: Generator, strength: float) -> None:
    """A loose fibre that lies on top and casts a shadow."""
    points = _curve(rng, _spot(scene, rng, 16), rng.uniform(30, 60) + 60 * strength, 1.0)
    depth = stroke(points, 0.5 + 0.9 * strength)
    paint = ((0.85, 0.83, 0.78), (0.15, 0.14, 0.14), (0.55, 0.15, 0.15), (0.25, 0.35, 0.60))
    top = ndimage.grey_dilation(scene.height, 5) + 1.5
    scene.lay((0.45 + 0.5 * strength) * cover(depth), rgb(*paint[rng.integers(4)]), top, 0.05)


def dent(scene: Scene, rng: Generator, strength: float) -> None:
    """A shallow hollow that only its shading shows."""
    x, y = _spot(scene, rng, 14)
    radius = rng.uniform(5, 9) + 6 * strength
    away = far(scene.x - x, scene.y - y) / radius
    scene.height -= (0.13 + 0.28 * strength) * radius * np.exp(-(away**2)) * scene.product


def blur(scene: Scene, rng: Generator, strength: float) -> None:
    """A worn patch that has lost its fine structure."""
    alpha, sigma = _blob(scene, rng, rng.uniform(10, 16) + 12 * strength, 6.0), 1.2 + 1.6 * strength
    smooth = ndimage.gaussian_filter(scene.colour, (0, sigma, sigma))
    scene.lay(alpha, smooth, ndimage.gaussian_filter(scene.height, sigma))


def cutpaste(scene: Scene, rng: Generator, strength: float) -> None:
    """A piece from elsewhere, turned by a quarter."""
    half = int(10 + 16 * strength)
    to, source = _spot(scene, rng, half + 6), scene.copy().window(_spot(scene, rng, half + 6), half)
    target = scene.window(to, half)
    turned = {name: np.rot90(getattr(source, name), axes=(-2, -1)) for name in ("colour", "height", "gloss")}
    alpha = cover(box(target.x - to[0] - 0.5, target.y - to[1] - 0.5, half - 1, 0.8 * half, 0.3 * half) / 2)
    target.lay(alpha, **turned)


SURFACE: dict[str, Callable[[Scene, Generator, float], None]] = {
    "blur": blur,
    "chip": chip,
    "color": discolour,
    "crack": crack,
    "cut": cut,
    "cutpaste": cutpaste,
    "dent": dent,
    "hole": hole,
    "scratch": scratch,
    "stain": stain,
    "thread": thread,
}
