"""An attempt at a cell: what it writes, whatever happens in it, and what a second attempt replaces."""

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import STFPM, TINY, write_image
from conftest import tiny_jobs as jobs

from kdbench.engine.run import status_of
from kdbench.errors import ResultsError
from kdbench.grid import attempt
from kdbench.grid.attempt import execute_cell
from kdbench.grid.cluster import LostError
from kdbench.metrics.exact import METRICS, image_metrics
from kdbench.metrics.legacy import LEGACY_METRICS
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, LATENCY, PROBES, Results, read


def test_a_row_says_everything(mvtec, tmp_path):
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",))
    outcome = execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    assert outcome.status == "ok", outcome.error
    (row,) = pd.read_parquet(tmp_path / "r/cells").to_dict("records")
    assert set(row) == set(ROW_SCHEMA.names)
    empty = {"error", "driver", "git_commit", "git_dirty", "split_sha256"}  # wheels have no commit
    empty |= {*LEGACY_METRICS, "resumed_at_epoch", "outside_sha256", "spro_05"}  # of other cells
    empty |= {"aupimo"}  # it needs more normal pixels than these
    missing = [k for k, v in row.items() if k not in empty and pd.api.types.is_scalar(v) and pd.isna(v)]
    assert not missing
    assert row["cell_id"] == job.cell.id
    assert (row["num_train"], row["num_heldout"], row["num_test"], row["num_defective"]) == (8, 2, 8, 4)
    assert row["num_regions"] == 4
    assert row["num_steps"] == 2 * 2
    assert len(row["epoch_loss"]) == len(row["epoch_heldout"]) == 2
    assert row["selection"] == "heldout"
    assert json.loads(row["config"])["lr"] == 0.4
    assert len(row["dataset_categories"]) == 15
    assert row["mad"] == pytest.approx(np.mean([row[m] for m in METRICS[:7]]))


def test_stored_scores_give_the_metrics_of_the_row(mvtec, tmp_path):
    (job,) = jobs(mvtec, tmp_path / "r", setting=("multiclass",))
    execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    rows = pd.read_parquet(tmp_path / "r/cells").set_index("category")
    scores = pd.read_parquet(tmp_path / "r/scores")
    assert list(rows.index) == ["bottle", "screw"]
    for category, of_category in scores.groupby("category"):
        again = image_metrics(of_category["image_score"].to_numpy(), of_category["label"].to_numpy())
        assert {k: rows.loc[category, k] for k in again} == pytest.approx(again)
    assert sorted(scores["image"])[0] == "bottle/test/broken/000.png"
    assert set(scores.loc[scores["label"], "defect"]) == {"broken"}


LEFT = ("cells", "scores", "curves", "pictures", "detectors", "probes", "latency")


def ended_and_measured(root, results):
    """A job whose cell ended in run-1, was probed and timed, and is to be run again."""
    (job,) = jobs(root, results, categories=("bottle",))
    assert execute_cell(job.cell, job.place, "run-1", lambda progress: None).status == "ok"
    measured = {"cell_id": job.cell.id, "device_name": "a processor"}
    Results(results).write(LATENCY, [measured])
    Results(results).write(LATENCY, [measured | {"cell_id": job.cell.id + "0"}])  # another cell's
    Results(results).write(PROBES, [{"cell_id": job.cell.id}])
    return replace(job, place=replace(job.place, replaces="run-1"))


def test_a_cell_that_is_run_again_keeps_nothing_of_its_earlier_end(mvtec, tmp_path):
    job = ended_and_measured(mvtec, tmp_path / "r")
    assert execute_cell(job.cell, job.place, "run-2", lambda progress: None).status == "ok"
    assert Results(tmp_path / "r").end_of(job.cell.id).run_id == "run-2"
    (others,) = Results(tmp_path / "r").storage.names("latency")
    assert others.startswith(f"latency/{job.cell.id}0-")
    assert {part: len(Results(tmp_path / "r").storage.names(part)) for part in LEFT} == {
        **dict.fromkeys(LEFT, 1),
        "probes": 0,
    }


def test_a_disk_that_fills_while_an_end_is_replaced_leaves_no_mixture(mvtec, tmp_path, monkeypatch):
    """Rows of the one end beside scores of the other would pass for a result."""
    job = ended_and_measured(mvtec, tmp_path / "r")
    write = Storage.write

    def full(self, name, data):
        if name.startswith("detectors/"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(ResultsError, match="No space left"):
        execute_cell(job.cell, job.place, "run-2", lambda progress: None)
    assert Results(tmp_path / "r").end_of(job.cell.id) is None


def test_images_that_changed_since_the_plan_are_a_failed_row(mvtec, tmp_path):
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",))
    write_image(mvtec / "bottle/train/good/000.png", 7777)
    outcome = execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    assert outcome.status == "failed"
    assert "changed since the run was planned" in outcome.error
    (row,) = pd.read_parquet(tmp_path / "r/cells").to_dict("records")
    assert row["status"] == "failed"
    assert "Traceback" in row["error"]
    assert pd.isna(row["image_auroc"])


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_and_gives_what_an_undisturbed_one_gives(mvtec, tmp_path):
    """Promise 1: kill -9 while the second of four cells trains."""
    words = ["run", "--methods", "stfpm", "--dataset", "mvtec_ad", "--root", str(mvtec), "--seeds", "0,1"]
    words += [*TINY, "--results", str(tmp_path / "r"), "--report", str(tmp_path / "out")]
    command = [sys.executable, "-m", "kdbench", *words]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in victim.stdout:
        if line.find("[1/4]") >= 0:
            break
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    left = list((tmp_path / "r/cells").glob("*.parquet"))
    assert 1 <= len(left) < 4
    before = {path: path.stat().st_mtime_ns for path in left}
    subprocess.run(command, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in left} == before
    undisturbed = tmp_path / "undisturbed"
    for job in jobs(mvtec, undisturbed, seeds=(0, 1)):
        execute_cell(job.cell, job.place, "run-2", lambda progress: None)
    columns = ["cell_id", "category", *METRICS]
    one, other = (
        pd.read_parquet(folder / "cells")[columns].sort_values(columns[:2]).reset_index(drop=True)
        for folder in (tmp_path / "r", undisturbed)
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.slow
def test_ray_gives_the_rows_that_the_local_executor_gives(mvtec, tmp_path, kdbench):
    # With as many threads sums are taken in the same order.
    words = ["run", *STFPM, "--root", mvtec, *TINY, "--cpus-per-cell", "1", "--report", tmp_path / "o"]
    assert kdbench(*words, "--results", tmp_path / "local")[0] == 0
    code, printed = kdbench(*words, "--results", tmp_path / "ray", "--executor", "ray")
    assert code == 0, printed
    columns = ["cell_id", "category", *METRICS]
    one, other = (
        pd.read_parquet(tmp_path / name / "cells")[columns].sort_values(columns[:2]).reset_index(drop=True)
        for name in ("local", "ray")
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-5)


def test_a_gpu_that_does_not_compute_leaves_no_row(mvtec, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")

    monkeypatch.setattr(torch, "zeros", broken)
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",))
    place = replace(job.place, device="cuda")
    with pytest.raises(LostError, match=r"does not compute: CUDA error: uncorrectable ECC"):
        execute_cell(job.cell, place, "run-1", lambda progress: None)
    assert not (tmp_path / "r/cells").exists()


def test_an_error_that_spoils_cuda_for_the_process_is_a_row(mvtec, tmp_path, monkeypatch):
    """All later calls fail, too: also those that clear up and those that ask for the name of the GPU."""

    def spoilt(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(attempt, "broken_gpu", lambda device: "")  # it computed when the cell began
    for name in ("empty_cache", "get_device_name", "set_per_process_memory_fraction"):
        monkeypatch.setattr(torch.cuda, name, spoilt)
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",))
    outcome = execute_cell(job.cell, replace(job.place, device="cuda"), "run-1", lambda progress: None)
    assert (outcome.status, outcome.error) == (
        "failed",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
    )
    (row,) = read(tmp_path / "r", CELLS).to_pylist()
    assert (row["status"], row["device"], row["device_name"]) == ("failed", "cuda", None)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "oom"),
        (RuntimeError("CUDA error: out of memory"), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("CUDA error: no kernel image is available"), "failed"),
    ],
)
def test_a_lack_of_memory_has_many_names(error, status):
    assert status_of(error) == status
