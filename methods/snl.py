"""After SNL: structural distillation and residual aggregation keep one student normal for many categories.

Deng, Li: Structural Teacher-Student Normality Learning for Multi-Class Anomaly Detection, arXiv:2402.17091.
Only the abstract is known to us: the components are the paper's, each equation and number is our reading.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, mse_loss
from torch.optim import SGD, Optimizer

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import (
    Family,
    Fidelity,
    cosine_distance,
    divergence,
    flat_cosine_distance,
    full_precision,
    gaussian_blur,
    unit_vectors,
)
from kdbench.methods._cram import CRAM
from kdbench.methods._reverse import Bottleneck, Decoder, ReverseRecipe, level_maps


class SNL(ReverseRecipe):
    """RD4AD's (reverse) or STFPM's (forward) pair with spatial-channel and affinity distillation and CRAM."""

    name = "snl"
    paper = "arXiv:2402.17091"
    family: ClassVar[Family] = "reverse"
    year = 2024
    licence = "no code known"
    fidelity: ClassVar[Fidelity] = "after the abstract"
    departures = (
        "no equation, weight, backbone or recipe of the paper is known: all are our readings",
        "affinity is taken between at most 16x16 positions per level, and between the images of a batch",
        "the last, smaller batch is kept; base forward has RD4AD's batch, blur, epoch, half of STFPM's loss",
    )

    class Config(ReverseRecipe.Config):  # epochs 200, batch 16, Adam 5e-3 (0.5, 0.999), sigma 4
        without_decoder = ("base", "forward")
        base: Literal["reverse", "forward"] = "reverse"
        backbone: str = "wide_resnet50_2.tv_in1k"
        lr_forward: float = Field(0.4, gt=0)  # forward: STFPM's SGD, momentum 0.9, weight decay 1e-4
        channel: Literal["position", "flat"] = "position"  # cosine per position, or RD4AD's of the whole map
        alpha: float = Field(1.0, ge=0)  # weight of the spatial KL
        tau: float = Field(1.0, gt=0)  # its temperature
        intra: float = Field(1.0, ge=0)  # weight of the affinities of positions within an image
        inter: float = Field(1.0, ge=0)  # weight of the affinities of the images of a batch
        affinity_size: int = Field(16, ge=2)  # levels are pooled to this: 64x64 positions would need 4096^2
        cram: Literal["position", "global", "none"] = "position"
        centres: int = Field(64, ge=1)
        fusion: Literal["sum", "product"] = "sum"

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.cram = nn.ModuleList()
        if config.base == "reverse":
            self.bottleneck = Bottleneck(teacher, config.backbone)
            self.decoder = Decoder(self.bottleneck.out_channels, teacher, config.backbone)
            channels = [self.bottleneck.out_channels]
        else:
            self.student = pyramid(config.backbone, config.levels)
            channels = teacher.channels
        if config.cram != "none":
            self.cram.extend(
                CRAM(c, config.centres, per_position=config.cram == "position") for c in channels
            )

    def learned(self, images: Tensor, taught: list[Tensor]) -> list[Tensor]:
        """The student's levels; CRAM sits behind the bottleneck (reverse) or behind each level (forward)."""
        if self.config.base == "forward":
            levels = self.student(images)
            return [f(s) for f, s in zip(self.cram, levels, strict=True)] if self.cram else levels
        embedding = self.bottleneck(taught)
        return self.decoder(self.cram[0](embedding) if self.cram else embedding)

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        c, total = self.config, []
        distance = flat_cosine_distance if c.channel == "flat" else cosine_distance
        for t, s in zip(taught, self.learned(images, taught), strict=True):
            total.append(distance(t, s).mean())
            if c.alpha:
                total.append(c.alpha * spatial_divergence(t, s, c.tau))
            if c.intra:
                total.append(c.intra * mse_loss(within(s, c.affinity_size), within(t, c.affinity_size)))
            if c.inter:
                total.append(c.inter * mse_loss(between(s), between(t)))
        return torch.stack(total).sum()

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        learned, reverse = self.learned(images, taught), self.config.base == "reverse"
        maps = level_maps(taught, learned, images.shape[-1], align_corners=reverse)  # [L,B,H,W]
        fused = maps.prod(0) if self.config.fusion == "product" else maps.sum(0)
        return gaussian_blur(fused, self.config.sigma)

    def optimizer(self) -> Optimizer:
        if self.config.base == "forward":
            return SGD(self.trained(), lr=self.config.lr_forward, momentum=0.9, weight_decay=1e-4)
        return super().optimizer()


def spatial_divergence(t: Tensor, s: Tensor, tau: float) -> Tensor:
    """tau^2 KL(teacher || student) of each channel's softmax over positions; mean over channels, images."""
    return tau**2 * divergence(t, s, tau).mean()


def within(features: Tensor, size: int) -> Tensor:
    """Cosines of all pairs of positions of an image: [B,N,N], N at most size^2."""
    tokens = unit_vectors(adaptive_avg_pool2d(features.float(), min(size, features.shape[-1]))).flatten(2)
    with full_precision(tokens):
        return tokens.transpose(1, 2) @ tokens


def between(features: Tensor) -> Tensor:
    """Cosines of all pairs of images of the batch, each as its mean over positions: [B,B]."""
    vectors = unit_vectors(features.float().mean((2, 3), keepdim=True)).flatten(1)
    with full_precision(vectors):
        return vectors @ vectors.T


METHOD = SNL
