"""Write the detector of a cell as a file with its threshold and metadata, and compare it with torch."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.data.store import RULE, open_images
from kdbench.deploy.export import SUFFIXES, WRITERS, Traced, check_packages
from kdbench.deploy.metadata import Metadata, Scale, beside
from kdbench.deploy.runtimes import RUNTIME_OF, open_runtime
from kdbench.deploy.threshold import HELD_OUT, TRAINED, UNSEEN, Source, Threshold
from kdbench.engine import provenance
from kdbench.engine.batches import split
from kdbench.engine.device import deterministic
from kdbench.engine.kept import unchanged
from kdbench.engine.module import Deployed
from kdbench.errors import DataError, RequestError, complained, unknown
from kdbench.method import Method
from kdbench.metrics.threshold import limit_of
from kdbench.registry import get_dataset, get_method

TOLERANCE = 1e-3  # of the largest value, in float32
COMPARED = (1, 3, 4)  # images of the batches that are compared
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "openvino")


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """An exported detector, and what a person should know of it."""

    path: Path
    metadata: Metadata
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Normals:
    """Normal images uint8 [N,S,S,3] of a cell's training folders; why there are none, if there are none."""

    pixels: np.ndarray
    source: Source
    missing: str = ""


def deliver(
    row: dict[str, Any],
    method: Method,
    *,
    format: str,
    folder: Path,
    false_alarms: float,
    root: Path | None,
    kept: np.ndarray,
) -> Delivered:
    """Write a cell's detector in a format, load the file in its runtime and compare it with torch.

    `kept` has the scores [N] of held-out images that the cell's run stored; N may be 0. They give the
    threshold if the images are not on disk.

    Raises RequestError for an unknown format, a rate outside of 0 to 1, missing packages, a folder that
    cannot be written, and a file whose maps or scores differ from torch's; DataError if the images on disk
    are not those of the cell.
    """
    if format not in WRITERS:
        raise RequestError([unknown("format", format, WRITERS)])
    if not 0 < false_alarms < 1:
        raise RequestError([f"a rate of false alarms of {false_alarms}: it is between 0 and 1, as 0.01"])
    check_packages(format)
    deterministic()
    device = next(method.parameters()).device
    module = Deployed(method).to(device)
    normals = _normals(row, method, root)
    threshold, scale = _from_normals(module, normals, false_alarms, method.config.batch_size)
    if threshold is None and len(kept):
        threshold = threshold_of(kept, false_alarms, source=source_of(method))
    metadata = _metadata(row, method, threshold, scale)
    module.cpu()
    name = f"{row['method']}-{row['dataset']}-{row['category'] if row['setting'] == 'oneclass' else 'all'}"
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{name}-{row['cell_id'][:8]}")
    path = folder / f"{name}{SUFFIXES[format]}"
    with complained(f"cannot write in {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as aside:
            written = Path(aside) / path.name
            WRITERS[format](Traced(module, module.image_size), written, metadata.text())
            compared = compare(module, written, normals.pixels)
            beside(written).write_text(
                json.dumps(json.loads(metadata.text()) | {"compared": compared}, indent=2)
            )
            for part in sorted(Path(aside).iterdir(), key=lambda part: part == written):  # the file is last
                part.replace(folder / part.name)
    return Delivered(path=path, metadata=metadata, notes=tuple(_notes(metadata, row, normals, compared)))


def threshold_of(scores: np.ndarray, false_alarms: float, *, source: Source) -> Threshold:
    """The threshold by scores [N] of normal images; as `limit_of`."""
    found = limit_of(scores, false_alarms)._asdict()
    if source == TRAINED:
        found |= dict.fromkeys(("expected", "low", "high"))
    return Threshold(**found, false_alarms=false_alarms, num_images=len(scores), threshold_from=source)


def source_of(method: Method) -> Source:
    """The images that give a detector its threshold: of those that exist, the ones it knows least."""
    if method.config.hold_out:
        return UNSEEN
    return HELD_OUT if method.holds_out(method.config) else TRAINED


def _normals(row: dict[str, Any], method: Method, root: Path | None) -> Normals:
    """The images that give a cell's detector its threshold."""
    size, source = method.config.image_size, source_of(method)
    try:
        dataset, categories = get_dataset(row["dataset"]), unchanged(row, root)
    except DataError as error:
        if root is not None:  # the folder that was named has others
            raise
        return Normals(pixels=np.zeros((0, size, size, 3), np.uint8), source=source, missing=str(error))
    stored = [open_images(dataset, *of_category, size).train for of_category in categories.values()]
    counts, holds_out = [len(images) for images in stored], method.holds_out(method.config)
    parts = split(counts, method.config, row["seed"], holds_out=holds_out)
    chosen = {UNSEEN: parts.unseen, HELD_OUT: parts.heldout, TRAINED: parts.fitted}
    return Normals(pixels=np.concatenate(stored)[chosen[source]], source=source)


def _from_normals(
    module: Deployed, normals: Normals, false_alarms: float, batch_size: int
) -> tuple[Threshold | None, Scale | None]:
    """The threshold and the colours' scale, from scores and maps in float32."""
    if not len(normals.pixels):
        return None, None
    scores, lows, highs = [], [], []
    for maps, found in _run(module, normals.pixels, batch_size):
        scores.append(found)
        lows += list(np.median(maps, (1, 2)))
        highs += list(maps.max((1, 2)))
    low, high = float(np.median(lows)), float(np.max(highs))
    return threshold_of(np.concatenate(scores), false_alarms, source=normals.source), Scale(
        low=low, high=high
    )


def _run(module: Deployed, pixels: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Maps and scores by torch in float32, batch after batch."""
    for first in range(0, len(pixels), batch_size):
        images = torch.from_numpy(np.array(pixels[first : first + batch_size])).to(module.mean.device)
        with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
            maps, scores = module(images)
        yield maps.cpu().numpy(), scores.cpu().numpy()


def compare(module: Deployed, path: Path, normals: np.ndarray) -> str:
    """Run some normal images, or noise without any, through an exported file and through torch.

    Returns what was compared, with the largest difference relative to the largest value. Raises RequestError
    if it is above TOLERANCE.
    """
    images, what = normals[: sum(COMPARED)], "normal images"
    if len(images) < sum(COMPARED):
        size, missing = module.image_size, sum(COMPARED) - len(images)
        noise = np.random.default_rng(0).integers(0, 256, (missing, size, size, 3), dtype=np.uint8)
        images, what = np.concatenate([images, noise]), f"normal images and {missing} of noise"
        what = what if missing < sum(COMPARED) else "images of noise"
    session, worst, first = open_runtime(path, runtime=RUNTIME_OF[path.suffix]), 0.0, 0
    for count in COMPARED:
        part = np.ascontiguousarray(images[first : first + count])
        first += count
        (expected,) = _run(module, part, count)
        for ours, theirs in zip(expected, session.run(part), strict=True):
            worst = max(worst, float(np.abs(ours - theirs).max() / max(np.abs(ours).max(), 1e-12)))
    if not worst <= TOLERANCE:
        by = f"by {worst:.2g} of the largest value. Rounding makes at most {TOLERANCE:g}"
        raise RequestError(
            [f"{session.name} gives other maps or scores than torch, {by}. Nothing was written"]
        )
    by = f"{session.name} {session.version} differs from torch by {worst:.1e} of the largest value"
    return f"{len(images)} {what}: {by}"


def _metadata(
    row: dict[str, Any], method: Method, threshold: Threshold | None, scale: Scale | None
) -> Metadata:
    found = {name: provenance.package_version(name) for name in PACKAGES}
    versions = {"kdbench": provenance.code_provenance()["kdbench_version"], **found}
    return Metadata(
        **{name: row[name] for name in ("cell_id", "method", "dataset", "setting", "seed", "profile")},
        config=json.loads(row["config"]),
        category=row["category"] if row["setting"] == "oneclass" else "all",
        categories=tuple(row["categories"]),
        teacher_source=row["teacher_source"],
        teacher_sha256=row["teacher_sha256"],
        image_size=method.config.image_size,
        resize_rule=RULE,
        licences={
            "training images": get_dataset(row["dataset"]).licence,
            "code of the method's authors": get_method(row["method"]).licence,
            "teacher": f"that of its weights: {row['teacher_source']}",
        },
        trained_with={name: row[name] or "" for name in ("kdbench_version", "torch_version", "git_commit")},
        versions={name: version for name, version in versions.items() if version},
        threshold=threshold,
        scale=scale,
    )


def _notes(metadata: Metadata, row: dict[str, Any], normals: Normals, compared: str) -> Iterator[str]:
    yield f"compared with {compared}"
    if metadata.threshold is None:
        yield f"no threshold, since there are no normal images: {normals.missing}"
    else:
        yield metadata.threshold.words
        if normals.missing:
            yield f"its scores are those that the run kept, in {row['precision']}: {normals.missing}"
    yield f"licence of the training images: {metadata.licences['training images']}"
