"""Which images are shown and why, by hand; and that the pictures show what was kept."""

import io

import numpy as np
import pandas as pd
import pytest
from fabricated_run import Grid, fabricate
from PIL import Image

from kdbench.data.pictures import grey
from kdbench.reports.entries import entries
from kdbench.reports.figures_accuracy import picture_cells
from kdbench.reports.gallery import MOST, candidates, coloured, exhibits, standings, within_budget
from kdbench.reports.rows import load, sections
from kdbench.results.storage import Storage


def scores(**by_entry: list[float]) -> pd.DataFrame:
    """Images a, b, c normal and x, y, z defective, scored by each entry."""
    names = "abcxyz"
    return pd.DataFrame(
        {"entry": entry, "cell_id": f"cell-{entry}", "image": name, "defect": "d", "image_score": value}
        | {"label": name in "xyz"}
        for entry, values in by_entry.items()
        for name, value in zip(names, values, strict=True)
    )


def test_standings_are_shares_of_the_other_kind_and_ranks_among_all():
    label = np.array([False, False, False, True, True, True])
    wrong, place = standings(label, np.array([[1.0, 2, 5, 0, 2, 9]]))
    # c=5 lies above x and y; x=0 lies below all normals; y=2 ties with b, which counts against both
    assert wrong[0] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 2 / 3, 0])
    assert place[0] == pytest.approx([1.5 / 6, 3 / 6, 4.5 / 6, 0.5 / 6, 3 / 6, 5.5 / 6])


def test_the_worst_miss_alarm_and_disagreement_come_first():
    found = candidates("nut", scores(one=[1, 2, 8, 3, 7, 9], two=[1, 2, 3, 9, 8, 7]))
    assert [(c.kind, c.image) for c in found][:3] == [
        ("miss", "x"),
        ("false alarm", "c"),
        ("disagreement", "z"),
    ]
    assert len(found) == MOST == 6
    assert found[0].why == "of one: 33% of the normal images score as high or higher"
    assert found[0].standing == {
        "one": "above 67% of the normal images",
        "two": "above 100% of the normal images",
    }
    assert found[0].cells == {"one": "cell-one", "two": "cell-two"}
    assert found[1].why == "of one: it scores as high as or higher than 67% of the defects"
    assert found[2].why == "scores higher than 92% of all images for one, than 58% for two"


def test_perfect_and_single_methods_need_no_excuse():
    found = candidates("nut", scores(one=[1, 2, 3, 4, 5, 6]))
    assert {c.kind for c in found} == {"miss", "false alarm"}
    assert all(c.why.startswith("none: every method") for c in found)


def test_an_image_that_an_entry_did_not_score_is_left_out():
    some = scores(one=[1, 2, 8, 3, 7, 9], two=[1, 2, 3, 9, 8, 7])
    found = candidates("nut", some[~((some["entry"] == "two") & (some["image"] == "x"))])
    assert "x" not in {c.image for c in found}


def test_a_coloured_map_is_brighter_where_the_kept_values_are_higher():
    memory = io.BytesIO()
    grey(np.array([[0.0, 1.0], [2.0, 4.0]]), 0, 4).save(memory, "PNG")
    with Image.open(io.BytesIO(coloured(memory.getvalue(), (0, 4), (1, 3), (2, 2)))) as opened:
        light = np.asarray(opened.convert("L")).astype(int)
    assert light[0, 0] == light[0, 1] < light[1, 0] < light[1, 1]  # 0 and 1 are at the lower end of the scale


def test_pictures_are_found_for_every_entry_and_taken_in_turn_within_the_budget(tmp_path):
    grid = Grid(
        datasets={"toy": ("nut", "wood")}, methods=("dcam", "stfpm"), settings=("multiclass",), seeds=(0,)
    )
    fabricate(tmp_path, grid)
    rows = load(tmp_path)
    ((_, cells),) = sections(rows.cells)
    scored = rows.scores.merge(picture_cells(entries(cells), {}), on=["cell_id", "category"])
    groups = [
        list(exhibits(Storage(tmp_path), candidates(str(name), own)))
        for name, own in scored.groupby("category")
    ]
    assert [len(group) for group in groups] == [MOST, MOST]
    for exhibit in groups[0]:
        assert set(exhibit.maps) == {"dcam", "stfpm"}
        assert (exhibit.mask is not None) == exhibit.candidate.label
        assert Image.open(io.BytesIO(exhibit.input)).size == (128, 85)
    everything = within_budget(groups)
    assert {Image.open(io.BytesIO(png)).size for png in everything[0][0].maps.values()} == {(128, 85)}
    assert [len(own) for own in everything] == [MOST, MOST]
    one_each = sum(own[0].num_bytes for own in everything)
    assert [len(own) for own in within_budget(groups, one_each)] == [1, 1]
    assert [len(own) for own in within_budget(groups, one_each - 1)] == [1, 0]
