"""This machine for a run: cores, memory, the cores that other programs use, and processes that start.

A container or a job of a cluster has less than the machine. Control groups of Linux say how much, in two
versions; psutil and torch do not read them.
"""

import os
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")  # the groups of this process, a line for each controller
SOME_CORES = 0.5  # other programs may use so many before a run says so


def cores() -> int:
    """How many cores this process may use: those of its affinity, or fewer if its container has a quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = core_quota()
    # Rounded down: a thread more than the quota has is stopped in each period, and all others wait for it.
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def core_quota(mounted: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """The smallest quota of the control groups of this process, in cores; None without one."""
    quotas = []
    for group in _groups("cpu", mounted, membership):
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text("ascii").split()
        elif (group / "cpu.cfs_quota_us").exists():
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period")
            )
        else:
            continue
        if quota != "max" and int(quota) > 0:  # version 1 says -1 without a limit
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_bytes(mounted: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """All memory that this process may use: that of the machine, or less if its container has a limit."""
    limits = (limit for limit, _ in _memory_limits(mounted, membership))
    return min([int(psutil.virtual_memory().total), *limits])


def free_memory(mounted: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """The bytes that this process can still take."""
    left = (max(0, limit - taken) for limit, taken in _memory_limits(mounted, membership))
    return min([int(psutil.virtual_memory().available), *left])


def _memory_limits(mounted: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """The limit and the bytes in use of each control group of this process that has a limit.

    Pages of files that nobody reads now count as used there, but the system gives them up when memory is
    asked for.
    """
    for group in _groups("memory", mounted, membership):
        for limit, used, idle in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if all((group / name).exists() for name in (limit, used, "memory.stat")):
                most = (group / limit).read_text("ascii").strip()
                stat = dict(line.split() for line in (group / "memory.stat").read_text("ascii").splitlines())
                if most != "max":
                    yield int(most), int((group / used).read_text("ascii")) - int(stat.get(idle, 0))


def _groups(controller: str, mounted: Path, membership: Path) -> Iterator[Path]:
    """The folders of the control groups that may limit this process: its own, then those around it.

    Some are not there: a container sees its own group as the root, though the membership names the path
    outside.
    """
    paths: dict[str, str] = {}
    if membership.exists():
        for line in membership.read_text().splitlines():
            _, names, path = line.split(":", 2)
            paths |= dict.fromkeys(names.split(","), path)
    for base, name in ((mounted, ""), (mounted / controller, controller)):  # version 2, version 1
        inside = Path(paths.get(name, "/")).parts[1:]
        if ".." in inside:  # a group outside of what this process sees
            inside = ()
        for depth in range(len(inside), -1, -1):
            yield base.joinpath(*inside[:depth])


class Others:
    """Sees what other processes use of the processor, from now until `used` is called."""

    def __init__(self) -> None:
        self._started, self._before = time.perf_counter(), cpu_seconds()

    @property
    def watched_s(self) -> float:
        """For how long they are watched, in seconds."""
        return time.perf_counter() - self._started

    def used(self, own: Set[int]) -> list[tuple[str, float]]:
        """(name, cores) of the processes whose numbers are not in `own`, the busiest first."""
        elapsed = self.watched_s
        found = [
            (name, (seconds - self._before.get((pid, name), 0.0)) / elapsed)
            for (pid, name), seconds in cpu_seconds().items()
            if pid not in own
        ]
        return sorted(found, key=lambda one: one[1], reverse=True)


def family() -> set[int]:
    """The numbers of this process and of all that it started, such as the workers of Ray."""
    own = psutil.Process()
    return {process.pid for process in (own, *own.children(recursive=True))}


def cpu_seconds() -> dict[tuple[int, str], float]:
    """(process, name) -> processor seconds so far, of every process but the kernel's.

    Threads of the kernel do not count: they also work for this process, such as clearing its memory.
    """
    seconds = {}
    for process in psutil.process_iter(["pid", "ppid", "name", "cpu_times"]):
        times, of_kernel = process.info["cpu_times"], sys.platform == "linux" and process.info["ppid"] == 2
        if times is not None and not of_kernel:
            seconds[process.info["pid"], process.info["name"] or "?"] = times.user + times.system
    return seconds


@contextmanager
def without_main() -> Iterator[None]:
    """Keep a process that starts now from importing the program: a script that calls run would run again."""
    program = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = program
