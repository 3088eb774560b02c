"""Output that cannot be written: no command ends because of it, and what is lost is known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import STFPM, TINY

from kdbench.cli.streams import dropped, failed, lossy_streams
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, LOGS, read

FULL = "No space left on device"
LOST = f"error: the output could not be written: {FULL}\n"

FULL_DEVICE = Path("/dev/full")

pytestmark = pytest.mark.skipif(not FULL_DEVICE.exists(), reason="no device that is always full")


def command(*words):
    return [sys.executable, "-m", "kdbench", *map(str, words)]


def run_words(root, tmp_path):
    return ("run", *STFPM, *TINY, "--root", root, "--results", tmp_path / "r", "--out", tmp_path / "o")


def log(results):
    (name,) = LOGS.names(Storage(results))
    return (results / name).read_text()


def test_what_cannot_be_written_is_dropped_and_known(monkeypatch):
    with FULL_DEVICE.open("w") as full, lossy_streams_of(monkeypatch, full):
        print("lost")  # noqa: T201
        assert dropped(sys.stdout) == failed(sys.stdout) == FULL
        assert dropped(sys.stderr) == ""
        print("lost again")  # noqa: T201


def test_a_reader_that_had_seen_enough_is_no_failure(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe, lossy_streams_of(monkeypatch, pipe):
        print("unread")  # noqa: T201
        assert dropped(sys.stdout) == "Broken pipe"
        assert failed(sys.stdout) == ""


def test_a_disk_that_has_space_again_is_written_again(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w") as file, lossy_streams_of(monkeypatch, file):
        there, full = os.dup(file.fileno()), os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        print("lost")  # noqa: T201
        os.dup2(there, file.fileno())
        print("kept")  # noqa: T201
        os.close(there)
        os.close(full)
        assert dropped(sys.stdout) == FULL
    assert (tmp_path / "out").read_text() == "kept\n"


def lossy_streams_of(monkeypatch, stream):
    """`lossy_streams` of a process whose standard output is this stream."""
    monkeypatch.setattr(sys, "stdout", stream)
    return lossy_streams()


def test_a_command_whose_output_is_lost_says_so_and_fails():
    with FULL_DEVICE.open("wb") as full:
        words = command("list", "backbones")
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, LOST)


def test_a_command_that_fails_has_its_own_exit_code_though_its_output_is_lost():
    with FULL_DEVICE.open("wb") as full:
        done = subprocess.run(command("status", "--results", "none"), stdout=full, stderr=full, check=False)
    assert done.returncode == 2


def test_a_plan_is_only_printed_so_that_losing_it_is_a_failure(mvtec):
    words = command("run", *STFPM, *TINY, "--root", mvtec, "--dry-run")
    with FULL_DEVICE.open("wb") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, LOST)


def test_a_command_with_closed_streams_works():
    closed = 'exec "$@" >&- 2>&- <&-'
    assert (
        subprocess.run(["sh", "-c", closed, "sh", *command("list", "backbones")], check=False).returncode == 0
    )


def test_a_command_whose_reader_goes_away_works():
    script = '"$@" | head -1; echo "${PIPESTATUS[0]}"'
    words = ["bash", "-c", script, "bash", *command("list", "backbones")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["backbones", "0"]
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "why"),
    [
        (">/dev/full", FULL),
        (">/dev/full 2>&1", FULL),
        ("| head -1 >/dev/null", "Broken pipe"),
        (">&- 2>&- <&-", ""),
    ],
)
def test_a_run_has_the_exit_code_of_its_cells_whatever_becomes_of_its_output(mvtec, tmp_path, streams, why):
    words = ["bash", "-c", f'"$@" {streams}; exit "${{PIPESTATUS[0]}}"', "bash"]
    words += command(*run_words(mvtec, tmp_path))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == (LOST.replace("error", "note") if streams == ">/dev/full" else "")
    assert read(tmp_path / "r", CELLS)["status"].to_pylist() == ["ok", "ok"]
    said = f"the output cannot be written: {why}. The run goes on"
    assert (said in log(tmp_path / "r")) == bool(why)
    assert log(tmp_path / "r").endswith("end: 2 ok\n")
    assert (tmp_path / "o/leaderboard.md").exists()
