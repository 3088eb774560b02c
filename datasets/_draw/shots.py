"""The pictures of the dataset `synthetic`: eight products, photographed with and without defects.

A painter lays out a scene (colour, height, gloss), a defect changes that scene, and one camera photographs
both in the same light: the mask of a defect is where the two photographs differ.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from PIL import Image
from scipy import ndimage

from kdbench.datasets._draw.camera import photograph
from kdbench.datasets._draw.defects import SURFACE
from kdbench.datasets._draw.objects import capsule, circuit, connector, gear
from kdbench.datasets._draw.scene import Array, Fault, Scene
from kdbench.datasets._draw.textures import fabric, granite, mesh, wood
from kdbench.machine import without_main

VERSION = 1  # raise it with every change of a pixel: the name of the cache folder holds it
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
VISIBLE = 0.9  # a defect is drawn again, stronger, until its `_contrast` is larger

PAINTERS: dict[str, Callable[..., Scene]] = {
    painter.__name__: painter for painter in (fabric, granite, mesh, wood, capsule, circuit, connector, gear)
}


@dataclass(frozen=True)
class Shot:
    """One picture: `split` is "train" or "test", `defect` is "good" or one of the category's defects."""

    category: str
    split: str
    defect: str
    index: int

    def save(self, folder: Path, seed: int) -> None:
        """Write the picture, and the mask of a defective one, to their places under `folder`."""
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
    """The noiseless photograph of the scene with the defect, and the mask of the pixels that differ."""
    scene_seed, defect_seed, light_seed = seeds
    for attempt in range(5):  # a defect that would hide in the noise is drawn again, stronger
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
    """Save a picture; noise hardly compresses, so that a higher level would only cost time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def shots(category: str) -> list[Shot]:
    """All pictures of a category, train first."""
    counts = [("train", "good", NUM_TRAIN), ("test", "good", NUM_TEST_GOOD)]
    counts += [("test", defect, NUM_PER_DEFECT) for defect in DEFECTS[category]]
    return [Shot(category, split, defect, i) for split, defect, count in counts for i in range(count)]


def draw(folder: Path, *, seed: int = 0, workers: int | None = None) -> None:
    """Draw the whole dataset under `folder` in the layout of MVTec AD; only the seed decides the pixels."""
    todo = [shot for category in CATEGORIES for shot in shots(category)]
    draw_shots(folder, todo, seed=seed, workers=workers or os.cpu_count() or 1)


def draw_shots(folder: Path, todo: list[Shot], *, seed: int, workers: int) -> None:
    """Draw these pictures under `folder` with that many processes."""
    if workers == 1:
        for shot in todo:
            shot.save(folder, seed)
        return
    # Not forked: the caller may have started threads of torch or ray.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        with without_main():  # all processes start here
            done = pool.map(Shot.save, todo, itertools.repeat(folder), itertools.repeat(seed), chunksize=4)
        for _ in done:
            pass  # an exception of a worker is raised here
