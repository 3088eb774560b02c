"""Cells that rank worse than chance are named: their maps or scores may be inverted."""

import numpy as np
import pandas as pd
import pytest
from fabricated import all_metrics, row
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from kdbench.metrics.exact import image_metrics
from kdbench.reports.below_chance import p_below_chance
from kdbench.reports.leaderboard import all_tables, write_leaderboard
from kdbench.results.store import CELLS, Results


@pytest.mark.parametrize("shift", [-1.0, -0.3, 0.0, 0.8])
@pytest.mark.parametrize(("normal", "defective"), [(20, 63), (8, 9), (200, 40)])
def test_p_is_that_of_mann_and_whitney(normal, defective, shift):
    rng = np.random.default_rng(normal)
    scores = np.concatenate([rng.normal(size=normal), rng.normal(shift, 1, defective)])
    label = np.arange(normal + defective) >= normal
    p = p_below_chance(*(pd.Series([x]) for x in (roc_auc_score(label, scores), normal, defective)))[0]
    expected = mannwhitneyu(scores[label], scores[~label], alternative="less", method="asymptotic").pvalue
    assert p == pytest.approx(expected, abs=1e-12)


def test_ties_make_the_p_no_smaller():
    label, scores = np.arange(60) >= 30, np.r_[np.arange(30) % 4 + 1, np.arange(30) % 4]
    p = p_below_chance(*(pd.Series([x]) for x in (roc_auc_score(label, scores), 30, 30)))[0]
    assert p > mannwhitneyu(scores[label], scores[~label], alternative="less").pvalue


def written(folder, **metrics: float | None) -> tuple[list[list[str]], list[str]]:
    """The table of a cell with 20 normal and 63 defective images, and the terminal's lines on it."""
    counts = {"num_test": 83, "num_defective": 63, "status": "ok"}
    Results(folder).write(CELLS, [row(**counts, **(all_metrics(0.9) | metrics))])
    _, headline = write_leaderboard(folder, folder / "out")
    found = [table for table in all_tables(folder) if table.title.startswith("Worse than chance")]
    body = [[value.text for value in line] for table in found for line in table.body]
    return body, [line for line in headline.splitlines() if "worse than chance" in line]


def test_a_cell_below_chance_is_in_the_report_and_the_terminal_says_what_to_do(tmp_path):
    # By hand: z = (0.1 - 0.5 + 0.5 / 1260) / sqrt(84 / 15120) = -5.361, of which the normal p is 4.1e-8.
    body, (line,) = written(tmp_path, image_auroc=0.1)
    assert body[0][-3:] == ["10.00", "4.1e-08", "90.00"]
    assert "I-AUROC 10.00, P-AUROC 90.00). It takes normal images for defective ones" in line


def test_of_another_program_maps_may_be_inverted(tmp_path):
    body, (line,) = written(tmp_path, pixel_auroc=0.02, outside_sha256="0" * 64)
    assert body[0][-3:] == ["90.00", "1", "2.00"]
    assert "Are maps or scores inverted? A larger value has to be more anomalous: negate them" in line


@pytest.mark.parametrize("values", [{"image_auroc": 0.35}, {"pixel_auroc": None, "mad": None}, {}])
def test_what_chance_may_give_is_not_named(tmp_path, values):
    assert written(tmp_path, **values) == ([], [])


def blind_lines(folder, **metrics: float | None) -> tuple[list[list[str]], list[str]]:
    """The table of what has one value, and the terminal's lines on it."""
    written(folder, **metrics)
    _, headline = write_leaderboard(folder, folder / "out")
    found = [table for table in all_tables(folder) if table.title.startswith("One value for all")]
    body = [[value.text for value in line] for table in found for line in table.body]
    return body, [line for line in headline.splitlines() if "it sees nothing" in line]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"image_auroc": 0.5, "image_ap": 63 / 83}, "all images"),
        ({"image_auroc": 0.5, "image_ap": 63 / 83, "pixel_auroc": 0.5}, "all pixels"),
        ({"pixel_auroc": 0.5}, "all pixels"),
    ],
)
def test_a_detector_that_gives_one_value_to_all_is_named(tmp_path, values, what):
    """Its training collapsed, or it scales each map by itself: the numbers are right, and say nothing."""
    body, (line,) = blind_lines(tmp_path, **values)
    assert body == [["fabricated_a", "a", "0", what]]
    assert line == f"  fabricated_a gives {what} one value (a seed 0): it sees nothing"


@pytest.mark.parametrize("values", [{}, {"image_auroc": 0.5}, {"image_ap": 63 / 83}, {"pixel_auroc": None}])
def test_a_detector_that_sees_something_is_not(tmp_path, values):
    assert blind_lines(tmp_path, **values) == ([], [])


def test_metrics_of_one_value_are_those_that_are_looked_for():
    label = np.arange(83) >= 20
    found = image_metrics(np.full(83, 1.5), label)
    assert found["image_auroc"] == 0.5
    assert found["image_ap"] == pytest.approx(63 / 83, abs=1e-12)
