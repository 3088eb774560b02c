"""What machines have and what a cell needs; plain numbers, the same for every executor."""

import heapq
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a cell occupies while it runs."""

    cpus: int = 1
    gpus: float = 0.0
    memory_bytes: int = 0  # 0: not known, nothing is set aside

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else ""
        return f"{self.cpus} CPUs, {self.gpus:g} GPUs{memory}"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine."""

    name: str
    cpus: float
    gpus: float
    memory_bytes: float

    def fits(self, need: Need) -> int:
        """How many such cells it can run at once."""
        pairs = ((self.cpus, need.cpus), (self.gpus, need.gpus), (self.memory_bytes, need.memory_bytes))
        return int(min(has / wants + 1e-9 for has, wants in pairs if wants))

    def __str__(self) -> str:
        gib = self.memory_bytes / 2**30
        return f"{self.name}: {self.cpus:g} CPUs, {self.gpus:g} GPUs, {gib:.1f} GiB"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """All machines that cells can run on."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> int:
        return int(sum(node.cpus for node in self.nodes))

    @property
    def gpus(self) -> int:
        return int(sum(node.gpus for node in self.nodes))

    def fits(self, need: Need) -> int:
        """How many such cells it can run at once; 0: never one."""
        return sum(node.fits(need) for node in self.nodes)

    def __str__(self) -> str:
        return "; ".join(map(str, self.nodes))


def this_machine() -> Cluster:
    """The machine of this process, with the cores that it may use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = torch.cuda.device_count()
    return Cluster(nodes=(Node(name=socket.gethostname(), cpus=cores, gpus=gpus, memory_bytes=memory),))


def makespan_s(cells: Sequence[tuple[float, Need]], cluster: Cluster) -> float:
    """Seconds until the last of (seconds, need) has ended, each started where it first fits, in this order.

    Raises ValueError for a need that no node can meet.
    """
    free = [[node.cpus, node.gpus, node.memory_bytes] for node in cluster.nodes]
    running: list[tuple[float, int, int, Need]] = []  # a heap: when it ends, tie-break, node, what it has
    now = 0.0
    for number, (seconds, need) in enumerate(cells):
        if not cluster.fits(need):
            raise ValueError(f"no node has {need}")
        while (node := _first_fit(free, need)) is None:
            now, _, ended_on, given = heapq.heappop(running)
            _give(free[ended_on], given, +1)
        _give(free[node], need, -1)
        heapq.heappush(running, (now + seconds, number, node, need))
    return max((entry[0] for entry in running), default=now)


def _first_fit(free: list[list[float]], need: Need) -> int | None:
    wants = (need.cpus, need.gpus, need.memory_bytes)
    for index, has in enumerate(free):
        if all(h >= w - 1e-9 for h, w in zip(has, wants, strict=True)):
            return index
    return None


def _give(free: list[float], need: Need, sign: int) -> None:
    for index, amount in enumerate((need.cpus, need.gpus, need.memory_bytes)):
        free[index] += sign * amount
