"""Find files of a results folder that nothing refers to, and move them aside with their folders' names."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from kdbench.errors import DataError
from kdbench.results.storage import Storage
from kdbench.results.store import (
    ABANDONED_S,
    AUDITS,
    CELLS,
    CHECKPOINTS,
    INPUTS,
    KINDS,
    OF_CELLS,
    PICTURES,
    TRIALS,
    Kind,
    has_shared_rows,
    read_and_copies,
)
from kdbench.results.superseded import COLUMNS, changes, last_asked

FOLDER = "pruned"
NAMING = ("method", "category", "setting", "seed", "attempt_id")


@dataclass(frozen=True, kw_only=True)
class Leftover:
    """Files that belong together, and why nothing needs them."""

    why: str
    files: tuple[str, ...]  # rows first: without its rows a cell has not finished
    num_bytes: int


def leftovers(storage: Storage, running: Callable[[], Set[str]]) -> list[Leftover]:
    """The files that no row that counts refers to, but none of the cells that `running` names: they run now.

    Raises DataError for a folder of `kdbench report --rows`, FileNotFoundError for one without results.
    """
    if has_shared_rows(storage):
        raise DataError(f"{storage} has rows of `kdbench report --rows`: they share files, none can be moved")
    # The order matters: a file that a cell writes after the folders are listed is not in the list, and a cell
    # that finishes after the leases are read has rows.
    files = {kind: kind.names(storage) for kind in KINDS}
    abandoned = [name for kind in KINDS for name in storage.unfinished(kind.folder)]
    busy = running()
    if not any(files.values()) and not abandoned:
        raise FileNotFoundError(f"no results in {storage}")
    cells, copies = _cells(storage)
    trials, copied_trials = read_and_copies(storage, TRIALS, columns=["trial_id"])
    old = changes(cells.values(), lambda: last_asked(storage)).instead.keys() - busy
    trial_ids = set(trials["trial_id"].to_pylist())
    found = [
        *_of_earlier_images(files, cells, old),
        *(
            (f"a copy: its rows are in another file, too: {name}", [name])
            for name, whole in {**copies, **copied_trials}.items()
            if whole
        ),
        *_of_other_attempts(storage, files, {c: cells[c] for c in cells.keys() - busy - old}),
        *_without_rows(files, cells.keys() | trial_ids | busy, trial_ids),
        *_finished_checkpoints(files, cells, busy),
        *([] if busy else _unused_inputs(storage, files, cells.keys() - old)),
        *(
            ("a temporary file of a process that is gone", [name])
            for name in abandoned
            if storage.age_s(name) > ABANDONED_S
        ),
    ]
    return [
        Leftover(why=why, files=tuple(names), num_bytes=sum(map(storage.size_bytes, names)))
        for why, names in found
    ]


def move_away(storage: Storage, found: Iterable[Leftover]) -> str:
    """Move the files to a new folder below `pruned/`, and return its name; moved back, they count again."""
    target = f"{FOLDER}/{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    for leftover in found:
        for name in leftover.files:
            storage.move(name, f"{target}/{name}")
    return target


Files = Mapping[Kind, list[str]]
Found = Iterator[tuple[str, list[str]]]  # why, and the files


def _cells(storage: Storage) -> tuple[dict[str, dict[str, Any]], dict[str, bool]]:
    """Cell id -> a row of it, and the copies among the files."""
    try:
        table, copies = read_and_copies(storage, CELLS, columns=[*COLUMNS, *NAMING])
    except FileNotFoundError:  # a sweep alone, or only leftovers
        return {}, {}
    return {row["cell_id"]: row for row in table.to_pylist()}, copies


def _of_earlier_images(files: Files, cells: Mapping[str, dict[str, Any]], old: Iterable[str]) -> Found:
    for cell_id in sorted(old):
        row = cells[cell_id]
        category = row["category"] if row["setting"] == "oneclass" else "all"
        cell = f"{row['method']} {row['dataset']}/{category} {row['setting']} seed {row['seed']}"
        why = f"rows of earlier images: {cell}, started {row['started_at']}"
        names = [name for kind in OF_CELLS for name in files[kind] if kind.owner(name) == cell_id]
        if CELLS.name(cell_id) in names:  # else its rows are in a file with those of others
            yield why, names


def _of_other_attempts(storage: Storage, files: Files, cells: Mapping[str, dict[str, Any]]) -> Found:
    """Files with rows of one cell; those of many cells are of `kdbench report --rows`, and stay."""
    for kind in OF_CELLS:
        if kind is CELLS or kind.schema is None or "attempt_id" not in kind.schema.names:
            continue
        for name in files[kind]:
            owner = kind.owner(name)
            if owner in cells and _attempt_in(storage, name) != cells[owner]["attempt_id"]:
                yield f"of another attempt at {owner} than its rows: {name}", [name]


def _attempt_in(storage: Storage, name: str) -> str | None:
    """The attempt that wrote a file; None if it is older than that column."""
    with storage.open(name) as content, pq.ParquetFile(content) as file:
        if "attempt_id" not in file.schema_arrow.names:
            return None
        found: str | None = file.read(["attempt_id"])["attempt_id"][0].as_py()
    return found


def _without_rows(files: Files, owners: Set[str], trial_ids: Set[str]) -> Found:
    needed = {kind: owners for kind in OF_CELLS if kind not in (CELLS, CHECKPOINTS)} | {AUDITS: trial_ids}
    orphans = dict[str, list[str]]()
    for kind, ids in needed.items():
        for name in files[kind]:
            if kind.owner(name) not in ids and name != kind.whole:
                orphans.setdefault(kind.owner(name), []).append(name)
    for owner, names in orphans.items():
        yield f"no rows of {owner}", names


def _finished_checkpoints(files: Files, cells: Mapping[str, dict[str, Any]], busy: Set[str]) -> Found:
    for name in files[CHECKPOINTS]:
        cell_id = CHECKPOINTS.owner(name)
        if cell_id in cells and cell_id not in busy and cells[cell_id]["status"] != "timeout":
            yield f"a checkpoint of {cell_id}, which has finished", [name]


def _unused_inputs(storage: Storage, files: Files, cell_ids: Set[str]) -> Found:
    used = set[str]()
    for name in files[PICTURES]:
        if PICTURES.owner(name) in cell_ids:
            with storage.open(name) as content, pq.ParquetFile(content) as file:
                used |= set(file.read(["category_fingerprint"])["category_fingerprint"].to_pylist())
    for name in files[INPUTS]:
        if INPUTS.owner(name) not in used:
            yield "pictures of images and masks that no cell has maps of", [name]
