"""What the newer methods promise beyond the contract: their identities, counts and ramps."""

import numpy as np
import pytest
import torch
from conftest import smallest
from PIL import Image
from torch import Tensor, nn

from kdbench.backbone import build_pdn, teacher
from kdbench.errors import DataError, RequestError
from kdbench.method import cosine_distance, scale_gradient, top_mean
from kdbench.methods._autoencoder import Autoencoder, jittered
from kdbench.methods._corrupt import Textures, corrupt
from kdbench.methods._stable_adamw import StableAdamW
from kdbench.methods._transformer import Block, Bottleneck, linear_attention
from kdbench.methods.destseg import DeSTSeg, focal_loss
from kdbench.methods.dinomaly import Dinomaly
from kdbench.methods.efficientad import EfficientAD
from kdbench.methods.rd4ad import RD4AD
from kdbench.methods.rdpp import RDPP, projection, rectangles_of_noise
from kdbench.methods.recontrast import ReContrast, hard_places
from kdbench.weights import find_weights


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


# --- helpers of the contract ---


def test_a_scaled_gradient_leaves_the_value():
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    weight = torch.tensor([0.0, 0.5, 1.0])
    scaled = scale_gradient(x, weight)
    scaled.sum().backward()
    assert torch.equal(scaled, x)
    assert torch.equal(x.grad, weight)


def test_top_mean_is_the_mean_of_the_largest_share_and_at_least_the_maximum():
    maps = torch.arange(100.0).reshape(1, 10, 10)
    assert top_mean(maps, 0.05).item() == 97.0
    assert top_mean(maps, 0.001).item() == 99.0


# --- RD++ ---


@pytest.mark.parametrize(("channels", "count"), [((64, 128, 256), 968_688), ((256, 512, 1024), 15_486_912)])
def test_projections_have_the_published_number_of_parameters(channels, count):
    with torch.device("meta"):
        assert sum(p.numel() for c in channels for p in projection(c).parameters()) == count


def test_rdpp_with_identity_projections_and_no_auxiliary_terms_is_rd4ad(images):
    ours, base = smallest(RDPP, recon=0.0, contrast=0.0), smallest(RD4AD)
    ours.projections = nn.ModuleList(nn.Identity() for _ in range(3))
    ours.bottleneck.load_state_dict(base.bottleneck.state_dict())
    ours.decoder.load_state_dict(base.decoder.state_dict())
    taught = base.teacher(images)
    torch.testing.assert_close(ours.loss(images, taught), base.loss(images, taught), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.anomaly_map(images, taught), base.anomaly_map(images, taught))


def test_the_contrast_pushes_only_above_its_margin(images):
    never, always = smallest(RDPP, recon=0.0, margin=1.0), smallest(RDPP, recon=0.0, contrast=0.0)
    taught = never.teacher(images)
    torch.manual_seed(3)
    one = never.loss(images, taught)
    torch.manual_seed(3)
    assert torch.equal(one, always.loss(images, taught))
    assert smallest(RDPP, recon=0.0, margin=-1.0).loss(images, taught) > one


def test_noise_fills_one_small_rectangle_of_every_image_and_is_drawn_by_torchs_seed():
    images, std = torch.zeros(8, 3, 256, 256), (0.229, 0.224, 0.225)
    torch.manual_seed(5)
    added = rectangles_of_noise(images, std)
    torch.manual_seed(5)
    assert torch.equal(added, rectangles_of_noise(images, std))
    assert not torch.equal(added, rectangles_of_noise(images, std))
    for image in added:
        rows, columns = (torch.nonzero(image[0].abs().sum(axis)).flatten() for axis in (1, 0))
        assert 9 <= rows[-1] - rows[0] + 1 <= 31
        assert 9 <= columns[-1] - columns[0] + 1 <= 31
    grey = added * torch.tensor(std)[:, None, None]
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    assert 0.05 < grey.abs().max() < 0.5


def sinkhorn(a: np.ndarray, b: np.ndarray, blur: float = 0.05, rounds: int = 200) -> float:
    """The entropic transport cost of two clouds [N,D] with equal weights, cost |x - y|^2 / 2."""
    cost, eps = ((a[:, None] - b[None]) ** 2).sum(-1) / 2, blur**2
    f, g, log_n = np.zeros(len(a)), np.zeros(len(b)), np.log(len(a))
    for _ in range(rounds):
        f = -eps * (np.logaddexp.reduce((g[None] - cost) / eps, axis=1) - log_n)
        g = -eps * (np.logaddexp.reduce((f[:, None] - cost) / eps, axis=0) - log_n)
    return float(f.mean() + g.mean())


def test_the_transport_term_that_is_left_out_is_zero_as_it_was_coded():
    """The code compares the projections of a batch with the same batch in another order."""
    generator = np.random.default_rng(0)
    batch, other = (generator.dirichlet(np.ones(50), 16) for _ in range(2))

    def divergence(a: np.ndarray, b: np.ndarray) -> float:
        return sinkhorn(a, b) - (sinkhorn(a, a) + sinkhorn(b, b)) / 2

    assert abs(divergence(batch, batch[generator.permutation(16)])) < 1e-12
    assert divergence(batch, other) > 1e-4


# --- ReContrast ---


def test_both_encoders_start_alike_so_that_both_reconstructions_are_equal(images):
    method = smallest(ReContrast).eval()
    targets, rebuilt = method.pairs(images, method.teacher(images))
    for i in range(3):
        assert torch.equal(targets[i], targets[i + 3])
        torch.testing.assert_close(rebuilt[i], rebuilt[i + 3])


def test_the_frozen_target_is_rebuilt_from_the_adapting_encoder_and_the_other_way_round(images):
    method = smallest(ReContrast).eval()
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.mul_(1.5)
    taught = method.teacher(images)
    targets, rebuilt = method.pairs(images, taught)
    expected = method.decoder(method.bottleneck(method.encoder(images)))
    for i in range(3):
        assert torch.equal(targets[i], taught[i])
        torch.testing.assert_close(rebuilt[i], expected[i])


def test_the_adapting_encoder_is_no_target_of_a_gradient(images):
    method = smallest(ReContrast)
    targets, _ = method.pairs(images, method.teacher(images))
    assert not any(target.requires_grad for target in targets)


@pytest.mark.parametrize(("step", "expected"), [(0, -3.0), (50, -1.0), (100, 1.0), (999, 1.0)])
def test_the_threshold_of_hard_places_rises_in_the_first_tenth(step, expected):
    method = smallest(ReContrast)
    method.step, method.num_steps = step, 1000
    assert method.deviations() == pytest.approx(expected)


def test_easy_places_get_no_gradient():
    target = torch.randn(2, 4, 5, 5)
    rebuilt = torch.randn(2, 4, 5, 5, requires_grad=True)
    hard = hard_places(cosine_distance(target, rebuilt).detach(), 0.5)
    assert 0 < hard.mean() < 1
    scale_gradient(rebuilt, hard[:, None]).square().sum().backward()
    assert torch.equal(rebuilt.grad.abs().sum(1) > 0, hard > 0)
    assert hard_places(cosine_distance(target, rebuilt).detach(), -3.0).all()


def test_the_encoder_learns_slowly_and_keeps_its_normalisation_in_eval_mode():
    method = smallest(ReContrast).train()
    rates = {group["lr"]: len(group["params"]) for group in method.optimizer().param_groups}
    assert rates[1e-5] == len(list(method.encoder.parameters()))
    assert not any(module.training for module in method.encoder.modules())
    assert method.decoder.training


def test_the_multiclass_recipe_has_gelu_and_an_output_per_encoder(images):
    method = smallest(ReContrast, **ReContrast.recipe("paper", "multiclass"))
    kinds = [type(module) for module in method.modules()]
    assert nn.GELU in kinds
    assert not any(isinstance(m, nn.ReLU) for m in (*method.bottleneck.modules(), *method.decoder.modules()))
    assert len(method.to_frozen) == len(method.to_adapting) == 3
    assert method.loss(images, method.teacher(images)).isfinite()


# --- DeSTSeg ---


def test_the_focal_loss_is_cross_entropy_without_gamma_and_spares_the_easy_places_with_it():
    logits, target = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0])
    plain = nn.functional.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(focal_loss(logits, target, 0.0), plain)
    p = torch.tensor([0.880797, 0.731059, 0.5])  # of the true class
    torch.testing.assert_close(focal_loss(logits, target, 4.0), (-((1 - p) ** 4) * p.log()).mean())


def test_a_corrupted_image_differs_inside_its_mask_only_and_is_drawn_by_torchs_seed(images):
    textures = Textures("", (0.5,) * 3, (0.5,) * 3)
    torch.manual_seed(2)
    changed, mask = corrupt(images, textures)
    torch.manual_seed(2)
    assert torch.equal(changed, corrupt(images, textures)[0])
    outside = ~mask[:, None].expand_as(images)
    assert torch.equal(changed[outside], images[outside])
    assert (changed != images)[~outside].float().mean() > 0.9
    assert mask.flatten(1).any(1).all()
    assert mask.float().mean() < 0.5


def test_textures_are_read_from_a_folder_or_it_is_an_error(images, tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match="the folder dtd of KDBENCH_DATA: there is no image below"):
        smallest(DeSTSeg, textures="dtd")
    (tmp_path / "dtd/images").mkdir(parents=True)
    Image.new("RGB", (9, 9), (254, 0, 0)).save(tmp_path / "dtd/images/red.jpg", quality=100)
    texture = smallest(DeSTSeg, textures="dtd").textures.draw(images, np.random.default_rng(0))
    assert texture.shape == images.shape
    torch.testing.assert_close(texture[1].mean((1, 2)), torch.tensor([1.0, -1.0, -1.0]), atol=0.02, rtol=0)


def test_textures_are_read_as_all_images_are(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path.parent))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    halves = Image.new("RGB", (8, 8), "black")
    halves.paste("white", (0, 0, 8, 4))
    halves.save(tmp_path / "turned.png", exif=exif)
    texture = Textures(tmp_path.name, (0.0,) * 3, (1.0,) * 3).draw(
        torch.zeros(1, 3, 8, 8), np.random.default_rng(0)
    )
    assert texture[0, :, :3].max() == 0
    assert texture[0, :, 5:].min() == 1
    Image.new("F", (8, 8)).save(tmp_path / "turned.tif")
    (tmp_path / "turned.png").unlink()
    with pytest.raises(DataError, match="floating-point values, whose white nothing says"):
        Textures(tmp_path.name, (0.0,) * 3, (1.0,) * 3).draw(
            torch.zeros(1, 3, 8, 8), np.random.default_rng(0)
        )


@pytest.mark.parametrize(("step", "learns"), [(0, "student"), (199, "student"), (200, "segmentation")])
def test_each_phase_trains_its_part_and_leaves_the_other_as_it_was(images, step, learns):
    method = smallest(DeSTSeg).train()
    method.step, method.num_steps = step, 1000
    before = {name: t.clone() for name, t in method.state_dict().items()}
    optimizer = method.optimizer()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        method.loss(images, method.teacher(images)).backward()
        optimizer.step()
    changed = {
        name.split(".")[0] for name, t in method.state_dict().items() if not torch.equal(t, before[name])
    }
    assert changed == ({"encoder", "decoder"} if learns == "student" else {"segmentation"})


def test_the_map_is_a_probability_and_the_score_the_mean_of_its_largest_values(images):
    method = smallest(DeSTSeg).eval()
    maps = method.anomaly_map(images, method.teacher(images))
    assert maps.min() >= 0
    assert maps.max() <= 1
    largest = maps.flatten(1).sort(1, descending=True).values[:, : int(100 / 4096 * 64 * 64)]
    torch.testing.assert_close(method.image_score(maps), largest.mean(1))


def test_levels_need_a_next_one_for_the_decoder():
    with pytest.raises(ValueError, match="the decoder starts from the next one"):
        smallest(DeSTSeg, levels=(2, 4))


# --- Dinomaly ---


def test_linear_attention_is_what_its_formula_says():
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    fq, fk = (nn.functional.elu(x) + 1 for x in (q, k))
    weights = fq @ fk.transpose(-2, -1)  # the whole [N,N] that the method never makes
    expected = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(linear_attention(q, k, v), expected)
    constant = torch.ones(1, 2, 5, 4)
    torch.testing.assert_close(linear_attention(q, k, constant), constant)


def test_bottleneck_and_blocks_of_the_base_have_the_computed_number_of_parameters():
    with torch.device("meta"):
        bottleneck, block = Bottleneck(768, 0.2), Block(768)
    assert sum(p.numel() for p in bottleneck.parameters()) == 2 * 768 * 3072 + 3072 + 768
    assert sum(p.numel() for p in block.parameters()) == 7_087_872  # of a block of ViT-B


def test_the_last_block_of_the_decoder_answers_to_the_first_levels(images):
    method = smallest(Dinomaly).eval()
    taught = method.teacher(images)
    before = method.groups(taught)
    method.decoder[-1].mlp[2].bias.data += 1.0
    after = method.groups(taught)
    assert not torch.equal(before[0][1], after[0][1])  # the first four levels
    assert torch.equal(before[1][1], after[1][1])
    torch.testing.assert_close(after[0][0], torch.stack(taught[:4]).mean(0))


def test_the_teacher_sees_the_crop_and_the_map_is_nought_around_it(images):
    method = smallest(Dinomaly).eval()
    taught = method.teacher(images)
    assert [level.shape for level in taught] == [(3, 32, 4, 4)] * 8
    changed = images.clone()
    changed[..., :4] = 0  # 64 pixels, the crop is 4 to 60
    changed[..., 60:] = 0
    assert torch.equal(method.teacher(changed)[0], taught[0])
    maps = method.anomaly_map(images, taught)
    assert maps[:, 4:60, 4:60].min() > 0
    assert maps[:, :4].abs().max() == maps[:, 60:].abs().max() == maps[..., :4].abs().max() == 0


def test_the_rate_warms_up_and_falls_along_a_cosine_step_by_step():
    method = smallest(Dinomaly)
    assert method.scheduler_every == "step"
    scheduler = method.scheduler(method.optimizer())
    method.num_steps = 1000
    (factor,) = scheduler.lr_lambdas
    assert factor(5) == pytest.approx(0.5)
    assert factor(10) == pytest.approx(1.0)
    assert factor(505) == pytest.approx(0.55)  # half way between 2e-3 and 2e-4
    assert factor(1000) == pytest.approx(0.1)


def test_stable_adamw_is_adamw_where_gradients_do_not_jump():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    ours_optimizer = StableAdamW([ours], lr=0.01, weight_decay=0.1)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, amsgrad=True)
    for step in range(20):
        for parameter, optimizer in ((ours, ours_optimizer), (theirs, reference)):
            parameter.grad = torch.cos(torch.arange(7.0)) * 0.99**step
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_stable_adamw_shortens_the_step_after_a_jump_and_clips_the_norm():
    steps = {}
    for jump in (1.0, 100.0):
        parameter = nn.Parameter(torch.zeros(3))
        optimizer = StableAdamW([parameter], lr=0.1)
        for size in (1.0, 1.0, jump):
            before = parameter.detach().clone()
            parameter.grad = torch.full((3,), size)
            optimizer.step()
        steps[jump] = (parameter - before).abs().max().item()
    mean, square = (100 * 0.1 + 0.9 * 0.1 + 0.81 * 0.1) / 0.271, 0.0
    square = (1e4 * 0.001 + 0.001 * 0.999 + 0.001 * 0.998001) / (1 - 0.999**3)
    expected = 0.1 / (100 / square**0.5) * mean / square**0.5
    assert steps[100.0] == pytest.approx(expected, rel=1e-4)
    clipped = nn.Parameter(torch.zeros(4))
    clipped.grad = torch.full((4,), 10.0)
    StableAdamW([clipped], lr=0.1, clip=0.1).step()
    assert clipped.grad.norm().item() == pytest.approx(0.1, rel=1e-4)


def test_levels_of_a_transformer_are_its_blocks_and_a_missing_one_is_an_error(images):
    with pytest.raises(RequestError, match="has the levels 1 to 10, not 12"):
        smallest(Dinomaly, levels=(11, 12))
    whole = teacher("tiny_vit", tuple(range(1, 11)), find_weights("tiny_vit"))
    part = teacher("tiny_vit", (2, 5), find_weights("tiny_vit"))
    maps, some = whole(images[..., 4:60, 4:60]), part(images[..., 4:60, 4:60])
    assert len(part.body.network.blocks) == 5
    torch.testing.assert_close(some, [maps[1], maps[4]])


# --- EfficientAD ---


@pytest.mark.parametrize(
    ("backbone", "outputs", "count"),
    [
        ("pdn_small.distilled", 384, 2_694_144),
        ("pdn_small.distilled", 768, 4_267_392),
        ("pdn_medium.distilled", 384, 8_026_624),
        ("pdn_medium.distilled", 768, 11_615_488),
    ],
)
def test_patch_networks_have_the_published_numbers_of_parameters_and_56_places(backbone, outputs, count):
    with torch.device("meta"):
        network = build_pdn(backbone, outputs)
        assert network(torch.empty(1, 3, 256, 256)).shape == (1, outputs, 56, 56)
    assert sum(p.numel() for p in network.parameters()) == count


def test_the_autoencoder_has_the_published_number_of_parameters_and_the_places_of_the_teacher():
    with torch.device("meta"):
        network = Autoencoder(384, 256)
        assert network(torch.empty(1, 3, 256, 256)).shape == (1, 384, 56, 56)
    assert sum(p.numel() for p in network.parameters()) == 1_096_320
    assert network.sizes == [3, 8, 15, 32, 63, 127]


def test_preparing_gives_every_channel_of_the_teacher_mean_0_and_deviation_1(images):
    method = smallest(EfficientAD)
    pairs = [(part, method.teacher(part)) for part in images.split(2)]
    method.prepare(pairs)
    normalised = method.normalised(method.teacher(images)[0])
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3), correction=0), torch.ones(16), rtol=1e-3, atol=0)


def test_calibrating_brings_the_quantiles_of_heldout_maps_to_nought_and_a_tenth(images):
    method = smallest(EfficientAD).eval()
    taught = method.teacher(images)
    with torch.no_grad():
        method.calibrate([(images, taught)])
        for (low, high), values in zip(method.quantiles, method.differences(images, taught), strict=True):
            assert low.item() == pytest.approx(values.flatten().quantile(0.9).item(), rel=0.02)
            assert high.item() == pytest.approx(values.flatten().quantile(0.995).item(), rel=0.02)
            assert (0.1 * (values - low) / (high - low) > 0).float().mean().item() == pytest.approx(
                0.1, abs=0.01
            )
    assert "quantiles" in method.detector_state()


def test_only_the_hardest_differences_are_learnt_from(images):
    method = smallest(EfficientAD, autoencoder=False, hardest=0.01).train()
    taught = method.teacher(images)
    difference = (method.normalised(taught[0]) - method.student(images)).square().flatten()
    hardest = difference.sort(descending=True).values[: int(0.01 * len(difference))]
    torch.testing.assert_close(method.loss(images, taught), hardest.mean())


def test_the_autoencoders_image_has_one_other_property_and_stays_near(images):
    torch.manual_seed(0)
    for _ in range(6):
        changed = jittered(images, [-1.0, -1.0, -1.0])
        assert changed.shape == images.shape
        assert 0 < (changed - images).abs().max() <= 0.2 * 2.01


def test_without_weights_the_patch_teacher_says_which_files_fit(monkeypatch, tmp_path):
    with pytest.raises(RequestError, match="the public files of EfficientAD's teachers fit"):
        find_weights("pdn_small.distilled")
    state = build_pdn("pdn_small.distilled", 384).state_dict()
    assert {"0.weight", "3.weight", "6.weight", "8.weight"} <= state.keys()  # as in the public files
    torch.save(state, tmp_path / "teacher_small.pth")
    loaded = teacher(
        "pdn_small.distilled", (1,), find_weights("pdn_small.distilled", tmp_path / "teacher_small.pth")
    )
    assert torch.equal(loaded.body.network[8].weight, state["8.weight"])
