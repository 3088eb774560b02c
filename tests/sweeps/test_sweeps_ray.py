"""Sweeps with Ray Tune, in processes of their own: kills, failures, retries, the searchers, several nodes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.reports.publish import write_rows
from kdbench.results.store import TRIALS, read

pytestmark = pytest.mark.slow

TINY = ("--backbone", "tiny", "--epochs", "2", "--set", "all.image_size=32", "--set", "all.batch_size=4")

# A method that ends in three ways, and keeps a list of how often it was tried.
MOODY = '''"""STFPM in a mood."""

import os
from pathlib import Path
from typing import ClassVar, Literal

from kdbench.methods.stfpm import STFPM


class Moody(STFPM):
    """Does what `act` says."""

    name = "moody"
    paper = "none"
    fidelity = "after the abstract"
    departures: ClassVar[tuple[str, ...]] = ()

    class Config(STFPM.Config):
        act: Literal["well", "badly", "dies"] = "well"

    def loss(self, images, taught):
        if self.config.act != "well":
            with Path(os.environ["MOODS"]).open("a") as file:
                file.write(self.config.act + "\\n")
        if self.config.act == "badly":
            raise RuntimeError("in a bad mood")
        if self.config.act == "dies":
            os._exit(1)
        return super().loss(images, taught)


METHOD = Moody
'''


@pytest.fixture
def sweep(mvtec: Path, tmp_path: Path):
    """`kdbench sweep` of one tiny category in a process of its own, as a command to start."""
    site = tmp_path / "site"
    (site / "moody-1.0.dist-info").mkdir(parents=True)
    (site / "moody_method.py").write_text(MOODY)
    (site / "moody-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1\n")
    (site / "moody-1.0.dist-info/entry_points.txt").write_text("[kdbench.methods]\nmoody = moody_method\n")
    os.environ["MOODS"] = str(tmp_path / "moods")
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, str(site)])}

    def start(method: str, *words: object) -> subprocess.Popen:
        usual = ["--dataset", "mvtec_ad", "--root", mvtec, "--categories", "bottle", *TINY]
        usual += ["--results", tmp_path / "r", "--report", tmp_path / "out", "--max-concurrent", "2"]
        command = [sys.executable, "-m", "kdbench", "sweep", method, *map(str, usual), *map(str, words)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )

    return start


def finish(process: subprocess.Popen) -> tuple[int, str]:
    text, _ = process.communicate(timeout=900)
    return process.returncode, text


def test_a_killed_sweep_is_finished_by_the_same_command(sweep, tmp_path):
    words = ("stfpm", "--trials", 4, "--scheduler", "none", "--max-concurrent", 1)
    victim = sweep(*words)
    for line in victim.stdout:
        if "[2/4]" in line:
            break
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "r/detectors").iterdir()}
    assert 2 <= len(left) < 4
    code, text = finish(sweep(*words))
    assert code == 0, text
    assert f", {len(left)} finished before" in text
    assert "4 trials, 4 different configurations: 0 stopped early, 0 failed" in text
    assert {path: path.stat().st_mtime_ns for path in left} == left  # none was trained again
    rows = read(tmp_path / "r", TRIALS).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 4
    assert sum(row["is_default"] for row in rows) == 1
    code, text = finish(sweep(*words))
    assert code == 0
    assert "4 finished before" in text
    (best,) = (tmp_path / "r/sweeps").glob("*/best.toml")
    command = [sys.executable, "-m", "kdbench", "run", "--config", best, "--results", tmp_path / "r"]
    command += ["--report", tmp_path / "out", "--executor", "local", "--no-latency"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2], env=os.environ
    )
    assert "cells: 1 ok" in done.stdout
    assert "Sweep of stfpm" in (tmp_path / "out/leaderboard.md").read_text()


def test_a_search_goes_on_elsewhere_from_the_rows_of_its_trials(sweep, tmp_path):
    """Both searches propose the same; the second one hears of two trials what the first one found."""
    pytest.importorskip("optuna")
    words = ("stfpm", "--trials", 4, "--search", "optuna", "--max-concurrent", 1)
    code, text = finish(sweep(*words))
    assert code == 0, text
    rows = sorted(read(tmp_path / "r", TRIALS).to_pylist(), key=lambda row: row["started_at"])
    for row in rows[2:]:
        (tmp_path / f"r/trials/{row['trial_id']}.parquet").unlink()
    write_rows(tmp_path / "r", tmp_path / "rows")
    (tmp_path / "r").rename(tmp_path / "before")

    code, text = finish(sweep(*words, "--published", tmp_path / "rows"))
    assert code == 0, text
    assert "2 trials taken over from" in text
    assert ", 2 finished before" in text
    again = sorted(read(tmp_path / "r", TRIALS).to_pylist(), key=lambda row: row["started_at"])
    assert again[:2] == rows[:2]
    assert [row["trial_id"] for row in again] == [row["trial_id"] for row in rows]
    assert [row["objective_value"] for row in again] == [row["objective_value"] for row in rows]


def test_failed_trials_are_tried_twice_shown_and_end_in_code_1(sweep, tmp_path):
    space = tmp_path / "space.toml"
    space.write_text("act = {values = ['well', 'badly', 'dies']}\nlr = {low = 0.1, high = 0.5}\n")
    code, text = finish(sweep("moody", "--trials", 5, "--space", space, "--scheduler", "none"))
    assert code == 1, text
    rows = read(tmp_path / "r", TRIALS).to_pylist()
    by_act = {"well": 0, "badly": 0, "dies": 0}
    for row in rows:
        act = json.loads(row["searched"])["act"]
        by_act[act] += 1
        assert row["status"] == ("ok" if act == "well" else "failed")
    assert all(by_act.values()), by_act  # the draws of this seed have all three
    tried = (tmp_path / "moods").read_text().split()
    assert {act: tried.count(act) for act in ("badly", "dies")} == {
        act: 2 * by_act[act] for act in ("badly", "dies")
    }
    failures = by_act["badly"] + by_act["dies"]
    assert text.count(" failed: RuntimeError: in a bad mood (act=badly, ") == by_act["badly"]
    assert text.count("(act=dies, ") == by_act["dies"]
    assert f"{failures} failed, {failures} of Ray's trials had an error" in text
    assert "RuntimeError: in a bad mood" in text
    assert "best configuration: kdbench run --config" in text


def test_optuna_searches(sweep, tmp_path):
    pytest.importorskip("optuna")
    code, text = finish(sweep("stfpm", "--trials", 4, "--search", "optuna", "--epochs", 3))
    assert code == 0, text
    rows = read(tmp_path / "r", TRIALS).to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert len(rows) == 4
    for row in rows:  # each is said to have begun, and once to have succeeded or to be stopped
        lines = [
            line for line in text.splitlines() if f"trial {row['trial_id'].rpartition('-')[2][:6]}" in line
        ]
        assert "epoch 1/3, mad " in lines[0]
        assert [line[:5] for line in lines].count("trial") == row["epochs_trained"] - (
            not row["stopped_early"]
        )
    assert [text.count(f"[{n}/4] trial") for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert sum(row["is_default"] for row in rows) == 1  # asked for first; which of two begins first is chance
    # A trial that was trained to the end reports every epoch once.
    assert all(row["objective_epochs"] == [1, 2, 3] for row in rows if not row["stopped_early"])
    assert "Traceback" not in text


def test_a_trial_that_no_cluster_can_hold_is_refused(sweep):
    code, text = finish(sweep("stfpm", "--trials", 1, "--cpus-per-trial", 4096))
    assert code == 2
    assert "error: no node has 4096 CPUs, 0 GPUs for a trial: it would wait for ever" in text
