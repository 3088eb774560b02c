"""Files beside our rows that are not ours: passed over, and named where they hold rows a second time."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fabricated import all_metrics, row

from kdbench.errors import DataError
from kdbench.grid.lease import Holder, acquire, holders
from kdbench.grid.status import RunFile, states, write_run
from kdbench.reports.compare import compare
from kdbench.reports.entries import entries
from kdbench.reports.leaderboard import assemble
from kdbench.reports.rows import load, sections
from kdbench.results.storage import Storage
from kdbench.results.store import (
    CELLS,
    KINDS,
    LATENCY,
    SCORES,
    TRIALS,
    Results,
    read,
    read_and_copies,
)

FOREIGN = ("Thumbs.db", "desktop.ini", ".DS_Store", "._abc.parquet", ".~lock.abc.parquet#")
COPIES = [  # what Dropbox, Syncthing, OneDrive, Google Drive and Windows call a copy
    "abc (conflicted copy).parquet",
    "abc.sync-conflict-20260101-120000-ABCDEFG.parquet",
    "abc-DESKTOP-1.parquet",
    "abc (1).parquet",
    "abc - Copy.parquet",
    "Copy of abc.parquet",
]
SCORE = {"cell_id": "abc", "category": "a", "image": "x", "defect": "d", "label": True, "image_score": 1.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder with one cell of two categories, its scores and a timing."""
    results, whole = Results(tmp_path), {"dataset_categories": ["a", "b"], "categories": ["a", "b"]}
    results.write(SCORES, [SCORE])
    results.write(LATENCY, [{"cell_id": "abc", "device_name": "gpu", "batch_size": 1, "device": "cuda"}])
    results.write(CELLS, [row(cell_id="abc", category=c, **all_metrics(0.5) | whole) for c in ("a", "b")])
    return tmp_path


def copied(folder: Path, name: str, kind: str = "cells", source: str = "abc.parquet") -> str:
    shutil.copy(folder / kind / source, folder / kind / name)
    return f"{kind}/{name}"


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_other_programs_are_passed_over_in_every_folder(folder, name):
    results = Results(folder)
    write_run(results, RunFile(run_id="run", started=0.0, cells={"abc": 1.0}))
    before = {kind.folder: kind.names(results.storage) for kind in KINDS if kind.suffix}
    for kind in KINDS:
        (folder / kind.folder).mkdir(exist_ok=True)
        (folder / kind.folder / name).write_bytes(b"\0 not ours")
    assert {kind.folder: kind.names(results.storage) for kind in KINDS if kind.suffix} == before
    assert read(folder, CELLS).num_rows == 2
    assert read(folder, SCORES).num_rows == 1
    assert read(folder, TRIALS).num_rows == 0
    assert load(folder).copies == ()
    assert [state.counts["ok"] for state in states(results)] == [1]
    assert holders(results.storage) == []


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_cell_counts_once_and_is_named(folder, name):
    copy = copied(folder, name)
    table, copies = read_and_copies(folder, CELLS)
    assert (table.num_rows, copies) == (2, {copy: True})
    ((_, cells),) = sections(load(folder).cells)
    (entry,) = entries(cells)
    assert (entry.holes, entry.means["mad"].mean) == ((), 0.5)


def test_the_report_and_the_terminal_name_the_copy(folder):
    names = (copied(folder, COPIES[0]), copied(folder, COPIES[1], "scores"))
    section = next(section for section in assemble(load(folder)) if section.title == "Holes")
    assert [line[0].text for line in section.tables[0].body] == [*names]
    assert section.tables[0].title == "Copies of files, left out"
    assert section.headline.splitlines() == [f"{name} is a copy, and does not count" for name in names]


def test_scores_and_timings_in_a_copy_count_once(folder):
    (timing,) = (folder / "latency").iterdir()
    copied(folder, COPIES[0], "scores")
    copied(folder, f"{timing.stem} (1).parquet", "latency", timing.name)
    assert [read(folder, kind).num_rows for kind in (SCORES, LATENCY)] == [1, 1]


def test_a_copy_whose_file_is_gone_stands_for_it(folder):
    """The rows are all there is of that cell; two copies of them are one too many."""
    names = [copied(folder, name) for name in sorted(COPIES[:2])]
    (folder / "cells/abc.parquet").unlink()
    table, copies = read_and_copies(folder, CELLS)
    assert (table.num_rows, copies) == (2, {names[1]: True})


def test_rows_of_several_cells_in_one_file_count_but_for_those_that_have_a_file(folder):
    results = Results(folder)
    results.write(CELLS, [row(cell_id="def", seed=1)])
    (folder / "shared").mkdir()
    Results(folder / "shared").write(CELLS, [row(cell_id="ghi", seed=2)])
    several = pa.concat_tables([read(folder, CELLS), read(folder / "shared", CELLS)])
    pq.write_table(several, folder / "cells/several.parquet")
    table, copies = read_and_copies(folder, CELLS)
    assert sorted(table["cell_id"].to_pylist()) == ["abc", "abc", "def", "ghi"]
    assert copies == {"cells/several.parquet": False}
    (folder / "cells/abc.parquet").unlink()
    (folder / "cells/def.parquet").unlink()
    table, copies = read_and_copies(folder, CELLS)
    assert sorted(table["cell_id"].to_pylist()) == ["abc", "abc", "def", "ghi"]
    assert copies == {}


def test_two_folders_with_a_copy_are_compared(folder, tmp_path):
    after = Path(shutil.copytree(folder, tmp_path / "after"))
    copied(after, COPIES[0])
    assert compare(folder, after, 0.01).num_regressions == 0
    assert compare(folder, after, 0.01).num_compared > 0


def test_a_copy_that_is_damaged_is_named(folder):
    (folder / "cells" / COPIES[0]).write_bytes(b"half")
    with pytest.raises(
        DataError, match=r"/cells/abc \(conflicted copy\)\.parquet is damaged \(.+\)\. Delete it"
    ):
        read(folder, CELLS)


def test_a_copy_of_a_lease_is_no_lease(tmp_path):
    storage, holder = Storage(tmp_path), Holder(cell_id="abc", run_id="run")
    lease = acquire(storage, holder)
    assert lease is not None
    shutil.copy(tmp_path / lease.name, tmp_path / f"{lease.name} (conflicted copy)")
    assert [held.cell_id for held in holders(storage)] == ["abc"]
    lease.release()
    assert acquire(storage, holder) is not None


def test_a_trial_in_a_copy_is_one_trial(tmp_path):
    Results(tmp_path).write(TRIALS, [{"trial_id": "t-1", "sweep_id": "t", "status": "ok"}])
    shutil.copy(tmp_path / "trials/t-1.parquet", tmp_path / "trials/t-1 (1).parquet")
    assert read_and_copies(tmp_path, TRIALS)[1] == {"trials/t-1 (1).parquet": True}
    assert read(tmp_path, TRIALS)["trial_id"].to_pylist() == ["t-1"]
