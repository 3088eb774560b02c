"""ReContrast: a frozen and an adapting encoder, each rebuilt from the other's levels; hard places teach.

Guo et al.: ReContrast: Domain-Specific Anomaly Detection via Contrastive Reconstruction, NeurIPS 2023,
arXiv:2306.02602. Numbers are those of the official scripts (github.com/guojiajeremy/ReContrast).
"""

import copy
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, cat, nn
from torch.optim import AdamW, Optimizer

from kdbench.backbone import FeaturePyramid
from kdbench.method import added, cosine_distance, gaussian_blur, scale_gradient, top_mean
from kdbench.methods._reverse import (
    Bottleneck,
    Decoder,
    ReverseRecipe,
    hard_places,
    level_distances,
    level_maps,
    replace_relu,
)

RADIUS = 2  # of the Gaussian: the code's kernel has 5x5 values, whatever sigma is


class ReContrast(ReverseRecipe):
    """One decoder rebuilds the frozen levels from the adapting ones and the adapting from the frozen ones."""

    name = "recontrast"
    paper = "arXiv:2306.02602"
    family = "reverse"
    year = 2023
    licence = "none is given"
    fidelity = "author's code, partly"
    departures = (
        "the repository has no licence: this file is written from a description of its facts",
        "the scripts count iterations, 2,000 and 5,000 of 16 images: here epochs of about as many (MVTec AD)",
        "the adapting encoder's BatchNorm is in eval mode for every category, as in the multiclass script",
        "the last, smaller batch is kept",
    )
    drop_to = 0.2
    # GELU, two outputs per stage, and the drop of the rate are those of the multiclass script.
    multiclass: ClassVar = {"epochs": 22, "activation": "gelu", "outputs": "per_encoder", "lr_drop": 0.8}

    class Config(ReverseRecipe.Config):
        backbone: str = "wide_resnet50_2.tv_in1k"
        epochs: int = Field(130, ge=1)
        lr: float = Field(2e-3, gt=0)  # AdamW with AMSGrad, eps 1e-10
        lr_encoder: float = Field(1e-5, gt=0)
        beta1: float = Field(0.9, ge=0, lt=1)
        weight_decay: float = Field(1e-5, ge=0)
        activation: Literal["relu", "gelu"] = "relu"  # of bottleneck and decoder
        # per_encoder: a 1x1 convolution behind each stage
        outputs: Literal["shared", "per_encoder"] = "shared"
        distance: Literal["flat", "position"] = added("flat")  # the cosine of whole maps, or of each place
        adapt: bool = added(True)  # False: the second encoder stays as the teacher
        cross: bool = added(True)  # False: each encoder is rebuilt from itself
        stop_gradient: bool = added(True)  # of the adapting encoder where it is the target
        # A place nearer than mean + hardest * deviation of the distances teaches nothing.
        hardest: float = 1.0
        ramp: float = Field(0.1, ge=0, le=1)  # share of the training in which it rises from -3 to `hardest`
        score_share: float = Field(0.01, gt=0, le=1)  # of the map's largest values, whose mean is the score

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.encoder = copy.deepcopy(teacher).requires_grad_(config.adapt)  # starts as the teacher
        self.bottleneck = Bottleneck(teacher, config.backbone)
        self.decoder = Decoder(self.bottleneck.out_channels, teacher, config.backbone)
        if config.activation == "gelu":
            replace_relu(self.bottleneck)
            replace_relu(self.decoder)
        heads = teacher.channels if config.outputs == "per_encoder" else []
        self.to_frozen, self.to_adapting = (
            nn.ModuleList(nn.Conv2d(c, c, 1) for c in heads) for _ in range(2)
        )

    def train(self, mode: bool = True) -> "ReContrast":
        super().train(mode)
        self.encoder.eval()
        return self

    def pairs(self, images: Tensor, taught: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The targets [B,C,h,w], first all frozen levels, then all adapting ones, and the rebuilt levels."""
        adapting = self.encoder(images)
        first, second = (adapting, taught) if self.config.cross else (taught, adapting)
        both = [cat(pair) for pair in zip(first, second, strict=True)]
        halves = zip(*(x.unflatten(0, (2, -1)) for x in self.decoder(self.bottleneck(both))), strict=True)
        frozen, adapted = (list(half) for half in halves)
        if self.to_frozen:
            frozen = [f(x) for f, x in zip(self.to_frozen, frozen, strict=True)]
            adapted = [f(x) for f, x in zip(self.to_adapting, adapted, strict=True)]
        targets = [a.detach() for a in adapting] if self.config.stop_gradient else adapting
        return [*taught, *targets], [*frozen, *adapted]

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        targets, rebuilt = self.pairs(images, taught)
        taught_by = []
        for target, level in zip(targets, rebuilt, strict=True):
            hard = hard_places(cosine_distance(target, level).detach(), self.deviations())
            taught_by.append(scale_gradient(level, hard[:, None]))
        return level_distances(targets, taught_by, self.config.distance).sum() / 2

    def deviations(self) -> float:
        """The threshold of hard places at this step, in standard deviations above the mean distance."""
        c = self.config
        return c.hardest if self.progress >= c.ramp else -3 + (c.hardest + 3) * self.progress / c.ramp

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        maps = level_maps(*self.pairs(images, taught), images.shape[-1])
        return gaussian_blur(maps.sum(0), self.config.sigma, radius=RADIUS)

    def image_score(self, anomaly_map: Tensor) -> Tensor:
        return top_mean(anomaly_map, self.config.score_share)

    def optimizer(self) -> Optimizer:
        c, groups = self.config, self.parameter_groups({"encoder": self.config.lr_encoder})
        decay = c.weight_decay
        adam = AdamW(groups, lr=c.lr, betas=self.betas, weight_decay=decay, eps=1e-10, amsgrad=True)
        return self.clipped(adam)


METHOD = ReContrast
