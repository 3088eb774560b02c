"""How often the intervals of a report hold the truth, by simulation: the table of docs/reports.md.

    python tests/benchmarks/coverage.py [--repeats 2000] [--write]

Every repeat draws what is random anew (categories, seeds, test images), makes the intervals as a report does
and looks whether they hold the value that infinitely many would give. Differences are between two methods
that do not differ: what does not hold 0 is a false positive of their p, too. With --write the counts go to
reports/coverage.csv, from which reports say what their intervals cover, and into docs/reports.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from kdbench.reports import estimates
from kdbench.reports.coverage import TABLE, coverage_tables
from kdbench.reports.embed import embed
from kdbench.reports.estimates import Sample
from kdbench.reports.leave_one_out import image_effects

Array = NDArray[np.float64]
Generator = np.random.Generator

# Scores are normal; those of defects lie `merit` higher, so that the AUROC is Phi(merit / sqrt(2)). Half of
# their variance is the image's own and the same for all detectors.
MERIT = {"normal": 1.2, "skewed": 2.5}  # of fixed categories: AUROC 0.80, and 0.96, whose errors are skewed
HARDER = 0.5  # fixed categories lie this far around the merit
SEED_SPREAD = {"little": 0.1, "much": 0.4}  # standard deviation of the merit over seeds
TOGETHER_SPREAD = 0.2  # the same where categories are drawn, too
OWN_SPREAD = 0.2  # of a method's merit in a category, around what the category gives all methods


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is drawn anew in each repeat, and of which kind."""

    over: str  # "categories" or "images": what the interval is over
    values: str  # "normal" or "skewed"
    seeds_vary: str  # "not", "little", "much"
    num_categories: int
    num_images: int  # of a category, half of them defective; 0: values without images
    num_seeds: int


def cases() -> Iterator[Case]:
    """Every line of the table."""
    shapes = ("normal", "skewed")
    for values, count in product(shapes, (3, 4, 5, 6, 8, 12, 15)):
        yield Case(
            over="categories",
            values=values,
            seeds_vary="not",
            num_categories=count,
            num_images=0,
            num_seeds=1,
        )
    for values, seeds, count, images in product(shapes, (2, 3, 5), (3, 5, 8, 15), (20, 100)):
        yield Case(
            over="categories",
            values=values,
            seeds_vary="much",
            num_categories=count,
            num_images=images,
            num_seeds=seeds,
        )
    for values, count, images in product(shapes, (1, 3), (20, 50, 100, 200)):
        yield Case(
            over="images",
            values=values,
            seeds_vary="not",
            num_categories=count,
            num_images=images,
            num_seeds=1,
        )
    for values, vary, seeds, images in product(shapes, ("little", "much"), (2, 3, 5), (20, 100, 200)):
        yield Case(
            over="images",
            values=values,
            seeds_vary=vary,
            num_categories=3,
            num_images=images,
            num_seeds=seeds,
        )


@dataclass(frozen=True, kw_only=True)
class Held:
    """Whether the intervals of one repeat held the truth; None where there was no interval."""

    mean: bool | None
    mean_f1_max: bool | None = None
    difference: bool | None


def coverage(case: Case, repeats: int, seed: int = 0) -> dict[str, float]:
    """The share of repeats with an interval in which it held the truth, by what it is of; NaN for none."""
    generator = np.random.default_rng([seed, *(ord(letter) for letter in str(case))])
    draw: Callable[[Case, Generator], Held] = _drawn_images
    if case.over == "categories":
        draw = _drawn_categories if case.num_images else _drawn_values
    found = pd.DataFrame([asdict(draw(case, generator)) for _ in range(repeats)]).astype(float)
    return {str(name): float(share) for name, share in found.mean().items()}


def _unit(values: str, generator: Generator, *shape: int) -> Array:
    """Deviations of mean 0 and variance 1; skewed ones have a long tail of bad luck."""
    return generator.normal(size=shape) if values == "normal" else 1 - generator.exponential(size=shape)


def _holds(interval: estimates.Interval | None, truth: float) -> bool | None:
    return None if interval is None else bool(interval.low <= truth <= interval.high)


def _drawn_values(case: Case, generator: Generator) -> Held:
    """Categories alone: a mean of 0.8 or 0.9, and differences of mean 0."""
    mean, spread = (0.8, 0.05) if case.values == "normal" else (0.9, 0.1)
    deviations = spread * _unit(case.values, generator, 2, 1, case.num_categories)
    found = estimates.mean_over_categories(mean + deviations[0], shared=True)
    difference = estimates.mean_over_categories(deviations[1], shared=True)
    return Held(
        mean=_holds(found and found.interval_of_share, mean),
        difference=_holds(difference and difference.interval, 0),
    )


def _drawn_categories(case: Case, generator: Generator) -> Held:
    """Categories, seeds of detectors of all categories, and test images: means and pairs over categories."""
    base = _merit_of_categories(case.values, generator, case.num_categories)
    scores_of_images = generator.normal(size=(case.num_categories, case.num_images))
    values = []
    for _ in range(2):
        own = base + OWN_SPREAD * generator.normal(size=case.num_categories)
        by_seed = TOGETHER_SPREAD * _unit(case.values, generator, case.num_seeds, 1)
        values.append(_auroc(own + by_seed, scores_of_images, generator))
    found = estimates.mean_over_categories(values[0], shared=True)
    difference = estimates.difference_over_categories(*values, shared=(True, True))
    return Held(
        mean=_holds(found and found.interval_of_share, _truth_over_categories(case.values)),
        difference=_holds(difference and difference.interval, 0),
    )


def _merit_of_categories(values: str, generator: Generator, count: int) -> Array:
    deviations = _unit(values, generator, count)
    return 1.6 + 0.35 * deviations if values == "normal" else 2.3 + 0.9 * deviations


@cache
def _truth_over_categories(values: str) -> float:
    generator, count = np.random.default_rng(1), 1_000_000
    merit = _merit_of_categories(values, generator, count) + OWN_SPREAD * generator.normal(size=count)
    return float(norm.cdf((merit + TOGETHER_SPREAD * _unit(values, generator, count)) / np.sqrt(2)).mean())


def _auroc(merit: Array, of_images: Array, generator: Generator) -> Array:
    """AUROC [S,C] of detectors of merits [S,C]; the first half of the images [C,n] is normal."""
    noise = generator.normal(size=(*merit.shape, of_images.shape[1]))
    scores = np.sqrt(0.5) * (of_images + noise)
    half = of_images.shape[1] // 2
    normal, defective = scores[..., :half], scores[..., half:] + merit[..., None]
    return (defective[..., :, None] > normal[..., None, :]).mean(axis=(-1, -2))


def _drawn_images(case: Case, generator: Generator) -> Held:
    """Seeds of detectors of all categories, and the test images of categories that stay the same."""
    label = np.arange(case.num_images) >= case.num_images // 2
    merits = _fixed_merits(case)
    of_images = generator.normal(size=(len(merits), case.num_images))
    sides = []
    for _ in range(2):
        luck = SEED_SPREAD.get(case.seeds_vary, 0) * _unit(case.values, generator, case.num_seeds)
        samples: dict[str, list[Sample]] = {"image_auroc": [], "image_f1_max": []}
        for merit, own in zip(merits, of_images, strict=True):
            noise = generator.normal(size=(case.num_seeds, case.num_images))
            scores = np.sqrt(0.5) * (own + noise) + (merit + luck)[:, None] * label
            effects = [image_effects(one, label) for one in scores]
            for metric, found in samples.items():
                values = np.array([one[metric].value for one in effects])
                moved = np.stack([one[metric].of_image for one in effects])
                names = tuple(map(str, range(case.num_seeds)))
                found.append(Sample(detectors=names, values=values, effects=moved, label=label))
        sides.append(samples)
    auroc, f1_max = (estimates.mean_over_images(sides[0][m]) for m in ("image_auroc", "image_f1_max"))
    difference = estimates.difference_over_images(*(side["image_auroc"] for side in sides))
    truth = _truth_over_images(case.values, SEED_SPREAD.get(case.seeds_vary, 0), tuple(merits))
    return Held(
        mean=_holds(auroc and auroc.interval_of_share, truth[0]),
        mean_f1_max=_holds(f1_max and f1_max.interval_of_share, truth[1]),
        difference=_holds(difference and difference.interval, 0),
    )


def _fixed_merits(case: Case) -> Array:
    around = np.linspace(-HARDER, HARDER, case.num_categories) if case.num_categories > 1 else np.zeros(1)
    return MERIT[case.values] + around


@cache
def _truth_over_images(values: str, spread: float, merits: tuple[float, ...]) -> tuple[float, float]:
    """Image AUROC and F1-max of infinitely many seeds and images, half of them defective."""
    luck = spread * _unit(values, np.random.default_rng(1), 200_000)
    grid = np.linspace(-4, 8, 601)
    threshold = np.linspace(-8, 14, 4401)
    hits, alarms = norm.sf(threshold[:, None] - grid), norm.sf(threshold)[:, None]
    f1_max = np.max(2 * hits / (hits + alarms + 1), axis=0)
    of_all = np.concatenate([merit + luck for merit in merits])
    return float(norm.cdf(of_all / np.sqrt(2)).mean()), float(np.interp(of_all, grid, f1_max).mean())


def main() -> None:
    """Print the table, and write it where --write asks for it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=2000)
    options.add_argument("--write", action="store_true")
    asked = options.parse_args()
    lines = []
    for case in cases():
        lines.append(asdict(case) | coverage(case, asked.repeats))
        print(*lines[-1].values(), flush=True)
    if asked.write:
        pd.DataFrame(lines).round(3).to_csv(TABLE, index=False, lineterminator="\n")
        embed(Path(__file__).parents[2] / "docs/reports.md", coverage_tables())


if __name__ == "__main__":
    main()
