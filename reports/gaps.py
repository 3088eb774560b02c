"""Tables of gaps: cells that failed, ran out of time or memory, or did not run; rows that do not count."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from kdbench.errors import number_of
from kdbench.reports.entries import Entry
from kdbench.reports.rows import Group, Rows, sections
from kdbench.reports.tables import EMPTY, Table, Value, number, text
from kdbench.results.schema import STATUSES

NAMED = 3  # cells in a line for the terminal; the report names all


def counts(found: Sequence[tuple[Group, list[Entry]]]) -> Iterator[Table]:
    """A line per incomplete entry: its rows by status, and how many rows the mean of the dataset needs."""
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
    """A line per cell that did not succeed, with the last line of its error."""
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
            title="Cells that did not succeed",
            head=("method", "section", "categories", "seed", "status", "error"),
            body=tuple(body),
            keys=("method", "section", "categories", "seed"),
        )


def earlier(rows: pd.DataFrame) -> Iterator[Table]:
    """A line per entry and section whose rows are left out: their images, or a label, changed since."""
    body = []
    for group, of_section in sections(rows):
        for (entry, since), own in of_section.groupby(["entry", "since"]):
            started = sorted(own["started_at"].dropna())
            body.append(
                (
                    text(entry),
                    text(group.title),
                    text(", ".join(own["category"].unique())),
                    text(", ".join(str(seed) for seed in sorted(own["seed"].unique()))),
                    text(", ".join(own["cell_id"].unique())),
                    text(" to ".join(dict.fromkeys((started[0], started[-1]))) if started else "unknown"),
                    text(since),
                )
            )
    if body:
        yield Table(
            title="Rows of earlier images, left out",
            head=("method", "section", "categories", "seeds", "cells", "started", "others count since"),
            body=tuple(body),
            keys=("method", "section", "categories", "others count since"),
            notes=(
                "The images of these categories, or their labels, changed between two runs, or they are of "
                "a folder that had other categories. A row counts if it has the images of the cell of its "
                "dataset, split and categories that started last, or that the last run found finished, and "
                "if the folder of the last of all has its categories. Only this table has the others. "
                "`kdbench results prune` moves them away.",
            ),
        )


def copies(names: Sequence[str]) -> Iterator[Table]:
    """A line per file that is a copy of another one: its rows do not count twice."""
    note = "Their rows have a file of their own. `kdbench results prune` moves them away."
    yield from _listed("Copies of files, left out", "file", names, note)


def of_other_attempts(found: Mapping[str, Sequence[str]]) -> Iterator[Table]:
    """A line per kind of file with rows of another attempt at their cell than its rows in `cells/`."""
    if found:
        yield Table(
            title="Files of another attempt, left out",
            head=("files", "cells"),
            body=tuple((text(f"{folder}/"), text(", ".join(cells))) for folder, cells in found.items()),
            keys=("files",),
            notes=(
                "These cells ran twice, perhaps on two machines. The rows in `cells/` are of one attempt, "
                "these files of another, whose numbers may differ: somebody copied a part of one results "
                "folder into another, or the cell runs again now. Copy all files of a cell, or run it again "
                "(`--redo all`). `kdbench results prune` moves them away.",
            ),
        )


def contradicted(cells: Sequence[str]) -> Iterator[Table]:
    """A line per cell whose image scores do not give the AUROC of its rows."""
    note = (
        "These scores do not give the image AUROC of the rows of their cell: somebody edited a file in "
        "`scores/` or in `cells/`. Intervals and tests over images leave the cells out. Run them again "
        "(`--redo all`)."
    )
    yield from _listed("Image scores that contradict their rows, left out", "cell", cells, note)


def _listed(title: str, what: str, names: Sequence[str], note: str) -> Iterator[Table]:
    """A table with a line per name; none without names."""
    if names:
        body = tuple((text(name),) for name in names)
        yield Table(title=title, head=(what,), body=body, keys=(what,), notes=(note,))


def left_out(rows: Rows) -> str:
    """The rows that do not count, in lines for the terminal; "" if all rows count."""
    lines = []
    if len(rows.earlier):
        of = rows.earlier[["dataset", "category"]].drop_duplicates().itertuples(index=False)
        images = ", ".join(f"{dataset}/{category}" for dataset, category in of)
        lines.append(
            f"rows of earlier images of {images}: {len(rows.earlier)}, which do not count; "
            "the report names them, `kdbench results prune` moves them away"
        )
    lines += [f"{name} is a copy, and does not count" for name in rows.copies]
    lines += [
        f"{folder}/ of {number_of(len(cells), 'cell')} is of another attempt, and does not count: "
        f"{_first(cells)}"
        for folder, cells in rows.of_other_attempts.items()
    ]
    if cells := rows.contradicted:
        lines.append(
            f"image scores of {number_of(len(cells), 'cell')} contradict the image AUROC of their rows, and "
            f"do not count: {_first(cells)}"
        )
    return "\n".join(lines)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _last_line(error: object) -> Value:
    lines = error.strip().splitlines() if isinstance(error, str) else []
    return text(lines[-1]) if lines else EMPTY
