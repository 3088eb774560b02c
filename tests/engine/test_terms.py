"""What drives a training is measured without a change of the training."""

import json

import numpy as np
import pytest
import torch
from conftest import smallest

from kdbench.backbone import teacher
from kdbench.engine import train
from kdbench.engine.batches import Batches
from kdbench.engine.terms import columns_of, differentiated_steps, gradient_norms, watched_steps
from kdbench.method import Method
from kdbench.registry import get_method, method_names
from kdbench.weights import find_weights

CPU = torch.device("cpu")


def build(name: str, **changes: object) -> Method:
    method: Method = smallest(name, **{"batch_size": 2, "epochs": 2} | changes)
    return method


def batches(method: Method, count: int) -> Batches:
    size = method.config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    options = {"device": CPU, "precision": "fp32", "batch_size": method.config.batch_size, "cached": True}
    return Batches(pixels, method.teacher, method.config.backbone, **options)


def state_of(method: Method) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def test_the_steps_to_look_at():
    assert watched_steps(1000) == (0, 999, 100, 10)
    assert watched_steps(3) == (0, 2)
    assert watched_steps(1) == (0,)
    assert differentiated_steps(1000, 4) == (0, 999, 100, 10)
    assert differentiated_steps(1000, 1) == (0, 999, 100, 10)
    assert differentiated_steps(141, 2) == (0,)
    assert differentiated_steps(141, 4) == ()


@pytest.mark.parametrize("name", method_names())
def test_training_is_bit_for_bit_that_of_a_plain_loop(name, monkeypatch):
    """Loss, backward, step: with gradients measured at every watched step, nothing else happens."""
    monkeypatch.setattr(
        "kdbench.engine.train.differentiated_steps", lambda steps, terms: watched_steps(steps)
    )
    watched, plain = build(name), build(name)
    data = batches(watched, 6)
    history = train.fit(
        watched,
        data,
        None,
        generator=torch.Generator().manual_seed(0),
        on_step=lambda count: None,
        on_epoch=lambda epoch: None,
    )
    optimizer, generator = plain.optimizer(), torch.Generator().manual_seed(0)
    scheduler = plain.scheduler(optimizer)
    torch.manual_seed(0)
    build(name)  # as many draws as the start of the network took
    plain.prepare(data.pairs())
    plain.num_steps, plain.step = 6, 0
    for _ in range(2):
        order = data.shuffled(generator)
        plain.train()
        for index in order:
            images = data.images(index)
            loss = plain.loss(images, data.taught(index, images))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if scheduler and plain.scheduler_every == "step":
                scheduler.step()
            plain.step += 1
        if scheduler and plain.scheduler_every == "epoch":
            scheduler.step()
    expected = plain.state_dict()
    for key, tensor in watched.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    assert {term.step for term in history.terms} == {0, 5}
    assert all(term.gradient is None or term.gradient >= 0 for term in history.terms)


@pytest.mark.parametrize(("name", "terms"), [("snl", 4), ("dskd", 2), ("dcam", 2), ("rdpp", 3), ("stfpm", 1)])
def test_terms_add_up_to_the_loss_and_their_gradients_to_its_gradient(name, terms):
    method = build(name).train()
    data = batches(method, 2)
    images = data.images(torch.arange(2))
    taught = data.taught(torch.arange(2), images)
    torch.manual_seed(1)
    found = method.terms(images, taught)
    assert len(found) == terms
    norms = gradient_norms(found, method.trained(), torch.amp.GradScaler("cpu", enabled=False))
    torch.stack([term.sum() for term in found.values()]).sum().backward()
    whole = torch.stack([p.grad.norm() for p in method.trained() if p.grad is not None]).norm().item()
    assert norms.keys() == found.keys()
    assert max(norms.values()) * 0.5 < whole <= sum(norms.values()) * (1 + 1e-4)
    assert terms > 1 or norms["loss"] == pytest.approx(whole, rel=1e-5)


def test_a_loss_of_ones_own_is_one_term():
    class Own(get_method("snl")):
        def loss(self, images, taught):
            return 2 * super().loss(images, taught)

    config = Own.Config(backbone="tiny", image_size=64, batch_size=2, epochs=1)
    method = Own(config, teacher("tiny", config.levels, find_weights("tiny")))
    history = train.fit(
        method,
        batches(method, 4),
        None,
        generator=torch.Generator(),
        on_step=lambda count: None,
        on_epoch=lambda epoch: None,
    )
    assert {term.name for term in history.terms} == {"loss"}
    assert history.epochs[0].loss == pytest.approx(np.mean([term.value for term in history.terms]))


def test_drivers_survive_a_checkpoint_and_become_lists_of_equal_length():
    method = build("dcam")
    data = batches(method, 6)
    training = train.Training(method, "fp32", torch.Generator())
    training.epoch(data, None, lambda count: None)
    resumed = train.Training(build("dcam"), "fp32", torch.Generator())
    resumed.resume(training.state())
    assert resumed.history.terms == training.history.terms != []
    columns = columns_of(resumed.history.terms)
    assert columns["term_names"][:3] == ["cosine", "divergence", "spread of gate 1"]
    assert len({len(values) for values in columns.values()}) == 1
    assert columns["term_gradients"][2] is None
    json.dumps(columns)
