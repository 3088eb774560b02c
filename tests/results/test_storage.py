"""Results on a disk and on a real S3 server of this machine: whole files, the same answers."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdbench.errors import RequestError
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, KINDS, End, Results, read

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server, with an empty bucket `lab`."""
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    from pyarrow.fs import S3FileSystem

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    S3FileSystem(
        endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
    ).create_dir("lab")
    yield f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    running.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["path", "file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        address = request.getfixturevalue("s3")
        return Storage(f"s3://lab/{tmp_path.name}{address}")
    return Storage(tmp_path if request.param == "path" else f"file://{tmp_path}")


def test_what_is_written_is_there_whole_and_can_go_again(storage):
    assert storage.names("cells") == []
    assert not storage.exists("cells/a")
    storage.write("cells/b", b"two")
    storage.write("cells/a", b"one")
    storage.write("cells/a", memoryview(b"one again"))
    assert storage.names("cells") == ["cells/a", "cells/b"]
    assert storage.read("cells/a") == b"one again"
    storage.remove("cells/a")
    storage.remove("cells/a")
    assert storage.names("cells") == ["cells/b"]
    with pytest.raises(FileNotFoundError):
        storage.read("cells/a")


def test_text_is_added_to_the_end_of_a_file(storage):
    storage.append("runs/a.log", b"one\n")
    storage.append("runs/a.log", b"two\n")
    assert storage.read("runs/a.log") == b"one\ntwo\n"


def test_rows_are_read_from_where_they_were_written(storage):
    results = Results(storage)
    row = {"category": "bottle", "status": "ok", "image_auroc": 0.5}
    results.check_writable()
    results.write(CELLS, [{"cell_id": "abc", "run_id": "r1", **row}])
    results.write(CELLS, [{"cell_id": "def", "run_id": "r2", **row, "status": "failed"}])
    ends = results.ends(["abc", "def", "ghi"])
    assert ends == {"abc": End(status="ok", run_id="r1"), "def": End(status="failed", run_id="r2")}
    assert results.end_of("abc").run_id == "r1"
    assert results.end_of("ghi") is None
    assert sorted(read(storage, CELLS)["cell_id"].to_pylist()) == ["abc", "def"]
    assert storage.names("cells") == ["cells/abc.parquet", "cells/def.parquet"]


def test_a_file_that_is_being_written_is_nobodys(storage):
    storage.write("cells/.abc.parquet.1234.tmp", b"half")
    storage.write("cells/.def.parquet.1234.tmp", b"half")
    assert storage.names("cells") == []
    Results(storage).remove_unfinished({"abc"})
    assert storage.unfinished("cells") == ["cells/.def.parquet.1234.tmp"]


@pytest.mark.parametrize("part", [kind.folder for kind in KINDS])
def test_what_nobody_finished_goes_after_a_day(tmp_path, part):
    """A sweep's trials have no leases: only the time tells that nobody writes on their files any more."""
    storage = Storage(tmp_path)
    new, old = f"{part}/.new.1234.tmp", f"{part}/.old.1234.tmp"
    for name in (new, old):
        storage.write(name, b"half")
    aged(tmp_path / old, 2 * 86400)
    Results(storage).remove_unfinished({"abc"})
    assert storage.unfinished(part) == [new]


def test_how_old_a_file_is(storage, tmp_path):
    assert storage.age_s("cells/a") == 0
    storage.write("cells/a", b"one")
    assert -2 < storage.age_s("cells/a") < 20
    if storage.local:
        aged(tmp_path / "cells/a", 1000)
        assert 1000 <= storage.age_s("cells/a") < 1020


def test_a_file_is_moved_with_its_content(storage):
    storage.write("cells/a", b"one")
    storage.move("cells/a", "pruned/now/cells/a")
    storage.move("cells/a", "pruned/now/cells/b")  # it has gone: nothing to move
    assert (storage.names("cells"), storage.names("pruned/now/cells")) == ([], ["pruned/now/cells/a"])
    assert storage.size_bytes("pruned/now/cells/a") == 3
    assert storage.size_bytes("cells/a") == 0
    with storage.open("pruned/now/cells/a") as content:
        content.seek(1)
        assert content.read() == b"ne"
    with pytest.raises(FileNotFoundError):
        storage.open("cells/a")


def aged(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_creation_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    monkeypatch.setattr(os, "link", lambda source, target: synced.append(target.name))
    Storage(tmp_path).create("leases/a", b"first")
    assert synced == [5, "a"]


def test_a_creation_happens_once(tmp_path):
    storage = Storage(tmp_path)
    assert storage.create("leases/a", b"first")
    assert not storage.create("leases/a", b"second")
    assert storage.read("leases/a") == b"first"
    assert storage.unfinished("leases") == []


@pytest.mark.parametrize(
    ("where", "path"),
    [
        ("here/r", "here/r/cells/a"),
        ("here/r/", "here/r/cells/a"),
        ("odd?name", "odd?name/cells/a"),
        ("s3://lab/r?region=x", "s3://lab/r/cells/a?region=x"),
    ],
)
def test_messages_name_the_whole_place(where, path):
    assert Storage(where).path("cells/a") == path


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nonsense://there/x", "cannot open the results folder nonsense://there/x: "),
        ("s3://", "names no bucket"),
    ],
)
def test_a_place_that_is_none_is_a_complaint(where, said):
    with pytest.raises(RequestError, match=said):
        Storage(where).names("cells")
