"""DCAM: STFPM for all categories at once; convolutional attention on the student's maps, in the loss only.

Attention-aware entropy distillation, ICPR 2024, arXiv:2405.06467. Blocks, losses and recipe after the facts
of the first author's code, which does not ship the headline configuration: its combination is our reading.
"""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdbench.backbone import FeaturePyramid
from kdbench.method import Family, Fidelity, added, cosine_distance, divergence
from kdbench.methods._attention import ChannelAttention, Hidden, MeanGate, SpatialAttention
from kdbench.methods._forward import ForwardStudent


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
        hidden: Hidden = added("relu")  # units of the channel attention; relu ones may die, see _attention.py
        # What the loss and the map see; a gate that is folded is its running mean, a factor per channel.
        # side: attended, bare. attended: attended, attended. folded: attended, with the folded gate.
        # inline: the next block sees attended maps, too; folded in the map. both: attended and bare, bare.
        reading: Literal["side", "attended", "folded", "inline", "both"] = added("side")

        @model_validator(mode="after")
        def _has_a_loss(self) -> "DCAM.Config":
            if self.distance == self.kd == "none":
                raise ValueError("distance and kd are both 'none': no loss is left")
            if self.reading in ("folded", "inline") and self.attention != "channel":
                raise ValueError(f"reading {self.reading!r} folds a gate per channel: attention is 'channel'")
            if self.reading != "side" and self.attention == "none":
                raise ValueError(f"reading {self.reading!r} needs an attention, which is 'none'")
            return self

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        channel, spatial = (config.attention in (kind, "both") for kind in ("channel", "spatial"))
        self.attention = nn.ModuleList(
            nn.Sequential(
                *[ChannelAttention(c, config.ratio, config.hidden)] * channel, *[SpatialAttention()] * spatial
            )
            for c in teacher.channels
        )
        self.training_only = () if config.reading == "attended" else ("attention",)
        self.folded = nn.ModuleList()
        if config.reading in ("folded", "inline"):
            self.folded.extend(MeanGate(c) for c in teacher.channels)
        if config.reading == "inline":
            for i, module in enumerate(self.student.level_modules()):
                module.register_forward_hook(partial(self.inline, i))

    def inline(self, level: int, module: nn.Module, inputs: tuple[Tensor, ...], f: Tensor) -> Tensor:
        """What takes the place of a level of the student: attended while training, else folded."""
        return self.attended(level, f) if self.training else self.folded[level](f)

    def attended(self, level: int, f: Tensor) -> Tensor:
        """A level with its attention; the running mean of the gate follows."""
        seen: Tensor = self.attention[level](f)
        mean = self.folded[level] if self.folded else None
        if isinstance(mean, MeanGate) and self.training:
            mean.follow(self.gates()[level])
        return seen

    def gates(self) -> list[Tensor]:
        """Each level's gates in the last batch, of the first kind of attention."""
        first = [block for blocks in self.attention for block in [*blocks.children()][:1]]
        return [block.gate for block in first if isinstance(block, ChannelAttention | SpatialAttention)]

    def terms(self, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
        c, student, named = self.config, self.student(images), dict[str, Tensor]()
        attended = student if c.reading == "inline" else [self.attended(i, f) for i, f in enumerate(student)]
        seen = {"": attended} | ({"bare ": student} if c.reading == "both" else {})
        for prefix, learned in seen.items():
            pairs = [*zip(taught, learned, strict=True)]
            if c.distance != "none":
                cosines = [c.distance_weight * self.cosine(t, s) for t, s in pairs]
                named[f"{prefix}cosine"] = torch.stack(cosines)
            if c.kd != "none":
                divergences = [c.kd_weight * self.divergence(t, s) for t, s in pairs]
                named[f"{prefix}divergence"] = torch.stack(divergences)
        return named

    def observed(self) -> dict[str, Tensor]:
        """The deviation of each level's gate over the images: 0 if the attention does not see them."""
        spreads = [gate.std(0, correction=0).mean() for gate in self.gates()]
        return {f"spread of gate {i}": spread for i, spread in enumerate(spreads, start=1)}

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
        learned, reading = self.student(images), self.config.reading
        if reading in ("attended", "folded"):
            blocks = self.attention if reading == "attended" else self.folded
            learned = [block(f) for block, f in zip(blocks, learned, strict=True)]
        maps = [cosine_distance(t, s) for t, s in zip(taught, learned, strict=True)]
        return self.fused(maps, images.shape[-1])


METHOD = DCAM
