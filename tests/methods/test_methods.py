"""The contract: what holds for every method found in the folder, on three convolutions and a few images."""

import copy
import inspect
from datetime import UTC, datetime
from typing import get_args

import pytest
import torch
from conftest import smallest
from pydantic import ValidationError
from torch import Tensor

from kdbench.method import Family, Method
from kdbench.registry import FAMILIES, get_method, method_names

pytestmark = pytest.mark.parametrize("name", method_names())
SIZE = 64


def some_images(count: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear") * 2 - 1


def train_steps(method: Method, steps: int = 12) -> list[float]:
    images, optimizer, losses = some_images(), method.optimizer(), []
    method.train()
    for _ in range(steps):
        loss = method.loss(images, method.teacher(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def maps_of(method: Method, images: Tensor) -> Tensor:
    method.eval()
    return method.anomaly_map(images, method.teacher(images))


def test_is_called_as_its_file(name):
    assert get_method(name).name == name


def test_map_has_the_size_of_the_images_and_the_score_is_one_number_each(name):
    method, images = smallest(name), some_images()
    maps = maps_of(method, images)
    assert maps.shape == (4, SIZE, SIZE)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert method.image_score(maps).shape == (4,)


def test_untrained_loss_is_a_finite_positive_scalar(name):
    method, images = smallest(name).train(), some_images()
    loss = method.loss(images, method.teacher(images))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert 0.01 < loss.item() < float("inf")


def test_losses_and_maps_are_float32_and_stay_near_when_networks_run_in_bf16(name):
    method, images = smallest(name), some_images()
    taught, low = method.teacher(images), torch.autocast("cpu", torch.bfloat16)
    maps = maps_of(method, images)
    with low:
        low_maps = maps_of(method, images)
    method.train()
    loss = method.loss(images, taught).item()
    with low:
        low_loss = method.loss(images, taught)
    assert low_loss.dtype == low_maps.dtype == torch.float32
    assert low_loss.item() == pytest.approx(loss, rel=0.02)
    assert (low_maps - maps).abs().max() < 0.05 * maps.max()


def test_loss_falls(name):
    losses = train_steps(smallest(name))
    assert min(losses[-3:]) < 0.8 * losses[0], losses


def test_teacher_stays_as_it_was_and_in_eval(name):
    method = smallest(name)
    before = copy.deepcopy(method.teacher.state_dict())
    train_steps(method, steps=3)
    assert not method.teacher.training
    assert not any(module.training for module in method.teacher.modules())
    assert not any(p.requires_grad for p in method.teacher.parameters())
    after = method.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_optimizer_holds_everything_that_is_trained_and_nothing_of_the_teacher(name):
    method = smallest(name)
    held = {id(p) for group in method.optimizer().param_groups for p in group["params"]}
    assert held == {id(p) for p in method.trained()}
    assert not held & {id(p) for p in method.teacher.parameters()}


def test_every_trained_parameter_gets_a_gradient(name):
    method, images = smallest(name).train(), some_images()
    for method.step, method.num_steps in ((0, 10), (9, 10)):  # a training may have phases
        method.loss(images, method.teacher(images)).backward()
    without = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_map_of_an_image_does_not_depend_on_its_batch(name):
    method, images = smallest(name), some_images()
    train_steps(method, steps=3)
    alone = torch.cat([maps_of(method, image[None]) for image in images])
    torch.testing.assert_close(maps_of(method, images), alone, rtol=1e-4, atol=1e-6)


def test_black_images_give_finite_loss_and_gradients(name):
    method, images = smallest(name).train(), torch.zeros(4, 3, SIZE, SIZE)
    taught = [torch.zeros_like(level) for level in method.teacher(images)]
    method.loss(images, taught).backward()
    assert all(p.grad.isfinite().all() for p in method.trained() if p.grad is not None)
    assert maps_of(method, images).isfinite().all()


def test_state_restores_equal_maps_in_a_new_object(name):
    method, images = smallest(name), some_images()
    train_steps(method, steps=3)
    other = smallest(name, seed=7)
    assert not torch.equal(maps_of(method, images), maps_of(other, images))
    other.load_detector(copy.deepcopy(method.detector_state()))
    assert torch.equal(maps_of(method, images), maps_of(other, images))
    assert not [key for key in method.detector_state() if key.startswith("teacher.")]


def test_a_state_with_a_missing_or_an_unknown_name_is_refused(name):
    state = smallest(name).detector_state()
    first = next(iter(state))
    with pytest.raises(RuntimeError, match="missing"):
        smallest(name).load_detector({key: value for key, value in state.items() if key != first})
    with pytest.raises(RuntimeError, match="unknown"):
        smallest(name).load_detector(state | {"no_such_tensor": torch.zeros(1)})


def test_same_seed_same_result_and_another_seed_another(name):
    def run(seed: int) -> Tensor:
        method = smallest(name, seed=seed)
        train_steps(method, steps=3)
        return maps_of(method, some_images())

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_config_survives_json_and_refuses_unknown_keys_and_wrong_values(name):
    kind = get_method(name)
    config = kind.Config()
    assert kind.Config.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="extra"):
        kind.Config(no_such_key=1)
    for wrong in ({"epochs": 0}, {"batch_size": -1}, {"lr": float("nan")}, {"levels": ()}):
        with pytest.raises(ValidationError):
            kind.Config(**wrong)
    with pytest.raises(ValidationError, match="frozen"):
        config.epochs = 3


def test_recipes_are_valid_for_every_profile_and_setting(name):
    kind = get_method(name)
    for profile in ("paper", "demo"):
        for setting in ("oneclass", "multiclass"):
            kind.Config(**kind.recipe(profile, setting))


def test_file_is_short_and_says_what_it_is_after(name):
    kind = get_method(name)
    source = inspect.getsource(inspect.getmodule(kind))
    assert kind.paper.startswith(("arXiv:", "CVPR "))
    assert kind.paper.removeprefix("arXiv:") in source
    assert kind.family in get_args(Family)
    assert [*get_args(Family), ""] == [*FAMILIES]
    assert 2000 <= kind.year <= datetime.now(UTC).year
    assert kind.licence
    assert kind.fidelity in ("official recipe", "author's code, partly", "after the abstract")
    if kind.__module__.startswith("kdbench."):
        assert len(source.splitlines()) <= 130  # it reads like its paper
