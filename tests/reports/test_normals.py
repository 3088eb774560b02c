"""False alarms and misses at the threshold from held-out normals: by hand, and against scipy."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import all_metrics, fabricate, row, write_scores
from scipy.stats import beta

from kdbench.reports.leaderboard import all_tables
from kdbench.reports.page import write_report
from kdbench.reports.tables import Table
from kdbench.results.store import CELLS, NORMALS, Results

TITLE = "False alarms and misses at the threshold from normals"


def held_out(cell_id: str, category: str, values: np.ndarray) -> list[dict]:
    names = {"cell_id": cell_id, "category": category}
    return [names | {"image": f"{i:03}.png", "image_score": float(v)} for i, v in enumerate(values)]


def write(results: Results, cell_id: str, values: np.ndarray | None, **changes: object) -> None:
    """A cell of a and b: each has two normal test images (1 and 20) and two defective ones (5 and 30)."""
    facts = {"num_heldout": 0 if values is None else len(values)} | all_metrics(0.5) | changes
    tested = []
    for category in "ab":
        for i, score in enumerate((1.0, 20.0, 5.0, 30.0)):
            of_image = {"image": f"{i}.png", "defect": "d", "label": i > 1, "image_score": score}
            tested.append({"cell_id": cell_id, "category": category, **of_image})
    results.write(CELLS, [row(cell_id=cell_id, category=category, **facts) for category in "ab"])
    write_scores(results.storage, tested)
    if values is not None:
        results.write(NORMALS, held_out(cell_id, "a", values))


def table_of(folder: Path) -> Table | None:
    return next((table for table in all_tables(folder) if table.title.startswith(TITLE)), None)


def line(table: Table, method: str) -> dict:
    (found,) = (values for values in table.body if values[0].text == method)
    return dict(zip(table.head, found, strict=True))


def test_one_detector_has_the_rates_that_one_counts_by_hand(tmp_path):
    results = Results(tmp_path)
    write(results, "c0", np.arange(10.0))  # the largest of ten: 9
    found = line(table_of(tmp_path), "fabricated_a")
    assert found["false alarms"].mean == 0.5  # 20 of (1, 20)
    assert found["misses"].mean == 0.5  # 5 of (5, 30)
    assert found["I-F1"].mean == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert found["expected"].mean == pytest.approx(1 / 11)
    low, high = beta(1, 10).interval(0.95)
    assert (found["95 % interval"].low, found["95 % interval"].high) == pytest.approx((low, high))
    assert found["held out per detector"].text == "10"
    assert found["remark"].text == "1 % takes 99 held-out images"


def test_enough_images_meet_the_rate_and_the_interval_of_several_seeds_is_no_shorter(tmp_path):
    results = Results(tmp_path)
    for seed in (0, 1):
        write(results, f"c{seed}", np.arange(299.0) + 100 * seed, seed=seed)  # the 297th: 296 and 396
    found = line(table_of(tmp_path), "fabricated_a")
    assert found["expected"].mean == pytest.approx(0.01)
    assert found["95 % interval"].low == pytest.approx(beta(3, 297).ppf(0.025))
    assert (found["false alarms"].mean, found["misses"].mean, found["I-F1"].mean) == (0.0, 1.0, 0.0)
    assert (found["false alarms"].std, found["remark"].text) == (0.0, "")


def test_the_interval_over_categories_covers_what_is_drawn():
    """Fifteen detectors with twenty held-out images each: the mean share above their largest scores."""
    from kdbench.reports.normals import _expected

    drawn = np.random.default_rng(0).beta(1, 20, (200_000, 15)).mean(1)
    cells = pd.DataFrame({"count": 20, "expected": 1 / 21, "categories": [[str(i)] for i in range(15)]})
    mean, (low, high) = _expected(cells)
    assert mean == pytest.approx(drawn.mean(), rel=0.01)
    assert ((drawn > low) & (drawn < high)).mean() == pytest.approx(0.95, abs=0.003)


def test_who_has_no_scores_of_normals_has_a_hole_with_its_reason(tmp_path):
    results = Results(tmp_path)
    write(results, "c0", np.arange(10.0))
    write(results, "c1", None, method="nothing_held_out")
    write(results, "c2", None, method="older", num_heldout=7)
    write(results, "c3", None, method="other_program", outside_sha256="0a")
    write(results, "c4", None, method="half", seed=0)
    write(results, "c5", np.arange(10.0), method="half", seed=1)
    table = table_of(tmp_path)
    reasons = {
        "nothing_held_out": "the training holds no image out: --hold-out",
        "older": "an older kdbench kept no scores of them",
        "other_program": "another program scored the images: there are no scores of held-out ones",
        "half": "1 of 2 detectors: the training holds no image out: --hold-out",
    }
    for method, why in reasons.items():
        found = line(table, method)
        assert found["remark"].text == why
        assert {found[name].hole for name in table.head[1:-1]} == {why}
        assert found["false alarms"].text == "-"


def test_without_such_rows_a_report_has_no_section(tmp_path):
    results = Results(tmp_path)
    write(results, "c0", None)
    assert table_of(tmp_path) is None


def test_the_page_shows_the_section_of_each_setting(tmp_path):
    fabricate(tmp_path / "rows", methods=("fabricated_a", "fabricated_b"), num_seeds=2)
    results, cells = Results(tmp_path / "rows"), pd.read_parquet(tmp_path / "rows/cells")
    for cell_id, own in cells[cells["dataset"] == "fabricated_15"].groupby("cell_id"):
        parts = [
            held_out(cell_id, category, np.random.default_rng(seed).normal(size=20))
            for seed, category in enumerate(own["category"])
        ]
        results.write(NORMALS, [one for part in parts for one in part])
    page = write_report(tmp_path / "rows", tmp_path / "report").page.read_text(encoding="utf-8")
    tables = [table for table in all_tables(tmp_path / "rows") if table.title.startswith(TITLE)]
    assert page.count("No test image chose it") == len(tables) == 2
    multiclass, oneclass = (line(table, "fabricated_b") for table in tables)
    assert multiclass["held out per detector"].text == "300"
    assert oneclass["expected"].mean == pytest.approx(1 / 21)
    assert 0 < multiclass["false alarms"].mean < oneclass["false alarms"].mean < 0.1


def test_where_a_method_lacks_categories_the_rates_are_over_those_that_all_have(tmp_path):
    results = Results(tmp_path)
    write(results, "c0", np.arange(10.0))
    only_a = {"method": "half", "setting": "multiclass", "categories": ["a"], "num_heldout": 10}
    results.write(NORMALS, held_out("c1", "a", np.arange(10.0) + 11))  # the largest: 20
    tested = [("1.png", False, 1.0), ("2.png", False, 21.0), ("3.png", True, 30.0)]
    tested += [("0.png", False, 20.0), ("4.png", True, 20.0)]  # not above the threshold
    names = {"cell_id": "c1", "category": "a", "defect": "d"}
    results.write(CELLS, [row(cell_id="c1", category="a", **only_a | all_metrics(0.5))])
    scored = [names | {"image": i, "label": y, "image_score": s} for i, y, s in tested]
    write_scores(results.storage, scored)
    table = table_of(tmp_path)
    assert table.notes[0] == "Not the dataset's mean: over 1 of 2 categories (a)."
    assert line(table, "half")["false alarms"].mean == pytest.approx(1 / 3)
    assert line(table, "half")["misses"].mean == 0.5
    assert line(table, "fabricated_a")["false alarms"].mean == 0.5
