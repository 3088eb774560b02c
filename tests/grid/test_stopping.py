"""Signals that ask a run to stop: what is kept, how it resumes, and which code it leaves with."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import typer
from conftest import SMALL, STFPM, TINY, tiny_request

from kdbench.cell import outcome_of
from kdbench.cli.run import leaving_on_signals
from kdbench.errors import CellStopped
from kdbench.grid import stopping
from kdbench.grid.grid import NOT_RUN, View, plan_grid, run_grid
from kdbench.grid.stopping import Stopped, stop_on_signals
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, LOGS, read

slow = pytest.mark.slow


class Sends(View):
    """Sends this process a signal when a cell is at this phase and epoch."""

    def __init__(self, number, phase, epoch):
        self.number, self.moment = number, (phase, epoch)

    def progress(self, progress):
        if (progress.phase, progress.epoch) == self.moment:
            os.kill(os.getpid(), self.number)


def run(request, view=None):
    with stop_on_signals() as stop:
        return run_grid(plan_grid(request), view, stop=stop)


def numbers(results):
    rows = read(results, CELLS).to_pylist()
    kept = ("category", "status", "image_auroc", "pixel_auroc", "aupro", "epoch_loss")
    return [{name: row[name] for name in kept} for row in rows]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_finished_and_a_checkpoint_of_what_runs(mvtec, tmp_path, number):
    one = {"categories": ("bottle",), "epochs": 3, "executor": "local", "latency": False}
    request = tiny_request(mvtec, tmp_path / "r", **one)
    storage = Storage(tmp_path / "r")
    result = run(request, Sends(number, "train", 2))
    assert (result.stopped_by, result.num_checkpoints, result.num_finished) == (number, 1, 0)
    assert set(result.statuses.values()) == {NOT_RUN}
    assert not result.complete
    assert storage.names("cells") == storage.names("leases") == []
    assert len(storage.names("checkpoints")) == 1
    assert run(request).counts == {"ok": 1}
    assert storage.names("checkpoints") == []
    run(request.model_copy(update={"results": str(tmp_path / "quiet")}))
    assert numbers(tmp_path / "r") == numbers(tmp_path / "quiet")


def test_a_cell_that_is_evaluated_finishes_and_no_other_begins(mvtec, tmp_path):
    request = tiny_request(mvtec, tmp_path / "r", executor="local", latency=False)
    result = run(request, Sends(signal.SIGTERM, "evaluate", 2))
    assert (result.num_finished, result.num_checkpoints) == (1, 0)
    assert result.counts == {"ok": 1, NOT_RUN: 1}


def test_outside_of_the_cells_a_signal_ends_the_run_at_once(mvtec, tmp_path):
    class AtDecoding(View):
        def decoding(self, done, total):
            os.kill(os.getpid(), signal.SIGTERM)

    result = run(tiny_request(mvtec, tmp_path / "r", executor="local"), AtDecoding())
    assert (result.stopped_by, result.num_finished) == (signal.SIGTERM, 0)


def test_a_cell_that_does_not_look_is_ended_when_the_time_of_grace_is_over(mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "GRACE_S", 0.05)

    def deaf(cell, place, run_id, notify, timeout_s):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # a scheduler may send several: the first one counts
        time.sleep(60)
        return outcome_of(cell, "ok", 0.0)

    grid = plan_grid(tiny_request(mvtec, tmp_path / "r", executor="local", latency=False))
    started = time.monotonic()
    with stop_on_signals() as stop:
        result = run_grid(grid, work=deaf, stop=stop)
    assert time.monotonic() - started < 30
    assert (result.stopped_by, result.num_finished, result.num_checkpoints) == (signal.SIGTERM, 0, 0)


def test_a_second_ctrl_c_does_not_wait(monkeypatch):
    monkeypatch.setattr(stopping, "AGAIN_S", 0.02)
    with stop_on_signals() as stop, stop.patience():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same key, which another program passes on
        assert stop.asked_by == signal.SIGINT
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.asked_by == 0
            with pytest.raises(Stopped) as raised:
                os.kill(os.getpid(), signal.SIGTERM)
        assert raised.value.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_swallows_a_signal_delays_it_only():
    """As an exception in a destructor does, which Python only prints."""
    with stop_on_signals() as stop:
        with suppress(Stopped):
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped):
            stop.check()


def test_a_terminal_that_hangs_up_twice_is_one_signal(monkeypatch):
    """The kernel sends one, and a shell another one, while the command says that it was stopped."""

    class HangsUp(io.StringIO):
        def write(self, text):
            os.kill(os.getpid(), signal.SIGHUP)
            return super().write(text)

    terminal = HangsUp()
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(typer.Exit) as left, leaving_on_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    assert left.value.exit_code == 128 + signal.SIGHUP
    assert terminal.getvalue() == "stopped by SIGHUP: what finished is kept; the same command resumes\n"


def test_a_signal_keeps_its_name_though_a_library_raises_an_interrupt_of_its_own():
    def stopped_in_a_library():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(typer.Exit) as left, leaving_on_signals():
        stopped_in_a_library()
    assert left.value.exit_code == 128 + signal.SIGTERM


def test_only_training_and_what_comes_before_it_stops(mvtec):
    with stop_on_signals() as stop, stop.patience():
        told = []
        notify = stop.obeyed(told.append)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked_by == signal.SIGTERM
        with pytest.raises(CellStopped):
            notify(progress("train"))
        notify(progress("evaluate"))
    assert [one.phase for one in told] == ["evaluate"]


def progress(phase):
    from kdbench.cell import Progress

    return Progress(cell_id="abc", label="a cell", phase=phase)


@slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_command_that_is_asked_to_stop_leaves_with_its_code(mvtec, tmp_path, executor, number):
    """Two cells that would train for hours; with Ray both run. To compile takes longer than the grace."""
    words = [*STFPM, "--root", mvtec, *SMALL, "--epochs", 10**6, "--executor", executor, "--no-latency"]
    words += ["--compile", "off", "--cpus-per-cell", 1, "--results", tmp_path / "r", "--out", tmp_path / "o"]
    command = [sys.executable, "-m", "kdbench", "run", *map(str, words)]
    log, storage = tmp_path / "log", Storage(tmp_path / "r")
    with log.open("w") as file:
        root = Path(__file__).parents[2]
        driver = subprocess.Popen(command, stdout=file, stderr=file, cwd=root, start_new_session=True)
        wait_until(lambda: trains(storage) == (2 if executor == "ray" else 1), driver, log)
        family = psutil.Process(driver.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(driver.pid, number)  # as a terminal does for Ctrl-C
        else:
            driver.send_signal(number)
        assert driver.wait(60) == 128 + number
    count = 2 if executor == "ray" else 1
    stopped = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    assert log.read_text().splitlines()[-1] == (
        f"{stopped}: 0 of 2 cells finished and kept, {count} left a checkpoint; the same command resumes"
    )
    assert not re.search(r"Traceback|\*\*\*|stack trace", log.read_text())
    assert len(storage.names("checkpoints")) == count
    assert storage.names("leases") == storage.names("cells") == []
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def start_in_a_terminal(*words, ignore=False):
    """A command as the leader of a terminal of its own: its number, and the file that reads the terminal."""
    number, terminal = pty.fork()
    if number == 0:
        if ignore:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.chdir(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-m", "kdbench", *map(str, words)])
    return number, terminal


def read_until(terminal, text):
    """Read what a terminal shows until this is in it."""
    shown = b""
    while text not in shown:
        shown += os.read(terminal, 4096)  # an OSError once the command has left


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_asked_to_stop_leaves_with_its_code_and_ends_its_trials(tmp_path, number):
    words = ["stfpm", "--dataset", "synthetic", "--categories", "wood", *SMALL, "--epochs", 10**6]
    words += ["--report-every", 5, "--trials", 2, "--max-concurrent", 1]
    words += ["--results", tmp_path / "r", "--out", tmp_path / "o"]
    command = [sys.executable, "-m", "kdbench", "sweep", *map(str, words)]
    log, storage = tmp_path / "log", Storage(tmp_path / "r")
    with log.open("w") as file:
        root = Path(__file__).parents[2]
        driver = subprocess.Popen(command, stdout=file, stderr=file, cwd=root, start_new_session=True)
        wait_until(lambda: bool(storage.names("trials")), driver, log)
        family = psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(number)
        assert driver.wait(60) == 128 + number
    name = signal.Signals(number).name
    last = log.read_text().splitlines()[-1]
    assert last == f"stopped by {name}: what finished is kept; the same command resumes"
    assert "Traceback" not in log.read_text()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


@slow
@pytest.mark.parametrize("moment", ["0 finished before", "/1000000"])
def test_a_run_whose_terminal_is_closed_leaves_with_its_code(tmp_path, moment):
    words = ["--methods", "stfpm", "--dataset", "synthetic", "--categories", "wood", *SMALL]
    words += ["--epochs", 10**6, "--executor", "local", "--no-latency", "--compile", "off"]
    words += ["--results", tmp_path / "r", "--out", tmp_path / "o"]
    number, terminal = start_in_a_terminal("run", *words)
    read_until(terminal, moment.encode())
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 128 + signal.SIGHUP
    storage = Storage(tmp_path / "r")
    assert storage.names("leases") == storage.names("cells") == []
    assert len(storage.names("checkpoints")) == moment.startswith("/")


@slow
def test_a_run_that_ignores_its_closed_terminal_has_the_exit_code_of_its_cells(mvtec, tmp_path):
    words = [*STFPM, "--root", mvtec, *TINY, "--results", tmp_path / "r", "--out", tmp_path / "o"]
    number, terminal = start_in_a_terminal("run", *words, ignore=True)
    read_until(terminal, b"0 finished before")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0
    assert read(tmp_path / "r", CELLS)["status"].to_pylist() == ["ok", "ok"]
    (name,) = LOGS.names(Storage(tmp_path / "r"))
    assert "the output cannot be written: Input/output error. The run goes on" in (
        tmp_path / "r" / name
    ).read_text(encoding="utf-8")


def trains(storage):
    """How many cells train, by their leases."""
    from kdbench.grid.lease import holders

    return sum(holder.progress.get("phase") == "train" for holder in holders(storage))


def wait_until(true, driver, log):
    deadline = time.monotonic() + 120
    while not true():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
