"""What the audit of a dataset puts into its report: a table, marks beside means, and means without."""

import csv
import io
from pathlib import Path

import pytest
from fabricated import all_metrics, fabricate, row

from kdbench.reports.leaderboard import all_tables, assemble, rendered, write_leaderboard
from kdbench.reports.page import write_report
from kdbench.reports.publish import write_rows
from kdbench.reports.rows import load
from kdbench.reports.tables import Table
from kdbench.results.store import CELLS, SHORTCUTS, Results

AWAY, WITHOUT = "Categories that give their labels away", "Means with and without these categories"
VALUES = {"a": 0.9, "b": 0.7, "c": 0.5}


def shortcut(category: str, number: str, auroc: float, p_holm: float, **changes: object) -> dict:
    names = {
        "dataset": "fabricated",
        "category": category,
        "number": number,
        "fingerprint": f"print-{category}",
    }
    return names | {"image_auroc": auroc, "p": p_holm, "p_holm": p_holm, "flagged": p_holm < 0.05} | changes


AUDIT = [
    shortcut("a", "sharpness", 0.25, 0.01),
    shortcut("a", "mean brightness", 1.0, 0.0011),
    shortcut("b", "mean brightness", 0.6, 0.2),
    shortcut("c", "mean brightness", 0.5, 1.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A multiclass cell and three oneclass ones of the same three categories, and an audit."""
    results = Results(tmp_path / "results")
    facts = {"dataset_categories": [*VALUES], "categories": [*VALUES]}
    results.write(CELLS, [row(category=c, **facts | all_metrics(v)) for c, v in VALUES.items()])
    for category, value in VALUES.items():
        own = {"cell_id": f"one-{category}", "setting": "oneclass", "categories": [category]}
        own |= {"category": category, "fingerprint": f"print-{category}"}
        results.write(CELLS, [row(**facts | own | all_metrics(value))])
    results.write(SHORTCUTS, AUDIT)
    return tmp_path / "results"


def tables(folder: Path, title: str, setting: str = "multiclass") -> list[Table]:
    return [t for t in all_tables(folder) if t.title.startswith(title) and f", {setting}," in t.title]


def test_flagged_categories_are_listed_with_the_number_that_tells_most(folder):
    (table,) = tables(folder, AWAY)
    (line,) = table.body
    assert [value.text for value in line] == ["a", "100.00", "mean brightness", "0.0011", "sharpness 25.0"]
    assert table.notes[0].startswith("Audited: 3 of 3 categories. Flagged: 1. ")
    assert len(table.notes) == 1


def test_means_with_and_without_are_those_that_one_computes_by_hand(folder):
    for setting in ("multiclass", "oneclass"):
        (table,) = tables(folder, WITHOUT, setting)
        (line,) = table.body
        found = dict(zip(table.head, line, strict=True))
        assert found["mAD"].mean == pytest.approx(0.7)
        assert found["mAD without"].mean == pytest.approx(0.6)
        assert (found["mAD"].text, found["mAD without"].text) == ("70.00 †", "60.00")


def test_every_mean_over_a_flagged_category_has_the_mark_and_its_note(folder):
    (ranking,) = tables(folder, "Ranking")
    found = dict(zip(ranking.head, ranking.body[0], strict=True))
    assert found["I-AUROC"].text == "70.00 †"
    assert ranking.notes[-1].startswith("†: ")
    (per_category,) = tables(folder, "I-AUROC per category")
    by_name = {line[0].text: line[1].text for line in per_category.body}
    assert (by_name["a"], by_name["mean"]) == ("90.00", "70.00 †")
    settings = next(t for t in all_tables(folder) if t.title.startswith("Oneclass against multiclass"))
    assert {line[2].text for line in settings.body} == {"70.00 †"}
    assert settings.notes[-1].startswith("†: ")


def test_marks_change_no_number(folder):
    marked = list(csv.DictReader(io.StringIO(rendered(assemble(load(folder)))["leaderboard.csv"])))
    (folder / "shortcuts/fabricated.parquet").unlink()
    plain = list(csv.DictReader(io.StringIO(rendered(assemble(load(folder)))["leaderboard.csv"])))
    names = (AWAY, WITHOUT)
    kept = [line for line in marked if not line["table"].startswith(names)]
    assert len(kept) == len(plain) < len(marked)
    for one, other in zip(kept, plain, strict=True):
        assert one | {"text": one["text"].removesuffix(" †")} == other


def test_an_audit_that_flags_nothing_is_said_and_marks_nothing(folder):
    Results(folder).write(SHORTCUTS, AUDIT[2:])
    (table,) = tables(folder, AWAY)
    assert table.body == ()
    assert table.notes[0].startswith("Audited: 2 of 3 categories. Flagged: 0. ")
    assert tables(folder, WITHOUT) == []
    assert "†" not in "".join(rendered(assemble(load(folder))).values())


def test_an_audit_of_other_images_says_so_and_one_of_another_dataset_is_not_shown(folder):
    changed = [one | {"fingerprint": "other"} if one["category"] == "b" else one for one in AUDIT]
    Results(folder).write(SHORTCUTS, changed)
    (table,) = tables(folder, AWAY, "oneclass")
    assert table.notes[1] == "Audited on other images than those of the cells: b."
    (folder / "shortcuts/fabricated.parquet").unlink()
    Results(folder).write(SHORTCUTS, [one | {"dataset": "another"} for one in AUDIT])
    assert tables(folder, AWAY) == []


def test_where_every_category_is_flagged_no_mean_is_left(folder):
    Results(folder).write(SHORTCUTS, [shortcut(name, "sharpness", 0.9, 0.001) for name in VALUES])
    (table,) = tables(folder, WITHOUT)
    found = dict(zip(table.head, table.body[0], strict=True))
    assert (found["mAD"].text, found["mAD without"].text) == ("70.00 †", "- (none is left)")


def test_published_rows_take_the_audit_along_and_give_the_same_report(folder, tmp_path):
    write_rows(folder, tmp_path / "rows")
    assert (tmp_path / "rows/shortcuts/rows.parquet").exists()
    one, other = (
        write_leaderboard(where, tmp_path / name)[0]
        for where, name in ((folder, "a"), (tmp_path / "rows", "b"))
    )
    assert one.read_bytes() == other.read_bytes()


def test_the_page_shows_tables_and_marks(tmp_path):
    fabricate(tmp_path / "rows", methods=("fabricated_a", "fabricated_b"), num_seeds=2)
    audit = [
        shortcut("category_03", "mean brightness", 0.03, 0.0005, dataset="fabricated_15"),
        shortcut("category_05", "<b>sharpness</b>", 0.8, 0.01, dataset="fabricated_15"),
    ]
    Results(tmp_path / "rows").write(SHORTCUTS, audit)
    page = write_report(tmp_path / "rows", tmp_path / "report").page.read_text(encoding="utf-8")
    assert page.count(AWAY) >= 2  # both settings
    assert "Audited: 2 of 15 categories. Flagged: 2. " in page
    assert "<b>sharpness" not in page
    assert "†" in page
    overview = next(t for t in all_tables(tmp_path / "rows") if t.title.startswith("I-AUROC: Datasets"))
    first = dict(zip(overview.head, overview.body[0], strict=True))
    assert first["fabricated_15, multiclass"].text.endswith(" †")
    assert "†" not in first["fabricated_12, multiclass"].text
    assert overview.notes[0].startswith("†: ")


def test_where_a_method_lacks_categories_both_means_are_over_those_that_all_have(folder):
    facts = {"dataset_categories": [*VALUES], "categories": ["a", "b"], "method": "half", "cell_id": "half"}
    Results(folder).write(CELLS, [row(category=c, **facts | all_metrics(VALUES[c] - 0.2)) for c in "ab"])
    (table,) = tables(folder, WITHOUT)
    found = {line[0].text: dict(zip(table.head, line, strict=True)) for line in table.body}
    assert found["half"]["mAD"].mean == pytest.approx(0.6)
    assert found["half"]["mAD without"].mean == pytest.approx(0.5)
    assert found["fabricated_a"]["mAD"].mean == pytest.approx(0.8)
    assert table.notes[0] == "Not the dataset's mean: over 2 of 3 categories (a, b)."
