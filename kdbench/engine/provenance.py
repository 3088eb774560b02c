"""The columns of a row that describe the code and the machine it was made with."""

import importlib.metadata
import os
import platform
import socket
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import PIL
import torch

import kdbench
from kdbench.engine.device import DRIVER, memory_bytes


@lru_cache
def code_provenance() -> dict[str, Any]:
    """Commit of the checkout (null for an installed wheel), whether it was edited, and package versions."""
    commit, dirty = None, None
    root = Path(kdbench.__file__).resolve().parents[1]
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        status = _git(root, "status", "--porcelain")
        dirty = bool(status) if status is not None else None
    versions = {f"{name}_version": package_version(name) for name in ("torch", "torchvision", "timm", "ray")}
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "kdbench_version": kdbench.__version__,
        "python_version": platform.python_version(),
        "pillow_version": PIL.__version__,  # it decodes images; its package may have another name
        **versions,
    }


def machine_provenance(device: torch.device) -> dict[str, Any]:
    """Device, its name and driver, threads and host."""
    return {
        "device": device.type,
        "device_name": device_name(device),
        "driver": _driver() if device.type == "cuda" else None,
        "device_memory_bytes": memory_bytes(device),
        "num_threads": torch.get_num_threads(),
        "host": socket.gethostname(),
    }


def decides_digits(device: torch.device) -> dict[str, Any]:
    """The code and hardware that must be the same for a training to go on from a checkpoint."""
    machine = machine_provenance(device)
    names = ("device_name",) if device.type == "cuda" else ("device_name", "num_threads")
    return {**code_provenance(), **{name: machine[name] for name in names}}


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor with its number of cores."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, or no checkout: stored as unknown
        return None
    return done.stdout.strip()


def package_version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@lru_cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    return f"{platform.processor() or platform.machine()} ({os.cpu_count()} cores)"


@lru_cache
def _driver() -> str | None:
    return DRIVER.read_text().splitlines()[0] if DRIVER.exists() else None
