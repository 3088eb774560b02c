"""VisA: 12 categories of industrial images (Zou et al., ECCV 2022), in their original layout."""

import csv
import hashlib
from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Archive, Category, Dataset, Sample
from kdbench.datasets._layout import AGAIN, checked, existing
from kdbench.errors import DataError, number_of, reason
from kdbench.files import csv_head, csv_rows, image_files, read_text

COLUMNS = ("object", "split", "label", "image", "mask")
PARTS = (("Images/Normal", (".jpg",)), ("Images/Anomaly", (".jpg",)), ("Masks/Anomaly", (".png",)))
Row = dict[str, str]


class VisA(Dataset):
    name = "visa"
    title = "VisA"
    # train, normal test, defective test images of the split 1cls: 8,659 + 962 + 1,200
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
    }
    categories = tuple(counts)
    max_mask_values = 32  # published are class ids
    licence = "CC BY 4.0"
    source = "github.com/amazon-science/spot-diff"
    split = "1cls"
    refused_splits: ClassVar[dict[str, str]] = {
        "2cls_fewshot": "it trains on anomalies; kdbench trains on normal images only. Use 1cls",
        "2cls_highshot": "it trains on anomalies; kdbench trains on normal images only. Use 1cls",
    }
    archives: ClassVar[tuple[Archive, ...]] = (
        Archive(
            "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
        ),
    )

    def split_sha256(self, root: Path) -> str | None:
        try:
            return hashlib.sha256(_list_of(root).read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{_list_of(root)}: {reason(error)}. {AGAIN}") from error

    def scan(self, root: Path, category: str) -> Category:
        folder = root / category
        rows = _rows(_list_of(root), category)
        on_disk = {
            path
            for part, suffixes in PARTS
            for path in image_files(existing(folder / "Data" / part, AGAIN), suffixes)
        }
        listed = [root / name for row in rows for name in (row["image"], row["mask"]) if name]
        missing = sorted(set(listed) - on_disk)
        if missing:
            raise DataError(
                f"{category}: {len(missing)} of {len(listed)} files in {_list_of(root)} missing, "
                f"first: {missing[0]}. {AGAIN}"
            )
        extra = sorted(on_disk - set(listed))
        if extra:
            raise DataError(
                f"{category}: {number_of(len(extra), 'file')} beyond {_list_of(root)}, first: {extra[0]}. "
                f"Move them away"
            )
        test = [_sample(root, row) for row in rows if row["split"] == "test"]
        found = Category(
            name=category,
            root=root,
            train=tuple(sorted(root / row["image"] for row in rows if row["split"] == "train")),
            test=tuple(sorted(test, key=lambda sample: sample.path)),
        )
        return checked(found, folder)


def _list_of(root: Path) -> Path:
    return root / "split_csv" / "1cls.csv"


def _sample(root: Path, row: Row) -> Sample:
    if row["label"] == "normal":
        return Sample(path=root / row["image"], label=False, defect="good")
    return Sample(path=root / row["image"], label=True, defect="anomaly", mask=root / row["mask"])


def _rows(file: Path, category: str) -> list[Row]:
    """The category's lines of the split file; DataError for what cannot be a one-class split."""
    try:
        text = read_text(file)
        head = csv_head(text)
        absent = [column for column in COLUMNS if column not in head]
        rows = [row for _, row in csv_rows(text) if row.get("object") == category]
    except OSError as error:
        raise DataError(f"{file}: {reason(error)}. It says which images are for training. {AGAIN}") from error
    except (csv.Error, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}. {AGAIN}") from error
    if absent:
        raise DataError(f"{file} has no column {', '.join(absent)}. {AGAIN}")
    if not rows:
        raise DataError(f"{file} has no line for {category!r}. {AGAIN}")
    seen: set[str] = set()
    for row in rows:
        where = f"{file}: {row['image']}"
        if row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            raise DataError(f"{where} is {row['label']!r} for {row['split']!r}, which is no part of 1cls")
        if row["label"] == "anomaly" and row["split"] == "train":
            raise DataError(f"{where} is an anomaly for training: kdbench trains on normal images only")
        if bool(row["mask"]) != (row["label"] == "anomaly"):
            raise DataError(f"{where} is {row['label']!r} and its mask is {row['mask']!r}")
        if row["mask"] and Path(row["mask"]).stem != Path(row["image"]).stem:
            raise DataError(f"{where} has the mask of another image, {row['mask']}")
        if row["image"] in seen:
            raise DataError(f"{where} is listed twice")
        seen.add(row["image"])
    return rows


DATASET = VisA
