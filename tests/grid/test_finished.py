"""Rows that somebody changed: they count for no cell, and no metric is outside of 0 to 1."""

import pyarrow.parquet as pq
import pytest
from conftest import tiny_jobs, tiny_request

from kdbench.errors import DataError, RequestError
from kdbench.grid.grid import plan_grid
from kdbench.registry import method_sha256
from kdbench.results.store import CELLS, OF_IDENTITY, Results, read


def written(folder, cell, **changes):
    """A row of a cell with these columns changed."""
    own = {name: getattr(cell, name) for name in OF_IDENTITY}
    row = {"cell_id": cell.id, "category": "bottle", "status": "ok", "run_id": "r", **own}
    Results(folder).write(CELLS, [row | changes])


@pytest.fixture
def cell(mvtec, tmp_path):
    (job,) = tiny_jobs(mvtec, tmp_path / "r", categories=("bottle",))
    return job.cell


def planned(mvtec, tmp_path, **changes):
    return plan_grid(tiny_request(mvtec, tmp_path / "r", categories=("bottle",), executor="local", **changes))


def test_rows_as_they_were_written_finish_their_cell(mvtec, tmp_path, cell):
    written(tmp_path / "p", cell)
    assert planned(mvtec, tmp_path, published=str(tmp_path / "p")).todo == ()
    written(tmp_path / "r", cell)
    assert planned(mvtec, tmp_path).todo == ()


@pytest.mark.parametrize("column", OF_IDENTITY)
@pytest.mark.parametrize("where", ["r", "p"])
def test_rows_that_say_another_cell_finish_none(mvtec, tmp_path, cell, where, column):
    other = 7 if column == "seed" else "{}"
    written(tmp_path / where, cell, **{column: other})
    with pytest.raises(RequestError) as raised:
        planned(mvtec, tmp_path, **({"published": str(tmp_path / "p")} if where == "p" else {}))
    assert raised.value.complaints == (
        f"{tmp_path / where}: a row of cell {cell.id} has the {column} {other!r}, the cell has "
        f"{getattr(cell, column)!r}. Somebody changed the rows: delete them, and the cell will run again",
    )


def test_cells_of_another_version_of_their_methods_file_are_counted(mvtec, tmp_path, cell):
    said = (
        "stfpm: another version of its files trained 1 of the finished cells, which are kept: "
        "--redo all runs them again"
    )
    for stored, named in ((method_sha256("stfpm"), False), (None, False), ("another", True)):
        written(tmp_path / "r", cell, method_sha256=stored)
        assert (said in planned(mvtec, tmp_path).notices) == named
    assert said not in planned(mvtec, tmp_path, redo="all").notices
    path = tmp_path / "r" / CELLS.name(cell.id)
    pq.write_table(pq.read_table(path).drop_columns(["method_sha256"]), path)  # an older kdbench wrote it
    assert (planned(mvtec, tmp_path).todo, said in planned(mvtec, tmp_path).notices) == ((), False)


@pytest.mark.parametrize("value", [1.5, -0.25])
def test_a_metric_that_is_no_share_is_an_error(tmp_path, cell, value):
    written(tmp_path / "r", cell, image_auroc=1.0, aupro=0.0)
    assert read(tmp_path / "r", CELLS).num_rows == 1
    written(tmp_path / "r", cell, image_auroc=value)
    with pytest.raises(DataError, match=f"has a row whose image_auroc is {value}, and all metrics are"):
        read(tmp_path / "r", CELLS)
