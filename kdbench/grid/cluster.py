"""Machines and the needs of cells; the only module that starts, joins and asks Ray.

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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from kdbench import machine
from kdbench.engine.nvidia import Gpus, gpus_here
from kdbench.errors import RequestError, first_line, last_line, number_of

STORE_BYTES = 128 << 20  # of Ray's object store: results are files, nothing large goes through it
# The name of a socket may have 107 bytes. Ray puts its sockets below the folder of a session, as in
# FOLDER/kdb1234567-abcdefgh/session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store
LONGEST_FOLDER = 107 - 83
WAIT_TICK_S = 1.0  # between two looks at nodes that are waited for
FREE_S = 600.0  # a machine that is not free after so long is in use by something else
RETRIES = 2  # after a lost worker or node; an exception is never tried again

T = TypeVar("T")


class LostError(RuntimeError):
    """A call on a node failed: it raised, or its process or node is gone."""


class NotFreeError(LostError):
    """A machine did not get free for a call that needs it alone."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """The resources that a cell occupies while it runs."""

    cpus: int = 1
    gpus: float = 0.0
    memory_bytes: int = 0  # 0: unknown, so nothing is reserved

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:.1f} GiB" if self.memory_bytes else ""
        return f"{number_of(self.cpus, 'CPU')}, {number_of(self.gpus, 'GPU')}{memory}"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine."""

    name: str
    cpus: float
    gpus: float
    memory_bytes: float
    limited: bool = False  # by a quota on cores, which torch does not see
    gpus_are: Gpus = field(default_factory=Gpus)
    id: str = ""  # Ray's name of it
    address: str = ""

    def fits(self, need: Need) -> int:
        """How many such cells it can run at once."""
        pairs = ((self.cpus, need.cpus), (self.memory_bytes, need.memory_bytes))
        fit = [int(has / wants + 1e-9) for has, wants in pairs if wants]
        if need.gpus:  # each GPU by itself: a cell does not get the rests of two of them
            fit.append(int(self.gpus) * int(1 / need.gpus + 1e-9))
        return min(fit)

    def __str__(self) -> str:
        gib = self.memory_bytes / 2**30
        return f"{self.name}: {number_of(self.cpus, 'CPU')}, {number_of(self.gpus, 'GPU')}, {gib:.1f} GiB"


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

    @property
    def gpus_are(self) -> Gpus:
        """Facts that hold for all its GPUs, as far as they are known."""
        each = [node.gpus_are for node in self.nodes if node.gpus]
        sizes = [gpus.memory_bytes for gpus in each if gpus.memory_bytes]
        return Gpus(min(sizes, default=0), any(gpus.exclusive for gpus in each))

    def fits(self, need: Need) -> int:
        """How many such cells it can run at once; 0: never one."""
        return sum(node.fits(need) for node in self.nodes)

    def __str__(self) -> str:
        return "; ".join(map(str, self.nodes))


def this_machine() -> Cluster:
    """The machine of this process, with the cores and the memory that it may use."""
    import torch

    gpus = torch.cuda.device_count()
    here = Node(
        name=socket.gethostname(),
        cpus=machine.cores(),
        gpus=gpus,
        memory_bytes=machine.memory_bytes(),
        limited=machine.core_quota() is not None,
        gpus_are=gpus_here() if gpus else Gpus(),
    )
    return Cluster(nodes=(here,))


def makespan_s(cells: Sequence[tuple[float, Need]], cluster: Cluster) -> float:
    """Seconds until the last of (seconds, need) ends, if each starts, in this order, where it first fits.

    Raises ValueError for a need that no node can meet.
    """
    free = [_Free(node) for node in cluster.nodes]
    running: list[tuple[float, int, _Free, int, Need]] = []  # a heap of (end, tie-break, node, GPU, need)
    now = 0.0
    for number, (seconds, need) in enumerate(cells):
        if not cluster.fits(need):
            raise ValueError(f"no node has {need}")
        while (node := next((node for node in free if node.gpu_for(need) is not None), None)) is None:
            now, _, ended_on, gpu, given = heapq.heappop(running)
            ended_on.give(given, gpu, +1)
        gpu = node.gpu_for(need) or 0
        node.give(need, gpu, -1)
        heapq.heappush(running, (now + seconds, number, node, gpu, need))
    return max((entry[0] for entry in running), default=now)


class _Free:
    """The free resources of a node, each of its GPUs by itself."""

    def __init__(self, node: Node) -> None:
        self.cpus, self.memory_bytes, self.gpus = node.cpus, node.memory_bytes, [1.0] * int(node.gpus)

    def gpu_for(self, need: Need) -> int | None:
        """The number of the first GPU that has room for it, 0 if it needs none; None if it does not fit."""
        if self.cpus < need.cpus - 1e-9 or self.memory_bytes < need.memory_bytes:
            return None
        if not need.gpus:
            return 0
        return next((index for index, free in enumerate(self.gpus) if free >= need.gpus - 1e-9), None)

    def give(self, need: Need, gpu: int, sign: int) -> None:
        """Give back what a cell had (+1), or take what it needs (-1)."""
        self.cpus += sign * need.cpus
        self.memory_bytes += sign * need.memory_bytes
        if need.gpus:
            self.gpus[gpu] += sign * need.gpus


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


def cluster_at(address: str, gpus: int | None, timeout_s: float) -> Cluster:
    """The Ray cluster at an address, with facts about the GPUs of its nodes; waits until it has `gpus` GPUs.

    Raises RequestError if it does not have them in time, or if a node does not answer.
    """
    with session(address) as cluster:
        if gpus:
            cluster = wait_for_gpus(gpus, timeout_s)
        told = {node.id: found for node, found in on_every_node(gpus_here)} if cluster.gpus else {}
        return Cluster(
            nodes=tuple(replace(node, gpus_are=told.get(node.id, Gpus())) for node in cluster.nodes)
        )


def wait_for_gpus(count: int, timeout_s: float) -> Cluster:
    """Ask an autoscaler for so many GPUs, and wait until the cluster of the open session has them.

    Raises RequestError if it does not have them in time.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{"GPU": 1}] * count)  # without an autoscaler it does nothing
    deadline = time.monotonic() + timeout_s
    while (cluster := ray_cluster()).gpus < count:
        if time.monotonic() > deadline:
            within = number_of(timeout_s / 60, "minute")
            waited = f"{number_of(count, 'GPU')} did not come within {within} (--wait)"
            raise RequestError([f"{waited}. The cluster has {cluster}"])
        time.sleep(WAIT_TICK_S)
    return cluster


def on_every_node(function: Callable[..., T], *arguments: object) -> list[tuple[Node, T]]:
    """Call `function(*arguments)` on all nodes at the same time, without a GPU; returns (node, result) pairs.

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
    """Call `function(*arguments)` in a new process that has all cores of the node; returns its result.

    Raises LostError, in one line, if it raises or if its process is lost more often than RETRIES. Raises
    NotFreeError if something else has cores or GPUs of the node for FREE_S.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayError

    remote: Any = ray.remote(_Alone)
    options = {"num_cpus": node.cpus, "num_gpus": num_gpus, "scheduling_strategy": _only(node)}
    for left in range(RETRIES, -1, -1):
        alone: Any = remote.options(**options).remote(num_gpus)
        try:
            ray.get(alone.begun.remote(), timeout=FREE_S)
            result: T = ray.get(alone.call.remote(function, *arguments))
            return result
        except GetTimeoutError as error:
            waited = f"node {node.name} was not free within {FREE_S / 60:g} minutes"
            raise NotFreeError(f"{waited}: something else uses the cluster") from error
        except RayError as error:
            if not left or not isinstance(error, RayActorError):
                raise LostError(last_line(str(error))) from error
        finally:
            ray.kill(alone)
    raise AssertionError("the last attempt returns or raises")


class _Alone:
    """A process of Ray that has a machine for itself; unlike a task it tells when it has begun."""

    def __init__(self, num_gpus: int) -> None:
        if not num_gpus:
            see_no_gpu()

    def begun(self) -> None:
        """Return as soon as the process has begun."""

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call the function; returns its result."""
        return function(*arguments)


def see_no_gpu() -> None:
    """Hide all GPUs from this process: Ray leaves one without GPUs all of them in sight."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _without_gpu(function: Callable[..., T], *arguments: object) -> T:
    see_no_gpu()
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
        "num_gpus": here.gpus,
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
    """A context without Ray's notes, such as one on how it protects the cluster of one machine."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.train", "ray._private")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
