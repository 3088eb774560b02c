"""Leases say who runs a cell: one file per running cell, so that no two processes run the same one.

The file `leases/<cell_id>.<number>` is a lease: it says who runs the cell, where, and how far it is. Its
owner writes it again every RENEW_S seconds. A lease is void if it was not renewed for EXPIRE_S, or if its
process is known to be dead; then the process that creates the next number takes over. A disk creates files
atomically, also over NFS. An object store cannot create a file without overwriting another one: there each
claim has its own name, and a process that sees another claim after it wrote its own withdraws. If a lease is
damaged, the age of its file decides.
"""

import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kdbench.results.storage import Storage
from kdbench.results.store import LEASES

RENEW_S = 5.0
EXPIRE_S = 180.0  # well above the caching of network file systems and the differences of clocks
FOLDER = LEASES.folder
NAME = re.compile(rf"{FOLDER}/.+\.\d+(-[0-9a-f]{{8}})?")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that runs a cell."""

    cell_id: str
    run_id: str
    label: str = ""
    host: str = field(default_factory=socket.gethostname)
    machine: str = field(default_factory=lambda: _machine())
    pid: int = field(default_factory=os.getpid)
    process_started: str = field(default_factory=lambda: _process_started(os.getpid()))
    since: float = field(default_factory=time.time)
    renewed: float = field(default_factory=time.time)
    progress: dict[str, Any] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Whether this process may still be running the cell."""
        if self.machine and self.machine == _machine():
            return _process_started(self.pid) == self.process_started
        return time.time() - self.renewed < EXPIRE_S

    def content(self) -> bytes:
        """The content of a lease's file."""
        return json.dumps(asdict(self)).encode()


class Lease:
    """The right to run one cell, kept until `release`."""

    def __init__(self, storage: Storage, name: str, holder: Holder) -> None:
        self.storage, self.name, self.holder = storage, name, holder

    def held(self) -> bool:
        """Whether this lease still counts: others take over from a process that paused for EXPIRE_S.

        The name alone does not tell: after `revoke`, the numbers begin again.
        """
        stored = _read(self.storage, self.name)
        if stored is None:
            return self.storage.exists(self.name)
        return self.holder == replace(stored, renewed=self.holder.renewed, progress=self.holder.progress)

    def renew(self, progress: dict[str, Any]) -> None:
        """Tell everybody that the cell is still running, and how far it is."""
        if self.held():
            self.holder = replace(self.holder, renewed=time.time(), progress=progress)
            self.storage.write(self.name, self.holder.content())

    def release(self) -> None:
        """Let others run the cell; do nothing if somebody else has taken over."""
        if self.held():
            self.storage.remove(self.name)

    @contextmanager
    def kept(self, progress: Callable[[], dict[str, Any]]) -> Iterator[None]:
        """Renew the lease in a thread while the block runs, and release it afterwards."""
        ended = threading.Event()

        def keep() -> None:
            while not ended.wait(RENEW_S):
                try:
                    self.renew(progress())
                except OSError:  # a full disk, a lost network: writing rows fails, too, or the lease expires
                    continue

        keeper = threading.Thread(target=keep, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            with suppress(OSError):  # it expires by itself, and the error of the block matters more
                self.release()


def acquire(storage: Storage, holder: Holder) -> Lease | None:
    """Take a cell's lease; None while a process that may be alive holds it."""
    others = _holders(storage, holder.cell_id)
    if any(other is None or other.alive for _, other in others):
        return None
    name = _claim(storage, holder, [name for name, _ in others])
    if name is None:
        return None
    for old, _ in others:
        storage.remove(old)
    return Lease(storage, name, holder)


def holders(storage: Storage) -> list[Holder]:
    """Everybody who runs a cell now."""
    everybody = [_read(storage, name) for name in _all_names(storage)]
    return [holder for holder in everybody if holder is not None and holder.alive]


def leased(storage: Storage) -> set[str]:
    """The ids of cells that have a lease, valid or void."""
    return {_cell_of(name) for name in _all_names(storage)}


def revoke(storage: Storage, cell_id: str, run_id: str) -> None:
    """Remove the lease of a lost worker of this run. If the worker still lives, its result is not kept."""
    for name, holder in _holders(storage, cell_id):
        if holder is not None and holder.run_id == run_id:
            storage.remove(name)


def remove_void(storage: Storage) -> None:
    """Remove the leases of dead processes."""
    for name in _all_names(storage):
        holder = _read(storage, name)
        if holder is not None and not holder.alive:
            storage.remove(name)


def _claim(storage: Storage, holder: Holder, void: list[str]) -> str | None:
    if storage.local:
        last = max((int(name.rpartition(".")[2]) for name in void), default=0)
        name = f"{FOLDER}/{holder.cell_id}.{last + 1:06}"
        return name if storage.create(name, holder.content()) else None
    name = f"{FOLDER}/{holder.cell_id}.{time.time_ns()}-{os.urandom(4).hex()}"
    storage.write(name, holder.content())
    if set(_names(storage, holder.cell_id)) <= {name, *void}:
        return name
    storage.remove(name)
    time.sleep(random.uniform(0, 0.2))  # two processes that withdrew at once should not come back at once
    return None


def _holders(storage: Storage, cell_id: str) -> list[tuple[str, Holder | None]]:
    """Name and holder of each lease of a cell; the holder is None if the lease cannot be read now."""
    return [(name, _read(storage, name)) for name in _names(storage, cell_id)]


def _names(storage: Storage, cell_id: str) -> list[str]:
    return [name for name in _all_names(storage) if name.startswith(f"{FOLDER}/{cell_id}.")]


def _all_names(storage: Storage) -> list[str]:
    """Names of all leases, without copies of them and files of other programs."""
    return [name for name in storage.names(FOLDER) if NAME.fullmatch(name)]


def _cell_of(name: str) -> str:
    return name.removeprefix(f"{FOLDER}/").partition(".")[0]


def _read(storage: Storage, name: str) -> Holder | None:
    """The holder of a lease; None if it was released meanwhile or cannot be read now."""
    content = _read_twice(storage, name)
    if content is None:
        return None
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):  # cut off by a crash: the holder may live until the lease expires
        written = time.time() - storage.age_s(name)
        return Holder(
            cell_id=_cell_of(name),
            run_id="unknown",
            host="unknown",
            machine="",
            pid=0,
            process_started="",
            since=written,
            renewed=written,
        )


def _read_twice(storage: Storage, name: str) -> bytes | None:
    for _ in range(2):  # a network folder can fail once
        try:
            return storage.read(name)
        except FileNotFoundError:
            return None
        except OSError:
            continue
    return None


def _machine() -> str:
    """Names this machine and its namespace of process numbers; "" if the system does not tell them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: only the time of the last renewal tells who is dead
        return ""


def _process_started(pid: int) -> str:
    """When a process began, in ticks of the kernel, since numbers of processes are used again; "" if dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]
