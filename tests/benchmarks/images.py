"""The image store: cores used while it is filled, and the share of a warm epoch that goes to data.

    python tests/benchmarks/images.py IMAGES [WEIGHTS]

IMAGES is a folder with original-size PNGs, of which 1,000 are decoded (again and again if it has fewer);
WEIGHTS those of torchvision's ResNet-18, else the embedded teacher is used.
"""

import itertools
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import numpy as np
import torch

from kdbench.backbone import teacher
from kdbench.data.store import _decode_all
from kdbench.engine import train
from kdbench.engine.batches import Batches
from kdbench.engine.device import choose_precision, place_networks
from kdbench.registry import get_method
from kdbench.weights import find_weights

NUM_IMAGES, SIZE = 1000, 256
NUM_TRAIN = 200  # of an epoch; as many as a category of MVTec AD has


def cold(folder: Path) -> None:
    found = sorted(folder.rglob("*.png"))
    paths = list(itertools.islice(itertools.cycle(found), NUM_IMAGES))
    with tempfile.TemporaryDirectory() as temporary:
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        _decode_all(paths, SIZE, Path(temporary) / "images.npy", None)
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cores = len(os.sched_getaffinity(0))
    print(f"cold: {NUM_IMAGES} images in {seconds:.1f} s, {used / seconds:.2f} of {cores} cores used")


def warm(weights: Path | None) -> None:
    """An STFPM epoch in the runner's own loop, with a clock on what hands out images and features."""
    backbone = "resnet18.tv_in1k" if weights else "tf_efficientnet_lite0.embedded"
    kind, device = get_method("stfpm"), torch.device("cpu")
    config = kind.Config(backbone=backbone, image_size=SIZE, epochs=1)
    method = kind(config, teacher(backbone, config.levels, find_weights(backbone, weights)))
    place_networks(method, device)
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:  # memory-mapped, as the store hands them out
        np.save(file, np.random.default_rng(0).integers(0, 256, (NUM_TRAIN, SIZE, SIZE, 3), np.uint8))
        file.flush()
        pixels = np.load(file.name, mmap_mode="r")
        batches = Batches(
            pixels,
            method.teacher,
            backbone,
            device=device,
            precision=choose_precision("auto", device),
            batch_size=config.batch_size,
        )
        spent = {"images": 0.0, "taught": 0.0}
        for name in spent:
            clocked(batches, name, spent)
        started = time.perf_counter()
        train.fit(
            method,
            batches,
            None,
            generator=torch.Generator().manual_seed(0),
            on_step=lambda count: None,
            on_epoch=lambda epoch: None,
        )
        seconds = time.perf_counter() - started
    share = 100 * sum(spent.values()) / seconds
    print(f"warm: {NUM_TRAIN} images in {seconds:.1f} s ({batches.cache} features), {share:.1f} % on data")


def clocked(batches: Batches, name: str, spent: dict[str, float]) -> None:
    """Add up the seconds that a method of `batches` takes."""
    handed_out = getattr(batches, name)

    def timed(*arguments: object) -> object:
        started = time.perf_counter()
        result = handed_out(*arguments)
        spent[name] += time.perf_counter() - started
        return result

    setattr(batches, name, timed)


if __name__ == "__main__":
    cold(Path(sys.argv[1]))
    warm(Path(sys.argv[2]) if len(sys.argv) > 2 else None)
