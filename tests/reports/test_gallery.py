"""Which images are shown and why, by hand; and that the pictures show what was kept."""

import io

import numpy as np
import pandas as pd
import pytest
from fabricated_run import Grid, fabricate
from PIL import Image

from kdbench.data.pictures import grey
from kdbench.reports.entries import entries
from kdbench.reports.figures import render
from kdbench.reports.figures_accuracy import picture_cells
from kdbench.reports.figures_gallery import strip
from kdbench.reports.gallery import MOST, candidates, exhibits, median, standings, within_budget
from kdbench.reports.heat import DECADES, Kept, Map, Normals, outline
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


def kept(values: np.ndarray, power: float = 1.0) -> Kept:
    """A map as a row keeps it."""
    lowest, highest = float(values.min()), float(values.max())
    return Kept(
        picture=png(grey(values, lowest, highest, power)), lowest=lowest, highest=highest, power=power
    )


def png(image: Image.Image) -> bytes:
    memory = io.BytesIO()
    image.save(memory, "PNG")
    return memory.getvalue()


def test_the_share_of_normal_pixels_counts_those_with_the_same_value_too():
    normals = Normals([kept(np.array([[0.0, 1.0], [2.0, 2.0]])), kept(np.array([[4.0, 4.0], [4.0, 4.0]]))])
    values = np.array([-1, 0, 0.5, 1, 2, 3, 4, 5], np.float32)
    assert normals.share(values).tolist() == [1, 1, 7 / 8, 7 / 8, 6 / 8, 4 / 8, 4 / 8, 0]


def test_colours_follow_the_rank_whatever_the_unit_of_the_method():
    """A map and its cube, as of a product of levels with a defect far above, have the same colours."""
    field = np.random.default_rng(0).uniform(0, 1, (40, 40))
    test = np.linspace(0.0, 1.2, 1600).reshape(40, 40)
    test[0, 0] = 6
    share = np.array([(field >= value).mean() for value in test.ravel()]).reshape(40, 40)
    exact = np.where(share > 0, -np.log10(share.clip(1e-9)) / DECADES, 1).clip(0, 1)

    def error(power: float) -> np.ndarray:
        found = Map(kept=kept(test**3, power), normals=Normals([kept(field**3, power)]))
        return np.abs(found.brightness((40, 40)) - exact)

    assert error(3.0)[share > 0.1].max() < 0.02  # below, a step of the grey is many ranks
    assert error(3.0)[test > 1.05].max() == 0
    assert error(1.0)[share > 0.1].max() > 0.2  # as an older kdbench kept it


def test_the_colours_of_a_map_grow_from_dark_to_bright():
    normals = Normals([kept(np.linspace(0, 1, 10_000).reshape(100, 100))])
    found = Map(kept=kept(np.linspace(0, 2, 100)[:, None].repeat(100, 1)), normals=normals)
    with Image.open(io.BytesIO(found.coloured((20, 100)))) as opened:
        light = np.asarray(opened.convert("L")).astype(int)
    assert light.shape == (100, 20)
    assert (np.diff(light[:, 0]) >= 0).all()
    assert (light[0, 0], light[-1, 0]) == (0, light.max())


def test_the_outline_runs_along_the_border_of_the_mask():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 3:9] = True
    mask[7:, 15:] = True  # at the edge of the picture
    found = outline(png(Image.fromarray(mask)))
    one, two = (
        [tuple(map(float, p.split(","))) for p in part.strip("MZ").split()] for part in found.split("ZM")
    )
    for points, (x0, x1, y0, y1) in ((one, (3, 9, 2, 5)), (two, (15, 20, 7, 10))):
        xs, ys = zip(*points, strict=True)
        assert (min(xs), max(xs), min(ys), max(ys)) == pytest.approx((x0, x1, y0, y1), abs=0.5)
    assert outline(png(Image.fromarray(np.zeros((4, 4), bool)))) == ""


def test_the_image_of_the_strip_is_the_defect_in_the_middle():
    wide = scores(one=[1, 2, 8, 3, 7, 9], two=[1, 2, 3, 9, 8, 7])
    # Places of x, y, z: 5/12, 7/12, 11/12 of one; 11/12, 9/12, 7/12 of two. The means: 8, 8, 9 twelfths.
    (found,) = median("nut", wide)
    assert (found.kind, found.image) == ("median", "y")
    assert [one.image for one in median("nut", scores(one=[1, 2, 3, 6, 4, 5]))] == ["z"]
    assert median("nut", wide[~wide["label"]]) == []
    two = wide[wide["image"] != "z"]
    assert [one.image for one in median("nut", two)] == ["x"]  # the lower of two: equal places, by name


def test_pictures_are_found_for_every_entry_and_taken_in_turn_within_the_budget(tmp_path):
    grid = Grid(
        datasets={"toy": ("nut", "wood")}, methods=("dcam", "stfpm"), settings=("multiclass",), seeds=(0,)
    )
    fabricate(tmp_path, grid)
    rows = load(tmp_path)
    ((_, cells),) = sections(rows.cells)
    scored = rows.scores.merge(picture_cells(entries(cells), {}), on=["cell_id", "category"])
    groups = [
        list(exhibits(Storage(tmp_path), candidates(str(name), own), scored))
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


def test_the_strip_shows_a_line_for_each_category_and_needs_pictures(tmp_path):
    grid = Grid(
        datasets={"toy": ("nut", "wood")}, methods=("dcam", "stfpm"), settings=("multiclass",), seeds=(0,)
    )
    fabricate(tmp_path, grid)
    rows = load(tmp_path)
    ((group, cells),) = sections(rows.cells)
    scored = rows.scores.merge(picture_cells(entries(cells), {}), on=["cell_id", "category"])
    middle = [one for name, own in scored.groupby("category") for one in median(str(name), own)]
    shown = list(exhibits(Storage(tmp_path), middle, scored))
    assert [exhibit.candidate.category for exhibit in shown] == ["nut", "wood"]
    sketch = strip(group, ["dcam", "stfpm"], shown)
    assert sketch.name == "strip-toy-multiclass-paper-exact-v1"
    assert "coarse steps" in sketch.says  # the rows are as an older kdbench wrote them
    assert sketch.draw
    figure = sketch.draw()
    *panels, legend = figure.axes
    assert [axes.get_title(loc="center") for axes in panels[:4]] == ["input", "truth", "dcam", "stfpm"]
    assert [len(axes.images) for axes in panels] == [1] * 8
    assert [len(axes.lines) for axes in panels[:4]] == [0, 2, 2, 2]  # the border, on a darker one
    assert [label.get_text() for label in legend.get_xticklabels()][-1] == "≤ 0.1 %"
    assert render(sketch) == render(sketch)
    without = strip(group, ["dcam"], [])
    assert without.draw is None
    assert without.why_not
