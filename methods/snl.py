"""After SNL: structural distillation and residual aggregation keep one student normal for many categories.

Deng, Li: Structural Teacher-Student Normality Learning for Multi-Class Anomaly Detection, arXiv:2402.17091.
Only the abstract is known to us: the components are the paper's, each equation and number is our reading.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import Family, Fidelity, Pair, added, cosine_distance, flat_cosine_distance, gaussian_blur
from kdbench.methods import _affinity as affinity
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
        kl_reduction: affinity.Reduction = added("channel_mean")  # sum: DCAM's code; mean_all: VAND-GNL's
        kl_times_tau2: bool = added(True)  # neither code has it
        intra: float = Field(1.0, ge=0)  # weight of the affinities of positions within an image
        inter: float = Field(1.0, ge=0)  # weight of the affinities of the images of a batch
        affinity_size: int = Field(16, ge=2)  # levels are pooled to this: 64x64 positions would need 4096^2
        affinity_scaling: affinity.Scaling = added("token")  # of intra; channel: as coded by DCAM
        affinity_power: affinity.Power = added(2)  # squared differences, or their root (DCAM's code)
        inter_over: affinity.Over = added("images")
        # Behind the embedding (reverse) or each level (forward); "levels": per position, behind each level.
        cram: Literal["position", "global", "levels", "none"] = "position"
        centres: int = Field(64, ge=1)
        centre: float = added(0.0, ge=0)  # weight: the embedding is like one learned map, after UniRD4AD
        decoder_start: Literal["random", "teacher_scale"] = added("random")
        fusion: Literal["sum", "product"] = "sum"

        @model_validator(mode="after")
        def _forward_has_neither(self) -> "SNL.Config":
            reverse_only = {"cram": "levels", "decoder_start": "teacher_scale"}
            wrong = [f"{key} {v!r}" for key, v in reverse_only.items() if getattr(self, key) == v]
            wrong += [f"centre {self.centre:g}"] if self.centre else []
            if self.base == "forward" and wrong:
                raise ValueError(f"base 'forward' has no embedding and no decoder: {', '.join(wrong)}")
            return self

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
        if embedding is None:
            levels = self.student(images)
        elif self.config.cram in ("position", "global"):
            return self.decoder(self.cram[0](embedding))
        else:
            levels = self.decoder(embedding)
        return [f(s) for f, s in zip(self.cram, levels, strict=True)] if self.cram else levels

    def terms(self, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
        c, embedding = self.config, self.embedding(taught)
        learned, size = self.learned(images, embedding), c.affinity_size
        distance = flat_cosine_distance if c.channel == "flat" else cosine_distance
        pairs, named = [*zip(taught, learned, strict=True)], dict[str, list[Tensor]]()
        named["cosine"] = [distance(t, s).mean() for t, s in pairs]
        if c.alpha:
            how, scaled = c.kl_reduction, c.kl_times_tau2
            kl = [affinity.spatial_divergence(t, s, c.tau, how, times_tau2=scaled) for t, s in pairs]
            named["divergence"] = [c.alpha * one for one in kl]
        if c.intra:
            inside = [[affinity.within(f, size, c.affinity_scaling) for f in (s, t)] for t, s in pairs]
            named["intra"] = [c.intra * affinity.gap(s, t, c.affinity_power) for s, t in inside]
        if c.inter:
            across = affinity.gaps_between(taught, learned, c.inter_over, size, c.affinity_power)
            named["inter"] = [c.inter * one for one in across]
        if c.centre and embedding is not None:
            every = self.centre.expand_as(embedding)
            named["centre"] = [c.centre * cosine_distance(embedding, every).mean()]
        return {name: torch.stack(values) for name, values in named.items()}

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        learned, reverse = self.learned(images, self.embedding(taught)), self.config.base == "reverse"
        maps = level_maps(taught, learned, images.shape[-1], align_corners=reverse)  # [L,B,H,W]
        fused = maps.prod(0) if self.config.fusion == "product" else maps.sum(0)
        return gaussian_blur(fused, self.config.sigma)

    def optimizer(self) -> Optimizer:
        if self.config.base == "forward":
            return self.clipped(
                SGD(self.trained(), lr=self.config.lr_forward, momentum=0.9, weight_decay=1e-4)
            )
        return super().optimizer()


METHOD = SNL
