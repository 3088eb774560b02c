"""The log of a run: what it says; and a run goes on that nobody can watch, or whose log cannot be written."""

import errno
import os
import re

import pytest
from conftest import ALL_SET

from kdbench.cell import outcome_of
from kdbench.errors import RequestError
from kdbench.grid.grid import plan_grid, run_grid
from kdbench.grid.request import Request
from kdbench.grid.view import Log, View
from kdbench.results.storage import Storage
from kdbench.results.store import LOGS


def grid(root, results):
    """Two cells with the smallest network."""
    asked = {"methods": ["stfpm"], "dataset": ["mvtec_ad"], "root": root, "backbone": "tiny", "set": ALL_SET}
    return plan_grid(Request(**asked, results=results, executor="local", latency=False))


def at_once(cell, place, run_id, notify, timeout_s=None):
    """Work that is done at once: the screw fails."""
    if cell.category == "screw":
        return outcome_of(cell, "failed", 0.25, error="RuntimeError: broken")
    return outcome_of(cell, "ok", 1.25, summary="aupro 50.00")


def lines(results):
    """The lines of the only log, each without its time."""
    (name,) = LOGS.names(Storage(results))
    text = (results / name).read_text()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ ", line) for line in text.splitlines()), text
    return [line[21:] for line in text.splitlines()]


class Unwritable(View):
    """Can show nothing."""

    def __init__(self):
        self.num_asked = 0

    def finished(self, outcome):
        self.num_asked += 1
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class Lossy(View):
    """Shows nothing and raises nothing."""

    def problem(self):
        return "No space left on device"


class Notes(View):
    """Remembers notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_the_log_says_how_a_run_began_each_outcome_and_how_it_ended(mvtec, tmp_path):
    planned = grid(mvtec, tmp_path / "r")
    result = run_grid(planned, work=at_once)
    (note,) = planned.notices
    first, *others = lines(tmp_path / "r")
    assert first.startswith("kdbench ")
    assert first.endswith("local: 2 cells, 0 finished before, 2 to run")
    assert result.run_id in first
    assert f"process {os.getpid()} on " in first
    ids = {job.cell.category: job.cell.id for job in planned.jobs}
    assert others[0] == f"note: {note}"
    assert sorted(line[6:] for line in others[1:3]) == sorted(
        [
            f"{ids['bottle']} stfpm mvtec_ad/bottle oneclass seed 0: ok in 1.2 s, aupro 50.00",
            f"{ids['screw']} stfpm mvtec_ad/screw oneclass seed 0: failed in 0.2 s, RuntimeError: broken",
        ]
    )
    assert [line[:5] for line in others[1:3]] == ["[1/2]", "[2/2]"]
    assert others[3:] == ["end: 1 ok, 1 failed"] or others[3:] == ["end: 1 failed, 1 ok"]


@pytest.mark.parametrize(
    ("view", "why"), [(Unwritable(), "Input/output error"), (Lossy(), "No space left on device")]
)
def test_a_run_that_nobody_can_watch_goes_on_and_its_log_says_why_once(mvtec, tmp_path, view, why):
    result = run_grid(grid(mvtec, tmp_path / "r"), view, at_once)
    assert result.counts == {"ok": 1, "failed": 1}
    said = f"the output cannot be written: {why}. The run goes on"
    assert [line for line in lines(tmp_path / "r") if "output" in line] == [said]
    assert getattr(view, "num_asked", 1) == 1  # what has failed once is not asked again


def test_a_run_whose_log_cannot_be_written_goes_on_and_says_so_once(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / LOGS.name("run-1")).mkdir()  # nobody can write into a folder
    view = Notes()
    log = Log(view, Storage(tmp_path), "run-1", num_cells=2)
    log.start("begins")
    log.note("goes on")
    said = "the log of this run cannot be written: Is a directory. The run goes on"
    assert view.notes == [said, "goes on"]


def test_what_ends_a_run_with_an_error_is_in_its_log(mvtec, tmp_path):
    def interrupt(cell, place, run_id, notify, timeout_s=None):
        raise KeyboardInterrupt

    def break_off(cell, place, run_id, notify, timeout_s=None):
        raise RequestError(["first complaint", "second complaint"])

    run_grid(grid(mvtec, tmp_path / "a"), work=interrupt)
    assert lines(tmp_path / "a")[-1] == "end: 2 not run, stopped by SIGINT"
    with pytest.raises(RequestError):
        run_grid(grid(mvtec, tmp_path / "b"), work=break_off)
    assert lines(tmp_path / "b")[-2:] == ["error: first complaint", "error: second complaint"]


def test_in_an_object_store_a_log_is_stored_once_a_minute_and_at_the_end(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    files = Storage(f"mock://{tmp_path}")
    monkeypatch.setattr(files, "append", storage.append)
    log = Log(View(), files, "run-1", num_cells=1)
    with log.kept():
        log.start("first")
        log.write("second")
        assert storage.read(LOGS.name("run-1")).count(b"\n") == 1
    assert storage.read(LOGS.name("run-1")).count(b"\n") == 2
