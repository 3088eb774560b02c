"""RD4AD: a decoder rebuilds the teacher's pyramid from a one-class embedding; where it fails is anomalous.

Deng, Li: Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022, arXiv:2201.10703.
Defaults are those of the official code (github.com/hq-deng/RD4AD).
"""

from typing import Literal

from torch import Tensor

from kdbench.backbone import FeaturePyramid
from kdbench.method import gaussian_blur
from kdbench.methods._reverse import Bottleneck, Decoder, ReverseRecipe, level_distances, level_maps


class RD4AD(ReverseRecipe):
    """Frozen encoder, trained bottleneck and decoder: teacher and student never see the same input."""

    name = "rd4ad"
    paper = "arXiv:2201.10703"
    family = "reverse"
    year = 2022
    licence = "MIT"
    fidelity = "official recipe"
    departures = (
        "multiclass has no official recipe: the oneclass one, with lr_drop as an option",
        "ADer's rows of RD4AD are of a smaller network: a bottleneck of 30.8 M parameters, here 58.9 M",
    )

    class Config(ReverseRecipe.Config):  # epochs 200, batch 16, Adam 5e-3 (0.5, 0.999), sigma 4
        backbone: str = "wide_resnet50_2.tv_in1k"
        distance: Literal["flat", "position"] = "flat"  # the coded loss; the paper's formula is per position

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.bottleneck = Bottleneck(teacher, config.backbone)
        self.decoder = Decoder(self.bottleneck.out_channels, teacher, config.backbone)

    def rebuilt(self, taught: list[Tensor]) -> list[Tensor]:
        """The student's version of every level [B,C,h,w]."""
        return self.decoder(self.bottleneck(taught))

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        return level_distances(taught, self.rebuilt(taught), self.config.distance).sum()

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        maps = level_maps(taught, self.rebuilt(taught), images.shape[-1])
        return gaussian_blur(maps.sum(0), self.config.sigma)


METHOD = RD4AD
