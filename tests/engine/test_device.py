"""The device: precision, memory, and the switches of torch."""

import inspect

import psutil
import pytest
import torch

from kdbench.engine import device
from kdbench.engine.device import (
    cap_memory,
    choose_precision,
    deterministic,
    free_memory,
    memory_bytes,
)

CPU = torch.device("cpu")
computes_bf16 = inspect.unwrap(device.computes_bf16)  # --auto-precision has another in its place


def test_the_switches_forbid_tf32_and_algorithms_chosen_by_trial():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    deterministic()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_free_memory_of_a_machine_is_less_than_all_of_it():
    assert 0 < free_memory(CPU) < memory_bytes(CPU) <= psutil.virtual_memory().total


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_bf16_only_where_the_hardware_computes_it(monkeypatch, fast, precision):
    monkeypatch.setattr(device, "computes_bf16", lambda device: fast)
    assert choose_precision("auto", CPU) == precision
    assert choose_precision("fp16", CPU) == "fp16"


def test_auto_precision_is_fp32_for_depthwise_convolutions_on_a_cpu(monkeypatch):
    monkeypatch.setattr(device, "computes_bf16", lambda device: True)
    plain, depthwise = torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 4, 3, groups=4)
    both = torch.nn.Sequential(plain, depthwise)
    assert choose_precision("auto", CPU, plain) == "bf16"
    assert choose_precision("auto", CPU, both) == "fp32"
    assert choose_precision("bf16", CPU, both) == "bf16"
    assert choose_precision("auto", torch.device("cuda"), both) == "bf16"


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("avx512", [False, True])
def test_a_processor_computes_bf16_with_amx_or_avx512(monkeypatch, amx, avx512):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert computes_bf16(CPU) is (amx or avx512)
    assert computes_bf16(torch.device("meta")) is False


@pytest.mark.parametrize(("capability", "fast"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_computes_bf16_from_ampere_on(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert computes_bf16(torch.device("cuda")) is fast


def test_what_is_free_on_a_gpu_is_what_its_share_leaves(monkeypatch):
    """The driver tells what is free for everybody; a cell may have a share only, and the next one another."""
    shares = {None: 1.0}
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, index: shares.update({index: share})
    )
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", shares.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    monkeypatch.setattr(device, "memory_bytes", lambda device: 100)
    monkeypatch.setattr(device, "CONTEXT_BYTES", 5)  # taken beside tensors by a cell that shares the GPU
    gpu = torch.device("cuda")
    for share, free in ((1.0, 70), (0.5, 35), (0.05, 0), (1.0, 70)):
        cap_memory(gpu, share)
        assert free_memory(gpu) == free
    cap_memory(torch.device("cpu"), 0.5)
    assert shares == {None: 1.0}


@pytest.mark.parametrize(("share", "fraction"), [(1.0, 1.0), (0.25, 0.25 - 1 / 16), (0.05, 0.0)])
def test_a_cap_leaves_room_for_what_cuda_takes_beside_tensors(monkeypatch, share, fraction):
    """Ten processes with a tenth each would fill a GPU before any of them meets its own cap."""
    caps = []
    monkeypatch.setattr(device, "memory_bytes", lambda gpu: 16 << 30)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda cap, index: caps.append(cap))
    cap_memory(torch.device("cuda"), share)
    assert caps == [fraction]
