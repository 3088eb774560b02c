"""The contract of a dataset: its folders, its normal and defective images, and the published facts."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kdbench.errors import DataError, unknown
from kdbench.files import entries, file_sha256, folder_of, listed

# What people call the folder of normal images.
NORMAL = ("good", "ok", "normal", "normals", "non_defective", "nondefective", "defect_free")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A test image. Its label comes from its folder (or a list), never from the mask."""

    path: Path
    label: bool
    defect: str  # the name of its kind, "good" if normal
    mask: Path | None = None
    more_masks: tuple[Path, ...] = ()  # of the same image, where each marks one defect; united with `mask`

    @property
    def masks(self) -> tuple[Path, ...]:
        """All masks of the image, none of a normal one."""
        return (self.mask, *self.more_masks) if self.mask else ()


@dataclass(frozen=True, kw_only=True)
class Category:
    """The images of one category; all images in `train` are normal."""

    name: str
    root: Path
    train: tuple[Path, ...]
    test: tuple[Sample, ...]
    blank: tuple[Path, ...] = ()  # masks of normal images, where there are any: they must mark nothing
    settings: tuple[Path, ...] = ()  # files that change numbers and are neither image, mask nor list

    @property
    def has_masks(self) -> bool:
        """Whether the category has masks of its defects, so that it has pixel metrics."""
        return any(sample.mask for sample in self.test)

    def relative(self, path: Path) -> str:
        """The path below the root with forward slashes, as rows have it."""
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Archive:
    """A file to download, with its digest; `strip` is the folder in it that holds the dataset."""

    url: str
    sha256: str
    size_bytes: int | None = None
    strip: str = ""


class Dataset:
    """A dataset's layout and facts; one file in `datasets/` per dataset."""

    name: ClassVar[str]
    title: ClassVar[str]
    categories: ClassVar[tuple[str, ...]]  # all of the dataset, on disk or not
    textures: ClassVar[tuple[str, ...]] = ()  # the rest are objects
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {}  # published: train, normal test, defective test
    whole: ClassVar[tuple[int, int, int] | None] = None  # counts that are published for all together only
    totals: ClassVar[dict[str, tuple[int, int]]] = {}  # published without a split: normal, defective
    archives: ClassVar[tuple[Archive, ...]] = ()  # `datasets download` fetches them; none: by hand
    licence: ClassVar[str]
    source: ClassVar[str]  # where to get it
    profile: ClassVar[str] = "paper"  # the default profile of a run
    mask_above: ClassVar[int] = 0  # a grey value of a mask above this is a defect
    max_mask_values: ClassVar[int | None] = None  # a mask of more grey values is refused; None: any number
    empty_masks: ClassVar[bool] = False  # whether some published masks of defects are empty
    notes: ClassVar[tuple[str, ...]] = ()  # facts that a reader of numbers must know
    split: ClassVar[str] = "original"  # the published split that is used
    refused_splits: ClassVar[dict[str, str]] = {}  # published splits that cannot be used here, and why

    def root(self, given: Path | None) -> Path:
        """The folder that holds the categories: `given`, or KDBENCH_DATA/NAME. Raises DataError."""
        folder = given
        if folder is None:
            data = folder_of("KDBENCH_DATA")
            if data is None:
                raise DataError(
                    f"{self.name} needs images: --root FOLDER, or a folder {self.name} in KDBENCH_DATA. "
                    f"Get it from {self.source} ({self.licence})"
                )
            folder = data / self.name
        if not folder.is_dir():
            raise DataError(
                f"{self.name}: no folder {str(folder)!r}. Get it from {self.source} ({self.licence})"
            )
        return folder.resolve()

    def drawn(self) -> bool:
        """Whether the images exist; a dataset that kdbench draws has none before the first use."""
        return True

    def all_categories(self, root: Path) -> tuple[str, ...]:
        """The categories that a mean must cover: `categories`, or those on disk if the dataset names none."""
        return self.categories or self.present(root)

    def split_sha256(self, root: Path) -> str | None:
        """SHA-256 of the file with the split into train and test; None if the folders are the split."""
        return None

    def wrong_split(self, asked: str | None) -> str:
        """Why this published split cannot be used; "" if it can, or if none is asked for."""
        if asked is None or asked == self.split:
            return ""
        if why := self.refused_splits.get(asked):
            return f"{self.name}: the split {asked!r} is refused: {why}"
        return f"{self.name}: {unknown('split', asked, [self.split])}"

    def present(self, root: Path) -> tuple[str, ...]:
        """The categories with a folder below `root`, in the order of the dataset."""
        return tuple(category for category in self.categories if (root / category).is_dir())

    def hint(self, root: Path) -> str:
        """Advice if no category was found in `root`: its content, and where the categories may be."""
        if root.name in self.categories or is_category(root):
            return f"It is one category: --root {root.parent} --categories {root.name}"
        found = entries(root)
        for folder in (path for path in found if path.is_dir()):
            if self.present(folder):
                return f"They are in {folder}: --root {folder}"
        return f"It holds {listed(found)}. Is it the folder that holds them?"

    def scan(self, root: Path, category: str) -> Category:
        """List the images of one category; DataError with the path of a wrong file or folder."""
        raise TypeError(f"{type(self).__name__} has no scan")

    def unlabelled(self, root: Path, category: str) -> dict[str, tuple[Path, ...]]:
        """Split -> its published test images without labels; the publisher's server scores maps of them."""
        return {}

    def saturations(self, category: Category) -> dict[Path, float] | None:
        """Mask -> how many of its pixels have to be found, at its original size; None if no file says it.

        At these areas saturating PRO counts a defect as found (MVTec LOCO AD). DataError if the file that
        says it is wrong.
        """
        return None

    def digest(self, path: Path) -> str:
        """A digest of the content of one file."""
        return file_sha256(path)


def is_category(folder: Path) -> bool:
    """Whether at least half of the layout is there: then a missing part is an error and is not skipped."""
    return (folder / "train").is_dir() or (folder / "test").is_dir()
