"""The base of STFPM and DCAM: a student pyramid that sees the image, trained by SGD; starts of a student."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.optim import SGD, Optimizer

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import Method, fuse, gaussian_blur


class ForwardStudent(Method):
    """A student of the teacher's shape, started at random; every method sets lr and fusion itself."""

    class Config(Method.Config):
        batch_size: int = Field(32, ge=1)
        lr: float = Field(gt=0)
        momentum: float = Field(0.9, ge=0, lt=1)
        weight_decay: float = Field(1e-4, ge=0)
        checkpoint: Literal["heldout", "last"] = "heldout"  # lowest mean map on held-out normal images
        fusion: Literal["product", "sum"]  # of the levels
        map_grid: int = Field(64, ge=0)  # level maps meet at 64x64, then go to image size; 0: at image size
        sigma: float = Field(0.0, ge=0)  # of a Gaussian over the map; 0: none

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.student = pyramid(config.backbone, config.levels)

    def fused(self, level_maps: list[Tensor], size: int) -> Tensor:
        """The anomaly map [B,size,size] of the levels' maps."""
        c = self.config
        return gaussian_blur(fuse(level_maps, size, grid=c.map_grid, product=c.fusion == "product"), c.sigma)

    def optimizer(self) -> Optimizer:
        c = self.config
        return SGD(self.trained(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)


def start_student(student: FeaturePyramid, teacher: FeaturePyramid, how: str) -> None:
    """Start a student that is random so far.

    "random" leaves it as it is, "teacher" gives it the teacher's tensors, "zero_last" makes each residual
    block start as its shortcut. ValueError for "zero_last" if the backbone has no residual blocks.
    """
    if how == "teacher":
        student.load_state_dict(teacher.state_dict())
    if how == "zero_last":
        found = [getattr(module, "zero_init_last", None) for module in student.modules()]  # timm's blocks
        starts = [start for start in found if callable(start)]
        if not starts:
            raise ValueError("zero_last starts residual blocks at their shortcut, and the backbone has none")
        for start in starts:
            start()
