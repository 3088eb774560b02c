"""Magnetic tile defects: one surface, five kinds of defects, masks beside the images (Huang et al., 2020)."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Category, Dataset, Sample
from kdbench.datasets._layout import by_hash, checked, masks_beside
from kdbench.errors import DataError

NORMAL = "MT_Free"
PAUSE = 300  # frames; the six exposures of a tile were nearly always taken within fewer
DEFECTS = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Uneven")


class MagneticTile(Dataset):
    name = "magnetic_tile"
    title = "Magnetic tile"
    categories = ("tile",)
    textures = ("tile",)
    # 952 normal images, about 80 % of them for training; 115 + 85 + 57 + 32 + 103 defective ones
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {"tile": (780, 172, 392)}
    licence = "free to use; cite Huang et al., Surface defect saliency of magnetic tile, 2020"
    source = "github.com/abin24/Magnetic-tile-defect-datasets."  # the name of the repository ends with a dot
    mask_above = 127  # masks were compressed: 0 to 255 with noise
    empty_masks = True
    notes = (
        "there is no official split: 80 % of MT_Free are for training, the rest and all defects for testing; "
        "exposures of one tile, which follow one another in the recording, stay together, and tiles are in "
        "the order of the SHA-256 of the name of their first image; numbers of other splits do not compare",
        "4 of the 103 masks of MT_Uneven mark nothing: these images count for image metrics only",
    )
    split = "kdbench-80-20-by-tile"

    def present(self, root: Path) -> tuple[str, ...]:
        return self.categories if any((root / kind).is_dir() for kind in (NORMAL, *DEFECTS)) else ()

    def scan(self, root: Path, category: str) -> Category:
        # The masks of MT_Free are all empty.
        free = masks_beside(root / NORMAL / "Imgs", ".jpg", ".png")
        tiles = {tile[0]: tile for tile in _tiles(free)}
        train: list[Path] = []
        for first in by_hash(tiles):
            if 5 * len(train) < 4 * len(free):
                train += tiles.pop(first)
        left = sorted(path for tile in tiles.values() for path in tile)
        test = [Sample(path=path, label=False, defect="good") for path in left]
        for kind in DEFECTS:
            for path, mask in masks_beside(root / kind / "Imgs", ".jpg", ".png").items():
                if mask is None:
                    raise DataError(f"{path} has no mask {path.with_suffix('.png')}")
                defect = kind.removeprefix("MT_").lower()
                test.append(Sample(path=path, label=True, defect=defect, mask=mask))
        found = Category(name=category, root=root, train=tuple(sorted(train)), test=tuple(test))
        return checked(found, root)


def _tiles(images: Iterable[Path]) -> list[list[Path]]:
    """The images expE_num_FRAME.jpg in the order of their frames; a longer pause begins a new tile."""
    tiles: list[list[Path]] = []
    last = 0
    for frame, path in sorted((_frame(path), path) for path in images):
        if not tiles or frame - last > PAUSE:
            tiles.append([])
        tiles[-1].append(path)
        last = frame
    return tiles


def _frame(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    if not number.isdecimal():
        raise DataError(f"{path}: the name does not end with the number of a frame")
    return int(number)


DATASET = MagneticTile
