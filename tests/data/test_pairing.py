"""Masks of other images are found by pixels, whichever way they were numbered; right ones are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.data.pairing import misplaced, num_looked_at
from kdbench.datasets.folder import Folder
from kdbench.registry import get_dataset


def write(root: Path, names: list[str], own: list[int]) -> Path:
    """A category whose image i has a dark square of its own place, and the mask of image own[i]."""
    generator = np.random.default_rng(0)
    for folder in ("train/good", "test/good", "test/bad", "ground_truth/bad"):
        (root / "part" / folder).mkdir(parents=True)

    def save(path: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "part" / path)

    for number in range(6):
        save(f"train/good/{number}.png", generator.normal(128, 20, (64, 64)))
    save("test/good/0.png", generator.normal(128, 20, (64, 64)))
    masks = [np.zeros((64, 64)) for _ in names]
    for mask in masks:
        row, column = generator.integers(0, 54, 2)
        mask[row : row + 10, column : column + 10] = 255
    for name, mask, other in zip(names, masks, own, strict=True):
        save(f"test/bad/{name}.png", generator.normal(128, 20, (64, 64)) - mask / 3)
        save(f"ground_truth/bad/{name}_mask.png", masks[other])
    return root


def said(root: Path) -> list[str]:
    return misplaced(Folder(), Folder().scan(root, "part"))


PADDED = [f"{number:03}" for number in range(12)]
BARE = [str(number) for number in (1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9)]  # in the order of letters
BY_NUMBER = sorted(range(12), key=lambda i: int(BARE[i]))


def test_right_masks_are_not_named(tmp_path):
    for names in (PADDED, BARE):
        assert said(write(tmp_path / names[1], names, [*range(12)])) == []


@pytest.mark.parametrize("order", ["-1", "+1", "reverse", "number", "letter"])
def test_masks_of_other_images_are_named_with_the_order_that_mends_them(tmp_path, order):
    by_letter = [BY_NUMBER.index(i) for i in range(12)]
    names, own, mends = {
        "-1": (PADDED, [11, *range(11)], "moved by -1 in the order of names"),
        "+1": (PADDED, [*range(1, 12), 0], "moved by +1 in the order of names"),
        "reverse": (PADDED, [*range(11, -1, -1)], "in the reverse order"),
        "number": (BARE, BY_NUMBER, "ordered by number and not by letter (2 before 10)"),
        "letter": (BARE, by_letter, "ordered by letter and not by number (10 before 2)"),
    }[order]
    (text,) = said(write(tmp_path, names, own))
    assert text.startswith("part/bad: its 12 masks may belong to other images. They mark unusual places ")
    assert f". Masks {mends} mark them better than in any of 9,999 random orders." in text


def test_of_few_masks_nothing_is_said(tmp_path):
    root = write(tmp_path, PADDED[:7], [*range(1, 7), 0])
    assert said(root) == []
    assert num_looked_at(Folder().scan(root, "part")) == 0


def test_masks_that_are_published_empty_are_left_out(tmp_path):
    class Published(Folder):
        empty_masks = True

    root = write(tmp_path, PADDED, [*range(1, 12), 0])
    Image.new("L", (64, 64)).save(root / "part/ground_truth/bad/004_mask.png")
    (text,) = misplaced(Published(), Published().scan(root, "part"))
    assert text.startswith("part/bad: its 11 masks may belong to other images.")


def test_the_audit_names_them(kdbench, tmp_path):
    write(tmp_path / "parts", PADDED, [*range(1, 12), 0])
    code, text = kdbench("datasets", "audit", "folder", "--root", tmp_path / "parts")
    assert code == 0
    assert text.count("note: part/bad: its 12 masks may belong to other images") == 1


@pytest.mark.slow
@pytest.mark.parametrize("category", ["bottle", "grid", "screw", "transistor"])
def test_no_masks_of_the_real_sets_are_named(shared, category):
    dataset = get_dataset("mvtec_ad")
    assert misplaced(dataset, dataset.scan(shared / "data/mvtec_ad", category)) == []
