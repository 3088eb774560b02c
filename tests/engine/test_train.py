"""The training loop: which epoch is kept, precision, the hooks of a method, and what it refuses."""

import numpy as np
import pytest
import torch
from conftest import smallest

from kdbench.backbone import teacher
from kdbench.engine import train
from kdbench.engine.batches import Batches
from kdbench.engine.evaluate import score
from kdbench.methods.snl import SNL
from kdbench.methods.stfpm import STFPM
from kdbench.weights import find_weights

CPU = torch.device("cpu")


def build(**changes: object) -> STFPM:
    method: STFPM = smallest(STFPM, image_size=32, batch_size=4, **changes)
    return method


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def batches(method: STFPM, data: np.ndarray, *, cached: bool = True) -> Batches:
    return Batches(data, method.teacher, "tiny", device=CPU, precision="fp32", batch_size=4, cached=cached)


def fit(method: STFPM, heldout: bool = True, cached: bool = True, **hooks) -> train.History:
    hooks = {"on_step": lambda count: None, "on_epoch": lambda epoch: None} | hooks
    return train.fit(
        method,
        batches(method, pixels(10), cached=cached),
        batches(method, pixels(4, seed=9), cached=cached) if heldout else None,
        generator=torch.Generator().manual_seed(0),
        **hooks,
    )


def test_cached_and_recomputed_teachers_train_the_same():
    one, other = build(epochs=3), build(epochs=3)
    kept, anew = fit(one, cached=True), fit(other, cached=False)
    np.testing.assert_allclose([e.loss for e in kept.epochs], [e.loss for e in anew.epochs], rtol=1e-4)


def test_the_epoch_with_the_lowest_heldout_map_is_restored():
    method, seen = build(epochs=6, lr=2.0), {}

    def keep(epoch: train.Epoch) -> None:
        seen[epoch.number] = (epoch.heldout, {k: v.clone() for k, v in method.detector_state().items()})

    history = fit(method, on_epoch=keep)
    best = min(seen, key=lambda number: seen[number][0])
    assert history.best_epoch == best
    assert all(torch.equal(value, seen[best][1][key]) for key, value in method.detector_state().items())
    assert history.num_steps == 6 * 3


def test_without_a_heldout_split_the_last_epoch_stays():
    method = build(epochs=3)
    history = fit(method, heldout=False)
    assert history.best_epoch == 3
    assert [epoch.heldout for epoch in history.epochs] == [None] * 3


def test_a_loss_that_is_not_a_number_ends_the_training():
    method = build(epochs=2)
    method.loss = lambda images, taught: method.student.body.stem.weight.sum() * float("nan")
    with pytest.raises(train.TrainingDiverged, match="loss of epoch 1 is nan"):
        fit(method)


def test_bf16_networks_have_float32_losses_and_maps():
    method = build()
    data = Batches(
        pixels(4),
        method.teacher,
        "tiny",
        device=CPU,
        precision="bf16",
        batch_size=4,
    )
    index = torch.arange(4)
    images = data.images(index)
    assert data.taught(index, images)[0].dtype == torch.bfloat16
    with data.autocast:
        assert method.loss(images, data.taught(index, images)).dtype == torch.float32
        assert method.anomaly_map(images, data.taught(index, images)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whatever_looks_at_images_leaves_the_precision_as_it_was(precision):
    method = build()
    data = Batches(
        pixels(8), method.teacher, "tiny", device=CPU, precision=precision, batch_size=4, cached=False
    )
    train.Training(method, "fp32", torch.Generator())._heldout_mean(data)
    score(method, data, lambda count: None)
    train.Training(method, precision, torch.Generator()).epoch(data, data, lambda count: None)
    assert not torch.is_autocast_enabled("cpu")
    # A context that an outer one surrounds, too: fp32 is fp32 whatever ran before.
    with torch.autocast("cpu", torch.bfloat16):
        taught = data.taught(torch.arange(4), data.images(torch.arange(4)))
    assert taught[0].dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)


def test_one_kernel_updates_all_parameters_on_a_gpu_and_nothing_changes_on_a_cpu():
    layer = torch.nn.Linear(2, 2)
    for kind in (torch.optim.Adam, torch.optim.SGD):
        on_cpu, on_gpu = (
            train.fused(kind(layer.parameters(), lr=0.1), torch.device(d)) for d in ("cpu", "cuda")
        )
        assert (on_cpu.param_groups[0]["fused"], on_gpu.param_groups[0]["fused"]) == (None, True)
    # The same update but for rounding, also with the state that a checkpoint gave back.
    start, results = {k: v.clone() for k, v in layer.state_dict().items()}, []
    for device in ("cpu", "cuda"):
        layer.load_state_dict(start)
        optimizer = train.fused(torch.optim.Adam(layer.parameters(), lr=0.1), torch.device(device))
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(1, 2)).square().sum().backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        results.append(layer.weight.detach().clone())
    torch.testing.assert_close(*results)


class Watched(STFPM):
    """STFPM that keeps what the runner tells it, and what it prepares and calibrates, as a detector does."""

    calibrates = True

    def __init__(self, config, teacher):
        super().__init__(config, teacher)
        self.seen = []
        self.register_buffer("prepared", torch.zeros(3))
        self.register_buffer("calibrated", torch.zeros(()))

    def prepare(self, normals):
        images = torch.cat([images for images, _ in normals])
        self.prepared = torch.tensor([len(images), images.mean(), images.std()])

    def loss(self, images, taught):
        self.seen.append((self.step, self.num_steps, self.progress))
        return super().loss(images, taught)

    def calibrate(self, normals):
        assert not self.training
        maps = torch.cat([self.anomaly_map(images, taught) for images, taught in normals])
        self.calibrated = maps.amax()


def watched(**changes: object) -> Watched:
    config = Watched.Config(backbone="tiny", image_size=32, batch_size=4, epochs=2, **changes)
    torch.manual_seed(0)
    return Watched(config, teacher("tiny", config.levels, find_weights("tiny")))


def test_a_loss_knows_its_step_and_how_many_there_are():
    method = watched()
    fit(method)  # 10 images in batches of 4: three steps an epoch
    assert method.seen == [(i, 6, i / 6) for i in range(6)]


def test_a_method_prepares_on_the_training_images_and_calibrates_on_heldout_ones():
    method = watched()
    fit(method)
    images = batches(method, pixels(10)).images(torch.arange(10))
    torch.testing.assert_close(method.prepared, torch.tensor([10, images.mean(), images.std()]))
    heldout = batches(method, pixels(4, seed=9))
    maps = score(method.eval(), heldout, lambda count: None).maps
    assert method.calibrated.item() == pytest.approx(maps.max(), rel=1e-6)
    assert {"prepared", "calibrated"} <= method.detector_state().keys()


def test_a_method_prepares_in_the_precision_of_its_training():
    method = smallest(SNL, image_size=32, batch_size=4, epochs=1, decoder_start="teacher_scale")
    data = Batches(
        pixels(8), method.teacher, "tiny", device=CPU, precision="bf16", batch_size=4, cached=False
    )
    training = train.Training(method, "bf16", torch.Generator().manual_seed(0))
    assert training.epoch(data, None, lambda count: None).loss > 0


def test_heldout_images_for_calibration_do_not_choose_the_epoch_where_the_last_is_kept():
    method = watched(checkpoint="last")
    history = fit(method)
    assert history.best_epoch == 2
    assert all(epoch.heldout is not None for epoch in history.epochs)
    assert method.calibrated > 0
