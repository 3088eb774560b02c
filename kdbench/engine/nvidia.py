"""Ask nvidia-smi for the GPUs of this machine and their users; nothing here uses a GPU."""

import subprocess
from collections.abc import Callable, Set
from typing import NamedTuple

import psutil

from kdbench.errors import last_line

PATIENCE_S = 20.0  # nvidia-smi takes a second; beside a GPU that is lost it can hang


class SmiError(RuntimeError):
    """There is no nvidia-smi, or it does not answer."""


def ask(what: str, *columns: str) -> list[list[str]]:
    """The rows that nvidia-smi has of `gpu` or `compute-apps`, without units; raises SmiError."""
    words = ["nvidia-smi", f"--query-{what}={','.join(columns)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except FileNotFoundError as error:
        raise SmiError("there is no nvidia-smi to ask") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise SmiError(f"nvidia-smi does not answer: {error}") from error
    if done.returncode:
        raise SmiError(f"nvidia-smi fails: {last_line(done.stdout + done.stderr)}")
    commas = len(columns) - 1
    return [
        line.split(", ", commas) for line in done.stdout.splitlines() if line and line.count(", ") >= commas
    ]


class Gpus(NamedTuple):
    """Facts that hold for all GPUs of a machine."""

    memory_bytes: int = 0  # of the smallest one; 0: unknown
    exclusive: bool = False  # one of them takes one process at a time (its compute mode)


def gpus_here() -> Gpus:
    """Facts that hold for all GPUs of this machine; unknown if nvidia-smi does not answer."""
    try:
        found = ask("gpu", "memory.total", "compute_mode")
    except SmiError:
        return Gpus()
    sizes = [int(mib) << 20 for mib, _ in found if mib.isdigit()]
    return Gpus(min(sizes, default=0), any(mode == "Exclusive_Process" for _, mode in found))


def others_on_gpu(uuid: str, ours: Set[str]) -> list[str]:
    """Processes that have memory on the GPU with this UUID, without ours; raises SmiError.

    The UUID of a slice of a GPU (MIG) is not in the list. Then all users of all GPUs count.
    """
    known = {found for (found,) in ask("gpu", "uuid")}
    apps = ask("compute-apps", "pid", "gpu_uuid", "process_name")
    return [
        f"{name} on the GPU"
        for number, where, name in apps
        if number not in ours and (where == uuid or uuid not in known)
    ]


def own_numbers(use_gpu: Callable[[], object]) -> frozenset[str]:
    """The numbers under which nvidia-smi lists this process and its parents.

    In some containers it lists the numbers of the host. `use_gpu` is the first use of a GPU by this process.
    If one process is in the list after it that was not before, it is this one.
    """
    own = psutil.Process()
    ours = frozenset(str(process.pid) for process in (own, *own.parents()))
    try:
        before = _users()
        use_gpu()
        new = _users() - before
    except SmiError:  # the timing says so
        return ours
    return ours | new if len(new) == 1 else ours


def _users() -> set[str]:
    return {number for (number,) in ask("compute-apps", "pid")}
