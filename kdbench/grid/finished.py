"""Which cells of a plan have finished, by rows whose identity is checked."""

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager

from kdbench.cell import Cell
from kdbench.errors import Complaints, complained
from kdbench.registry import method_sha256
from kdbench.results.store import CELLS, OF_IDENTITY, End, read


def succeeded_in(folder: str | None, wanted: Mapping[str, Cell]) -> frozenset[str]:
    """Which of these cells succeeded among published rows; RequestError if one's rows are of another cell."""
    if folder is None:
        return frozenset()
    with reading(folder):
        rows = read(folder, CELLS, columns=["cell_id", "status", *OF_IDENTITY]).to_pylist()
    succeeded = {row["cell_id"]: row for row in rows if row["status"] == "ok" and row["cell_id"] in wanted}
    check_identity(folder, wanted, succeeded)
    return frozenset(succeeded)


def check_identity(where: str, cells: Mapping[str, Cell], facts: Mapping[str, Mapping[str, object]]) -> None:
    """RequestError if rows contradict the identity of their cell: somebody changed them."""
    complaints = Complaints()
    for cell_id, row in facts.items():
        for name in OF_IDENTITY:
            own = getattr(cells[cell_id], name)
            if row[name] is not None and row[name] != own:
                complaints.add(
                    f"{where}: a row of cell {cell_id} has the {name} {row[name]!r}, the cell has {own!r}. "
                    "Somebody changed the rows: delete them, and the cell will run again"
                )
    complaints.check()


def of_other_code(cells: Mapping[str, Cell], ends: Mapping[str, End], again: Collection[str]) -> list[str]:
    """A notice for each method whose files have changed since they trained finished cells.

    A cell's id has no hash of code: a changed comment would run all cells again. Those in `again` run anyway.
    """
    counts: Counter[str] = Counter()
    for cell_id, end in ends.items():
        method, trained_by = cells[cell_id].method, end.facts.get("method_sha256")
        counts[method] += cell_id not in again and trained_by not in (None, method_sha256(method))
    return [
        f"{method}: another version of its files trained {count} of the finished cells, which are kept: "
        f"--redo all runs them again"
        for method, count in counts.items()
        if count
    ]


def reading(results: str) -> AbstractContextManager[None]:
    """A context in which an error on reading a results folder becomes a RequestError."""
    return complained(f"cannot read results in {results}")
