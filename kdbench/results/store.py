"""A results folder: which kinds of file it has, and how rows are written and read, whole or not at all."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdbench.errors import DataError, first_line
from kdbench.results.schema import (
    AUDIT_SCHEMA,
    CURVE_SCHEMA,
    DEPLOYED_SCHEMA,
    EPOCH_SCHEMA,
    INPUT_SCHEMA,
    LATENCY_SCHEMA,
    MEASURED,
    NORMAL_SCHEMA,
    PICTURE_SCHEMA,
    PROBE_SCHEMA,
    ROW_SCHEMA,
    SCHEMA_VERSION,
    SCORE_SCHEMA,
    SHORTCUT_SCHEMA,
    TRIAL_SCHEMA,
)
from kdbench.results.storage import Storage

ABANDONED_S = 86400.0  # nobody takes so long to write one file


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of file: `folder/KEY.suffix`, where KEY is what all rows of the file have in common."""

    folder: str
    schema: pa.Schema | None  # None: the content is not rows
    key: tuple[str, ...]  # the columns that name a file
    suffix: str = ".parquet"

    def name(self, *key: str) -> str:
        """The file of a key. All values but the first are hashed: they may hold letters that no path can."""
        assert len(key) == len(self.key), key
        first, *others = key
        hashes = (hashlib.sha256(value.encode()).hexdigest()[:8] for value in others)
        return f"{self.folder}/{'-'.join((first, *hashes))}{self.suffix}"

    @property
    def whole(self) -> str:
        """The file of all rows of this kind, as `kdbench report --rows` writes it."""
        return f"{self.folder}/rows.parquet"

    def is_named(self, name: str, key: Sequence[str | None]) -> bool:
        """Whether this is the name of the file of a key."""
        return all(key) and name == self.name(*(value for value in key if value))

    def names(self, storage: Storage) -> list[str]:
        """Names of all finished files of this kind, sorted; files of other programs have other suffixes."""
        return [name for name in storage.names(self.folder) if name.endswith(self.suffix)]

    def owner(self, name: str) -> str:
        """The first value of the key in a file's name: the cell, the trial, the category's fingerprint."""
        stem = name.removeprefix(f"{self.folder}/").removesuffix(self.suffix)
        return stem if len(self.key) == 1 else stem.rpartition("-")[0]


# What a cell leaves. CELLS comes first: without this file a cell has not finished.
CELLS = Kind("cells", ROW_SCHEMA, ("cell_id",))
SCORES = Kind("scores", SCORE_SCHEMA, ("cell_id",))
NORMALS = Kind("normals", NORMAL_SCHEMA, ("cell_id",))
EPOCHS = Kind("epochs", EPOCH_SCHEMA, ("cell_id",))
CURVES = Kind("curves", CURVE_SCHEMA, ("cell_id",))
PICTURES = Kind("pictures", PICTURE_SCHEMA, ("cell_id",))
DETECTORS = Kind("detectors", None, ("cell_id",), ".safetensors")  # without the teacher; also of a trial
CHECKPOINTS = Kind("checkpoints", None, ("cell_id",), ".pt")  # also of a trial
PROBES = Kind("probes", PROBE_SCHEMA, ("cell_id",))
LATENCY = Kind("latency", LATENCY_SCHEMA, ("cell_id", "device_name"))
DEPLOYED = Kind("deployed", DEPLOYED_SCHEMA, ("cell_id", "device_name"))
OF_CELLS = (
    *(CELLS, SCORES, NORMALS, EPOCHS, CURVES, PICTURES),
    *(DETECTORS, CHECKPOINTS, PROBES, LATENCY, DEPLOYED),
)
# Pictures of the images and masks of a category; all cells share them.
INPUTS = Kind("inputs", INPUT_SCHEMA, ("category_fingerprint",))
# What `kdbench datasets audit` finds of a dataset.
SHORTCUTS = Kind("shortcuts", SHORTCUT_SCHEMA, ("dataset",))
# Sweeps. A trial that still trains writes its row anew at every report.
TRIALS = Kind("trials", TRIAL_SCHEMA, ("trial_id",))
AUDITS = Kind("audits", AUDIT_SCHEMA, ("trial_id",))
# Who runs a cell now (a number follows the cell), and what a run was asked for.
LEASES = Kind("leases", None, ("cell_id",), "")
RUNS = Kind("runs", None, ("run_id",), ".json")
LOGS = Kind("runs", None, ("run_id",), ".log")  # the events of a run
KINDS = (*OF_CELLS, INPUTS, SHORTCUTS, TRIALS, AUDITS, LEASES, RUNS)
# `kdbench report --rows` writes REPORTED; `--published` of `kdbench run` takes over what is of cells, that of
# `kdbench sweep` what is of trials. The kind that says that the cell or trial has finished comes first.
PUBLISHED = (CELLS, SCORES, NORMALS, EPOCHS, LATENCY, PROBES, DEPLOYED)
OF_TRIALS = (TRIALS, AUDITS)
REPORTED = (*PUBLISHED, SHORTCUTS, *OF_TRIALS)


def has_shared_rows(storage: Storage) -> bool:
    """Whether this is a folder of `kdbench report --rows`, where cells, or trials, share a file."""
    return any(storage.exists(kind.whole) for kind in (CELLS, TRIALS))


# What the id of a cell is made of, as its rows have it; rows of all categories of a cell agree in them.
OF_IDENTITY = ("method", "config", "dataset", "setting", "fingerprint", "teacher_sha256", "seed", "preset")


@dataclass(frozen=True, kw_only=True)
class End:
    """How a cell finished, and in which run; `facts` are the columns of its identity in its first row."""

    status: str
    run_id: str
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict, compare=False, repr=False)


class Results:
    """A results folder, for those who write to it. `read` reads one."""

    def __init__(self, where: str | Path | Storage) -> None:
        self.storage = where if isinstance(where, Storage) else Storage(where)

    def write(self, kind: Kind, rows: Sequence[dict[str, Any]]) -> None:
        """Write all rows of one file at once. The rows of a cell (CELLS) come last: they finish it.

        Raises ValueError if the rows differ in the key, OSError if they cannot be written.
        """
        (key,) = {tuple(row[name] for name in kind.key) for row in rows}
        assert kind.schema is not None
        for row in rows:
            assert set(row) <= set(kind.schema.names), sorted(set(row) - set(kind.schema.names))
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=kind.schema), buffer)
        self.storage.write(kind.name(*key), memoryview(buffer.getvalue()))

    def ends(self, cell_ids: Iterable[str]) -> dict[str, End]:
        """Cell id -> how and in which run it finished, for those that did. DataError names a damaged file."""
        there = set(CELLS.names(self.storage))
        wanted = [cell_id for cell_id in cell_ids if CELLS.name(cell_id) in there]
        with ThreadPoolExecutor(8) as pool:  # an object store answers late, but many questions at once
            ends = zip(wanted, pool.map(self.end_of, wanted), strict=True)
            return {cell_id: end for cell_id, end in ends if end is not None}

    def end_of(self, cell_id: str) -> End | None:
        """How and in which run a cell finished; None if it did not. DataError for a damaged file."""
        columns = ["status", "run_id", *OF_IDENTITY]
        try:
            table = _read(self.storage, CELLS.name(cell_id), columns, younger=["method_sha256"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        first = table.slice(0, 1).to_pylist()[0]
        return End(status=first.pop("status"), run_id=first.pop("run_id"), facts=first)

    def take_over(self, published: str | Path, owners: Set[str], kinds: Sequence[Kind] = PUBLISHED) -> None:
        """Copy the rows of these cells, or trials, from a folder of `kdbench report --rows`."""
        for kind in reversed(kinds):  # the first kind is the last: from then on a cell has finished
            table = read(published, kind)
            table = table.filter(pc.is_in(table[kind.key[0]], pa.array(sorted(owners), pa.string())))
            for rows in _by_file(table, kind):
                self.write(kind, rows)

    def discard(self, cell_id: str) -> None:
        """Remove what an earlier attempt at a cell left, but not its checkpoint; the rows go first."""
        for kind in OF_CELLS:
            if kind is not CHECKPOINTS:
                for name in self.files_of(kind, cell_id):
                    self.storage.remove(name)

    def files_of(self, kind: Kind, key: str) -> list[str]:
        """Names of the files that a cell or trial may have; of kinds with several files, those that exist."""
        if len(kind.key) == 1:
            return [kind.name(key)]
        return [name for name in kind.names(self.storage) if kind.owner(name) == key]

    def remove_unfinished(self, cell_ids: Set[str]) -> None:
        """Remove temporary files of these cells (no process runs them), and any others older than a day."""
        for kind in KINDS:
            for name in self.storage.unfinished(kind.folder):
                left = kind in OF_CELLS and any(cell_id in name for cell_id in cell_ids)
                if left or self.storage.age_s(name) > ABANDONED_S:
                    self.storage.remove(name)

    def check_writable(self) -> None:
        """Raise OSError if rows cannot be written here, before anything is trained.

        Raises DataError for a folder of `kdbench report --rows`: its cells would run and count twice.
        """
        if has_shared_rows(self.storage):
            raise DataError(
                f"{self.storage} has rows of `kdbench report --rows`: name another folder for the results, "
                f"and this one with --published, so that its cells or trials count as finished"
            )
        for kind in (CELLS, SCORES, RUNS, LEASES):
            # Another run may check at the same time.
            name = f"{kind.folder}/.probe.{os.urandom(4).hex()}.tmp"
            self.storage.write(name, b"kdbench" * 1024)
            self.storage.remove(name)


def read(
    where: str | Path | Storage,
    kind: Kind,
    *,
    only: Iterable[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """All rows of one kind, also while cells are still being written; an empty table if there are none.

    `only` names cells, or whatever the first column of the key is; `columns` saves memory: ten thousand cells
    with all columns take most of a gigabyte. Raises FileNotFoundError if there are no CELLS at all, DataError
    for a damaged file.
    """
    return read_and_copies(where, kind, only=only, columns=columns)[0]


def read_and_copies(
    where: str | Path | Storage,
    kind: Kind,
    *,
    only: Iterable[str] | None = None,
    columns: Sequence[str] | None = None,
) -> tuple[pa.Table, dict[str, bool]]:
    """The table of `read`, and the files with rows that were left out: name -> whether all of its rows were.

    Programs that synchronise folders leave copies beside a file (`ID (conflicted copy).parquet`). Rows that
    have a file of their own must not count twice.
    """
    storage = where if isinstance(where, Storage) else Storage(where)
    schema = kind.schema
    assert schema is not None

    def of(name: str) -> _File:
        try:
            whole = _conform(_read(storage, name), kind, storage.path(name))
        except FileNotFoundError:  # removed after the folder was listed: its cell runs again
            whole = schema.empty_table()
        rows = whole.select(list(columns)) if columns else whole
        return _File(name=name, keys=_keys(whole, kind), rows=rows)

    names = kind.names(storage)
    if only is not None:
        wanted = set(only)
        names = [name for name in names if kind.owner(name) in wanted]
    # An object store answers late, but many at once; on a disk threads only wait for each other.
    with ThreadPoolExecutor(1 if storage.local else 8) as pool:
        tables, copies = _without_copies(kind, list(pool.map(of, names)))
    rows = pa.concat_tables(tables) if tables else schema.empty_table()
    if kind is CELLS:
        _check_shares(rows, storage)
    if kind is CELLS and only is None and not rows.num_rows:
        raise FileNotFoundError(f"no results in {where}: `kdbench run --results {where}` writes them")
    return rows, copies


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file that was read: the key of each row, and the columns that were asked for."""

    name: str
    keys: list[tuple[str | None, ...]]
    rows: pa.Table


def _keys(table: pa.Table, kind: Kind) -> list[tuple[str | None, ...]]:
    """The key of each row."""
    columns = [table[name] for name in kind.key]
    if table.num_rows and all(
        pc.all(pc.equal(column, column[0]), skip_nulls=False).as_py() for column in columns
    ):
        return [tuple(column[0].as_py() for column in columns)] * table.num_rows  # nearly always, and quicker
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


def _without_copies(kind: Kind, files: Sequence[_File]) -> tuple[list[pa.Table], dict[str, bool]]:
    """The rows of each key once: from the file that the key names, else from the first file that has them."""
    tables, others, seen = [], [], set[tuple[str | None, ...]]()
    for file in files:
        if len(set(file.keys)) == 1 and kind.is_named(file.name, file.keys[0]):
            seen.add(file.keys[0])
            tables.append(file.rows)
        else:
            others.append(file)
    copies = {}
    for file in others:
        fresh = [key not in seen for key in file.keys]
        seen |= set(file.keys)
        tables.append(file.rows if all(fresh) else file.rows.filter(pa.array(fresh)))
        if not all(fresh):
            copies[file.name] = not any(fresh)
    return tables, copies


def _by_file(table: pa.Table, kind: Kind) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table that share one file."""
    key = itemgetter(*kind.key)
    for _, rows in groupby(sorted(table.to_pylist(), key=key), key):
        yield list(rows)


def _conform(table: pa.Table, kind: Kind, path: str) -> pa.Table:
    """The rows of a file with the columns of today: those that an older kdbench did not write are null.

    DataError for a file of a newer kdbench, which may mean something else by a column, or a damaged one.
    """
    schema = kind.schema
    assert schema is not None
    there = set(table.column_names)
    if not {*kind.key, "category"} & set(schema.names) <= there:
        raise _damaged(path, "it has no rows of a cell")
    newer = sorted(there - set(schema.names))
    if newer:
        raise DataError(f"{path} was written by a newer kdbench: it has the columns {', '.join(newer)}")
    if "schema_version" in there and (pc.max(table["schema_version"]).as_py() or 0) > SCHEMA_VERSION:
        version = pc.max(table["schema_version"]).as_py()
        raise DataError(
            f"{path} was written by a newer kdbench: its rows have version {version}, this kdbench reads "
            f"up to {SCHEMA_VERSION}"
        )
    for field in schema:
        if field.name not in there:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    try:
        # Only columns that differ are cast: casting all took most of the time of reading thousands of files.
        columns = [
            column if column.type == field.type else column.cast(field.type)
            for column, field in zip(table.select(schema.names).columns, schema, strict=True)
        ]
        return pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, ValueError) as error:
        raise _damaged(path, first_line(error)) from error


def _read(
    storage: Storage, name: str, columns: list[str] | None = None, younger: Sequence[str] = ()
) -> pa.Table:
    """The table of one file; DataError if it is damaged, has no rows or lacks a column.

    `younger` are columns to read beside `columns`, which older files lack.
    OSError if it cannot be read: that says nothing of its content, and nobody should delete it.
    """
    path, content = storage.path(name), storage.read(name)
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            wanted = None if columns is None else [*columns, *younger]
            # The file is small: threads would cost more than they save.
            table = file.read(wanted, use_threads=False)
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError for bytes that are not Parquet
        raise _damaged(path, first_line(error)) from error
    missing = set(columns or ()) - set(table.column_names)
    if missing:
        raise _damaged(path, f"no column {', '.join(sorted(missing))}")
    if table.num_rows == 0:
        raise _damaged(path, "no rows")
    return table


def _check_shares(rows: pa.Table, storage: Storage) -> None:
    """Raise DataError for a metric outside of 0 to 1: kdbench writes none, so that a person did."""
    for name in set(MEASURED) & set(rows.column_names):
        bounds = pc.min_max(rows[name]).as_py()
        for value in bounds.values():
            if value is not None and not 0 <= value <= 1:
                raise DataError(
                    f"{storage} has a row whose {name} is {value:g}, and all metrics are from 0 to 1"
                )


def _damaged(path: str, why: str) -> DataError:
    return DataError(f"{path} is damaged ({why}). Delete it: the cell will run again")
