"""DeSTSeg: a student gives the clean levels of a corrupted image; a segmentation net sees the difference.

Zhang et al.: DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection, CVPR 2023,
arXiv:2211.11317. Defaults are those of the official code (github.com/apple/ml-destseg), written anew.
"""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.optim import SGD, Optimizer

from kdbench.backbone import FeaturePyramid, normalisation, pyramid
from kdbench.method import Method, added, cosine_distance, fuse, top_mean, unit_vectors, upsample
from kdbench.methods._corrupt import Textures, corrupt
from kdbench.methods._segment import DenoisingDecoder, SegmentationNet, focal_loss, shrunk


class DeSTSeg(Method):
    """First the student learns to give the clean levels of a corrupted image, then the net to segment."""

    name = "destseg"
    paper = "arXiv:2211.11317"
    family = "segmentation"
    year = 2023
    licence = "Apple sample code licence"
    fidelity = "author's code, partly"
    departures = (
        "the code trains 1,000 and 4,000 steps of 32 images: here a fifth of the epochs, then the rest",
        "textures come from other training images, turned and mirrored; `textures=dtd` takes the code's set",
        "the code turns images by angles that it lists per category; here no image is turned",
        "the widths of the segmentation net and the blocks of the decoder are ours",
        "without a net the map is the sum of the levels' distances; the code multiplies them",
        "the score is the mean of the map's largest values, 100/4096 of them; the code takes 100 of 64x64",
        "the last, smaller batch is kept",
    )
    multiclass: ClassVar = {"epochs": 44}  # as many steps with all of MVTec AD

    class Config(Method.Config):
        epochs: int = Field(600, ge=1)
        batch_size: int = Field(32, ge=1)
        lr_student: float = Field(0.4, gt=0)  # SGD, momentum 0.9, weight decay 1e-4, for all three rates
        lr: float = Field(0.1, gt=0)  # of the segmentation net
        lr_head: float = Field(0.01, gt=0)  # of its last part
        student_share: float = Field(0.2, gt=0, lt=1)  # share of the training; the net learns in the rest
        # The paper's ablation, a plain student that mimics the teacher on normal images: the first two False.
        denoise: bool = added(True)  # False: the student sees the clean image while it learns
        decoder: bool = added(True)  # False: a student of the teacher's shape gives its own levels
        segment: bool = added(True)  # False: no segmentation net; the map is the sum of the levels' distances
        gamma: float = Field(4.0, ge=0)  # of the focal loss
        l1_weight: float = Field(1.0, ge=0)
        textures: Literal["train", "dtd"] = "train"  # dtd: the images below the folder KDBENCH_DATA/dtd
        score_share: float = Field(100 / 64**2, gt=0, le=1)

        @field_validator("levels")
        @classmethod
        def _a_level_is_left(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
            if any(b != a + 1 for a, b in pairwise(levels)) or levels[-1] > 3:
                raise ValueError("levels are neighbours up to 3: the decoder starts from the next one")
            return levels

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.encoder = pyramid(config.backbone, (config.levels[-1] + 1,) if config.decoder else config.levels)
        if config.decoder:
            self.decoder = DenoisingDecoder(self.encoder.channels[0], teacher.channels)
        net = SegmentationNet(sum(teacher.channels)) if config.segment else nn.Identity()
        self.segmentation: Any = net
        mean, std = normalisation(config.backbone)
        self.textures = Textures("dtd" if config.textures == "dtd" else "", mean, std)

    def denoised(self, images: Tensor) -> list[Tensor]:
        """The student's levels [B,C,h,w] of images that may be corrupted."""
        levels = self.encoder(images)
        return self.decoder(levels[0]) if self.config.decoder else levels

    def segmented(self, taught: list[Tensor], denoised: list[Tensor]) -> Tensor:
        """Where teacher and student differ: logits [B,h,w] at the size of the finest level."""
        size = taught[0].shape[-1]
        products = [-unit_vectors(t) * unit_vectors(s) for t, s in zip(taught, denoised, strict=True)]
        joined = [interpolate(p, (size, size), mode="bilinear", align_corners=False) for p in products]
        return self.segmentation(torch.cat(joined, 1))[:, 0].float()

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        c = self.config
        first = not c.segment or self.progress < c.student_share
        for name, part in self.named_children():  # BatchNorm counts only where a part learns
            if name != "teacher":
                part.train(first is not (name == "segmentation"))
        corrupted, mask = corrupt(images, self.textures)  # [B,3,S,S], [B,S,S]
        if first:
            pairs = zip(taught, self.denoised(corrupted if c.denoise else images), strict=True)
            return torch.stack([cosine_distance(t, s).mean((1, 2)).sum() for t, s in pairs]).sum()
        with torch.no_grad():
            levels, denoised = self.teach(corrupted), self.denoised(corrupted)
        logits = self.segmented(levels, denoised)
        target = shrunk(mask, logits.shape[-1])
        return focal_loss(logits, target, c.gamma) + c.l1_weight * (logits.sigmoid() - target).abs().mean()

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        if not self.config.segment:
            pairs = zip(taught, self.denoised(images), strict=True)
            return fuse([cosine_distance(t, s) for t, s in pairs], images.shape[-1])
        return upsample(self.segmented(taught, self.denoised(images)).sigmoid(), images.shape[-1])

    def image_score(self, anomaly_map: Tensor) -> Tensor:
        return top_mean(anomaly_map, self.config.score_share)

    def optimizer(self) -> Optimizer:
        c = self.config
        rates = {"encoder": c.lr_student, "decoder": c.lr_student, "segmentation.head": c.lr_head}
        return SGD(self.parameter_groups(rates), lr=c.lr, momentum=0.9, weight_decay=1e-4)


METHOD = DeSTSeg
