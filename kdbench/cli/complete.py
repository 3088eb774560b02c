"""Completion in a shell: names of methods, datasets, categories and cells, in comma lists too.

A shell waits for the answer, so nothing here loads torch or reads rows.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import typer

from kdbench.errors import DataError
from kdbench.files import expanded
from kdbench.registry import dataset_names, get_dataset, method_names
from kdbench.weights import BACKBONES

Names = Callable[[typer.Context], Iterable[str]]
Completion = Callable[[typer.Context, str], list[str]]


def of_names(names: Names) -> Completion:
    """A completion of one name, or of the last name in a comma list without the names before it."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        before, comma, part = incomplete.rpartition(",")
        rest = [name for name in names(ctx) if name.startswith(part) and name not in before.split(",")]
        return [f"{before}{comma}{name}" for name in rest]

    return complete


def _categories(ctx: typer.Context) -> list[str]:
    """The categories of the datasets that the command names so far; synthetic's if it names none."""
    # If an option before the cursor has no value yet, an argument is not parsed.
    given = ctx.params.get("dataset") or ctx.params.get("name") or ctx.args or "synthetic"
    texts = [given] if isinstance(given, str) else given
    names = [name for text in texts for name in text.split(",") if name in dataset_names()]
    found = [category for name in names for category in _categories_of(name, ctx.params.get("root"))]
    return list(dict.fromkeys(found))


def _categories_of(name: str, root: object) -> Iterable[str]:
    dataset = get_dataset(name)
    if dataset.categories:
        return dataset.categories
    with suppress(DataError, OSError):  # a person who types has not finished
        return dataset.all_categories(dataset.root(Path(expanded(str(root))) if root else None))
    return ()


def _cells(ctx: typer.Context) -> list[str]:
    """Ids of the cells in a results folder on a disk whose detectors were kept."""
    folder = Path(expanded(str(ctx.params.get("results") or "results"))) / "detectors"
    return sorted(path.stem for path in folder.glob("*.safetensors"))


methods = of_names(lambda ctx: method_names())
datasets = of_names(lambda ctx: dataset_names())
categories = of_names(_categories)
cells = of_names(_cells)

# Field of a request -> its completion.
OF_FIELDS: dict[str, Completion] = {
    "backbone": of_names(lambda ctx: BACKBONES),
    "categories": categories,
    "dataset": datasets,
    "method": methods,
    "methods": methods,
}
