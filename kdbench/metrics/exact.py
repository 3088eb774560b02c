"""Exact rank metrics of one category: every distinct score is a threshold, larger is more anomalous.

AUROC counts a tie as one half; AP is the step-wise sum, as in scikit-learn, and not the trapezoid; AUPRO is
that of Bergmann et al., "The MVTec Anomaly Detection Dataset" (IJCV 2021, doi 10.1007/s11263-020-01400-4).
All are fractions. A metric is one entry of DEFINITIONS; everything else follows from it.

Only the scores of defects need a look: between two neighbouring ones neither the recall nor the PRO moves. So
the normal pixels, nearly all there are, are sorted by value only and then searched. That costs a tenth of
sorting all pixels together with their regions. Counts of parts add up: threads share the work, and their
number changes no result.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdbench.metrics.overlap import Overlap

# Part of every cell's id: a new version makes all cells run again, and a report shows old rows in a section
# of their own. Raise it only when a number moves, so that old and new rows cannot be compared: another rule
# for ties or masks, another limit, a metric that joins or leaves mAD. A new metric moves no number and leaves
# the version as it is: old rows have no value of it, and a report shows a hole beside the metrics they have.
METRIC_VERSION = 1
PRO_LIMIT, PRO_LIMIT_05 = 0.3, 0.05  # false positive rates up to which `aupro` and `aupro_05` integrate
MAX_STEPS = 4  # over normals that tie with a defect, before a search takes over

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Counts at the K distinct scores of defects, from the highest score to the lowest."""

    # Counts are float64: exact up to 2**53, and 2 * num_normal * num_defective cannot overflow.
    num_normal: float
    num_defective: float
    above: NDArray[np.float64]  # [K] normals with a higher score
    at_or_above: NDArray[np.float64]  # [K] normals with this score or a higher one
    hits: NDArray[np.float64]  # [K] defects with this score or a higher one
    pro: NDArray[np.float64]  # [K] the same as a share of each region, mean over the regions; ends at 1

    def auroc(self) -> float:
        """Probability that a defect outranks a normal, a tie counting one half."""
        steps = np.diff(self.hits, prepend=0)
        misranked = np.sum(steps * (self.above + self.at_or_above))
        return float(1 - misranked / (2 * self.num_normal * self.num_defective))

    def ap(self) -> float:
        """Sum over the distinct scores of the step in recall times the precision there."""
        steps = np.diff(self.hits, prepend=0)
        return float(np.sum(steps * self.hits / (self.hits + self.at_or_above)) / self.num_defective)

    def f1_max(self) -> float:
        """Largest 2TP / (2TP + FP + FN) of all thresholds; it lies at the score of a defect."""
        return float(np.max(2 * self.hits / (self.hits + self.at_or_above + self.num_defective)))

    def fpr_at_recall(self, recall: float) -> float:
        """False positive rate at the highest score that finds at least this share of the defects."""
        found = np.flatnonzero(self.hits / self.num_defective >= recall)
        return float(self.at_or_above[found[0]] / self.num_normal)

    def area_under_pro(self, limit: float) -> float:
        """Area under PRO over the false positive rate from 0 to `limit`, as a share of `limit`."""
        if not 0 < limit <= 1:
            raise ValueError(f"limit is {limit}: it is a false positive rate, above 0 and at most 1")
        # Each score gives two points: one just above it, which the curve reaches on a level line, and one at
        # it. Normals that tie with the defects lie between the two and make that piece slant, as in AUROC.
        # The first score beyond the limit closes the area.
        num = np.searchsorted(self.above / self.num_normal, limit, "right") + 1
        fpr = np.stack([self.above[:num], self.at_or_above[:num]], axis=1).ravel() / self.num_normal
        pro = np.stack([np.append(0, self.pro[:-1])[:num], self.pro[:num]], axis=1).ravel()
        fpr, pro = np.concatenate([[0], fpr, [1]]), np.concatenate([[0], pro, [1]])
        num_within = np.searchsorted(fpr, limit, "right")
        at_limit = np.interp(limit, fpr, pro)  # a point exactly at the limit only adds a piece of width 0
        area = np.trapezoid(np.append(pro[:num_within], at_limit), np.append(fpr[:num_within], limit))
        return float(area / limit)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: a column of every row, a title in every table.

    `compute` takes what `of` names: an `image_curve`, a `pixel_curve`, an `Overlap` or a `saturating_curve`.
    """

    name: str
    title: str
    of: Literal["image", "pixel", "overlap", "saturating"]
    compute: Callable[[Any], float]
    in_mad: bool  # whether it counts in mAD (github.com/zhangzjn/ADer#49)
    main: bool = True  # a column of the ranking; the others have a table of their own, where rows have them


def _aupro(limit: float) -> Callable[[Curve], float]:
    return lambda curve: curve.area_under_pro(limit)


def _fpr_95(curve: Curve) -> float:
    return curve.fpr_at_recall(0.95)


DEFINITIONS = (
    Metric(name="image_auroc", title="I-AUROC", of="image", compute=Curve.auroc, in_mad=True),
    Metric(name="image_ap", title="I-AP", of="image", compute=Curve.ap, in_mad=True),
    Metric(name="image_f1_max", title="I-F1", of="image", compute=Curve.f1_max, in_mad=True),
    Metric(name="pixel_auroc", title="P-AUROC", of="pixel", compute=Curve.auroc, in_mad=True),
    Metric(name="pixel_ap", title="P-AP", of="pixel", compute=Curve.ap, in_mad=True),
    Metric(name="pixel_f1_max", title="P-F1", of="pixel", compute=Curve.f1_max, in_mad=True),
    Metric(name="aupro", title="AUPRO", of="pixel", compute=_aupro(PRO_LIMIT), in_mad=True),
    Metric(name="aupro_05", title="AUPRO 5 %", of="pixel", compute=_aupro(PRO_LIMIT_05), in_mad=False),
    # The lower, the better.
    Metric(name="image_fpr_95", title="I-FPR 95", of="image", compute=_fpr_95, in_mad=False, main=False),
    Metric(name="aupimo", title="AUPIMO", of="overlap", compute=Overlap.aupimo, in_mad=False, main=False),
    Metric(
        name="spro_05",
        title="sPRO 5 %",
        of="saturating",
        compute=_aupro(PRO_LIMIT_05),
        in_mad=False,
        main=False,
    ),
)
METRICS = tuple(metric.name for metric in DEFINITIONS)
MAIN_METRICS = tuple(metric.name for metric in DEFINITIONS if metric.main)
IMAGE_METRICS = tuple(metric.name for metric in DEFINITIONS if metric.of == "image")
PIXEL_METRICS = tuple(metric.name for metric in DEFINITIONS if metric.of != "image")  # that need masks
MAD_METRICS = tuple(metric.name for metric in DEFINITIONS if metric.in_mad)


def label_regions(masks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Region number of each pixel [N,H,W], 0 outside: 8-neighbour components of all masks, counted from 1."""
    # Imported here, so that code which only needs the names of the metrics does not wait for scipy.
    from scipy.ndimage import label

    _check_array(masks, name="masks", num_axes=3, dtypes=(np.bool_,))
    neighbours = np.zeros((3, 3, 3), dtype=bool)
    neighbours[1] = True  # the eight around a pixel in its own image, none in the images before and after
    regions = np.zeros(masks.shape, dtype=np.int32)
    defective = masks.any(axis=(1, 2))
    if defective.any():
        regions[defective] = label(masks[defective], neighbours, output=np.int32)[0]
    return regions


def image_metrics(score: Floats, label: NDArray[np.bool_]) -> dict[str, float]:
    """The IMAGE_METRICS of a category, given the score [N] of each image and whether it is defective [N]."""
    return image_metrics_of(image_curve(score, label))


def image_metrics_of(curve: Curve) -> dict[str, float]:
    """The IMAGE_METRICS of an `image_curve`."""
    return _metrics_of(curve, "image")


def pixel_metrics(maps: Floats, regions: NDArray[np.int32]) -> dict[str, float]:
    """The metrics that a `pixel_curve` of anomaly maps [N,H,W] and of `label_regions` [N,H,W] gives."""
    return pixel_metrics_of(pixel_curve(maps, regions))


def pixel_metrics_of(curve: Curve) -> dict[str, float]:
    """Those of the PIXEL_METRICS that a `pixel_curve` gives."""
    return _metrics_of(curve, "pixel")


def overlap_metrics_of(found: Overlap) -> dict[str, float]:
    """Those of the PIXEL_METRICS that an `Overlap` gives; NaN where it has too few normal pixels."""
    return _metrics_of(found, "overlap")


def _metrics_of(found: Curve | Overlap, kind: str) -> dict[str, float]:
    return {metric.name: metric.compute(found) for metric in DEFINITIONS if metric.of == kind}


def saturating_metrics_of(curve: Curve) -> dict[str, float]:
    """Those of the PIXEL_METRICS that a `saturating_curve` gives."""
    return _metrics_of(curve, "saturating")


def spro(
    maps: Floats,
    pixel: NDArray[np.int64],
    region: NDArray[np.int32],
    saturation: Floats,
    *,
    limit: float = PRO_LIMIT_05,
) -> float:
    """Area under the PRO of a `saturating_curve` up to `limit`, as a share of `limit`."""
    return saturating_curve(maps, pixel, region, saturation).area_under_pro(limit)


def saturating_curve(
    maps: Floats, pixel: NDArray[np.int64], region: NDArray[np.int32], saturation: Floats
) -> Curve:
    """Curve whose `pro` saturates: a region counts as found once `saturation` of its pixels are found.

    Below that it counts in proportion (Bergmann et al., "Beyond Dents and Scratches", IJCV 2022, doi
    10.1007/s11263-022-01578-9). `maps` [P] are all pixels; pixel `pixel[q]` lies in region `region[q]`, which
    counts from 1. A pixel may lie in several regions; `hits` counts it in each. Regions need not be
    connected. ValueError unless each has a saturation [R] of at least 1 and at most its area.
    """
    _check_scores(maps, name="maps", num_axes=1)
    areas = np.bincount(region, minlength=saturation.size + 1)[1:]
    if not saturation.size or areas.size != saturation.size:
        raise ValueError(f"{saturation.size} saturations for {areas.size} regions")
    wrong = np.flatnonzero((saturation < 1) | (saturation > areas))
    if wrong.size:
        number = wrong[0]
        raise ValueError(
            f"region {number + 1} has {areas[number]} pixels and the saturation {saturation[number]:g}"
        )
    normal = np.ones(maps.size, bool)
    normal[pixel] = False
    scores = maps[pixel]
    order = np.lexsort((-scores, region))  # by region, then falling
    ordered = region[order]
    rank = np.arange(order.size) - np.searchsorted(ordered, ordered)  # within the region, from 0
    own = saturation[ordered - 1].astype(np.float64)
    weights = np.empty(order.size)
    weights[order] = (own - rank).clip(0, 1) / own  # if it is no whole number, the last pixel weighs the rest
    return _curve([maps[normal]], scores, weights=weights)


def mad(values: Mapping[str, float]) -> float:
    """Plain mean of the seven MAD_METRICS; ValueError if one is missing."""
    missing = [name for name in MAD_METRICS if name not in values]
    if missing:
        raise ValueError(f"mad needs {', '.join(MAD_METRICS)}; missing: {', '.join(missing)}")
    return float(sum(values[name] for name in MAD_METRICS) / len(MAD_METRICS))


def image_curve(score: Floats, label: NDArray[np.bool_]) -> Curve:
    """Curve of a category's images: scores [N] and labels [N]; each defective image counts as one region."""
    _check_scores(score, name="score", num_axes=1)
    _check_array(label, name="label", num_axes=1, dtypes=(np.bool_,))
    _check_same_shape(score=score, label=label)
    _check_both_kinds(int(np.count_nonzero(label)), label.size, what="image")
    defective = score[label]
    return _curve([score[~label]], defective, weights=np.ones(defective.size))


def pixel_curve(maps: Floats, regions: NDArray[np.int32], *, num_threads: int = 1) -> Curve:
    """Curve of a category's pixels: maps and regions [N,H,W]; every pixel outside the regions is normal."""
    _check_scores(maps, name="maps", num_axes=3)
    _check_array(regions, name="regions", num_axes=3, dtypes=(np.int32,))
    _check_same_shape(maps=maps, regions=regions)
    where = np.flatnonzero(regions > 0)
    _check_both_kinds(where.size, regions.size, what="pixel")
    weights = _region_weights(regions, where)
    # Picking out the normals would be slower and need a second copy of the maps. Instead the defects move
    # behind all other scores, none of which is infinite.
    normal = maps.flatten()
    defective = normal[where]
    normal[where] = np.inf
    return _curve(np.array_split(normal, min(num_threads, normal.size)), defective, weights=weights)


def _curve(parts: Sequence[Floats], defective: Floats, *, weights: NDArray[np.float64]) -> Curve:
    """Curve from the scores of normals in parts, the scores of defects [P], and their weights [P] in PRO.

    Each part is sorted in place by a thread of its own. Infinite scores in it are not counted.
    """
    order = np.argsort(defective)
    scores = defective[order]
    firsts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))  # of each distinct score
    scores = scores[firsts]
    if len(parts) == 1:
        counted = [_counted(parts[0], scores)]
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            counted = list(pool.map(_counted, parts, [scores] * len(parts)))
    num_normal, below, up_to = (np.sum(counts, 0) for counts in zip(*counted, strict=True))
    pro = np.cumsum(np.add.reduceat(weights[order], firsts)[::-1])
    return Curve(
        num_normal=float(num_normal),
        num_defective=float(defective.size),
        above=(num_normal - up_to[::-1]).astype(np.float64),
        at_or_above=(num_normal - below[::-1]).astype(np.float64),
        hits=(defective.size - firsts[::-1]).astype(np.float64),
        pro=pro / pro[-1],  # pro[-1] is the number of regions, but for rounding: no metric can exceed 1
    )


def _counted(normal: Floats, scores: Floats) -> tuple[int, NDArray[np.intp], NDArray[np.intp]]:
    """Sort the normals; count them, those below each score, and those at or below it."""
    normal.sort()
    below = np.searchsorted(normal, scores, "left")
    up_to, last = below.copy(), normal.size - 1
    tied = np.flatnonzero(normal[np.minimum(below, last)] == scores)
    # Most defects tie with few normals or none: stepping over them is quicker than a search.
    for _ in range(MAX_STEPS):
        up_to[tied] += 1
        tied = tied[normal[np.minimum(up_to[tied], last)] == scores[tied]]
    up_to[tied] = np.searchsorted(normal, scores[tied], "right")
    return int(np.searchsorted(normal, np.inf)), below, up_to


def _region_weights(regions: NDArray[np.int32], where: NDArray[np.intp]) -> NDArray[np.float64]:
    """1 / pixels of its region for each defect pixel: a region weighs 1. Numbers may be missing."""
    if regions.min() < 0:
        raise ValueError(
            f"regions hold {regions.min()}: they count from 1, and 0 is outside; use label_regions"
        )
    numbers = regions.ravel()[where]
    areas = np.bincount(numbers)
    # Masks that were labelled one by one start at 1 in every image; they would be merged here in silence.
    images = where // (regions.shape[1] * regions.shape[2])
    first, last = np.zeros(areas.size, dtype=np.intp), np.zeros(areas.size, dtype=np.intp)
    first[numbers[::-1]] = images[::-1]  # if a place gets several values, NumPy keeps the last
    last[numbers] = images
    shared = np.flatnonzero(first < last)
    if shared.size:
        number = shared[0]
        raise ValueError(
            f"region {number} lies in image {first[number]} and in image {last[number]}: regions are counted"
            " over the whole category; use label_regions"
        )
    weights: NDArray[np.float64] = 1 / areas[numbers]
    return weights


def _check_array(array: NDArray[Any], *, name: str, num_axes: int, dtypes: tuple[type, ...]) -> None:
    """Raise ValueError unless the array has one of these types, this many axes and at least one element."""
    if array.dtype not in dtypes:
        expected = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise ValueError(f"{name}: the type is {array.dtype}, not {expected}")
    if array.ndim != num_axes or array.size == 0:
        expected = "[N,H,W]" if num_axes == 3 else "[N]"
        raise ValueError(f"{name}: the shape is {array.shape}, not {expected} with at least one image")


def _check_scores(scores: Floats, *, name: str, num_axes: int) -> None:
    """Raise ValueError unless all scores are finite float32 or float64: fewer bits would add ties."""
    _check_array(scores, name=name, num_axes=num_axes, dtypes=(np.float32, np.float64))
    finite = np.isfinite(scores)
    if not finite.all():
        bad = np.argwhere(~finite)
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"{name}: {len(bad)} of {scores.size} values are not finite, first: {scores[first]} at {first}"
        )


def _check_same_shape(**arrays: NDArray[Any]) -> None:
    """Raise ValueError naming the shapes unless they are equal."""
    if len({array.shape for array in arrays.values()}) > 1:
        raise ValueError(
            "shapes differ: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        )


def _check_both_kinds(num_defective: int, num_all: int, *, what: str) -> None:
    """Raise ValueError unless there are both defects and normals: otherwise no rank metric is defined."""
    if num_defective in (0, num_all):
        raise ValueError(
            f"{what}_auroc needs both defective and normal {what}s:"
            f" {num_defective} of {num_all} {what}s are defective"
        )
