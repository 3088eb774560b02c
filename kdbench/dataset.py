"""What a dataset is: where its images lie, what is normal, and a fingerprint of their content."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from kdbench.cell import canonical_json
from kdbench.errors import DataError, reason
from kdbench.files import cache_folder, folder_of, written_aside

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


class Dataset:
    """A dataset's layout and facts; one file in `datasets/` per dataset."""

    name: ClassVar[str]
    title: ClassVar[str]
    categories: ClassVar[tuple[str, ...]]  # all that the dataset has, on disk or not
    textures: ClassVar[tuple[str, ...]] = ()  # the rest are objects
    counts: ClassVar[dict[str, tuple[int, int, int]]] = {}  # published: train, normal test, defective test
    licence: ClassVar[str]
    source: ClassVar[str]  # where people get it
    profile: ClassVar[str] = "paper"  # the profile that is used when none is asked for
    mask_above: ClassVar[int] = 0  # a mask's grey value above this is defect
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


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What identifies a category's content: its fingerprint, and the digest of every train and test image."""

    fingerprint: str
    train: dict[str, Path]
    test: dict[str, Path]


def fingerprint(dataset: Dataset, category: Category) -> str:
    """The fingerprint of `contents`."""
    return contents(dataset, category).fingerprint


def contents(dataset: Dataset, category: Category) -> Contents:
    """Hash of the names, roles and contents of a category's files; DataError if train and test overlap.

    Contents are read once: digests are remembered per file with its size and time of change.
    """
    files = [("train", "good", path) for path in category.train]
    files += [("test", s.defect, s.path) for s in category.test]
    files += [("mask", s.defect, s.mask) for s in category.test if s.mask]
    digests = _digests(dataset, category, {path for _, _, path in files})
    train = {digests[path]: path for path in category.train}
    test = {digests[s.path]: s.path for s in category.test}
    check_apart(train, test)
    listed = sorted([role, kind, category.relative(path), digests[path]] for role, kind, path in files)
    print_ = hashlib.sha256(canonical_json([category.name, dataset.mask_above, listed]).encode()).hexdigest()
    return Contents(fingerprint=print_[:20], train=train, test=test)


def check_apart(train: Mapping[str, Path], test: Mapping[str, Path]) -> None:
    """Raise DataError if the same content is among the train and the test images."""
    for digest in test.keys() & train.keys():
        raise DataError(
            f"{test[digest]} is a test image and has the content of the train image {train[digest]}"
        )


def fingerprint_of(fingerprints: Iterable[str]) -> str:
    """The fingerprint of several categories together."""
    return hashlib.sha256(canonical_json(sorted(fingerprints)).encode()).hexdigest()[:20]


def _digests(dataset: Dataset, category: Category, paths: Iterable[Path]) -> dict[Path, str]:
    key = hashlib.sha256(f"{dataset.name} {category.root} {category.name}".encode()).hexdigest()[:20]
    memory = cache_folder() / "digests" / f"{key}.json"
    known = _remembered(memory)

    def look(path: Path) -> tuple[str, list[int | str]]:
        try:
            stat = path.stat()
            size, changed = stat.st_size, stat.st_mtime_ns
            old = known.get(str(path))
            digest = old[2] if old and old[:2] == [size, changed] else dataset.digest(path)
        except (OSError, SyntaxError, ValueError) as error:  # the latter two from a digest that decodes
            raise DataError(f"{path}: {reason(error)}") from error
        return str(path), [size, changed, digest]

    with ThreadPoolExecutor() as pool:
        fresh = dict(pool.map(look, sorted(paths)))
    if fresh != known:
        with written_aside(memory) as aside:
            aside.write_text(json.dumps(fresh))
    return {Path(path): str(entry[2]) for path, entry in fresh.items()}


def _remembered(memory: Path) -> dict[str, list[Any]]:
    """Digests of an earlier run; whatever else the file holds is forgotten, and they are computed again."""
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 3}
