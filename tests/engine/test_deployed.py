"""Exported detectors in a run: what is measured, what is written, and what a report shows of it."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_latency import jobs

from kdbench.deploy.runtimes import why_not
from kdbench.engine import latency
from kdbench.engine.deployed import evaluate_exported
from kdbench.engine.latency import time_detector
from kdbench.engine.measured import read_measured
from kdbench.errors import RequestError
from kdbench.grid.attempt import execute_cell
from kdbench.grid.plan import plan
from kdbench.grid.request import Request
from kdbench.grid.timing import to_evaluate, to_time
from kdbench.metrics.exact import METRICS
from kdbench.registry import get_method
from kdbench.reports.leaderboard import all_tables
from kdbench.results.store import CELLS, DEPLOYED, DETECTORS, LATENCY, SCORES, Results, read

openvino = pytest.importorskip("openvino", reason="needs the extra deploy")
RUNTIMES = ("torch", "onnxruntime", "openvino")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, request):
    """A tiny cell that was timed and evaluated in three runtimes, in fp32 and int8."""
    mvtec = request.getfixturevalue("_mvtec")
    results = tmp_path_factory.mktemp("measured") / "r"
    asked = {"runtimes": RUNTIMES, "runtime_precision": ("fp32", "int8"), "precision": "fp32"}
    (job,) = jobs(mvtec, results, categories=("bottle",), cpus_per_cell=1, **asked)
    execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "BUDGET_S", 0.01)
        assert time_detector(job.cell, job.place, "run-2") == []
    assert evaluate_exported(job.cell, job.place, "run-3") == []
    return job, results


def test_every_runtime_has_its_times_or_says_why_not(measured):
    job, results = measured
    rows = read(results, LATENCY).to_pylist()
    ways = {(row["runtime"], row["precision"], row["batch_size"]) for row in rows}
    assert ways == {(r, p, b) for r in RUNTIMES for p in ("fp32", "int8") for b in (1, 32)}
    for row in rows:
        if (row["runtime"], row["precision"]) == ("torch", "int8"):
            assert row["why_not"] == "torch does not compute in int8: it computes in fp32, bf16, fp16"
            assert row["times_ms"] is None
        else:
            assert row["why_not"] is None
            assert 0 < row["p50_ms"] <= row["p99_ms"]
            assert row["runtime_version"][0].isdigit()
            assert row["num_threads"] == 1
    assert to_time([job], read_measured(Results(results))) == []


def test_exported_detectors_score_as_torch_does(measured):
    job, results = measured
    rows = {(row["runtime"], row["precision"]): row for row in read(results, DEPLOYED).to_pylist()}
    assert len(rows) == 6
    (cell,) = read(results, CELLS).to_pylist()
    scores = {row["image"]: row for row in read(results, SCORES).to_pylist()}
    label = [scores[image]["label"] for image in rows["torch", "fp32"]["images"]]
    for runtime in RUNTIMES:
        row = rows[runtime, "fp32"]
        expected = [scores[image]["image_score"] for image in row["images"]]
        np.testing.assert_allclose(row["image_scores"], expected, rtol=1e-3)
        assert row["image_auroc"] == pytest.approx(roc_auc_score(label, row["image_scores"]))
        assert {name: row[name] for name in METRICS} == pytest.approx(
            {name: cell[name] for name in METRICS}, abs=1e-3
        )
    for runtime in ("onnxruntime", "openvino"):
        row = rows[runtime, "int8"]
        assert row["num_calibration"] == cell["num_train"] + cell["num_heldout"]
        assert 0 < np.abs(np.divide(row["image_scores"], expected) - 1).max() < 0.5
    assert rows["torch", "int8"]["why_not"]
    assert to_evaluate([job], read_measured(Results(results), DEPLOYED)) == []


def test_a_report_has_the_runtimes_side_by_side_and_what_int8_costs(measured):
    _, results = measured
    found = all_tables(results)
    tables = {table.title.partition(":")[0].partition(" on ")[0]: table for table in found}
    shown = {tuple(v.text for v in line)[1:5] for line in tables["Runtimes"].body}
    expected = {(batch, runtime) for batch in ("1", "32") for runtime in RUNTIMES}
    assert {(batch, runtime) for batch, runtime, *_ in shown} == expected
    exported = tables["Exported detectors"].body
    assert [line[2].text for line in exported[:3]] == [
        "torch, as trained",
        "onnxruntime, exported",
        "onnxruntime, exported",
    ]
    (hole,) = [line for line in exported if line[-1].text]
    assert hole[-1].text.startswith("torch does not compute in int8")
    cost = tables["What does int8 cost?"]
    assert len(cost.body) == 5
    assert cost.body[0][4].text == "+0.00"  # fp32 by ONNX Runtime, image AUROC
    assert sum(table.title.startswith("Latency on ") for table in found) == len(RUNTIMES)


def test_only_what_is_missing_is_measured(mvtec, tmp_path):
    results = Results(tmp_path / "r")
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",), runtimes=("torch", "openvino"))
    results.storage.write(DETECTORS.name(job.cell.id), b"")
    old = {"cell_id": job.cell.id, "device": "cpu", "device_name": "a", "busy": False, "precision": "fp32"}
    results.write(LATENCY, [old])  # an older kdbench named no runtime
    (left,) = to_time([job], read_measured(results))
    assert left.place.runtimes == ("openvino",)
    failed = old | {"runtime": "openvino", "why_not": "RuntimeError: out of luck"}
    results.write(LATENCY, [old, failed])
    assert [one.place.runtimes for one in to_time([job], read_measured(results))] == [("openvino",)]
    results.write(LATENCY, [old, old | {"runtime": "openvino"}])
    assert to_time([job], read_measured(results)) == []
    asked = {"runtimes": ("openvino",), "runtime_precision": ("fp32", "int8")}
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",), **asked)
    assert [one.place.runtimes for one in to_time([job], read_measured(results))] == [("openvino",)]


def test_a_detector_that_cannot_be_exported_is_named_and_others_are_measured(mvtec, tmp_path, monkeypatch):
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",), runtimes=("onnxruntime", "torch"))
    execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    monkeypatch.setattr(latency, "BUDGET_S", 0.01)

    def refuse(*_):
        raise ValueError("a constraint is violated\nin line 3")

    monkeypatch.setattr("kdbench.engine.deployed.Traced", refuse)
    complaints = time_detector(job.cell, job.place, "run-2")
    why = "it cannot be exported for onnxruntime in fp32: ValueError: a constraint is violated"
    assert f"onnxruntime in fp32: {why}" in complaints
    rows = read(tmp_path / "r", LATENCY).to_pylist()
    assert {row["why_not"] for row in rows if row["runtime"] == "torch"} == {None}
    assert why in {row["why_not"] for row in rows if row["runtime"] == "onnxruntime"}
    said = [line[-1].text for table in all_tables(tmp_path / "r") for line in table.body]
    assert why in said


def test_a_request_that_no_runtime_can_fulfil_is_refused_at_once(mvtec, tmp_path):
    asked = {"methods": ("stfpm",), "dataset": ("mvtec_ad",), "root": mvtec, "backbone": "tiny"}
    with pytest.raises(RequestError) as raised:
        plan(
            Request(
                **asked,
                runtimes=("openvin", "onnxruntime", "tensorrt"),
                runtime_precision=("bf61", "bf16"),
                device="cpu",
            )
        )
    text = "\n".join(raised.value.complaints)
    assert "Did you mean 'openvino'?" in text
    assert "Did you mean 'bf16'?" in text
    assert "onnxruntime does not compute in bf16" in text
    assert "tensorrt does not run on cpu" in text
    with pytest.raises(RequestError, match="leave out --no-latency"):
        plan(Request(**asked, runtimes=("openvino",), latency=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rd4ad", "snl", "destseg"])
def test_methods_of_other_families_have_all_their_rows(mvtec, tmp_path, monkeypatch, name):
    monkeypatch.setattr(latency, "BUDGET_S", 0.01)
    method = get_method(name)
    changes = {f"{name}.{key}": value for key, value in method.tiny.items() if key != "backbone"}
    asked = {"methods": (name,), "categories": ("bottle",), "runtimes": RUNTIMES, "evaluate_exported": True}
    asked |= {"backbone": method.tiny.get("backbone", "tiny"), "precision": "fp32", "cpus_per_cell": 1}
    asked |= {"runtime_precision": ("fp32", "bf16", "int8"), "set": {"all.image_size": 64, **changes}}
    (job,) = jobs(mvtec, tmp_path / "r", **asked)
    execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    assert time_detector(job.cell, job.place, "run-2") == []
    assert evaluate_exported(job.cell, job.place, "run-3") == []
    (cell,) = read(tmp_path / "r", CELLS).to_pylist()
    ways = {(runtime, precision) for runtime in RUNTIMES for precision in ("fp32", "bf16", "int8")}
    for kind, times in ((LATENCY, 2), (DEPLOYED, 1)):
        rows = read(tmp_path / "r", kind).to_pylist()
        assert sorted((row["runtime"], row["precision"]) for row in rows) == sorted([*ways] * times)
        for row in rows:
            never = why_not(row["runtime"], row["precision"])
            assert row["why_not"] == (never or None)
            if kind is DEPLOYED and not never and row["precision"] == "fp32":
                assert row["image_auroc"] == pytest.approx(cell["image_auroc"], abs=1e-3)
                assert row["aupro"] == pytest.approx(cell["aupro"], abs=1e-3)


@pytest.mark.slow
def test_a_run_with_three_runtimes_gives_a_table_and_a_plot_of_them(kdbench, tmp_path):
    words = [
        "run",
        "--methods",
        "stfpm",
        "--dataset",
        "synthetic",
        "--categories",
        "wood",
        "--profile",
        "demo",
    ]
    words += ["--epochs", 1, "--executor", "local", "--runtimes", ",".join(RUNTIMES), "--evaluate-exported"]
    code, printed = kdbench(*words, "--results", tmp_path / "r", "--out", tmp_path / "o")
    assert code == 0, printed
    assert "timing 1 detector," in printed
    assert "evaluating 1 exported detector\n" in printed
    text = (tmp_path / "o/leaderboard.md").read_text()
    part = text.partition("### Runtimes on ")[2].partition("###")[0]
    assert all(f"| {runtime} |" in part for runtime in RUNTIMES)
    assert kdbench("report", "--results", tmp_path / "r", "--out", tmp_path / "o")[0] == 0
    (figure,) = (tmp_path / "o/figures").glob("runtimes-*.svg")
    assert all(f"{runtime}, fp32" in figure.read_text() for runtime in RUNTIMES)
    assert "### What does int8 cost?" in text
    code, printed = kdbench(*words, "--results", tmp_path / "r", "--out", tmp_path / "o")
    assert (code, "evaluating" in printed) == (0, False)
