"""Synthetic defects: where they are, what they change, and that the same seed draws the same ones."""

import numpy as np
import pytest

from kdbench.defects import (
    JITTER,
    KINDS,
    PATCH_AREA,
    SCAR_LENGTH,
    SCAR_WIDTH,
    STAIN_AREA,
    VISIBLE_LEVELS,
    VISIBLE_SHARE,
    cut_patch,
    cut_scar,
    make_defects,
    perlin,
)
from kdbench.metrics.exact import label_regions


def photographs(count: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth images with some noise, so that pieces of them differ from each other."""
    generator = np.random.default_rng(seed)
    smooth = perlin(size, (4, 4), 3 * count, generator).reshape(count, 3, size, size)
    noisy = 128 + 150 * smooth + generator.normal(0, 6, smooth.shape)
    return np.moveaxis(noisy, 1, -1).clip(0, 255).astype(np.uint8)


def test_a_defect_is_where_its_mask_is_and_can_be_seen_there():
    images = photographs(16)
    made = make_defects(images, seed=0)
    assert made.images.dtype == np.uint8
    assert made.masks.dtype == bool
    assert (made.images[~made.masks] == images[~made.masks]).all()
    for image, defective, mask in zip(images, made.images, made.masks, strict=True):
        differs = np.abs(defective.astype(int) - image).max(-1) >= VISIBLE_LEVELS
        assert differs[mask].mean() >= VISIBLE_SHARE


def test_kinds_take_turns():
    kinds = make_defects(photographs(12), seed=3).kinds
    assert {kind: kinds.count(kind) for kind in KINDS} == dict.fromkeys(KINDS, 3)


def test_a_seed_draws_the_same_defects_and_another_seed_others():
    images = photographs(4)
    one, again, other = (make_defects(images, seed) for seed in (5, 5, 6))
    assert (one.images == again.images).all()
    assert (one.masks == again.masks).all()
    assert (one.masks != other.masks).any()


def test_a_defect_does_not_depend_on_the_other_images():
    images = photographs(6)
    changed = images.copy()
    changed[:5] = photographs(5, seed=9)
    one, other = make_defects(images, 0), make_defects(changed, 0)
    assert (one.images[5] == other.images[5]).all()
    assert (make_defects(images[:2], 0).images == one.images[:2]).all()


def test_a_patch_comes_from_the_image_and_has_the_area_of_cutpaste():
    """Pixels tell where they are from: red is the row, green the column."""
    size = 128
    y, x = np.mgrid[:size, :size]
    image = np.stack([60 + y, 60 + x, np.full_like(x, 120)], -1).astype(np.uint8)
    for seed in range(20):
        made, mask = cut_patch(image, np.random.default_rng(seed))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        patch = made[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
        assert mask.sum() == patch.shape[0] * patch.shape[1]  # a rectangle
        assert PATCH_AREA[0] * 0.8 <= mask.mean() <= PATCH_AREA[1] * 1.2
        down, right = np.diff(patch[..., 0], axis=0).mean(), np.diff(patch[..., 1], axis=1).mean()
        # Neighbours stay neighbours, up to contrast and saturation.
        assert (1 - JITTER) ** 3 <= down <= (1 + JITTER) ** 3
        assert (1 - JITTER) ** 3 <= right <= (1 + JITTER) ** 3


def test_scars_are_thin_and_turned():
    sizes, shares = [], []
    for seed in range(60):
        _, mask = cut_scar(photographs(1, 256)[0], np.random.default_rng(seed))
        assert label_regions(mask[None]).max() == 1
        sizes.append(int(mask.sum()))
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        shares.append(mask.sum() / (len(rows) * len(columns)))
    low, high = (256**2 * w * n for w, n in zip(SCAR_WIDTH, SCAR_LENGTH, strict=True))
    assert 0.8 * low <= min(sizes)
    assert max(sizes) <= 1.2 * high
    assert min(shares) < 0.6  # a turned one does not fill the box around it
    assert len(set(sizes)) > 30


@pytest.mark.parametrize("kind", ["texture", "colour"])
def test_stains_have_the_area_that_was_drawn_and_few_regions(kind):
    regions = []
    for seed in range(40):
        made, mask = KINDS[kind](photographs(1, 128)[0], np.random.default_rng(seed))
        assert STAIN_AREA[0] * 0.9 <= mask.mean() <= STAIN_AREA[1] * 1.1
        regions.append(int(label_regions(mask[None]).max()))
        inside = made[mask].astype(float)
        if kind == "texture":
            assert inside.std(0).max() > 0
    assert np.mean(regions) < 4  # AUPRO weighs each region alike


def test_perlin_noise_is_what_its_formula_gives():
    cells, size = (3, 5), 32
    noise = perlin(size, cells, 1, np.random.default_rng(7))[0]
    angles = np.random.default_rng(7).uniform(0, 2 * np.pi, (1, 4, 6))[0]

    def at(i: int, j: int) -> float:
        y, x = (i + 0.5) / size * cells[0], (j + 0.5) / size * cells[1]
        total = 0.0
        for row in (int(y), int(y) + 1):
            for column in (int(x), int(x) + 1):
                dy, dx = y - row, x - column
                product = np.sin(angles[row, column]) * dy + np.cos(angles[row, column]) * dx
                weight = 1.0
                for distance in (abs(dy), abs(dx)):
                    weight *= 1 - (6 * distance**5 - 15 * distance**4 + 10 * distance**3)
                total += weight * product
        return total

    for i, j in ((0, 0), (31, 31), (10, 20), (16, 3)):
        assert noise[i, j] == pytest.approx(at(i, j), abs=1e-12)
    assert np.abs(perlin(256, (8, 8), 5, np.random.default_rng(0))).max() <= 0.5**0.5


def test_defects_are_alike_at_every_image_size():
    """A trial with larger images is judged by the same places and sizes."""
    small, large = photographs(8, 64), photographs(8, 64).repeat(2, 1).repeat(2, 2)
    one, other = make_defects(small, 1), make_defects(large, 1)
    same = [a.mean() == pytest.approx(b.mean(), rel=0.5) for a, b in zip(one.masks, other.masks, strict=True)]
    assert one.kinds == other.kinds
    assert sum(same) >= 7


def test_an_image_on_which_nothing_pasted_shows_gets_a_stain():
    made = make_defects(np.zeros((8, 32, 32, 3), np.uint8), 0)
    assert made.kinds.count("texture") == 2
    assert made.kinds.count("colour") == 6
    assert (made.images.max((1, 2, 3)) >= VISIBLE_LEVELS).all()


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 9, 3), np.uint8)])
def test_anything_but_square_bytes_is_refused(wrong):
    with pytest.raises(ValueError, match="images are uint8"):
        make_defects(wrong, 0)
