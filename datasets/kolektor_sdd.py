"""KolektorSDD: 50 commutators in 399 images, 52 with a crack (Tabernik et al., JIM 2020)."""

from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Archive, Category, Dataset, Sample
from kdbench.datasets._layout import AGAIN, by_hash, checked, marked_images, masks_beside
from kdbench.errors import DataError

ITEMS = tuple(f"kos{number:02}" for number in range(1, 51))
TRAINED = 40  # items whose normal images are for training


class KolektorSDD(Dataset):
    name = "kolektor_sdd"
    title = "KolektorSDD"
    categories = ("commutator",)
    totals: ClassVar[dict[str, tuple[int, int]]] = {"commutator": (347, 52)}  # published: normal, defective
    licence = "CC BY-NC-SA 4.0, not for commercial use"
    source = "www.vicos.si/resources/kolektorsdd"
    notes = (
        "there is no official one-class split: the normal images of 40 of the 50 items, in the order of the "
        "SHA-256 of the items' names, are for training, everything else for testing; numbers of other "
        "splits do not compare",
        "an image is defective if its mask marks anything: the names of folders do not tell",
    )
    split = "kdbench-40-10"
    archives: ClassVar[tuple[Archive, ...]] = (
        Archive(
            "https://go.vicos.si/kolektorsdd",
            "65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
        ),
    )

    def present(self, root: Path) -> tuple[str, ...]:
        return self.categories if any((root / item).is_dir() for item in ITEMS) else ()

    def scan(self, root: Path, category: str) -> Category:
        missing = [root / item for item in ITEMS if not (root / item).is_dir()]
        if missing:
            raise DataError(f"{len(missing)} of {len(ITEMS)} items missing, first: {missing[0]}. {AGAIN}")
        masks: dict[Path, Path | None] = {}
        for item in ITEMS:
            masks |= masks_beside(root / item, ".jpg", ".bmp", ending="_label", advice=AGAIN)
        marked = marked_images(masks, AGAIN)
        trained = set(by_hash(root / item for item in ITEMS)[:TRAINED])
        train = tuple(path for path in masks if path.parent in trained and path not in marked)
        test = tuple(
            Sample(path=path, label=True, defect="crack", mask=marked[path])
            if path in marked
            else Sample(path=path, label=False, defect="good")
            for path in masks
            if path in marked or path.parent not in trained
        )
        return checked(Category(name=category, root=root, train=train, test=test), root)


DATASET = KolektorSDD
