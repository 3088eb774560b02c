"""RD++: RD4AD with projections before the bottleneck; they learn to remove synthetic anomalies.

Tien et al.: Revisiting Reverse Distillation for Anomaly Detection, CVPR 2023, pages 24511-24520.
Numbers are those of the official code (github.com/tientrandinh/Revisiting-Reverse-Distillation, MIT).
"""

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.backbone import FeaturePyramid, normalisation
from kdbench.defects import perlin
from kdbench.method import added, flat_cosine_distance, gaussian_blur
from kdbench.methods._corrupt import draws_of_torch
from kdbench.methods._reverse import Bottleneck, Decoder, ReverseRecipe, level_distances, level_maps

AUXILIARY, RECON, CONTRAST = 0.2 / 1.11, 0.01, 0.1  # the code's weights; 1.11 is the sum of its three
OCTAVES, PERSISTENCE, STRENGTH = 6, 0.6, 0.2  # of the noise; its strength is for pixels in 0..1
LONGEST_WAVE, SIDES = 64 / 256, (10 / 256, 31 / 256)  # of the noise and of its rectangle, shares of the side


class RDPP(ReverseRecipe):
    """A projection per level feeds RD4AD's bottleneck; the decoder rebuilds the teacher's bare levels."""

    name = "rdpp"
    paper = "CVPR 2023, pages 24511-24520"
    family = "reverse"
    year = 2023
    licence = "MIT"
    fidelity = "official recipe"
    departures = (
        "the transport term is left out: the code compares a batch with its own permutation, which gives 0",
        "the code sums the gradients of two batches of 16 before a step; here every batch is a step",
        "the noise is Perlin's in place of simplex noise, with the same octaves, strength and rectangle",
        "the code keeps the epoch that is best on test images; here the last of 200, as in RD4AD",
    )

    class Config(ReverseRecipe.Config):  # batch 16, Adam 5e-3 (0.5, 0.999), sigma 4
        backbone: str = "wide_resnet50_2.tv_in1k"
        projections: bool = added(True)  # False: RD4AD, with which the paper compares
        lr_projection: float = Field(1e-3, gt=0)
        recon: float = Field(RECON, ge=0)  # weight: projections of noised and clean images are alike
        contrast: float = Field(CONTRAST, ge=0)  # weight: projections differ from the noised bare levels
        margin: float = Field(0.5, ge=-1, le=1)  # the cosine above which `contrast` pushes

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.projections = nn.ModuleList(
            projection(channels) if config.projections else nn.Identity() for channels in teacher.channels
        )
        self.bottleneck = Bottleneck(teacher, config.backbone)
        self.decoder = Decoder(self.bottleneck.out_channels, teacher, config.backbone)
        self.std = normalisation(config.backbone)[1]

    def project(self, taught: list[Tensor]) -> list[Tensor]:
        """The levels [B,C,h,w] after their projections, which have learnt to remove noise."""
        return [f(t) for f, t in zip(self.projections, taught, strict=True)]

    def terms(self, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
        c, projected, recon, contrast = self.config, self.project(taught), [], []
        distances = level_distances(taught, self.decoder(self.bottleneck(projected)), "flat")
        if not c.projections:
            return {"cosine": distances}
        noised = self.teach(images + rectangles_of_noise(images, self.std))
        for n, p, pn in zip(noised, projected, self.project(noised), strict=True):
            recon.append(AUXILIARY * c.recon * flat_cosine_distance(p, pn).mean())
            cosine = 1 - flat_cosine_distance(n, p)
            contrast.append(AUXILIARY * c.contrast * (cosine - c.margin).relu().mean())
        return {"cosine": distances, "recon": torch.stack(recon), "contrast": torch.stack(contrast)}

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        rebuilt = self.decoder(self.bottleneck(self.project(taught)))
        return gaussian_blur(level_maps(taught, rebuilt, images.shape[-1]).sum(0), self.config.sigma)

    def rates(self) -> dict[str, float]:
        return {"projections": self.config.lr_projection}


def projection(channels: int) -> nn.Sequential:
    """Four 3x3 convolutions C -> C/2 -> C/4 -> C/2 -> C, each with InstanceNorm and LeakyReLU."""
    widths = (channels, channels // 2, channels // 4, channels // 2, channels)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.InstanceNorm2d(outputs), nn.LeakyReLU()]
    return nn.Sequential(*layers)


def rectangles_of_noise(images: Tensor, std: tuple[float, ...]) -> Tensor:
    """Noise to add to normalised images [B,3,S,S]: grey, in one rectangle of each image; elsewhere 0.

    Its seed comes from torch's generator, whose state is in every checkpoint.
    """
    size, draws = images.shape[-1], draws_of_torch()
    tile = max(2, round(LONGEST_WAVE * size))
    added = torch.zeros(len(images), size, size)
    for field in added:
        height, width = (min(tile, max(1, round(draws.uniform(*SIDES) * size))) for _ in range(2))
        top, left = draws.integers(size - height + 1), draws.integers(size - width + 1)
        noise = sum(PERSISTENCE**k * perlin(tile, (2**k, 2**k), 1, draws)[0] for k in range(OCTAVES))
        field[top : top + height, left : left + width] = torch.from_numpy(noise[:height, :width])
    scale = STRENGTH / torch.tensor(std, device=images.device)[:, None, None]
    return added.to(images.device)[:, None] * scale


METHOD = RDPP
