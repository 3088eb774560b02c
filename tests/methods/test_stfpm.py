"""STFPM's identities and numbers."""

import pytest
import torch
from conftest import smallest

from kdbench.backbone import pyramid
from kdbench.method import cosine_distance, gaussian_blur, unit_vectors, upsample
from kdbench.methods.stfpm import STFPM


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_half_the_squared_distance_of_unit_vectors_is_one_minus_cosine():
    t, s = torch.randn(2, 4, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    half = 0.5 * (unit_vectors(t) - unit_vectors(s)).square().sum(1)
    torch.testing.assert_close(half, cosine_distance(t, s), rtol=0, atol=1e-6)


def test_at_a_zero_vector_the_two_differ_as_stated():
    t, s = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
    assert cosine_distance(t, s).item() == pytest.approx(1.0)
    assert 0.5 * (unit_vectors(t) - unit_vectors(s)).square().sum().item() == pytest.approx(0.5)


def test_a_student_equal_to_the_teacher_has_loss_and_map_zero(images):
    method = smallest(STFPM, student_start="teacher").eval()
    taught = method.teacher(images)
    assert method.loss(images, taught).item() == 0
    assert method.anomaly_map(images, taught).abs().max() == 0


def test_loss_by_hand():
    method = smallest(STFPM, levels=(1,))
    taught = [torch.tensor([[[[3.0]], [[4.0]]]])]  # unit vector (0.6, 0.8)
    method.student.forward = lambda images: [torch.tensor([[[[0.0]], [[2.0]]]])]  # unit vector (0, 1)
    # 0.6^2 + 0.2^2 = 0.4, without the paper's factor 1/2
    assert method.loss(torch.zeros(1, 3, 8, 8), taught).item() == pytest.approx(0.4)


def test_the_half_scales_the_loss_and_leaves_the_ranking_of_maps(images):
    whole, half = smallest(STFPM), smallest(STFPM, loss_scale=0.5)
    taught = whole.teacher(images)
    assert half.eval().loss(images, taught).item() == pytest.approx(
        whole.eval().loss(images, taught).item() / 2
    )


def test_a_positive_factor_per_position_changes_neither_loss_nor_map(images):
    method = smallest(STFPM).eval()
    taught = method.teacher(images)
    scaled = [t * (0.5 + torch.rand(t.shape[0], 1, *t.shape[2:])) for t in taught]
    torch.testing.assert_close(method.loss(images, scaled), method.loss(images, taught))
    torch.testing.assert_close(method.anomaly_map(images, scaled), method.anomaly_map(images, taught))


def test_one_matched_level_is_a_zero_of_the_product_but_not_of_the_sum(images):
    product, add = smallest(STFPM).eval(), smallest(STFPM, fusion="sum").eval()
    taught = product.teacher(images)
    taught[1] = product.student(images)[1]
    assert product.anomaly_map(images, taught).max() < 1e-6
    assert add.anomaly_map(images, taught).max() > 0.1


def test_map_is_the_product_of_the_levels_at_64_then_at_image_size(images):
    method = smallest(STFPM).eval()
    taught = method.teacher(images)
    levels = [
        (unit_vectors(t) - unit_vectors(s)).square().sum(1)
        for t, s in zip(taught, method.student(images), strict=True)
    ]
    expected = upsample(upsample(levels[0], 64) * upsample(levels[1], 64) * upsample(levels[2], 64), 64)
    torch.testing.assert_close(method.anomaly_map(images, taught), expected)


def test_zero_features_have_a_finite_bounded_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (unit_vectors(torch.ones(1, 4, 2, 2)) - unit_vectors(features)).square().sum().backward()
    assert features.grad.abs().max() <= 1e7


def test_resnet18_has_the_published_number_of_parameters():
    student = pyramid("resnet18.tv_in1k", (1, 2, 3))
    assert sum(p.numel() for p in student.parameters()) == 2_782_784
    levels = student.eval()(torch.zeros(1, 3, 256, 256))
    assert [tuple(level.shape[1:]) for level in levels] == [(64, 64, 64), (128, 32, 32), (256, 16, 16)]


def test_defaults_are_those_of_the_official_code():
    config = STFPM.Config()
    assert (config.lr, config.momentum, config.weight_decay) == (0.4, 0.9, 1e-4)
    assert (config.batch_size, config.image_size, config.levels) == (32, 256, (1, 2, 3))
    assert STFPM.recipe("paper", "oneclass").get("epochs", config.epochs) == 200
    assert STFPM.recipe("paper", "multiclass")["epochs"] == 400
    assert (config.checkpoint, config.heldout_share) == ("heldout", 0.2)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_gaussian_blur_is_scipys(sigma):
    from scipy.ndimage import gaussian_filter

    maps = torch.rand(2, 40, 24, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([torch.from_numpy(gaussian_filter(m.numpy(), sigma)) for m in maps])
    torch.testing.assert_close(gaussian_blur(maps, sigma), expected, rtol=0, atol=1e-6)


def test_blur_wider_than_the_map_is_scipys():
    from scipy.ndimage import gaussian_filter

    maps = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(3))
    expected = torch.from_numpy(gaussian_filter(maps[0].numpy(), 4.0))
    torch.testing.assert_close(gaussian_blur(maps, 4.0)[0], expected, rtol=0, atol=1e-6)
