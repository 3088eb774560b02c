"""Two processes never run the same cell; whoever dies is followed by another."""

import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from kdbench.grid import lease
from kdbench.grid.lease import EXPIRE_S, Holder, acquire, holders, remove_void, revoke
from kdbench.results.storage import Storage

DEAD = {"pid": 2**22 + 1, "process_started": "1"}  # no process has such a number
ELSEWHERE = {"machine": "another", "host": "far"}


def holder(run_id: str = "run-1", **changes: object) -> Holder:
    return replace(Holder(cell_id="abc", run_id=run_id), **changes)


def claim(storage: Storage, **changes: object) -> None:
    """What a holder that is no longer in this process left."""
    storage.write("leases/abc.000001", holder("old", **changes).content())


@pytest.fixture(params=["disk", "object store"])
def storage(request, tmp_path, monkeypatch):
    """A disk; and the same without atomic creation, as in an object store (test_storage.py has S3)."""
    found = Storage(tmp_path)
    if request.param == "object store":
        found = Storage(f"mock://{tmp_path}")
        on_disk = Storage(tmp_path)
        for name in ("exists", "read", "write", "remove", "age_s", "_all"):
            monkeypatch.setattr(found, name, getattr(on_disk, name))
        assert found.local is None
    return found


def test_one_of_two_gets_it_and_then_the_other(storage):
    first = acquire(storage, holder("run-1"))
    assert first is not None
    assert acquire(storage, holder("run-2")) is None
    assert [h.run_id for h in holders(storage)] == ["run-1"]
    first.release()
    assert holders(storage) == []
    second = acquire(storage, holder("run-2"))
    assert second is not None
    assert second.held()


def test_other_cells_are_free(storage):
    assert acquire(storage, holder())
    assert acquire(storage, holder(cell_id="abcd"))
    assert acquire(storage, holder(cell_id="ab"))


@pytest.mark.parametrize("renewed_ago", [1.0, 10 * EXPIRE_S])
def test_a_dead_process_of_this_machine_holds_nothing(storage, renewed_ago):
    claim(storage, **DEAD, renewed=time.time() - renewed_ago)
    assert holders(storage) == []
    assert acquire(storage, holder("new"))


def test_a_living_process_of_this_machine_holds_for_ever(storage):
    claim(storage, renewed=time.time() - 10 * EXPIRE_S)
    assert acquire(storage, holder("new")) is None


@pytest.mark.parametrize(("ago", "free"), [(0.5 * EXPIRE_S, False), (1.5 * EXPIRE_S, True)])
def test_of_another_machine_only_the_time_tells(storage, ago, free):
    claim(storage, **ELSEWHERE, renewed=time.time() - ago)
    assert (acquire(storage, holder("new")) is not None) == free


def test_whoever_was_followed_no_longer_holds_it_and_does_not_come_back(storage):
    old = acquire(storage, holder("old", **ELSEWHERE, renewed=time.time() - 2 * EXPIRE_S))
    new = acquire(storage, holder("new"))
    assert new is not None
    old.renew({"phase": "train"})
    assert not old.held()
    assert new.held()
    assert [h.run_id for h in holders(storage)] == ["new"]


def test_a_lost_worker_of_our_own_run_is_followed_at_once(storage):
    acquire(storage, holder("run-1", **ELSEWHERE))
    revoke(storage, "abc", "another-run")
    assert acquire(storage, holder("run-1")) is None
    revoke(storage, "abc", "run-1")
    assert acquire(storage, holder("run-1")) is not None


def test_a_lost_worker_that_lives_on_does_not_hold_what_its_follower_holds(storage):
    lost = acquire(storage, holder("run-1", since=1.0))
    revoke(storage, "abc", "run-1")
    assert not lost.held()
    follower = acquire(storage, holder("run-1", since=2.0))
    lost.renew({"phase": "train"})
    lost.release()
    assert follower.held()
    assert not lost.held()
    follower.renew({"phase": "evaluate"})
    assert [h.progress for h in holders(storage)] == [{"phase": "evaluate"}]


def test_it_is_renewed_with_the_progress_and_released_at_the_end(storage, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    told = threading.Event()

    def progress() -> dict[str, object]:
        told.set()
        return {"phase": "train", "done": 7}

    held = acquire(storage, holder(renewed=1.0, since=1.0))
    with held.kept(progress):
        assert told.wait(10)
        deadline = time.monotonic() + 10
        while not (now := holders(storage)) or not now[0].progress:
            assert time.monotonic() < deadline
        assert now[0].progress == {"phase": "train", "done": 7}
        assert now[0].renewed > 1.0
    assert storage.names("leases") == []


def test_an_error_in_the_block_releases_it(storage):
    with pytest.raises(KeyError), acquire(storage, holder()).kept(dict):
        raise KeyError
    assert acquire(storage, holder())


@pytest.mark.parametrize("content", [b"", b'{"cell_id": "ab', b"null", b'{"written by": "another version"}'])
@pytest.mark.parametrize(("ago", "free"), [(0.5 * EXPIRE_S, False), (1.5 * EXPIRE_S, True)])
def test_of_a_damaged_one_only_the_age_tells(storage, tmp_path, content, ago, free):
    storage.write("leases/abc.000001", content)
    os.utime(tmp_path / "leases/abc.000001", (time.time() - ago,) * 2)
    assert [h.cell_id for h in holders(storage)] == ([] if free else ["abc"])
    revoke(storage, "abc", "run-1")
    assert (acquire(storage, holder()) is not None) == free
    remove_void(storage)
    assert len(storage.names("leases")) == 1


def test_one_that_cannot_be_read_is_somebodys(storage, monkeypatch):
    claim(storage, **DEAD)
    read, failures = storage.read, [1, 2, 3, 4, 5]

    def failing(name):
        if failures:
            failures.pop()
            raise OSError(errno.EIO, "Input/output error")
        return read(name)

    monkeypatch.setattr(storage, "read", failing)
    assert holders(storage) == []
    assert acquire(storage, holder()) is None
    assert failures == [1]
    assert acquire(storage, holder()) is not None  # the fifth failure is followed by a success


def test_a_lease_that_cannot_be_released_hides_no_error(storage, monkeypatch):
    def fail(name):
        raise OSError(errno.EIO, "Input/output error")

    held = acquire(storage, holder())
    monkeypatch.setattr(storage, "remove", fail)
    with pytest.raises(KeyError), held.kept(dict):
        raise KeyError


def test_void_ones_are_cleared_away_and_others_are_not(storage):
    claim(storage, **DEAD)
    storage.write("leases/def.000001", holder(cell_id="def").content())
    remove_void(storage)
    assert storage.names("leases") == ["leases/def.000001"]


CLAIM = """
import sys
from kdbench.grid.lease import Holder, acquire
from kdbench.results.storage import Storage
storage = Storage(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = [n for n in range(100) if acquire(storage, Holder(cell_id=f"cell{n:03}", run_id=sys.argv[2]))]
print(*won, flush=True)
sys.stdin.readline()
"""


def test_processes_that_race_for_a_hundred_cells_share_them(tmp_path):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path), f"run-{n}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for n in range(4)
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [int(word) for racer in racers for word in racer.stdout.readline().split()]
    for racer in racers:
        racer.communicate("done\n")
    assert sorted(won) == list(range(100))  # each once
