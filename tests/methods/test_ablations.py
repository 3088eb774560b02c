"""Each ablation of a paper is a key of its method, and the key changes what it says and nothing else."""

import pytest
import torch
from conftest import smallest
from PIL import Image
from torch import Tensor, nn

from kdbench.method import Method, cosine_distance, fuse
from kdbench.methods._transformer import Block

# Every ablation of the newer methods: the key, and a value that switches a part off.
SWITCHES = {
    "rdpp": {"projections": False, "recon": 0.0, "contrast": 0.0},
    "recontrast": {
        "distance": "position",
        "adapt": False,
        "cross": False,
        "stop_gradient": False,
        "hardest": -3.0,
        "activation": "gelu",
        "outputs": "per_encoder",
    },
    "dinomaly": {"attention": "softmax", "num_groups": 8, "dropout": 0.0, "easy": 0.0},
    "efficientad": {"autoencoder": False, "normalise": False, "hardest": 1.0},
    "destseg": {"denoise": False, "decoder": False, "segment": False, "l1_weight": 0.0, "gamma": 0.0},
}
BESIDE = {"contrast": {"margin": -1.0}}  # it pushes only above its margin
LATE = {"easy", "hardest", "l1_weight", "gamma"}  # what counts only after a ramp or in the second phase


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def trained(method: Method, images: Tensor, late: bool) -> list[Tensor]:
    """The trained tensors after two steps."""
    optimizer = method.optimizer()
    method.train()
    torch.manual_seed(1)
    method.step, method.num_steps = (90 if late else 1), 100
    for _ in range(2):
        optimizer.zero_grad()
        method.loss(images, method.teacher(images)).backward()
        optimizer.step()
    method.eval()
    with torch.no_grad():
        taught = method.teacher(images)
        method.calibrate([(images, taught)])
        return [*method.detector_state().values(), method.anomaly_map(images, taught)]


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in SWITCHES for key in SWITCHES[name]])
def test_every_switch_changes_the_training_or_the_map(images, name, key):
    beside = BESIDE.get(key, {})
    usual, other = smallest(name, **beside), smallest(name, **beside, **{key: SWITCHES[name][key]})
    one, two = (trained(method, images, key in LATE) for method in (usual, other))
    assert all(tensor.isfinite().all() for tensor in two)
    assert len(one) != len(two) or any(
        a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, two, strict=True)
    )


def test_rdpp_without_projections_is_rd4ad(images):
    ours, base = smallest("rdpp", projections=False), smallest("rd4ad")
    ours.bottleneck.load_state_dict(base.bottleneck.state_dict())
    ours.decoder.load_state_dict(base.decoder.state_dict())
    taught = base.teacher(images)
    assert torch.equal(ours.loss(images, taught), base.loss(images, taught))
    assert torch.equal(ours.anomaly_map(images, taught), base.anomaly_map(images, taught))
    assert not [name for name in ours.detector_state() if name.startswith("projections")]


def test_recontrasts_second_encoder_stays_or_is_rebuilt_from_itself_or_learns_as_a_target(images):
    frozen = smallest("recontrast", adapt=False)
    before = [p.clone() for p in frozen.encoder.parameters()]
    trained(frozen, images, late=False)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.encoder.parameters(), strict=True))

    method = smallest("recontrast", cross=False).eval()
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.mul_(1.5)
    taught = method.teacher(images)
    _, rebuilt = method.pairs(images, taught)
    expected = method.decoder(method.bottleneck(taught))
    for i in range(3):
        torch.testing.assert_close(rebuilt[i], expected[i])

    targets, _ = smallest("recontrast", stop_gradient=False).pairs(images, taught)
    assert [target.requires_grad for target in targets] == [False] * 3 + [True] * 3


def test_recontrasts_distance_of_places_is_the_mean_of_their_cosines(images):
    method = smallest("recontrast", distance="position", hardest=-3.0)
    taught = method.teacher(images)
    pairs = zip(*method.eval().pairs(images, taught), strict=True)
    expected = sum(cosine_distance(t, s).mean() for t, s in pairs) / 2
    method.step, method.num_steps = 9, 10
    torch.testing.assert_close(method.loss(images, taught), expected)


def test_dinomalys_groups_may_be_one_or_one_per_level(images):
    for count in (1, 8):
        method = smallest("dinomaly", num_groups=count).eval()
        taught = method.teacher(images)
        groups = method.groups(taught)
        assert len(groups) == count
        torch.testing.assert_close(groups[0][0], torch.stack(taught[: 8 // count]).mean(0))
    with pytest.raises(ValueError, match="3 groups of equal size need others"):
        smallest("dinomaly", num_groups=3)


def test_dinomalys_softmax_attention_is_that_of_a_transformer():
    torch.manual_seed(0)
    block, usual = Block(128, "softmax"), nn.MultiheadAttention(128, 2, batch_first=True)
    usual.in_proj_weight.data, usual.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    usual.out_proj.load_state_dict(block.out.state_dict())
    x = torch.randn(2, 5, 128)
    normed = block.norm1(x)
    hidden = x + usual(normed, normed, normed)[0]
    torch.testing.assert_close(block(x), hidden + block.mlp(block.norm2(hidden)))


def test_efficientad_without_normalisation_averages_the_differences(images):
    method = smallest("efficientad", normalise=False).eval()
    taught = method.teacher(images)
    with torch.no_grad():
        method.calibrate([(images, taught)])
        first, second = method.differences(images, taught)
        inner = method.anomaly_map(images, taught)[:, 32, 32]
    assert method.quantiles.tolist() == [[0, pytest.approx(0.1)], [0, pytest.approx(0.1)]]
    mean = (first + second)[:, 3:5, 3:5].mean((1, 2)) / 2
    assert torch.allclose(inner, mean, rtol=0.5)


def test_efficientads_penalty_pulls_the_student_to_0_on_other_images(images, tmp_path, monkeypatch):
    (tmp_path / "imagenet/n1").mkdir(parents=True)
    Image.new("RGB", (9, 9), (254, 0, 0)).save(tmp_path / "imagenet/n1/red.png")
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    usual, penalised = smallest("efficientad"), smallest("efficientad", penalty="images")
    taught = usual.teacher(images)
    losses = []
    for method in (usual.eval(), penalised.eval()):
        torch.manual_seed(4)
        losses.append(method.loss(images, taught).item())
    red = torch.tensor([254 / 255, 0, 0])[:, None, None].expand(3, 3, 64, 64)
    answer = penalised.student((red - 0.5) / 0.5)[:, : penalised.channels].square().mean().item()
    assert answer > 0.001
    assert losses[1] > losses[0]


def test_destsegs_map_without_a_net_is_the_sum_of_the_levels_distances(images):
    method = smallest("destseg", segment=False).eval()
    taught = method.teacher(images)
    distances = [cosine_distance(t, s) for t, s in zip(taught, method.denoised(images), strict=True)]
    assert torch.equal(method.anomaly_map(images, taught), fuse(distances, 64))
    method.step, method.num_steps = 99, 100
    method.train()
    method.loss(images, taught).backward()
    assert all(p.grad is not None for p in method.trained())  # the student learns to the end


def test_destsegs_student_sees_the_clean_image_without_denoising(images):
    method = smallest("destseg", denoise=False).train()
    taught = method.teacher(images)
    expected = torch.stack(
        [
            cosine_distance(t, s).mean((1, 2)).sum()
            for t, s in zip(taught, method.denoised(images), strict=True)
        ]
    )
    torch.testing.assert_close(method.loss(images, taught), expected.sum())


def test_destsegs_plain_student_matches_the_teachers_levels_of_the_clean_image(images):
    """Without denoising, decoder and net it is DCAM's bare student; DeSTSeg's loss sums over the images."""
    ours = smallest("destseg", denoise=False, decoder=False, segment=False).train()
    base = smallest("dcam", attention="none", kd="none").train()
    assert "decoder" not in type(ours.config)().model_dump()  # old configurations keep their cell ids
    base.student.load_state_dict(ours.encoder.state_dict())
    taught = base.teacher(images)
    torch.testing.assert_close(ours.loss(images, taught), len(images) * base.loss(images, taught))
    assert {name.partition(".")[0] for name, _ in ours.named_parameters()} == {"encoder", "teacher"}


def test_destsegs_net_sees_the_plain_students_levels_of_the_corrupted_image(images):
    method = smallest("destseg", decoder=False).train()
    method.step, method.num_steps = 99, 100
    taught = method.teacher(images)
    method.loss(images, taught).backward()
    assert all(p.grad is None for p in method.encoder.parameters())
    assert all(p.grad is not None for p in method.segmentation.parameters())
    levels = method.eval().denoised(images)
    assert [level.shape for level in levels] == [level.shape for level in taught]
