"""Losses and maps against stored numbers that other people's code gave: inputs by seed, outputs as numbers.

They are those of anomalib 2.7.0 (Apache-2.0) on the levels below, with torch 2.15 on a CPU. The official code
of STFPM (gdwang08/STFPM, 2598a5e) and ADer's loss of RD4AD were compared by hand, and gave the same losses.
"""

import pytest
import torch
from conftest import smallest
from torch import Tensor, nn

from kdbench.backbone import FeaturePyramid
from kdbench.methods._reverse import Bottleneck, Decoder
from kdbench.methods.rd4ad import RD4AD
from kdbench.methods.stfpm import STFPM

STFPM_LOSS = 0.46222153306007385  # anomalib's 0.5 x sum over the two images: equal to ours for two
STFPM_MAP = [0.00034604303073138, 0.0006043988396413624, 0.0004412467242218554, 0.0002529017219785601]
STFPM_MEAN = 0.00045482933637686074
RD4AD_LOSS = 0.2272602915763855
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


def test_the_wide_networks_are_the_official_ones_and_not_those_of_ader():
    """Official: 67,277,824 with 8,392,704 that are never used. ADer's bottleneck is that of a ResNet-50."""
    shapes = FeaturePyramid(nn.Identity(), (1, 2, 3), [256, 512, 1024], [4, 8, 16])
    with torch.device("meta"):
        wide = Bottleneck(shapes, "wide_resnet50_2.tv_in1k")
        plain = Bottleneck(shapes, "resnet50.tv_in1k")
        decoder = Decoder(wide.out_channels, shapes, "wide_resnet50_2.tv_in1k")
    count = [sum(p.numel() for p in network.parameters()) for network in (wide, plain, decoder)]
    assert count == [67_277_824 - 8_392_704, 30_829_568, 24_917_504]
