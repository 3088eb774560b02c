"""What has to hold on a real GPU: every method trains, repeats itself bit for bit, and agrees with the CPU.

`KDBENCH_TEST_DEVICE=cpu pytest -m gpu` runs the same steps without one, to check the tests themselves.
"""

import os

import numpy as np
import pytest
import torch
from conftest import smallest

from kdbench.engine import evaluate, train
from kdbench.engine.batches import Batches, batches_of
from kdbench.engine.device import broken_gpu, cap_memory, free_memory, place_networks
from kdbench.method import Method
from kdbench.registry import method_names

DEVICE = torch.device(os.environ.get("KDBENCH_TEST_DEVICE", "cuda"))
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]


def build(name: str, device: torch.device = DEVICE, precision: str = "fp32") -> Method:
    method: Method = smallest(name, batch_size=4, epochs=2, precision=precision)
    place_networks(method, device)
    return method


def images(method: Method, count: int = 10, *, cached: bool = True) -> Batches:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)
    return batches_of(method, pixels, cached=cached)


def trained(method: Method, *, cached: bool = True) -> list[float]:
    """The losses of two epochs."""
    torch.manual_seed(1)
    history = train.fit(
        method,
        images(method, cached=cached),
        images(method, 4),
        generator=torch.Generator().manual_seed(0),
        on_step=lambda count: None,
        on_epoch=lambda epoch: None,
    )
    return [epoch.loss for epoch in history.epochs]


def maps_of(method: Method) -> np.ndarray:
    return evaluate.score(method, images(method, 4, cached=False), lambda count: None).maps


# In fp16 the scaler may leave out the first step, since its first guess is too large.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", method_names())
def test_a_training_repeats_itself_bit_for_bit(name, precision):
    one, other = build(name, precision=precision), build(name, precision=precision)
    assert trained(one) == trained(other)
    assert np.isfinite(maps_of(one)).all()
    assert np.array_equal(maps_of(one), maps_of(other))


@pytest.mark.parametrize("name", method_names())
def test_a_training_agrees_with_that_on_the_cpu(name):
    one, other = build(name), build(name, CPU)
    before = maps_of(one), maps_of(other)
    np.testing.assert_allclose(before[0], before[1], rtol=1e-3, atol=1e-3 * before[1].max())
    assert trained(one)[0] == pytest.approx(trained(other)[0], rel=0.02)


@pytest.mark.parametrize("name", method_names())
def test_a_teacher_that_is_cached_and_one_that_is_not_train_the_same(name):
    assert trained(build(name)) == pytest.approx(trained(build(name), cached=False), rel=0.02)


def test_the_gpu_computes_and_a_cap_on_its_memory_holds():
    assert broken_gpu(DEVICE) == ""
    if DEVICE.type == "cpu":
        return
    cap_memory(DEVICE, 0.05)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(free_memory(DEVICE) + (1 << 30), dtype=torch.uint8, device=DEVICE)
    finally:
        torch.cuda.empty_cache()
        cap_memory(DEVICE, 1.0)
    assert trained(build("stfpm"))
