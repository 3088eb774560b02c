"""Publishing to a server of our own that speaks the part of the Hub that is used, and to local stores."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fabricated import all_metrics, row, scores

from kdbench.errors import RequestError
from kdbench.reports.leaderboard import write_leaderboard
from kdbench.reports.publish import summaries, write_rows
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.store import AUDITS, CELLS, LATENCY, PROBES, SCORES, TRIALS, Results, read

Call = Callable[..., tuple[int, str]]


class Hub(ThreadingHTTPServer):
    """A Hub with one user; keeps what was asked of it and the files that were committed."""

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = status
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[tuple[str, Any]] = []
        self.files: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    """Answers as the Hub does; every file is small enough to travel inside the commit."""

    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/datasets/me/rows/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.asked.append((self.path, lines[0]["value"]["summary"]))
            for line in lines[1:]:
                assert line["key"] == "file"
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            said: Any = {"commitUrl": f"{self.server.url}/datasets/me/rows/commit/abc", "commitOid": "abc"}
        else:
            asked = json.loads(body)
            self.server.asked.append((self.path, asked))
            said = {"url": f"{self.server.url}/datasets/me/rows", "errors": [], "warnings": []}
            said["files"] = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in asked.get("files", ())
            ]
        content = json.dumps(said).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    server = Hub(getattr(request, "param", 200))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A oneclass and a multiclass cell; one of the two categories of the first was not run."""
    folder = tmp_path / "results"
    for name, setting, categories in (("c0", "multiclass", ["a", "b"]), ("c1", "oneclass", ["a"])):
        facts = {"cell_id": name, "setting": setting, "categories": categories} | all_metrics(0.75)
        Results(folder).write(SCORES, scores(name, "a", merit=1, seed=0, num_images=6))
        Results(folder).write(CELLS, [row(category=category, **facts) for category in categories])
    return folder


def test_rows_in_a_folder_of_their_own_give_the_same_report(results: Path, tmp_path: Path) -> None:
    write_rows(results, tmp_path / "rows")
    written = [path.relative_to(tmp_path / "rows").as_posix() for path in (tmp_path / "rows").rglob("*.*")]
    assert sorted(written) == ["cells/rows.parquet", "scores/rows.parquet"]
    assert read(tmp_path / "rows", CELLS).equals(read(results, CELLS))
    before, after = (write_leaderboard(f, tmp_path / f"of-{f.name}")[0] for f in (results, tmp_path / "rows"))
    assert before.read_bytes() == after.read_bytes()

    (results / "scores/c0.parquet").unlink()
    (results / "scores/c1.parquet").unlink()
    write_rows(results, tmp_path / "rows")  # again: what is gone is gone there too
    assert read(tmp_path / "rows", SCORES).num_rows == 0
    assert read(tmp_path / "rows", CELLS).num_rows == 3


def test_trials_of_a_folder_without_cells_are_published(tmp_path: Path) -> None:
    Results(tmp_path / "r").write(TRIALS, [{"trial_id": "t-1", "sweep_id": "t", "status": "ok"}])
    Results(tmp_path / "r").write(AUDITS, [{"trial_id": "t-1", "category": "a"}])
    write_rows(tmp_path / "r", tmp_path / "rows")
    written = [path.relative_to(tmp_path / "rows").as_posix() for path in (tmp_path / "rows").rglob("*.*")]
    assert sorted(written) == ["audits/rows.parquet", "trials/rows.parquet"]
    assert read(tmp_path / "rows", TRIALS).equals(read(tmp_path / "r", TRIALS))


def test_of_published_rows_only_those_of_the_cells_asked_for_are_taken_over(
    results: Path, tmp_path: Path
) -> None:
    timed = {"cell_id": "c0", "run_id": "r", "device": "cuda"}
    for name in ("A100", "T4"):
        Results(results).write(LATENCY, [timed | {"device_name": name, "batch_size": b} for b in (1, 32)])
    for name in ("c0", "c1"):
        Results(results).write(PROBES, [{"cell_id": name, "category": category} for category in "ab"])
    write_rows(results, tmp_path / "rows")

    Results(tmp_path / "one").take_over(tmp_path / "rows", {"c0"})
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.parquet")]
    assert {len(path.stem.partition("-")[2]) for path in files if path.parent.name == "latency"} == {8}
    assert len(files) == 5  # rows, scores, a probe, two devices
    for file in files:
        assert pq.read_table(tmp_path / "one" / file).equals(pq.read_table(results / file)), file


def test_rows_are_not_written_beside_others(results: Path) -> None:
    with pytest.raises(RequestError, match=r"results already has other rows, such as cells/c0\.parquet"):
        write_rows(results, results)
    assert read(results, CELLS).num_rows == 3


def check_pushed(hub: Hub, results: Path, out: Path) -> None:
    paths = [path.partition("?")[0] for path, _ in hub.asked]
    assert paths[0] == "/api/repos/create"
    assert paths[-1] == "/api/datasets/me/rows/commit/main"
    assert hub.asked[0][1] == {
        "name": "rows",
        "organization": "me",
        "type": "dataset",
        "visibility": "private",
    }
    assert set(hub.files) == {
        "README.md",
        "data/cells.parquet",
        "data/scores.parquet",
        *(
            f"report/{path.relative_to(out)}"
            for path in out.rglob("*")
            if path.is_file() and path.name != "private.txt"
        ),
    }
    cells = pq.read_table(io.BytesIO(hub.files["data/cells.parquet"]))
    assert cells.schema.equals(ROW_SCHEMA)
    assert cells.equals(read(results, CELLS))
    assert {"report/report.html", "report/leaderboard.csv"} < set(hub.files)
    assert any(name.startswith("report/figures/") for name in hub.files)
    assert hub.files["report/leaderboard.md"] == (out / "leaderboard.md").read_bytes()
    assert "- config_name: scores\n  data_files: data/scores.parquet" in hub.files["README.md"].decode()


@pytest.mark.slow
def test_rows_and_report_are_pushed_to_the_hub(hub: Hub, results: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the extra hub")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/private.txt").write_text("not written by the report")
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_of_nobody"}
    words = ["report", "--results", results, "--out", tmp_path / "out", "--push-to-hub", "me/rows"]
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"pushed: {hub.url}/datasets/me/rows/commit/abc" in done.stdout
    check_pushed(hub, results, tmp_path / "out")


@pytest.fixture
def online(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub's package reads its environment once, when it is imported; here it was, by other tests."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra hub")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    return hub


def test_a_push_in_this_process_uploads_the_same(
    online: Hub, results: Path, kdbench: Call, tmp_path: Path
) -> None:
    code, said = kdbench(
        "report", "--results", results, "--out", tmp_path / "out", "--push-to-hub", "me/rows"
    )
    assert code == 0
    assert f"pushed: {online.url}/datasets/me/rows/commit/abc" in said
    check_pushed(online, results, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("hub", [403], indirect=True)
def test_a_hub_that_refuses_is_an_error_after_the_report(
    online: Hub, results: Path, kdbench: Call, tmp_path: Path
) -> None:
    code, said = kdbench(
        "report", "--results", results, "--out", tmp_path / "out", "--push-to-hub", "me/rows"
    )
    assert code == 2
    assert "cannot push to the repository 'me/rows': HfHubHTTPError" in said
    assert online.files == {}
    assert (tmp_path / "out/leaderboard.md").exists()


@pytest.mark.parametrize(
    ("module", "option", "extra"),
    [
        ("huggingface_hub", "--push-to-hub", "hub"),
        ("mlflow", "--mlflow", "mlflow"),
        ("wandb", "--wandb", "wandb"),
    ],
)
def test_a_missing_extra_is_named_before_anything_is_written(
    results: Path,
    kdbench: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    option: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what Python itself does with a module that is absent
    code, said = kdbench("report", "--results", results, "--out", tmp_path / "out", option, "somewhere")
    assert code == 2
    assert f"pip install kdbench[{extra}]" in said
    assert not (tmp_path / "out").exists()


def test_trackers_are_told_configuration_means_and_holes(results: Path) -> None:
    multiclass, oneclass = summaries(results)
    assert multiclass.name == "fabricated_a, fabricated, multiclass, profile paper, preset exact (metrics v1)"
    assert multiclass.params["config.epochs"] == "2"
    assert multiclass.params["seeds"] == "[0]"
    assert multiclass.metrics == all_metrics(0.75)
    assert multiclass.cell_ids == ("c0",)
    assert oneclass.params["holes"] == "1 of 2 categories"
    assert oneclass.metrics == {}  # a mean over one of two categories is no mean of the dataset


@pytest.mark.slow
def test_mlflow_has_a_run_per_entry_and_the_report(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    store = f"file:{tmp_path / 'mlruns'}"
    environment = os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true"}
    words = ["report", "--results", results, "--out", tmp_path / "out", "--mlflow", store]
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "logged 3 runs to MLflow" in done.stdout
    metrics = [path.read_text().split()[1] for path in tmp_path.glob("mlruns/*/*/metrics/image_auroc")]
    assert metrics == ["0.75"]
    methods = [path.read_text() for path in tmp_path.glob("mlruns/*/*/params/method")]
    assert methods == ["fabricated_a"] * 2
    assert len(list(tmp_path.glob("mlruns/*/*/artifacts/leaderboard.*"))) == 3


@pytest.mark.slow
def test_wandb_writes_a_run_per_entry_and_the_report(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    words = ["report", "--results", results, "--out", tmp_path / "out", "--wandb", "toy"]
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "logged 3 runs to the wandb project toy" in done.stdout
    logs = [path.read_bytes() for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert len(logs) == 3
    assert sum(b"image_auroc" in log and b"0.75" in log for log in logs) == 1
    assert sum(b"leaderboard.tex" in log for log in logs) == 1
