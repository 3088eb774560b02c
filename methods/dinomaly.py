"""Dinomaly: a plain transformer decoder rebuilds the blocks of a DINOv2 teacher, loosely, in two groups.

Guo et al.: Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection, CVPR 2025,
arXiv:2405.14325. Numbers are those of the official code (github.com/guojiajeremy/Dinomaly, Apache-2.0).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from kdbench.backbone import FeaturePyramid
from kdbench.method import Method, added, cosine_distance, gaussian_blur, scale_gradient, top_mean, upsample
from kdbench.methods._reverse import level_distances
from kdbench.methods._stable_adamw import StableAdamW, warm_cosine
from kdbench.methods._transformer import Bottleneck, Decoder

MAP_SIZE, RADIUS, SIGMA = 256, 2, 4.0  # maps are smoothed at this size by a kernel of 5x5
EASY_GRADIENT = 0.1  # of the places that are rebuilt best


class Dinomaly(Method):
    """The mean of all levels goes through a noisy bottleneck; the decoder's blocks answer in two groups."""

    name = "dinomaly"
    paper = "arXiv:2405.14325"
    family = "transformer"
    year = 2025
    licence = "Apache-2.0"
    fidelity = "author's code, partly"
    departures = (
        "bottleneck and decoder never see class and register tokens; the code drops them after the decoder",
        "outside of the centre crop the map is 0; the code crops the masks as well",
        "the code counts 10,000 steps of 16 images, warm-up 100, ramp 1,000: here shares of the epochs",
        "oneclass has no official recipe here: 300 epochs, about 5,000 steps of a category of MVTec AD",
    )
    needs = "the weights of a DINOv2 teacher (timm's download, or --weights)"
    multiclass: ClassVar = {"epochs": 44}
    demo: ClassVar = {"backbone": "vit_small_patch14_reg4_dinov2.lvd142m", "crop": 112}
    tiny: ClassVar = {"backbone": "tiny_vit", "crop": 56}
    scheduler_every = "step"

    class Config(Method.Config):
        backbone: str = "vit_base_patch14_reg4_dinov2.lvd142m"
        levels: tuple[int, ...] = Field(tuple(range(3, 11)), min_length=2)  # blocks, counted from 1
        image_size: int = Field(448, ge=32, le=2048)
        crop: int = Field(392, ge=14)  # the teacher sees this square of the centre
        epochs: int = Field(300, ge=1)
        batch_size: int = Field(16, ge=1)
        lr: float = Field(2e-3, gt=0)  # StableAdamW with AMSGrad, eps 1e-10, weight decay 1e-4
        lr_end: float = Field(2e-4, gt=0)  # of the cosine
        warmup: float = Field(0.01, ge=0, lt=1)  # share of the training
        clip: float = Field(0.1, gt=0)  # of the gradient's norm
        attention: Literal["linear", "softmax"] = added("linear")  # of the decoder
        num_groups: int = added(2, ge=1)  # of levels; a group is rebuilt as one (usual: a group per level)
        dropout: float = Field(0.2, ge=0, lt=1)  # three times in the bottleneck
        easy: float = Field(0.9, ge=0, lt=1)  # share of the places with EASY_GRADIENT, after the ramp
        ramp: float = Field(0.1, ge=0, le=1)  # share of the training in which it rises from 0
        score_share: float = Field(0.01, gt=0, le=1)  # of the crop's largest values, whose mean is the score

        def conflicts(self) -> dict[str, bool]:
            unequal, too_large = len(self.levels) % self.num_groups > 0, self.crop > self.image_size
            return {
                f"levels {self.levels}: {self.num_groups} groups of equal size need others": unequal,
                f"crop {self.crop} is larger than image_size {self.image_size}": too_large,
            }

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        teacher.crop = config.crop
        width = teacher.channels[0]
        self.bottleneck = Bottleneck(width, config.dropout)
        self.decoder = Decoder(len(config.levels), width, config.attention)

    def groups(self, taught: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pairs [B,C,h,w]: the mean of a group of the teacher's levels, and the decoder's mean for it."""
        size = len(taught) // self.config.num_groups
        tokens = torch.stack(taught).mean(0).flatten(2).transpose(1, 2)  # [B,N,C]
        rebuilt = [x.unflatten(2, taught[0].shape[2:]) for x in self.decoder(self.bottleneck(tokens))]
        groups = [slice(first, first + size) for first in range(0, len(taught), size)]
        return [(torch.stack(taught[g]).mean(0), torch.stack(rebuilt[g]).mean(0)) for g in groups]

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        easy = self.config.easy * min(1.0, self.progress / self.config.ramp if self.config.ramp else 1.0)
        targets, rebuilt = [], []
        for t, s in self.groups(taught):
            distance = cosine_distance(t, s).detach()
            weight = torch.where(distance < distance.flatten().quantile(easy), EASY_GRADIENT, 1.0)
            targets.append(t)
            rebuilt.append(scale_gradient(s.float(), weight[:, None]))
        return level_distances(targets, rebuilt, "flat").mean()

    def raw_map(self, taught: list[Tensor]) -> Tensor:
        """The mean of the groups' distances at the size of the crop: [B,crop,crop]."""
        distances = torch.stack([cosine_distance(t, s) for t, s in self.groups(taught)]).mean(0)
        return upsample(distances, self.config.crop, align_corners=True)

    def smooth_map(self, taught: list[Tensor]) -> Tensor:
        """The raw map, smoothed at MAP_SIZE: [B,MAP_SIZE,MAP_SIZE]."""
        return gaussian_blur(upsample(self.raw_map(taught), MAP_SIZE), SIGMA, radius=RADIUS)

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        crop, size = self.config.crop, images.shape[-1]
        before = (size - crop) // 2
        return pad(upsample(self.smooth_map(taught), crop), (before, size - crop - before) * 2)

    def image_score(self, anomaly_map: Tensor) -> Tensor:
        c = self.config
        return top_mean(anomaly_map, c.score_share * (c.crop / c.image_size) ** 2)

    def optimizer(self) -> Optimizer:
        c = self.config
        return StableAdamW(self.trained(), lr=c.lr, eps=1e-10, weight_decay=1e-4, clip=c.clip)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        c = self.config
        return LambdaLR(optimizer, lambda step: warm_cosine(step / self.num_steps, c.warmup, c.lr_end / c.lr))


METHOD = Dinomaly
