"""MVTec AD: 15 categories of industrial images (Bergmann et al., CVPR 2019), in their original layout."""

from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Archive, Category, Dataset
from kdbench.datasets._layout import scan_layout


class MVTecAD(Dataset):
    name = "mvtec_ad"
    title = "MVTec AD"
    textures = ("carpet", "grid", "leather", "tile", "wood")
    # train, normal test, defective test images: 3,629 + 467 + 1,258
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "carpet": (280, 28, 89),
        "grid": (264, 21, 57),
        "leather": (245, 32, 92),
        "tile": (230, 33, 84),
        "wood": (247, 19, 60),
        "bottle": (209, 20, 63),
        "cable": (224, 58, 92),
        "capsule": (219, 23, 109),
        "hazelnut": (391, 40, 70),
        "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141),
        "screw": (320, 41, 119),
        "toothbrush": (60, 12, 30),
        "transistor": (213, 60, 40),
        "zipper": (240, 32, 119),
    }
    categories = tuple(counts)
    max_mask_values = 32  # published are 0 and 255; a resized copy may have soft edges
    licence = "CC BY-NC-SA 4.0, not for commercial use"
    source = "www.mvtec.com/company/research/datasets/mvtec-ad"
    archives: ClassVar[tuple[Archive, ...]] = (
        Archive(
            "https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f283/"
            "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz",
            "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
        ),
    )

    def scan(self, root: Path, category: str) -> Category:
        return scan_layout(self, root, category, suffixes=(".png",))


DATASET = MVTecAD
