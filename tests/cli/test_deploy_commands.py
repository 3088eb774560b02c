"""`kdbench export` and `kdbench predict`: from a cell to a file to scores of a user's images."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_category, write_image
from PIL import Image

from kdbench.deploy.metadata import Scale, beside, metadata_text, read_metadata
from kdbench.deploy.predict import Found, Predictor, find_images, heat_map, predict, watch


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results of STFPM, which holds images out, and RD4AD, which does not."""
    from kdbench import api

    folder = tmp_path_factory.mktemp("trained")
    write_category(folder / "mvtec", "bottle", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_CACHE", str(folder / "cache"))
        settings = {"all.image_size": 64, "all.batch_size": 4}
        api.run(
            methods=["stfpm", "rd4ad"],
            dataset="mvtec_ad",
            root=folder / "mvtec",
            backbone="tiny",
            epochs=1,
            set=settings,
            executor="local",
            latency=False,
            results=folder / "results",
            progress=False,
        )
    return folder


@pytest.fixture
def cells(trained: Path) -> dict[str, str]:
    rows = pd.read_parquet(trained / "results/cells")
    return dict(zip(rows["method"], rows["cell_id"], strict=True))


@pytest.fixture
def export(kdbench: Callable, trained: Path, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def call(*words: object, root: bool = True) -> tuple[int, str]:
        place = ("--root", trained / "mvtec") if root else ()
        return kdbench("export", *words, "--results", trained / "results", "--out", tmp_path / "out", *place)

    return call


@pytest.fixture(scope="module")
def exported_as(trained: Path) -> Callable[[str], Path]:
    """STFPM's detector in a format, by the Python interface; each is exported once."""
    from kdbench import api

    @cache
    def of(format: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDBENCH_CACHE", str(trained / "cache"))
            detector = api.open(trained / "results").detector(method="stfpm")
            return detector.export(format, trained / "out", root=trained / "mvtec")

    return of


@pytest.fixture
def exported(exported_as: Callable[[str], Path]) -> Path:
    """The same as an archive of torch.export, the quickest to write."""
    return exported_as("torch")


def test_a_file_says_where_it_comes_from_and_what_its_threshold_is_from(exported, cells):
    metadata = read_metadata(exported)
    assert exported.name == f"stfpm-mvtec_ad-bottle-{cells['stfpm'][:8]}.pt2"
    assert (metadata.cell_id, metadata.method, metadata.categories) == (cells["stfpm"], "stfpm", ("bottle",))
    assert metadata.config["backbone"] == "tiny"
    assert (metadata.image_size, metadata.teacher_sha256) == (64, "tiny-v1")
    assert "CC BY-NC-SA" in metadata.licences["training images"]
    assert (metadata.threshold.num_images, metadata.threshold.threshold_from) == (
        2,
        "held-out images",
    )  # a fifth of ten
    assert metadata.threshold.expected == pytest.approx(1 / 3)
    outside = json.loads(beside(exported).read_text())
    assert "10 normal images" not in outside["compared"]  # only two were held out
    assert re.match(
        "8 normal images and 6 of noise: torch .* differs from torch by 0.0e", outside["compared"]
    )
    assert outside == json.loads(metadata_text(exported)) | {"compared": outside["compared"]}


def test_the_threshold_of_a_method_that_holds_nothing_out_says_so(export, cells, tmp_path):
    code, printed = export(cells["rd4ad"][:6], "--format", "torch", "--false-alarms", "0.2")
    assert code == 0, printed
    (path,) = (tmp_path / "out").glob("rd4ad*.pt2")
    threshold = read_metadata(path).threshold
    assert (threshold.num_images, threshold.threshold_from) == (10, "training images")
    assert threshold.expected is None
    assert "from 10 training images, which the detector has learnt" in printed
    assert '"threshold_from": "training images"' in beside(path).read_text()


def test_without_images_there_is_no_threshold_and_the_comparison_is_with_noise(
    export, cells, tmp_path, kdbench, trained
):
    code, printed = export(cells["rd4ad"], "--format", "torch", root=False)
    assert code == 0, printed
    assert "no threshold, since there are no normal images: mvtec_ad needs images" in printed
    assert "8 images of noise" in printed
    (path,) = (tmp_path / "out").glob("*.pt2")
    assert read_metadata(path).threshold is None
    code, printed = kdbench(
        "predict", path, trained / "mvtec/bottle/test/broken/000.png", "--out", tmp_path / "p"
    )
    assert code == 0
    assert "the detector has no threshold" in printed
    table = pd.read_csv(tmp_path / "p/predictions.csv")
    assert table["decision"].isna().all()


def test_without_images_the_threshold_is_from_the_scores_that_the_run_kept(
    export, exported, cells, tmp_path, trained
):
    code, printed = export(cells["stfpm"], "--format", "torch", "--false-alarms", "0.4", root=False)
    assert code == 0, printed
    assert "its scores are those that the run kept, in " in printed
    assert "mvtec_ad needs images" in printed
    (path,) = (tmp_path / "out").glob("*.pt2")
    threshold = read_metadata(path).threshold
    scores = pd.read_parquet(trained / "results/normals")["image_score"].sort_values()
    assert (threshold.num_images, threshold.threshold_from) == (2, "held-out images")
    assert (threshold.value, threshold.false_alarms) == (scores.iloc[1], 0.4)
    from_images = read_metadata(exported).threshold
    assert threshold.value == pytest.approx(from_images.value, rel=0.05)  # a run may compute in bf16


def test_a_cell_decides_by_the_scores_that_its_run_kept(kdbench, cells, trained, tmp_path):
    words = ("--out", tmp_path / "p", "--results", trained / "results")
    code, printed = kdbench("predict", cells["stfpm"], trained / "mvtec/bottle/test", *words)
    assert code == 0, printed
    assert "from 2 held-out normal images" in printed
    table, kept = pd.read_csv(tmp_path / "p/predictions.csv"), pd.read_parquet(trained / "results/normals")
    above = table["score"] > kept["image_score"].max()
    assert (above == (table["decision"] == "anomalous")).all()
    code, printed = kdbench("predict", cells["rd4ad"], trained / "mvtec/bottle/test", *words)
    assert "the detector has no threshold" in printed


def test_the_best_cell_of_each_category_is_exported(export, trained, tmp_path):
    code, printed = export("--best", "image_auroc", "--format", "torch")
    assert code == 0, printed
    rows = pd.read_parquet(trained / "results/cells")
    best = rows.loc[rows["image_auroc"].idxmax(), "cell_id"]
    (path,) = (tmp_path / "out").glob("*.pt2")
    assert read_metadata(path).cell_id == best
    assert "is computed on test images" in printed


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "name cells, or --best METRIC"),
        (("abc", "--best", "image_auroc"), "name cells, or --best METRIC"),
        (("nowhere",), "no cell 'nowhere' succeeded"),
        (("--best", "image_aurok"), "no metric 'image_aurok'. Did you mean 'image_auroc'?"),
        (("--best", "image_auroc", "--format", "onyx"), "no format 'onyx'. Did you mean 'onnx'?"),
        (("--best", "image_auroc", "--device", "tpu"), "no device 'tpu'"),
        (("--best", "image_auroc", "--false-alarms", "1"), "a rate of false alarms of 1.0"),
    ],
)
def test_what_cannot_be_exported_is_said(export, tmp_path, words, complaint):
    code, printed = export(*words)
    assert code == 2
    assert complaint in printed
    assert not list(tmp_path.rglob("out/*"))


def test_a_file_that_gives_other_scores_is_not_left(export, cells, tmp_path, monkeypatch):
    from kdbench.engine import delivery

    write = delivery.WRITERS["torch"]

    def wrong(traced, path, metadata):
        traced.program.state_dict["mean"] = traced.program.state_dict["mean"] + 30
        write(traced, path, metadata)

    monkeypatch.setitem(delivery.WRITERS, "torch", wrong)
    code, printed = export(cells["stfpm"], "--format", "torch")
    assert code == 2
    assert "torch gives other maps or scores than torch, by" in printed
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_package_names_the_extra(export, cells, monkeypatch):
    from kdbench.deploy import export as writing

    monkeypatch.setattr(writing, "find_spec", lambda name: None)
    code, printed = export(cells["stfpm"])
    assert code == 2
    assert 'the format onnx needs onnx and onnxscript: pip install "kdbench[deploy]"' in printed


@pytest.mark.parametrize("format", ["onnx", "openvino", "torch"])
def test_a_folder_of_83_images_with_two_damaged_ones(kdbench, exported_as, tmp_path, format):
    exported = exported_as(format)
    folder = tmp_path / "images"
    for i in range(81):
        write_image(folder / f"{'ab'[i % 2]}/{i:02}.png", i, square=i < 3)
    whole = write_image(tmp_path / "whole.png", 99).read_bytes()
    (folder / "a/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b/text.png").write_text("no image")
    (folder / "notes.txt").write_text("left out")
    code, printed = kdbench("predict", exported, folder, "--out", tmp_path / "p")
    assert code == 1, printed
    assert "files in the folders without the suffix of an image are left out: 1" in printed
    assert "81 images scored" in printed
    table = pd.read_parquet(tmp_path / "p/predictions.parquet")
    assert list(table) == ["path", "score", "decision", "milliseconds", "map", "heat_map", "error"]
    assert (len(table), table["score"].notna().sum(), table["error"].notna().sum()) == (83, 81, 2)
    bad = table[table["error"].notna()]
    assert [Path(path).name for path in bad["path"]] == ["cut.png", "text.png"]
    assert bad["error"].str.contains("cannot be read as an image").all()
    assert bad[["score", "decision", "milliseconds", "map", "heat_map"]].isna().all(axis=None)
    good = table[table["error"].isna()]
    threshold = read_metadata(exported).threshold.value
    assert ((good["score"] > threshold) == (good["decision"] == "anomalous")).all()
    assert len(list((tmp_path / "p/heat_maps").rglob("*.png"))) == 81
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "p/predictions.csv"), table, check_dtype=False, rtol=1e-12
    )
    line = good.iloc[0]
    with Image.open(tmp_path / "p" / line["map"]) as opened:
        values = np.asarray(opened)
    assert (values.dtype, values.shape) == (np.float32, (64, 64))
    assert values.max() == pytest.approx(line["score"])


def test_a_cell_and_its_file_give_the_same_scores(kdbench, exported, cells, trained, tmp_path):
    images, results = trained / "mvtec/bottle/test/*/*.png", trained / "results"
    assert kdbench("predict", exported, images, "--out", tmp_path / "a")[0] == 0
    code, printed = kdbench(
        "predict", cells["stfpm"], images, "--out", tmp_path / "b", "--results", results, "--threshold", "0.5"
    )
    assert code == 0, printed
    a, b = (pd.read_csv(tmp_path / which / "predictions.csv") for which in "ab")
    scores = pd.read_parquet(results / "scores").query("cell_id == @cells['stfpm']")
    by_image = {trained / "mvtec" / i: s for i, s in zip(scores["image"], scores["image_score"], strict=True)}
    expected = [by_image[Path(path)] for path in a["path"]]
    assert len(a) == 8
    assert a["score"].to_numpy() == pytest.approx(expected, rel=0.05)  # a cell may compute in bf16
    assert b["score"].to_numpy() == pytest.approx(expected, rel=1e-6)
    assert set(b["decision"]) <= {"anomalous", "normal"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("{file}",), "name images, or --watch FOLDER"),
        (("{file}", "{file}", "--threshold", "nan"), "--threshold nan: it is a finite number"),
        (("{file}", "nowhere.png", "*.bmp"), "there is no file nowhere.png"),
        (("{file}", "nowhere.png", "*.bmp"), "*.bmp fits no file"),
        (("nowhere.onnx", "{image}"), "there is no file nowhere.onnx"),
        (("{file}", "{image}", "--device", "tpu"), "does not run on tpu"),
        (("{file}", "--watch", "nowhere"), "--watch nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_predicted_is_said(kdbench, exported, trained, tmp_path, words, complaint):
    names = {"file": exported, "image": trained / "mvtec/bottle/test/good/000.png"}
    code, printed = kdbench("predict", *(word.format(**names) for word in words), "--out", tmp_path / "p")
    assert code == 2
    assert complaint in printed
    assert not (tmp_path / "p").exists()


def test_files_of_the_same_name_keep_apart(tmp_path):
    paths = [write_image(tmp_path / folder / "1.png", 0) for folder in ("a", "b")]
    found, others = find_images([*map(str, paths), str(tmp_path / "a"), str(tmp_path / "b")])
    assert [one.name for one in found] == ["1.png", "2-1.png"]
    assert others == 0


class Brightness:
    """A detector whose map is how bright each pixel is."""

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = images.mean(3).astype(np.float32)
        return maps, maps.max((1, 2))


def test_a_folder_that_is_watched_gives_each_complete_file_once(tmp_path):
    """A file that still grows waits; one that is written anew comes again."""
    folder = tmp_path / "camera"
    write_image(folder / "0.png", 0)
    whole = write_image(tmp_path / "one.png", 1).read_bytes()
    steps = iter(
        [
            lambda: (folder / "1.png").write_bytes(whole[:100]),
            lambda: (folder / "1.png").write_bytes(whole),
            lambda: None,
            lambda: None,
            lambda: write_image(folder / "0.png", 7, size=50),
            lambda: None,
        ]
    )
    new = watch(folder, lambda: next(steps)())
    seen = [[one.name for one in next(new)] for _ in range(3)]
    assert seen == [["0.png"], ["1.png"], ["0.png"]]


def test_what_normal_images_have_stays_below_the_middle_colour():
    picture = Image.new("RGB", (40, 30), (100, 100, 100))
    values = np.zeros((20, 20), np.float32)
    values[5, 5], values[15, 15] = 1.0, 4.0  # as high as in a normal image; above
    shown = np.asarray(heat_map(picture, values, Scale(low=0.0, high=1.0))).astype(int)
    assert shown.shape == (30, 40, 3)
    assert (shown[0, 39] == 100).all()  # the image itself where nothing is hot
    assert shown[23, 31, 1] > 180  # yellow and brighter
    assert shown[8, 11, 1] < 110
    own = np.asarray(heat_map(picture, values, None))
    assert own[23, 31, 1] > 180


def test_a_score_that_is_no_number_is_an_error_of_its_image(tmp_path):
    class Broken:
        def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.full(images.shape[:3], np.nan, np.float32), np.array([np.nan])

    image = Found(path=write_image(tmp_path / "0.png", 0), name="0.png")
    for scorer, error in ((Broken(), True), (Brightness(), False)):
        predictor = Predictor(scorer=scorer, image_size=32, threshold=1.0, scale=None)
        (found,) = predict(predictor, [image], tmp_path / "out")
        assert bool(found.error) == error
        assert found.decision == (None if error else "anomalous")


def test_the_options_are_frozen():
    import typer.main

    from kdbench.cli.app import app

    commands = typer.main.get_command(app).commands
    options = {
        name: sorted(o for p in commands[name].params for o in p.opts) for name in ("export", "predict")
    }
    assert options["export"] == [
        *("--best", "--device", "--false-alarms", "--format", "--json", "--out", "--quiet", "--results"),
        *("--root", "--weights", "cells"),
    ]
    assert options["predict"] == [
        *("--device", "--json", "--out", "--quiet", "--results", "--threshold", "--watch", "--weights"),
        *("detector", "images"),
    ]
