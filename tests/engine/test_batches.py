"""Batches: normalised images, where the teacher's levels are kept, and the held-out split."""

from itertools import pairwise

import numpy as np
import psutil
import pytest
import torch
from conftest import smallest

from kdbench import machine
from kdbench.engine.batches import CACHE_SHARE, Batches, split_heldout
from kdbench.methods.stfpm import STFPM

CPU = torch.device("cpu")


def build(**changes: object) -> STFPM:
    method: STFPM = smallest(STFPM, image_size=32, batch_size=4, **changes)
    return method


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def batches(method: STFPM, data: np.ndarray, *, cached: bool = True) -> Batches:
    return Batches(data, method.teacher, "tiny", device=CPU, precision="fp32", batch_size=4, cached=cached)


def test_images_are_normalised_as_the_backbone_wants_and_lie_in_channels_last_order():
    method = build()
    data = batches(method, pixels(3))
    images = data.images(torch.arange(3))
    expected = (pixels(3).transpose(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_features_that_do_not_fit_are_recomputed(monkeypatch):
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: 1000)
    assert batches(build(), pixels(10)).cache == "recomputed"
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: 10**9)
    assert batches(build(), pixels(10)).cache == "device"


def test_every_image_is_seen_once_an_epoch_in_an_order_of_the_seed():
    data = batches(build(), pixels(10))
    orders = [
        torch.cat(list(data.shuffled(torch.Generator().manual_seed(seed)))).tolist() for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(10))
    assert [len(b) for b in data.in_order()] == [4, 4, 2]


def test_features_of_all_images_are_in_memory_once(monkeypatch):
    """The peak is what a cell may take, not twice that while batches are joined."""
    method, count = build(), 512
    data = batches(method, pixels(count), cached=False)
    one = sum(level.nbytes for level in data.taught(torch.arange(1), data.images(torch.arange(1))))
    monkeypatch.setattr(torch, "cat", lambda *a, **k: pytest.fail("joined"))
    kept = batches(method, pixels(count))
    assert kept.cache == "device"
    assert sum(level.nbytes for level in kept.levels) == count * one
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in kept.levels)


@pytest.mark.parametrize(("physical", "allowed"), [(4, 4), (4, 8), (32, 4)])
def test_a_cell_may_keep_as_much_as_its_part_of_the_cores(monkeypatch, physical, allowed):
    data = pixels(10)
    one = batches(build(), data)
    needed = sum(level.nbytes for level in one.levels)
    # A container has some of the cores of its machine; of two threads of a core torch uses one.
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical * torch.get_num_threads())
    monkeypatch.setattr(machine, "cores", lambda: allowed * torch.get_num_threads())
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: int(needed / CACHE_SHARE) + 1)
    assert batches(build(), data).cache == "recomputed"
    monkeypatch.setattr(
        "kdbench.engine.batches.free_memory", lambda device: int(4 * needed / CACHE_SHARE) + 4
    )
    assert batches(build(), data).cache == "device"


@pytest.mark.parametrize(("counts", "expected"), [((10,), 2), ((5, 100), 21), ((2, 2), 2), ((3,), 1)])
def test_heldout_takes_its_share_of_every_category(counts, expected):
    kept, aside = split_heldout(counts, 0.2, seed=0)
    assert len(aside) == expected
    assert sorted([*kept, *aside]) == list(range(sum(counts)))
    edges = np.cumsum([0, *counts])
    for low, high in pairwise(edges):
        assert ((aside >= low) & (aside < high)).any()
        assert ((kept >= low) & (kept < high)).any()


def test_the_split_follows_the_seed():
    first, again, other = (split_heldout([50], 0.2, seed)[1].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_one_train_image_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2 train images"):
        split_heldout([1], 0.2, 0)
