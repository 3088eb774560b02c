"""Rows of one attempt at a cell beside scores, curves or a detector of another count for nothing, by name."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ALL_SET, STFPM, TINY
from fabricated import all_metrics, row, scores, write_scores

import kdbench as package
from kdbench.engine.measured import read_measured
from kdbench.errors import DataError
from kdbench.reports.gallery import candidates, exhibits
from kdbench.reports.leaderboard import Section, assemble
from kdbench.reports.rows import load
from kdbench.results.attempts import beside, read_beside
from kdbench.results.prune import leftovers
from kdbench.results.storage import Storage
from kdbench.results.store import (
    CELLS,
    CURVES,
    DEPLOYED,
    DETECTORS,
    EPOCHS,
    LATENCY,
    NORMALS,
    PICTURES,
    PROBES,
    SCORES,
    Kind,
    Results,
    read,
)

BESIDE = (SCORES, NORMALS, EPOCHS, CURVES, PICTURES)  # with the rows, what `kdbench run` writes of a cell


@pytest.fixture(scope="module")
def twice(_mvtec, tmp_path_factory) -> tuple[Path, Path]:
    """One cell that two folders have, with the same options."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("one", "other"))
    for folder in (one, other):
        package.run(
            methods="stfpm",
            dataset="mvtec_ad",
            root=_mvtec,
            categories="bottle",
            backbone="tiny",
            set=ALL_SET,
            epochs=2,
            measure_every=1,
            executor="local",
            latency=False,
            results=folder,
            progress=False,
        )
    return one, other


@pytest.fixture
def mixed(twice, tmp_path) -> Path:
    """The rows of one folder, copied over those of the other."""
    one, other = twice
    shutil.copytree(other, tmp_path / "r")
    shutil.copytree(one / "cells", tmp_path / "r/cells", dirs_exist_ok=True)
    return tmp_path / "r"


def the_cell(folder: Path) -> dict:
    (found,) = read(folder, CELLS).to_pylist()
    return found


def test_all_files_of_an_attempt_say_that_they_belong_together(twice):
    one, other = (the_cell(folder) for folder in twice)
    assert one["cell_id"] == other["cell_id"]
    assert one["attempt_id"] != other["attempt_id"]
    for folder, of_cell in zip(twice, (one, other), strict=True):
        for kind in BESIDE:
            table = read(folder, kind)
            assert table.num_rows, kind.folder
            assert set(table["attempt_id"].to_pylist()) == {of_cell["attempt_id"]}
            assert read_beside(Storage(folder), kind).equals(table)
        assert load(folder).of_other_attempts == {}
        assert leftovers(Storage(folder), set) == []


def holes_of(folder: Path) -> Section:
    return next(section for section in assemble(load(folder)) if section.title == "Holes")


def test_scores_of_another_attempt_count_for_nothing_and_are_named(mixed):
    cell_id, rows = the_cell(mixed)["cell_id"], load(mixed)
    assert [len(frame) for frame in (rows.cells, rows.scores, rows.normals, rows.epochs)] == [1, 0, 0, 0]
    section = holes_of(mixed)
    table = next(table for table in section.tables if table.title == "Files of another attempt, left out")
    assert [[value.text for value in line] for line in table.body] == [
        [name, cell_id] for name in ("scores/", "normals/", "epochs/")
    ]
    assert section.headline.splitlines() == [
        f"{name}/ of 1 cell is of another attempt, and does not count: {cell_id}"
        for name in ("scores", "normals", "epochs")
    ]


def test_the_report_draws_no_curve_and_shows_no_map_of_another_attempt(mixed, twice):
    names = {figure.name: figure for figure in package.open(twice[0]).figures().values()}
    curves = [name for name in names if name.startswith("curves-")]
    assert curves
    assert not set(curves) & set(package.open(mixed).figures())
    found = package.open(twice[1]).scores()
    chosen = candidates("bottle", found)
    shown = [[*exhibits(Storage(folder), chosen, found)] for folder in (twice[1], mixed)]
    assert [bool(exhibit.maps) for exhibit in shown[0]] == [True] * len(chosen)
    assert shown[1] == []


def test_in_python_and_on_the_command_line_they_are_left_out_or_refused(mixed, kdbench):
    folder, cell_id = package.open(mixed), the_cell(mixed)["cell_id"]
    assert [len(frame) for frame in (folder.rows(), folder.scores(), folder.curves())] == [1, 0, 0]
    said = (
        f"{mixed}/{{}} and the rows of {cell_id} are of two attempts at the cell: somebody copied files of "
        f"another results folder here. Copy all files of the cell, or run it again (--redo all)"
    )
    with pytest.raises(DataError) as raised:
        folder.detector()
    assert str(raised.value) == said.format(DETECTORS.name(cell_id))
    code, printed = kdbench("export", cell_id, "--results", mixed)
    assert (code, printed) == (2, f"error: {said.format(DETECTORS.name(cell_id))}\n")


def test_a_threshold_of_another_attempt_is_refused(mixed, twice):
    """The detector is of the rows, the scores of its held-out images are not."""
    name = DETECTORS.name(the_cell(mixed)["cell_id"])
    shutil.copy(twice[0] / name, mixed / name)
    detector = package.open(mixed).detector()
    with pytest.raises(DataError, match=rf"^{mixed}/normals/\w+\.parquet and the rows of \w+ are of two "):
        detector.threshold()
    assert package.open(twice[0]).detector().threshold() is not None


def test_prune_finds_them(mixed):
    cell_id = the_cell(mixed)["cell_id"]
    found = {leftover.files: leftover.why for leftover in leftovers(Storage(mixed), set)}
    assert found == {
        (kind.name(cell_id),): f"of another attempt at {cell_id} than its rows: {kind.name(cell_id)}"
        for kind in BESIDE
    }
    assert leftovers(Storage(mixed), lambda: {cell_id}) == []  # it runs again


def test_the_same_command_again_writes_files_that_belong_together(mvtec, mixed, tmp_path, kdbench):
    words = [*STFPM, "--root", mvtec, *TINY, "--categories", "bottle", "--executor", "local"]
    folder = tmp_path / "again"
    for redo in ((), ("--redo", "all")):
        assert kdbench("run", *words, "--results", folder, "--out", tmp_path / "out", *redo)[0] == 0
        assert load(folder).of_other_attempts == {}
        assert len(load(folder).scores)


def write(folder: Path, kind: Kind, attempt_id: str | None, **facts: object) -> None:
    of_cell = {"cell_id": "c0", "category": "a", "attempt_id": attempt_id}
    Results(folder).write(kind, [of_cell | facts])


@pytest.mark.parametrize(
    ("rows", "scores_", "counts"),
    [(None, None, True), ("x", "x", True), ("x", "y", False), ("x", None, False), (None, "y", False)],
    ids=["both are older", "one attempt", "two attempts", "newer rows", "newer scores"],
)
def test_older_files_belong_to_older_rows(tmp_path, rows, scores_, counts):
    Results(tmp_path).write(CELLS, [row(attempt_id=rows, **all_metrics(0.5))])
    own = [one | {"attempt_id": scores_} for one in scores("c0", "a", merit=1, seed=0)]
    write_scores(tmp_path, own)
    found = load(tmp_path)
    assert (len(found.scores), found.of_other_attempts) == (
        120 * counts,
        {} if counts else {"scores": ["c0"]},
    )


def test_metrics_of_an_exported_detector_and_a_probe_belong_to_their_rows(tmp_path):
    Results(tmp_path).write(CELLS, [row(attempt_id="x", **all_metrics(0.5))])
    write(tmp_path, DEPLOYED, "y", device="cpu", device_name="c", runtime="torch", precision="fp32")
    write(tmp_path, PROBES, "y")
    Results(tmp_path).write(LATENCY, [{"cell_id": "c0", "device": "cpu", "device_name": "c"}])
    found = load(tmp_path)
    assert (len(found.deployed), len(found.probes), len(found.latencies)) == (0, 0, 1)
    assert found.of_other_attempts == {"deployed": ["c0"], "probes": ["c0"]}
    # The run evaluates it again; a timing need not be repeated.
    assert read_measured(Results(tmp_path), DEPLOYED).rows == []
    assert len(read_measured(Results(tmp_path)).rows) == 1


def test_of_a_file_with_many_cells_only_the_others_are_left_out(tmp_path):
    table = pa.Table.from_pandas(
        pd.DataFrame(
            {"cell_id": ["a", "b", "a", "c"], "attempt_id": ["1", "2", "1", None], "n": np.arange(4)}
        )
    )
    rows, others = beside(table, {"a": "1", "b": "1", "c": None})
    assert (rows["n"].to_pylist(), others) == ([0, 2, 3], ["b"])
    assert beside(table, {"a": "1"})[0]["n"].to_pylist() == [0, 2]
    assert beside(table, {}) == (table.slice(0, 0), [])


def test_shared_rows_of_a_report_keep_their_attempts(twice, tmp_path, kdbench):
    """`report --rows` and `--published` carry the column: what belonged together still does."""
    out = tmp_path / "rows"
    assert kdbench("report", "--results", twice[0], "--out", tmp_path / "o", "--rows", out)[0] == 0
    taken = Results(tmp_path / "taken")
    taken.take_over(out, {the_cell(twice[0])["cell_id"]})
    for folder in (out, tmp_path / "taken"):
        assert load(folder).of_other_attempts == {}
        assert len(load(folder).scores) == read(twice[0], SCORES).num_rows
    assert pq.read_table(out / "scores/rows.parquet")["attempt_id"].null_count == 0


def test_edited_scores_are_named_and_move_no_interval(tmp_path):
    for cell_id in ("c0", "c1"):
        Results(tmp_path).write(CELLS, [row(cell_id=cell_id, **all_metrics(0.5))])
        write_scores(tmp_path, scores(cell_id, "a", merit=1, seed=0))
    rows = load(tmp_path)
    assert (len(rows.scores), rows.contradicted) == (240, ())
    edited = read(tmp_path, SCORES, only=["c0"]).to_pylist()
    highest = max((one for one in edited if not one["label"]), key=lambda one: one["image_score"])
    highest["image_score"] = -9.0
    Results(tmp_path).write(SCORES, edited)
    rows = load(tmp_path)
    assert (set(rows.scores["cell_id"]), rows.contradicted) == ({"c1"}, ("c0",))
    holes = next(section for section in assemble(rows) if section.title == "Holes")
    assert [line[0].text for line in holes.tables[0].body] == ["c0"]
    assert holes.headline == (
        "image scores of 1 cell contradict the image AUROC of their rows, and do not count: c0"
    )
