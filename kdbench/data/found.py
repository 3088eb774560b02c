"""A dataset on disk: its categories, and the fingerprints of their content."""

import unicodedata
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdbench.data.fingerprint import Contents, check_apart, contents, shared_images
from kdbench.dataset import Category, Dataset
from kdbench.errors import Complaints, DataError, reason, unknown


@dataclass(frozen=True, kw_only=True)
class Found:
    """A dataset on disk: its categories with the fingerprints of their content."""

    dataset: Dataset
    root: Path
    categories: dict[str, Category]
    fingerprints: dict[str, str]
    notes: tuple[str, ...] = ()


def find_data(dataset: Dataset, root: Path | None, wanted: tuple[str, ...]) -> Found:
    """The dataset's categories on disk with fingerprints; RequestError with every complaint."""
    folder, complaints = dataset.root(root), Complaints()
    present, known = dataset.present(folder), dataset.all_categories(folder)
    # A typed name may look like the folder's and have other code points.
    shown = {unicodedata.normalize("NFC", name): name for name in known}
    wanted = tuple(shown.get(unicodedata.normalize("NFC", name), name) for name in wanted)
    for name in wanted:
        if name not in known:
            complaints.add(unknown(f"{dataset.name} category", name, known, "categories"))
    for name in wanted:
        if name in known and name not in present:
            complaints.add(f"{dataset.name}: no folder {folder / name}")
    if not present:
        complaints.add(
            f"{dataset.name}: {folder} has none of the categories {', '.join(known) or '(any folder)'}. "
            f"{dataset.hint(folder)}"
        )
    looked: dict[str, tuple[Category, Contents]] = {}
    with ThreadPoolExecutor(4) as pool:
        names = [name for name in present if not wanted or name in wanted]
        futures = {name: pool.submit(_look, dataset, folder, name) for name in names}
        for name, future in futures.items():
            with complaints.collecting():
                looked[name] = future.result()
    seen = [content for _, content in looked.values()]
    with complaints.collecting():  # a multiclass model must not train on a test image of another category
        check_apart(_union(c.train for c in seen), _union(c.test for c in seen))
    complaints.check()
    return Found(
        dataset=dataset,
        root=folder,
        categories={name: category for name, (category, _) in looked.items()},
        fingerprints={name: content.fingerprint for name, (_, content) in looked.items()},
        notes=tuple(shared_images({name: content.test for name, (_, content) in looked.items()})),
    )


def _look(dataset: Dataset, folder: Path, name: str) -> tuple[Category, Contents]:
    """One category of a dataset; DataError for what cannot be read."""
    try:
        category = dataset.scan(folder, name)
        return category, contents(dataset, category)
    except OSError as error:
        raise DataError(f"{error.filename}: {reason(error)}") from error


def _union(parts: Iterable[Mapping[str, Path]]) -> dict[str, Path]:
    return {digest: path for part in parts for digest, path in part.items()}
