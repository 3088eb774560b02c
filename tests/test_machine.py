"""What control groups leave to a process, and what others use of the processor."""

import math
import os
import subprocess
import sys

import psutil
import pytest

from kdbench import machine
from kdbench.machine import Others, core_quota, cores, cpu_seconds, family, free_memory, memory_bytes

V1, V2 = "3:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n", "0::/slice/job\n"
SPIN = "print('spinning', flush=True)\nwhile True: pass"
GIB = 2**30


@pytest.fixture
def groups(tmp_path):
    """Writes files of control groups below a folder, and the file of this process's groups."""

    def write(membership, **files):
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "membership").write_text(membership)
        return tmp_path / "mounted", tmp_path / "membership"

    return write


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        (V2, {}, None),
        (V2, {"cpu.max": "max 100000\n"}, None),
        (V2, {"cpu.max": "150000 100000\n"}, 1.5),  # a container sees its own group as the root
        (V2, {"slice/job/cpu.max": "max 100000\n", "slice/cpu.max": "200000 50000\n"}, 4.0),
        (V2, {"slice/job/cpu.max": "100000 100000\n", "slice/cpu.max": "200000 50000\n"}, 1.0),
        (V2, {"other/cpu.max": "100000 100000\n"}, None),
        ("0::/../host\n", {"cpu.max": "300000 100000\n", "host/cpu.max": "100000 100000\n"}, 3.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        (
            V1,
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/docker/abc/cpu.cfs_quota_us": "50000\n",
                "cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
    ],
)
def test_the_smallest_quota_of_the_own_groups_counts(groups, membership, files, quota):
    assert core_quota(*groups(membership, **files)) == quota


def test_a_process_without_control_groups_has_no_limit(tmp_path):
    assert core_quota(tmp_path, tmp_path / "none") is None
    assert memory_bytes(tmp_path, tmp_path / "none") == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"), [(8, None, 8), (8, 2.9, 2), (8, 0.5, 1), (2, 6.0, 2), (3, 3.0, 3)]
)
def test_a_process_has_the_cores_of_its_affinity_and_of_its_quota(monkeypatch, affinity, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(affinity)), raising=False)
    monkeypatch.setattr(machine, "core_quota", lambda: quota)
    assert cores() == expected


def memory(limit, used, **stat):
    """The files of a group of version 2 with a limit on memory."""
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": "".join(f"{name} {value}\n" for name, value in stat.items()),
    }


def old_memory(limit, used, **stat):
    names = {"max": "limit_in_bytes", "current": "usage_in_bytes", "stat": "stat"}
    files = memory(limit, used, **stat)
    return {f"memory.{names[name.partition('.')[2]]}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("files", "limit", "left"),
    [
        (memory(1000, 300, anon=100, inactive_file=50), 1000, 750),
        (memory("max", 300), None, None),
        ({f"memory/{n}": t for n, t in old_memory(1000, 1300, total_inactive_file=400).items()}, 1000, 100),
        ({f"memory/{n}": t for n, t in old_memory(1000, 1300).items()}, 1000, 0),
        ({f"memory/{n}": t for n, t in old_memory(9223372036854771712, 1300).items()}, None, None),
        ({}, None, None),
        ({f"slice/{n}": t for n, t in memory(500, 100).items()} | memory(1000, 300), 500, 400),
        ({f"slice/{n}": t for n, t in memory(500, 100).items()} | memory(600, 550), 500, 50),
    ],
)
def test_a_container_leaves_what_its_limits_leave(groups, files, limit, left):
    found = groups("4:memory:/docker/abc\n0::/slice/job\n", **files)
    assert memory_bytes(*found) == (limit or psutil.virtual_memory().total)
    if left is None:
        assert left_of_machine(free_memory(*found))
    else:
        assert free_memory(*found) == left


def left_of_machine(free):
    """Whether this may be what is free on the machine, which changes from moment to moment."""
    return abs(free - psutil.virtual_memory().available) < 4 * GIB


def test_what_another_process_uses_is_seen_by_its_name_and_not_as_ours():
    spinning = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE, text=True)
    try:
        assert spinning.stdout.readline() == "spinning\n"
        assert {os.getpid(), spinning.pid} <= family()
        watched = Others()
        before = psutil.Process(spinning.pid).cpu_times().user
        while psutil.Process(spinning.pid).cpu_times().user < before + 0.2:
            math.sqrt(2.0)
        own = watched.used({os.getpid(), spinning.pid})
        used = watched.used({os.getpid()})
    finally:
        spinning.kill()
        spinning.communicate()
    assert len(used) == len(own) + 1
    assert [share for _, share in used] == sorted((share for _, share in used), reverse=True)
    assert sum(share for _, share in used) * watched.watched_s >= 0.19  # what it used and others may add to


@pytest.mark.skipif(sys.platform != "linux", reason="kernel threads are told apart on Linux only")
def test_the_kernels_own_threads_do_not_count():
    kernel = {process.pid for process in psutil.process_iter() if process.ppid() == 2}
    seen = {pid for pid, _ in cpu_seconds()}
    assert seen
    assert not seen & kernel
