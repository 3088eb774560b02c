"""Synthetic defects on normal images, so that a hyper-parameter can be chosen without test images.

Patches and scars follow CutPaste (Li et al., arXiv:2104.04015, section 2.1 and appendix A). Masks from Perlin
noise and the blending follow DRAEM (Zavrtanik et al., arXiv:2108.07610, section 3.1). DRAEM takes its
textures from photographs; here they are octaves of the same noise, in colour.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEFECTS_VERSION = 1  # part of a sweep's id: other defects are another objective

PATCH_AREA = (0.02, 0.15)  # share of the image that CutPaste cuts
PATCH_RATIO = (0.3, 3.3)  # its height over its width
# Shares of the side: 2 to 16 and 10 to 25 px of 256.
SCAR_WIDTH, SCAR_LENGTH = (2 / 256, 16 / 256), (10 / 256, 25 / 256)
SCAR_ANGLE = 45.0  # degrees to either side
JITTER = 0.1  # brightness, contrast and saturation of a pasted piece change by at most this share
STAIN_AREA = (0.002, 0.08)  # share of the image above the threshold of the noise
LOCALITY = 4.0  # by which the noise falls with the squared distance (in sides) from the place of a stain
OPACITY = (0.1, 1.0)  # opacity of a texture or a colour over the image: DRAEM's beta
# Background pasted on background is no defect: this share of a mask must differ by this many grey levels.
VISIBLE_SHARE, VISIBLE_LEVELS = 0.5, 8
DRAWS = 12  # attempts at a visible defect; then the image gets a stain of one colour, which is always visible

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Generator = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Defective:
    """Images with one defect each, uint8 [N,S,S,3]; its mask, bool [N,S,S]; its kind [N]."""

    images: Pixels
    masks: Mask
    kinds: tuple[str, ...]


def make_defects(images: Pixels, seed: int) -> Defective:
    """Put one defect on each of `images`, uint8 [N,S,S,3]; the kinds take turns, and a seed repeats them.

    Sizes and places are shares of the image, the same at every image size. Each image has random numbers of
    its own: image i does not depend on the others. ValueError for images of another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are uint8 [N,S,S,3], not {images.dtype} {images.shape}")
    made, masks, kinds = np.empty_like(images), np.zeros(images.shape[:3], bool), []
    first = int(np.random.default_rng([seed, 0xDEFEC7]).integers(len(KINDS)))
    for i, image in enumerate(images):
        kind = tuple(KINDS)[(first + i) % len(KINDS)]
        made[i], masks[i], kind = _visible(image, kind, np.random.default_rng([seed, i, 0xDEFEC7]))
        kinds.append(kind)
    return Defective(images=made, masks=masks, kinds=tuple(kinds))


def _visible(image: Pixels, kind: str, generator: Generator) -> tuple[Pixels, Mask, str]:
    """Draw defects until one is visible."""
    for draw in range(DRAWS + 100):
        kind = kind if draw < DRAWS else "colour"
        made, mask = KINDS[kind](image, generator)
        differs = np.abs(made.astype(np.int16) - image).max(-1) >= VISIBLE_LEVELS
        if mask.any() and differs[mask].mean() >= VISIBLE_SHARE:
            return made, mask, kind
    raise AssertionError("a hundred random colours all look like the image")


def cut_patch(image: Pixels, generator: Generator) -> tuple[Pixels, Mask]:
    """CutPaste: copy a rectangle of the image to another place, with jittered colours."""
    area = generator.uniform(*PATCH_AREA)
    ratio = np.exp(generator.uniform(*np.log(PATCH_RATIO)))
    return _paste(image, np.sqrt(area * ratio), np.sqrt(area / ratio), 0.0, generator)


def cut_scar(image: Pixels, generator: Generator) -> tuple[Pixels, Mask]:
    """CutPaste-Scar: copy a thin, rotated rectangle to another place, with jittered colours."""
    width, length = generator.uniform(*SCAR_WIDTH), generator.uniform(*SCAR_LENGTH)
    angle = np.deg2rad(generator.uniform(-SCAR_ANGLE, SCAR_ANGLE))
    return _paste(image, length, width, angle, generator)


def texture(image: Pixels, generator: Generator) -> tuple[Pixels, Mask]:
    """DRAEM: blend a foreign texture over the image where Perlin noise is high."""
    size = image.shape[0]
    octaves = [perlin(size, (2**k, 2**k), 3, generator) / 2 ** (k - 3) for k in range(3, 6)]
    noise = np.sum(octaves, 0)  # [3,S,S]
    low, high = noise.min((1, 2), keepdims=True), noise.max((1, 2), keepdims=True)
    return _blend(image, np.moveaxis(255 * (noise - low) / (high - low), 0, -1), generator)


def colour(image: Pixels, generator: Generator) -> tuple[Pixels, Mask]:
    """A stain: blend one colour over the image where Perlin noise is high."""
    return _blend(image, generator.uniform(0, 255, 3), generator)


KINDS: dict[str, Callable[[Pixels, Generator], tuple[Pixels, Mask]]] = {
    "cutpaste": cut_patch,
    "scar": cut_scar,
    "texture": texture,
    "colour": colour,
}


def perlin(size: int, cells: tuple[int, int], count: int, generator: Generator) -> NDArray[np.float64]:
    """`count` fields of Perlin noise [count,S,S] on a lattice of `cells`, between -0.71 and 0.71.

    The corners of the cells have gradients of length 1. Their products with the vector from the corner are
    blended by 6t^5 - 15t^4 + 10t^3 (Perlin, Improving Noise, 2002, doi 10.1145/566570.566636).
    """
    angles = generator.uniform(0, 2 * np.pi, (count, cells[0] + 1, cells[1] + 1))
    gradients = np.stack([np.sin(angles), np.cos(angles)])  # y and x
    y, x = ((np.arange(size) + 0.5) / size * n for n in cells)
    row, column = y.astype(int), x.astype(int)
    y, x = y - row, x - column  # within the cell

    def corner(down: int, right: int) -> NDArray[np.float64]:
        towards_y, towards_x = gradients[:, :, row[:, None] + down, column[None] + right]
        product: NDArray[np.float64] = towards_y * (y - down)[:, None] + towards_x * (x - right)
        return product

    fade_y, fade_x = (t**3 * (t * (6 * t - 15) + 10) for t in (y, x))
    fade_y = fade_y[:, None]
    above = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    below = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    return above * (1 - fade_y) + below * fade_y


def _blend(image: Pixels, other: NDArray[np.float64], generator: Generator) -> tuple[Pixels, Mask]:
    """(1 - opacity) image + opacity other, where noise is above a quantile that follows from a drawn area.

    The defect stays near a drawn place. DRAEM thresholds the noise everywhere, which can leave a hundred
    specks on one image; AUPRO weighs all regions equally, so this image would outweigh all others.
    """
    size = image.shape[0]
    cells = 2 ** generator.integers(1, 4, 2)
    centre = generator.uniform(0, 1, 2)
    way = (np.arange(size) + 0.5) / size - centre[:, None]  # y and x
    field = perlin(size, (int(cells[0]), int(cells[1])), 1, generator)[0]
    field -= LOCALITY * (way[0][:, None] ** 2 + way[1] ** 2)
    area = np.exp(generator.uniform(*np.log(STAIN_AREA)))
    mask = field > np.quantile(field, 1 - area)
    opacity = generator.uniform(*OPACITY)
    mixed = (1 - opacity) * image + opacity * other
    return np.where(mask[..., None], mixed.round(), image).astype(np.uint8), mask


def _paste(
    image: Pixels, height: float, width: float, angle: float, generator: Generator
) -> tuple[Pixels, Mask]:
    """Cut an upright rectangle (shares of the side), rotate it by `angle` and paste it anywhere."""
    size = image.shape[0]
    height, width = (np.clip(share * size, 1, size) for share in (height, width))
    reach_y = (abs(np.cos(angle)) * height + abs(np.sin(angle)) * width) / 2
    reach_x = (abs(np.sin(angle)) * height + abs(np.cos(angle)) * width) / 2
    from_y, from_x = (generator.uniform(n / 2, size - n / 2) for n in (height, width))
    to_y, to_x = (generator.uniform(min(r, size / 2), max(size - r, size / 2)) for r in (reach_y, reach_x))
    y, x = np.arange(size)[:, None] + 0.5 - to_y, np.arange(size)[None] + 0.5 - to_x
    down, right = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
    mask = (np.abs(down) <= height / 2) & (np.abs(right) <= width / 2)
    source_y, source_x = (
        np.clip((start + offset[mask]).astype(int), 0, size - 1)
        for start, offset in ((from_y, down), (from_x, right))
    )
    made = image.copy()
    made[mask] = _jittered(image[source_y, source_x], generator)
    return made, mask


def _jittered(pixels: Pixels, generator: Generator) -> Pixels:
    """Change brightness, contrast and saturation of pixels [P,3]."""
    brightness, contrast, saturation = generator.uniform(1 - JITTER, 1 + JITTER, 3)
    changed = pixels * brightness
    changed = (changed - changed.mean()) * contrast + changed.mean() if len(pixels) else changed
    grey = changed.mean(1, keepdims=True)
    return ((changed - grey) * saturation + grey).round().clip(0, 255).astype(np.uint8)
