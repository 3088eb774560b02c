"""What a dataset is: where its images lie, which are normal, what is published of it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kdbench.errors import DataError
from kdbench.files import folder_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
LITTER = ("Thumbs.db", "desktop.ini", "__MACOSX")  # left by file managers; so are names that begin with a dot


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A test image: its label comes from the folder (or the list) it is in, never from the mask."""

    path: Path
    label: bool
    defect: str  # the kind of defect, "good" if normal
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Category:
    """The images of one category: `train` are all normal."""

    name: str
    root: Path
    train: tuple[Path, ...]
    test: tuple[Sample, ...]

    @property
    def has_masks(self) -> bool:
        """Whether the defects are marked, so that pixel metrics exist."""
        return any(sample.mask for sample in self.test)

    def relative(self, path: Path) -> str:
        """The path as rows name it: below the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class Archive:
    """A file to download and what it must be; `strip` is the folder in it that holds the dataset."""

    url: str
    sha256: str
    size_bytes: int | None = None
    strip: str = ""


class Dataset:
    """A dataset's layout and facts; one file in `datasets/` per dataset."""

    name: ClassVar[str]
    title: ClassVar[str]
    categories: ClassVar[tuple[str, ...]]  # all that the dataset has, on disk or not
    textures: ClassVar[tuple[str, ...]] = ()  # the rest are objects
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {}  # published: train, normal test, defective test
    totals: ClassVar[dict[str, tuple[int, int]]] = {}  # published without a split: normal, defective
    archives: ClassVar[tuple[Archive, ...]] = ()  # what `datasets download` fetches; none: by hand
    licence: ClassVar[str]
    source: ClassVar[str]  # where people get it
    profile: ClassVar[str] = "paper"  # the profile that is used when none is asked for
    mask_above: ClassVar[int] = 0  # a mask's grey value above this is defect
    max_mask_values: ClassVar[int | None] = None  # a mask of more grey values is refused; None: any number
    empty_masks: ClassVar[bool] = False  # whether the published data has defects with an empty mask
    notes: ClassVar[tuple[str, ...]] = ()  # what people should know of this data before they use a number
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

    def all_categories(self, root: Path) -> tuple[str, ...]:
        """What a mean over the dataset must cover: `categories`, or what is on disk if that is not fixed."""
        return self.categories or self.present(root)

    def split_sha256(self, root: Path) -> str | None:
        """Hash of the file that says which images are for training; None if the folders say it."""
        return None

    def present(self, root: Path) -> tuple[str, ...]:
        """The categories that lie under `root`, in the dataset's order."""
        return tuple(category for category in self.categories if (root / category).is_dir())

    def scan(self, root: Path, category: str) -> Category:
        """List one category's images; raises DataError with the path of what is wrong."""
        raise TypeError(f"{type(self).__name__} has no scan")

    def digest(self, path: Path) -> str:
        """What identifies the content of one file."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def image_files(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The images of a folder by name; raises DataError for anything else that lies there."""
    files = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in LITTER:
            continue
        if not path.is_file() or path.suffix.lower() not in suffixes:
            kinds = ", ".join(suffixes)
            raise DataError(
                f"{path} is not an image file ({kinds}). Move it away: nothing is skipped in silence"
            )
        if not path.name.isprintable() or path.name != path.name.encode("utf-8", "replace").decode():
            raise DataError(f"{str(path)!r} has a name that no result file can hold. Rename it")
        files.append(path)
    return files
