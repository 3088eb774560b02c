"""The published comparison and ablations: tables are those of the rows, and sentences say what is in them."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from kdbench.reports.embed import embed
from kdbench.reports.leaderboard import Section, assemble, rendered
from kdbench.reports.rows import load

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "reports/published" / name for name in ("first-comparison", "first-ablations")]
PAGE = ROOT / "docs/results.md"
REFERENCE = re.compile(r'^\[(T\d+)\]: (\S+) "(.+)"$', re.MULTILINE)


@pytest.fixture(scope="module")
def reports() -> dict[Path, list[Section]]:
    """Folder -> what the generator makes of its rows."""
    return {folder: assemble(load(folder / "rows")) for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_are_those_of_the_rows(folder: Path, reports: dict[Path, list[Section]]) -> None:
    for name, said in rendered(reports[folder]).items():
        assert (folder / name).read_text(encoding="utf-8") == said, f"{name}: `make results`"


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_pages_hold_the_tables_of_the_rows(
    page: Path, reports: dict[Path, list[Section]], tmp_path: Path
) -> None:
    copy = Path(shutil.copy(page, tmp_path))
    embed(copy, [table for section in reports[FOLDERS[0]] for table in section.tables])
    assert copy.read_bytes() == page.read_bytes(), f"{page.name}: `make results`"


def sentences() -> list[str]:
    """Every sentence of the page, without headings, tables, code and the list of references."""
    left_out = r"<!-- table: .*?<!-- /table -->|^#.*?$|`[^`]*`"
    said = re.sub(left_out, "", REFERENCE.sub("", PAGE.read_text()), flags=re.DOTALL | re.MULTILINE)
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n|\n- ", said))
    return [one for part in paragraphs for one in re.split(r"(?<=\.)\s+(?=[A-Z])", part) if one]


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    """Reference -> the cells of the table that it names."""
    found = {}
    for reference, target, title in REFERENCE.findall(PAGE.read_text()):
        cells = pd.read_csv((PAGE.parent / target).with_suffix(".csv"), keep_default_na=False)
        found[reference] = cells[cells["table"] == title]
        assert len(found[reference]), f"{reference}: no table {title!r}"
    return found


@pytest.mark.parametrize("sentence", sentences())
def test_every_sentence_points_to_rows_that_say_its_numbers(
    sentence: str, tables: dict[str, pd.DataFrame]
) -> None:
    cited = re.findall(r"\[(T\d+)\]", sentence)
    assert cited
    shown = " ".join(text for name in cited for text in tables[name]["text"])
    for number in re.findall(r"\d+\.\d\d", sentence):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", shown), number
