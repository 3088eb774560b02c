"""DAGM 2007: ten drawn textures with drawn defects, of the competition of the symposium of that year."""

import re
from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Category, Dataset, Sample
from kdbench.datasets._layout import checked, existing
from kdbench.errors import DataError, reason
from kdbench.files import image_files, read_text

LABELS = "Labels.txt"
SUFFIXES = (".png",)


class DAGM(Dataset):
    name = "dagm"
    title = "DAGM 2007"
    # normal images of Train, normal and defective images of Test: 7,004 + 6,996 + 1,054. The publisher says
    # 1,000 normal and 150 defective images of Class1 to Class6, and twice as many of the others. How these
    # are parted into Train and Test is not on its page: these are the numbers that papers give.
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "Class1": (496, 504, 71),
        "Class2": (509, 491, 84),
        "Class3": (509, 491, 84),
        "Class4": (493, 507, 68),
        "Class5": (505, 495, 80),
        "Class6": (492, 508, 67),
        "Class7": (1000, 1000, 150),
        "Class8": (1000, 1000, 150),
        "Class9": (1000, 1000, 150),
        "Class10": (1000, 1000, 150),
    }
    categories = tuple(counts)
    textures = categories
    licence = "not stated in its files: look at its page before you publish pictures"
    source = "hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection"
    notes = (
        "masks are ellipses around the defects, not their outlines: pixel metrics of it do not compare with "
        "those of other data",
        "the defective images of Train are left out: kdbench trains on normal images only; Test is the "
        "published one",
        "images are drawn; the four classes of the competition (Class7 to Class10) are twice as large",
    )
    split = "normal images of Train, all of Test"

    def scan(self, root: Path, category: str) -> Category:
        folder = root / category
        trained, tested = (_samples(existing(folder / part)) for part in ("Train", "Test"))
        found = Category(
            name=category,
            root=root,
            train=tuple(sample.path for sample in trained if not sample.label),
            test=tuple(tested),
        )
        return checked(found, folder)


def _samples(folder: Path) -> list[Sample]:
    """The images of Train or Test with the labels of Label/Labels.txt; DataError where the two differ."""
    marked = existing(folder / "Label")
    defective = _labels(marked / LABELS)
    images = {path.name: path for path in image_files(folder, SUFFIXES, besides=("Label",))}
    masks = {path.name: path for path in image_files(marked, SUFFIXES, besides=(LABELS,))}
    listed = {mask for mask in defective.values() if mask}
    problems = (
        (defective.keys() - images.keys(), "is listed and not in", folder),
        (images.keys() - defective.keys(), "is not listed, but in", folder),
        (listed - masks.keys(), "is listed and not in", marked),
        (masks.keys() - listed, "is not listed, but in", marked),
    )
    for names, wrong, where in problems:
        for name in sorted(names):
            raise DataError(f"{marked / LABELS}: {name} {wrong} {where} ({len(names)} such files)")
    return [
        Sample(
            path=images[name],
            label=bool(mask),
            defect="defect" if mask else "good",
            mask=masks[mask] if mask else None,
        )
        for name, mask in sorted(defective.items())
    ]


def _labels(file: Path) -> dict[str, str]:
    """Image -> the name of its mask, "" if it is normal.

    A line is NUMBER LABEL IMAGE 0 MASK, as in `577 1 0577.PNG 0 0577_label.PNG`; the first has one number.
    """
    try:
        lines = [line.split() for line in read_text(file).splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {reason(error)}. It says which images are defective") from error
    labels: dict[str, str] = {}
    for number, words in enumerate(lines, 1):
        if not words or (number == 1 and len(words) == 1):
            continue
        where = f"{file}, line {number}"
        if len(words) != 5 or words[1] not in ("0", "1"):
            raise DataError(f"{where} is {' '.join(words)!r} and not NUMBER 0|1 IMAGE 0 MASK")
        _, label, image, _, mask = words
        wanted = f"{Path(image).stem}_label" if label == "1" else "0"
        if Path(mask).stem != wanted or not re.fullmatch(r"[\w.-]+", image + mask):
            raise DataError(f"{where}: {image} has the label {label} and the mask {mask}")
        if image in labels:
            raise DataError(f"{where}: {image} is listed twice")
        labels[image] = mask if label == "1" else ""
    return labels


DATASET = DAGM
