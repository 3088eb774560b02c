"""DeSTSeg's student decoder, its segmentation net, and the target and loss of that net."""

from torch import Tensor, cat, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from kdbench.methods._reverse import Block

RATES = (6, 12, 18)  # of the dilated convolutions
WIDTH = 128  # channels of the segmentation net


class DenoisingDecoder(nn.Module):
    """The map [B,C,h,w] of the next deeper level -> a pyramid's levels: its channels, sizes and order."""

    def __init__(self, inputs: int, channels: list[int]) -> None:
        super().__init__()
        self.first = nn.Sequential(Block(inputs, inputs), Block(inputs, inputs))
        self.stages = nn.ModuleList()
        for outputs in reversed(channels):
            narrow = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
            )
            self.stages.append(nn.Sequential(narrow, Block(outputs, outputs), Block(outputs, outputs)))
            inputs = outputs

    def forward(self, deepest: Tensor) -> list[Tensor]:
        x, maps = self.first(deepest), []
        for stage in self.stages:
            x = stage(interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            maps.append(x)
        return maps[::-1]


class SegmentationNet(nn.Module):
    """Channels [B,C,h,w] -> logits [B,1,h,w]: residual blocks, then parallel dilated convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, WIDTH, 1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
            Block(WIDTH, WIDTH),
            Block(WIDTH, WIDTH),
        )
        self.head = ASPP(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv:1706.05587) and a classifier of every place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [branch(channels, 1, 1), *(branch(channels, 3, rate) for rate in RATES)]
        )
        self.image = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU())  # of the whole image's mean
        self.join = branch((len(RATES) + 2) * channels, 1, 1, channels)
        self.classify = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        return self.classify(self.join(cat([*(f(x) for f in self.branches), whole], 1)))


def branch(inputs: int, kernel: int, rate: int, outputs: int = 0) -> nn.Sequential:
    """A dilated convolution that keeps the size, with BatchNorm and ReLU."""
    padding = rate if kernel == 3 else 0
    convolution = nn.Conv2d(inputs, outputs or inputs, kernel, padding=padding, dilation=rate, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs or inputs), nn.ReLU())


def shrunk(mask: Tensor, size: int) -> Tensor:
    """Masks [B,S,S] -> [B,size,size], values 0 or 1: bilinear, then 1 above a half, as in the code."""
    soft = interpolate(mask[:, None].float(), (size, size), mode="bilinear", align_corners=False)
    return (soft[:, 0] > 0.5).float()


def focal_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p)^gamma log p, with p the probability of the true class (arXiv:1708.02002, no alpha)."""
    log_p = -binary_cross_entropy_with_logits(logits, target, reduction="none")
    return -((1 - log_p.exp()) ** gamma * log_p).mean()
