"""Rows on disk: a frozen schema, files that are whole or not there, readable by anyone."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdbench.results.schema import (
    AUDIT_SCHEMA,
    CURVE_SCHEMA,
    INPUT_SCHEMA,
    NORMAL_SCHEMA,
    PICTURE_SCHEMA,
    ROW_SCHEMA,
    SCHEMA_VERSION,
    SCORE_SCHEMA,
    SHORTCUT_SCHEMA,
    STATUSES,
    TRIAL_SCHEMA,
    TRIAL_STATUSES,
)
from kdbench.results.store import CELLS, SCORES, Results, read

# Other people's notebooks read these. `kdbench.results.schema` says which changes raise SCHEMA_VERSION.
FROZEN_ROWS = [
    ("schema_version", "int64"),
    ("cell_id", "string"),
    ("run_id", "string"),
    ("attempt_id", "string"),
    ("method", "string"),
    ("config", "string"),
    ("dataset", "string"),
    ("setting", "string"),
    ("category", "string"),
    ("categories", "list<item: string>"),
    ("dataset_categories", "list<item: string>"),
    ("texture", "bool"),
    ("fingerprint", "string"),
    ("split_sha256", "string"),
    ("seed", "int64"),
    ("profile", "string"),
    ("selection", "string"),
    ("preset", "string"),
    ("metric_version", "int64"),
    ("evaluation_size", "int64"),
    ("mask_rule", "string"),
    ("score_pooling", "string"),
    ("pro_limit", "double"),
    ("sigma", "double"),
    ("status", "string"),
    ("error", "string"),
    ("image_auroc", "double"),
    ("image_ap", "double"),
    ("image_f1_max", "double"),
    ("pixel_auroc", "double"),
    ("pixel_ap", "double"),
    ("pixel_f1_max", "double"),
    ("aupro", "double"),
    ("aupro_05", "double"),
    ("image_fpr_95", "double"),
    ("aupimo", "double"),
    ("spro_05", "double"),
    ("mad", "double"),
    ("pro_stfpm_legacy", "double"),
    ("pro_rd4ad_legacy", "double"),
    ("num_train", "int64"),
    ("num_heldout", "int64"),
    ("num_test", "int64"),
    ("num_defective", "int64"),
    ("num_unmarked", "int64"),
    ("num_regions", "int64"),
    ("num_large_masks", "int64"),
    ("large_masks_accepted", "bool"),
    ("num_steps", "int64"),
    ("best_epoch", "int64"),
    ("epoch_loss", "list<item: double>"),
    ("epoch_heldout", "list<item: double>"),
    ("term_steps", "list<item: int64>"),
    ("term_names", "list<item: string>"),
    ("term_values", "list<item: double>"),
    ("term_gradients", "list<item: double>"),
    ("prepare_s", "double"),
    ("train_s", "double"),
    ("resumed_at_epoch", "int64"),
    ("evaluate_s", "double"),
    ("num_parameters", "int64"),
    ("num_trained_parameters", "int64"),
    ("flops", "int64"),
    ("peak_memory_bytes", "int64"),
    ("peak_ram_bytes", "int64"),
    ("device_memory_bytes", "int64"),
    ("method_sha256", "string"),
    ("outside_sha256", "string"),
    ("backbone", "string"),
    ("teacher_source", "string"),
    ("teacher_sha256", "string"),
    ("teacher_cache", "string"),
    ("precision", "string"),
    ("compiled", "string"),
    ("device", "string"),
    ("device_name", "string"),
    ("driver", "string"),
    ("num_threads", "int64"),
    ("host", "string"),
    ("started_at", "string"),
    ("git_commit", "string"),
    ("git_dirty", "bool"),
    ("kdbench_version", "string"),
    ("python_version", "string"),
    ("torch_version", "string"),
    ("torchvision_version", "string"),
    ("timm_version", "string"),
    ("pillow_version", "string"),
    ("ray_version", "string"),
]
FROZEN_SCORES = [
    ("cell_id", "string"),
    ("attempt_id", "string"),
    ("category", "string"),
    ("image", "string"),
    ("defect", "string"),
    ("label", "bool"),
    ("image_score", "double"),
]

FROZEN_NORMALS = [
    ("cell_id", "string"),
    ("attempt_id", "string"),
    ("category", "string"),
    ("image", "string"),
    ("image_score", "double"),
]

FROZEN_SHORTCUTS = [
    ("schema_version", "int64"),
    ("dataset", "string"),
    ("category", "string"),
    ("fingerprint", "string"),
    ("number", "string"),
    ("image_auroc", "double"),
    ("p", "double"),
    ("p_holm", "double"),
    ("flagged", "bool"),
]

FROZEN_TRIALS = [
    ("schema_version", "int64"),
    ("trial_id", "string"),
    ("sweep_id", "string"),
    ("method", "string"),
    ("config", "string"),
    ("searched", "string"),
    ("is_default", "bool"),
    ("dataset", "string"),
    ("setting", "string"),
    ("categories", "list<item: string>"),
    ("dataset_categories", "list<item: string>"),
    ("fingerprints", "list<item: string>"),
    ("seeds", "list<item: int64>"),
    ("profile", "string"),
    ("search", "string"),
    ("scheduler", "string"),
    ("selection", "string"),
    ("objective", "string"),
    ("objective_value", "double"),
    ("objective_epochs", "list<item: int64>"),
    ("objective_history", "list<item: double>"),
    ("metric_version", "int64"),
    ("status", "string"),
    ("error", "string"),
    ("epochs", "int64"),
    ("epochs_trained", "int64"),
    ("stopped_early", "bool"),
    ("num_train", "int64"),
    ("num_heldout", "int64"),
    ("trial_s", "double"),
    ("peak_memory_bytes", "int64"),
    ("started_at", "string"),
    ("ended_at", "string"),
    ("backbone", "string"),
    ("teacher_source", "string"),
    ("teacher_sha256", "string"),
    ("precision", "string"),
    ("device", "string"),
    ("device_name", "string"),
    ("driver", "string"),
    ("num_threads", "int64"),
    ("host", "string"),
    ("git_commit", "string"),
    ("git_dirty", "bool"),
    ("kdbench_version", "string"),
    ("python_version", "string"),
    ("torch_version", "string"),
    ("torchvision_version", "string"),
    ("timm_version", "string"),
    ("pillow_version", "string"),
    ("ray_version", "string"),
]
FROZEN_AUDITS = [
    ("schema_version", "int64"),
    ("trial_id", "string"),
    ("sweep_id", "string"),
    ("method", "string"),
    ("config", "string"),
    ("dataset", "string"),
    ("setting", "string"),
    ("category", "string"),
    ("categories", "list<item: string>"),
    ("dataset_categories", "list<item: string>"),
    ("fingerprint", "string"),
    ("seed", "int64"),
    ("profile", "string"),
    ("selection", "string"),
    ("preset", "string"),
    ("metric_version", "int64"),
    ("image_auroc", "double"),
    ("image_ap", "double"),
    ("image_f1_max", "double"),
    ("pixel_auroc", "double"),
    ("pixel_ap", "double"),
    ("pixel_f1_max", "double"),
    ("aupro", "double"),
    ("aupro_05", "double"),
    ("image_fpr_95", "double"),
    ("aupimo", "double"),
    ("spro_05", "double"),
    ("mad", "double"),
    ("num_test", "int64"),
    ("num_defective", "int64"),
    ("evaluate_s", "double"),
    ("teacher_sha256", "string"),
    ("precision", "string"),
    ("device", "string"),
    ("device_name", "string"),
    ("num_threads", "int64"),
    ("host", "string"),
    ("git_commit", "string"),
    ("git_dirty", "bool"),
    ("kdbench_version", "string"),
    ("python_version", "string"),
    ("torch_version", "string"),
    ("torchvision_version", "string"),
    ("timm_version", "string"),
    ("pillow_version", "string"),
]


FROZEN_CURVES = [
    ("cell_id", "string"),
    ("attempt_id", "string"),
    ("category", "string"),
    *((name, "list<item: float>") for name in ("image_fpr", "image_tpr", "pixel_fpr", "pixel_tpr")),
    *((name, "list<item: float>") for name in ("pro_fpr", "pro")),
]
FROZEN_PICTURES = [
    ("cell_id", "string"),
    ("attempt_id", "string"),
    ("category", "string"),
    ("category_fingerprint", "string"),
    ("image", "string"),
    ("anomaly_map", "binary"),
    ("lowest", "double"),
    ("highest", "double"),
    ("grey_power", "double"),
]
FROZEN_INPUTS = [
    ("category_fingerprint", "string"),
    ("category", "string"),
    ("image", "string"),
    ("width", "int64"),
    ("height", "int64"),
    ("input", "binary"),
    ("mask", "binary"),
]


def row(cell_id: str = "abc", **values: Any) -> dict[str, Any]:
    return {"cell_id": cell_id, "category": "bottle", "status": "ok", "image_auroc": 0.5, **values}


SCORE = {
    "cell_id": "abc",
    "attempt_id": "of-abc",
    "category": "b",
    "image": "x.png",
    "defect": "good",
    "label": False,
    "image_score": 1.5,
}


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_schema_is_frozen() -> None:
    assert SCHEMA_VERSION == 1
    assert [(field.name, str(field.type)) for field in ROW_SCHEMA] == FROZEN_ROWS
    assert [(field.name, str(field.type)) for field in SCORE_SCHEMA] == FROZEN_SCORES
    assert [(field.name, str(field.type)) for field in NORMAL_SCHEMA] == FROZEN_NORMALS
    assert [(field.name, str(field.type)) for field in SHORTCUT_SCHEMA] == FROZEN_SHORTCUTS
    assert [(field.name, str(field.type)) for field in CURVE_SCHEMA] == FROZEN_CURVES
    assert [(field.name, str(field.type)) for field in PICTURE_SCHEMA] == FROZEN_PICTURES
    assert [(field.name, str(field.type)) for field in INPUT_SCHEMA] == FROZEN_INPUTS
    assert [(field.name, str(field.type)) for field in TRIAL_SCHEMA] == FROZEN_TRIALS
    assert [(field.name, str(field.type)) for field in AUDIT_SCHEMA] == FROZEN_AUDITS
    assert TRIAL_STATUSES == ("running", "ok", "failed", "oom")
    assert STATUSES == ("ok", "failed", "timeout", "oom")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(
        CELLS,
        [row(epoch_loss=[1.0, 0.5], categories=["bottle", "ü"]), row(category="screw", image_auroc=None)],
    )
    results.write(CELLS, [row("def", status="failed", error="Traceback\n  ü\n")])
    table = read(tmp_path, CELLS)
    assert table.schema.equals(ROW_SCHEMA)
    first, second, third = table.to_pylist()
    assert (first["epoch_loss"], first["categories"]) == ([1.0, 0.5], ["bottle", "ü"])
    assert (second["category"], second["image_auroc"]) == ("screw", None)
    assert (third["cell_id"], third["error"]) == ("def", "Traceback\n  ü\n")


def test_scores_are_a_dataset_of_their_own(tmp_path: Path) -> None:
    Results(tmp_path).write(SCORES, [SCORE])
    assert files(tmp_path) == ["scores/abc.parquet"]
    assert pq.read_table(tmp_path / "scores/abc.parquet").to_pylist() == [SCORE]


def test_pandas_reads_the_folder_and_passes_over_temporary_files(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(CELLS, [row("abc")])
    results.write(CELLS, [row("def", status="failed")])
    (tmp_path / "cells/.ghi.parquet.12345678.tmp").write_bytes(b"half")
    (tmp_path / "cells/.jkl.parquet").write_bytes(b"half")
    frame = pd.read_parquet(tmp_path / "cells")
    assert sorted(frame["cell_id"]) == ["abc", "def"]
    assert list(frame.columns) == [name for name, _ in FROZEN_ROWS]
    assert read(tmp_path, CELLS).num_rows == 2


def test_writing_a_cell_again_replaces_it(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(CELLS, [row(status="failed"), row(status="failed", category="screw")])
    results.write(CELLS, [row()])
    assert [r["status"] for r in read(tmp_path, CELLS).to_pylist()] == ["ok"]
    assert files(tmp_path) == ["cells/abc.parquet"]


def test_rows_of_two_cells_do_not_go_into_one_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many values"):
        Results(tmp_path).write(CELLS, [row("abc"), row("def")])
    assert files(tmp_path) == []


def test_a_row_with_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="i_auroc"):
        Results(tmp_path).write(CELLS, [row(i_auroc=0.5)])
    assert files(tmp_path) == []


def test_a_value_of_another_type_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        Results(tmp_path).write(CELLS, [row(num_train="many")])
    assert files(tmp_path) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 1 KiB; never left to a fixture's end, where pytest writes its own log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_without_space_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match="File too large"):
        Results(tmp_path).write(CELLS, [row()])
    assert files(tmp_path) == []


def test_a_failed_rewrite_keeps_what_was_there(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(CELLS, [row()])
    with full_disk(), pytest.raises(OSError, match="File too large"):
        results.write(CELLS, [row(status="failed")])
    assert files(tmp_path) == ["cells/abc.parquet"]
    assert read(tmp_path, CELLS).to_pylist()[0]["status"] == "ok"


def test_a_full_disk_is_found_before_anything_runs(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match="File too large"):
        Results(tmp_path).check_writable()
    assert files(tmp_path) == []


def test_a_folder_that_can_be_written_is_left_without_a_trace_of_the_check(tmp_path: Path) -> None:
    Results(tmp_path / "new" / "folder").check_writable()
    assert files(tmp_path) == []


def test_a_check_by_another_run_at_the_same_time_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run's whole check falls between our writing of the probe and our removing of it."""
    replace, done = Path.replace, []

    def replace_and_let_the_other_run(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        if not done:
            done.append(1)
            Results(tmp_path).check_writable()
        return moved

    monkeypatch.setattr(Path, "replace", replace_and_let_the_other_run)
    Results(tmp_path).check_writable()
    assert done
    assert files(tmp_path) == []


@pytest.mark.parametrize("part", ["", "cells", "scores", "runs", "leases"])
def test_a_file_in_place_of_a_folder_is_found_before_anything_runs(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "results"
    path = folder / part
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        Results(folder).check_writable()
    assert path.read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_may_not_be_written_is_found_before_anything_runs(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        Results(tmp_path / "results").check_writable()


def test_a_folder_without_results_says_how_to_get_some(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no results in .*: `kdbench run --results .*` writes them"):
        read(tmp_path, CELLS)


def test_ends_are_those_of_the_cells_that_ended(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(CELLS, [row("abc"), row("abc", category="screw")])
    results.write(CELLS, [row("def", status="timeout")])
    results.write(CELLS, [row("ghi", status="oom")])
    ends = results.ends(["abc", "def", "nothing"])
    assert {cell_id: end.status for cell_id, end in ends.items()} == {"abc": "ok", "def": "timeout"}


def _no_rows(path: Path) -> None:
    pq.write_table(ROW_SCHEMA.empty_table(), path)


def _other_columns(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _beginning(path: Path) -> None:
    path.write_bytes(b"PAR1" + bytes(100))


def _zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    """Nobody should delete a good file because the disk or the store did not answer."""
    results = Results(tmp_path)
    (tmp_path / CELLS.name("abc")).mkdir(parents=True)  # a folder cannot be read, not even by root
    for reading in (
        lambda: results.ends(["abc"]),
        lambda: results.end_of("abc"),
        lambda: read(tmp_path, CELLS),
    ):
        with pytest.raises(IsADirectoryError):
            reading()


def test_rows_that_go_while_they_are_read_belong_to_a_cell_that_has_not_ended(tmp_path: Path) -> None:
    """A cell that is run again loses its earlier rows at the end; a name without a file is the same."""
    results = Results(tmp_path)
    results.write(CELLS, [row("abc")])
    (tmp_path / CELLS.name("def")).symlink_to("nowhere")
    assert results.ends(["abc", "def"]).keys() == {"abc"}
    assert read(tmp_path, CELLS, columns=["cell_id"])["cell_id"].to_pylist() == ["abc"]


@pytest.mark.parametrize("reader", ["ends", "read_rows"])
@pytest.mark.parametrize("damage", [_no_rows, _other_columns, _cut, _beginning, _zeros])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any, reader: str) -> None:
    results = Results(tmp_path)
    results.write(CELLS, [row("abc")])
    results.write(CELLS, [row("def")])
    damage(tmp_path / CELLS.name("abc"))
    with pytest.raises(ValueError, match=r"abc\.parquet is damaged"):
        results.ends(["abc", "def"]) if reader == "ends" else read(tmp_path, CELLS)
