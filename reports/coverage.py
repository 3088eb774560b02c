"""How often the intervals of a report contain the true value: tests/benchmarks/coverage.py simulated it."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from kdbench.reports.entries import Entry
from kdbench.reports.estimates import MIN_CATEGORIES
from kdbench.reports.tables import HOLE, Table, text

SIMULATED = "Simulated coverage of these intervals"
TABLE = Path(__file__).with_name("coverage.csv")


@cache
def _simulated() -> pd.DataFrame:
    return pd.read_csv(TABLE)


def covered(over: str, quantity: str, *, num_seeds: int, num_categories: int | None = None) -> str:
    """The coverage of intervals over "categories" or "images" in words, from a column of the table.

    It is that of the simulated cases with as many seeds and categories, or with the next fewer.
    """
    cases = _simulated()
    cases = cases[cases["over"] == over]
    cases = cases[cases["num_seeds"] == _at_most(cases["num_seeds"], num_seeds)]
    if num_categories is not None:
        cases = cases[cases["num_categories"] == _at_most(cases["num_categories"], num_categories)]
    normal, skewed = (_range(cases.loc[cases["values"] == shape, quantity]) for shape in ("normal", "skewed"))
    return f"{normal} for normal values, {skewed} for skewed ones"


def _at_most(simulated: pd.Series, count: int) -> int:
    return int(simulated[simulated <= max(count, simulated.min())].max())


def _range(shares: pd.Series) -> str:
    low, high = (round(100 * share) for share in (shares.min(), shares.max()))
    return f"{low} %" if low == high else f"{low} to {high} %"


def covered_means(found: Sequence[Entry], *, over_categories: bool) -> str:
    """The coverage of intervals of means of these entries, over images and, if asked, over categories."""
    seeds, categories = min(len(entry.seeds) for entry in found), len(found[0].dataset_categories)
    parts = []
    if over_categories and categories >= MIN_CATEGORIES:
        own = covered("categories", "mean", num_seeds=_shared_seeds(found), num_categories=categories)
        parts.append(f"over categories {own}")
    parts.append(f"over images {covered('images', 'mean', num_seeds=seeds)}")
    parts.append(f"I-F1 over images {covered('images', 'mean_f1_max', num_seeds=seeds)}")
    return f"{SIMULATED}: {'; '.join(parts)}."


def covered_differences(found: Sequence[Entry], *, over_images: bool = False, num_categories: int = 0) -> str:
    """The coverage of intervals of differences of these entries, over images, so many categories, or both."""
    parts = []
    if over_images:
        seeds = min(len(entry.seeds) for entry in found)
        parts.append(f"over images {covered('images', 'difference', num_seeds=seeds)}")
    if num_categories >= MIN_CATEGORIES:
        seeds = _shared_seeds(found)
        own = covered("categories", "difference", num_seeds=seeds, num_categories=num_categories)
        parts.append(f"over categories {own}")
    return f"{SIMULATED}: {'; '.join(parts)}."


def covered_changes(num_seeds: int, num_categories: int) -> str:
    """The coverage of intervals of a change over so many categories, with seeds of shared detectors."""
    own = covered("categories", "difference", num_seeds=num_seeds, num_categories=num_categories)
    return f"{SIMULATED}: over categories {own}."


def _shared_seeds(found: Sequence[Entry]) -> int:
    """The smallest number of seeds of an entry whose detectors serve several categories; 1 without such."""
    return min((len(entry.seeds) for entry in found if entry.shared), default=1)


def coverage_tables() -> list[Table]:
    """All simulated cases, a column per number of categories, or of test images."""
    return [
        _wide("categories", ["values", "images", "seeds"], "num_categories", ["mean", "difference"]),
        _wide(
            "images",
            ["values", "categories", "seeds", "seeds vary"],
            "num_images",
            ["mean", "mean_f1_max", "difference"],
        ),
    ]


def _wide(over: str, keys: Sequence[str], across: str, quantities: Sequence[str]) -> Table:
    cases = _simulated()
    cases = cases[cases["over"] == over].rename(
        columns=lambda name: str(name).replace("seeds_vary", "seeds vary")
    )
    cases = cases.rename(columns={f"num_{key}": key for key in keys})
    counts = sorted(cases[across].unique())
    body = []
    for key, lines in cases.groupby(list(keys), sort=False):
        by_count = lines.set_index(across)
        shares = (
            " / ".join(f"{100 * by_count.loc[count, one]:.1f}" for one in quantities)
            if count in by_count.index
            else HOLE
            for count in counts
        )
        body.append((*map(text, key), *map(text, shares)))
    unit = across.removeprefix("num_")
    return Table(
        title=f"Coverage of 95 % intervals over {over}",
        head=(*keys, *(f"{count} {unit}" for count in counts)),
        body=tuple(body),
        keys=tuple(keys),
    )
