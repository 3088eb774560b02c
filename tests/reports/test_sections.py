"""A cell and its rows agree on the section and the entry that they belong to."""

from collections import defaultdict
from dataclasses import asdict, replace
from itertools import product

import pandas as pd
from fabricated import row

from kdbench.cell import Cell, canonical_json
from kdbench.reports.rows import APART, named

CELL = Cell(
    method="stfpm",
    config=canonical_json({"epochs": 1, "precision": "auto"}),
    dataset="mvtec_ad",
    setting="oneclass",
    category="bottle",
    categories=("bottle",),
    fingerprint="0123456789abcdef0123",
    teacher_sha256="f37072fd",
    seed=0,
    preset="exact",
    profile="paper",
)
CATEGORIES = ("bottle", "screw")


def cells_of_a_run() -> list[Cell]:
    """Two methods, two values of a key, two settings, two data sets, two seeds."""
    cells = []
    for method, epochs, dataset, seed in product(("stfpm", "dcam"), (1, 2), ("mvtec_ad", "visa"), (0, 1)):
        config = canonical_json({"epochs": epochs, "precision": "auto"})
        cell = replace(CELL, method=method, config=config, dataset=dataset, seed=seed)
        cells += [replace(cell, category=name, categories=(name,)) for name in CATEGORIES]
        cells.append(replace(cell, setting="multiclass", category="all", categories=CATEGORIES))
    others = {"profile": "demo", "preset": "ader", "teacher_sha256": "0676ba61"}
    return [*cells, *(replace(cells[0], **{name: value}) for name, value in others.items())]


def rows_of(cell: Cell, **facts) -> list[dict]:
    version = cell.section.metric_version
    common = row(**asdict(cell) | {"cell_id": cell.id, "metric_version": version} | facts)
    common |= {"categories": list(cell.categories), "dataset_categories": list(CATEGORIES)}
    return [common | {"category": name} for name in cell.categories]


def together(pairs) -> set[frozenset[str]]:
    """Which cells share a key."""
    by_key = defaultdict(set)
    for cell_id, key in pairs:
        by_key[key].add(cell_id)
    return {frozenset(cell_ids) for cell_ids in by_key.values()}


def test_cells_and_their_rows_form_the_same_entries():
    cells = cells_of_a_run()
    rows = [row for cell in cells for row in rows_of(cell, split_sha256="0a1b", precision="bf16")]
    table = named(pd.DataFrame(rows))
    keys = zip(*(table[name] for name in (*APART, "method", "recipe")), strict=True)
    by_rows = together(zip(table["cell_id"], keys, strict=True))
    by_cells = together((cell.id, (cell.section, cell.method, cell.recipe_key)) for cell in cells)
    assert by_cells == by_rows
    assert len(by_cells) == 2 * 2 * 2 * 2 + 3


def test_a_cell_and_its_rows_name_the_section_alike():
    table = named(pd.DataFrame(rows_of(CELL, split_sha256=None, precision=None)))
    assert tuple(table[APART].iloc[0]) == (*CELL.section, False)
