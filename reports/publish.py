"""Publishing rows and report: a folder, a repository of the Hugging Face Hub, MLflow, Weights & Biases.

All but the folder need an extra. The files of the report and the rows are published, nothing else.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.errors import RequestError, number_of
from kdbench.reports.entries import Entry, entries
from kdbench.reports.rows import Group, load_rows, sections
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, REPORTED, TRIALS, Kind, read

EXTRAS = {"huggingface_hub": "hub", "mlflow": "mlflow", "wandb": "wandb"}
EXPERIMENT = "kdbench"
CARD = """---
tags:
- anomaly-detection
- kdbench
configs:
{configs}
---

# Rows of a kdbench benchmark

One row per category of a cell in `cells`, per test image in `scores`, per held-out normal image in `normals`,
per timing in `latency`, per probed category in `probes`, per trivial
number of an audited dataset in `shortcuts`, per trial of a sweep in `trials`. The report of these rows is in
`report/`.
"""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Logged:
    """The run of a tracker for one entry of one section."""

    name: str
    params: dict[str, str]
    metrics: dict[str, float]  # means over categories and seeds; a mean with a hole is left out
    cell_ids: tuple[str, ...]


def check_extra(module: str) -> ModuleType:
    """The module of an extra; RequestError naming the extra if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = EXTRAS[module]
        raise RequestError([f"{module} is not installed: pip install kdbench[{extra}]"]) from error


def write_rows(results: str | Path, folder: Path) -> None:
    """Write all rows, one Parquet file per kind, to a folder that `kdbench report --results` reads.

    Curves and pictures are not among them. RequestError if the folder has other rows: they would count too.
    """
    target = Storage(folder)
    whole = {kind.whole: rows for kind, rows in _rows(results)}
    others = [name for kind in REPORTED for name in kind.names(target) if name not in whole]
    if others:
        raise RequestError([f"{folder} already has other rows, such as {others[0]}: name another folder"])
    for name, rows in whole.items():
        if rows.num_rows:
            target.write(name, _parquet(rows))
        else:
            target.remove(name)


def _rows(results: str | Path) -> Iterator[tuple[Kind, pa.Table]]:
    """The rows of every kind that is published. A folder of sweeps alone has no cells."""
    for kind in REPORTED:
        swept = kind is CELLS and not kind.names(Storage(results))
        yield kind, ROW_SCHEMA.empty_table() if swept else read(results, kind)


def push_to_hub(results: str | Path, files: Sequence[Path], repo: str) -> str:
    """Upload all rows, one Parquet file per kind, and the report in one commit; returns its address.

    A repository that does not exist is created as a private one: rows name hosts, and errors name paths.
    """
    hub = check_extra("huggingface_hub")
    contents = {f"report/{file.relative_to(files[0].parent)}": file.read_bytes() for file in files}
    parts = {kind.folder: rows for kind, rows in _rows(results) if rows.num_rows}
    contents |= {f"data/{name}.parquet": _parquet(rows) for name, rows in parts.items()}
    contents["README.md"] = _card(parts).encode()

    def upload() -> str:
        api = hub.HfApi()
        known = api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
            for name, content in sorted(contents.items())
        ]
        counts = {
            kind.folder: parts[kind.folder].num_rows for kind in (CELLS, TRIALS) if kind.folder in parts
        }
        rows = ", ".join(f"{number_of(count, 'row')} of {name}" for name, count in counts.items())
        message = f"{rows}, and their report"
        commit = api.create_commit(known.repo_id, operations, commit_message=message, repo_type="dataset")
        return str(commit.commit_url)

    return _attempt(f"push to the repository {repo!r}", upload)


def log_to_mlflow(results: str | Path, files: Sequence[Path], uri: str) -> int:
    """Log a run per entry and section, and one with the report; returns how many.

    The experiment is `kdbench`.
    """
    mlflow = check_extra("mlflow")
    logged = [*summaries(results)]

    def log() -> int:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        for one in logged:
            run = client.create_run(experiment, run_name=one.name).info.run_id
            for name, value in one.params.items():
                client.log_param(run, name, value)
            for name, number in one.metrics.items():
                client.log_metric(run, name, number)
            client.log_text(run, "\n".join(one.cell_ids), "cell_ids.txt")
            client.set_terminated(run)
        run = client.create_run(experiment, run_name="report").info.run_id
        for file in files:
            client.log_artifact(run, str(file))
        client.set_terminated(run)
        return len(logged) + 1

    return _attempt(f"log to MLflow at {uri!r}", log)


def log_to_wandb(results: str | Path, files: Sequence[Path], project: str) -> int:
    """Log a run per entry and section, and one with the report as an artifact; returns how many.

    WANDB_MODE, WANDB_DIR and WANDB_BASE_URL say where they go, and whether they go online.
    """
    wandb = check_extra("wandb")
    logged = [*summaries(results)]

    def log() -> int:
        for one in logged:
            config = one.params | {"cell_ids": list(one.cell_ids)}
            with wandb.init(project=project, name=one.name, config=config) as run:
                run.summary.update(one.metrics)
        with wandb.init(project=project, name="report") as run:
            artifact = wandb.Artifact("report", type="report")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
        return len(logged) + 1

    return _attempt(f"log to the Weights & Biases project {project!r}", log)


def summaries(results: str | Path) -> Iterator[Logged]:
    """The runs of a tracker: every entry of every section with its resolved configuration."""
    cells = load_rows(results)
    recipes = cells.drop_duplicates("cell_id").set_index("cell_id")[["config", "selection"]]
    for group, rows in sections(cells):
        for entry in entries(rows):
            config, selection = recipes.loc[entry.cell_ids[0]]
            yield _summary(group, entry, json.loads(config) | {"selection": selection})


def _summary(group: Group, entry: Entry, config: dict[str, Any]) -> Logged:
    params = {f"config.{key}": value for key, value in config.items()} | {
        "method": entry.method,
        "dataset": group.dataset,
        "setting": group.setting,
        "profile": group.profile,
        "preset": group.preset,
        "metric_version": group.metric_version,
        "seeds": entry.seeds,
        "holes": "; ".join(entry.remarks),
    }
    return Logged(
        name=f"{entry.name}, {group.title}",
        params={key: value if isinstance(value, str) else json.dumps(value) for key, value in params.items()},
        metrics={metric: mean.mean for metric, mean in entry.means.items() if mean},
        cell_ids=entry.cell_ids,
    )


def _attempt(what: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except Exception as error:  # whatever a foreign library and the network raise
        raise RequestError([f"cannot {what}: {type(error).__name__}: {error}"]) from error


def _card(parts: dict[str, pa.Table]) -> str:
    configs = "\n".join(f"- config_name: {name}\n  data_files: data/{name}.parquet" for name in parts)
    return CARD.format(configs=configs)


def _parquet(rows: pa.Table) -> bytes:
    written = pa.BufferOutputStream()
    pq.write_table(rows, written)
    return written.getvalue().to_pybytes()
