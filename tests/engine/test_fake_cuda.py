"""Every method on a GPU that computes nothing: whether all tensors are on it, and nothing waits for a value.

Fake tensors have a shape, a type and a device, and no values. A tensor that stays on the CPU is an error, and
so is code that reads a value: on a GPU it would wait, and could not be captured in a graph. Backward passes
need a real GPU.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import smallest
from engine.test_train import CPU
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from kdbench.engine.batches import Batches
from kdbench.engine.device import autocast_for
from kdbench.engine.features import Shared
from kdbench.method import Method, gaussian_blur
from kdbench.registry import method_names

SIZE = 64
CUDA = torch.device("cuda")
# Their losses draw numbers on the host: no wait, but a graph cannot hold them either.
DRAW_ON_THE_HOST = {"destseg", "efficientad", "rdpp"}

pytestmark = pytest.mark.slow


def build(name: str) -> Method:
    """The method with fake tensors on a GPU in place of its own; a fake mode is active."""
    with unset_fake_temporarily():
        method: Method = smallest(name, batch_size=4)
    for module in method.modules():
        for key, tensor in module.named_parameters(recurse=False):
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
            module._parameters[key] = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
        for key, tensor in module.named_buffers(recurse=False):
            module._buffers[key] = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
    return method


@pytest.fixture
def host_draws(monkeypatch):
    """Single numbers of torch's generator on the host are real: fake ones have no value to read."""

    def drawn(draw: Callable[..., Tensor]) -> Callable[..., Tensor | float]:
        def one_or_many(*args, **options):
            if args[-1] != ():
                return draw(*args, **options)
            with unset_fake_temporarily():
                return draw(*args, **options).item()

        return one_or_many

    for name in ("rand", "randint"):
        monkeypatch.setattr(torch, name, drawn(getattr(torch, name)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", method_names())
def test_losses_maps_and_scores_stay_on_the_gpu(name, precision, monkeypatch, request):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    draws = name in DRAW_ON_THE_HOST
    if draws:
        request.getfixturevalue("host_draws")
    # What is drawn on the host is real, and is sent to the GPU.
    with FakeTensorMode(allow_non_fake_inputs=draws):
        method = build(name)
        images = torch.randn(4, 3, SIZE, SIZE, device=CUDA).contiguous(memory_format=torch.channels_last)
        with autocast_for(precision, CUDA):
            taught = method.train().teacher(images)
            loss = method.loss(images, taught)
            maps = method.eval().anomaly_map(images, taught)
            score = method.image_score(maps)
    assert (loss.device.type, loss.dtype, loss.shape) == ("cuda", torch.float32, ())
    assert (maps.device.type, maps.dtype, maps.shape) == ("cuda", torch.float32, (4, SIZE, SIZE))
    assert (score.device.type, score.shape) == ("cuda", (4,))


@pytest.mark.parametrize(
    ("free", "keep", "cache"),
    [
        (1 << 30, "auto", "device"),
        (0, "auto", "recomputed"),  # a CPU would keep them in files
        (0, "device", "device"),  # a share of a GPU that was measured with them has room for them
        (1 << 30, "recomputed", "recomputed"),
    ],
)
def test_a_gpu_keeps_levels_on_itself_or_computes_them_again(monkeypatch, free, keep, cache):
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: free)
    pixels = np.zeros((8, SIZE, SIZE, 3), np.uint8)
    shared = Shared(names=["one"], pixels=[pixels], rows=np.arange(8), made_by="a teacher")
    with FakeTensorMode():
        network = build("stfpm").teacher
        batches = Batches(
            pixels,
            network,
            "tiny",
            device=CUDA,
            precision="fp32",
            batch_size=4,
            keep=keep,
            shared=shared,
        )
        index = torch.arange(4, device=CUDA)
        taught = batches.taught(index, batches.images(index))
    assert batches.cache == cache
    assert {level.device.type for level in taught} == {"cuda"}


def test_a_map_is_blurred_on_the_gpu():
    with FakeTensorMode():
        smooth = gaussian_blur(torch.rand(2, 48, 32, device=CUDA), 4.0)
    assert (smooth.device.type, smooth.shape) == ("cuda", (2, 48, 32))


def test_a_tensor_left_on_the_cpu_is_seen():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        torch.randn(2, device=CUDA) + torch.randn(2, device=CPU)
