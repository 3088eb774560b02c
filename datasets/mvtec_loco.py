"""MVTec LOCO AD: structural and logical anomalies of five products (Bergmann et al., IJCV 130, 2022)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from kdbench.dataset import Archive, Category, Dataset
from kdbench.datasets._layout import AGAIN, existing, scan_layout
from kdbench.errors import DataError, reason
from kdbench.files import entries, image_files, read_text
from kdbench.picture import opened

CONFIG = "defects_config.json"
SUFFIXES = (".png",)


class MVTecLOCO(Dataset):
    name = "mvtec_loco"
    title = "MVTec LOCO AD"
    # train, normal test, defective test images (structural + logical): 1,778 + 575 + 993
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "breakfast_box": (351, 102, 90 + 83),
        "juice_bottle": (335, 94, 94 + 142),
        "pushpins": (372, 138, 81 + 91),
        "screw_bag": (360, 122, 82 + 137),
        "splicing_connectors": (360, 119, 85 + 108),
    }
    categories = tuple(counts)
    licence = "CC BY-NC-SA 4.0, not for commercial use"
    source = "www.mvtec.com/company/research/datasets/mvtec-loco"
    notes = (
        "structural and logical anomalies are tested together, while the paper gives the mean of the two: "
        "the kind of each image is in its scores",
        "a logical anomaly is marked wherever it could be put right: PRO asks for all of these places, "
        f"saturating PRO (spro_05) only for the area that {CONFIG} gives",
        "validation/good (305 images of all categories) is not read: kdbench holds out training images",
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        Archive(
            "https://www.mydrive.ch/shares/48237/1b9106ccdfbb09a0c414bd49fe44a14a/"
            "download/430647091-1646842701/mvtec_loco_anomaly_detection.tar.xz",
            "9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
        ),
    )

    def scan(self, root: Path, category: str) -> Category:
        truth = root / category / "ground_truth"

        def masks_of(image: Path) -> list[Path]:
            folder = existing(truth / image.parent.name / image.stem, AGAIN)
            masks = image_files(folder, SUFFIXES)
            if not masks:
                raise DataError(f"{folder} has no mask of {image}. {AGAIN}")
            return masks

        found = scan_layout(self, root, category, suffixes=SUFFIXES, masks_of=masks_of)
        tested = {(sample.defect, sample.path.stem) for sample in found.test}
        for kind in entries(truth):
            for folder in entries(kind):
                if (kind.name, folder.name) not in tested:
                    raise DataError(f"{folder} has masks of no test image")
        _thresholds(root / category / CONFIG)  # a wrong file is an error before anything is trained
        return replace(found, settings=(root / category / CONFIG,))

    def saturations(self, category: Category) -> dict[Path, float]:
        file = category.root / category.name / CONFIG
        thresholds = _thresholds(file)
        return {
            mask: _saturation(file, mask, thresholds) for sample in category.test for mask in sample.masks
        }


def _saturation(file: Path, mask: Path, thresholds: dict[int, tuple[float, bool]]) -> float:
    """How many pixels of a mask have to be found: a share of its area or a number, at most its area."""
    with opened(mask, "a mask") as picture:
        pixels = np.asarray(picture)
    values = [int(value) for value in np.unique(pixels) if value]
    if pixels.ndim != 2 or len(values) != 1:
        raise DataError(f"{mask} has the values {values}: it needs exactly one, which {file} explains")
    if values[0] not in thresholds:
        raise DataError(f"{mask} has the value {values[0]}, which {file} does not explain")
    area = int((pixels > 0).sum())
    threshold, relative = thresholds[values[0]]
    return float(max(1, int(threshold * area) if relative else min(threshold, area)))


def _thresholds(file: Path) -> dict[int, tuple[float, bool]]:
    """Value of a mask's pixels -> its saturation threshold, and whether it is a share of the mask's area."""
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {reason(error)}. It says how much of a defect has to be found") from error
    thresholds: dict[int, tuple[float, bool]] = {}
    for entry in content if isinstance(content, list) else [content]:
        match entry:
            case {
                "pixel_value": int(value),
                "saturation_threshold": int() | float() as threshold,
                "relative_saturation": bool(relative),
            } if 0 < value < 256 and threshold > 0 and (threshold <= 1 or not relative):
                pass
            case _:
                raise DataError(
                    f"{file}: {json.dumps(entry)[:200]} is no defect with pixel_value (1 to 255), "
                    f"saturation_threshold (a share up to 1, or pixels) and relative_saturation"
                )
        if value in thresholds:
            raise DataError(f"{file} has two defects of the pixel_value {value}")
        thresholds[value] = (float(threshold), relative)
    return thresholds


DATASET = MVTecLOCO
