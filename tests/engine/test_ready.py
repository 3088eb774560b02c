"""What a cell needs before it trains: the split of its images, and a method from its config."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_jobs

from kdbench.engine.build import build_method
from kdbench.engine.ready import ready_cell
from kdbench.errors import RequestError


def ready(mvtec, results, checkpoint, **asked):
    changes = {"all.image_size": 32, "all.checkpoint": checkpoint}
    (job,) = tiny_jobs(mvtec, results, setting=("multiclass",), set=changes, **asked)
    return ready_cell(job.cell, job.place)


def test_with_the_last_epoch_every_image_is_trained_on(mvtec, tmp_path):
    cell = ready(mvtec, tmp_path, "last")
    images = cell.training_batches()
    stored = np.concatenate([store.train for store in cell.stores])
    assert (images.heldout, len(images.split.heldout)) == (None, 0)
    np.testing.assert_array_equal(images.fitted.pixels, stored)


@pytest.mark.parametrize("checkpoint", ["last", "heldout"])
def test_images_that_are_set_aside_are_not_trained_on(mvtec, tmp_path, checkpoint):
    cell = ready(mvtec, tmp_path, checkpoint)
    images = cell.training_batches(always_split=True)
    stored = np.concatenate([store.train for store in cell.stores])
    assert len(images.split.heldout) == 4  # a fifth of ten images of each of two categories
    np.testing.assert_array_equal(images.fitted.pixels, np.delete(stored, images.split.heldout, axis=0))
    if checkpoint == "last":
        assert images.heldout is None
    else:
        np.testing.assert_array_equal(images.heldout.pixels, stored[images.split.heldout])
        assert torch.equal(cell.training_batches().fitted.pixels, images.fitted.pixels)


@pytest.mark.parametrize(("checkpoint", "num_heldout"), [("last", 0), ("heldout", 2)])
def test_what_gives_a_threshold_is_seen_by_nothing_else(mvtec, tmp_path, checkpoint, num_heldout):
    cell = ready(mvtec, tmp_path, checkpoint, hold_out=0.3)
    images = cell.training_batches()
    stored = np.concatenate([store.train for store in cell.stores])
    assert [len(part) for part in images.split] == [14 - num_heldout, num_heldout, 6]  # of 2 x 10 images
    assert sorted(np.concatenate(images.split)) == list(range(20))
    assert (images.split.unseen < 10).sum() == 3  # of each category
    np.testing.assert_array_equal(images.fitted.pixels, stored[images.split.fitted])
    batches, indices = images.judges
    np.testing.assert_array_equal(batches.pixels, stored[images.split.unseen])
    assert indices is images.split.unseen
    other = ready(mvtec, tmp_path, checkpoint).training_batches()
    assert len(other.judges[1]) == 2 * num_heldout  # a fifth of all, not of what is left
    assert json.loads(cell.cell.config)["hold_out"] == 0.3


def test_a_cell_that_keeps_no_image_for_a_threshold_has_the_id_that_it_had(mvtec, tmp_path):
    plain, asked = (ready(mvtec, tmp_path, "last", **more).cell for more in ({}, {"hold_out": 0.0}))
    assert plain.id == asked.id
    assert "hold_out" not in json.loads(plain.config)


def test_training_features_are_shared_on_disk_if_the_device_has_no_room(mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: 0)
    images = ready(mvtec, tmp_path, "last").training_batches(always_split=True)
    assert images.fitted.cache == "disk"


def test_the_random_start_of_a_method_follows_the_seed_and_an_unknown_method_is_refused(mvtec, tmp_path):
    (job,) = tiny_jobs(mvtec, tmp_path, categories=("bottle",))
    cell, place = job.cell, job.place
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built = build_method(cell.method, cell.config, place.weights, torch.device("cpu"))
        states.append(torch.cat([p.flatten() for p in built.trained()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    with pytest.raises(RequestError, match="no method 'stfmp'"):
        build_method("stfmp", cell.config, place.weights, torch.device("cpu"))


@pytest.mark.parametrize(("fusion", "num_heldout"), [("sum", 0), ("mean_one", 4)])
def test_a_method_that_calibrates_in_one_config_gets_images_in_that_one(mvtec, tmp_path, fusion, num_heldout):
    (job,) = tiny_jobs(
        mvtec,
        tmp_path / "r",
        methods=("dskd",),
        setting=("multiclass",),
        set={"all.image_size": 64, "dskd.student_fusion": fusion},
    )
    images = ready_cell(job.cell, job.place).training_batches()
    assert len(images.heldout or []) == len(images.split.heldout) == num_heldout
