"""Your own images in the layout of MVTec AD: one category, or a folder per category; masks are optional."""

from dataclasses import replace
from pathlib import Path

from kdbench.dataset import Category, Dataset, is_category
from kdbench.datasets._foreign import MASKS, conversion
from kdbench.datasets._layout import scan_layout
from kdbench.errors import DataError, reason
from kdbench.files import entries, folded, image_files


class Folder(Dataset):
    name = "folder"
    title = "Folder"
    categories = ()  # all that are on disk
    licence = "yours"
    max_mask_values = 32  # class ids; more are soft edges
    source = "your own images: train/good, test/good, test/KIND and, if there are masks, ground_truth/KIND"

    def root(self, given: Path | None) -> Path:
        if given is None:
            raise DataError(f"{self.name} needs --root FOLDER. It holds {self.source}")
        return super().root(given)

    def present(self, root: Path) -> tuple[str, ...]:
        try:
            if is_category(root):
                return (root.name,)
            folders = [path for path in entries(root) if path.is_dir()]
            for foreign in filter(None, map(conversion, folders)):
                raise DataError(foreign)  # it would be left out in silence
            return tuple(path.name for path in folders if is_category(path))
        except OSError as error:
            raise DataError(f"{error.filename}: {reason(error)}") from error

    def hint(self, root: Path) -> str:
        return conversion(root) or super().hint(root)

    def scan(self, root: Path, category: str) -> Category:
        parent = root.parent if is_category(root) else root
        marked = parent / category / "ground_truth"
        for path in entries(parent / category) if not marked.is_dir() else ():
            if path.is_dir() and folded(path.name) in MASKS:
                raise DataError(f"{path} is not read: masks of test/KIND lie in {marked}/KIND")
        found = scan_layout(self, parent, category, masks_required=False)
        return (
            replace(found, blank=tuple(image_files(marked / "good"))) if (marked / "good").is_dir() else found
        )


DATASET = Folder
