"""What test images and seeds say of means and differences, drawn once per entry and kept."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.reports import statistics
from kdbench.reports.entries import Entry
from kdbench.reports.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a difference is significant, and over what it was tested; "" if nothing could test it."""

    significant: bool
    over: str


@dataclass(frozen=True, kw_only=True)
class ImageDraws:
    """Bootstrap draws [B] of image metrics over test images; pairs with draws over the same images."""

    metrics: dict[str, NDArray[np.float64]]
    images: int  # checksum of their names and labels


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A difference over drawn test images and seeds."""

    within: Interval
    p: float


def drawn_difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> Drawn:
    """What draws [B] of both sides over the same images say of their difference a - b."""
    return Drawn(within=statistics.interval(a - b), p=statistics.bootstrap_p(a - b))


class Evidence:
    """Intervals and tests of entries; the draws over images are computed once and kept."""

    def __init__(self, scores: pd.DataFrame) -> None:
        self._scores = _by_row(scores)
        self._rows: dict[tuple[str, str], ImageDraws | None] = {}
        self._entries: dict[tuple[Entry, tuple[str, ...]], ImageDraws | None] = {}
        self._best: dict[tuple[tuple[Entry, ...], str], str] = {}
        self._counts = cache(_counts)

    def over_categories(self, entry: Entry, metric: str) -> Interval | None:
        """Interval of the dataset's mean over drawn categories; None for a hole or too few categories."""
        values = entry.by_category[metric].to_numpy()
        if entry.means[metric] is None or len(values) < statistics.MIN_CATEGORIES:
            return None
        return statistics.interval(statistics.category_draws(values))

    def over_images(
        self, entry: Entry, metric: str, categories: Sequence[str] | None = None
    ) -> Interval | None:
        """Interval of a mean over drawn test images and seeds; None where scores are missing.

        Without `categories` it is the dataset's mean, and None where that has a hole.
        """
        if categories is None and entry.means.get(metric) is None:
            return None
        draws = self.within(entry, entry.dataset_categories if categories is None else categories)
        # Far from the mean of the seeds a draw may be beyond what the metric can be.
        return statistics.interval(draws.metrics[metric].clip(0, 1)) if draws else None

    def difference_over_images(
        self, a: Entry, b: Entry, metric: str, categories: Sequence[str]
    ) -> Drawn | None:
        """What mean a - mean b of these categories is over the same drawn test images, and over seeds.

        None for a metric that is not computed from image scores, and where scores are missing.
        """
        if metric not in statistics.DRAWN_METRICS:
            return None
        ours, theirs = self.within(a, categories), self.within(b, categories)
        if not (ours and theirs and ours.images == theirs.images):
            return None
        return drawn_difference(ours.metrics[metric], theirs.metrics[metric])

    def same_images(self, a: Entry, b: Entry, categories: Sequence[str]) -> bool | None:
        """Whether both scored the same images, by name and label; None where scores are missing."""
        ours, theirs = self.within(a, categories), self.within(b, categories)
        return ours.images == theirs.images if ours and theirs else None

    def verdict(self, better: Entry, other: Entry, metric: str) -> Verdict:
        """Whether the better of two comparable entries is significantly better; LEGEND says by what test."""
        for over, values in (("categories", "by_category"), ("seeds", "by_seed")):
            pair = [getattr(entry, values)[metric] for entry in (better, other)]
            differences = (pair[0] - pair[1]).dropna().to_numpy()
            if len(differences) >= statistics.MIN_PAIRS:
                sure = statistics.signed_rank(differences) < statistics.ALPHA
                return Verdict(significant=sure and not statistics.contradicts(differences), over=over)
        if difference := self.difference_over_images(better, other, metric, better.dataset_categories):
            return Verdict(significant=difference.p < statistics.ALPHA, over="images")
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

    def category_draws(
        self, rows: pd.DataFrame, weights: NDArray[np.float64] | None = None
    ) -> ImageDraws | None:
        """Draws of one category, mean of its rows or sum by `weights` [B,rows]; None if one has no score."""
        names = zip(rows["cell_id"], rows["category"], rows["dataset"], strict=True)
        drawn = [self._of_row(*name) for name in names]
        return _mean([one for one in drawn if one], len(rows), weights)

    def within(self, entry: Entry, categories: Sequence[str]) -> ImageDraws | None:
        """Draws of test images and of seeds, mean over these categories; None where a score is missing.

        A multiclass detector is drawn for all of its categories at once, those of oneclass each for its own.
        """
        key = (entry, tuple(categories))
        if key not in self._entries:
            rows = entry.ok[entry.ok["category"].isin(categories)].sort_values("cell_id")
            drawn = [
                self.category_draws(part, statistics.seed_weights(tuple(part["cell_id"])))
                for _, part in rows.groupby("category")
            ]
            known = [one for one in drawn if one]
            self._entries[key] = _mean(known, len(categories), same_images=False)
        return self._entries[key]

    def _of_row(self, cell_id: str, category: str, dataset: str) -> ImageDraws | None:
        key = (cell_id, category)
        if key not in self._rows:
            self._rows[key] = self._draw(self._scores.get(key), f"{dataset}/{category}")
        return self._rows[key]

    def _draw(self, scores: "Scores | None", name: str) -> ImageDraws | None:
        if scores is None or np.isnan(scores.score).any() or scores.label.all() or not scores.label.any():
            return None
        counts = self._counts(scores.label.tobytes(), name)
        metrics = statistics.image_metric_draws(scores.score, scores.label, counts)
        return ImageDraws(metrics=metrics, images=scores.images)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The test images of one row, in the order of their names."""

    score: NDArray[np.float64]  # [n]
    label: NDArray[np.bool_]  # [n]
    images: int  # checksum of their names and labels


def _by_row(scores: pd.DataFrame) -> dict[tuple[str, str], Scores]:
    """Scores by (cell id, category), taken apart at once: a part of a frame costs more than its draws."""
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


def _counts(label: bytes, name: str) -> NDArray[np.float32]:
    return statistics.image_counts(np.frombuffer(label, bool), name)


def _mean(
    drawn: Sequence[ImageDraws],
    expected: int,
    weights: NDArray[np.float64] | None = None,
    *,
    same_images: bool = True,
) -> ImageDraws | None:
    """Mean of draws, or their sum by `weights` [B,drawn].

    None where some are missing, or are over other images although they should not be.
    """
    images = [one.images for one in drawn]
    if not drawn or len(drawn) < expected or (same_images and len(set(images)) > 1):
        return None
    shares = np.full((1, len(drawn)), 1 / len(drawn)) if weights is None else weights
    metrics = {
        name: (shares * np.stack([one.metrics[name] for one in drawn], axis=1)).sum(1)
        for name in statistics.DRAWN_METRICS
    }
    return ImageDraws(metrics=metrics, images=images[0] if same_images else zlib.crc32(repr(images).encode()))
