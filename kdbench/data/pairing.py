"""Do the masks of a kind of defect belong to the images whose names they have? Names cannot tell that.

The pixels can, where defects look unlike everything in normal images. Each patch of a test image gets a rank:
how far it is from all patches of training images, compared with the other patches of its image. Masks should
mark patches of high rank. If they do so no better than in random pairings of masks and images, but better in
another order (moved by one, reversed, 10 before 2), somebody has numbered them wrongly.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdbench import machine
from kdbench.data.masks import read_mask
from kdbench.dataset import Category, Dataset, Sample
from kdbench.picture import open_image

SIDE, PATCH, STRIDE = 128, 8, 4  # images are seen in grey with this side, in patches of 8x8
CELLS = (SIDE - PATCH) // STRIDE + 1  # of the grid of patches, along a side
NORMALS, BANK = 40, 6000  # training images, and patches of them, to which patches are compared
PAIRINGS = 9999  # random ones
CHANCE = 0.05  # with a p above it, masks fit no better than random pairings
LEAST = 8  # masks; fewer have too few pairings
FARTHEST = 3  # images by which masks are shifted

Floats = NDArray[np.float64]
Tick = Callable[[int], None]


def num_looked_at(category: Category) -> int:
    """How many images `misplaced` decodes."""
    kinds = _kinds(category).values()
    return min(NORMALS, len(category.train)) * bool(kinds) + sum(map(len, kinds))


def misplaced(dataset: Dataset, category: Category, tick: Tick = lambda count: None) -> list[str]:
    """A sentence for each kind of defect whose masks fit its images only in another order.

    DataError for an image or a mask that cannot be read.
    """
    kinds, found = _kinds(category), list[str]()
    if not kinds:
        return []
    generator = np.random.default_rng(0)
    count = min(NORMALS, len(category.train))
    chosen = generator.choice(len(category.train), count, replace=False)
    with ThreadPoolExecutor(machine.cores()) as pool:

        def look(path: Path) -> NDArray[np.float32]:
            seen = patches(path)
            tick(1)
            return seen

        bank = np.concatenate([*pool.map(look, [category.train[int(i)] for i in chosen])])
        bank = bank[generator.choice(len(bank), min(BANK, len(bank)), replace=False)]
        for kind, samples in kinds.items():
            ranks = [ranked(seen, bank) for seen in pool.map(look, [one.path for one in samples])]
            marks = [*pool.map(lambda one: read_mask(dataset, one).marked, samples)]
            filled = [i for i, mask in enumerate(marks) if mask.any()]  # some published masks are empty
            if len(filled) >= LEAST:
                fit = fits([ranks[i] for i in filled], [marks[i] for i in filled])
                found += _judged(f"{category.name}/{kind}", [samples[i] for i in filled], fit, generator)
    return found


def patches(path: Path) -> NDArray[np.float32]:
    """The grey patches of an image [CELLS * CELLS, PATCH * PATCH]."""
    grey = open_image(path).image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(grey, np.float32), (PATCH, PATCH))
    return windows[::STRIDE, ::STRIDE].reshape(-1, PATCH * PATCH)


def ranked(seen: NDArray[np.float32], bank: NDArray[np.float32]) -> Floats:
    """For each patch of an image, the share of its patches that are nearer to a patch of the bank: [N]."""
    nearest = (((bank**2).sum(1) - 2 * seen @ bank.T).min(1)) + (seen**2).sum(1)
    ranks: Floats = (nearest.argsort().argsort() + 0.5) / len(nearest)
    return ranks


def fits(ranks: Sequence[Floats], marks: Sequence[NDArray[np.bool_]]) -> Floats:
    """How unusual image i is inside of mask j, [N,N]: the mean rank of the patches that the mask touches."""
    inside = np.zeros((len(marks), CELLS * CELLS))
    for own, mask in zip(inside, marks, strict=True):
        places = [
            ((at + 0.5) / side * SIDE - PATCH / 2) / STRIDE
            for at, side in zip(np.nonzero(mask), mask.shape, strict=True)
        ]
        rows, columns = (place.round().astype(int).clip(0, CELLS - 1) for place in places)
        own[rows * CELLS + columns] = 1
    found: Floats = np.stack(ranks) @ (inside / inside.sum(1, keepdims=True)).T
    return found


def orders(names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Ways to mend wrongly numbered masks: each in words, and as the right mask's index per image [N]."""
    own = np.arange(len(names))
    for shift in (by for far in range(1, FARTHEST + 1) for by in (far, -far)):
        yield f"moved by {-shift:+d} in the order of names", np.roll(own, -shift)
    yield "in the reverse order", own[::-1]
    numbers = [[int(part) for part in re.findall(r"\d+", name)] for name in names]
    by_number = sorted(range(len(names)), key=lambda i: numbers[i])
    if list(by_number) != list(own):
        yield "ordered by number and not by letter (2 before 10)", np.argsort(by_number)
        yield "ordered by letter and not by number (10 before 2)", np.array(by_number)


def _kinds(category: Category) -> dict[str, list[Sample]]:
    """Kind of defect -> its images with a mask, in the order of names; only kinds with LEAST of them."""
    kinds: dict[str, list[Sample]] = {}
    for sample in sorted(category.test, key=lambda sample: sample.path):
        if sample.mask:
            kinds.setdefault(sample.defect, []).append(sample)
    return {kind: samples for kind, samples in kinds.items() if len(samples) >= LEAST}


def _judged(
    what: str, samples: Sequence[Sample], fit: Floats, generator: np.random.Generator
) -> Iterator[str]:
    """The sentence, if the masks fit better in another order than in any random one."""
    own = np.arange(len(fit))
    chance = np.array([fit[own, generator.permutation(own)].mean() for _ in range(PAIRINGS)])
    p = (1 + (chance >= fit[own, own].mean() - 1e-12).sum()) / (1 + PAIRINGS)
    if not p > CHANCE:
        return
    tried = {words: fit[own, order].mean() for words, order in orders([one.path.stem for one in samples])}
    words = max(tried, key=lambda words: tried[words])
    if tried[words] > chance.max():
        yield (
            f"{what}: its {len(fit)} masks may belong to other images. They mark unusual places no better "
            f"than masks in a random order (p {p:.2g}). Masks {words} mark them better than in any of "
            f"{PAIRINGS:,} random orders. Were the masks numbered again?"
        )
