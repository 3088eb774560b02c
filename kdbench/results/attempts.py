"""Files of a cell that do not belong to its rows: another attempt at the cell made them.

A cell that ran in two results folders has one id and two sets of numbers. All that one attempt writes has one
`attempt_id`. If somebody copies `cells/` of one folder over that of another, the ids of rows and scores
differ. Older files have no `attempt_id`: they belong to rows that have none either.
"""

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, Kind, read

COLUMNS = ("cell_id", "attempt_id")
Attempts = Mapping[str, str | None]  # cell id -> the attempt that wrote its rows


def attempts_of(cells: pa.Table) -> dict[str, str | None]:
    """The attempt of each cell, from its rows."""
    return dict(zip(*(cells[name].to_pylist() for name in COLUMNS), strict=True))


def beside(table: pa.Table, attempts: Attempts) -> tuple[pa.Table, list[str]]:
    """The rows that belong to those of their cell, and the ids of cells with rows of another attempt.

    Rows of cells that `attempts` does not have are left out.
    """
    table = table.filter(pc.is_in(table["cell_id"], pa.array(attempts, pa.string())))
    owners = table["cell_id"].combine_chunks().dictionary_encode()
    expected = pa.array([attempts[cell_id] or "" for cell_id in owners.dictionary.to_pylist()], pa.string())
    same = pc.equal(pc.fill_null(table["attempt_id"], ""), expected.take(owners.indices))
    return table.filter(same), table.filter(pc.invert(same))["cell_id"].unique().to_pylist()


def read_beside(
    storage: Storage, kind: Kind, *, only: Iterable[str] | None = None, columns: Sequence[str] = ()
) -> pa.Table:
    """As `read`, without the rows that do not belong to those of their cell."""
    wanted = None if only is None else [*only]
    try:
        attempts = attempts_of(read(storage, CELLS, only=wanted, columns=COLUMNS))
    except FileNotFoundError:  # no cell has finished
        attempts = {}
    chosen = [*dict.fromkeys((*COLUMNS, *columns))] if columns else None
    return beside(read(storage, kind, only=wanted, columns=chosen), attempts)[0]
