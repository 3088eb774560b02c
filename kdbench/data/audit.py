"""Find shortcuts of a dataset: how well trivial numbers, which see no defect, tell its test images apart.

A detector that follows the exposure, the file or the position of the object can look good on such data. Every
number is tested against PERMUTATIONS random labellings, with Holm's correction over all tests of a dataset.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import laplace
from scipy.stats import rankdata
from skimage.filters import threshold_otsu

from kdbench import machine
from kdbench.dataset import Category
from kdbench.picture import open_image

SIDE = 256  # the longest side at which images are measured
SMALL = 32  # the size at which they are compared with training images
BORDER = 0.04  # share of the side that counts as border
PERMUTATIONS = 19_999
LEVEL = 0.05  # of significance, after Holm's correction

Floats = NDArray[np.float64]
Tick = Callable[[int], None]
Correct = Callable[[Sequence[float]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Shortcut:
    """One trivial number of one category: how well it tells defective from normal test images."""

    category: str
    number: str
    auroc: float  # of the number as it is; 0.5 is chance, and 0 tells as much as 1
    p: float  # two-sided, by permutation of the labels, not corrected
    p_holm: float  # corrected for all numbers of all categories that were audited

    @property
    def flagged(self) -> bool:
        """Whether chance does not explain it."""
        return self.p_holm < LEVEL

    @property
    def columns(self) -> dict[str, str | float | bool]:
        """A row of SHORTCUT_SCHEMA, but for the dataset."""
        return {
            "category": self.category,
            "number": self.number,
            "image_auroc": self.auroc,
            "p": self.p,
            "p_holm": self.p_holm,
            "flagged": self.flagged,
        }


def audit(
    categories: Sequence[Category], correct: Correct, tick: Tick = lambda count: None
) -> list[Shortcut]:
    """Every trivial number of every category, by category and then by its distance from chance.

    `correct` is Holm's correction of p values, for all tests together. Categories without normal or without
    defective test images have none. Raises DataError for an image that cannot be read.
    """
    found: list[tuple[str, str, float, float]] = []
    for category in categories:
        label = np.array([sample.label for sample in category.test])
        if label.all() or not label.any():
            continue
        chance = random_labellings(label)
        for name, values in trivial_numbers(category, tick).items():
            found.append((category.name, name, *auroc_and_p(values, label, chance)))
    corrected = correct([p for *_, p in found])
    shortcuts = [
        Shortcut(category=category, number=name, auroc=auroc, p=p, p_holm=p_holm)
        for (category, name, auroc, p), p_holm in zip(found, corrected, strict=True)
    ]
    order = {category.name: i for i, category in enumerate(categories)}
    return sorted(shortcuts, key=lambda s: (order[s.category], -abs(s.auroc - 0.5)))


def trivial_numbers(category: Category, tick: Tick = lambda count: None) -> dict[str, Floats]:
    """Name -> value [N] of every test image; a number that is the same for all images is left out."""
    with ThreadPoolExecutor(machine.cores()) as pool:

        def look(path: Path) -> tuple[dict[str, float], Floats]:
            seen = numbers_of(path)
            tick(1)
            return seen

        tested = list(pool.map(look, [sample.path for sample in category.test]))
        trained = np.stack([small for _, small in pool.map(look, category.train)])
    small = np.stack([image for _, image in tested])
    squares = (small**2).sum(1)[:, None] - 2 * small @ trained.T + (trained**2).sum(1)
    columns = {name: np.array([values[name] for values, _ in tested]) for name in tested[0][0]}
    columns["distance of the nearest training image"] = np.sqrt(squares.min(1).clip(0) / small.shape[1])
    return {name: values for name, values in columns.items() if np.ptp(values) > 0}


def numbers_of(path: Path) -> tuple[dict[str, float], Floats]:
    """The trivial numbers of one image, and its grey pixels at SMALL x SMALL as one vector."""
    size = path.stat().st_size
    grey_image = open_image(path).image.convert("L")
    width, height = grey_image.size
    small = np.asarray(grey_image.resize((SMALL, SMALL), Image.Resampling.BILINEAR), np.float64).ravel()
    grey_image.thumbnail((SIDE, SIDE))
    grey = np.asarray(grey_image, np.float64)
    edge = max(1, round(BORDER * min(grey.shape)))
    border = np.ones(grey.shape, bool)
    border[edge:-edge, edge:-edge] = False
    bright = grey > threshold_otsu(grey) if np.ptp(grey) else np.zeros(grey.shape, bool)
    rows, columns = np.nonzero(bright)
    numbers = {
        "mean brightness": grey.mean(),
        "spread of the brightness": grey.std(),
        "brightness of the border": grey[border].mean(),
        "sharpness": laplace(grey).std(),
        "bytes of the file": size,
        "pixels of the image": width * height,
        "bytes per pixel": size / (width * height),
        "bright share": bright.mean(),
        "height of the bright part": rows.mean() / grey.shape[0] if len(rows) else 0.5,
        "side of the bright part": columns.mean() / grey.shape[1] if len(columns) else 0.5,
    }
    return {name: float(value) for name, value in numbers.items()}, small


def random_labellings(label: NDArray[np.bool_], seed: int = 0) -> NDArray[np.intp]:
    """Which images are defective in each of PERMUTATIONS labellings with as many defects: indices [P,D]."""
    draws = np.random.default_rng(seed).random((PERMUTATIONS, len(label)), np.float32)
    return np.argpartition(draws, label.sum() - 1, axis=1)[:, : label.sum()]


def auroc_and_p(values: Floats, label: NDArray[np.bool_], chance: NDArray[np.intp]) -> tuple[float, float]:
    """AUROC of `values` [N] for `label` [N], and its two-sided p against random labellings [P,D].

    The p is (1 + labellings at least as far from 0.5) / (1 + P), which is never 0 (Phipson, Smyth,
    doi 10.2202/1544-6115.1585).
    """
    ranks, defective = rankdata(values), int(label.sum())
    pairs, least = defective * (len(label) - defective), defective * (defective + 1) / 2
    auroc = float((ranks[label].sum() - least) / pairs)
    by_chance = (ranks[chance].sum(1) - least) / pairs
    as_far = np.abs(by_chance - 0.5) >= abs(auroc - 0.5) - 1e-12
    return auroc, float((1 + as_far.sum()) / (1 + len(chance)))
