"""After DSKD: an encoder student and a decoder student with an embedding between them, one teacher.

Yao, Gao: Dual-Student Knowledge Distillation Networks for Unsupervised Anomaly Detection, arXiv:2402.00448.
Only the abstract is known to us: the parts are the paper's, every equation and number here is our reading.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim import Adam, Optimizer

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import Family, Fidelity, Pair, added, cosine_distance, flat_cosine_distance, gaussian_blur
from kdbench.methods._forward import start_student
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
        # mean_one: the sum of maps, each divided by its mean on held-out normal images, which it sets aside
        student_fusion: Literal["sum", "product", "max", "mean_one"] = "sum"
        encoder_rate: float = added(1.0, gt=0)  # the encoder's learning rate, as a multiple of lr
        # zero_last: every residual block starts as its shortcut; teacher: a negative control
        encoder_start: Literal["random", "zero_last", "teacher"] = added("random")

        @model_validator(mode="after")
        def _fits_together(self) -> "DSKD.Config":
            alone, taught = self.students == "decoder", self.dfe_source == "teacher"
            next_level = self.dfe == "none" and self.students != "encoder"  # the decoder starts from it
            misplaced = self.dfe == "none" and taught
            copied = next_level and self.encoder_start == "teacher"
            no_encoder = alone and taught and (self.encoder_rate != 1 or self.encoder_start != "random")
            wrong = {
                "dfe 'none' feeds the decoder the encoder's next level: dfe_source is 'student'": misplaced,
                "detach_dfe would leave the encoder untrained": self.detach_dfe and alone and not taught,
                "detach_dfe would leave the encoder's next level untrained": self.detach_dfe and next_level,
                "dfe 'none' takes the level behind the last, of four": next_level and self.levels[-1] > 3,
                "dfe 'none' takes a level that the teacher lacks: encoder_start is not 'teacher'": copied,
                "this decoder has no encoder: no encoder_rate, no encoder_start": no_encoder,
            }
            if any(wrong.values()):
                raise ValueError("; ".join(text for text, applies in wrong.items() if applies))
            return self

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        extra = (max(config.levels) + 1,) if config.dfe == "none" and config.students != "encoder" else ()
        if config.students != "decoder" or config.dfe_source == "student":
            self.encoder = pyramid(config.backbone, (*config.levels, *extra))
            start_student(self.encoder, teacher, config.encoder_start)
        if config.students != "encoder":
            inputs = self.encoder.channels[-1] if extra else 0
            if config.dfe == "bottleneck":
                self.dfe = Bottleneck(teacher, config.backbone)
                inputs = self.dfe.out_channels
            self.decoder = Decoder(inputs, teacher, config.backbone)
        if config.student_fusion == "mean_one":
            self.calibrates = True
            self.register_buffer("means", torch.ones(2 if config.students == "both" else 1))

    @classmethod
    def holds_out(cls, config: Any) -> bool:
        return super().holds_out(config) or config.student_fusion == "mean_one"

    def calibrate(self, normals: Iterable[Pair]) -> None:
        if self.config.student_fusion == "mean_one":
            batches = [self.student_maps(*pair).mean((2, 3)) for pair in normals]
            self.means: Tensor = torch.cat(batches, 1).mean(1)

    def optimizer(self) -> Optimizer:
        c = self.config
        if c.encoder_rate == 1:
            return super().optimizer()
        encoder = [*self.encoder.parameters()]
        rest = [p for n, p in self.named_parameters() if not n.startswith(("teacher.", "encoder."))]
        groups: list[dict[str, Any]] = [{"params": encoder, "lr": c.encoder_rate * c.lr}, {"params": rest}]
        return self.clipped(Adam(groups, lr=c.lr, betas=self.betas))

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

    def terms(self, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
        c, terms = self.config, dict[str, Tensor]()
        distance = flat_cosine_distance if c.distance == "flat" else cosine_distance
        scale = 2.0 if c.distance == "l2" else 1.0  # |t - s|^2 of unit vectors is 2 (1 - cos)
        names = ("encoder", "decoder") if c.students == "both" else (c.students,)
        for name, levels in zip(names, self.learned(images, taught), strict=True):
            matched = torch.stack([distance(t, s).mean() for t, s in zip(taught, levels, strict=True)]).sum()
            terms[name] = scale * matched
        if c.students == "both":
            terms["decoder"] = c.decoder_weight * terms["decoder"]
        return terms

    def student_maps(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        """The map of each student [S,B,H,W], not blurred."""
        per_student = []
        for levels in self.learned(images, taught):
            maps = level_maps(taught, levels, images.shape[-1])  # [L,B,H,W]
            per_student.append(maps.prod(0) if self.config.fusion == "product" else maps.sum(0))
        return torch.stack(per_student)

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        both, how = self.student_maps(images, taught), self.config.student_fusion
        if how == "mean_one":
            both = both / self.means[:, None, None, None]
        fused = both.prod(0) if how == "product" else both.amax(0) if how == "max" else both.sum(0)
        return gaussian_blur(fused, self.config.sigma)


METHOD = DSKD
