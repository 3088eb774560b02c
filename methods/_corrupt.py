"""Synthetic defects for a loss: textures are pasted where Perlin noise is high (DRAEM, arXiv:2108.07610)."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import rotate
from torch import Tensor

from kdbench.defects import perlin
from kdbench.picture import images_below, open_image

LARGEST_OCTAVE = 5  # the noise has 2^0 to 2^5 cells along an axis; each axis draws its own number
THRESHOLD = 0.5 / math.sqrt(2)  # the code's 0.5 is for noise that is scaled by sqrt 2
TURN = 90.0  # the noise is turned by at most so many degrees, to either side
TRANSPARENCY = (0.0, 0.8)  # how much of the image shows through


class Textures:
    """Textures to paste: the images below `folder` in KDBENCH_DATA, or, if it is "", those of the batch."""

    def __init__(self, folder: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        data = Path(os.environ.get("KDBENCH_DATA", ""))
        self.paths = images_below(data / folder, f"the folder {folder} of KDBENCH_DATA: ") if folder else []
        self.mean, self.std = (torch.tensor(x)[:, None, None] for x in (mean, std))

    def draw(self, images: Tensor, draws: np.random.Generator) -> Tensor:
        """A normalised texture [B,3,S,S] for every image."""
        if not self.paths:
            others = images.roll(int(draws.integers(1, max(2, len(images)))), 0)
            turned = [torch.rot90(x, int(draws.integers(1, 4)), (1, 2)) for x in others]
            return torch.stack([x.flip(2) if draws.random() < 0.5 else x for x in turned])
        chosen = [self.paths[i] for i in draws.integers(len(self.paths), size=len(images))]
        return torch.stack([self._read(path, images.shape[-1]) for path in chosen]).to(images.device)

    def _read(self, path: Path, size: int) -> Tensor:
        image = open_image(path).image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.array(image)
        return (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - self.mean) / self.std


def draws_of_torch() -> np.random.Generator:
    """A NumPy generator with a seed from torch's generator, whose state is in every checkpoint."""
    return np.random.default_rng(int(torch.randint(2**62, ())))


def corrupt(images: Tensor, textures: Textures) -> tuple[Tensor, Tensor]:
    """Put a defect into each normalised image [B,3,S,S]; returns the images and bool masks [B,S,S]."""
    draws = draws_of_torch()
    masks = np.stack([noise_mask(images.shape[-1], draws) for _ in images])
    mask = torch.from_numpy(masks).to(images.device)
    shown = torch.from_numpy(draws.uniform(*TRANSPARENCY, len(images)).astype(np.float32)).to(images.device)
    shown = shown[:, None, None, None]
    pasted = shown * images + (1 - shown) * textures.draw(images, draws)
    return torch.where(mask[:, None], pasted, images), mask


def noise_mask(size: int, draws: np.random.Generator) -> np.ndarray:
    """A bool mask [S,S] of the places where turned Perlin noise is above THRESHOLD; at least one is."""
    cells = 2 ** draws.integers(0, LARGEST_OCTAVE + 1, 2)
    field = perlin(size, (int(cells[0]), int(cells[1])), 1, draws)[0]
    field = rotate(field, draws.uniform(-TURN, TURN), reshape=False, order=1, mode="reflect")
    return (field > THRESHOLD) | (field == field.max())
