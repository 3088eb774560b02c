"""Compare what lies on disk with what was published, category by category, and name what is wrong."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdbench.data.fingerprint import fingerprint
from kdbench.data.store import decode, marks_nothing, read_mask
from kdbench.dataset import Category, Dataset, Sample
from kdbench.errors import DataError, reason

# Told the category and how many of how many of its files are done.
Progress = Callable[[str, int, int], None]

PARTS = ("train", "normal test", "defective test")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many images a category has, and how many of the defective ones have a mask."""

    train: int
    normal: int
    defective: int
    masks: int


@dataclass(frozen=True, kw_only=True)
class CategoryCheck:
    """What was found of one category; `found` is None if it cannot be listed."""

    category: str
    present: bool
    found: Counts | None
    published: tuple[int, int, int] | None  # train, normal test, defective test
    problems: tuple[str, ...]
    num_empty_masks: int | None = None  # only known after a deep check

    @property
    def good(self) -> bool:
        return not self.problems


def check(
    dataset: Dataset, root: Path, *, deep: bool = False, on_progress: Progress | None = None
) -> list[CategoryCheck]:
    """Every category of the dataset, there or not; `deep` also decodes every image and every mask.

    DataError only if there is nothing to check: everything else is a problem of its category.
    """
    categories = dataset.all_categories(root)
    if not categories:
        raise DataError(f"{dataset.name}: {root} has no categories. Is it the folder that holds them?")
    present = dataset.present(root)
    tell = on_progress or (lambda category, done, total: None)
    return [_check(dataset, root, category, category in present, deep, tell) for category in categories]


def _check(
    dataset: Dataset, root: Path, name: str, present: bool, deep: bool, tell: Progress
) -> CategoryCheck:
    published = dataset.counts.get(name)
    if not present:
        problem = f"{name} is not in {root}"
        return CategoryCheck(
            category=name, present=False, found=None, published=published, problems=(problem,)
        )
    try:
        category = dataset.scan(root, name)
    except (DataError, OSError) as error:
        return CategoryCheck(
            category=name, present=True, found=None, published=published, problems=(_text(error),)
        )
    found = Counts(
        train=len(category.train),
        normal=sum(not sample.label for sample in category.test),
        defective=sum(sample.label for sample in category.test),
        masks=sum(sample.mask is not None for sample in category.test),
    )
    problems = _differences(dataset, name, found)
    empty = None
    if deep:
        worse, empty = _decoded(dataset, category, tell)
        problems += worse
    return CategoryCheck(
        category=name,
        present=True,
        found=found,
        published=published,
        problems=tuple(problems),
        num_empty_masks=empty,
    )


def _differences(dataset: Dataset, name: str, found: Counts) -> list[str]:
    problems = []
    if name in dataset.counts:
        there = (found.train, found.normal, found.defective)
        pairs = list(zip(PARTS, there, dataset.counts[name], strict=True))
    else:  # published without a split
        totals = dataset.totals.get(name, ())
        pairs = list(
            zip(("normal", "defective"), (found.train + found.normal, found.defective), totals, strict=False)
        )
    for part, have, published in pairs:
        if have != published:
            differ = f"{published - have} missing" if have < published else f"{have - published} too many"
            problems.append(f"{name}: {have} {part} images, published are {published}: {differ}")
    return problems


def _decoded(dataset: Dataset, category: Category, tell: Progress) -> tuple[list[str], int]:
    """What is wrong with the content of the category's files, and how many masks mark nothing."""
    samples = [Sample(path=path, label=False, defect="good") for path in category.train]
    samples += category.test
    problems: list[str] = []
    num_empty = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looks = pool.map(lambda sample: _look(dataset, sample), samples)
        for done, (problem, empty) in enumerate(looks, 1):
            problems += [problem] if problem else []
            num_empty += empty
            tell(category.name, done, len(samples))
    try:
        fingerprint(dataset, category)  # DataError for a test image that is also in train
    except (DataError, OSError) as error:
        problems.append(_text(error))
    return problems, num_empty


def _look(dataset: Dataset, sample: Sample) -> tuple[str, bool]:
    """What is wrong with an image or its mask, "" if nothing; and whether the mask marks nothing."""
    try:
        decode(sample.path, 8)
        filled = sample.mask is None or bool(read_mask(dataset, sample).any())
    except (DataError, OSError) as error:
        return _text(error), False
    return "" if filled or dataset.empty_masks else marks_nothing(sample), not filled


def _text(error: DataError | OSError) -> str:
    return f"{error.filename}: {reason(error)}" if isinstance(error, OSError) else str(error)
