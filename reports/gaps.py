"""What is not there: cells that failed, ran out of time or memory, or were not run, with their counts."""

from collections.abc import Iterator, Sequence

from kdbench.reports.entries import Entry
from kdbench.reports.rows import Group
from kdbench.reports.tables import EMPTY, Table, Value, number, text
from kdbench.results.schema import STATUSES


def counts(found: Sequence[tuple[Group, list[Entry]]]) -> Iterator[Table]:
    """A line per entry that lacks something: rows by status, and how many the dataset's mean would need."""
    body = []
    for group, entries in found:
        for entry in entries:
            if not entry.remarks:
                continue
            needed = len(entry.dataset_categories) * len(entry.seeds)
            there = entry.rows[["category", "seed"]].drop_duplicates()
            by_status = entry.rows["status"].value_counts()
            ids = {status: entry.rows.loc[entry.rows["status"] == status, "cell_id"] for status in STATUSES}
            numbers = [number(int(by_status.get(s, 0)), cell_ids=[*dict.fromkeys(ids[s])]) for s in STATUSES]
            names = (text(entry.name), text(group.title))
            remarks = text("; ".join(entry.remarks))
            body.append((*names, *numbers, number(needed - len(there)), number(needed), remarks))
    if body:
        yield Table(
            title="What is missing",
            head=("method", "section", *STATUSES, "not run", "needed", "holes"),
            body=tuple(body),
            keys=("method", "section"),
            notes=("Rows: one per category and seed.",),
        )


def failures(found: Sequence[tuple[Group, list[Entry]]]) -> Iterator[Table]:
    """A line per cell that did not end well, with the last line of its error."""
    body: list[tuple[Value, ...]] = []
    for group, entries in found:
        for entry in entries:
            bad = entry.rows[entry.rows["status"] != "ok"].sort_values(["category", "seed"])
            for row in bad.drop_duplicates("cell_id").itertuples():
                of_cell = bad.loc[bad["cell_id"] == row.cell_id, "category"]
                status = Value(text=row.status, hole=row.status, cell_ids=(row.cell_id,))
                names = (text(entry.name), text(group.title), text(", ".join(of_cell)), number(row.seed))
                body.append((*names, status, _last_line(row.error)))
    if body:
        yield Table(
            title="Cells that did not end well",
            head=("method", "section", "categories", "seed", "status", "error"),
            body=tuple(body),
            keys=("method", "section", "categories", "seed"),
        )


def _last_line(error: object) -> Value:
    lines = error.strip().splitlines() if isinstance(error, str) else []
    return text(lines[-1]) if lines else EMPTY
