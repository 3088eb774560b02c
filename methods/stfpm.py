"""STFPM: a student learns the direction of the teacher's feature vectors at every position of a pyramid.

Wang, Han, Ding, Huang: Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021.
Defaults are those of the authors' code (github.com/gdwang08/STFPM), written anew from its facts.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.backbone import FeaturePyramid
from kdbench.method import squared_distance
from kdbench.methods._forward import ForwardStudent


class STFPM(ForwardStudent):
    """A student of the teacher's shape, started at random; large distances of unit vectors are anomalies."""

    name = "stfpm"
    paper = "arXiv:2103.04257"
    family = "forward"
    year = 2021
    licence = "GPL-3.0"
    fidelity = "official recipe"
    departures = (
        "the 20 % of held-out normal images are drawn per category and by the seed, not from one sorted list",
        "the code rounds these 20 % up: oneclass wood, hazelnut and pill have one held-out image more there",
        "multiclass has no official recipe: 400 epochs, after the code of arXiv:2407.02968",
    )
    multiclass: ClassVar[dict[str, Any]] = {"epochs": 400}

    class Config(ForwardStudent.Config):  # batch 32, SGD momentum 0.9, weight decay 1e-4, map grid 64
        epochs: int = Field(200, ge=1)  # the README's command; the code's default is 100
        lr: float = Field(0.4, gt=0)
        fusion: Literal["product", "sum"] = "product"
        loss_scale: float = Field(1.0, gt=0)  # the paper's 1/2 is not in the code that lr 0.4 belongs to
        student_start: Literal["random", "teacher"] = "random"  # "teacher" is a negative control

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        if config.student_start == "teacher":
            self.student.load_state_dict(teacher.state_dict())

    def distances(self, images: Tensor, taught: list[Tensor]) -> list[Tensor]:
        """Per level, the squared distance of the unit vectors: [B,h,w], 0 to 4."""
        pairs = zip(taught, self.student(images), strict=True)
        return [squared_distance(t, s) for t, s in pairs]

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        return self.config.loss_scale * torch.stack([d.mean() for d in self.distances(images, taught)]).sum()

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        return self.fused(self.distances(images, taught), images.shape[-1])


METHOD = STFPM
