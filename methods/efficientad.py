"""EfficientAD: a small student of a small teacher, and an autoencoder that sees the whole image.

Batzner, Heckler, Koenig: EfficientAD, WACV 2024, arXiv:2303.14535. There is no official code; numbers are the
paper's, as github.com/nelson1425/EfficientAD has them.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from kdbench.backbone import FeaturePyramid, build_pdn, is_pdn, normalisation
from kdbench.method import Method, Pair, added, channel_statistics, ranked, top_mean
from kdbench.methods._autoencoder import NORMAL, RARE, Autoencoder, jittered, joined
from kdbench.methods._corrupt import Textures, draws_of_torch


class EfficientAD(Method):
    """The student predicts the teacher and the autoencoder; both differences, scaled alike, are the map."""

    name = "efficientad"
    paper = "arXiv:2303.14535"
    family = "forward"
    year = 2024
    licence = "no official code; that of nelson1425: Apache-2.0"
    fidelity = "author's code, partly"
    departures = (
        "the penalty is off; `penalty=images` takes those below KDBENCH_DATA/imagenet, resized and in colour",
        "the paper's teacher is not public: a row names the weights that were given, and their hash",
        "the paper counts 70,000 steps of one image: here epochs of about as many for a category of MVTec AD",
    )
    needs = "the weights of a patch description network (a file, or kdbench distil-teacher)"
    multiclass: ClassVar = {"epochs": 20}
    demo: ClassVar = {"backbone": "pdn_small.distilled", "levels": (1,), "batch_size": 1}
    tiny: ClassVar = {"backbone": "tiny_pdn", "lr": 3e-3}
    calibrates = True
    scheduler_every = "step"

    class Config(Method.Config):
        backbone: str = "pdn_small.distilled"  # or pdn_medium.distilled
        levels: tuple[int, ...] = Field((1,), min_length=1)
        epochs: int = Field(320, ge=1)
        batch_size: int = Field(1, ge=1)
        heldout_share: float = Field(0.1, gt=0, lt=1)  # for the quantiles
        lr: float = Field(1e-4, gt=0)  # Adam, weight decay 1e-5; a tenth after `lr_drop` of the training
        lr_drop: float = Field(0.95, gt=0, le=1)
        hardest: float = Field(1e-3, gt=0, le=1)  # only this share, the largest differences, is in the loss
        autoencoder: bool = True
        normalise: bool = added(True)  # False: both differences are averaged as they are
        penalty: Literal["none", "images"] = added("none")  # the student answers 0 to other images

        def conflicts(self) -> dict[str, bool]:
            usual = "the teacher is a patch description network, such as pdn_small.distilled"
            return {f"backbone {self.backbone!r}: {usual}": not is_pdn(self.backbone)}

    config: Config
    mean: Tensor
    std: Tensor
    quantiles: Tensor

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.channels = teacher.channels[0]
        self.student = build_pdn(config.backbone, (2 if config.autoencoder else 1) * self.channels)
        if config.autoencoder:
            self.autoencoder = Autoencoder(self.channels, config.image_size)
        mean, std = normalisation(config.backbone)
        self.black = [-m / s for m, s in zip(mean, std, strict=True)]  # a black pixel, normalised
        self.others = Textures("imagenet", mean, std) if config.penalty == "images" else None
        self.register_buffer("mean", torch.zeros(self.channels))  # of the teacher's channels
        self.register_buffer("std", torch.ones(self.channels))
        # NORMAL and RARE of the student's difference to the teacher, then of that to the autoencoder.
        self.register_buffer("quantiles", torch.tensor([[0, 0.1], [0, 0.1]]))

    def prepare(self, normals: Iterable[Pair]) -> None:
        """Mean and standard deviation of each of the teacher's channels over the training images."""
        mean, std = channel_statistics(level for _, (level,) in normals)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def normalised(self, level: Tensor) -> Tensor:
        """The teacher's level [B,C,h,w] with mean 0 and deviation 1 per channel, in float32."""
        return (level.float() - self.mean[:, None, None]) / self.std[:, None, None]

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        difference = (self.normalised(taught[0]) - self.student(images)[:, : self.channels].float()).square()
        total = [top_mean(difference[None], self.config.hardest).mean()]
        if self.others is not None:
            other = self.others.draw(images, draws_of_torch())
            total.append(self.student(other)[:, : self.channels].float().square().mean())
        if self.config.autoencoder:
            changed = jittered(images, self.black)
            rebuilt = self.autoencoder(changed).float()
            predicted = self.student(changed)[:, self.channels :].float()
            total.append((self.normalised(self.teach(changed)[0]) - rebuilt).square().mean())
            total.append((rebuilt - predicted).square().mean())
        return torch.stack(total).sum()

    def differences(self, images: Tensor, taught: list[Tensor]) -> list[Tensor]:
        """Squared differences per place, [B,h,w] each: of student and teacher, of student and autoencoder."""
        predicted, c = self.student(images).float(), self.channels
        maps = [(self.normalised(taught[0]) - predicted[:, :c]).square().mean(1)]
        if self.config.autoencoder:
            maps.append((self.autoencoder(images).float() - predicted[:, c:]).square().mean(1))
        return maps

    def calibrate(self, normals: Iterable[Pair]) -> None:
        """The quantiles of both differences over held-out normal images."""
        if self.config.normalise:
            for i, maps in enumerate(zip(*(self.differences(*pair) for pair in normals), strict=True)):
                self.quantiles[i] = ranked(maps, (NORMAL, RARE))

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        return joined(self.differences(images, taught), self.quantiles, images.shape[-1])

    def optimizer(self) -> Optimizer:
        return Adam(self.trained(), lr=self.config.lr, weight_decay=1e-5)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        drop = self.config.lr_drop
        return LambdaLR(optimizer, lambda step: 0.1 if step >= drop * self.num_steps > 1 else 1.0)


METHOD = EfficientAD
