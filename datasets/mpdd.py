"""MPDD: six kinds of metal parts (Jezek et al., ICUMT 2021), in the layout of MVTec AD."""

from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Category, Dataset
from kdbench.datasets._layout import scan_layout


class MPDD(Dataset):
    name = "mpdd"
    title = "MPDD"
    # train, normal test, defective test images: 888 + 176 + 282
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "bracket_black": (289, 32, 47),
        "bracket_brown": (185, 26, 51),
        "bracket_white": (110, 30, 30),
        "connector": (128, 30, 14),
        "metal_plate": (54, 26, 71),
        "tubes": (122, 32, 69),
    }
    categories = tuple(counts)
    licence = "CC BY-NC-SA 4.0, not for commercial use"
    source = "github.com/stepanje/MPDD"  # links to a shared folder: no archive with a published hash

    def scan(self, root: Path, category: str) -> Category:
        return scan_layout(self, root, category, suffixes=(".png",))


DATASET = MPDD
