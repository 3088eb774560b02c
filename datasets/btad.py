"""BTAD: three products of beanTech (Mishra et al., VT-ADL, ISIE 2021), BMP and PNG, folders ok and ko."""

from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Archive, Category, Dataset
from kdbench.datasets._layout import scan_layout


class BTAD(Dataset):
    name = "btad"
    title = "BTAD"
    # train, normal test, defective test images: 1,799 + 451 + 290
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "01": (400, 21, 49),
        "02": (399, 30, 200),
        "03": (1000, 400, 41),
    }
    categories = tuple(counts)
    licence = "CC BY-NC-SA 4.0, not for commercial use (some copies say CC BY-SA 4.0: ask the authors)"
    source = "avires.dimi.uniud.it/papers/btad/btad.zip"
    empty_masks = True
    notes = (
        "some published masks of defects mark nothing (11 were counted: 1 in 02, 10 in 03): "
        "these images count for image metrics only",
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        Archive(
            "https://avires.dimi.uniud.it/papers/btad/btad.zip",
            "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            strip="BTech_Dataset_transformed",
        ),
    )

    def scan(self, root: Path, category: str) -> Category:
        return scan_layout(self, root, category, suffixes=(".bmp", ".png"), normal="ok")


DATASET = BTAD
