"""The algebraic identities and parameter counts of DCAM, SNL, DSKD and RD4AD."""

import itertools

import pytest
import torch
from conftest import smallest
from pydantic import ValidationError
from torch import Tensor, nn

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import cosine_distance, divergence, flat_cosine_distance, squared_distance
from kdbench.methods._affinity import between, spatial_divergence, within
from kdbench.methods._attention import ChannelAttention, SpatialAttention
from kdbench.methods._cram import CRAM
from kdbench.methods._reverse import Bottleneck, Decoder
from kdbench.methods.dcam import DCAM
from kdbench.methods.dskd import DSKD
from kdbench.methods.rd4ad import RD4AD
from kdbench.methods.snl import SNL
from kdbench.methods.stfpm import STFPM


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def shapes_of(name: str) -> FeaturePyramid:
    """Channels and strides of a backbone, without building it."""
    channels = {"resnet18": [64, 128, 256]}.get(name, [256, 512, 1024])
    return FeaturePyramid(nn.Identity(), (1, 2, 3), channels, [4, 8, 16])


# --- RD4AD -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "bottleneck", "decoder"),
    [
        ("resnet18.tv_in1k", 11_680_000, 3_703_168),
        ("resnet50.tv_in1k", 30_829_568, 15_821_824),
        ("wide_resnet50_2.tv_in1k", 58_885_120, 24_917_504),
    ],
)
def test_bottleneck_and_decoder_have_the_published_numbers_of_parameters(backbone, bottleneck, decoder):
    shapes = shapes_of(backbone.partition(".")[0])
    with torch.device("meta"):
        embed = Bottleneck(shapes, backbone)
        rebuild = Decoder(embed.out_channels, shapes, backbone)
    assert parameters(embed) == bottleneck
    assert parameters(rebuild) == decoder


def test_resnet18_embedding_and_rebuilt_levels_have_the_published_shapes():
    shapes = shapes_of("resnet18")
    embed = Bottleneck(shapes, "resnet18.tv_in1k").eval()
    rebuild = Decoder(embed.out_channels, shapes, "resnet18.tv_in1k").eval()
    levels = [noise(1, 64, 64, 64), noise(1, 128, 32, 32), noise(1, 256, 16, 16)]
    with torch.no_grad():
        embedding = embed(levels)
        rebuilt = rebuild(embedding)
    assert embedding.shape == (1, 512, 8, 8)
    assert [tuple(level.shape) for level in rebuilt] == [tuple(level.shape) for level in levels]


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        (RD4AD, {"levels": (1, 3)}, "neighbouring levels"),
        (RD4AD, {"image_size": 240}, "a multiple of 32"),
        (SNL, {"image_size": 240}, "a multiple of 32"),
        (DSKD, {"image_size": 96, "levels": (2, 3, 4)}, "a multiple of 64"),
    ],
)
def test_what_no_decoder_can_rebuild_is_refused_before_anything_is_built(kind, wrong, said):
    with pytest.raises(ValidationError, match=said):
        kind.Config(**wrong)


def test_without_a_decoder_any_levels_and_sizes_will_do():
    SNL.Config(base="forward", levels=(1, 3), image_size=240)
    DSKD.Config(students="encoder", levels=(1, 3), image_size=240)


def test_flat_loss_ignores_a_factor_per_level_and_position_loss_one_per_position():
    t, s = noise(2, 8, 4, 4), noise(2, 8, 4, 4, seed=1)
    torch.testing.assert_close(flat_cosine_distance(3 * t, s), flat_cosine_distance(t, s))
    factors = torch.rand(2, 1, 4, 4) + 0.5
    torch.testing.assert_close(cosine_distance(factors * t, s), cosine_distance(t, s))
    assert (flat_cosine_distance(factors * t, s) - flat_cosine_distance(t, s)).abs().max() > 1e-3


def test_flat_and_position_agree_for_unit_vectors():
    t, s = (nn.functional.normalize(noise(2, 8, 4, 4, seed=i), dim=1) for i in (0, 1))
    torch.testing.assert_close(
        flat_cosine_distance(t, s), cosine_distance(t, s).mean((1, 2)), rtol=0, atol=1e-6
    )


def test_a_perfect_decoder_gives_loss_and_map_zero(images):
    method = smallest(RD4AD).eval()
    method.rebuilt = lambda taught: taught
    taught = [level + 1 for level in method.teacher(images)]
    assert method.loss(images, taught).item() == pytest.approx(0, abs=1e-5)
    assert method.anomaly_map(images, taught).max() < 1e-5


def test_learning_rate_drops_to_a_tenth_where_asked():
    method = smallest(RD4AD, epochs=10, lr_drop=0.8)
    optimizer = method.optimizer()
    scheduler, rates = method.scheduler(optimizer), []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([5e-3] * 8 + [5e-4] * 2)


# --- DCAM ------------------------------------------------------------------------------------------------


def dcam_loss(images: Tensor, **changes: object) -> float:
    method = smallest(DCAM, **changes).eval()
    for parameter in method.attention.parameters():  # gates that really differ from position to position
        parameter.data = noise(*parameter.shape, seed=parameter.numel())
    return method.loss(images, [t + 0.1 for t in method.teacher(images)]).item()


def test_channel_distance_without_attention_is_half_of_stfpm(images):
    ours, stfpm = smallest(DCAM, attention="none", kd="none").eval(), smallest(STFPM).eval()
    taught = [t + 0.1 for t in ours.teacher(images)]
    assert ours.loss(images, taught).item() == pytest.approx(stfpm.loss(images, taught).item() / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"attention": "spatial", "distance": "channel"}, {"attention": "none", "distance": "channel"}),
        ({"attention": "both", "distance": "channel"}, {"attention": "channel", "distance": "channel"}),
        ({"attention": "channel", "distance": "spatial"}, {"attention": "none", "distance": "spatial"}),
    ],
)
def test_attention_along_the_axis_that_the_cosine_ignores_is_a_no_op(images, one, other):
    assert dcam_loss(images, kd="none", **one) == pytest.approx(
        dcam_loss(images, kd="none", **other), rel=1e-4
    )


def test_the_ablation_grid_has_29_distinct_losses(images):
    losses = {
        cell: dcam_loss(images, attention=cell[0], distance=cell[1], kd=cell[2])
        for cell in itertools.product(
            ("none", "channel", "spatial", "both"),
            ("channel", "spatial", "none"),
            ("spatial", "channel", "none"),
        )
        if cell[1:] != ("none", "none")
    }
    assert len(losses) == 32
    assert len({f"{loss:.5f}" for loss in losses.values()}) == 29


def test_maps_and_detector_do_not_know_the_attention(images):
    with_it, without = smallest(DCAM), smallest(DCAM, attention="none")
    without.load_detector(with_it.detector_state())
    taught = with_it.teacher(images)
    assert torch.equal(with_it.eval().anomaly_map(images, taught), without.eval().anomaly_map(images, taught))
    assert not [key for key in with_it.detector_state() if "attention" in key]
    assert with_it.detector_state().keys() == smallest(STFPM).detector_state().keys()


def test_attention_has_the_published_numbers_of_parameters():
    channels = (64, 128, 256)
    assert sum(parameters(ChannelAttention(c, 8)) for c in channels) == 21_504
    assert sum(parameters(ChannelAttention(c, 16)) for c in channels) == 10_752
    assert sum(parameters(SpatialAttention()) for _ in channels) == 294


def test_attention_is_trained(images):
    method = smallest(DCAM, attention="both", ratio=1).train()
    method.loss(images, method.teacher(images)).backward()
    held = {id(p) for group in method.optimizer().param_groups for p in group["params"]}
    for parameter in method.attention.parameters():
        assert id(parameter) in held
        assert parameter.grad.abs().max() > 0


def test_channel_attention_by_hand():
    attend = ChannelAttention(2, 2)
    attend.mlp[0].weight.data = torch.tensor([[1.0, 1.0]])
    attend.mlp[2].weight.data = torch.tensor([[1.0], [-1.0]])
    f = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])  # means 2, 1; maxima 3, 2
    # hidden: 3 + 5 = 8 after ReLU of each; gates sigmoid(8), sigmoid(-8)
    gates = torch.sigmoid(torch.tensor([8.0, -8.0]))
    torch.testing.assert_close(attend(f), f * gates[None, :, None, None])


def test_divergence_is_zero_exactly_for_a_constant_per_channel_and_positive_else():
    method = smallest(DCAM)
    t = noise(2, 8, 4, 4)
    shifted = t + noise(1, 8, 1, 1, seed=3)
    assert method.divergence(t, shifted).item() == pytest.approx(0, abs=1e-6)
    assert method.divergence(t, noise(2, 8, 4, 4, seed=1)).item() > 0.1


def test_divergence_by_hand_and_its_reductions():
    t, s = torch.tensor([[[[0.0, 0.0]], [[0.0, 0.0]]]]), torch.zeros(1, 2, 1, 2)
    s[0, 0, 0, 0] = torch.tensor(
        3.0
    ).log()  # softmax 3/4, 1/4 against 1/2, 1/2 in channel 0; equal in channel 1
    kl = 0.5 * (torch.tensor(2 / 3).log() + torch.tensor(2.0).log())
    assert smallest(DCAM).divergence(t, s).item() == pytest.approx(kl.item() / 2)
    assert smallest(DCAM, kd_reduction="sum").divergence(t, s).item() == pytest.approx(kl.item())
    doubled = smallest(DCAM, temperature=2.0, kd_times_t2=True).divergence(2 * t, 2 * s).item()
    assert doubled == pytest.approx(4 * kl.item() / 2)


def test_without_a_loss_the_configuration_is_refused():
    with pytest.raises(ValidationError, match="no loss is left"):
        DCAM.Config(distance="none", kd="none")


# --- SNL -------------------------------------------------------------------------------------------------

PLAIN = {"alpha": 0.0, "intra": 0.0, "inter": 0.0, "cram": "none"}


def test_snl_without_its_components_is_rd4ad_bit_for_bit(images):
    snl, parent = smallest(SNL, channel="flat", **PLAIN), smallest(RD4AD)
    taught = parent.teacher(images)
    assert torch.equal(snl.train().loss(images, taught), parent.train().loss(images, taught))
    assert torch.equal(snl.eval().anomaly_map(images, taught), parent.eval().anomaly_map(images, taught))


def test_forward_snl_without_its_components_is_stfpm_with_a_sum(images):
    snl, parent = smallest(SNL, base="forward", **PLAIN), smallest(STFPM, fusion="sum", map_grid=0, sigma=4.0)
    taught = [t + 0.1 for t in parent.teacher(images)]
    snl, parent = snl.eval(), parent.eval()
    torch.testing.assert_close(2 * snl.loss(images, taught), parent.loss(images, taught))
    torch.testing.assert_close(2 * snl.anomaly_map(images, taught), parent.anomaly_map(images, taught))


@pytest.mark.parametrize("base", ["reverse", "forward"])
def test_a_student_equal_to_the_teacher_has_loss_zero(images, base):
    method = smallest(SNL, base=base, cram="none")
    taught = [t + 1 for t in method.teacher(images)]
    method.learned = lambda images, embedding: taught
    assert method.loss(images, taught).item() == pytest.approx(0, abs=1e-5)


def test_affinities_keep_what_they_should():
    f = noise(3, 8, 4, 4)
    turn = torch.linalg.qr(noise(8, 8, seed=2))[0]
    turned = torch.einsum("dc,bchw->bdhw", turn, f)
    torch.testing.assert_close(within(turned, 16), within(f, 16), rtol=0, atol=1e-5)
    scaled = f * (torch.rand(3, 1, 4, 4) + 0.5)
    torch.testing.assert_close(within(scaled, 16), within(f, 16), rtol=0, atol=1e-5)
    assert within(f, 16).shape == (3, 16, 16)
    assert within(noise(1, 4, 64, 64), 16).shape == (1, 256, 256)
    assert between(f).shape == (3, 3)
    torch.testing.assert_close(between(f[:1]), torch.ones(1, 1))


def test_spatial_divergence_is_zero_for_a_constant_per_channel():
    t = noise(2, 8, 4, 4)
    assert spatial_divergence(t, t + noise(1, 8, 1, 1, seed=3), 1.0).item() == pytest.approx(0, abs=1e-6)
    assert spatial_divergence(t, noise(2, 8, 4, 4, seed=1), 1.0).item() > 0.1


def test_loss_does_not_depend_on_the_order_of_the_images(images):
    method = smallest(SNL).eval()
    order = torch.tensor([2, 0, 1])
    taught = method.teacher(images)
    turned = method.loss(images[order], [t[order] for t in taught])
    torch.testing.assert_close(turned, method.loss(images, taught))


def test_cram_with_w_identity_and_no_output_layer_gives_x_back():
    cram = CRAM(8, 4)
    tokens = noise(2, 9, 8)
    cram.residual = nn.Identity()
    torch.testing.assert_close(cram.mixed(tokens), tokens)
    torch.testing.assert_close(cram.assignment(tokens).sum(-1), torch.ones(2, 9))


@pytest.mark.parametrize("per_position", [True, False])
def test_cram_keeps_the_shape_and_trains_every_centre(per_position):
    cram = CRAM(8, 4, per_position=per_position)
    out = cram(noise(2, 8, 3, 3))
    out.square().sum().backward()
    assert out.shape == (2, 8, 3, 3)
    assert (cram.centres.grad.abs().amax(1) > 0).all()


def test_cram_aggregates_what_the_definition_says():
    cram, tokens = CRAM(8, 4), noise(2, 9, 8)
    residuals = tokens[:, :, None] - cram.centres  # [B,N,K,C]
    weights = torch.softmax(-cram.scales * residuals.square().sum(-1), -1)
    torch.testing.assert_close(cram.assignment(tokens), weights)
    by_definition = (weights[..., None] * (cram.centres + cram.residual(residuals))).sum(2)
    torch.testing.assert_close(cram.mixed(tokens), by_definition, rtol=1e-4, atol=1e-5)


def test_cram_has_the_computed_number_of_parameters():
    with torch.device("meta"):
        cram = CRAM(2048, 64)
    assert cram.centres.numel() + cram.scales.numel() == 131_136
    assert parameters(cram.residual) == 2_097_152
    assert parameters(cram.output[0]) == 4_194_304


# --- DSKD ------------------------------------------------------------------------------------------------


def test_l2_is_twice_the_default_distance(images):
    one, two = smallest(DSKD).eval(), smallest(DSKD, distance="l2").eval()
    taught = one.teacher(images)
    torch.testing.assert_close(two.loss(images, taught), 2 * one.loss(images, taught))


def test_the_encoder_alone_is_stfpm(images):
    alone = smallest(DSKD, students="encoder", fusion="product", sigma=0.0).eval()
    stfpm = smallest(STFPM, map_grid=0).eval()
    taught = [t + 0.1 for t in stfpm.teacher(images)]
    assert not hasattr(alone, "decoder")
    torch.testing.assert_close(2 * alone.loss(images, taught), stfpm.loss(images, taught))


def test_the_decoder_alone_on_the_teacher_is_rd4ad(images):
    alone = smallest(DSKD, students="decoder", dfe_source="teacher", distance="flat")
    parent = smallest(RD4AD)
    taught = parent.teacher(images)
    assert not hasattr(alone, "encoder")
    assert torch.equal(alone.train().loss(images, taught), parent.train().loss(images, taught))
    assert torch.equal(alone.eval().anomaly_map(images, taught), parent.eval().anomaly_map(images, taught))


def test_detaching_stops_the_decoders_gradient_before_the_encoder(images):
    for detach in (False, True):
        method = smallest(DSKD, detach_dfe=detach).train()
        taught = method.teacher(images)
        decoded = method.learned(images, taught)[1]
        torch.stack(
            [cosine_distance(t, s).mean() for t, s in zip(taught, decoded, strict=True)]
        ).sum().backward()
        reached = any(p.grad is not None for p in method.encoder.parameters())
        assert reached != detach


def test_resnet18_dskd_has_the_computed_number_of_trained_parameters():
    encoder = pyramid("resnet18.tv_in1k", (1, 2, 3))
    embed = Bottleneck(shapes_of("resnet18"), "resnet18.tv_in1k")
    rebuild = Decoder(embed.out_channels, shapes_of("resnet18"), "resnet18.tv_in1k")
    assert sum(map(parameters, (encoder, embed, rebuild))) == 18_165_952
    deeper = pyramid("resnet18.tv_in1k", (1, 2, 3, 4))
    without = Decoder(deeper.channels[-1], shapes_of("resnet18"), "resnet18.tv_in1k")
    assert parameters(deeper) + parameters(without) == 14_879_680


def test_without_the_embedding_the_decoder_starts_from_the_next_level(images):
    method = smallest(DSKD, dfe="none")
    assert not hasattr(method, "dfe")
    taught = method.teacher(images)
    shapes = [[tuple(level.shape) for level in levels] for levels in method.learned(images, taught)]
    assert shapes == [[tuple(level.shape) for level in taught]] * 2


@pytest.mark.parametrize(("fusion", "expected"), [("sum", 0.9), ("product", 0.2), ("max", 0.5)])
def test_students_are_fused_as_asked(fusion, expected):
    method = smallest(DSKD, student_fusion=fusion, sigma=0.0, levels=(1,))
    taught = [torch.tensor([1.0, 0.0])[None, :, None, None]]
    cosines = (0.6, 0.5)  # of the encoder and the decoder: distances 0.4 and 0.5
    levels = [[torch.tensor([c, (1 - c**2) ** 0.5])[None, :, None, None]] for c in cosines]
    method.learned = lambda images, taught: levels
    found = method.anomaly_map(torch.zeros(1, 3, 4, 4), taught)
    torch.testing.assert_close(found, torch.full((1, 4, 4), expected))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dfe": "none", "dfe_source": "teacher"},
        {"students": "decoder", "detach_dfe": True},
        {"dfe": "none", "detach_dfe": True},
        {"dfe": "none", "levels": (2, 3, 4)},
    ],
)
def test_settings_that_would_be_ignored_are_refused(wrong):
    with pytest.raises(ValidationError):
        DSKD.Config(**wrong)


def formulas():
    """Each function of a loss, and its formula in float64."""

    def unit(x):
        return x / x.norm(dim=1, keepdim=True)

    def divergence_of(t, s, over):
        p, q = (torch.softmax(x.flatten(2) / 2, over) for x in (t, s))
        return (p * (p / q).log()).sum(over)

    flat = torch.nn.functional.cosine_similarity
    return {
        "squared": (squared_distance, lambda t, s: (unit(t) - unit(s)).square().sum(1)),
        "cosine": (cosine_distance, lambda t, s: 1 - (unit(t) * unit(s)).sum(1)),
        "flat": (flat_cosine_distance, lambda t, s: 1 - flat(t.flatten(1), s.flatten(1))),
        "channels": (lambda t, s: divergence(t, s, 2.0), lambda t, s: divergence_of(t, s, 2)),
        "places": (
            lambda t, s: divergence(t, s, 2.0, of_places=True),
            lambda t, s: divergence_of(t, s, 1),
        ),
    }


@pytest.mark.parametrize("name", formulas())
def test_a_loss_and_its_gradient_are_those_of_the_formula(name):
    function, formula = formulas()[name]
    t, s = torch.randn(
        2, 2, 5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    last = [x.float().contiguous(memory_format=torch.channels_last) for x in (t, s)]
    value, expected = function(*last), formula(t, s)
    torch.testing.assert_close(value.double(), expected, rtol=0, atol=1e-6)
    weight = torch.rand(expected.shape, dtype=torch.float64)
    for found, wanted in zip(
        torch.autograd.grad((value * weight).sum(), last),
        torch.autograd.grad((expected * weight).sum(), (t, s)),
        strict=True,
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6)


def test_a_small_distance_keeps_its_digits():
    t = torch.randn(1, 64, 8, 8)
    s = t + 7e-5 * torch.randn_like(t)
    unit = [x.double() / x.double().norm(dim=1, keepdim=True) for x in (t, s)]
    expected = (unit[0] - unit[1]).square().sum(1)
    assert expected.max() < 1e-8
    torch.testing.assert_close(squared_distance(t, s).double(), expected, rtol=2e-3, atol=0)
    assert (2 * cosine_distance(t, s) - expected).abs().max() > expected.max()  # why maps do not use it
