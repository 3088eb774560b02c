"""What machines have and what a cell needs; the only place that starts, joins and asks Ray.

Ray serves a whole process: only one `session` is open at a time, and a session inside it uses the same Ray.
"""

import heapq
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from kdbench.errors import RequestError, first_line, last_line

STORE_BYTES = 128 << 20  # of Ray's object store: results are files, nothing large goes through it
# The name of a socket may have 107 bytes. Ray puts its sockets below the folder of a session, as in
# FOLDER/kdb1234567-abcdefgh/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store
LONGEST_FOLDER = 107 - 83
RETRIES = 2  # after a lost worker or node; an exception is never tried again

T = TypeVar("T")


class LostError(RuntimeError):
    """A call on a node failed: it raised, or its process or node is gone."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a cell occupies while it runs."""

    cpus: int = 1
    gpus: float = 0.0
    memory_bytes: int = 0  # 0: unknown, so nothing is reserved

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
    id: str = ""  # Ray's name of it
    address: str = ""

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
    """Seconds until the last of (seconds, need) ends, if each starts, in this order, where it first fits.

    Raises ValueError for a need that no node can meet.
    """
    free = [[node.cpus, node.gpus, node.memory_bytes] for node in cluster.nodes]
    running: list[tuple[float, int, int, Need]] = []  # a heap of (end, tie-break, node, need)
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


def address_of(asked: str | None) -> str | None:
    """The address of the Ray cluster to join: the one asked for, else that of RAY_ADDRESS, if any."""
    return asked or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def session(address: str | None = None, here: Cluster | None = None) -> Iterator[Cluster]:
    """Join the Ray cluster at `address`, or start one that has what `here` has (None: this machine).

    Leaves it at the end, and stops what was started. A session that is open is used and left open. Raises
    RequestError if Ray does not start or no cluster answers.
    """
    import ray

    with ExitStack() as stack:
        if not ray.is_initialized():
            stack.enter_context(_quiet())
            folder = stack.enter_context(nullcontext() if address else _session_folder())
            stack.callback(ray.shutdown)
            _init(address, here or this_machine(), folder)
        yield ray_cluster()


def ray_cluster() -> Cluster:
    """The nodes of the open session that are alive."""
    import ray

    return Cluster(nodes=tuple(_node(node) for node in ray.nodes() if node["Alive"]))


def on_every_node(function: Callable[..., T], *arguments: object) -> list[tuple[Node, T]]:
    """What `function(*arguments)` returns on each node; all run at the same time, without a GPU.

    Raises RequestError if a node is lost or the function raises.
    """
    import ray
    from ray.exceptions import RayError

    remote = ray.remote(num_cpus=0, max_retries=1)(_without_gpu)
    shared = [ray.put(argument) for argument in arguments]
    nodes = ray_cluster().nodes
    tasks = [remote.options(scheduling_strategy=_only(node)).remote(function, *shared) for node in nodes]
    found, complaints = list[tuple[Node, T]](), []
    for node, task in zip(nodes, tasks, strict=True):
        try:
            found.append((node, ray.get(task)))
        except RayError as error:
            complaints.append(f"node {node.name} ({node.address}): {last_line(str(error))}")
    if complaints:
        raise RequestError(complaints)
    return found


def run_alone(node: Node, num_gpus: int, function: Callable[..., T], *arguments: object) -> T:
    """What `function(*arguments)` returns in a new process that has all cores of the node.

    Raises LostError, in one line, if it raises or if its process is lost more often than RETRIES.
    """
    import ray
    from ray.exceptions import RayError

    remote = ray.remote(max_calls=1, max_retries=RETRIES)(_with_gpu if num_gpus else _without_gpu)
    options = {"num_cpus": node.cpus, "num_gpus": num_gpus, "scheduling_strategy": _only(node)}
    try:
        result: T = ray.get(remote.options(**options).remote(function, *arguments))
    except RayError as error:
        raise LostError(last_line(str(error))) from error
    return result


def _without_gpu(function: Callable[..., T], *arguments: object) -> T:
    """Call it in a process that sees no GPU: Ray leaves a task without GPUs all of them in sight."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return function(*arguments)


def _with_gpu(function: Callable[..., T], *arguments: object) -> T:
    return function(*arguments)


def _only(node: Node) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)


def _node(told: dict[str, Any]) -> Node:
    has = told["Resources"]
    return Node(
        name=told["NodeManagerHostname"],
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        memory_bytes=has.get("memory", 0.0),
        id=told["NodeID"],
        address=told["NodeManagerAddress"],
    )


def _init(address: str | None, here: Cluster, folder: str | None) -> None:
    import ray

    own: dict[str, Any] = {
        "num_cpus": here.cpus,
        "object_store_memory": STORE_BYTES,
        "include_dashboard": False,
        "_temp_dir": folder,
    }
    try:
        with _handlers_kept():
            ray.init(
                address=address or "local",
                log_to_driver=False,
                configure_logging=False,
                **({} if address else own),
            )
    except Exception as error:  # each part of Ray fails in its own way
        where = f"no Ray cluster at {address}" if address else "Ray does not start here"
        raise RequestError(
            [f"{where}: {first_line(error)}. `kdbench run --executor local` needs no Ray"]
        ) from error


@contextmanager
def _session_folder() -> Iterator[str]:
    """A new folder with a name that is short enough for the sockets of Ray; RequestError if there is none."""
    chosen, usual = os.environ.get("RAY_TMPDIR"), tempfile.gettempdir()
    if chosen:
        parents = [chosen]
    else:
        parents = [parent for parent in (usual, "/tmp") if len(os.fsencode(parent)) <= LONGEST_FOLDER]
    for parent in parents:
        try:
            folder = tempfile.mkdtemp(prefix=f"kdb{os.getpid()}-", dir=parent)
        except OSError:
            continue
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    raise RequestError(
        [
            f"Ray puts its sockets in a folder and cannot write in {' or '.join(parents)}. "
            f"Set RAY_TMPDIR to a folder of this machine whose name has at most {LONGEST_FOLDER} bytes. "
            "`kdbench run --executor local` needs no Ray"
        ]
    )


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray would replace it when it starts."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray's notes, such as how it protects the cluster of one machine."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray._private")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
