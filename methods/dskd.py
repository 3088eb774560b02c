"""After DSKD: an encoder student and a decoder student with an embedding between them, one teacher.

Yao, Gao: Dual-Student Knowledge Distillation Networks for Unsupervised Anomaly Detection, arXiv:2402.00448.
Only the abstract is known to us: the parts are the paper's, every equation and number here is our reading.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import Family, Fidelity, cosine_distance, flat_cosine_distance, gaussian_blur
from kdbench.methods._reverse import Bottleneck, Decoder, ReverseRecipe, level_maps


class DSKD(ReverseRecipe):
    """Both students match the teacher's levels; the decoder hangs on the encoder, through a bottleneck."""

    name = "dskd"
    paper = "arXiv:2402.00448"
    family: ClassVar[Family] = "both"
    year = 2024
    licence = "no code known"
    fidelity: ClassVar[Fidelity] = "after the abstract"
    departures = (
        "no equation, weight or recipe of the paper is known: all are our readings, after its parents",
        "two other papers share the name; this is the encoder and decoder student of arXiv:2402.00448",
    )

    class Config(ReverseRecipe.Config):  # epochs 200, batch 16, Adam 5e-3 (0.5, 0.999), sigma 4
        without_decoder = ("students", "encoder")
        students: Literal["both", "encoder", "decoder"] = "both"
        dfe: Literal["bottleneck", "none"] = "bottleneck"  # RD4AD's; none: the encoder's next level instead
        dfe_source: Literal["student", "teacher"] = "student"  # whose levels are embedded
        detach_dfe: bool = False  # stop the decoder's gradient before the encoder
        distance: Literal["position", "l2", "flat"] = "position"  # l2 is twice position; flat is RD4AD's loss
        decoder_weight: float = Field(1.0, ge=0)
        fusion: Literal["sum", "product"] = "sum"  # over levels
        student_fusion: Literal["sum", "product", "max"] = "sum"

        @model_validator(mode="after")
        def _fits_together(self) -> "DSKD.Config":
            if self.dfe_source == "teacher" and self.dfe == "none":
                raise ValueError(
                    "dfe 'none' feeds the decoder the encoder's next level: dfe_source is 'student'"
                )
            if self.students == "decoder" and self.dfe_source == "student" and self.detach_dfe:
                raise ValueError("detach_dfe would leave the encoder of a lone decoder untrained")
            if self.dfe == "none" and self.students != "encoder" and self.detach_dfe:
                raise ValueError(
                    "detach_dfe would leave the encoder's next level untrained: dfe 'bottleneck'"
                )
            if self.dfe == "none" and self.students != "encoder" and self.levels[-1] > 3:
                raise ValueError(f"dfe 'none' takes the level behind {self.levels[-1]}, and there are four")
            return self

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        extra = (max(config.levels) + 1,) if config.dfe == "none" and config.students != "encoder" else ()
        if config.students != "decoder" or config.dfe_source == "student":
            self.encoder = pyramid(config.backbone, (*config.levels, *extra))
        if config.students != "encoder":
            inputs = self.encoder.channels[-1] if extra else 0
            if config.dfe == "bottleneck":
                self.dfe = Bottleneck(teacher, config.backbone)
                inputs = self.dfe.out_channels
            self.decoder = Decoder(inputs, teacher, config.backbone)

    def learned(self, images: Tensor, taught: list[Tensor]) -> list[list[Tensor]]:
        """The levels of the encoder and of the decoder, of whichever there are."""
        c, students = self.config, []
        encoded = self.encoder(images) if hasattr(self, "encoder") else []
        if c.students != "decoder":
            students.append(encoded[: len(taught)])
        if c.students != "encoder":
            source = taught if c.dfe_source == "teacher" else encoded
            source = [level.detach() for level in source] if c.detach_dfe else source
            students.append(self.decoder(self.dfe(source) if c.dfe == "bottleneck" else source[-1]))
        return students

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        distance = flat_cosine_distance if self.config.distance == "flat" else cosine_distance
        scale = 2.0 if self.config.distance == "l2" else 1.0  # |t - s|^2 of unit vectors is 2 (1 - cos)
        terms = []
        for levels in self.learned(images, taught):
            matched = torch.stack([distance(t, s).mean() for t, s in zip(taught, levels, strict=True)]).sum()
            terms.append(scale * matched)
        if self.config.students == "both":
            terms[1] = self.config.decoder_weight * terms[1]
        return torch.stack(terms).sum()

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        per_student = []
        for levels in self.learned(images, taught):
            maps = level_maps(taught, levels, images.shape[-1])  # [L,B,H,W]
            per_student.append(maps.prod(0) if self.config.fusion == "product" else maps.sum(0))
        both = torch.stack(per_student)
        fused = {"sum": both.sum(0), "product": both.prod(0), "max": both.amax(0)}[self.config.student_fusion]
        return gaussian_blur(fused, self.config.sigma)


METHOD = DSKD
