"""After SNL: structural distillation and residual aggregation keep one student normal for many categories.

Deng, Li: Structural Teacher-Student Normality Learning for Multi-Class Anomaly Detection, arXiv:2402.17091.
Only the abstract is known to us: the components are the paper's, each equation and number is our reading.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import Pair, added, cosine_distance, gaussian_blur
from kdbench.methods._affinity import Over, Power, Reduction, Scaling, divergences, gaps_between, gaps_within
from kdbench.methods._cram import CRAM
from kdbench.methods._reverse import Bottleneck, Decoder, ReverseRecipe, combined, level_distances, level_maps


class SNL(ReverseRecipe):
    """RD4AD's (reverse) or STFPM's (forward) pair with spatial-channel and affinity distillation and CRAM."""

    name = "snl"
    paper = "arXiv:2402.17091"
    family = "reverse"
    year = 2024
    licence = "no code known"
    fidelity = "after the abstract"
    departures = (
        "no equation, weight, backbone or recipe is known, of CRAM only the purpose: all are our readings",
        "affinities: of at most 16x16 positions of a level, and of the images of a batch (`inter_over`)",
        "the KL is averaged over channels; public codes that have one sum or average more (`kl_reduction`)",
        "the last, smaller batch is kept; base forward has RD4AD's batch, blur, epochs, half of STFPM's loss",
    )

    class Config(ReverseRecipe.Config):  # epochs 200, batch 16, Adam 5e-3 (0.5, 0.999), sigma 4
        without_decoder = ("base", "forward")
        base: Literal["reverse", "forward"] = "reverse"
        backbone: str = "wide_resnet50_2.tv_in1k"
        lr_forward: float = Field(0.4, gt=0)  # forward: STFPM's SGD, momentum 0.9, weight decay 1e-4
        channel: Literal["position", "flat"] = "position"  # cosine per position, or RD4AD's of the whole map
        alpha: float = Field(1.0, ge=0)  # weight of the spatial KL
        tau: float = Field(1.0, gt=0)  # its temperature
        kl_reduction: Reduction = added("channel_mean")  # sum: DCAM's code; mean_all: VAND-GNL's
        kl_times_tau2: bool = added(True)  # False: as in both of these codes
        intra: float = Field(1.0, ge=0)  # weight of the affinities of positions within an image
        inter: float = Field(1.0, ge=0)  # weight of the affinities of the images of a batch
        affinity_size: int = Field(16, ge=2)  # levels are pooled to this: 64x64 positions would need 4096^2
        affinity_scaling: Scaling = added("token")  # of intra; channel: as coded by DCAM
        affinity_power: Power = added(2)  # squared differences, or their root (DCAM's code)
        inter_over: Over = added("images")  # or all positions of a batch, or the channels of two levels
        # Behind the embedding (reverse) or each level (forward); "levels": per position, behind each level.
        cram: Literal["position", "global", "levels", "none"] = "position"
        centres: int = Field(64, ge=1)
        centre: float = added(0.0, ge=0)  # weight of the distance to one learned map, after UniRD4AD
        decoder_start: Literal["random", "teacher_scale"] = added("random")
        fusion: Literal["sum", "product"] = "sum"

        def conflicts(self) -> dict[str, bool]:
            lacks, forward = "base 'forward' has no embedding and no decoder", self.base == "forward"
            return super().conflicts() | {
                f"{lacks}: cram 'levels'": forward and self.cram == "levels",
                f"{lacks}: decoder_start 'teacher_scale'": forward and self.decoder_start == "teacher_scale",
                f"{lacks}: centre {self.centre:g}": forward and self.centre > 0,
            }

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.cram, channels = nn.ModuleList(), teacher.channels
        if config.base == "reverse":
            self.bottleneck = Bottleneck(teacher, config.backbone)
            self.decoder = Decoder(self.bottleneck.out_channels, teacher, config.backbone)
            channels = channels if config.cram == "levels" else [self.bottleneck.out_channels]
        else:
            self.student = pyramid(config.backbone, config.levels)
        if config.cram != "none":
            self.cram.extend(CRAM(c, config.centres, per_position=config.cram != "global") for c in channels)
        if config.centre:
            side = config.image_size // (2 * teacher.strides[-1])
            self.centre = nn.Parameter(torch.randn(1, self.bottleneck.out_channels, side, side))

    def prepare(self, normals: Iterable[Pair]) -> None:
        if self.config.decoder_start == "teacher_scale":
            taught = next(iter(normals))[1]
            self.decoder.match(self.bottleneck(taught), taught)

    def embedding(self, taught: list[Tensor]) -> Tensor | None:
        """The bottleneck's output [B,C,h,w]; the forward base has none."""
        return self.bottleneck(taught) if self.config.base == "reverse" else None

    def learned(self, images: Tensor, embedding: Tensor | None) -> list[Tensor]:
        """The student's levels."""
        if embedding is not None and self.config.cram in ("position", "global"):
            return self.decoder(self.cram[0](embedding))
        levels = self.student(images) if embedding is None else self.decoder(embedding)
        return [f(s) for f, s in zip(self.cram, levels, strict=True)] if self.cram else levels

    def terms(self, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
        c, embedding = self.config, self.embedding(taught)
        learned, how = self.learned(images, embedding), (c.affinity_size, c.affinity_power)
        named = {"cosine": level_distances(taught, learned, c.channel)}
        if c.alpha:
            kl = divergences(taught, learned, c.tau, c.kl_reduction, times_tau2=c.kl_times_tau2)
            named["divergence"] = c.alpha * kl
        if c.intra:
            named["intra"] = c.intra * gaps_within(taught, learned, c.affinity_scaling, *how)
        if c.inter:
            named["inter"] = c.inter * gaps_between(taught, learned, c.inter_over, *how)
        if c.centre and embedding is not None:
            distance = cosine_distance(embedding, self.centre.expand_as(embedding))
            named["centre"] = c.centre * distance.mean()[None]
        return named

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        learned, reverse = self.learned(images, self.embedding(taught)), self.config.base == "reverse"
        maps = level_maps(taught, learned, images.shape[-1], align_corners=reverse)  # [L,B,H,W]
        return gaussian_blur(combined(maps, self.config.fusion), self.config.sigma)

    def optimizer(self) -> Optimizer:
        if self.config.base == "reverse":
            return super().optimizer()
        rate = self.config.lr_forward
        return self.clipped(SGD(self.trained(), lr=rate, momentum=0.9, weight_decay=1e-4))


METHOD = SNL
