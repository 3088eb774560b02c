"""A trained detector of a results folder, ready to score the images of a user."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kdbench import machine
from kdbench.data.store import decode
from kdbench.engine.batches import batches_of
from kdbench.engine.build import detector_of, of_another_attempt
from kdbench.engine.evaluate import score
from kdbench.errors import DataError, RequestError
from kdbench.files import expanded
from kdbench.metrics.threshold import FALSE_ALARMS
from kdbench.results.attempts import beside
from kdbench.results.store import NORMALS, Results, read

if TYPE_CHECKING:
    from kdbench.deploy.threshold import Threshold
    from kdbench.engine.delivery import Delivered

# One image or several: paths, arrays uint8 [H,W,3] or [N,H,W,3], tensors [3,H,W] or [N,3,H,W].
Picture = str | Path | np.ndarray | torch.Tensor
Pictures = Picture | Sequence[Picture]


class Detector:
    """A trained detector; `row` is a row of its cell, with its method, category, seed and numbers."""

    def __init__(
        self, results: Results, row: dict[str, Any], *, weights: str | Path | None, device: torch.device
    ) -> None:
        file = None if weights is None else Path(expanded(str(weights)))
        self._method = detector_of(results, row, file, device)
        self.row, self._device, self._results = row, device, results

    def __repr__(self) -> str:
        row = self.row
        what = f"{row['method']} of {', '.join(row['categories'])} ({row['dataset']}), seed {row['seed']}"
        return f"<Detector {what}, {self.image_size} px on {self._device}>"

    @property
    def image_size(self) -> int:
        """The side of the square that images are resized to, in pixels."""
        return int(self._method.config.image_size)

    def export(
        self,
        format: str = "onnx",
        out: str | Path = ".",
        *,
        false_alarms: float = FALSE_ALARMS,
        root: str | Path | None = None,
    ) -> Path:
        """Write the detector as `onnx`, `openvino` or `torch`, with its threshold; returns the file.

        The file is compared with torch after it is written. `root` is the folder of its dataset, where it is
        not found in KDBENCH_DATA. Without its images the threshold is `threshold()`. Raises as `deliver`.
        """
        return self.delivered(format, Path(expanded(str(out))), false_alarms, root).path

    def delivered(self, format: str, out: Path, false_alarms: float, root: str | Path | None) -> "Delivered":
        """Export as `export` does; returns the file with its metadata and notes."""
        from kdbench.engine.delivery import deliver

        folder = None if root is None else Path(expanded(str(root)))
        return deliver(
            self.row,
            self._method,
            format=format,
            folder=out,
            false_alarms=false_alarms,
            root=folder,
            kept=self._held_out_scores(),
        )

    def threshold(self, false_alarms: float = FALSE_ALARMS) -> "Threshold | None":
        """The threshold from the scores of held-out normal images that its run kept; None if there are none.

        Raises ValueError for a rate outside of 0 to 1.
        """
        from kdbench.engine.delivery import source_of, threshold_of

        scores, source = self._held_out_scores(), source_of(self._method)
        return threshold_of(scores, false_alarms, source=source) if len(scores) else None

    def _held_out_scores(self) -> np.ndarray:
        storage, cell_id = self._results.storage, self.row["cell_id"]
        every = read(storage, NORMALS, only=[cell_id])
        rows, others = beside(every, {cell_id: self.row["attempt_id"]})
        if others:
            raise DataError(of_another_attempt(storage.path(NORMALS.name(cell_id)), cell_id))
        return np.asarray(rows["image_score"])

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Maps and scores of RGB images uint8 [B,S,S,3]; makes this class a runtime like those of exports."""
        return self.predict(images)

    def predict(self, images: Pictures) -> tuple[np.ndarray, np.ndarray]:
        """Anomaly maps float32 [N,S,S] and image scores float64 [N] of one image or several; larger is worse.

        S is `image_size`. An image is a path; an array uint8 [H,W,3], RGB; or a tensor [3,H,W], uint8 or
        floating point from 0 to 1. Several are a sequence of these, an array [N,H,W,3] or a tensor [N,3,H,W].
        Each is resized as the training images were: to a square, bilinear with anti-aliasing. A score has no
        unit; choose a threshold from the scores of normal images.

        Raises DataError for a file that is not an image, RequestError for another type, shape or range.
        """
        size, config = self.image_size, self._method.config
        maps, scores = [], []
        everything = list(_each(images))
        with ThreadPoolExecutor(machine.cores()) as pool:
            for first in range(0, len(everything), config.batch_size):
                part = everything[first : first + config.batch_size]
                pixels = np.stack(list(pool.map(lambda image: _pixels(image, size), part)))
                found = score(self._method, batches_of(self._method, pixels), lambda count: None)
                maps.append(found.maps)
                scores.append(found.image_score)
        if not maps:
            return np.zeros((0, size, size), np.float32), np.zeros(0)
        return np.concatenate(maps), np.concatenate(scores)


def _each(images: Pictures) -> Iterator[Picture]:
    """One image after another."""
    if isinstance(images, str | Path):
        yield images
    elif isinstance(images, np.ndarray | torch.Tensor):
        if images.ndim not in (3, 4):
            raise RequestError([f"images have the shape {list(images.shape)}: {_EXPECTED}"])
        yield from images if images.ndim == 4 else (images,)
    else:
        yield from images


_EXPECTED = "an array is uint8 [H,W,3] or [N,H,W,3] in RGB, a tensor [3,H,W] or [N,3,H,W]"


def _pixels(image: Picture, size: int) -> np.ndarray:
    """One image as uint8 [S,S,3]."""
    if isinstance(image, str | Path):
        return decode(Path(expanded(str(image))), size)
    if isinstance(image, torch.Tensor):
        image = _from_tensor(image)
    if not isinstance(image, np.ndarray):
        raise RequestError([f"{type(image).__name__} is no image: it is a path, an array or a tensor"])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise RequestError([f"an image is {image.dtype} {list(image.shape)}: {_EXPECTED}"])
    return decode(image, size)


def _from_tensor(image: torch.Tensor) -> np.ndarray:
    """A tensor [3,H,W] as an array [H,W,3]; floating-point values from 0 to 1 are rounded to 8 bit."""
    if image.is_floating_point():
        image = image.detach().float()
        low, high = image.aminmax() if image.numel() else (image.new_zeros(()),) * 2
        if not (low >= 0 and high <= 1):  # also for NaN
            values = f"an image has values from {low:g} to {high:g}"
            raise RequestError([f"{values}: a tensor is uint8, or from 0 to 1 and not normalised"])
        image = (image * 255).round().to(torch.uint8)
    return image.cpu().movedim(0, -1).numpy() if image.ndim == 3 else image.cpu().numpy()
