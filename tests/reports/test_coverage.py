"""The coverage of intervals that reports promise, against simulations of it."""

import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.coverage import Case, cases, coverage

from kdbench.reports.coverage import TABLE, coverage_tables, covered
from kdbench.reports.embed import embed

PAGE = Path(__file__).parents[2] / "docs/reports.md"
REPEATS_OF_TABLE, REPEATS = 2000, 400
QUANTITIES = ("mean", "mean_f1_max", "difference")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(TABLE)


def test_the_table_has_every_case_once_and_in_order(table):
    keys = [name for name in table.columns if name not in QUANTITIES]
    assert table[keys].to_dict("records") == [asdict(case) for case in cases()]


def test_the_page_shows_the_table(tmp_path):
    copy = Path(shutil.copy(PAGE, tmp_path))
    embed(copy, coverage_tables())
    assert copy.read_text() == PAGE.read_text(), "python tests/benchmarks/coverage.py --write"


def test_differences_of_normal_values_are_covered_and_have_few_false_positives(table):
    """Alone and together: 3 to 15 categories, 20 to 200 images, 2 to 5 seeds."""
    normal = table[table["values"] == "normal"]
    assert normal["difference"].min() > 0.935  # p is below 5 % in 6.5 % at most
    assert normal.loc[normal["seeds_vary"] != "much", "mean"].min() > 0.935
    assert normal.loc[normal["num_seeds"] > 2, "mean"].min() > 0.9


def test_skewed_values_are_covered_as_far_as_few_values_tell(table):
    skewed = table[table["values"] == "skewed"]
    assert skewed["difference"].min() > 0.86
    assert skewed.loc[skewed["num_images"] > 0, "difference"].min() > 0.94
    assert skewed["mean"].min() > 0.8
    assert table["mean_f1_max"].min() > 0.8


def test_what_a_report_says_is_of_as_many_seeds_and_categories_or_fewer(table):
    own = table[(table["over"] == "categories") & (table["num_seeds"] == 3) & (table["num_categories"] == 8)]
    low, high = (own.loc[own["values"] == "normal", "difference"].agg(side) for side in ("min", "max"))
    said = covered("categories", "difference", num_seeds=4, num_categories=11)
    assert said.startswith(f"{100 * low:.0f} to {100 * high:.0f} % for normal values, ")
    assert said.endswith(" for skewed ones")
    assert said == covered("categories", "difference", num_seeds=3, num_categories=8)
    assert covered("images", "mean", num_seeds=9) == covered("images", "mean", num_seeds=5)


ALL = list(cases())
AGAIN = ALL[:14:3] + ALL[14:62:5] + ALL[62:78:3] + ALL[78:90:2] + ALL[96:108:2]


@pytest.mark.slow
@pytest.mark.parametrize("case", AGAIN, ids=lambda case: " ".join(map(str, asdict(case).values())))
def test_a_simulation_covers_what_the_table_says(case: Case, table):
    """Within four standard errors of both counts."""
    found = coverage(case, REPEATS, seed=1)
    line = table.iloc[ALL.index(case)]
    for quantity in QUANTITIES:
        share = line[quantity]
        if math.isnan(share):
            assert math.isnan(found[quantity])
            continue
        error = math.sqrt(max(share * (1 - share), 0.01) * (1 / REPEATS + 1 / REPEATS_OF_TABLE))
        assert found[quantity] == pytest.approx(share, abs=4 * error), quantity
