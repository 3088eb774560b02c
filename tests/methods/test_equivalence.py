"""Losses and maps against stored numbers that other people's code gave: inputs by seed, outputs as numbers.

They are those of anomalib 2.7.0 (Apache-2.0) and of ADer (zhangzjn/ADer, 2c0d536) on the levels below, and
those of the official STFPM (gdwang08/STFPM, 3bc63bb) with the weights below; with torch on a CPU.
"""

import pytest
import torch
from conftest import smallest
from torch import Tensor, nn

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.methods._reverse import Bottleneck, Decoder
from kdbench.methods.rd4ad import RD4AD
from kdbench.methods.stfpm import STFPM

STFPM_LOSS = 0.46222153306007385  # anomalib's 0.5 x sum over the two images: equal to ours for two
STFPM_MAP = [0.00034604303073138, 0.0006043988396413624, 0.0004412467242218554, 0.0002529017219785601]
STFPM_MEAN = 0.00045482933637686074
RD4AD_LOSS = 0.2272602915763855  # of anomalib and of ADer's CosLoss(avg=False), which agree in float32
ADER_LOSS = 0.2272602555958343  # of ADer in float64; float32 rounds the seventh digit
# The official STFPM in float64: losses of three steps; the map at PLACES and its mean, before and after them;
# the sum of the absolute weights of layer3 at the end.
OFFICIAL_LOSSES = [3.3680929536687314, 3.0847753578280726, 2.818827379145411]
OFFICIAL_BEFORE = [1.7562424645601742, 2.047060877423359, 1.808810318096423, 1.3372620695086008]
OFFICIAL_AFTER = [1.2287612682207387, 1.3311586781502172, 1.418029282313552, 0.8183880581475884]
OFFICIAL_MEANS = [1.8274485278358763, 1.2840721254361842]
OFFICIAL_LAYER3 = 55925.63334204999
PLACES = ((0, 0, 0), (1, 10, 20), (2, 31, 33), (3, 63, 63))
INPUT_SUM = 12892.7880859375  # of the first level: torch still draws the same inputs


class Given(nn.Module):
    """A network that answers with these levels."""

    def __init__(self, levels: list[Tensor]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.levels


def levels(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((64, 16), (128, 8), (256, 4))
    return [torch.randn(2, c, side, side, generator=generator).relu() for c, side in shapes]


@pytest.fixture
def pair() -> tuple[list[Tensor], list[Tensor]]:
    taught = levels(0)
    assert taught[0].sum().item() == pytest.approx(INPUT_SUM, rel=1e-6)
    return taught, [t + 0.5 * other for t, other in zip(taught, levels(1), strict=True)]


def test_stfpm_has_the_loss_and_the_map_of_anomalib(pair):
    taught, learned = pair
    method = smallest(STFPM, map_grid=0)
    method.student = Given(learned)
    images = torch.zeros(2, 3, 64, 64)
    assert method.loss(images, taught).item() == pytest.approx(STFPM_LOSS, rel=1e-6)
    found = method.anomaly_map(images, taught) / 8  # anomalib halves each of three levels
    places = [found[1, i, j].item() for i, j in ((0, 0), (10, 20), (31, 33), (63, 63))]
    assert places == pytest.approx(STFPM_MAP, rel=1e-5)
    assert found.mean().item() == pytest.approx(STFPM_MEAN, rel=1e-5)


def test_rd4ad_has_the_loss_of_anomalib(pair):
    taught, learned = pair
    method = smallest(RD4AD)
    method.rebuilt = lambda taught: learned
    assert method.loss(torch.zeros(2, 3, 64, 64), taught).item() == pytest.approx(RD4AD_LOSS, rel=1e-6)


def test_rd4ad_has_the_loss_of_ader(pair):
    taught, learned = ([level.double() for level in levels] for levels in pair)
    method = smallest(RD4AD)
    method.rebuilt = lambda taught: learned
    assert method.loss(torch.zeros(2, 3, 64, 64), taught).item() == pytest.approx(ADER_LOSS, rel=1e-12)


@torch.no_grad()
def fill(network: nn.Module, seed: int) -> None:
    """Give a ResNet weights by a formula: normal numbers for convolutions, 1 and 0 for normalisations."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * (2 / parameter[0].numel()) ** 0.5)
        else:
            parameter.fill_(name.endswith("weight"))


@pytest.mark.slow
def test_stfpm_trains_as_the_official_code_does():
    """Map, loss and three steps of SGD on the same weights and images, in float64."""
    network = pyramid("resnet18.tv_in1k", (1, 2, 3))
    method = STFPM(STFPM.Config(backbone="resnet18.tv_in1k", image_size=64), network)
    fill(network, 1)
    fill(method.student, 2)
    method.double()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        taught = network.eval()(images)

    def check_map(places: list[float], mean: float) -> None:
        with torch.no_grad():
            found = method.eval().anomaly_map(images, taught)
        assert [found[place].item() for place in PLACES] == pytest.approx(places, rel=1e-8)
        assert found.mean().item() == pytest.approx(mean, rel=1e-8)

    check_map(OFFICIAL_BEFORE, OFFICIAL_MEANS[0])
    optimizer, losses = method.optimizer(), []
    method.train()
    for _ in OFFICIAL_LOSSES:
        loss = method.loss(images, taught)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses == pytest.approx(OFFICIAL_LOSSES, rel=1e-8)
    check_map(OFFICIAL_AFTER, OFFICIAL_MEANS[1])
    layer3 = [p for name, p in method.student.named_parameters() if "layer3" in name]
    assert sum(p.abs().sum().item() for p in layer3) == pytest.approx(OFFICIAL_LAYER3, rel=1e-8)


def test_the_wide_networks_are_the_official_ones_and_not_those_of_ader():
    """Official: 67,277,824 with 8,392,704 that are never used. ADer's bottleneck is that of a ResNet-50."""
    shapes = FeaturePyramid(nn.Identity(), (1, 2, 3), [256, 512, 1024], [4, 8, 16])
    with torch.device("meta"):
        wide = Bottleneck(shapes, "wide_resnet50_2.tv_in1k")
        plain = Bottleneck(shapes, "resnet50.tv_in1k")
        decoder = Decoder(wide.out_channels, shapes, "wide_resnet50_2.tv_in1k")
    count = [sum(p.numel() for p in network.parameters()) for network in (wide, plain, decoder)]
    assert count == [67_277_824 - 8_392_704, 30_829_568, 24_917_504]
