"""The switches of SNL, DSKD and DCAM: what each says is what it computes."""

import math

import pytest
import torch
from conftest import smallest
from pydantic import ValidationError
from torch import Tensor

from kdbench.backbone import pyramid
from kdbench.method import cosine_distance, flat_cosine_distance, total
from kdbench.methods._affinity import (
    between_levels,
    between_tokens,
    gap,
    gaps_between,
    spatial_divergence,
    within,
)
from kdbench.methods._attention import ChannelAttention, MeanGate
from kdbench.methods._forward import start_student
from kdbench.methods.dcam import DCAM
from kdbench.methods.dskd import DSKD
from kdbench.methods.rd4ad import RD4AD
from kdbench.methods.recontrast import ReContrast
from kdbench.methods.snl import SNL

KL = 0.5 * (math.log(2 / 3) + math.log(2))  # of 3/4, 1/4 from 1/2, 1/2


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


# --- Config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SNL, DSKD, RD4AD, ReContrast])
def test_younger_keys_are_written_only_where_they_are_not_the_default(kind):
    written = kind.Config().model_dump(mode="json")
    assert not {"beta2", "warmup", "clip", "kl_reduction", "encoder_rate"} & written.keys()
    changed = kind.Config(beta2=0.99, warmup=10)
    assert changed.model_dump(mode="json") == written | {"beta2": 0.99, "warmup": 10}
    assert kind.Config.model_validate(changed.model_dump(mode="json")) == changed
    with pytest.raises(ValidationError):
        kind.Config(clip=-1.0)


@pytest.mark.parametrize("change", [{"cram": "levels"}, {"decoder_start": "teacher_scale"}, {"centre": 1.0}])
def test_what_the_forward_base_would_ignore_is_refused(change):
    with pytest.raises(ValidationError, match="base 'forward' has no embedding"):
        SNL.Config(base="forward", **change)


# --- The optimizer ---------------------------------------------------------------------------------------


def test_the_rate_rises_in_a_line_then_stays_then_drops():
    method = smallest(RD4AD, warmup=4, lr_drop=0.8, epochs=5)
    optimizer = method.optimizer()
    scheduler, rates = method.scheduler(optimizer), []
    assert method.scheduler_every == "step"
    method.num_steps = 10
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.00125, 0.0025, 0.00375, *[0.005] * 5, *[0.0005] * 2])


@pytest.mark.parametrize("kind", [SNL, DSKD, RD4AD, ReContrast])
def test_the_gradient_is_clipped_before_the_step(kind, images):
    method = smallest(kind, clip=0.01)
    optimizer = method.optimizer()
    method.train().loss(images, method.teacher(images)).backward()
    optimizer.step()
    norm = torch.stack([p.grad.norm() for p in method.trained() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_beta2_reaches_the_optimizer_of_every_reverse_method():
    for kind in (SNL, DSKD, RD4AD, ReContrast):
        betas = smallest(kind, beta2=0.9).optimizer().param_groups[0]["betas"]
        assert betas == (kind.Config().beta1, 0.9)


# --- SNL -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reduction", "expected"), [("channel_mean", KL / 2), ("sum", KL), ("mean_all", KL / 4)]
)
def test_reductions_of_the_divergence_by_hand(reduction, expected):
    t, s = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    s[0, 0, 0, 0] = math.log(3)  # softmax 3/4, 1/4 in channel 0; equal in channel 1
    assert spatial_divergence(t, s, 1.0, reduction).item() == pytest.approx(expected, rel=1e-6)
    assert spatial_divergence(2 * t, 2 * s, 2.0, reduction).item() == pytest.approx(4 * expected, rel=1e-6)
    plain = spatial_divergence(2 * t, 2 * s, 2.0, reduction, times_tau2=False)
    assert plain.item() == pytest.approx(expected, rel=1e-6)


def test_channels_scaled_over_positions_have_their_number_as_trace():
    f = noise(2, 8, 4, 4).abs()
    products = within(f, 16, "channel")
    assert products.shape == (2, 16, 16)
    torch.testing.assert_close(products.diagonal(dim1=1, dim2=2).sum(1), torch.full((2,), 8.0))
    flat = f.flatten(2)
    unit = flat / flat.norm(dim=2, keepdim=True)
    torch.testing.assert_close(products, torch.einsum("bci,bcj->bij", unit, unit))


def test_the_gap_is_a_mean_square_or_its_root_per_image():
    s, t = torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)
    s[0, 0, 0], s[1, 0, 1] = 2.0, 6.0
    assert gap(s, t, 2).item() == pytest.approx((4 + 36) / 8)
    assert gap(s, t, 1).item() == pytest.approx((1 + 3) / 2, rel=1e-5)  # sqrt(4 / 4), sqrt(36 / 4)
    equal = t.clone().requires_grad_()
    gap(equal, t, 1).backward()
    assert equal.grad.abs().max() < 1e-3  # finite where both are equal


def test_inter_affinities_over_tokens_and_levels_by_definition():
    fine, coarse = noise(2, 3, 8, 8), noise(2, 5, 4, 4, seed=1)
    cosines = between_tokens(coarse, 4)
    tokens = coarse.permute(0, 2, 3, 1).reshape(32, 5)
    expected = torch.nn.functional.cosine_similarity(tokens[:, None], tokens[None], dim=2)
    torch.testing.assert_close(cosines, expected)
    small = torch.nn.functional.avg_pool2d(fine, 2).flatten(2)
    expected = torch.nn.functional.cosine_similarity(small[:, :, None], coarse.flatten(2)[:, None], dim=3)
    torch.testing.assert_close(between_levels(fine, coarse, 16), expected)
    taught, learned = [fine, coarse], [2 * fine, -coarse]
    assert len(gaps_between(taught, learned, "images", 16, 2)) == 2
    assert [g.item() for g in gaps_between(taught, learned, "tokens", 16, 2)] == pytest.approx(
        [0, 0], abs=1e-6
    )
    across = gaps_between(taught, learned, "levels", 16, 2)  # the sign of one level changes every cosine
    assert [g.item() for g in across] == pytest.approx([4 * expected.square().mean().item()])


@pytest.mark.parametrize(
    "change",
    [
        {"kl_reduction": "sum"},
        {"kl_reduction": "mean_all"},
        {"kl_times_tau2": False, "tau": 2.0},
        {"affinity_scaling": "channel"},
        {"affinity_power": 1},
        {"inter_over": "tokens"},
        {"inter_over": "levels"},
        {"centre": 0.5},
    ],
)
def test_every_switch_of_the_loss_changes_its_own_term_only(images, change):
    own = {"kl": "divergence", "af": "intra", "in": "inter", "ce": "centre"}[next(iter(change))[:2]]
    default = smallest(SNL, tau=change.get("tau", 1.0)).train()
    changed = smallest(SNL, **change).train()
    taught = default.teacher(images)
    before, after = default.terms(images, taught), changed.terms(images, taught)
    for name in before.keys() - {own, "inter"}:
        assert torch.equal(before[name], after[name])
    assert own not in before or not math.isclose(before[own].sum().item(), after[own].sum().item())
    assert torch.equal(changed.loss(images, taught) * 0, total(after) * 0)


def test_the_centre_is_the_cosine_to_one_learned_map(images):
    method = smallest(SNL, centre=0.5).train()
    taught = method.teacher(images)
    embedding = method.embedding(taught)
    assert method.centre.shape[1:] == embedding.shape[1:]
    expected = 0.5 * (1 - torch.nn.functional.cosine_similarity(embedding, method.centre, dim=1)).mean()
    torch.testing.assert_close(method.terms(images, taught)["centre"].squeeze(), expected)
    assert any(p is method.centre for p in method.trained())


def test_cram_behind_each_level_of_the_decoder(images):
    method = smallest(SNL, cram="levels").train()
    assert [len(cram.centres[0]) for cram in method.cram] == method.teacher.channels
    taught = method.teacher(images)
    embedding = method.embedding(taught)
    bare = method.decoder(embedding)
    expected = [cram(level) for cram, level in zip(method.cram, bare, strict=True)]
    for found, level in zip(method.learned(images, embedding), expected, strict=True):
        torch.testing.assert_close(found, level)


def test_a_decoder_that_starts_at_the_teachers_scale(images):
    method = smallest(SNL, decoder_start="teacher_scale", cram="none").train()
    taught = method.teacher(images)

    def lengths(levels: list[Tensor]) -> list[float]:
        return [level.norm(dim=1).mean().item() for level in levels]

    before = lengths(method.learned(images, method.embedding(taught)))
    method.prepare([(images, taught)])
    after = lengths(method.learned(images, method.embedding(taught)))
    assert max(abs(b / t - 1) for b, t in zip(before, lengths(taught), strict=True)) > 0.2
    assert after == pytest.approx(lengths(taught), rel=0.02)  # the eps of normalisations


# --- DSKD ------------------------------------------------------------------------------------------------


def test_the_flat_distance_of_both_students(images):
    method = smallest(DSKD, distance="flat", decoder_weight=0.25).train()
    taught = method.teacher(images)
    encoded, decoded = method.learned(images, taught)
    terms = smallest(DSKD, distance="flat", decoder_weight=0.25).train().terms(images, taught)

    def flat(levels: list[Tensor]) -> Tensor:
        return torch.stack(
            [flat_cosine_distance(t, s).mean() for t, s in zip(taught, levels, strict=True)]
        ).sum()

    torch.testing.assert_close(terms["encoder"], flat(encoded))
    torch.testing.assert_close(terms["decoder"], flat(decoded) / 4)


def test_the_encoder_has_a_rate_of_its_own():
    method = smallest(DSKD, encoder_rate=0.2, warmup=2)
    optimizer = method.optimizer()
    encoder, rest = optimizer.param_groups
    assert (encoder["lr"], rest["lr"]) == (pytest.approx(1e-3), 5e-3)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in method.encoder.parameters()}
    assert len(encoder["params"]) + len(rest["params"]) == len(method.trained())
    method.scheduler(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5e-4, 2.5e-3])
    assert len(smallest(DSKD, students="encoder", encoder_rate=0.2).optimizer().param_groups[0]["params"]) > 0


def test_an_encoder_whose_blocks_start_as_their_shortcuts():
    student = pyramid("resnet18.tv_in1k", (1, 2))
    start_student(student, student, "zero_last")
    blocks = [student.body.layer1[0], student.body.layer1[1], student.body.layer2[1]]
    x = noise(1, 64, 8, 8).relu()
    assert torch.equal(blocks[0].eval()(x), x)
    assert all((block.bn2.weight == 0).all() for block in blocks)


def test_starts_of_the_encoder(images):
    same = smallest(DSKD, encoder_start="teacher").eval()
    assert same.terms(images, same.teacher(images))["encoder"].item() == pytest.approx(0, abs=1e-5)
    with pytest.raises(ValueError, match="the backbone has none"):
        smallest(DSKD, encoder_start="zero_last")
    with pytest.raises(ValidationError, match="has no encoder"):
        DSKD.Config(students="decoder", dfe_source="teacher", encoder_rate=0.5)
    with pytest.raises(ValidationError, match="the teacher lacks"):
        DSKD.Config(dfe="none", encoder_start="teacher")


def test_maps_of_both_students_are_divided_by_their_means_on_held_out_images(images):
    method = smallest(DSKD, student_fusion="mean_one", sigma=0.0).eval()
    assert method.calibrates
    assert method.holds_out(method.config)
    assert not smallest(DSKD).calibrates
    pairs = [(part, method.teacher(part)) for part in (images[:2], images[2:])]
    with torch.no_grad():
        method.calibrate(pairs)
        maps = method.student_maps(images, method.teacher(images))
        fused = method.anomaly_map(images, method.teacher(images))
    means = maps.mean((1, 2, 3))
    torch.testing.assert_close(method.means, means)
    torch.testing.assert_close(fused, maps[0] / means[0] + maps[1] / means[1])
    assert fused.mean().item() == pytest.approx(2)
    assert "means" in method.detector_state()


def test_the_losses_are_the_sums_of_before(images):
    """Bit for bit what `loss` was before it had names: the values of all levels, stacked level by level."""
    method, twin = smallest(SNL).train(), smallest(SNL).train()
    taught = method.teacher(images)
    found = twin.terms(images, taught)
    values = [found[name][i] for i in range(3) for name in ("cosine", "divergence", "intra", "inter")]
    assert torch.equal(method.loss(images, taught), torch.stack(values).sum())
    pairs = zip(
        taught, smallest(SNL).train().learned(images, smallest(SNL).train().embedding(taught)), strict=True
    )
    assert torch.equal(found["cosine"], torch.stack([cosine_distance(t, s).mean() for t, s in pairs]))


# --- DCAM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "moves"), [("relu", False), ("leaky", True), ("bias", False)])
def test_hidden_units_below_zero_are_dead_unless_they_leak(hidden, moves):
    attend = ChannelAttention(4, 2, hidden)
    attend.mlp[0].weight.data = torch.full((2, 4), -1.0)  # of features that are never negative
    if hidden == "bias":
        attend.mlp[0].bias.data = torch.zeros(2)
        attend.mlp[2].bias.data = torch.zeros(4)
    f = noise(3, 4, 5, 5).abs()
    attend(f).square().sum().backward()
    assert (attend.gate.std(0) > 0).any().item() is moves
    assert (attend.mlp[0].weight.grad.abs().sum() > 0).item() is moves
    assert moves or (attend.gate == 0.5).all()
    if hidden == "bias":  # the gate can still move
        assert attend.mlp[2].bias.grad.abs().min() > 0


def test_the_spread_of_the_gate_tells_a_dead_attention(images):
    method = smallest(DCAM, ratio=1).train()
    method.loss(images, method.teacher(images))
    assert all(spread.item() > 1e-4 for spread in method.observed().values())
    assert [*method.observed()] == ["spread of gate 1", "spread of gate 2", "spread of gate 3"]
    method.attention[0][0].mlp[0].weight.data.fill_(-1.0)
    method.loss(images, method.teacher(images))
    assert [spread.item() == 0 for spread in method.observed().values()] == [True, False, False]
    assert smallest(DCAM, attention="none").observed() == {}


def test_the_running_mean_of_a_gate():
    mean = MeanGate(2)
    mean.follow(torch.tensor([[1.0, 0.0], [0.0, 0.0]])[:, :, None, None])
    torch.testing.assert_close(mean.mean.flatten(), torch.tensor([0.5, 0.45]))
    torch.testing.assert_close(mean(torch.ones(1, 2, 1, 1)).flatten(), torch.tensor([0.5, 0.45]))


def test_loss_and_map_of_each_reading(images):
    sigma = {"sigma": 0.0, "map_grid": 0, "levels": (1,), "ratio": 1}
    side, both, attended, folded = (
        smallest(DCAM, reading=reading, **sigma) for reading in ("side", "both", "attended", "folded")
    )
    taught = side.teacher(images)
    plain, twice = side.train().terms(images, taught), both.train().terms(images, taught)
    assert [*plain] == ["cosine", "divergence"]
    assert [*twice] == ["cosine", "divergence", "bare cosine", "bare divergence"]
    assert torch.equal(plain["cosine"], twice["cosine"])
    bare = cosine_distance(taught[0], smallest(DCAM, **sigma).train().student(images)[0]).mean()
    torch.testing.assert_close(twice["bare cosine"].squeeze(), bare)
    for method in (attended, folded):
        assert torch.equal(method.train().terms(images, taught)["cosine"], plain["cosine"])
    with torch.no_grad():
        s = side.eval().student(images)[0]
        expected = {
            side: s,
            both: s,
            attended: attended.attention[0](s),
            folded: s * folded.folded[0].mean,
        }
        assert not torch.allclose(folded.folded[0].mean, torch.tensor(0.5))
        for method, seen in expected.items():
            distance = cosine_distance(taught[0], seen)
            up = torch.nn.functional.interpolate(distance[:, None], size=64, mode="bilinear")[:, 0]
            torch.testing.assert_close(method.eval().anomaly_map(images, taught), up)
    keys = {name: [*method.detector_state()] for name, method in (("a", attended), ("f", folded))}
    assert any("attention" in key for key in keys["a"])
    assert not any("attention" in key for key in keys["f"])
    assert any("folded" in key for key in keys["f"])


def test_attention_in_line_is_seen_by_the_next_block_and_folded_after(images):
    method, bare = smallest(DCAM, reading="inline").train(), smallest(DCAM).train()
    taught = method.teacher(images)
    learned, alone = method.student(images), bare.student(images)
    torch.testing.assert_close(learned[0], bare.attention[0](alone[0]))
    assert not torch.allclose(learned[1], bare.attention[1](alone[1]))
    method.loss(images, taught)
    method.eval()
    means = [gate.mean.clone() for gate in method.folded]
    with torch.no_grad():
        seen = [level.clone() for level in method.student(images)]
        assert torch.equal(method.anomaly_map(images, taught), method.anomaly_map(images, taught))
    first = method.student.body.stages[0]
    first._forward_hooks.clear()
    with torch.no_grad():
        raw = first(method.student.body.stem(images).relu())
    torch.testing.assert_close(seen[0], raw * means[0])
    other = smallest(DCAM, reading="inline", seed=1)
    other.load_detector(method.detector_state())
    torch.testing.assert_close(other.eval().student(images), seen)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reading": "folded", "attention": "both"}, "folds a gate per channel"),
        ({"reading": "inline", "attention": "spatial"}, "folds a gate per channel"),
        ({"reading": "both", "attention": "none"}, "needs an attention"),
    ],
)
def test_readings_that_do_not_fit_the_attention_are_refused(change, said):
    with pytest.raises(ValidationError, match=said):
        DCAM.Config(**change)
