"""A trained detector as one network, from the pixels of images to anomaly maps and image scores."""

import copy

import torch
from torch import Tensor, nn

from kdbench.backbone import Blocks, FeaturePyramid, normalisation
from kdbench.method import Method


class Deployed(nn.Module):
    """Teacher, student, fusion and score of a method in float32, without parts that only its loss uses."""

    mean: Tensor
    std: Tensor

    def __init__(self, method: Method) -> None:
        super().__init__()
        alone = copy.deepcopy(method).float().eval().requires_grad_(False)
        for name in alone.training_only:
            delattr(alone, name)
        for pyramid in alone.modules():
            if isinstance(pyramid, FeaturePyramid) and isinstance(pyramid.body, Blocks):
                # Positions are interpolated for this size once: ONNX has another bicubic kernel than torch.
                side = pyramid.crop or alone.config.image_size
                pyramid.body.network.set_input_size(img_size=(side, side))
        self.method = alone
        mean, std = normalisation(alone.config.backbone)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(std)[:, None, None] * 255)

    @property
    def image_size(self) -> int:
        """The side of the square images that it takes, in pixels."""
        return int(self.method.config.image_size)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """RGB images uint8 [B,S,S,3] -> anomaly maps [B,S,S] and image scores [B]; larger is worse."""
        normalised = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        maps = self.method.anomaly_map(normalised, self.method.teacher(normalised))
        return maps, self.method.image_score(maps)
