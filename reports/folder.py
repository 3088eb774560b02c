"""A results folder for programs: its rows as frames."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.errors import RequestError, unknown
from kdbench.files import expanded
from kdbench.reports.rows import load_rows
from kdbench.results.attempts import read_beside
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.store import CELLS, CURVES, LATENCY, SCORES, TRIALS, Kind, Results, read

Filters = Mapping[str, object]  # column -> its value, or values that may stand there

NAMED = 5  # cells that a message names
# The columns of a cell that a line of scores or curves has.
OF_CELL = [
    *("cell_id", "method", "entry", "dataset", "setting", "category", "seed"),
    *("profile", "preset", "config"),
]


class Folder:
    """What `kdbench.api.ResultsFolder` offers, which documents it; filters are columns with their values."""

    def __init__(self, where: str | Path) -> None:
        self.where = expanded(str(where))
        self.results = Results(self.where)

    @property
    def is_empty(self) -> bool:
        """Whether neither a cell nor a trial has a row."""
        return not any(self.results.storage.names(kind.folder) for kind in (CELLS, TRIALS))

    def rows(self, filters: Filters, *, earlier: bool = False) -> pd.DataFrame:
        rows = self._rows_that_count()
        if earlier:
            every = self._read(CELLS)
            rows = every.merge(rows[["cell_id", "category", "entry"]], how="left", on=["cell_id", "category"])
        return _chosen(rows[[*ROW_SCHEMA.names, "entry"]], filters)

    def scores(self, filters: Filters) -> pd.DataFrame:
        return _chosen(self._of_cells(SCORES), filters)

    def curves(self, filters: Filters) -> pd.DataFrame:
        return _chosen(self._of_cells(CURVES), filters)

    def latencies(self, filters: Filters) -> pd.DataFrame:
        return _chosen(self._read(LATENCY), filters)

    def trials(self, filters: Filters) -> pd.DataFrame:
        return _chosen(self._read(TRIALS), filters)

    def only_cell(self, cell: str | None, filters: Filters) -> dict[str, Any]:
        """The row of the only succeeded cell that fits; RequestError if there is none, or several."""
        if cell is not None:
            filters = {**filters, "cell_id": cell}
        rows = self.rows(filters, earlier=cell is not None)
        if rows.empty:
            what = ", ".join(f"{name}={value!r}" for name, value in filters.items()) or "any filter"
            raise RequestError([f"no cell with {what} in {self.where}"])
        good = rows[rows["status"] == "ok"].drop_duplicates("cell_id")
        if good.empty:
            raise RequestError([f"no cell of these succeeded: {', '.join(sorted(rows['status'].unique()))}"])
        if len(good) > 1:
            columns = ["method", "dataset", "setting", "category", "seed", "profile", "config"]
            differ = [name for name in columns if good[name].nunique() > 1]
            ids = ", ".join(good["cell_id"].head(NAMED)) + (", ..." if len(good) > NAMED else "")
            raise RequestError([f"{len(good)} cells fit. Name {' or '.join(differ)}, or one of {ids}"])
        rows_of_cell = read(self.results.storage, CELLS, only=[good["cell_id"].iloc[0]]).to_pylist()
        row: dict[str, Any] = rows_of_cell[0]
        return row

    def _rows_that_count(self) -> pd.DataFrame:
        try:
            return load_rows(self.where)
        except FileNotFoundError as error:  # no cell has finished
            raise RequestError([str(error)]) from error

    def _read(self, kind: Kind) -> pd.DataFrame:
        return read(self.results.storage, kind).to_pandas()

    def _of_cells(self, kind: Kind) -> pd.DataFrame:
        """Rows of a kind with columns of their cells, of cells whose rows count."""
        rows = read_beside(self.results.storage, kind).drop(["attempt_id"]).to_pandas()
        return rows.merge(self._rows_that_count()[OF_CELL], on=["cell_id", "category"])


def _chosen(rows: pd.DataFrame, filters: Filters) -> pd.DataFrame:
    """The lines that fit all filters; RequestError for an unknown column."""
    wrong = [unknown("column", name, list(rows)) for name in filters if name not in rows]
    if wrong:
        raise RequestError(wrong)
    fits = pd.Series(True, rows.index)
    for name, value in filters.items():
        if isinstance(value, Iterable) and not isinstance(value, str):
            fits &= rows[name].isin([*value])
        else:
            fits &= rows[name] == value
    return rows[fits].reset_index(drop=True)
