"""Rows that an older kdbench wrote, committed with their reports, are read, resumed and reported."""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kdbench.errors import DataError
from kdbench.reports.entries import entries
from kdbench.reports.leaderboard import assemble, rendered
from kdbench.reports.rows import load, load_rows, sections
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.store import CELLS, DEPLOYED, EPOCHS, NORMALS, PUBLISHED, Results, read

ROOT = Path(__file__).parents[2]
SINCE_THEN = ["resumed_at_epoch", "teacher_cache"]  # pretended to be newer than the rows


@pytest.fixture(params=["first-comparison", "first-ablations"])
def committed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the rows of a published report."""
    return Path(shutil.copytree(ROOT / "reports/published" / request.param / "rows", tmp_path / "rows"))


@pytest.fixture
def folder(committed: Path, tmp_path: Path) -> Path:
    """The same rows, written by hand as the files of a run, by a kdbench that had fewer columns."""
    for kind in ("cells", "scores"):
        rows = pq.read_table(committed / kind / "rows.parquet")
        rows = rows.drop_columns([name for name in SINCE_THEN if name in rows.column_names])
        (tmp_path / "results" / kind).mkdir(parents=True)
        for cell_id in rows["cell_id"].unique().to_pylist():
            own = rows.filter(pc.equal(rows["cell_id"], cell_id))
            pq.write_table(own, tmp_path / "results" / kind / f"{cell_id}.parquet")
    return tmp_path / "results"


def test_published_rows_are_read_as_they_were_written(committed):
    for kind in PUBLISHED:
        if kind in (DEPLOYED, EPOCHS, NORMALS):  # these reports have none: they are older
            assert not read(committed, kind).num_rows
            continue
        written = pq.read_table(committed / kind.folder / "rows.parquet")
        found, there = read(committed, kind), written.column_names
        assert found.select(there).equals(written.cast(found.select(there).schema))
        assert all(found[name].null_count == found.num_rows for name in set(found.column_names) - set(there))
        assert written.num_rows > 5


def test_rows_of_fewer_columns_are_read_with_nulls(folder, committed):
    key = ["cell_id", "category"]
    old = read(folder, CELLS).to_pandas().sort_values(key).reset_index(drop=True)
    new = pd.read_parquet(committed / "cells").sort_values(key).reset_index(drop=True)
    assert list(old.columns) == ROW_SCHEMA.names
    assert old[SINCE_THEN].isna().all().all()
    added = old.columns.difference(new.columns)  # since these rows were published
    assert old[added].isna().all().all()
    same = new.columns.difference(SINCE_THEN)
    pd.testing.assert_frame_equal(old[same], new[same], check_dtype=False)


def test_cells_of_an_old_folder_have_finished(folder, committed):
    rows = pd.read_parquet(committed / "cells").drop_duplicates("cell_id")
    ends = Results(folder).ends(rows["cell_id"])
    assert {cell_id: (end.status, end.run_id) for cell_id, end in ends.items()} == {
        row.cell_id: (row.status, row.run_id) for row in rows.itertuples()
    }
    Results(folder).check_writable()


def test_cells_of_published_rows_are_taken_over(committed, tmp_path):
    rows = read(committed, CELLS)
    first, second = rows["cell_id"].unique().to_pylist()[:2]
    results = Results(tmp_path / "new")
    results.take_over(committed, {first, second})
    assert results.ends([first, second]).keys() == {first, second}
    for kind in PUBLISHED:
        taken, whole = read(tmp_path / "new", kind), read(committed, kind)
        assert taken.num_rows == sum(owner in (first, second) for owner in whole["cell_id"].to_pylist())
    order = [("cell_id", "ascending"), ("category", "ascending")]
    own = rows.filter(pc.is_in(rows["cell_id"], pa.array([first, second])))
    assert read(tmp_path / "new", CELLS).sort_by(order).equals(own.sort_by(order))


def test_an_old_folder_is_reported_with_the_means_of_its_rows(folder, committed):
    plain = pd.read_parquet(committed / "cells")
    for group, rows in sections(load_rows(folder)):
        for entry in entries(rows):
            own = plain[plain["cell_id"].isin(entry.cell_ids)]
            assert len(own) == len(entry.rows)
            for metric in ("image_auroc", "mad"):
                if entry.means[metric] is not None:
                    by_seed = own.groupby("seed")[metric].mean()
                    assert entry.means[metric].mean == pytest.approx(by_seed.mean(), abs=1e-12), group
    tables = rendered(assemble(load(folder)))
    assert tables["leaderboard.csv"].count("\n") > 100
    assert all(f"\n| {name}" in tables["leaderboard.md"] for name in plain["method"])


def test_rows_of_a_later_schema_version_are_refused(tmp_path):
    """The columns may have the same names and mean something else."""
    row = {"cell_id": "abc", "category": "bottle", "status": "ok", "schema_version": 2}
    Results(tmp_path).write(CELLS, [row])
    said = (
        rf"{tmp_path}/cells/abc\.parquet was written by a newer kdbench: its rows have version 2, this "
        "kdbench reads up to 1$"
    )
    with pytest.raises(DataError, match=said):
        read(tmp_path, CELLS)


def test_a_column_that_this_kdbench_does_not_know_is_named(tmp_path):
    row = pa.table({"cell_id": ["abc"], "category": ["bottle"], "colour": ["red"]})
    (tmp_path / "cells").mkdir()
    pq.write_table(row, tmp_path / "cells/abc.parquet")
    with pytest.raises(
        DataError, match=r"abc\.parquet was written by a newer kdbench: it has the columns colour$"
    ):
        read(tmp_path, CELLS)
