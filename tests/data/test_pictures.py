"""Pictures that a run keeps: what they show, and that every cell would keep the same inputs."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import tiny_jobs as jobs
from conftest import write_category, write_image
from PIL import Image

from kdbench.data.fingerprint import fingerprint
from kdbench.data.pictures import SIDE, grey, inputs_of, maps_of
from kdbench.dataset import Category, Sample
from kdbench.grid.attempt import execute_cell
from kdbench.registry import get_dataset


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def category_of(*paths: Path) -> Category:
    samples = tuple(Sample(path=path, label=False, defect="good") for path in paths)
    return Category(name="a", root=paths[0].parent, train=(), test=samples)


def test_a_picture_and_its_two_floats_give_the_map_back(tmp_path):
    maps = np.random.default_rng(0).normal(5, 2, (2, SIDE, SIDE)).astype(np.float32)
    rows = list(maps_of(category_of(tmp_path / "x.png", tmp_path / "y.png"), "print", maps))
    assert [(row["image"], row["category_fingerprint"]) for row in rows] == [
        ("x.png", "print"),
        ("y.png", "print"),
    ]
    for row, anomaly_map in zip(rows, maps, strict=True):
        picture = opened(row["anomaly_map"])
        assert (picture.format, picture.mode) == ("PNG", "L")
        span = row["highest"] - row["lowest"]
        power = row["grey_power"]
        steps = row["lowest"] + (np.arange(256) / 255) ** power * span
        again = steps[np.asarray(picture)]
        assert np.abs(again - anomaly_map).max() <= np.diff(steps).max() / 2 * 1.01
        low = anomaly_map < row["lowest"] + span / 1000  # a product has most of its pixels there
        assert np.abs(again - anomaly_map)[low].max(initial=0) <= span / 255 / 10


def test_low_values_keep_finer_steps_than_high_ones():
    values = np.linspace(0, 1, 10_001).reshape(1, -1)[:, :100]  # the lowest hundredth of 0 to 1
    assert len(np.unique(np.asarray(grey(values.repeat(100, 0), 0, 1, 3.0)))) > 30
    assert len(np.unique(np.asarray(grey(values.repeat(100, 0), 0, 1)))) < 5


def test_a_large_map_becomes_the_means_of_its_blocks():
    anomaly_map = np.zeros((2 * SIDE, 2 * SIDE))
    anomaly_map[:2, :1] = 1
    picture = np.asarray(grey(anomaly_map, 0, 1))
    assert picture.shape == (SIDE, SIDE)
    assert picture[0, 0] == 128
    assert picture.sum() == 128
    assert grey(np.zeros((32, 32)), 0, 0).getextrema() == (0, 0)


def test_a_map_that_is_not_finite_is_an_error(tmp_path):
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 1, 1] = np.inf
    with pytest.raises(ValueError, match=r"x\.png goes from 0\.0 to inf"):
        list(maps_of(category_of(tmp_path / "x.png"), "print", maps))


def test_inputs_keep_their_shape_and_show_the_smallest_defect(tmp_path):
    folder = write_category(tmp_path, "bottle", good=1, bad=1)
    write_image(folder / "test/good/000.png", 1, size=300)
    wide = Image.new("RGB", (400, 100), (200, 30, 30))
    wide.save(folder / "test/broken/000.png")
    mask = np.zeros((100, 400), np.uint8)
    mask[50, 200] = 255
    Image.fromarray(mask).save(folder / "ground_truth/broken/000_mask.png")
    dataset = get_dataset("mvtec_ad")
    category = dataset.scan(tmp_path, "bottle")
    broken, good = inputs_of(dataset, category, fingerprint(dataset, category))
    assert (broken["image"], broken["width"], broken["height"]) == ("bottle/test/broken/000.png", 400, 100)
    picture = opened(broken["input"])
    assert (picture.format, picture.size) == ("JPEG", (SIDE, SIDE // 4))
    assert np.abs(np.asarray(picture).mean((0, 1)) - (200, 30, 30)).max() < 3
    marked = np.asarray(opened(broken["mask"]))
    assert np.argwhere(marked).tolist() == [[16, 64]]
    assert opened(good["input"]).size == (SIDE, SIDE)
    assert good["mask"] is None


def test_a_run_keeps_pictures_of_every_test_image_and_shares_those_of_inputs(mvtec, tmp_path):
    asked = jobs(mvtec, tmp_path / "r", setting=("oneclass", "multiclass"))
    for job in asked:
        assert execute_cell(job.cell, job.place, "run-1", lambda progress: None).status == "ok"
    inputs = sorted((tmp_path / "r/inputs").iterdir())
    assert len(inputs) == 2
    before = {path: path.stat().st_mtime_ns for path in inputs}
    for job in asked:
        pictures = pq.read_table(tmp_path / f"r/pictures/{job.cell.id}.parquet").to_pylist()
        scores = pq.read_table(tmp_path / f"r/scores/{job.cell.id}.parquet").to_pylist()
        assert [row["image"] for row in pictures] == [row["image"] for row in scores]
        for picture, score in zip(pictures, scores, strict=True):
            assert picture["highest"] == pytest.approx(score["image_score"])  # the maximum of the map
            assert tmp_path / f"r/inputs/{picture['category_fingerprint']}.parquet" in before
    assert {path: path.stat().st_mtime_ns for path in inputs} == before


def test_the_same_cell_keeps_the_same_content(mvtec, tmp_path):
    """Two attempts differ in their id, and in nothing else; the images of a category have none."""
    for name in ("one", "two"):
        (job,) = jobs(mvtec, tmp_path / name, categories=("bottle",))
        execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    for part in ("inputs", "pictures", "curves"):
        (one,), (two,) = ((tmp_path / name / part).iterdir() for name in ("one", "two"))
        assert one.name == two.name
        if part == "inputs":
            assert one.read_bytes() == two.read_bytes()
        else:
            tables = [pq.read_table(path) for path in (one, two)]
            (first,), (second,) = (set(table["attempt_id"].to_pylist()) for table in tables)
            assert first != second
            assert tables[0].drop_columns("attempt_id").equals(tables[1].drop_columns("attempt_id"))


def test_a_failed_end_leaves_no_picture_of_an_earlier_one(mvtec, tmp_path):
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",))
    execute_cell(job.cell, job.place, "run-1", lambda progress: None)
    write_image(mvtec / "bottle/train/good/000.png", 7777)
    from dataclasses import replace

    again = execute_cell(job.cell, replace(job.place, replaces="run-1"), "run-2", lambda progress: None)
    assert again.status == "failed"
    assert not list((tmp_path / "r/pictures").iterdir())
    assert not list((tmp_path / "r/curves").iterdir())
    assert len(list((tmp_path / "r/inputs").iterdir())) == 1
