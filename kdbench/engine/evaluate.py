"""The numbers of a trained method: scores, exact metrics per category, size and cost of the detector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdbench.data.store import Truth
from kdbench.engine.batches import Batches
from kdbench.method import Method
from kdbench.metrics.curves import curves_of
from kdbench.metrics.exact import (
    PIXEL_METRICS,
    Curve,
    image_curve,
    image_metrics_of,
    mad,
    overlap_metrics_of,
    pixel_curve,
    pixel_metrics_of,
    saturating_curve,
    saturating_metrics_of,
)
from kdbench.metrics.legacy import LEGACY_METRICS
from kdbench.metrics.overlap import Overlap, overlap
from kdbench.metrics.presets import Preset

TOGETHER = 0.01  # of the largest value, and of the spread, of the maps or scores that are compared


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The anomaly maps of one category's test images and their image scores [N].

    Maps are float32 [N,S,S], or one array [H,W] per image where their sizes differ.
    """

    maps: np.ndarray | Sequence[np.ndarray]
    image_score: np.ndarray

    @property
    def stack(self) -> np.ndarray:
        """The maps as one array [N,S,S]; ValueError where their sizes differ."""
        return np.asarray(self.maps)


@torch.no_grad()
def score(method: Method, batches: Batches, on_step: Callable[[int], None]) -> Scored:
    """Score all images; the maps have the size of the method's input. ValueError for a wrong map."""
    method.eval()
    maps, scores = [], []
    for index in batches.in_order():
        images = batches.images(index)
        taught = batches.taught(index, images)
        with batches.autocast:
            batch_maps = method.anomaly_map(images, taught)
        if batch_maps.dtype != torch.float32 or batch_maps.shape != (len(index), *images.shape[2:]):
            raise ValueError(
                f"{method.name}: an anomaly map must be float32 {(len(index), *images.shape[2:])}, "
                f"this one is {batch_maps.dtype} {tuple(batch_maps.shape)}"
            )
        batch_scores = method.image_score(batch_maps)
        if batch_scores.shape != (len(index),):
            raise ValueError(
                f"{method.name}: image scores must be one number for each of {len(index)} maps, these have "
                f"the shape {tuple(batch_scores.shape)}"
            )
        scores.append(batch_scores.double().cpu().numpy())
        maps.append(batch_maps.cpu().numpy())
        on_step(len(index))
    return Scored(maps=np.concatenate(maps), image_score=np.concatenate(scores))


@torch.no_grad()
def check_alone(method: Method, batches: Batches) -> None:
    """ValueError if the map or score of an image depends on the images that are in its batch.

    Test images come in the order of their labels: what scales maps by their batch tells labels. Compared in
    float32, where rounding is far below TOGETHER.
    """
    method.eval()
    last = len(batches) - 1
    images = batches.images(torch.tensor([0, last // 2, last], device=batches.pixels.device))
    with torch.autocast(images.device.type, enabled=False):
        together = method.anomaly_map(images, method.teacher(images))
        # Each of them: one that has both extremes of the batch is scaled as it is alone.
        alone = torch.cat([method.anomaly_map(one, method.teacher(one)) for one in images.split(1)])
        scores = [method.image_score(maps) for maps in alone.split(1)]
        pairs = {"map": (together, alone), "score": (method.image_score(together), torch.cat(scores))}
    for what, (many, single) in pairs.items():
        least, most = torch.cat([many.flatten(), single.flatten()]).aminmax()
        difference, spread = float((many - single).abs().max()), float(most - least)
        if difference > TOGETHER * spread and difference > TOGETHER * float(single.abs().max()):
            raise ValueError(
                f"{method.name}: the {what} of an image differs by {difference:.2g} where other images are "
                f"in its batch. Scale it by normal images (calibrate), never by the images that are scored"
            )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The metrics of one category with their mean `mad`, and thinned curves, by column."""

    metrics: dict[str, float | None]
    curves: dict[str, list[float] | None]


def measure(scored: Scored, truth: Truth, preset: Preset) -> Measured:
    """The metrics and curves of one category by a preset; those of pixels are None without masks."""
    by_image = image_curve(scored.image_score, truth.label)
    image: dict[str, float | None] = dict(image_metrics_of(by_image))
    nothing: dict[str, float | None] = dict.fromkeys((*PIXEL_METRICS, "mad", *LEGACY_METRICS))
    counted = np.flatnonzero(truth.marked)
    starts = truth.starts
    if truth.regions is None or not truth.regions.any():
        return Measured(metrics=nothing | image, curves=curves_of(by_image, None))
    maps = [at_size(scored.maps[i], tuple(truth.shapes[i])).ravel() for i in counted.tolist()]
    marked = [truth.regions[starts[i] : starts[i + 1]] for i in counted]
    # One long row of pixels: images may differ in size, and regions are numbered over all images.
    whole = len(counted) == len(scored.maps)
    if whole and isinstance(scored.maps, np.ndarray) and (truth.shapes == scored.maps.shape[1:]).all():
        pixels, regions = scored.maps.ravel(), truth.regions  # as they are, without a copy
    else:
        pixels, regions = np.concatenate(maps), np.concatenate(marked)
    by_pixel = pixel_curve(pixels[None, None], regions[None, None], num_threads=torch.get_num_threads())
    values = {**image_metrics_of(by_image), **pixel_metrics_of(by_pixel)}
    by_overlap = overlap_metrics_of(_overlap(maps, marked, truth.label[counted]))
    others = {name: None if np.isnan(value) else value for name, value in by_overlap.items()}
    others |= saturating_metrics_of(_saturating(scored, truth)) if truth.saturating is not None else {}
    legacy = {}
    if preset.pro:
        shape = (len(counted), *truth.shapes[0])
        legacy[preset.pro] = LEGACY_METRICS[preset.pro](pixels.reshape(shape), regions.reshape(shape))
    metrics = nothing | values | others | {"mad": mad(values)} | legacy
    return Measured(metrics=metrics, curves=curves_of(by_image, by_pixel))


def _overlap(maps: Sequence[np.ndarray], regions: Sequence[np.ndarray], label: np.ndarray) -> Overlap:
    """The overlap of flat maps; a defective image whose mask was lost at this size is of neither kind."""
    found = [scores[marked > 0] for scores, marked in zip(maps, regions, strict=True)]
    return overlap(
        np.concatenate([scores for scores, defective in zip(maps, label, strict=True) if not defective]),
        [scores for scores in found if scores.size],
    )


def _saturating(scored: Scored, truth: Truth) -> Curve:
    """The curve of defects that count as found before all of their pixels are."""
    assert truth.saturating is not None
    found, starts = truth.saturating, truth.starts
    maps = [at_size(one, tuple(shape)).ravel() for one, shape in zip(scored.maps, truth.shapes, strict=True)]
    # An image that does not count has no pixels in the regions, and none among the normals.
    kept = np.repeat(truth.marked, np.diff(starts))
    return saturating_curve(
        np.concatenate(maps)[kept], np.cumsum(kept)[found.pixel] - 1, found.region, found.area
    )


def at_size(anomaly_map: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """One map [S,S] resized to `shape`, bilinear."""
    if anomaly_map.shape == shape:
        return anomaly_map
    whole = torch.from_numpy(anomaly_map)[None, None]
    return torch.nn.functional.interpolate(whole, size=shape, mode="bilinear")[0, 0].numpy()


@torch.no_grad()
def cost(method: Method, batches: Batches) -> dict[str, int]:
    """Parameters at inference and in training, FLOPs of one image (with the teacher; a multiply-add is 2)."""
    # the import takes a third of a second, which a run that finds all cells finished does not spend
    from torch.utils.flop_counter import FlopCounterMode

    method.eval()
    at_inference = method.detector_state()
    detector = sum(p.numel() for name, p in method.named_parameters() if name in at_inference)
    teacher = sum(p.numel() for p in method.teacher.parameters())
    images = batches.images(torch.zeros(1, dtype=torch.long, device=batches.pixels.device))
    with FlopCounterMode(display=False) as counter, batches.autocast:
        method.anomaly_map(images, method.teacher(images))
    return {
        "num_parameters": teacher + detector,
        "num_trained_parameters": sum(p.numel() for p in method.trained()),
        "flops": counter.get_total_flops(),
    }
