"""The drawing of `synthetic`: the same pixels everywhere, MVTec AD layout, masks where something changed."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import slow_but
from PIL import Image

from kdbench.datasets._draw import shots as drawing
from kdbench.datasets._draw.shots import (
    CATEGORIES,
    DEFECTS,
    OBJECTS,
    TEXTURES,
    Shot,
    draw_shots,
    shoot,
    shots,
)

# Of image and mask; a difference means another data set: raise VERSION, then put the new numbers here.
FINGERPRINTS = {
    "fabric": "deab5b440ec51b2740a92133b1be83c84d7de5f25a0796c249cd48b10aa28f5a",
    "granite": "b1043686d19399dae79156d5e9e85c76e3c82f84294900dd1677ee5cc7c253c7",
    "mesh": "090188efb2811140174280c13d2c99b441707e0f3bc3afbc45bd74441ee4ef41",
    "wood": "c17ee35768349155ccf0c6ad7770e82ae8abc93fd40a092186aa61348919ba76",
    "capsule": "200fe649171fdee599ff448ef458b4f1d4a25b0e2492c04ee88aff97e04fa8bb",
    "circuit": "703457d4100b34a8c8ce9ac3c91efd419c7a7064fa7732e69a341107dbf5a64c",
    "connector": "3b2d8fb71b2298069818cfe0a71727258412d4dee88e0b087158a83d5c6695aa",
    "gear": "f800ae9b1fab6e2a0a340d4dad5600b2141a51aea3a5aba0f8fbbd82364de8c8",
}


def read(folder: Path) -> dict[str, np.ndarray]:
    """All pictures under a folder by their relative path."""
    return {
        str(path.relative_to(folder)): np.array(Image.open(path)) for path in sorted(folder.rglob("*.png"))
    }


def blank(shot: Shot, seed: int):
    """What `shoot` returns, without the work."""
    image = np.full((4, 4, 3), seed, np.uint8)
    return image, image, None if shot.defect == "good" else np.full((4, 4), 255, np.uint8)


def test_four_textures_and_four_objects_with_enough_defects():
    assert (len(TEXTURES), len(OBJECTS)) == (4, 4)
    assert tuple(DEFECTS) == CATEGORIES == TEXTURES + OBJECTS
    for category, defects in DEFECTS.items():
        assert len(set(defects)) == len(defects) >= 6
        assert list(defects) == sorted(defects)
        assert 24 <= len(defects) * drawing.NUM_PER_DEFECT <= 36
        assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in (category, *defects))


def test_a_category_has_mvtec_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "shoot", blank)
    draw_shots(tmp_path, shots("gear"), seed=3, workers=1)
    pictures = read(tmp_path)
    counts = {}
    for name in pictures:
        folder = name.rpartition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
    expected = {"gear/train/good": 40, "gear/test/good": 12}
    for defect in DEFECTS["gear"]:
        expected |= {f"gear/test/{defect}": 4, f"gear/ground_truth/{defect}": 4}
    assert counts == expected
    assert {
        "gear/train/good/039.png",
        "gear/test/dent/003.png",
        "gear/ground_truth/dent/003_mask.png",
    } <= set(pictures)
    assert pictures["gear/train/good/000.png"].tolist() == [[[3] * 3] * 4] * 4


def test_the_whole_set_is_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(drawing, "shoot", lambda shot, seed: drawn.append((shot, seed)) or blank(shot, seed))
    drawing.draw(tmp_path, seed=5, workers=1)
    assert drawn == [(shot, 5) for category in CATEGORIES for shot in shots(category)]
    assert len(set(drawn)) == len(drawn) == 8 * (40 + 12 + 32)


@pytest.mark.slow
def test_pixels_do_not_depend_on_workers_or_order(tmp_path):
    todo = [Shot(category, "test", DEFECTS[category][1], 1) for category in ("wood", "circuit")]
    todo += [Shot("mesh", "train", "good", index) for index in (0, 7)]
    draw_shots(tmp_path / "one", todo, seed=0, workers=1)
    draw_shots(tmp_path / "two", todo[::-1], seed=0, workers=2)
    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert list(one) == list(two)
    assert len(one) == 6
    for name, pixels in one.items():
        np.testing.assert_array_equal(pixels, two[name])


def test_each_picture_is_another_one():
    first = Shot("wood", "train", "good", 0)
    pictures = [shoot(first, 0)[0], shoot(first, 1)[0]]
    pictures += [
        shoot(Shot("wood", split, "good", index), 0)[0] for split, index in (("train", 1), ("test", 0))
    ]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one.astype(int) - other).mean() > 4


@pytest.mark.parametrize("category", slow_but(CATEGORIES, TEXTURES[0], OBJECTS[0]))
def test_masks_cover_what_changed(category):
    for number, defect in enumerate(DEFECTS[category]):
        image, clean, mask = shoot(Shot(category, "test", defect, number % 4), 0)
        assert image.shape == clean.shape == (256, 256, 3)
        assert (image.dtype, mask.shape, mask.dtype) == (np.uint8, (256, 256), np.uint8)
        assert set(np.unique(mask)) == {0, 255}
        changed = np.abs(image.astype(int) - clean).max(axis=2) > 10
        assert changed.sum() >= 8, defect
        assert (mask[changed] == 255).mean() >= 0.9, defect
        # nor is the mask a rough guess: most of it changed by more than rounding, and it is a small part
        assert (np.abs(image.astype(int) - clean).max(axis=2)[mask == 255] >= 3).mean() > 0.6, defect
        assert (mask == 255).mean() < 0.2, defect


def test_good_pictures_have_no_mask():
    image, clean, mask = shoot(Shot("mesh", "test", "good", 2), 0)
    assert mask is None
    np.testing.assert_array_equal(image, clean)


@pytest.mark.parametrize("category", CATEGORIES)
def test_pixels_are_the_committed_ones(category):
    image, _, mask = shoot(Shot(category, "test", DEFECTS[category][0], 0), 0)
    assert hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest() == FINGERPRINTS[category]
