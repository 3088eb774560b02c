"""RD4AD's reverse student, shared by five methods: a bottleneck embeds a pyramid, a decoder rebuilds it.

Written anew from facts of the official code (github.com/hq-deng/RD4AD), without its unused convolution.
"""

from itertools import pairwise
from typing import ClassVar

from pydantic import Field
from torch import Tensor, cat, nn, no_grad, stack
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR

from kdbench.backbone import FeaturePyramid
from kdbench.method import Method, added, cosine_distance, flat_cosine_distance, upsample

# Backbones that are built of bottleneck blocks.
DEEP = ("resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")


class ReverseRecipe(Method):
    """RD4AD's training, for all methods with its decoder: Adam, batch 16, 200 epochs; the last is kept."""

    class Config(Method.Config):
        without_decoder: ClassVar[tuple[str, str] | None] = None  # a key and its value that mean: no decoder
        epochs: int = Field(200, ge=1)
        batch_size: int = Field(16, ge=1)
        lr: float = Field(5e-3, gt=0)
        beta1: float = Field(0.5, ge=0, lt=1)
        beta2: float = added(0.999, ge=0, lt=1)
        warmup: int = added(0, ge=0)  # steps over which the rate rises linearly from 0
        clip: float = added(0.0, ge=0)  # largest norm of the gradient; 0: no limit
        lr_drop: float = Field(1.0, gt=0, le=1)  # share of the epochs after which lr is a tenth; 1: never
        sigma: float = Field(4.0, ge=0)  # of the Gaussian over the map

        def conflicts(self) -> dict[str, bool]:
            if self.without_decoder and getattr(self, self.without_decoder[0]) == self.without_decoder[1]:
                return {}
            levels, size = self.levels, self.image_size
            apart = any(coarse != fine + 1 for fine, coarse in pairwise(levels))
            stride = 2 ** (levels[-1] + 2)  # of the embedding: twice that of the deepest level
            return {
                f"levels {levels}: the decoder rebuilds neighbouring levels, such as 1, 2, 3": apart,
                f"image_size {size}: with level {levels[-1]} it is a multiple of {stride}": size % stride > 0,
            }

    drop_to: ClassVar[float] = 0.1  # the factor of the rate after `lr_drop`
    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        if config.warmup:
            self.scheduler_every = "step"

    @property
    def betas(self) -> tuple[float, float]:
        return self.config.beta1, self.config.beta2

    def rates(self) -> dict[str, float]:
        """Part -> its learning rate, for parts whose rate is not `lr`."""
        return {}

    def optimizer(self) -> Optimizer:
        groups = self.parameter_groups(self.rates())
        return self.clipped(Adam(groups, lr=self.config.lr, betas=self.betas))

    def clipped(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, which clips the gradient before every step if the config says so."""

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(self.trained(), self.config.clip)

        if self.config.clip:
            optimizer.register_step_pre_hook(clip)
        return optimizer

    def scheduler(self, optimizer: Optimizer) -> LRScheduler:
        c = self.config
        if c.warmup:
            return LambdaLR(optimizer, self.rate)
        return MultiStepLR(optimizer, [round(c.lr_drop * c.epochs)], gamma=self.drop_to)

    def rate(self, step: int) -> float:
        """The factor of the rate at a step, with a warm-up."""
        c = self.config
        return min(1.0, (step + 1) / c.warmup) * (self.drop_to if step >= c.lr_drop * self.num_steps else 1.0)


def level_distances(taught: list[Tensor], learned: list[Tensor], how: str) -> Tensor:
    """The mean of 1 - cosine per level [L]: over its places, or ("flat") over the images' whole levels."""
    distance = flat_cosine_distance if how == "flat" else cosine_distance
    return stack([distance(t, s).mean() for t, s in zip(taught, learned, strict=True)])


def level_maps(
    taught: list[Tensor], learned: list[Tensor], size: int, *, align_corners: bool = True
) -> Tensor:
    """1 - cosine at each place of every level, at image size: [L,B,size,size]."""
    pairs = zip(taught, learned, strict=True)
    return stack([upsample(cosine_distance(t, s), size, align_corners=align_corners) for t, s in pairs])


def combined(maps: Tensor, how: str) -> Tensor:
    """One map [B,H,W] of several [N,B,H,W]: their sum, product or maximum."""
    return maps.prod(0) if how == "product" else maps.amax(0) if how == "max" else maps.sum(0)


def hard_places(distance: Tensor, deviations: float) -> Tensor:
    """1 where a distance [B,h,w] is at least its mean plus `deviations` standard deviations, else 0."""
    return (distance >= distance.mean() + deviations * distance.std()).to(distance.dtype)


class Block(nn.Module):
    """A residual block, inputs -> outputs channels; `resize` halves ("down"), doubles ("up") or keeps sizes.

    The path has two 3x3 convolutions, or, with `width`, 1x1, 3x3 and 1x1 with `width` channels inside. "up"
    takes a transposed 2x2 convolution in place of the strided one, on the path and on the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, *, resize: str = "", width: int = 0) -> None:
        super().__init__()
        if width:
            convs = [conv(inputs, width, 1), conv(width, width, 3, resize), conv(width, outputs, 1)]
        else:
            convs = [conv(inputs, outputs, 3, resize), conv(outputs, outputs, 3)]
        layers: list[nn.Module] = []
        for one in convs:
            layers += [one, nn.BatchNorm2d(one.out_channels), nn.ReLU(inplace=True)]
        self.path = nn.Sequential(*layers[:-1])
        shortcut = nn.Sequential(conv(inputs, outputs, 1, resize), nn.BatchNorm2d(outputs))
        self.shortcut = shortcut if resize else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    @property
    def last_norms(self) -> list[nn.BatchNorm2d]:
        """The last normalisation of the path, and that of the shortcut if it has one."""
        ends = (self.path[-1], *self.shortcut.children())
        return [module for module in ends if isinstance(module, nn.BatchNorm2d)]

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.path(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Levels [B,C,h,w] -> one embedding [B,2C',h'/2,w'/2]; C', h', w' are the deepest level's (OCBE)."""

    def __init__(self, pyramid: FeaturePyramid, backbone: str) -> None:
        super().__init__()
        channels, deepest = pyramid.channels, pyramid.channels[-1]
        if any(coarse != 2 * fine for fine, coarse in pairwise(pyramid.strides)):
            raise ValueError(
                f"a bottleneck needs neighbouring levels; the strides of these are {pyramid.strides}"
            )
        self.to_deepest = nn.ModuleList(
            nn.Sequential(*(layer for a, b in pairwise(channels[i:]) for layer in halve(a, b)))
            for i in range(len(channels))
        )
        self.out_channels = 2 * deepest
        width = block_width(backbone, deepest // 2)
        blocks = [Block(deepest * len(channels), self.out_channels, resize="down", width=width)]
        blocks += [Block(self.out_channels, self.out_channels, width=width) for _ in range(2 if width else 1)]
        self.stage = nn.Sequential(*blocks)
        start(self)

    def forward(self, levels: list[Tensor]) -> Tensor:
        return self.stage(cat([bring(x) for bring, x in zip(self.to_deepest, levels, strict=True)], 1))


class Decoder(nn.Module):
    """Embedding [B,inputs,h,w] -> maps with the channels and sizes of a pyramid, in its order."""

    def __init__(self, inputs: int, pyramid: FeaturePyramid, backbone: str) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for i, outputs in enumerate(reversed(pyramid.channels)):
            width = block_width(backbone, outputs // 4)
            num_blocks = (3, 4, 6)[min(i, 2)] if width else 2
            blocks = [Block(inputs, outputs, resize="up", width=width)]
            blocks += [Block(outputs, outputs, width=width) for _ in range(num_blocks - 1)]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
        start(self)

    @no_grad()
    def match(self, embedding: Tensor, taught: list[Tensor]) -> None:
        """Scale each level at the start: its vectors get the mean length of the teacher's in `taught`.

        The last normalisations of a stage (their biases are 0 at the start) feed only its level and a
        convolution that is normalised, so the other levels stay as they are.
        """
        rebuilt = self.forward(embedding)
        for stage, t, s in zip(self.stages, reversed(taught), reversed(rebuilt), strict=True):
            factor = t.float().norm(dim=1).mean() / s.float().norm(dim=1).mean()
            for block in (module for module in stage.modules() if isinstance(module, Block)):
                for norm in block.last_norms:
                    norm.weight.mul_(factor)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            embedding = stage(embedding)
            maps.append(embedding)
        return maps[::-1]


def block_width(backbone: str, planes: int) -> int:
    """Channels inside a bottleneck block of this backbone; 0 if it is built of basic blocks."""
    architecture = backbone.partition(".")[0]
    return (2 if architecture.startswith("wide_") else 1) * planes if architecture in DEEP else 0


def conv(inputs: int, outputs: int, kernel: int, resize: str = "") -> nn.Conv2d | nn.ConvTranspose2d:
    """A convolution without bias that keeps, halves or doubles the size."""
    if resize == "up":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, 2 if resize else 1, padding=kernel // 2, bias=False)


def halve(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return conv(inputs, outputs, 3, "down"), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def start(network: nn.Module) -> None:
    """Initialise as the official code: Kaiming normal by fan-out; transposed convolutions keep PyTorch's."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def replace_relu(network: nn.Module) -> None:
    """Put a GELU in place of every ReLU."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.GELU())
