"""A results folder for programs: its rows as frames, its tables and figures."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.errors import RequestError, unknown
from kdbench.files import expanded
from kdbench.reports.rows import load_rows
from kdbench.reports.shown import Figure, Leaderboard, all_figures, leaderboard
from kdbench.results.attempts import read_beside
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.store import CELLS, CURVES, LATENCY, SCORES, TRIALS, Kind, Results, read

NAMED = 5  # cells that a message names
# The columns of a cell that a line of scores or curves has.
OF_CELL = [
    *("cell_id", "method", "entry", "dataset", "setting", "category", "seed"),
    *("profile", "preset", "config"),
]


class Folder:
    """The rows and figures of a results folder, read anew by every call.

    Filters are columns with a value, or with a list of values that may stand there:
    `rows(method="stfpm", seed=[0, 1])`. Columns are those of docs/results-format.md.
    """

    def __init__(self, where: str | Path) -> None:
        self.where = expanded(str(where))
        self._results = Results(self.where)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.where}>"

    def rows(self, *, earlier: bool = False, **filters: object) -> pd.DataFrame:
        """One line for each category of a cell: its request, its status, all metrics as fractions.

        Rows of images that have changed since are left out, as in reports, unless `earlier` is true. `entry`
        names the method and the keys in which its recipes differ: a mean is over rows of one entry and
        section.
        """
        rows = self._rows_that_count()
        if earlier:
            every = self._read(CELLS)
            rows = every.merge(rows[["cell_id", "category", "entry"]], how="left", on=["cell_id", "category"])
        return _chosen(rows[[*ROW_SCHEMA.names, "entry"]], filters)

    def scores(self, **filters: object) -> pd.DataFrame:
        """One line for each test image of a cell: its label and image score, and columns of the cell."""
        return _chosen(self._of_cells(SCORES), filters)

    def curves(self, **filters: object) -> pd.DataFrame:
        """One line for each category of a cell: thinned ROC and PRO curves as lists, and columns of it."""
        return _chosen(self._of_cells(CURVES), filters)

    def latencies(self, **filters: object) -> pd.DataFrame:
        """One line for each timing of a detector: device, batch size, precision, and milliseconds."""
        return _chosen(self._read(LATENCY), filters)

    def trials(self, **filters: object) -> pd.DataFrame:
        """One line for each trial of a sweep: its configuration and objective."""
        return _chosen(self._read(TRIALS), filters)

    def leaderboard(self) -> Leaderboard:
        """The rankings of all methods; print it, let a notebook show it, or take numbers from its `frame`."""
        return leaderboard(self.where)

    def figures(self) -> dict[str, Figure]:
        """The figures of the report by name; each is drawn when it is shown or saved."""
        return all_figures(self.where)

    def _rows_that_count(self) -> pd.DataFrame:
        try:
            return load_rows(self.where)
        except FileNotFoundError as error:  # no cell has finished
            raise RequestError([str(error)]) from error

    def _read(self, kind: Kind) -> pd.DataFrame:
        return read(self._results.storage, kind).to_pandas()

    def _of_cells(self, kind: Kind) -> pd.DataFrame:
        """Rows of a kind with columns of their cells, of cells whose rows count."""
        rows = read_beside(self._results.storage, kind).drop(["attempt_id"]).to_pandas()
        return rows.merge(self._rows_that_count()[OF_CELL], on=["cell_id", "category"])

    def _only_cell(self, cell: str | None, filters: dict[str, object]) -> dict[str, Any]:
        if cell is not None:
            filters = filters | {"cell_id": cell}
        rows = _chosen(self.rows(earlier=cell is not None), filters)
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
        rows_of_cell = read(self._results.storage, CELLS, only=[good["cell_id"].iloc[0]]).to_pylist()
        row: dict[str, Any] = rows_of_cell[0]
        return row


def is_empty(folder: Folder) -> bool:
    """Whether neither a cell nor a trial has a row."""
    return not any(folder._results.storage.names(kind.folder) for kind in (CELLS, TRIALS))


def _chosen(rows: pd.DataFrame, filters: Mapping[str, object]) -> pd.DataFrame:
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
