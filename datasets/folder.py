"""A folder of one's own in the layout of MVTec AD: one category, or a folder per category; masks optional."""

from pathlib import Path

from kdbench.dataset import LITTER, Category, Dataset
from kdbench.datasets._layout import scan_layout
from kdbench.errors import DataError, reason


class Folder(Dataset):
    name = "folder"
    title = "Folder"
    categories = ()  # what is on disk
    licence = "yours"
    max_mask_values = 32  # class ids; more are soft edges
    source = "your own images: train/good, test/good, test/KIND and, if there are masks, ground_truth/KIND"

    def root(self, given: Path | None) -> Path:
        if given is None:
            raise DataError(f"{self.name} needs --root FOLDER. What lies in it: {self.source}")
        return super().root(given)

    def present(self, root: Path) -> tuple[str, ...]:
        try:
            if _is_category(root):
                return (root.name,)
            folders = [p for p in sorted(root.iterdir()) if p.name not in LITTER and p.name[0] != "."]
            return tuple(p.name for p in folders if _is_category(p))
        except OSError as error:
            raise DataError(f"{error.filename}: {reason(error)}") from error

    def scan(self, root: Path, category: str) -> Category:
        parent = root.parent if _is_category(root) else root
        return scan_layout(parent, category, masks_required=False)


def _is_category(folder: Path) -> bool:
    """Whether at least half of the layout is there: what is missing of the rest is an error, not a skip."""
    return (folder / "train").is_dir() or (folder / "test").is_dir()


DATASET = Folder
