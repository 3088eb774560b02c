"""Timing a detector: what is measured, what is written, and who else was there."""

import json
import math
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from conftest import TINY

from kdbench.engine import latency
from kdbench.engine.latency import Timing, summary, time_detector
from kdbench.engine.measured import read_measured
from kdbench.grid.attempt import execute_cell
from kdbench.grid.plan import plan
from kdbench.grid.request import Request
from kdbench.grid.timing import to_time
from kdbench.results.schema import LATENCY_SCHEMA
from kdbench.results.store import DETECTORS, LATENCY, Results, read


def jobs(root, results, **changes):
    asked = {
        "methods": ("stfpm",),
        "dataset": ("mvtec_ad",),
        "root": root,
        "backbone": "tiny",
        "epochs": 1,
        "set": {"all.image_size": 32, "all.batch_size": 4},
        "results": results,
    }
    return plan(Request(**(asked | changes))).jobs


def timed(job, **changes):
    """A row of a timing that ran alone."""
    row = {"cell_id": job.cell.id, "device": "cpu", "device_name": "some CPU", "busy": False}
    return row | changes


def test_percentiles_are_those_of_numpy_and_the_throughput_that_of_the_median():
    times = [float(n) for n in range(1, 102)]
    row = summary(Timing(times_ms=times, copy_ms=0.5, neighbours=[]), batch_size=32)
    assert (row["p50_ms"], row["p90_ms"], row["p99_ms"]) == (51.0, 91.0, 100.0)
    assert row["images_per_s"] == pytest.approx(32 * 1000 / 51)
    assert (row["busy"], row["neighbours"], row["copy_ms"]) == (False, "", 0.5)
    busy = summary(Timing(times_ms=times, copy_ms=None, neighbours=["gcc: 0.98 cores"]), batch_size=1)
    assert (busy["busy"], busy["neighbours"]) == (True, "gcc: 0.98 cores")


@pytest.mark.parametrize(("precision", "timed"), [("fp32", ["fp32"]), ("bf16", ["fp32", "bf16"])])
def test_a_timing_is_rows_of_each_precision_and_batch_size(mvtec, tmp_path, monkeypatch, precision, timed):
    monkeypatch.setattr(latency, "BUDGET_S", 0.05)
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",), cpus_per_cell=1, precision=precision)
    execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    before = torch.get_num_threads()
    time_detector(job.cell, job.place, "run-2")
    torch.set_num_threads(before)
    rows = read(tmp_path / "r", LATENCY).to_pylist()
    expected = [(size, precision) for precision in timed for size in (1, 32)]
    assert [(row["batch_size"], row["precision"]) for row in rows] == expected
    for row in rows:
        assert set(row) == set(LATENCY_SCHEMA.names)
        assert row["cell_id"] == job.cell.id
        assert (row["run_id"], row["num_threads"], row["num_warmup"]) == ("run-2", 1, 5)
        assert 10 <= len(row["times_ms"]) <= 200
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= max(row["times_ms"])
        assert row["p50_ms"] == np.percentile(row["times_ms"], 50)
        assert row["copy_ms"] is None
        assert row["num_parameters"] > 0
        assert row["flops"] > 0
    assert rows[1]["p50_ms"] > rows[0]["p50_ms"]  # of 32 images


SPIN = "print('spinning', flush=True)\nwhile True: pass"


def test_a_busy_neighbour_is_seen_and_named():
    spinning = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE, text=True)
    try:
        assert spinning.stdout.readline() == "spinning\n"
        watched = latency._Neighbours(torch.device("cpu"))
        before = psutil.Process(spinning.pid).cpu_times().user
        while psutil.Process(spinning.pid).cpu_times().user < before + 0.2:
            math.sqrt(2.0)
        found = watched.found()
    finally:
        spinning.kill()
        spinning.communicate()
    assert any("python" in text and text.endswith(" cores") for text in found), found


def test_one_detector_of_each_kind_is_timed_and_once(mvtec, tmp_path):
    results = Results(tmp_path / "r")
    planned = jobs(mvtec, tmp_path / "r", seeds=(0, 1), methods=("stfpm", "rd4ad"))
    assert to_time(planned, read_measured(results)) == []  # no detector yet
    for job in planned:
        results.storage.write(DETECTORS.name(job.cell.id), b"")
    first = to_time(planned, read_measured(results))
    assert [job.cell.method for job in first] == ["stfpm", "rd4ad"]
    results.write(LATENCY, [timed(first[0])])
    assert [job.cell.method for job in to_time(planned, read_measured(results))] == ["rd4ad"]
    other = jobs(mvtec, tmp_path / "r", set={"all.image_size": 64, "all.batch_size": 4})
    for job in other:
        results.storage.write(DETECTORS.name(job.cell.id), b"")
    assert to_time(other, read_measured(results)) == other[:1]  # another size is another detector


def test_what_was_timed_elsewhere_or_beside_others_is_timed_again(mvtec, tmp_path):
    results = Results(tmp_path / "r")
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",))
    results.storage.write(DETECTORS.name(job.cell.id), b"")
    for busy in (True, None):
        results.write(LATENCY, [timed(job, busy=busy)])
        assert to_time([job], read_measured(results), "some CPU") == []
        assert to_time([job], read_measured(results), "some CPU", busy_again=True) == [job]
    results.write(LATENCY, [timed(job, device="cuda")])
    assert to_time([job], read_measured(results), "some CPU") == [job]
    results.write(LATENCY, [timed(job)])
    assert to_time([job], read_measured(results), "some CPU", busy_again=True) == []
    assert to_time([job], read_measured(results), "some CPU") == []
    assert to_time([job], read_measured(results), "another CPU") == [job]
    assert to_time([job], read_measured(results)) == []  # of a cluster's nodes nobody knows


def test_every_section_and_recipe_has_its_timing(mvtec, tmp_path):
    """A report shows a timing in the section and for the recipe of the cell that was timed, only there."""
    results, sets = Results(tmp_path / "r"), {"all.image_size": 32, "all.batch_size": 4}
    planned = [
        *jobs(mvtec, tmp_path / "r", setting=("oneclass", "multiclass"), set=sets | {"all.epochs": [1, 2]}),
        *jobs(mvtec, tmp_path / "r", dataset=("folder",)),
        *jobs(mvtec, tmp_path / "r", profile="demo", set=sets | {"all.epochs": 1}),
        *jobs(mvtec, tmp_path / "r", preset="ader"),
    ]
    for job in planned:
        results.storage.write(DETECTORS.name(job.cell.id), b"")
    found = [job.cell for job in to_time(planned, read_measured(results))]
    assert [(c.dataset, c.setting, c.profile, c.preset, json.loads(c.config)["epochs"]) for c in found] == [
        ("mvtec_ad", "oneclass", "paper", "exact", 1),
        ("mvtec_ad", "oneclass", "paper", "exact", 2),
        ("mvtec_ad", "multiclass", "paper", "exact", 1),
        ("mvtec_ad", "multiclass", "paper", "exact", 2),
        ("folder", "oneclass", "paper", "exact", 1),
        ("mvtec_ad", "oneclass", "demo", "exact", 1),
        ("mvtec_ad", "oneclass", "paper", "ader", 1),
    ]


@pytest.mark.slow
def test_a_run_times_its_detectors_in_another_process(mvtec, tmp_path, kdbench):
    words = ["run", "--methods", "stfpm", "--dataset", "mvtec_ad", "--root", mvtec, *TINY, "--latency"]
    words += ["--precision", "bf16", "--results", tmp_path / "r", "--report", tmp_path / "o"]
    code, printed = kdbench(*words)
    assert code == 0, printed
    assert "timing 1 detector," in printed
    rows = read(tmp_path / "r", LATENCY).to_pylist()
    timed = [(row["precision"], row["batch_size"]) for row in rows]
    assert sorted(timed) == [("bf16", 1), ("bf16", 32), ("fp32", 1), ("fp32", 32)]
    Results(tmp_path / "r").write(LATENCY, [row | {"busy": False} for row in rows])  # whatever ran beside it
    code, printed = kdbench(*words)
    assert code == 0
    assert "timing" not in printed
