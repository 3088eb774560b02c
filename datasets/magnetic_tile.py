"""Magnetic tile defects: one surface, five kinds of defects, masks beside the images (Huang et al., 2020)."""

from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Category, Dataset, Sample
from kdbench.datasets._layout import AGAIN, by_hash, checked, masks_beside
from kdbench.errors import DataError

NORMAL = "MT_Free"
DEFECTS = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Uneven")


class MagneticTile(Dataset):
    name = "magnetic_tile"
    title = "Magnetic tile"
    categories = ("tile",)
    textures = ("tile",)
    # 952 normal images, 80 % of them for training; 115 + 85 + 57 + 32 + 103 defective ones
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {"tile": (761, 191, 392)}
    licence = "free to use; cite Huang et al., Surface defect saliency of magnetic tile, 2020"
    source = "github.com/abin24/Magnetic-tile-defect-datasets."  # the name of the repository ends with a dot
    mask_above = 127  # masks were compressed: 0 to 255 with noise
    empty_masks = True
    notes = (
        "there is no official split: 80 % of MT_Free, in the order of the SHA-256 of the file names, are for "
        "training, the rest and all defects for testing; numbers of other splits do not compare",
        "4 of the 103 masks of MT_Uneven mark nothing: these images count for image metrics only",
    )
    split = "kdbench-80-20"

    def present(self, root: Path) -> tuple[str, ...]:
        return self.categories if any((root / kind).is_dir() for kind in (NORMAL, *DEFECTS)) else ()

    def scan(self, root: Path, category: str) -> Category:
        # The masks of MT_Free are all empty.
        free = by_hash(masks_beside(root / NORMAL / "Imgs", ".jpg", ".png"))
        num_train = len(free) * 4 // 5
        test = [Sample(path=path, label=False, defect="good") for path in sorted(free[num_train:])]
        for kind in DEFECTS:
            for path, mask in masks_beside(root / kind / "Imgs", ".jpg", ".png").items():
                if mask is None:
                    raise DataError(f"{path} has no mask {path.with_suffix('.png')}. {AGAIN}")
                defect = kind.removeprefix("MT_").lower()
                test.append(Sample(path=path, label=True, defect=defect, mask=mask))
        train = tuple(sorted(free[:num_train]))
        return checked(Category(name=category, root=root, train=train, test=tuple(test)), root)


DATASET = MagneticTile
