"""KolektorSDD2: one surface, 3,335 images (Božič, Tabernik, Skočaj, Computers in Industry 2021)."""

from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Category, Dataset, Sample
from kdbench.datasets._layout import checked, marked_images, masks_beside

COPIES = ("10301 (copy).png", "10301_GT (copy).png")  # the archive has these two files of train/ twice
ADVICE = "Every image 10000.png has a mask 10000_GT.png beside it. Unpack the archive again"


class KolektorSDD2(Dataset):
    name = "kolektor_sdd2"
    title = "KolektorSDD2"
    # published: 2,085 normal and 246 defective images in train, 894 and 110 in test
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {"surface": (2085, 894, 110)}
    categories = tuple(counts)
    textures = ("surface",)
    licence = "CC BY-NC-SA 4.0, not for commercial use"
    source = "www.vicos.si/resources/kolektorsdd2"
    notes = (
        "the 246 defective images of train/ are left out: kdbench trains on normal images only; test/ is "
        "the published one",
        "an image is defective if its mask marks anything: the names of folders do not tell",
        f"train/ is published with two copies, {' and '.join(COPIES)}: they are not read",
    )
    split = "normal images of train, all of test"

    def present(self, root: Path) -> tuple[str, ...]:
        return self.categories if (root / "train").is_dir() or (root / "test").is_dir() else ()

    def hint(self, root: Path) -> str:
        return f"{super().hint(root)} It holds the folders train and test"

    def scan(self, root: Path, category: str) -> Category:
        trained, tested = (
            masks_beside(root / part, ".png", ".png", ending="_GT", advice=ADVICE, besides=COPIES)
            for part in ("train", "test")
        )
        defective, cracked = marked_images(trained, ADVICE), marked_images(tested, ADVICE)
        test = tuple(
            Sample(
                path=path,
                label=path in cracked,
                defect="defect" if path in cracked else "good",
                mask=cracked.get(path),
            )
            for path in tested
        )
        train = tuple(path for path in trained if path not in defective)
        return checked(Category(name=category, root=root, train=train, test=test), root)


DATASET = KolektorSDD2
