"""When may one stop: flatness of trainings and metrics in the middle of them, by hand."""

import math

import pytest
from fabricated import all_metrics, row

from kdbench.reports import figures
from kdbench.reports.budget import change
from kdbench.reports.leaderboard import all_tables
from kdbench.reports.page import all_sketches
from kdbench.results.schema import MEASURED
from kdbench.results.store import CELLS, EPOCHS, Results

STEEP = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
FLAT = [8.0, 7.0, 6.0, 5.0, 4.0, 4.0, 4.0, 3.8]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (STEEP, 1 - 1.5 / 3.5),
        (FLAT, 1 - 3.9 / 4.0),
        ([1.0] * 4 + [1.0, 1.0, 2.0, 2.0], -1.0),  # it rose
        (STEEP[1:], math.nan),  # seven epochs
        ([*STEEP[:-1], 0.0], math.nan),
        (None, math.nan),
    ],
)
def test_the_change_of_the_last_quarter(curve, expected):
    assert change(curve) == pytest.approx(expected, nan_ok=True)


def write(folder, method, seed, loss, heldout, measured):
    """A cell of categories a and b; `measured` has the image AUROC of both by epoch."""
    results, cell_id = Results(folder), f"{method}-{seed}"
    facts = {"cell_id": cell_id, "method": method, "seed": seed, "num_steps": 80, **all_metrics(0.9)}
    facts |= {"epoch_loss": loss, "epoch_heldout": heldout}
    results.write(CELLS, [row(category=category, **facts) for category in "ab"])
    if measured:
        results.write(
            EPOCHS,
            [
                {"cell_id": cell_id, "category": category, "epoch": epoch, "epochs": 8}
                | dict.fromkeys(MEASURED, value)
                for epoch, values in measured.items()
                for category, value in zip("ab", values, strict=True)
            ],
        )


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "one", 0, FLAT, [], {2: (0.5, 0.7), 4: (0.6, 0.7), 8: (0.9, 0.9)})
    write(tmp_path, "one", 1, FLAT, [], {2: (0.7, 0.7), 4: (0.8, 0.9)})
    write(tmp_path, "two", 0, FLAT, STEEP, {})
    write(tmp_path, "two", 1, STEEP, FLAT, {})
    return tmp_path


def lines_of(folder, title):
    """The lines of a table by their columns."""
    (table,) = (table for table in all_tables(folder) if table.title.startswith(title))
    return [dict(zip(table.head, line, strict=True)) for line in table.body]


def test_the_table_says_what_still_changed_and_what_was_measured(folder):
    one, two = lines_of(folder, "When may one stop")
    assert (one["method"].text, one["flat"].text, one["loss"].mean) == ("one", "2 of 2", pytest.approx(0.025))
    assert (two["flat"].text, two["held-out map"].mean) == ("0 of 2", pytest.approx((4 / 7 + 0.025) / 2))
    assert one["held-out map"].hole
    one, two = lines_of(folder, "Test metrics in the middle of the training")
    assert one["I-AUROC at 25 %"].mean == pytest.approx(0.65)  # (0.6 + 0.7) / 2
    assert one["I-AUROC at 50 %"].mean == pytest.approx(0.75)
    assert one["I-AUROC at 100 %"].mean == pytest.approx(0.9)  # of the one seed that was measured then
    assert one["I-AUROC at 100 %"].cell_ids == ("one-0",)
    assert two["I-AUROC at 50 %"].hole


def test_the_figure_has_the_epochs_that_all_seeds_have(folder):
    (sketch,) = (one for one in all_sketches(folder) if one.title.startswith("When may one stop"))
    image, *_ = sketch.draw().axes
    (line,) = image.get_lines()
    assert line.get_xdata().tolist() == [20.0, 40.0]
    assert line.get_ydata().tolist() == pytest.approx([65.0, 75.0])
    assert figures.render(sketch).svg.startswith(b"<?xml")


def test_short_trainings_have_neither(tmp_path):
    write(tmp_path, "one", 0, STEEP[:3], [], {})
    assert not [table for table in all_tables(tmp_path) if table.title.startswith("When")]
    assert not [sketch for sketch in all_sketches(tmp_path) if sketch.title.startswith("When")]
