"""Test metrics in the middle of a training: they change nothing, and a resumed training has them all."""

import pytest
import torch
from conftest import slow_but
from engine.test_checkpoint import job, lose, numbers, smallest_job

from kdbench.cell import STOPPED
from kdbench.engine.run import run_cell
from kdbench.errors import CellStopped
from kdbench.grid.attempt import execute_cell
from kdbench.registry import method_names
from kdbench.results.schema import MEASURED
from kdbench.results.store import CELLS, EPOCHS, Results, read


def quiet(progress):
    pass


@pytest.mark.parametrize("method", slow_but(method_names(), "stfpm"))
def test_looking_at_the_test_images_changes_nothing_of_a_cell(tmp_path, method):
    blind, looking = (
        smallest_job(tmp_path, name, method, measure_every=every)
        for name, every in (("blind", 0), ("looking", 2))
    )
    assert blind.cell.id == looking.cell.id
    blind, looking = (run_cell(one.cell, one.place, quiet) for one in (blind, looking))
    assert numbers(blind.rows) == numbers(looking.rows)
    assert (blind.scores, blind.normals) == (looking.scores, looking.normals)
    assert all(torch.equal(looking.detector[name], tensor) for name, tensor in blind.detector.items())
    assert [row["epoch"] for row in looking.epochs] == [2, 4]
    assert blind.epochs == []
    if blind.rows[0]["best_epoch"] == 4:
        last = looking.epochs[-1]
        assert {name: last[name] for name in MEASURED} == {name: blind.rows[0][name] for name in MEASURED}
    # Without a look at other weights, both would be equal.
    assert looking.epochs[0] != looking.epochs[1] | {"epoch": 2}


def test_a_resumed_training_keeps_what_was_measured_before(mvtec, tmp_path):
    changes = {"measure_every": 1, "methods": ("rd4ad",)}
    lost, undisturbed = (job(mvtec, tmp_path / name, **changes) for name in ("lost", "undisturbed"))
    lose(lost, epoch=3)
    for one in (lost, undisturbed):
        assert execute_cell(one.cell, one.place, "run-2", quiet).status == "ok"
    stored = [
        read(tmp_path / name, EPOCHS).drop(["attempt_id"]).to_pylist() for name in ("lost", "undisturbed")
    ]
    assert stored[0] == stored[1]
    assert [row["epoch"] for row in stored[0]] == [1, 2, 3, 4]


def test_a_training_that_is_stopped_while_it_is_measured_loses_nothing(mvtec, tmp_path):
    stopped, undisturbed = (
        job(mvtec, tmp_path / name, measure_every=2) for name in ("stopped", "undisturbed")
    )
    told = []

    def stop_in_the_look(progress):
        # Ten images, two of them held out: an epoch is over at 8, 16, 24, and a look says its number again.
        if progress.phase == "train" and progress.done == 16 and 16 in told:
            raise CellStopped
        told.append(progress.done)

    assert execute_cell(stopped.cell, stopped.place, "run-1", stop_in_the_look).status == STOPPED
    for one in (stopped, undisturbed):
        assert execute_cell(one.cell, one.place, "run-2", quiet).status == "ok"
    folders = [tmp_path / name for name in ("stopped", "undisturbed")]
    tables = [[read(folder, kind).drop(["attempt_id"]) for folder in folders] for kind in (EPOCHS, CELLS)]
    measured, rows = ([table.to_pylist() for table in own] for own in tables)
    assert rows[0][0]["resumed_at_epoch"] == 3
    assert [row["epoch"] for row in measured[0]] == [2, 4]
    assert measured[0] == measured[1]
    assert numbers(rows[0]) == numbers(rows[1])


def test_rows_of_epochs_that_a_lost_worker_trained_after_its_checkpoint_are_measured_again(mvtec, tmp_path):
    planned = job(mvtec, tmp_path / "r", measure_every=1, checkpoint_every=0)
    lose(planned, epoch=3)
    results = Results(tmp_path / "r")
    assert len(EPOCHS.names(results.storage)) == 1
    seen = run_cell(planned.cell, planned.place, quiet)
    assert [row["epoch"] for row in seen.epochs] == [1, 2, 3, 4]
