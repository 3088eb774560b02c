"""Rows: the Parquet schema, and writing and reading them so that a file is whole or not there."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdbench.errors import DataError
from kdbench.metrics.curves import CURVES
from kdbench.metrics.exact import METRICS
from kdbench.metrics.legacy import LEGACY_METRICS
from kdbench.results.storage import Storage

SCHEMA_VERSION = 1
# All folders; the files of the first carry the id of a cell.
OF_CELLS = ("cells", "scores", "curves", "pictures", "detectors", "checkpoints", "probes", "latency")
PARTS = (*OF_CELLS, "leases", "runs", "inputs", "trials", "audits")
WHOLE = "{}/rows.parquet"  # all rows of one kind, as `kdbench report --rows` writes them
ABANDONED_S = 86400.0  # nobody writes on one file for so long
STATUSES = ("ok", "failed", "timeout", "oom")

_TEXT, _WHOLE, _REAL, _TEXTS, _REALS = (
    pa.string(),
    pa.int64(),
    pa.float64(),
    pa.list_(pa.string()),
    pa.list_(pa.float64()),
)

# One row per category of a cell. Frozen by tests/results/test_results.py; a change is a new SCHEMA_VERSION.
ROW_SCHEMA = pa.schema(
    [
        # what was asked for
        ("schema_version", _WHOLE),
        ("cell_id", _TEXT),
        ("run_id", _TEXT),
        ("method", _TEXT),
        ("config", _TEXT),  # JSON
        ("dataset", _TEXT),
        ("setting", _TEXT),
        ("category", _TEXT),
        ("categories", _TEXTS),  # that the model was trained on
        ("dataset_categories", _TEXTS),  # that the dataset has
        ("texture", pa.bool_()),
        ("fingerprint", _TEXT),
        ("split_sha256", _TEXT),  # of the file that says which images are for training, if there is one
        ("seed", _WHOLE),
        ("profile", _TEXT),
        ("selection", _TEXT),  # what chose the checkpoint: heldout, last, or test (never ranked)
        # how it was evaluated
        ("preset", _TEXT),
        ("metric_version", _WHOLE),
        ("evaluation_size", _WHOLE),
        ("mask_rule", _TEXT),
        ("score_pooling", _TEXT),
        ("pro_limit", _REAL),
        ("sigma", _REAL),
        # how it ended
        ("status", _TEXT),
        ("error", _TEXT),
        # what came out: fractions; null where it does not exist
        *((name, _REAL) for name in METRICS),
        ("mad", _REAL),
        *((name, _REAL) for name in LEGACY_METRICS),  # only with the preset of that code
        ("num_train", _WHOLE),
        ("num_heldout", _WHOLE),
        ("num_test", _WHOLE),
        ("num_defective", _WHOLE),
        ("num_unmarked", _WHOLE),  # defects with an empty mask, kept out of the pixel metrics
        ("num_regions", _WHOLE),
        ("num_steps", _WHOLE),
        ("best_epoch", _WHOLE),
        ("epoch_loss", _REALS),
        ("epoch_heldout", _REALS),
        # what it cost
        ("prepare_s", _REAL),
        ("train_s", _REAL),
        ("resumed_at_epoch", _WHOLE),  # of the last time that a lost worker's training was taken up again
        ("evaluate_s", _REAL),
        ("num_parameters", _WHOLE),  # teacher and detector, at inference
        ("num_trained_parameters", _WHOLE),
        ("flops", _WHOLE),  # of one image at inference, teacher included; a multiply-add counts 2
        ("peak_memory_bytes", _WHOLE),
        ("device_memory_bytes", _WHOLE),
        # with what
        ("backbone", _TEXT),
        ("teacher_source", _TEXT),
        ("teacher_sha256", _TEXT),
        ("teacher_cache", _TEXT),
        ("precision", _TEXT),
        ("device", _TEXT),
        ("device_name", _TEXT),
        ("driver", _TEXT),
        ("num_threads", _WHOLE),
        ("host", _TEXT),
        ("started_at", _TEXT),
        ("git_commit", _TEXT),
        ("git_dirty", pa.bool_()),
        *(
            (f"{name}_version", _TEXT)
            for name in ("kdbench", "python", "torch", "torchvision", "timm", "ray")
        ),
    ]
)

SCORE_SCHEMA = pa.schema(
    [
        ("cell_id", _TEXT),
        ("category", _TEXT),
        ("image", _TEXT),
        ("defect", _TEXT),
        ("label", pa.bool_()),
        ("image_score", _REAL),
    ]
)


# One row per category of a multiclass detector that was probed.
PROBE_SCHEMA = pa.schema(
    [
        *(
            ROW_SCHEMA.field(name)
            for name in ("cell_id", "method", "config", "dataset", "setting", "category")
        ),
        *(ROW_SCHEMA.field(name) for name in ("categories", "dataset_categories", "fingerprint", "seed")),
        *(ROW_SCHEMA.field(name) for name in ("profile", "preset", "metric_version", "teacher_sha256")),
        ("num_images", _WHOLE),
        ("mixup_image_auroc", _REAL),
        ("cutpaste_image_auroc", _REAL),
        ("cutpaste_pixel_auroc", _REAL),
        *(ROW_SCHEMA.field(name) for name in ("device", "git_commit", "git_dirty")),
        *(
            ROW_SCHEMA.field(f"{name}_version")
            for name in ("kdbench", "python", "torch", "torchvision", "timm")
        ),
    ]
)


# One row per detector, device, batch size and precision.
LATENCY_SCHEMA = pa.schema(
    [
        *(
            ROW_SCHEMA.field(name)
            for name in ("schema_version", "cell_id", "run_id", "method", "config", "dataset", "setting")
        ),
        *(ROW_SCHEMA.field(name) for name in ("seed", "profile", "backbone", "teacher_sha256")),
        ("batch_size", _WHOLE),
        ("precision", _TEXT),
        ("num_warmup", _WHOLE),
        ("times_ms", _REALS),  # of each timed batch: from images on the device to maps and scores on it
        ("p50_ms", _REAL),
        ("p90_ms", _REAL),
        ("p99_ms", _REAL),
        ("images_per_s", _REAL),  # from the median
        ("copy_ms", _REAL),  # median of the copy from host to device, not in the times; null on a CPU
        *(ROW_SCHEMA.field(name) for name in ("num_parameters", "flops", "peak_memory_bytes")),
        ("busy", pa.bool_()),  # something else used the device or the node: never ranked
        ("neighbours", _TEXT),  # what that was
        *(
            ROW_SCHEMA.field(name)
            for name in ("device", "device_name", "driver", "num_threads", "host", "started_at")
        ),
        *(ROW_SCHEMA.field(name) for name in ("git_commit", "git_dirty")),
        *(
            ROW_SCHEMA.field(f"{name}_version")
            for name in ("kdbench", "python", "torch", "torchvision", "timm")
        ),
    ]
)


# One row per trial of a sweep.
TRIAL_SCHEMA = pa.schema(
    [
        ("schema_version", _WHOLE),
        ("trial_id", _TEXT),
        ("sweep_id", _TEXT),
        ("method", _TEXT),
        ("config", _TEXT),  # JSON
        ("searched", _TEXT),  # JSON: the keys that the sweep searches, with this trial's values
        ("is_default", pa.bool_()),  # the configuration that the sweep begins with
        *(ROW_SCHEMA.field(name) for name in ("dataset", "setting", "categories", "dataset_categories")),
        ("fingerprints", _TEXTS),  # of the images of each model of the trial
        ("seeds", pa.list_(_WHOLE)),
        ("profile", _TEXT),
        ("search", _TEXT),
        ("scheduler", _TEXT),
        ("selection", _TEXT),  # what the objective saw: synthetic (defects on held-out normals), or test
        ("objective", _TEXT),  # the metric's name
        ("objective_value", _REAL),  # of the detector that is kept; of the last report if stopped early
        ("objective_epochs", pa.list_(_WHOLE)),  # at which it was reported
        ("objective_history", _REALS),
        ("metric_version", _WHOLE),
        ("status", _TEXT),
        ("error", _TEXT),
        ("epochs", _WHOLE),  # that a training to the end has
        ("epochs_trained", _WHOLE),
        ("stopped_early", pa.bool_()),
        ("num_train", _WHOLE),
        ("num_heldout", _WHOLE),  # normal images that were not trained on; each is judged with a defect, too
        ("trial_s", _REAL),
        ("peak_memory_bytes", _WHOLE),
        ("started_at", _TEXT),
        ("ended_at", _TEXT),
        *(ROW_SCHEMA.field(name) for name in ("backbone", "teacher_source", "teacher_sha256", "precision")),
        *(
            ROW_SCHEMA.field(name)
            for name in ("device", "device_name", "driver", "num_threads", "host", "git_commit", "git_dirty")
        ),
        *(
            ROW_SCHEMA.field(f"{name}_version")
            for name in ("kdbench", "python", "torch", "torchvision", "timm", "ray")
        ),
    ]
)
TRIAL_STATUSES = ("running", "ok", "failed", "oom")

# One row per category and seed of a trial whose kept detector saw the test images after the sweep had ended.
AUDIT_SCHEMA = pa.schema(
    [
        *(TRIAL_SCHEMA.field(name) for name in ("schema_version", "trial_id", "sweep_id")),
        *(ROW_SCHEMA.field(name) for name in ("method", "config", "dataset", "setting", "category")),
        *(ROW_SCHEMA.field(name) for name in ("categories", "dataset_categories", "fingerprint", "seed")),
        *(ROW_SCHEMA.field(name) for name in ("profile", "selection", "preset", "metric_version")),
        *((name, _REAL) for name in METRICS),
        ("mad", _REAL),
        *(ROW_SCHEMA.field(name) for name in ("num_test", "num_defective", "evaluate_s")),
        *(ROW_SCHEMA.field(name) for name in ("teacher_sha256", "precision", "device", "device_name")),
        *(ROW_SCHEMA.field(name) for name in ("num_threads", "host", "git_commit", "git_dirty")),
        *(
            ROW_SCHEMA.field(f"{name}_version")
            for name in ("kdbench", "python", "torch", "torchvision", "timm")
        ),
    ]
)


@dataclass(frozen=True, kw_only=True)
class End:
    """How a cell ended, and in which run."""

    status: str
    run_id: str


# One row per category of a cell that ended well.
CURVE_SCHEMA = pa.schema(
    [("cell_id", _TEXT), ("category", _TEXT), *((name, pa.list_(pa.float32())) for name in CURVES)]
)

# One row per test image whose anomaly map was kept as a picture.
PICTURE_SCHEMA = pa.schema(
    [
        ("cell_id", _TEXT),
        ("category", _TEXT),
        ("category_fingerprint", _TEXT),  # names the file of its inputs
        ("image", _TEXT),
        ("anomaly_map", pa.binary()),  # PNG, 8-bit grey
        ("lowest", _REAL),  # what black stands for
        ("highest", _REAL),  # what white stands for
    ]
)

# One row per test image of a category's content; shared by all cells.
INPUT_SCHEMA = pa.schema(
    [
        ("category_fingerprint", _TEXT),
        ("category", _TEXT),
        ("image", _TEXT),
        ("width", _WHOLE),  # of the original, upright
        ("height", _WHOLE),
        ("input", pa.binary()),  # JPEG
        ("mask", pa.binary()),  # PNG, bilevel; null without one
    ]
)


class Results:
    """A results folder: `cells/` has a file per cell that ended, `scores/`, `detectors/` the rest."""

    def __init__(self, where: str | Path | Storage) -> None:
        self.storage = where if isinstance(where, Storage) else Storage(where)

    def write_rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write all rows of one cell at once; from now on the cell is finished."""
        (cell_id,) = {row["cell_id"] for row in rows}
        self._write(cell_name(cell_id), rows, ROW_SCHEMA)

    def write_scores(self, cell_id: str, scores: Sequence[dict[str, Any]]) -> None:
        """Write the per-image scores; before the rows, so that rows never lack their scores."""
        self._write(f"scores/{cell_id}.parquet", scores, SCORE_SCHEMA)

    def write_curves(self, cell_id: str, curves: Sequence[dict[str, Any]]) -> None:
        """Write the thinned ROC and PRO curves; before the rows."""
        self._write(curve_name(cell_id), curves, CURVE_SCHEMA)

    def write_pictures(self, cell_id: str, pictures: Sequence[dict[str, Any]]) -> None:
        """Write the pictures of a cell's anomaly maps; before the rows."""
        self._write(picture_name(cell_id), pictures, PICTURE_SCHEMA)

    def write_inputs(self, inputs: Sequence[dict[str, Any]]) -> None:
        """Write the pictures of one category's inputs and masks; every cell would write the same."""
        self._write(input_name(inputs[0]["category_fingerprint"]), inputs, INPUT_SCHEMA)

    def write_detector(self, cell_id: str, content: bytes) -> None:
        """Write the trained detector (safetensors, without the teacher); before the rows."""
        self.storage.write(detector_name(cell_id), content)

    def read_detector(self, cell_id: str) -> bytes:
        """The content of `write_detector`; FileNotFoundError if it was not kept."""
        return self.storage.read(detector_name(cell_id))

    def write_probe(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write all rows of one detector's probe at once."""
        self._write(probe_name(rows[0]["cell_id"]), rows, PROBE_SCHEMA)

    def write_latency(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write all timings of one detector on one device at once."""
        ((cell_id, device_name),) = {(row["cell_id"], row["device_name"]) for row in rows}
        self._write(latency_name(cell_id, device_name), rows, LATENCY_SCHEMA)

    def write_trial(self, row: dict[str, Any]) -> None:
        """Write a trial's row; one that still trains writes it anew at every report."""
        self._write(trial_name(row["trial_id"]), [row], TRIAL_SCHEMA)

    def read_trial(self, trial_id: str) -> dict[str, Any] | None:
        """A trial's row; None before its first report."""
        name = trial_name(trial_id)
        if not self.storage.exists(name):
            return None
        table = _conform(_read(self.storage, name), TRIAL_SCHEMA, self.storage.path(name))
        row: dict[str, Any] = table.to_pylist()[0]
        return row

    def write_audit(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the test scores of one trial's detector at once."""
        (trial_id,) = {row["trial_id"] for row in rows}
        self._write(audit_name(trial_id), rows, AUDIT_SCHEMA)

    def ends(self, cell_ids: Iterable[str]) -> "dict[str, End]":
        """Cell id -> how and in which run it ended, of those that have. DataError names a damaged file."""
        there = set(self.storage.names("cells"))
        wanted = [cell_id for cell_id in cell_ids if cell_name(cell_id) in there]
        with ThreadPoolExecutor(8) as pool:  # an object store answers each question late, but many at once
            ends = zip(wanted, pool.map(self.end_of, wanted), strict=True)
            return {cell_id: end for cell_id, end in ends if end is not None}

    def rows_of(self, cell_id: str) -> list[dict[str, Any]]:
        """The rows of one cell; DataError if they are damaged, FileNotFoundError if it has not ended."""
        rows: list[dict[str, Any]] = _read(self.storage, cell_name(cell_id)).to_pylist()
        return rows

    def end_of(self, cell_id: str) -> "End | None":
        """How and in which run a cell ended, or None; DataError for a damaged file."""
        try:
            table = _read(self.storage, cell_name(cell_id), ["status", "run_id"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        return End(status=table["status"][0].as_py(), run_id=table["run_id"][0].as_py())

    def take_over(self, published: str | Path, cell_ids: Set[str]) -> None:
        """Copy rows, scores, timings and probes of these cells from what `kdbench report --rows` wrote."""

        def chosen(table: pa.Table, *keys: str) -> Iterator[list[dict[str, Any]]]:
            """The rows of these cells that share one file."""
            rows = table.filter(pc.is_in(table["cell_id"], pa.array(sorted(cell_ids), _TEXT))).to_pylist()
            key = itemgetter("cell_id", *keys)
            for _, group in groupby(sorted(rows, key=key), key):
                yield list(group)

        for scores in chosen(read_scores(published)):
            self.write_scores(scores[0]["cell_id"], scores)
        for timings in chosen(read_latencies(published), "device_name"):
            self.write_latency(timings)
        for probed in chosen(read_probes(published)):
            self.write_probe(probed)
        for rows in chosen(read_rows(published)):  # last: from now on the cell is finished
            self.write_rows(rows)

    def discard(self, cell_id: str) -> None:
        """Remove all that an earlier end of a cell left, its rows first: without them it has not ended."""
        kept = (f"scores/{cell_id}.parquet", curve_name(cell_id), picture_name(cell_id))
        timed = [n for n in self.storage.names("latency") if n.startswith(f"latency/{cell_id}-")]
        for name in (cell_name(cell_id), *kept, detector_name(cell_id), probe_name(cell_id), *timed):
            self.storage.remove(name)

    def remove_unfinished(self, cell_ids: Set[str]) -> None:
        """Remove what killed writers of these cells left, which nobody runs; else what is a day old."""
        for part in PARTS:
            for name in self.storage.unfinished(part):
                left = part in OF_CELLS and any(cell_id in name for cell_id in cell_ids)
                if left or self.storage.age_s(name) > ABANDONED_S:
                    self.storage.remove(name)

    def check_writable(self) -> None:
        """Raise OSError if rows cannot be written here, before anything is trained.

        DataError if the folder is one of `kdbench report --rows`: its cells would be run and counted again.
        """
        if self.storage.exists(WHOLE.format("cells")):
            raise DataError(
                f"{self.storage} has rows of `kdbench report --rows`: name another folder for the results, "
                f"and this one with --published, so that its cells count as ended"
            )
        for part in ("cells", "scores", "runs", "leases"):
            name = f"{part}/.probe.{os.urandom(4).hex()}.tmp"  # another run may check at the same time
            self.storage.write(name, b"kdbench" * 1024)
            self.storage.remove(name)

    def _write(self, name: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        for row in rows:
            assert set(row) <= set(schema.names), sorted(set(row) - set(schema.names))
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
        self.storage.write(name, memoryview(buffer.getvalue()))


def cell_name(cell_id: str) -> str:
    """The file of a cell's rows; it exists only when the cell has ended and is complete."""
    return f"cells/{cell_id}.parquet"


def detector_name(cell_id: str) -> str:
    """The file of a cell's trained detector, if it was kept."""
    return f"detectors/{cell_id}.safetensors"


def probe_name(cell_id: str) -> str:
    """The file of the interference probe of a cell's detector, if it was probed."""
    return f"probes/{cell_id}.parquet"


def latency_name(cell_id: str, device_name: str) -> str:
    """The file of the timing of a cell's detector on one kind of device, if it was timed."""
    return f"latency/{cell_id}-{hashlib.sha256(device_name.encode()).hexdigest()[:8]}.parquet"


def curve_name(cell_id: str) -> str:
    """The file of a cell's ROC and PRO curves."""
    return f"curves/{cell_id}.parquet"


def picture_name(cell_id: str) -> str:
    """The file of the pictures of a cell's anomaly maps, if they were kept."""
    return f"pictures/{cell_id}.parquet"


def input_name(category_fingerprint: str) -> str:
    """The file of the pictures of a category's inputs and masks, if any cell kept its pictures."""
    return f"inputs/{category_fingerprint}.parquet"


def trial_name(trial_id: str) -> str:
    """The file of a trial's row, from its first report on."""
    return f"trials/{trial_id}.parquet"


def audit_name(trial_id: str) -> str:
    """The file of the test scores of a trial's detector, if they were computed."""
    return f"audits/{trial_id}.parquet"


def read_rows(where: str | Path | Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a results folder, also while cells are still being written; FileNotFoundError if none.

    Of ten thousand cells all columns take most of a gigabyte, so who needs few names them.
    """
    rows = _read_part(where, "cells", ROW_SCHEMA, columns=columns)
    if not rows.num_rows:
        raise FileNotFoundError(f"no results in {where}: `kdbench run --results {where}` writes them")
    return rows


def read_probes(where: str | Path | Storage) -> pa.Table:
    """All rows of interference probes; an empty table if there are none."""
    return _read_part(where, "probes", PROBE_SCHEMA)


def read_latencies(where: str | Path | Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """All timings of detectors; an empty table if there are none."""
    return _read_part(where, "latency", LATENCY_SCHEMA, columns=columns)


def read_trials(where: str | Path | Storage) -> pa.Table:
    """All trials of all sweeps; an empty table if there are none."""
    return _read_part(where, "trials", TRIAL_SCHEMA)


def read_audits(where: str | Path | Storage) -> pa.Table:
    """The test scores of trials, computed after their sweep; an empty table if there are none."""
    return _read_part(where, "audits", AUDIT_SCHEMA)


def read_scores(where: str | Path | Storage) -> pa.Table:
    """All per-image scores; an empty table if there are none."""
    return _read_part(where, "scores", SCORE_SCHEMA)


def read_curves(where: str | Path | Storage, cell_ids: Iterable[str]) -> pa.Table:
    """The curves of these cells; nothing of those that have none."""
    return _read_part(where, "curves", CURVE_SCHEMA, {curve_name(cell_id) for cell_id in cell_ids})


def read_pictures(where: str | Path | Storage, cell_id: str) -> pa.Table:
    """The pictures of one cell's anomaly maps; an empty table if none were kept."""
    return _read_part(where, "pictures", PICTURE_SCHEMA, {picture_name(cell_id)})


def read_inputs(where: str | Path | Storage, category_fingerprint: str) -> pa.Table:
    """The pictures of a category's inputs and masks; an empty table if none were kept."""
    return _read_part(where, "inputs", INPUT_SCHEMA, {input_name(category_fingerprint)})


def _read_part(
    where: str | Path | Storage,
    folder: str,
    schema: pa.Schema,
    only: set[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    storage = where if isinstance(where, Storage) else Storage(where)

    def read(name: str) -> pa.Table:
        try:
            whole = _conform(_read(storage, name), schema, storage.path(name))
        except FileNotFoundError:  # its cell is run again, and was about to end when the folder was listed
            whole = schema.empty_table()
        return whole.select(list(columns)) if columns else whole

    names = [name for name in storage.names(folder) if name.endswith(".parquet")]
    names = names if only is None else [name for name in names if name in only]
    # An object store answers late, but many at once; on a disk threads only wait for each other.
    with ThreadPoolExecutor(1 if storage.local else 8) as pool:
        tables = list(pool.map(read, names))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _conform(table: pa.Table, schema: pa.Schema, path: str) -> pa.Table:
    """Rows of an older schema lack columns, which are null then; columns of a newer one are refused."""
    there = set(table.column_names)
    if not {"cell_id", "trial_id", "category"} & set(schema.names) <= there:
        raise DataError(f"{path} is damaged (it has no rows of a cell). Delete it: the cell will run again")
    newer = sorted(there - set(schema.names))
    if newer:
        raise DataError(f"{path} was written by a newer kdbench: it has the columns {', '.join(newer)}")
    for field in schema:
        if field.name not in there:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    try:
        # Only what differs is cast: of thousands of files that was most of the time of reading them.
        columns = [
            column if column.type == field.type else column.cast(field.type)
            for column, field in zip(table.select(schema.names).columns, schema, strict=True)
        ]
        return pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({_first_line(error)}). Delete it: the cell will run again"
        ) from error


def _read(storage: Storage, name: str, columns: list[str] | None = None) -> pa.Table:
    """The table of one file; DataError if it is damaged, has no rows or lacks a column.

    OSError where it cannot be read: that says nothing of what is in it, and nobody should delete it.
    """
    path, content = storage.path(name), storage.read(name)
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            table = file.read(columns, use_threads=False)  # a small file: handing it over takes longer
    except (pa.ArrowException, OSError) as error:  # Arrow says OSError for bytes that are none of its own
        raise DataError(
            f"{path} is damaged ({_first_line(error)}). Delete it: the cell will run again"
        ) from error
    missing = set(columns or ()) - set(table.column_names)
    if table.num_rows == 0 or missing:
        what = f"no column {', '.join(sorted(missing))}" if missing else "no rows"
        raise DataError(f"{path} is damaged ({what}). Delete it: the cell will run again")
    return table


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
