"""Intervals and tests of entries over categories, test images and seeds, each computed once and kept."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.reports import estimates, statistics
from kdbench.reports.entries import Entry
from kdbench.reports.estimates import Estimate, Interval, Sample
from kdbench.reports.leave_one_out import IMAGE_METRICS, Effects, image_effects


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a difference is significant, and over what it was tested; "" if nothing could test it."""

    significant: bool
    over: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """The image metrics of one category by detectors on the same test images."""

    samples: dict[str, Sample]  # by metric
    images: int  # checksum of their names and labels


def difference_over_categories(a: Entry, b: Entry, metric: str, categories: Sequence[str]) -> Estimate | None:
    """Mean a - mean b over these categories, which both have for all seeds; None for too few categories."""
    if len(categories) < estimates.MIN_CATEGORIES:
        return None
    ours, theirs = (entry.by_seed_and_category(metric, categories) for entry in (a, b))
    return estimates.difference_over_categories(ours, theirs, shared=(a.shared, b.shared))


class Evidence:
    """Intervals and tests of entries; those over test images are computed once and kept."""

    def __init__(self, scores: pd.DataFrame) -> None:
        self._scores = _by_row(scores)
        self._rows: dict[tuple[str, str], dict[str, Effects] | None] = {}
        self._entries: dict[tuple[Entry, tuple[str, ...]], list[Judged] | None] = {}
        self._best: dict[tuple[tuple[Entry, ...], str], str] = {}

    def over_categories(self, entry: Entry, metric: str) -> Interval | None:
        """Interval of the dataset's mean over its categories; None for a hole or too few categories."""
        categories = entry.dataset_categories
        if entry.means[metric] is None or len(categories) < estimates.MIN_CATEGORIES:
            return None
        values = entry.by_seed_and_category(metric, categories)
        found = estimates.mean_over_categories(values, shared=entry.shared)
        return found.interval_of_share if found else None

    def over_images(
        self, entry: Entry, metric: str, categories: Sequence[str] | None = None
    ) -> Interval | None:
        """Interval of a mean over test images and seeds; None where scores are missing.

        Without `categories` it is the dataset's mean, and None where that has a hole.
        """
        if categories is None and entry.means.get(metric) is None:
            return None
        judged = self._judged(entry, entry.dataset_categories if categories is None else categories)
        found = estimates.mean_over_images([one.samples[metric] for one in judged]) if judged else None
        return found.interval_of_share if found else None

    def difference_over_images(
        self, a: Entry, b: Entry, metric: str, categories: Sequence[str]
    ) -> Estimate | None:
        """Mean a - mean b of these categories over the same test images, and over seeds.

        None for a metric that is not computed from image scores, and where scores are missing.
        """
        if metric not in IMAGE_METRICS or not self.same_images(a, b, categories):
            return None
        sides = [self._judged(entry, categories) or [] for entry in (a, b)]
        ours, theirs = ([one.samples[metric] for one in side] for side in sides)
        return estimates.difference_over_images(ours, theirs)

    def difference(self, a: Entry, b: Entry, metric: str, categories: Sequence[str]) -> Estimate | None:
        """Mean a - mean b over the categories; with too few of them over the test images, if possible."""
        if len(categories) >= statistics.MIN_PAIRS:
            return difference_over_categories(a, b, metric, categories)
        over_images = self.difference_over_images(a, b, metric, categories)
        return over_images or difference_over_categories(a, b, metric, categories)

    def same_images(self, a: Entry, b: Entry, categories: Sequence[str]) -> bool | None:
        """Whether both scored the same images, by name and label; None where scores are missing."""
        ours, theirs = (self._judged(entry, categories) for entry in (a, b))
        if ours is None or theirs is None:
            return None
        return [one.images for one in ours] == [one.images for one in theirs]

    def verdict(self, better: Entry, other: Entry, metric: str) -> Verdict:
        """Whether the better of two comparable entries is significantly better; LEGEND says by what test."""
        categories = better.dataset_categories
        if len(categories) >= statistics.MIN_PAIRS:
            found = difference_over_categories(better, other, metric, categories)
            return Verdict(significant=found is not None and found.p < estimates.ALPHA, over="categories")
        by_seed = (better.by_seed[metric] - other.by_seed[metric]).dropna().to_numpy()
        if len(by_seed) >= statistics.MIN_PAIRS:
            sure = statistics.signed_rank(by_seed) < estimates.ALPHA
            return Verdict(significant=sure and not statistics.contradicts(by_seed), over="seeds")
        if found := self.difference_over_images(better, other, metric, categories):
            return Verdict(significant=found.p < estimates.ALPHA, over="images")
        return Verdict(significant=False, over="")

    def best(self, found: Sequence[Entry], metric: str) -> str:
        """The name of the comparable entry that is significantly better than the next; "" if none is."""
        key = (tuple(found), metric)
        if key not in self._best:
            means = {
                entry: mean.mean for entry in found if entry.comparable and (mean := entry.means[metric])
            }
            first, second, *_ = (*sorted(means, key=lambda entry: -means[entry]), None, None)
            ahead = first and second and means[first] > means[second]
            sure = ahead and self.verdict(first, second, metric).significant
            self._best[key] = first.name if sure else ""
        return self._best[key]

    def of_category(self, rows: pd.DataFrame) -> Judged | None:
        """The detectors of these rows of one category; None where a score is missing or images differ."""
        names = list(zip(rows["cell_id"], rows["category"], strict=True))
        found = [effects for name in names if (effects := self._of_row(*name))]
        if len(found) < len(names) or len({self._scores[name].images for name in names}) != 1:
            return None
        scores = self._scores[names[0]]
        samples = {
            metric: Sample(
                detectors=tuple(rows["cell_id"]),
                values=np.array([effects[metric].value for effects in found]),
                effects=np.stack([effects[metric].of_image for effects in found]),
                label=scores.label,
            )
            for metric in IMAGE_METRICS
        }
        return Judged(samples=samples, images=scores.images)

    def _judged(self, entry: Entry, categories: Sequence[str]) -> list[Judged] | None:
        """All of these categories in the order of their names; None where a score of one is missing."""
        key = (entry, tuple(categories))
        if key not in self._entries:
            rows = entry.ok[entry.ok["category"].isin(categories)].sort_values("cell_id")
            judged = [self.of_category(part) for _, part in rows.groupby("category")]
            known = [one for one in judged if one]
            self._entries[key] = known if known and len(known) == len(categories) else None
        return self._entries[key]

    def _of_row(self, cell_id: str, category: str) -> dict[str, Effects] | None:
        key = (cell_id, category)
        if key not in self._rows:
            scores = self._scores.get(key)
            self._rows[key] = image_effects(scores.score, scores.label) if scores and scores.usable else None
        return self._rows[key]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The test images of one row, in the order of their names."""

    score: NDArray[np.float64]  # [n]
    label: NDArray[np.bool_]  # [n]
    images: int  # checksum of their names and labels

    @property
    def usable(self) -> bool:
        """Whether all images have a score, and at least two each are normal and defective."""
        defective = int(np.count_nonzero(self.label))
        return min(defective, len(self.label) - defective) >= 2 and not bool(np.isnan(self.score).any())


def _by_row(scores: pd.DataFrame) -> dict[tuple[str, str], Scores]:
    """Scores by (cell id, category), split once: selecting rows takes longer than their metrics."""
    if scores.empty:
        return {}
    ordered = scores.sort_values(["cell_id", "category", "image"], kind="stable", ignore_index=True)
    keys = ordered[["cell_id", "category"]]
    first = np.flatnonzero((keys != keys.shift()).any(axis=1).to_numpy())
    checksums = pd.util.hash_pandas_object(ordered[["image", "label"]], index=False).to_numpy()
    columns = (ordered["image_score"].to_numpy(float), ordered["label"].to_numpy(bool), checksums)
    parts = zip(*(np.split(column, first[1:]) for column in columns), strict=True)
    names = keys.iloc[first].itertuples(index=False, name=None)
    return {
        name: Scores(score=score, label=label, images=zlib.crc32(checksum.tobytes()))
        for name, (score, label, checksum) in zip(names, parts, strict=True)
    }
