"""Teacher features on disk: the same bits as on the device, computed once, and only where there is room."""

from collections import namedtuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, slow_but

from kdbench.backbone import teacher
from kdbench.engine import features
from kdbench.engine.batches import Batches
from kdbench.engine.features import Shared
from kdbench.metrics.exact import METRICS
from kdbench.weights import find_weights

CPU = torch.device("cpu")


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def shared(rows: list[int], made_by: str = "a teacher") -> Shared:
    """Two stores of 5 and 6 images."""
    return Shared(
        names=["one", "two"], pixels=[images(5), images(6, seed=1)], rows=np.array(rows), made_by=made_by
    )


def batches(source: Shared, precision="fp32", batch_size=4) -> Batches:
    pixels = np.concatenate(source.pixels)[source.rows]
    built = teacher("tiny", (1, 2), find_weights("tiny")).to(memory_format=torch.channels_last)
    return Batches(
        pixels, built, "tiny", device=CPU, precision=precision, batch_size=batch_size, shared=source
    )


def never(pixels: np.ndarray) -> list[torch.Tensor]:
    raise AssertionError("computed although it is there")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_on_disk_are_those_on_the_device_bit_for_bit(monkeypatch, precision):
    source = shared([10, 0, 4, 5, 7])
    kept = batches(source, precision, batch_size=1)  # the company in a batch may change the last bit
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: 0)
    stored = batches(source, precision, batch_size=1)
    assert (kept.cache, stored.cache) == ("device", "disk")
    index = torch.tensor([4, 1, 0])
    ones, others = (data.taught(index, data.images(index)) for data in (kept, stored))
    assert len(ones) == 2
    for one, other in zip(ones, others, strict=True):
        assert one.dtype == other.dtype
        assert one.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
        assert torch.equal(one, other)
        assert other.is_contiguous(memory_format=torch.channels_last)


def test_features_are_computed_once_and_of_another_teacher_again(monkeypatch):
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: 0)
    batches(shared([0, 1]))
    again = shared([3, 9]).open(never, batch_size=4)
    assert [tuple(level.shape) for level in again.take(torch.tensor([0, 1]))] == [(2, 8, 8, 8), (2, 16, 4, 4)]
    with pytest.raises(AssertionError, match="computed although"):
        shared([0], made_by="another teacher").open(never, batch_size=4)


def test_nothing_is_stored_where_the_disk_has_no_room(monkeypatch):
    usage = namedtuple("usage", "free")
    need = 11 * 4 * (8 * 8 * 8 + 16 * 4 * 4)
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: 0)
    monkeypatch.setattr(
        features.shutil, "disk_usage", lambda folder: usage(free=need / features.DISK_SHARE - 1)
    )
    assert batches(shared([0, 1])).cache == "recomputed"
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage(free=need / features.DISK_SHARE))
    assert batches(shared([0, 1])).cache == "disk"
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: usage(free=0))
    assert batches(shared([0, 1])).cache == "disk"  # it is there already


def test_a_broken_off_store_is_not_there(monkeypatch, tmp_path):
    def breaks(pixels: np.ndarray) -> list[torch.Tensor]:
        raise MemoryError

    with pytest.raises(MemoryError):
        shared([0]).open(breaks, batch_size=4)
    assert not [path for path in (tmp_path / "cache/features").iterdir() if path.is_dir()]


@pytest.mark.parametrize("method", slow_but(["rd4ad"], "stfpm"))
def test_a_cell_gives_the_same_rows_wherever_its_features_are(kdbench, mvtec, tmp_path, monkeypatch, method):
    words = ["run", "--methods", method, "--dataset", "mvtec_ad", "--root", mvtec, *TINY]
    words += ["--setting", "multiclass", "--set", f"{method}.checkpoint=heldout"]
    assert kdbench(*words, "--results", tmp_path / "device")[0] == 0
    monkeypatch.setattr("kdbench.engine.batches.free_memory", lambda device: 0)
    assert kdbench(*words, "--results", tmp_path / "disk")[0] == 0
    found = {where: pd.read_parquet(tmp_path / where / "cells") for where in ("device", "disk")}
    for where, rows in found.items():
        assert set(rows.teacher_cache) == {where}
    for name in ("epoch_loss", "epoch_heldout"):
        one, other = (np.stack(found[where][name]) for where in found)
        np.testing.assert_allclose(one, other, rtol=1e-5)
    columns = ["category", *METRICS]
    pd.testing.assert_frame_equal(found["device"][columns], found["disk"][columns], rtol=1e-4)
