"""The device that a cell runs on: precision, memory, threads, and the switches of torch for the process."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from kdbench import machine
from kdbench.errors import first_line

DRIVER = Path("/proc/driver/nvidia/version")  # NVIDIA's on Linux
CONTEXT_BYTES = 1 << 30  # a process on a GPU takes it beside its tensors


def deterministic() -> None:
    """Set torch's switches for this process: fp32 means fp32, and each call takes the same algorithm.

    On a GPU, cuDNN would use TF32 with its 10 bits, and the algorithm that was fastest in a trial.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def place_networks(network: nn.Module, device: torch.device) -> None:
    """Move a network to the device, convolutions in channels-last order: it is faster on all devices we know.

    Sets the switches of `deterministic`, too, so that no network runs without them.
    """
    deterministic()
    network.to(device)
    network.to(memory_format=torch.channels_last)


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters of a network are."""
    return next(network.parameters()).device


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use this many threads; None: as many as before.

    Another number adds up in another order, which changes the last digits.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_precision(request: str, device: torch.device, network: nn.Module | None = None) -> str:
    """The precision that `auto` means on this device: bf16 where the hardware computes it, else fp32.

    On a CPU, a network with depthwise convolutions is faster in fp32: their backward pass in bf16 is slow.
    """
    if request != "auto":
        return request
    if device.type == "cpu" and network is not None and any(map(_is_depthwise, network.modules())):
        return "fp32"
    return "bf16" if computes_bf16(device) else "fp32"


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware itself computes in bf16, so that bf16 is faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and fast


def autocast_for(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which networks run. Enter it once: torch never leaves one entered inside itself."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def memory_bytes(device: torch.device) -> int:
    """All memory of the GPU, or all that this process may use of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return machine.memory_bytes()


def cap_memory(device: torch.device, share: float) -> None:
    """Let this process take this share of a GPU's memory and no more; it replaces an earlier cap.

    A process takes CONTEXT_BYTES beside its tensors, which torch does not count.
    """
    if device.type == "cuda":
        beside = CONTEXT_BYTES / memory_bytes(device) if share < 1 else 0.0
        torch.cuda.set_per_process_memory_fraction(max(0.0, share - beside), device.index)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on the device; what torch has set aside counts as taken."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(device.index) * total)
        return max(0, min(free, allowed - torch.cuda.memory_reserved(device)))
    return machine.free_memory()


def broken_gpu(device: torch.device) -> str:
    """Why this GPU cannot compute; "" if it can.

    One that is broken fails each cell in seconds, and would so draw all cells of a grid. After some errors
    all later calls of the process fail.
    """
    try:
        torch.zeros(1, device=device).add_(1).item()
    except torch.OutOfMemoryError:  # it is in use
        return ""
    except (RuntimeError, AssertionError) as error:  # the latter: torch without CUDA
        return first_line(error)
    return ""


def unused_gpu() -> str:
    """Why torch finds no GPU although this machine has a driver of NVIDIA; "" if that is not so."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if hidden or not DRIVER.exists() or torch.cuda.is_available():
        return ""
    there = "this machine has an NVIDIA driver, but"
    if torch.version.cuda is None:
        return f"{there} the installed torch is for CPUs only: install one for CUDA"
    try:
        torch.cuda.init()
        why = "none answers"
    except (RuntimeError, AssertionError) as error:
        why = first_line(error).partition(". ")[0]
    found = f"{there} torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU: {why}"
    return f"{found}. Update the driver, or install a torch for the CUDA that nvidia-smi names"


def start_peak_memory(device: torch.device) -> None:
    """Begin to watch the peak memory of what follows, of this process and of a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the high-water mark of this process


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak since `start_peak_memory`: of the GPU's allocator, or of the whole process; None where unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_ram_bytes()


def peak_ram_bytes() -> int | None:
    """Peak of this process in RAM since `start_peak_memory`; None where unknown."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
