"""Recipes: grids that come with kdbench and have names, such as the protocol of a paper."""

import csv
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import RequestError, unknown
from kdbench.files import expanded, read_text

KDBENCH = Path(__file__).parents[1]
FOLDER = KDBENCH / "recipes"
PUBLISHED = KDBENCH / "reports/published.csv"
SUFFIX = ".toml"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A mean over all categories as its source gives it, a fraction."""

    metric: str
    value: float
    source: str


def recipe_names() -> list[str]:
    """The names of all recipes, such as `paper/dcam-multiclass`."""
    files = FOLDER.rglob(f"*{SUFFIX}")
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in files)


def grid_file(given: Path) -> Path:
    """The file of a grid: `given` itself, or the recipe of that name.

    Raises RequestError if it is neither.
    """
    given = Path(expanded(str(given)))
    name, names = given.as_posix(), recipe_names()
    if name in names and not given.is_file():
        return FOLDER / f"{name}{SUFFIX}"
    if given.suffix == SUFFIX or given.exists():
        return given  # if something is wrong with it, its reader complains
    raise RequestError([f"there is no file {given}, and {unknown('recipe', name, names)}"])


def says(name: str) -> str:
    """The description of a recipe: the comment in the first line of its file."""
    return read_text(FOLDER / f"{name}{SUFFIX}").splitlines()[0].removeprefix("#").strip()


def published(method: str, dataset: str, setting: str) -> list[Published]:
    """The published means of a method, from the file that reports put beside ours."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    asked = {"method": method, "dataset": dataset, "setting": setting, "category": "mean"}
    return [
        Published(metric=one["metric"], value=float(one["value"]), source=one["source"])
        for one in lines
        if asked.items() <= one.items()
    ]
