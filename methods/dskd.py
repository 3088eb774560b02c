"""After DSKD: an encoder student and a decoder student with an embedding between them, one teacher.

Yao, Gao: Dual-Student Knowledge Distillation Networks for Unsupervised Anomaly Detection, arXiv:2402.00448.
Only the abstract is known to us: the parts are the paper's, every equation and number here is our reading.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import Pair, added, gaussian_blur
from kdbench.methods._forward import start_student
from kdbench.methods._reverse import Bottleneck, Decoder, ReverseRecipe, combined, level_distances, level_maps


class DSKD(ReverseRecipe):
    """Both students match the teacher's levels; the decoder hangs on the encoder, through a bottleneck."""

    name = "dskd"
    paper = "arXiv:2402.00448"
    family = "both"
    year = 2024
    licence = "no code known"
    fidelity = "after the abstract"
    departures = (
        "no equation, weight or recipe of the paper is known: all are our readings, after STFPM and RD4AD",
        "the embedding is RD4AD's bottleneck of the encoder's levels; its gradient reaches the encoder",
        "both students have RD4AD's rate, high for an encoder that starts at random (see `encoder_rate`)",
        "the map sums the distances of all levels and of both students; how the paper joins them is unknown",
        "other papers have the same or a similar name; this is arXiv:2402.00448",
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
        # mean_one: the sum of the maps, each divided by its mean on normal images that are held out for it
        student_fusion: Literal["sum", "product", "max", "mean_one"] = "sum"
        encoder_rate: float = added(1.0, gt=0)  # the encoder's learning rate, as a multiple of lr
        # zero_last: every residual block starts as its shortcut; teacher: a negative control
        encoder_start: Literal["random", "zero_last", "teacher"] = added("random")

        def conflicts(self) -> dict[str, bool]:
            alone, taught = self.students == "decoder", self.dfe_source == "teacher"
            next_level = self.dfe == "none" and self.students != "encoder"  # the decoder starts from it
            misplaced = self.dfe == "none" and taught
            copied = next_level and self.encoder_start == "teacher"
            no_encoder = alone and taught and (self.encoder_rate != 1 or self.encoder_start != "random")
            return super().conflicts() | {
                "dfe 'none' feeds the decoder the encoder's next level: dfe_source is 'student'": misplaced,
                "detach_dfe would leave the encoder untrained": self.detach_dfe and alone and not taught,
                "detach_dfe would leave the encoder's next level untrained": self.detach_dfe and next_level,
                "dfe 'none' takes the level behind the last, of four": next_level and self.levels[-1] > 3,
                "dfe 'none' takes a level that the teacher lacks: encoder_start is not 'teacher'": copied,
                "this decoder has no encoder: no encoder_rate, no encoder_start": no_encoder,
            }

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

    def rates(self) -> dict[str, float]:
        return {"encoder": self.config.encoder_rate * self.config.lr}

    def learned(self, images: Tensor, taught: list[Tensor]) -> list[list[Tensor]]:
        """The levels of each student that `students` names, the encoder first."""
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
        c = self.config
        scale = 2.0 if c.distance == "l2" else 1.0  # |t - s|^2 of unit vectors is 2 (1 - cos)
        names = ("encoder", "decoder") if c.students == "both" else (c.students,)
        weights = {"encoder": scale, "decoder": scale * (c.decoder_weight if len(names) == 2 else 1.0)}
        students = zip(names, self.learned(images, taught), strict=True)
        return {n: weights[n] * level_distances(taught, s, c.distance).sum() for n, s in students}

    def student_maps(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        """The map of each student [S,B,H,W], not blurred."""
        students, size = self.learned(images, taught), images.shape[-1]
        maps = [level_maps(taught, levels, size) for levels in students]  # [L,B,H,W] each
        return torch.stack([combined(levels, self.config.fusion) for levels in maps])

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        both, how = self.student_maps(images, taught), self.config.student_fusion
        if how == "mean_one":
            both = both / self.means[:, None, None, None]
        return gaussian_blur(combined(both, how), self.config.sigma)


METHOD = DSKD
