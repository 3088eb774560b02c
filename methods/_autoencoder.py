"""EfficientAD's autoencoder, the changes of its training images, and the map of both differences."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from kdbench.method import upsample

NORMAL, RARE = 0.9, 0.995  # these quantiles of the held-out maps are scaled to 0 and to 0.1
JITTER = 0.2  # brightness, contrast or saturation of a training image changes by at most this share
WIDTHS = (32, 32, 64, 64, 64)  # of the convolutions that halve the size


class Autoencoder(nn.Module):
    """Images [B,3,S,S] -> [B,outputs,h,w], through one vector of 64 values; h = S / 4 - 8.

    That is the size of the teacher's level, too (a patch description network without padding).
    """

    def __init__(self, outputs: int, image_size: int) -> None:
        super().__init__()
        layers, inputs = list[nn.Module](), 3
        for width in WIDTHS:
            layers += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), nn.ReLU()]
            inputs = width
        self.encoder = nn.Sequential(*layers, nn.Conv2d(inputs, inputs, image_size // 32))
        # 3, 8, 15, 32, 63, 127 for 256 pixels: every second size is one less than a power of two.
        self.sizes = [max(1, image_size // 2 ** (6 - i) - (i % 2 == 0 or i == 5)) for i in range(6)]
        self.places = image_size // 4 - 8
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, inputs, 4, padding=2), nn.ReLU(), nn.Dropout(0.2))
            for _ in self.sizes
        )
        self.output = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder(images)
        for size, block in zip(self.sizes, self.decoder, strict=True):
            x = block(interpolate(x, (size, size), mode="bilinear", align_corners=False))
        return self.output(interpolate(x, (self.places, self.places), mode="bilinear", align_corners=False))


def jittered(images: Tensor, black: list[float]) -> Tensor:
    """Normalised images [B,3,H,W] with another brightness, contrast or saturation, the same for the batch.

    `black` is the normalised value of a black pixel, per channel.
    """
    kind, factor = int(torch.randint(3, ())), 1 + JITTER * (2 * float(torch.rand(())) - 1)
    grey = images.mean(1, keepdim=True)
    darkest = torch.tensor(black, device=images.device)[:, None, None]
    towards = (darkest, grey.mean((2, 3), keepdim=True), grey)[kind]
    return towards + factor * (images - towards)


def joined(maps: list[Tensor], quantiles: Tensor, size: int) -> Tensor:
    """The mean of maps [B,h,w], each scaled by its quantiles [N,2] (NORMAL to 0, RARE to 0.1), at image size.

    Returns [B,size,size].
    """
    pairs = zip(maps, quantiles[: len(maps)], strict=True)
    scaled = [0.1 * (values - low) / (high - low).clamp(min=1e-12) for values, (low, high) in pairs]
    edge = max(0, size // 4 - maps[0].shape[-1]) // 2  # the border that unpadded convolutions cut off
    return upsample(pad(torch.stack(scaled).mean(0), (edge,) * 4), size)
