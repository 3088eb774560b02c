"""A metric is one entry: with one more of them nothing runs again, and old rows keep their means."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_cell import CELL

from kdbench.metrics.exact import DEFINITIONS, MAD_METRICS, MAIN_METRICS, METRICS
from kdbench.reports.entries import COLUMNS, TITLES
from kdbench.results.schema import AUDIT_SCHEMA, MEASURED, ROW_SCHEMA

ROOT = Path(__file__).parents[2]
# The module of the metrics with two entries more, in a process of its own: all other modules are as they are.
WITH_TWO_MORE = """
import importlib.util, json, sys
from dataclasses import replace
from pathlib import Path

import kdbench.metrics

path = Path(kdbench.metrics.__file__).with_name("exact.py")
source, entries = path.read_text(), '''
    Metric(
        name="image_clear", title="I-CLEAR", of="image", in_mad=False,
        compute=lambda curve: float(curve.hits[curve.at_or_above == 0].max(initial=0) / curve.num_defective),
    ),
    Metric(name="aupro_10", title="AUPRO 10 %", of="pixel", compute=_aupro(0.1), in_mad=False),
'''
before, mark, after = source.partition("DEFINITIONS = (\\n")
assert mark
spec = importlib.util.spec_from_loader("kdbench.metrics.exact", loader=None)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = kdbench.metrics.exact = module
exec(compile(before + mark + entries + after, str(path), "exec"), module.__dict__)

import numpy as np
from kdbench.metrics.exact import image_metrics, label_regions, mad, pixel_metrics
from kdbench.reports.entries import entries as lines
from kdbench.reports.leaderboard import assemble, rendered
from kdbench.reports.rows import load, load_rows, sections
from kdbench.results.store import CELLS, Results, read
from test_cell import CELL

folder = sys.argv[1]
score, label = np.array([6, 8, 4, 5, 4, 1.0]), np.array([0, 1, 1, 0, 0, 0], bool)
maps = np.array([[[9, 3, 5], [5, 2, 1]], [[7, 5, 2], [1, 1, 0]]], np.float32)
masks = np.array([[[1, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]], bool)
values = image_metrics(score, label) | pixel_metrics(maps, label_regions(masks))
old = read(folder, CELLS)
found = [(entry, group.title) for group, rows in sections(load_rows(folder)) for entry in lines(rows)]
tables = rendered(assemble(load(folder)))
one = old.to_pylist()[0]
# A method that is run anew has the new columns.
results = Results(folder + "-new")
results.write(CELLS, [one | values | {"mad": mad(values), "categories": [one["category"]]}])
(new,) = [entry for _, rows in sections(load_rows(folder + "-new")) for entry in lines(
    rows.assign(dataset_categories=[[one["category"]]]))]
print(json.dumps({
    "id": CELL.id,
    "columns": old.schema.names,
    "num_values": old["image_clear"].null_count - old.num_rows,
    "values": values,
    "mad": mad(values),
    "means": [{name: mean and mean.mean for name, mean in entry.means.items()} for entry, _ in found],
    "csv": tables["leaderboard.csv"],
    "new": {name: mean and mean.mean for name, mean in new.means.items()},
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a kdbench with two metrics more says of the committed rows."""
    folder = tmp_path_factory.mktemp("old") / "rows"
    shutil.copytree(ROOT / "reports/published/first-comparison/rows", folder)
    words = [sys.executable, "-c", WITH_TWO_MORE, str(folder)]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": ""}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_cell_runs_again(told):
    assert told["id"] == CELL.id


def test_names_titles_and_columns_follow_from_the_entries(told):
    names = tuple(metric.name for metric in DEFINITIONS)
    assert names == METRICS == MEASURED[:-1]
    assert tuple(metric.name for metric in DEFINITIONS if metric.main) == MAIN_METRICS == COLUMNS[:-1]
    assert [TITLES[metric.name] for metric in DEFINITIONS] == [metric.title for metric in DEFINITIONS]
    assert tuple(metric.name for metric in DEFINITIONS if metric.in_mad) == MAD_METRICS
    assert set(MEASURED) <= set(AUDIT_SCHEMA.names)
    assert [name for name in told["columns"] if name not in ROW_SCHEMA.names] == ["image_clear", "aupro_10"]


def test_the_new_metrics_are_computed_and_count_in_no_mad(told):
    # The defective image with 8 is above all normals, the one with 4 is not.
    assert told["values"]["image_clear"] == 0.5
    # As in test_metrics: (0, 1/4) to (1/10, 1/4 + 1/10 * 0): level until 1/9.
    assert told["values"]["aupro_10"] == pytest.approx(0.25, abs=1e-15)
    assert told["mad"] == pytest.approx((5.5 / 8 + 0.7 + 2 / 3 + 8 / 9 + 11 / 15 + 3 / 4 + 7 / 12) / 7)
    assert told["new"]["image_clear"] == 0.5
    assert told["new"]["aupro_10"] == pytest.approx(0.25)


def test_old_rows_have_their_means_and_a_hole_for_the_new_metrics(told):
    assert told["num_values"] == 0
    assert {means["image_clear"] for means in told["means"]} == {None}
    assert any(means["mad"] for means in told["means"])
    cells = pd.read_csv(ROOT / "reports/published/first-comparison/leaderboard.csv", keep_default_na=False)
    said = told["csv"].splitlines()
    complete = cells[
        cells["table"].str.startswith("Ranking: ") & (cells["column"] == "mAD") & (cells["mean"] != "")
    ]
    assert len(complete)
    for cell in complete.itertuples():
        line = f'"{cell.table}",{cell.line},'
        assert any(one.startswith(f"{line}mAD,{cell.text},") for one in said), cell
        assert any(one.startswith(f"{line}I-CLEAR,-,") and ",missing," in one for one in said), cell
        assert any(one.startswith(f"{line}AUPRO 10 %,-,") for one in said), cell
