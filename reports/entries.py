"""Entries: the lines of a section, their means over categories and seeds, and whether they can be ranked."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.errors import number_of
from kdbench.metrics.exact import DEFINITIONS, MAIN_METRICS, METRICS
from kdbench.metrics.legacy import LEGACY_METRICS
from kdbench.reports.rows import holes, several_draws
from kdbench.reports.tables import Value, hole, percent

COLUMNS = (*MAIN_METRICS, "mad")
FURTHER = tuple(name for name in METRICS if name not in MAIN_METRICS)  # in a table of their own
# The legacy metrics stand beside published numbers only: each belongs to the preset of one code.
KNOWN = (*COLUMNS, *FURTHER, *LEGACY_METRICS)
TITLES = {metric.name: metric.title for metric in DEFINITIONS} | {"mad": "mAD"}
MARK = " †"
MARKED = "†: over categories that give their labels away; a table of the dataset's section lists these."
MAIN = ("image_auroc", "pixel_auroc", "aupro", "mad")  # shown where there is no room for all metrics


class Mean(NamedTuple):
    """A mean over categories and seeds, with its deviation over the seeds (NaN for one seed)."""

    mean: float
    std: float
    flagged: bool = False  # whether it contains a category that gives its labels away


# The columns that the tables read, out of eighty: each column makes a selection of rows slower.
KEPT = [
    *("cell_id", "recipe", "dataset", "category", "dataset_categories", "texture", "seed", "status", "error"),
    *("other_images", "flagged", "categories", "num_steps", "outside_sha256", "num_test", "num_defective"),
    *KNOWN,
    *("num_parameters", "num_trained_parameters", "flops", "train_s", "peak_memory_bytes", "place"),
]

Means = dict[str, Mean | None]  # by metric; None is a hole


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How the detectors were trained, in words; "" means unknown."""

    backbone: str
    image_size: str  # pixels of a side
    epochs: str
    batch_size: str
    precision: str
    num_steps: str  # of the optimizer, "121 to 126" where the cells differ
    trained_on: str  # "3 of 15": categories of one detector

    @property
    def short(self) -> str:
        """The part of the recipe that readers compare with a published one, in half a line."""
        parts = (
            self.backbone,
            self.image_size and f"{self.image_size} px",
            self.epochs and f"{self.epochs} epochs",
            f"{self.trained_on} categories",
        )
        return ", ".join(one for one in parts if one)


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One line of a section: a method with one recipe."""

    name: str
    method: str
    rows: pd.DataFrame
    means: Means  # over all categories of the dataset, or holes
    seeds: tuple[int, ...]
    holes: tuple[str, ...]  # the rows that the dataset's mean lacks, in words
    unlike: tuple[str, ...]  # why its means are not comparable with others: "1 of 3 seeds", "other images"
    oracle: bool  # selected on test images

    @property
    def comparable(self) -> bool:
        """Whether its means are over the same categories and seeds as those of others; if not, no rank."""
        return not (self.holes or self.unlike or self.oracle)

    @property
    def outside(self) -> bool:
        """Whether another program made its maps and scores."""
        return bool(self.rows["outside_sha256"].notna().any())

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks that a reader must know before using the means."""
        return self.holes + self.unlike

    @property
    def dataset_categories(self) -> list[str]:
        """All categories that the dataset has, run or not."""
        return list(self.rows["dataset_categories"].iloc[0])

    @cached_property
    def cell_ids(self) -> tuple[str, ...]:
        """The cells behind its rows, each once."""
        return tuple(dict.fromkeys(self.rows["cell_id"]))

    @property
    def recipe(self) -> str:
        """Configuration, teacher and training categories of its first cell, as JSON."""
        return str(self.rows["recipe"].iloc[0])

    @cached_property
    def conditions(self) -> "Conditions":
        """How its detectors were trained, as its rows say."""
        recipe = json.loads(self.recipe)
        values = [str(recipe.get(key, "")) for key in ("backbone", "image_size", "epochs", "batch_size")]
        trained = sorted({len(own) for own in self.rows["categories"]})
        return Conditions(
            backbone=values[0],
            image_size=values[1],
            epochs=values[2],
            batch_size=values[3],
            precision=str(recipe.get("precision", "")),
            num_steps=_range(self.rows["num_steps"].dropna().astype(int).unique()),
            trained_on=f"{_range(trained)} of {len(self.dataset_categories)}",
        )

    @cached_property
    def ok(self) -> pd.DataFrame:
        """The rows that succeeded."""
        return self.rows[self.rows["status"] == "ok"]

    @cached_property
    def by_category(self) -> pd.DataFrame:
        """Means over the seeds that succeeded: a line per category, a column per metric."""
        return self.ok.groupby("category")[[*KNOWN]].mean()

    @cached_property
    def by_seed(self) -> pd.DataFrame:
        """Means over the categories that succeeded: a line per seed, a column per metric."""
        return self.ok.groupby("seed")[[*KNOWN]].mean()

    @cached_property
    def shared(self) -> bool:
        """Whether a seed's detector is one for several categories, as in multiclass."""
        return bool((self.ok.groupby("cell_id")["category"].nunique() > 1).any())

    def by_seed_and_category(self, metric: str, categories: Sequence[str]) -> NDArray[np.float64]:
        """Values [S,C] of these categories, all of which succeeded; NaN where a seed lacks one."""
        return self._values[metric][[*categories]].to_numpy(float)

    @cached_property
    def _values(self) -> pd.DataFrame:
        return self.ok.groupby(["seed", "category"])[[*KNOWN]].mean().unstack()

    @cached_property
    def by_category_std(self) -> pd.DataFrame:
        """Deviations over the seeds that succeeded, as `by_category`."""
        return self.ok.groupby("category")[[*KNOWN]].std(ddof=1)

    @cached_property
    def ends(self) -> dict[str, list[tuple[str, str]]]:
        """Category -> (cell id, status) of its rows."""
        found: dict[str, list[tuple[str, str]]] = {}
        columns = (self.rows["category"], self.rows["cell_id"], self.rows["status"])
        for category, cell_id, status in zip(*columns, strict=True):
            found.setdefault(category, []).append((cell_id, status))
        return found

    def of_category(self, category: str, metric: str) -> Value:
        """Mean and deviation over the seeds of one category, with the statuses that are not ok."""
        ends = self.ends.get(category, [])
        bad = ", ".join(sorted({status for _, status in ends} - {"ok"}))
        mean = self.by_category[metric].get(category, math.nan)
        if math.isnan(mean):
            return hole(bad, [cell_id for cell_id, _ in ends])
        ids = [cell_id for cell_id, status in ends if status == "ok"]
        return percent(mean, self.by_category_std[metric][category], cell_ids=ids, why=bad)


def entries(rows: pd.DataFrame) -> list[Entry]:
    """The entries of one section: comparable ones by falling mAD, then the others by name."""
    most = int(rows.groupby("entry")["seed"].nunique().max())
    found = [_entry(str(name), group, most) for name, group in rows.groupby("entry")]
    metric = ranked_by(found)
    merit = {entry.name: mean.mean if (mean := entry.means[metric]) else float("-inf") for entry in found}
    return sorted(found, key=lambda e: (not e.comparable, -merit[e.name] if e.comparable else 0.0, e.name))


def ranked_by(found: Sequence[Entry]) -> str:
    """The metric that ranks: mAD, or image AUROC if no entry has mAD because masks are missing."""
    has = {metric: any(entry.means[metric] for entry in found) for metric in ("mad", "image_auroc")}
    return "image_auroc" if has["image_auroc"] and not has["mad"] else "mad"


def why_ranked_by(found: Sequence[Entry]) -> str:
    """Why the entries are not ranked by mAD; "" if they are."""
    if (metric := ranked_by(found)) == "mad":
        return ""
    some = any(entry.rows["mad"].notna().any() for entry in found)
    why = "not all categories have masks" if some else "there are no masks"
    return f"Ranked by {TITLES[metric]}: {why}."


def ranks(found: Sequence[Entry], metric: str) -> dict[str, int]:
    """Entry name -> rank among the comparable ones; equal means share the better rank."""
    # Rounded: the mean of the same seeds in another order is equal, but not in the last bit of float64.
    merits = {
        entry.name: round(mean.mean, 12)
        for entry in found
        if entry.comparable and (mean := entry.means[metric])
    }
    return {name: 1 + sum(other > merit for other in merits.values()) for name, merit in merits.items()}


def means(rows: pd.DataFrame) -> Means:
    """Mean over the categories, then mean and deviation over the seeds; None if one value is missing."""
    ok = rows[rows["status"] == "ok"]
    by_seed = ok.groupby("seed")[[*KNOWN]].mean()
    complete, flagged = ok[[*KNOWN]].notna().all(), bool(ok["flagged"].any())
    return {
        metric: Mean(float(by_seed[metric].mean()), float(by_seed[metric].std(ddof=1)), flagged)
        if len(ok) and complete[metric]
        else None
        for metric in KNOWN
    }


def common_categories(found: Sequence[Entry]) -> list[str]:
    """The categories that succeeded on the same images for every seed of every entry."""
    common: list[str] = []
    changed = {name for entry in found for name in entry.rows.loc[entry.rows["other_images"], "category"]}
    for category in (name for name in found[0].dataset_categories if name not in changed):
        ends = [[status for _, status in entry.ends.get(category, [])] for entry in found]
        if all(own == ["ok"] * len(entry.seeds) for own, entry in zip(ends, found, strict=True)):
            common.append(category)
    return common


def draws(found: Iterable[Entry]) -> tuple[str, ...]:
    """The note on rows of several devices or numbers of threads, where these entries have some."""
    return several_draws(place for entry in found if not entry.outside for place in entry.ok["place"])


def shown(mean: Mean | None, cell_ids: Sequence[str] = ()) -> Value:
    """A mean as a body cell; a hole for None."""
    return hole(cell_ids=cell_ids) if mean is None else percent_of(mean, cell_ids)


def percent_of(
    mean: Mean, cell_ids: Sequence[str] = (), bounds: tuple[float | None, float | None] = (None, None)
) -> Value:
    """A mean as a body cell, marked if it contains a category that gives its labels away."""
    value = percent(mean.mean, mean.std, cell_ids=cell_ids, bounds=bounds)
    return replace(value, text=value.text + MARK) if mean.flagged else value


def marked_note(body: Iterable[Sequence[Value]]) -> tuple[str, ...]:
    """The note on the mark, if a cell of the body has it."""
    return (MARKED,) if any(MARK in value.text for line in body for value in line) else ()


def _entry(name: str, rows: pd.DataFrame, num_seeds: int) -> Entry:
    missing, own = holes(rows), sorted(int(seed) for seed in rows["seed"].unique())
    return Entry(
        name=name,
        method=str(rows["method"].iloc[0]),
        rows=rows[KEPT],
        means=dict.fromkeys(KNOWN) if missing else means(rows),
        seeds=tuple(own),
        holes=missing,
        unlike=tuple(_unlike(rows, len(own), num_seeds)),
        oracle=bool(rows["oracle"].iloc[0]),
    )


def _range(numbers: Iterable[int]) -> str:
    """The lowest and the highest, or the only one; "" if there is none."""
    found = sorted(numbers)
    return " to ".join(str(one) for one in dict.fromkeys((found[0], found[-1]))) if found else ""


def _unlike(rows: pd.DataFrame, num_seeds: int, most: int) -> Iterator[str]:
    if num_seeds < most:
        yield f"{num_seeds} of {number_of(most, 'seed')}"
    if rows["other_images"].any():
        yield "other images"
