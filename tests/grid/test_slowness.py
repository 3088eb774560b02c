"""What is said of a busy machine, and of a training that became slow."""

import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from conftest import tiny_jobs, tiny_request

from kdbench import machine
from kdbench.cell import Progress, outcome_of
from kdbench.grid import slowness
from kdbench.grid.cluster import Cluster, Node
from kdbench.grid.execution import Running
from kdbench.grid.grid import plan_grid, run_grid
from kdbench.grid.lease import Holder
from kdbench.grid.slowness import Pace, Slowness, crowded, shared_cores, slowness_of
from kdbench.grid.view import View

SPIN = "print('spinning', flush=True)\nwhile True: pass"


@pytest.fixture(autouse=True)
def _half_a_core(_nobody_else, monkeypatch):
    monkeypatch.setattr(machine, "SOME_CORES", 0.5)


class Notes(View):
    """Remembers notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize(
    ("used", "cores", "threads", "at_once", "option"),
    [
        ([("gcc", 1.0)], 2, 2, 1, 1),
        ([("gcc", 1.98)], 2, 2, 1, 1),
        ([("gcc", 0.6)], 2, 2, 1, 1),
        ([("gcc", 0.7), ("cc", 0.4)], 8, 8, 1, 7),
        ([("gcc", 3.0)], 8, 2, 4, 1),
        ([("gcc", 3.0)], 16, 4, 4, 3),
        ([("gcc", 0.4)], 2, 2, 1, None),  # too little
        ([("gcc", 1.0)], 2, 1, 2, None),  # one thread waits for no other
        ([("gcc", 1.0)], 8, 2, 3, None),  # there are cores for all
        ([], 2, 2, 1, None),
    ],
)
def test_a_cell_that_shares_its_cores_is_told_what_helps(used, cores, threads, at_once, option):
    text = crowded(used, cores, threads=threads, at_once=at_once)
    assert (f"`--cpus-per-cell {option}`" in text) if option else text == ""


def test_the_programs_are_named_the_busiest_first():
    used = [("gcc", 0.9), ("cc1plus", 0.31), ("ld", 0.2), ("make", 0.1), ("sleep", 0.0)]
    text = crowded(used, 2, threads=2, at_once=1)
    assert text.startswith("other programs use 1.5 of 2 cores (gcc 0.9, cc1plus 0.3, ld 0.2). The 2 threads ")


@pytest.mark.parametrize(("quota", "expected"), [(None, 64), (3.0, 3)])
def test_cores_are_shared_with_all_programs_but_a_quota_only_with_those_inside(monkeypatch, quota, expected):
    monkeypatch.setattr(machine, "core_quota", lambda: quota)
    monkeypatch.setattr(slowness.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "cores", lambda: int(quota or 2))
    assert shared_cores() == expected


def rates(*per_window):
    """(images, seconds) at the ends of windows with these rates."""
    done, window = 0.0, slowness.WINDOW_S
    for number, rate in enumerate(per_window, start=1):
        done += rate * window
        yield done, number * window


@pytest.mark.parametrize(
    ("per_window", "said"),
    [
        ([100, 100, 30, 30, 30, 30], [(30, 100)]),  # once
        ([100, 30, 100, 30, 100], []),  # a checkpoint between two windows
        ([100, 40, 40, 40], []),  # slower, not far below
        ([10, 100, 100], []),  # a compiler ran first
        ([10, 100, 20, 20, 100, 20, 20], [(20, 100)]),
    ],
)
def test_a_rate_that_stays_far_below_an_earlier_one_is_said_once(per_window, said):
    pace = Pace(0, 0.0)
    found = [pace.fallen(done, now) for done, now in rates(*per_window)]
    assert [one for one in found if one] == said


def test_a_window_ends_with_a_step_however_long_it_takes():
    pace, window = Pace(0, 0.0), slowness.WINDOW_S
    assert [pace.fallen(32, window), pace.fallen(32, 2 * window), pace.fallen(64, 3 * window)] == [None] * 3
    assert pace.fallen(96, 5 * window) is None  # one step in two windows each: nothing has changed


def test_a_slow_cell_is_named_with_what_else_uses_the_processor(monkeypatch):
    notes, clock = [], [0.0]
    monkeypatch.setattr(slowness.time, "monotonic", lambda: clock[0])
    watching = Slowness(notes.append, threads=1, at_once=1)
    watching._used = [("gcc", 1.2)]
    monkeypatch.setattr(watching, "look", lambda: None)
    cell = Progress(cell_id="c", label="stfpm bottle", phase="train", total=10_000)
    watching.progress(cell)
    for done, clock[0] in rates(100, 20, 20):
        watching.progress(replace(cell, done=int(done)))
    assert notes == ["stfpm bottle: 20 images/s now, 100 before. Other programs use 1.2 cores (gcc 1.2)"]


def test_cells_of_other_machines_are_watched_for_their_rate_only(monkeypatch, mvtec, tmp_path):
    notes, clock = [], [0.0]
    monkeypatch.setattr(slowness.time, "monotonic", lambda: clock[0])
    jobs = tiny_jobs(mvtec, tmp_path / "r")
    watching = slowness_of(jobs, notes.append, at_once=4, elsewhere=True)
    holder = Holder(cell_id="c", run_id="run-1", label="stfpm bottle", host="far")
    for done, clock[0] in [(0.0, 0.0), *rates(100, 20, 20)]:
        telling = replace(holder, progress={"phase": "train", "done": int(done)})
        watching.running(Running(holders=[telling], num_waiting=0, elsewhere=[]))
    assert notes == ["far: stfpm bottle: 20 images/s now, 100 before"]


@pytest.mark.parametrize(("of_cell", "of_torch", "option"), [(None, 1, ""), (None, 2, "1"), (2, 1, "1")])
def test_a_cell_has_the_threads_that_were_asked_for_else_those_of_torch(
    mvtec, tmp_path, monkeypatch, of_cell, of_torch, option
):
    """With OMP_NUM_THREADS=1 there is nobody to wait for, though the cell may use two cores."""
    monkeypatch.setattr("torch.get_num_threads", lambda: of_torch)
    monkeypatch.setattr(slowness, "shared_cores", lambda: 2)
    monkeypatch.setattr(machine.Others, "used", lambda self, own: [("gcc", 1.0)])
    monkeypatch.setattr(slowness, "FIRST_LOOK_S", 0.0)
    notes, jobs = [], tiny_jobs(mvtec, tmp_path / "r")
    jobs = [replace(job, place=replace(job.place, num_threads=of_cell)) for job in jobs]
    slowness_of(jobs, notes.append, at_once=1, elsewhere=False).look()
    assert [f"`--cpus-per-cell {option}`" in text for text in notes] == [True] * bool(option)


def test_a_run_beside_a_busy_program_says_it_once_in_its_log_and_view(mvtec, tmp_path, monkeypatch):
    """A real program; how busy this machine is otherwise does not matter."""
    monkeypatch.setattr(slowness, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(slowness, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(machine, "SOME_CORES", 0.001)
    monkeypatch.setattr(slowness, "shared_cores", lambda: 2)
    spinning = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE, text=True)
    try:
        assert spinning.stdout.readline() == "spinning\n"
        monkeypatch.setattr(machine, "family", lambda: set(psutil.pids()) - {spinning.pid})
        asked = tiny_request(mvtec, tmp_path / "r", executor="local", latency=False, cpus_per_cell=2)
        grid = plan_grid(asked, Cluster(nodes=(Node(name="a", cpus=2, gpus=0, memory_bytes=2**34),)))
        view, deadline = Notes(), time.monotonic() + 30

        def work(cell, place, run_id, notify, timeout_s=None):
            told = Progress(cell_id=cell.id, label=cell.label, phase="train")
            while not any("other programs" in text for text in view.notes) and time.monotonic() < deadline:
                notify(told)
            notify(told)
            return outcome_of(cell, "ok", 1.0)

        run_grid(grid, view, work)
    finally:
        spinning.kill()
        spinning.communicate()
    said = [text for text in view.notes if "other programs use" in text]
    assert len(said) == 1
    assert "python" in said[0]
    assert "`--cpus-per-cell 1`" in said[0]
    (log,) = (tmp_path / "r/runs").glob("*.log")
    assert log.read_text().count("other programs use") == 1
