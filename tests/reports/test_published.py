"""Published comparisons: grids name methods, tables are those of rows, sentences say what is in them."""

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from kdbench.reports.embed import embed
from kdbench.reports.leaderboard import Section, assemble, rendered
from kdbench.reports.rows import load

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "reports/published"
FOLDERS = sorted(rows.parent for rows in PUBLISHED.glob("*/rows"))
# Each page has the tables of one comparison; its sentences may cite those of others.
EMBEDDED = {
    "README.md": "second-comparison",
    "docs/results.md": "first-comparison",
    "docs/longer-training.md": "second-comparison",
}
PAGES = [ROOT / name for name in EMBEDDED if name != "README.md"]
REFERENCE = re.compile(r'^\[(T\d+)\]: (\S+) "(.+)"$', re.MULTILINE)


@pytest.fixture(scope="module")
def reports() -> dict[Path, list[Section]]:
    """Folder -> what the generator makes of its rows."""
    return {folder: assemble(load(folder / "rows")) for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_are_those_of_the_rows(folder: Path, reports: dict[Path, list[Section]]) -> None:
    for name, said in rendered(reports[folder]).items():
        assert (folder / name).read_text(encoding="utf-8") == said, f"{name}: `make results`"


@pytest.mark.parametrize("grid", sorted(PUBLISHED.glob("*/*.toml")), ids=lambda path: path.stem)
def test_a_published_grid_names_its_methods(grid: Path) -> None:
    """Without names it would be of all methods, and grow with every new one."""
    asked = tomllib.loads(grid.read_text())
    assert asked.get("methods") or asked.get("method")


@pytest.mark.parametrize("name", EMBEDDED)
def test_pages_hold_the_tables_of_the_rows(
    name: str, reports: dict[Path, list[Section]], tmp_path: Path
) -> None:
    page, copy = ROOT / name, Path(shutil.copy(ROOT / name, tmp_path))
    embed(copy, [table for section in reports[PUBLISHED / EMBEDDED[name]] for table in section.tables])
    assert copy.read_bytes() == page.read_bytes(), f"{name}: `make results`"


def sentences() -> Iterator[tuple[Path, str]]:
    """Every sentence of the pages, without headings, tables, pictures, code and the list of references."""
    left_out = r"<!-- table: .*?<!-- /table -->|^#.*?$|^!\[.*?$|`[^`]*`"
    for page in PAGES:
        said = re.sub(left_out, "", REFERENCE.sub("", page.read_text()), flags=re.DOTALL | re.MULTILINE)
        paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n|\n- ", said))
        for part in paragraphs:
            yield from ((page, one) for one in re.split(r"(?<=\.)\s+(?=[A-Z])", part) if one)


@pytest.fixture(scope="module")
def tables() -> dict[tuple[Path, str], pd.DataFrame]:
    """Page and reference -> the cells of the table that it names."""
    found = {}
    for page in PAGES:
        for reference, target, title in REFERENCE.findall(page.read_text()):
            cells = pd.read_csv((page.parent / target).with_suffix(".csv"), keep_default_na=False)
            found[page, reference] = cells[cells["table"] == title]
            assert len(found[page, reference]), f"{page.name}, {reference}: no table {title!r}"
    return found


@pytest.mark.parametrize(("page", "sentence"), list(sentences()))
def test_every_sentence_points_to_rows_that_say_its_numbers(
    page: Path, sentence: str, tables: dict[tuple[Path, str], pd.DataFrame]
) -> None:
    cited = re.findall(r"\[(T\d+)\]", sentence)
    assert cited
    shown = " ".join(text for name in cited for text in tables[page, name]["text"])
    for number in re.findall(r"\d+\.\d\d+", sentence):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", shown), number
