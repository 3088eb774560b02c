"""MVTec AD 2: eight scenes under several lights (Heckler-Kram et al., arXiv:2503.21622), its public test."""

from pathlib import Path
from typing import ClassVar

from kdbench.dataset import Archive, Category, Dataset
from kdbench.datasets._layout import scan_layout
from kdbench.files import image_files

PRIVATE = ("test_private", "test_private_mixed")  # labels lie on the publisher's server only


class MVTecAD2(Dataset):
    name = "mvtec_ad_2"
    title = "MVTec AD 2"
    textures = ("fabric", "sheet_metal")
    # train, normal and defective images of test_public: 2,528 + 379 + 705
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {
        "can": (412, 72, 90),
        "fabric": (387, 66, 90),
        "fruit_jelly": (263, 20, 60),
        "rice": (313, 42, 90),
        "sheet_metal": (137, 24, 90),
        "vial": (291, 35, 105),
        "wallplugs": (293, 60, 90),
        "walnuts": (432, 60, 90),
    }
    categories = tuple(counts)
    max_mask_values = 32
    licence = "CC BY-NC-SA 4.0, not for commercial use"
    source = "www.mvtec.com/company/research/datasets/mvtec-ad-2"
    notes = (
        "the test images are test_public, which the publisher means for a first estimate: its leaderboard is "
        "of test_private and test_private_mixed, whose labels only its server has",
        "validation/good (302 images of all categories) is not read: kdbench holds out training images",
        "training images have one light, test images have several: 000_regular.png, 000_overexposed.png",
    )
    split = "test_public"
    refused_splits: ClassVar[dict[str, str]] = dict.fromkeys(
        PRIVATE, "it has no labels here: maps of it go to benchmark.mvtec.com"
    )
    archives: ClassVar[tuple[Archive, ...]] = (
        Archive(
            "https://www.mydrive.ch/shares/150997/701c90d3aea6588f404936e32a674602/"
            "download/466712769-1743429042/mvtec_ad_2.tar.gz",
            "c0ded99ef32bfc8e352d52beb44515e5b292b8598cb963aadfa91ca0763505e4",
            size_bytes=32_739_596_982,
        ),
    )

    def scan(self, root: Path, category: str) -> Category:
        return scan_layout(
            self,
            root,
            category,
            suffixes=(".png",),
            tested="test_public",
            truth="test_public/ground_truth",
        )

    def unlabelled(self, root: Path, category: str) -> dict[str, tuple[Path, ...]]:
        folders = {split: root / category / split for split in PRIVATE}
        return {
            split: tuple(image_files(folder, (".png",)))
            for split, folder in folders.items()
            if folder.is_dir()
        }


DATASET = MVTecAD2
