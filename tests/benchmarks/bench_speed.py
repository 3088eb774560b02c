"""How long the parts of a cell take on this machine: `make bench`, or pytest on this file by its name.

Images are noise, which costs what photographs cost. KDBENCH_WEIGHTS may name a folder with the weights of
torchvision's ResNet-18; without it the teacher is the embedded EfficientNet-Lite0.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from kdbench.backbone import teacher
from kdbench.data.store import Truth, _decode_all
from kdbench.engine import train
from kdbench.engine.batches import Batches
from kdbench.engine.device import autocast_for, choose_precision, place_networks
from kdbench.engine.evaluate import Scored, measure
from kdbench.metrics.exact import label_regions
from kdbench.metrics.presets import PRESETS
from kdbench.registry import get_method, usual_methods
from kdbench.weights import EMBEDDED, find_weights

SIZE, DEVICE = 256, torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKBONE = "resnet18.tv_in1k" if os.environ.get("KDBENCH_WEIGHTS") else EMBEDDED
NUM_TRAIN, NUM_TEST = 32, 83  # one batch of most methods; the test images of bottle
PRECISION = choose_precision("auto", DEVICE)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def built(name: str):
    kind = get_method(name)
    config = kind.Config(backbone=BACKBONE, image_size=SIZE, epochs=1)
    torch.manual_seed(0)
    method = kind(config, teacher(BACKBONE, config.levels, find_weights(BACKBONE)))
    place_networks(method, DEVICE)
    return method


def batches(method, count: int, *, cached: bool) -> Batches:
    size = method.config.batch_size if cached else count
    found = {"device": DEVICE, "precision": PRECISION, "batch_size": size, "cached": cached}
    return Batches(noise(count), method.teacher, BACKBONE, **found)


@pytest.mark.parametrize("name", usual_methods())
def test_training_epoch(benchmark, name):
    method = built(name)
    data = batches(method, NUM_TRAIN, cached=True)
    training = train.Training(method, PRECISION, torch.Generator().manual_seed(0))
    benchmark.pedantic(
        training.epoch, args=(data, None, lambda count: None), rounds=3, warmup_rounds=1, iterations=1
    )


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("name", usual_methods())
def test_inference(benchmark, name, batch_size):
    method = built(name)
    method.eval()
    data = batches(method, batch_size, cached=False)
    index = torch.arange(batch_size, device=DEVICE)

    @torch.inference_mode()
    def infer() -> torch.Tensor:
        images = data.images(index)
        with autocast_for(PRECISION, DEVICE):
            found = method.anomaly_map(images, method.teacher(images))
        return method.image_score(found).cpu()

    benchmark.pedantic(infer, rounds=20 if batch_size == 1 else 5, warmup_rounds=2, iterations=1)


def test_evaluation(benchmark):
    """All eight metrics of one category, from maps to numbers."""
    generator = np.random.default_rng(0)
    label = np.arange(NUM_TEST) >= 20
    masks = np.zeros((NUM_TEST, SIZE, SIZE), bool)
    for i in np.flatnonzero(label):
        y, x = generator.integers(0, SIZE - 60, 2)
        masks[i, y : y + 40, x : x + 60] = True
    maps = gaussian_filter(generator.random((NUM_TEST, SIZE, SIZE)), (0, 4, 4)) + 0.02 * masks
    scored = Scored(maps=maps.astype(np.float32), image_score=maps.max((1, 2)))
    truth = Truth(
        label=label,
        marked=np.ones(NUM_TEST, bool),
        regions=label_regions(masks).ravel(),
        shapes=np.full((NUM_TEST, 2), SIZE),
    )
    assert benchmark(measure, scored, truth, PRESETS["exact"]).metrics["pixel_auroc"] > 0.5


def test_image_store(benchmark, tmp_path):
    """Decoding and resizing 64 PNGs of 900 pixels."""
    path = tmp_path / "photo.png"
    pixels = gaussian_filter(np.random.default_rng(0).random((900, 900, 3)), (3, 3, 0))
    Image.fromarray((255 * pixels / pixels.max()).astype(np.uint8)).save(path)
    benchmark.pedantic(_decode_all, args=([path] * 64, SIZE, tmp_path / "store.npy", None), rounds=3)


@pytest.mark.parametrize("words", [["--help"], ["list", "methods"]], ids=" ".join)
def test_start(benchmark, words):
    command = [sys.executable, "-m", "kdbench", *words]
    root = Path(__file__).parents[2]
    options = {"capture_output": True, "check": True, "cwd": root}
    benchmark.pedantic(subprocess.run, args=(command,), kwargs=options, rounds=5)
