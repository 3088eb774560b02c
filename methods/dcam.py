"""DCAM: STFPM for all categories at once; convolutional attention on the student's maps, in the loss only.

Attention-aware entropy distillation, ICPR 2024, arXiv:2405.06467. Blocks, losses and recipe after the facts
of the first author's code, which does not ship the headline configuration: its combination is our reading.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdbench.backbone import FeaturePyramid
from kdbench.method import Family, Fidelity, cosine_distance, divergence
from kdbench.methods._forward import ForwardStudent


class ChannelAttention(nn.Module):
    """f * sigmoid(MLP(average of f) + MLP(maximum of f)), one gate per channel, 2C^2/r parameters."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        down, up = (channels, max(1, channels // ratio)), (max(1, channels // ratio), channels)
        self.mlp = nn.Sequential(nn.Linear(*down, bias=False), nn.ReLU(), nn.Linear(*up, bias=False))

    def forward(self, f: Tensor) -> Tensor:
        return f * torch.sigmoid(self.mlp(f.mean((2, 3))) + self.mlp(f.amax((2, 3))))[:, :, None, None]


class SpatialAttention(nn.Module):
    """f * sigmoid(conv7x7(mean and maximum over the channels)), one gate per position, 98 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, f: Tensor) -> Tensor:
        return f * torch.sigmoid(self.conv(torch.stack((f.mean(1), f.amax(1)), 1)))


class DCAM(ForwardStudent):
    """STFPM's pair; the loss sees the attended student, the anomaly map the bare one."""

    name = "dcam"
    paper = "arXiv:2405.06467"
    family: ClassVar[Family] = "forward"
    year = 2024
    licence = "CC BY-NC 4.0"
    fidelity: ClassVar[Fidelity] = "author's code, partly"
    departures = (
        "attention is a side branch: the loss sees attended maps, the next block bare ones (our reading)",
        "temperature 1, loss weights 1 : 1, KL averaged over channels (not stated; the code sums)",
        "the 20 % of held-out normal images are drawn per category and by the seed, not from one sorted list",
        "the code trains in fp32, `--precision auto` in bf16 where the hardware has it",
    )
    multiclass: ClassVar[dict[str, Any]] = {"epochs": 400}
    training_only = ("attention",)

    class Config(ForwardStudent.Config):  # batch 32, SGD momentum 0.9, weight decay 1e-4, map grid 64
        epochs: int = Field(100, ge=1)  # the code's default; its README trains 400 epochs on all categories
        lr: float = Field(0.1, gt=0)
        fusion: Literal["product", "sum"] = "sum"
        attention: Literal["none", "channel", "spatial", "both"] = "channel"  # both: channel, then spatial
        distance: Literal["channel", "spatial", "none"] = "channel"  # along which the cosine is taken
        kd: Literal["spatial", "channel", "none"] = "spatial"  # over what the softmax of the KL runs
        distance_weight: float = Field(1.0, gt=0)
        kd_weight: float = Field(1.0, gt=0)
        temperature: float = Field(1.0, gt=0)
        kd_reduction: Literal["mean", "sum"] = "mean"  # over channels (spatial KD) or positions (channel KD)
        kd_times_t2: bool = False
        ratio: int = Field(8, ge=1)  # of the channel attention; CBAM has 16

        @model_validator(mode="after")
        def _has_a_loss(self) -> "DCAM.Config":
            if self.distance == self.kd == "none":
                raise ValueError("distance and kd are both 'none': no loss is left")
            return self

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        channel, spatial = (config.attention in (kind, "both") for kind in ("channel", "spatial"))
        self.attention = nn.ModuleList(
            nn.Sequential(*[ChannelAttention(c, config.ratio)] * channel, *[SpatialAttention()] * spatial)
            for c in teacher.channels
        )

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        c, total = self.config, []
        for t, s, attend in zip(taught, self.student(images), self.attention, strict=True):
            s = attend(s)
            if c.distance != "none":
                total.append(c.distance_weight * self.cosine(t, s))
            if c.kd != "none":
                total.append(c.kd_weight * self.divergence(t, s))
        return torch.stack(total).sum()

    def cosine(self, t: Tensor, s: Tensor) -> Tensor:
        """Channel: 1 - cos of each position's channel vector; spatial: of each channel's H*W values."""
        if self.config.distance == "spatial":
            t, s = (f.flatten(2).transpose(1, 2)[..., None] for f in (t, s))  # [B,HW,C,1]
        return cosine_distance(t, s).mean()

    def divergence(self, t: Tensor, s: Tensor) -> Tensor:
        """KL(teacher || student) of softmaxes over H*W (spatial, per channel) or C (channel, per place)."""
        c = self.config
        each = divergence(t, s, c.temperature, of_places=c.kd == "channel")  # [B,C] or [B,HW]
        kl = each.mean() if c.kd_reduction == "mean" else each.sum(1).mean()
        return kl * c.temperature**2 if c.kd_times_t2 else kl

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        maps = [cosine_distance(t, s) for t, s in zip(taught, self.student(images), strict=True)]
        return self.fused(maps, images.shape[-1])


METHOD = DCAM
