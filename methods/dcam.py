"""DCAM: STFPM for all categories at once; convolutional attention on the student's maps, in the loss only.

Attention-aware entropy distillation, ICPR 2024, arXiv:2405.06467. Blocks, losses and recipe follow facts of
the first author's code. It lacks the configuration of the paper's main result: we combine them as we read it.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.backbone import FeaturePyramid
from kdbench.method import added, cosine_distance, divergence
from kdbench.methods._attention import Hidden, MeanGate, attention_behind, gates, spreads
from kdbench.methods._forward import ForwardStudent


class DCAM(ForwardStudent):
    """STFPM's pair; the loss sees the attended student, the anomaly map the bare one."""

    name = "dcam"
    paper = "arXiv:2405.06467"
    family = "forward"
    year = 2024
    licence = "CC BY-NC 4.0"
    fidelity = "author's code, partly"
    departures = (
        "the released script trains no attention and one loss; its blocks and losses are combined here",
        "attention is a side branch: the next block and the map see bare levels (four others: `reading`)",
        "temperature 1 and weights 1 : 1 are not stated; the code sums the KL over channels (`kd_reduction`)",
        "the 20 % of held-out normal images are drawn per category and by the seed, not from one sorted list",
    )
    multiclass: ClassVar[dict[str, Any]] = {"epochs": 400}

    class Config(ForwardStudent.Config):  # batch 32, SGD momentum 0.9, weight decay 1e-4, map grid 64
        epochs: int = Field(100, ge=1)  # the code's default; its README trains 400 epochs on all categories
        lr: float = Field(0.1, gt=0)
        fusion: Literal["product", "sum"] = "sum"
        attention: Literal["none", "channel", "spatial", "both"] = "channel"  # both: channel, then spatial
        distance: Literal["channel", "spatial", "none"] = "channel"  # the axis of the cosine
        kd: Literal["spatial", "channel", "none"] = "spatial"  # the axis of the softmax in the KL
        distance_weight: float = Field(1.0, gt=0)
        kd_weight: float = Field(1.0, gt=0)
        temperature: float = Field(1.0, gt=0)
        kd_reduction: Literal["mean", "sum"] = "mean"  # over channels (spatial KD) or positions (channel KD)
        kd_times_t2: bool = False
        ratio: int = Field(8, ge=1)  # of the channel attention; CBAM has 16
        hidden: Hidden = added("relu")  # units of the channel attention; relu ones may die, see _attention.py
        # Which levels the loss sees, then which the map sees. A folded gate is its running mean per channel.
        # side: attended; bare. attended: attended; attended. folded: attended; with the folded gate.
        # inline: as folded, and the next block sees those levels, too. both: attended and bare; bare.
        reading: Literal["side", "attended", "folded", "inline", "both"] = added("side")

        def conflicts(self) -> dict[str, bool]:
            reading = f"reading {self.reading!r}"
            unfolded = self.reading in ("folded", "inline") and self.attention != "channel"
            bare = self.reading in ("attended", "both") and self.attention == "none"
            return {
                "distance and kd are both 'none': no loss is left": self.distance == self.kd == "none",
                f"{reading} folds a gate per channel: attention is 'channel'": unfolded,
                f"{reading} needs an attention, which is 'none'": bare,
            }

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.attention = attention_behind(teacher.channels, config.attention, config.ratio, config.hidden)
        self.training_only = () if config.reading == "attended" else ("attention",)
        self.folded = nn.ModuleList()
        if config.reading in ("folded", "inline"):
            self.folded.extend(MeanGate(c) for c in teacher.channels)
        if config.reading == "inline":
            for i, module in enumerate(self.student.level_modules()):
                module.register_forward_hook(partial(self.inline, i))

    def inline(self, level: int, module: nn.Module, inputs: tuple[Tensor, ...], f: Tensor) -> Tensor:
        """The map in place of a level of the student (a hook): attended while training, else folded."""
        return self.attended(level, f) if self.training else self.folded[level](f)

    def attended(self, level: int, f: Tensor) -> Tensor:
        """A level with its attention; the running mean of the gate follows."""
        seen: Tensor = self.attention[level](f)
        mean = self.folded[level] if self.folded else None
        if isinstance(mean, MeanGate) and self.training:
            mean.follow(gates(self.attention)[level])
        return seen

    def terms(self, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
        c, student, named = self.config, self.student(images), dict[str, Tensor]()
        attended = student if c.reading == "inline" else [self.attended(i, f) for i, f in enumerate(student)]
        seen = {"": attended} | ({"bare ": student} if c.reading == "both" else {})
        for prefix, learned in seen.items():
            pairs = [*zip(taught, learned, strict=True)]
            if c.distance != "none":
                cosines = torch.stack([self.cosine(t, s) for t, s in pairs])
                named[f"{prefix}cosine"] = c.distance_weight * cosines
            if c.kd != "none":
                divergences = torch.stack([self.divergence(t, s) for t, s in pairs])
                named[f"{prefix}divergence"] = c.kd_weight * divergences
        return named

    def observed(self) -> dict[str, Tensor]:
        return spreads(self.attention)

    def cosine(self, t: Tensor, s: Tensor) -> Tensor:
        """Mean 1 - cos: "channel", of each position's vector; "spatial", of each channel's H*W values."""
        if self.config.distance == "spatial":
            t, s = (f.flatten(2).transpose(1, 2)[..., None] for f in (t, s))  # [B,HW,C,1]
        return cosine_distance(t, s).mean()

    def divergence(self, t: Tensor, s: Tensor) -> Tensor:
        """KL(teacher || student) of softmaxes: over H*W per channel ("spatial"), C per place ("channel")."""
        c = self.config
        each = divergence(t, s, c.temperature, of_places=c.kd == "channel")  # [B,C] or [B,HW]
        kl = each.mean() if c.kd_reduction == "mean" else each.sum(1).mean()
        return kl * c.temperature**2 if c.kd_times_t2 else kl

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        learned, reading = self.student(images), self.config.reading
        if reading in ("attended", "folded"):
            blocks = self.attention if reading == "attended" else self.folded
            learned = [block(f) for block, f in zip(blocks, learned, strict=True)]
        maps = [cosine_distance(t, s) for t, s in zip(taught, learned, strict=True)]
        return self.fused(maps, images.shape[-1])


METHOD = DCAM
