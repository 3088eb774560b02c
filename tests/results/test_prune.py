"""`kdbench results prune` finds what nothing refers to, and moves it only when told to."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fabricated import all_metrics, row

from kdbench.errors import DataError
from kdbench.grid.lease import Holder, acquire
from kdbench.reports.rows import load
from kdbench.results.prune import leftovers, move_away
from kdbench.results.storage import Storage
from kdbench.results.store import (
    AUDITS,
    CELLS,
    CHECKPOINTS,
    CURVES,
    DETECTORS,
    INPUTS,
    LATENCY,
    PICTURES,
    PROBES,
    SCORES,
    TRIALS,
    Results,
)

DAY = "2026-01-0{}T00:00:00+00:00".format


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_cell(folder: Path, cell_id: str, content: str, day: int, **changes: Any) -> None:
    """A cell of the category `part` with everything that a run keeps of it."""
    results, category = Results(folder), {"cell_id": cell_id, "category": "part"}
    score = {"image": "x", "defect": "d", "label": True, "image_score": 1.0}
    results.write(SCORES, [category | score])
    results.write(CURVES, [category])
    results.write(INPUTS, [{"category_fingerprint": f"of-{content}", "category": "part", "image": "x"}])
    results.write(PICTURES, [category | {"category_fingerprint": f"of-{content}", "image": "x"}])
    results.storage.write(DETECTORS.name(cell_id), b"weights")
    results.write(LATENCY, [{"cell_id": cell_id, "device_name": "gpu", "device": "cuda"}])
    results.write(PROBES, [category])
    facts = {"method": "stfpm", "dataset": "folder", "setting": "oneclass", "categories": ["part"]}
    facts |= {"fingerprint": content, "started_at": DAY(day), "dataset_categories": ["part"]}
    results.write(CELLS, [row(**all_metrics(0.5) | category | facts | changes)])


PARTS = ("cells", "curves", "detectors", "pictures", "probes", "scores")


def of_cell(cell_id: str) -> list[str]:
    """The files of `write_cell`, but for the inputs."""
    suffix = {"detectors": "safetensors"}
    names = [f"{part}/{cell_id}.{suffix.get(part, 'parquet')}" for part in PARTS]
    return sorted([*names, LATENCY.name(cell_id, "gpu")])


def found_in(folder: Path, running: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """Why -> the files."""
    found = leftovers(Storage(folder), lambda: set(running))
    assert len({one.why for one in found}) == len(found)
    return {one.why: sorted(one.files) for one in found}


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    """A cell of earlier images and one of today's."""
    folder = tmp_path / "r"
    write_cell(folder, "old", "v1", 1)
    write_cell(folder, "new", "v2", 2)
    return folder


EARLIER = f"rows of earlier images: stfpm folder/part oneclass seed 0, started {DAY(1)}"
UNUSED = "pictures of images and masks that no cell has maps of"


def test_all_of_a_cell_of_earlier_images_is_found(corrected):
    assert found_in(corrected) == {EARLIER: of_cell("old"), UNUSED: ["inputs/of-v1.parquet"]}


def test_nothing_is_found_where_every_file_is_needed(tmp_path):
    write_cell(tmp_path, "a", "v1", 1)
    write_cell(tmp_path, "b", "v1", 2, seed=1)
    results = Results(tmp_path)
    results.write(TRIALS, [{"trial_id": "s-1", "sweep_id": "s", "status": "ok"}])
    results.write(AUDITS, [{"trial_id": "s-1", "category": "part"}])
    for name in (DETECTORS.name("s-1"), CHECKPOINTS.name("s-1"), CHECKPOINTS.name("not finished")):
        results.storage.write(name, b"x")
    for name in ("cells/Thumbs.db", "runs/run.json", "leases/a.000001", "sweeps/s/best.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    assert found_in(tmp_path) == {}


def test_what_has_no_rows_is_found(corrected):
    write_cell(corrected, "gone", "v2", 2)
    (corrected / "cells/gone.parquet").unlink()
    Results(corrected).write(AUDITS, [{"trial_id": "s-9", "category": "part"}])
    found = found_in(corrected)
    assert found["no rows of gone"] == [name for name in of_cell("gone") if not name.startswith("cells")]
    assert found["no rows of s-9"] == ["audits/s-9.parquet"]


def test_what_a_running_cell_has_written_stays(corrected):
    """It writes its scores before its rows; and the inputs of pictures that are not there yet."""
    write_cell(corrected, "running", "v3", 3)
    (corrected / "cells/running.parquet").unlink()
    (corrected / "pictures/running.parquet").unlink()
    assert found_in(corrected, ("running",)) == {EARLIER: of_cell("old")}
    # A cell of earlier images that runs again stays as well.
    assert found_in(corrected, ("running", "old")) == {}


@pytest.mark.parametrize(("status", "goes"), [("ok", True), ("failed", True), ("timeout", False)])
def test_a_checkpoint_goes_unless_its_training_goes_on(tmp_path, status, goes):
    write_cell(tmp_path, "a", "v1", 1, status=status)
    Storage(tmp_path).write(CHECKPOINTS.name("a"), b"x")
    why = "a checkpoint of a, which has finished"
    assert found_in(tmp_path) == ({why: ["checkpoints/a.pt"]} if goes else {})
    assert found_in(tmp_path, ("a",)) == {}


def test_copies_go_unless_they_have_rows_of_their_own(corrected):
    shutil.copy(corrected / "cells/new.parquet", corrected / "cells/new (1).parquet")
    shutil.copy(corrected / "scores/new.parquet", corrected / "scores/new (1).parquet")
    found = found_in(corrected)
    name = "cells/new (1).parquet"
    assert found[f"a copy: its rows are in another file, too: {name}"] == [name]
    assert found["no rows of new (1)"] == ["scores/new (1).parquet"]
    (corrected / "cells/new.parquet").rename(corrected / "cells/new (2).parquet")
    names = {name for names in found_in(corrected).values() for name in names}
    assert names & {"cells/new (1).parquet", "cells/new (2).parquet"} == {"cells/new (2).parquet"}


def test_temporary_files_go_after_a_day(corrected):
    for name, age_s in (("new", 60), ("older", 2 * 86400)):
        path = corrected / f"scores/.{name}.parquet.1234.tmp"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age_s,) * 2)
    assert found_in(corrected)["a temporary file of a process that is gone"] == [
        "scores/.older.parquet.1234.tmp"
    ]


def test_what_is_moved_away_can_be_moved_back(corrected):
    before, storage = files(corrected), Storage(corrected)
    found = leftovers(storage, set)
    sizes = {name: (corrected / name).stat().st_size for one in found for name in one.files}
    assert [one.num_bytes for one in found] == [sum(sizes[name] for name in one.files) for one in found]
    target = move_away(storage, found)
    assert target.startswith("pruned/")
    assert files(corrected / target) == sorted(sizes)
    assert sorted(name for name in files(corrected) if not name.startswith("pruned")) == sorted(
        [*of_cell("new"), "inputs/of-v2.parquet"]
    )
    assert len(load(corrected).earlier) == 0
    assert found_in(corrected) == {}
    shutil.copytree(corrected / target, corrected, dirs_exist_ok=True)
    shutil.rmtree(corrected / "pruned")
    assert files(corrected) == before


def test_a_file_that_goes_meanwhile_is_passed_over(corrected):
    found = leftovers(Storage(corrected), set)
    (corrected / "scores/old.parquet").unlink()
    target = move_away(Storage(corrected), found)
    assert len(files(corrected / target)) == len(of_cell("old"))  # one less, and the inputs


def test_rows_that_are_shared_are_not_pruned(tmp_path):
    storage = Storage(tmp_path)
    storage.write(CELLS.whole, b"rows")
    with pytest.raises(DataError, match="has rows of `kdbench report --rows`: they share files, none can"):
        leftovers(storage, set)


def test_the_command_lists_and_moves_nothing(corrected, kdbench):
    before = files(corrected)
    code, output = kdbench("results", "prune", "--results", str(corrected))
    assert code == 0
    lines = output.splitlines()
    size = sum((corrected / name).stat().st_size for name in of_cell("old"))
    assert lines[0] == f"{EARLIER}: 7 files, {size / 1024:.2f} KiB"
    assert sorted(lines[1:8]) == sorted(f"  {name}" for name in of_cell("old"))
    assert lines[1] == "  cells/old.parquet"
    assert lines[-1].startswith("8 files, ")
    assert lines[-1].endswith(f" in all. Nothing was moved: --yes moves them to {corrected}/pruned")
    assert files(corrected) == before


def test_the_command_moves_what_it_listed(corrected, kdbench):
    code, output = kdbench("results", "prune", "--results", str(corrected), "--yes")
    assert code == 0
    (moved,) = (corrected / "pruned").iterdir()
    assert output.splitlines()[-1].endswith(f": moved to {moved}. Delete that folder, or move its files back")
    again = kdbench("results", "prune", "--results", str(corrected), "--yes")
    assert again[1] == f"nothing to move: something refers to every file of {corrected}\n"


def test_the_command_leaves_what_a_process_runs(corrected, kdbench):
    (corrected / "cells/new.parquet").unlink()
    lease = acquire(Storage(corrected), Holder(cell_id="new", run_id="run"))
    assert lease is not None
    output = kdbench("results", "prune", "--results", str(corrected))[1]
    assert output == f"nothing to move: something refers to every file of {corrected}\n"
    lease.release()
    assert "no rows of new" in kdbench("results", "prune", "--results", str(corrected))[1]


def test_a_folder_without_results_is_a_complaint(tmp_path, kdbench):
    code, output = kdbench("results", "prune", "--results", str(tmp_path / "nothing"))
    assert (code, output) == (2, f"error: no results in {tmp_path}/nothing\n")
