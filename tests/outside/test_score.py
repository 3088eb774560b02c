"""`kdbench score`: maps of other programs give the rows that our own give; broken ones, one clear message."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import STFPM, TINY
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import kdbench as package
from kdbench.engine.evaluate import at_size
from kdbench.errors import RequestError
from kdbench.results.schema import MEASURED
from kdbench.results.store import CELLS, Results, read

SIZE = 40  # of the images of the fixture


def images(root: Path, category: str = "bottle") -> list[Path]:
    return sorted((root / category / "test").rglob("*.png"))


def maps_of(root: Path, category: str = "bottle", size: int = SIZE) -> dict[str, np.ndarray]:
    """Maps of another program: brighter where a defect is, and noise; by image without suffix."""
    rng, found = np.random.default_rng(3), {}
    for path in images(root, category):
        values = rng.gamma(2, 1, (size, size)).astype(np.float32)
        if path.parent.name != "good":
            values[size // 4 : size // 2, size // 3 : 2 * size // 3] += rng.gamma(2, 1)
        found[path.relative_to(root).with_suffix("").as_posix()] = values
    return found


def save(folder: Path, name: str, values: np.ndarray, suffix: str = ".tiff") -> Path:
    path = folder / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".npy":
        np.save(path, values)
    elif suffix == ".npz":
        np.savez(path, anomaly_map=values)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.fixture
def maps(mvtec, tmp_path) -> Path:
    for name, values in maps_of(mvtec).items():
        save(tmp_path / "maps", name, values)
    return tmp_path / "maps"


@pytest.fixture
def asked(mvtec, maps, tmp_path) -> dict[str, Any]:
    return {
        "maps": maps,
        "name": "Other",
        "dataset": "mvtec_ad",
        "root": mvtec,
        "results": tmp_path / "results",
    }


def row_of(asked: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rows = package.score(**asked | changes).rows()
    (row,) = rows[rows["method"] == asked["name"]].to_dict("records")
    return row


# --- numbers ----------------------------------------------------------------------------------------------


def test_numbers_are_those_of_scikit_learn_on_the_maps(asked, mvtec):
    row = row_of(asked, preset="mvtec_original")
    found = maps_of(mvtec)
    masks = []
    for name in found:
        path = mvtec / name.replace("/test/", "/ground_truth/")
        mask = path.with_name(f"{path.name}_mask.png")
        masks.append(np.asarray(Image.open(mask)) > 0 if mask.exists() else np.zeros((SIZE, SIZE), bool))
    label = np.array([mask.any() for mask in masks])
    score = np.array([values.max() for values in found.values()])
    pixels, truth = np.stack([*found.values()]).ravel(), np.stack(masks).ravel()
    assert row["image_auroc"] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert row["pixel_auroc"] == pytest.approx(roc_auc_score(truth, pixels), abs=1e-9)
    assert row["pixel_ap"] == pytest.approx(average_precision_score(truth, pixels), abs=1e-9)
    assert row["num_test"] == 8
    assert row["score_pooling"] == "maximum"
    assert len(row["outside_sha256"]) == 64
    assert pd.isna(row["selection"])


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".npz"])
def test_the_kind_of_file_changes_no_number(asked, mvtec, maps, tmp_path, suffix):
    expected = row_of(asked)
    for name, values in maps_of(mvtec).items():
        save(tmp_path / "others", name, values, suffix)
    found = row_of(asked, maps=tmp_path / "others", results=tmp_path / "again")
    assert [found[m] for m in MEASURED] == pytest.approx([expected[m] for m in MEASURED], nan_ok=True, abs=0)


@pytest.mark.parametrize("suffix", [".tiff", ".png"])
def test_integers_of_16_bit_are_read_as_they_are(asked, mvtec, tmp_path, suffix):
    whole = {name: (1000 * values).astype(np.uint16) for name, values in maps_of(mvtec).items()}
    for name, values in whole.items():
        save(tmp_path / "integers", name, values, suffix)
        save(tmp_path / "floats", name, values.astype(np.float32))
    one = row_of(asked, maps=tmp_path / "integers", results=tmp_path / "a")
    other = row_of(asked, maps=tmp_path / "floats", results=tmp_path / "b")
    assert [one[m] for m in MEASURED] == pytest.approx([other[m] for m in MEASURED], nan_ok=True, abs=0)


def test_maps_of_another_size_go_through_the_rule_of_our_own(asked, mvtec, tmp_path):
    small = maps_of(mvtec, size=16)
    for name, values in small.items():
        save(tmp_path / "small", name, values)
        save(tmp_path / "large", name, at_size(values, (256, 256)))
    one = row_of(asked, maps=tmp_path / "small", results=tmp_path / "a")
    other = row_of(asked, maps=tmp_path / "large", results=tmp_path / "b")
    pixel = [name for name in MEASURED if name.startswith(("pixel", "aupro"))]
    assert [one[m] for m in pixel] == [other[m] for m in pixel]


def test_images_of_different_sizes_are_judged_at_their_own(asked, mvtec, tmp_path):
    for path, side in zip(images(mvtec)[:2], (50, 60), strict=True):  # defective ones
        mask = mvtec / f"bottle/ground_truth/broken/{path.stem}_mask.png"
        for file in (path, mask):
            with Image.open(file) as one:
                larger = one.resize((side, side), Image.Resampling.NEAREST)
            larger.save(file)
        save(
            tmp_path / "maps",
            f"bottle/test/broken/{path.stem}",
            np.arange(side**2, dtype=np.float32).reshape(side, side),
        )
    row = row_of(asked, preset="mvtec_original")
    assert 0 < row["pixel_auroc"] < 1
    assert row["num_regions"] == 4
    assert row_of(asked, results=tmp_path / "again")["num_regions"] == 4


def test_a_csv_gives_the_image_scores_with_maps_and_alone(asked, mvtec, tmp_path):
    names = [path.relative_to(mvtec).as_posix() for path in images(mvtec)]
    score = np.random.default_rng(0).normal(size=len(names))
    with (tmp_path / "scores.csv").open("w") as file:
        csv.writer(file).writerows(
            [("image", "image_score", "seconds"), *zip(names, score, score, strict=True)]
        )
    label = ["/good/" not in name for name in names]
    both = row_of(asked, csv=tmp_path / "scores.csv")
    alone = row_of(asked, csv=tmp_path / "scores.csv", maps=None, results=tmp_path / "alone")
    assert both["image_auroc"] == alone["image_auroc"] == pytest.approx(roc_auc_score(label, score))
    assert both["score_pooling"] == alone["score_pooling"] == "given"
    assert both["pixel_auroc"] > 0
    assert pd.isna(alone["pixel_auroc"])
    assert pd.isna(alone["mad"])
    assert pd.isna(alone["num_regions"])
    assert both["outside_sha256"] != alone["outside_sha256"]


def test_one_model_for_all_categories_is_one_cell(asked, mvtec, maps):
    for name, values in maps_of(mvtec, "screw").items():
        save(maps, name, values)
    rows = package.score(**asked | {"setting": "multiclass"}).rows()
    assert rows["cell_id"].nunique() == 1
    assert list(rows["category"]) == ["bottle", "screw"]
    assert {tuple(own) for own in rows["categories"]} == {("bottle", "screw")}


def test_other_maps_under_the_same_name_need_a_word(asked, mvtec, maps):
    before = row_of(asked)
    assert row_of(asked)["outside_sha256"] == before["outside_sha256"]
    save(maps, "bottle/test/good/000", np.eye(SIZE, dtype=np.float32))
    with pytest.raises(
        RequestError, match=r"^Other mvtec_ad/bottle oneclass seed 0: .* --replace replaces them"
    ):
        package.score(**asked)
    after = row_of(asked, replace=True)
    assert after["outside_sha256"] != before["outside_sha256"]
    assert after["cell_id"] == before["cell_id"]


def test_inverted_maps_are_said(asked, mvtec, kdbench, tmp_path):
    for name, values in maps_of(mvtec).items():
        save(tmp_path / "inverted", name, -values)
    words = [f"--{name}={asked[name]}" for name in ("dataset", "root", "results")]
    for folder, said in (("inverted", True), ("maps", False)):
        code, printed = kdbench("score", tmp_path / folder, "--name", folder, *words, "--out", tmp_path / "o")
        assert code == 0, printed
        assert (f"{folder} is worse than chance (bottle seed 0: " in printed) == said
    assert printed.count("Are maps or scores inverted?") == 1


# --- beside our own ---------------------------------------------------------------------------------------


@pytest.fixture
def trained(kdbench, mvtec, tmp_path) -> list[Any]:
    """The options of commands that read a results folder with detectors of bottle and screw."""
    where = ["--results", tmp_path / "results", "--root", mvtec]
    code, printed = kdbench("run", *STFPM, *TINY, *where, "--out", tmp_path / "out")
    assert code == 0, printed
    return where


def test_our_maps_come_back_with_the_same_numbers_and_stand_in_all_tables(trained, kdbench, mvtec, tmp_path):
    code, printed = kdbench("export-maps", tmp_path / "ours", *trained)
    assert code == 0, printed
    assert f"16 maps in {tmp_path / 'ours'}" in printed
    with Image.open(tmp_path / "ours/bottle/test/broken/000.tiff") as one:
        assert (one.mode, one.size) == ("F", (32, 32))
    words = ["--name", "STFPM again", "--dataset", "mvtec_ad", "--csv", tmp_path / "ours/image_scores.csv"]
    words += ["--latency-ms", "12.5", "--latency-device", "a camera"]
    code, printed = kdbench("score", tmp_path / "ours", *words, *trained, "--out", tmp_path / "out")
    assert code == 0, printed
    rows = pd.read_parquet(tmp_path / "results/cells").sort_values("category")
    ours, theirs = (rows[rows["method"] == name] for name in ("stfpm", "STFPM again"))
    assert ours[[*MEASURED]].reset_index(drop=True).equals(theirs[[*MEASURED]].reset_index(drop=True))
    # Rows of another program have no threads and no device: that changes nothing for ours.
    code, printed = kdbench("export-maps", tmp_path / "later", *trained)
    assert code == 0, printed
    name = "bottle/test/broken/000.tiff"
    assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()
    report = (tmp_path / "out/leaderboard.md").read_text()
    (line, *_) = [line for line in report.splitlines() if "STFPM again" in line]
    assert " outside |" in line
    assert "Latency on a camera" in report
    assert "given by the user, not measured here" in report
    assert sum("STFPM again" in line for line in report.splitlines()) > 8
    pictures = pd.read_parquet(tmp_path / "results/pictures")
    assert pictures["cell_id"].nunique() == 4
    # What others cost says nothing of cells to come.
    code, printed = kdbench("run", *STFPM, *TINY, *trained, "--seeds", "1", "--dry-run")
    assert code == 0, printed
    assert "estimate" in printed or "about" in printed


def test_maps_at_the_size_of_the_images(trained, kdbench, tmp_path):
    code, printed = kdbench("export-maps", tmp_path / "ours", *trained, "--original-size")
    assert code == 0, printed
    with Image.open(tmp_path / "ours/bottle/test/broken/000.tiff") as one:
        assert one.size == (SIZE, SIZE)
    code, printed = kdbench("export-maps", tmp_path / "ours", *trained)
    assert code == 2
    assert "is not empty" in printed


def test_a_folder_of_maps_is_of_one_method_and_seed(trained, kdbench, tmp_path):
    code, printed = kdbench("run", *STFPM, *TINY, *trained, "--seeds", "1", "--out", tmp_path / "out")
    assert code == 0, printed
    code, printed = kdbench("export-maps", tmp_path / "ours", *trained)
    assert code == 2
    assert "4 cells fit, and they differ in seed (0, 1)" in printed
    assert kdbench("export-maps", tmp_path / "ours", *trained, "--seed", "1")[0] == 0
    code, printed = kdbench("export-maps", tmp_path / "none", *trained, "--method", "dcam")
    assert "no cell of " in printed
    for file in (tmp_path / "results/detectors").iterdir():
        file.unlink()
    code, printed = kdbench("export-maps", tmp_path / "gone", *trained, "--seed", "0")
    assert code == 2
    assert printed.count("no detector was kept") == 2


# --- new metrics of old rows ------------------------------------------------------------------------------

NEW = ("image_fpr_95", "aupimo")


def aged(results: Path, **changes: Any) -> list[dict[str, Any]]:
    """The rows as an older kdbench left them, without the new metrics."""
    folder, rows = Results(results), read(results, CELLS).to_pylist()
    for row in rows:
        folder.write(CELLS, [row | dict.fromkeys(NEW) | changes])
    return rows


def test_rescore_fills_what_rows_lack_and_changes_nothing_else(trained, kdbench, tmp_path):
    before = aged(tmp_path / "results")
    code, printed = kdbench("rescore", *trained)
    assert code == 0, printed
    assert "all metrics of 2 cells are there now" in printed
    assert read(tmp_path / "results", CELLS).to_pylist() == before
    assert all(row["image_fpr_95"] is not None for row in before)
    code, printed = kdbench("rescore", *trained)
    assert "no row lacks a metric" in printed


def test_rescore_refuses_a_value_that_moved_in_the_last_digit(trained, kdbench, tmp_path):
    (row, *_) = read(tmp_path / "results", CELLS).to_pylist()
    moved = float(np.nextafter(row["pixel_auroc"], 2))
    aged(tmp_path / "results", pixel_auroc=moved)
    code, printed = kdbench("rescore", *trained)
    assert code == 1
    assert f"pixel_auroc {moved!r} is {row['pixel_auroc']!r} now" in printed
    assert "Nothing is written" in printed
    assert {one["image_fpr_95"] for one in read(tmp_path / "results", CELLS).to_pylist()} == {None}


def test_rescore_names_cells_of_other_images_and_without_detectors(trained, kdbench, mvtec, tmp_path):
    aged(tmp_path / "results")
    shutil.copy(mvtec / "screw/train/good/000.png", mvtec / "bottle/train/good/900.png")
    Image.new("RGB", (SIZE, SIZE), "red").save(mvtec / "bottle/train/good/900.png")
    rows = read(tmp_path / "results", CELLS).to_pylist()
    (screw,) = [row["cell_id"] for row in rows if row["category"] == "screw"]
    (tmp_path / f"results/detectors/{screw}.safetensors").unlink()
    code, printed = kdbench("rescore", *trained)
    assert code == 1
    assert "are not those that it was trained on" in printed
    assert "no detector was kept" in printed


# --- what is wrong ----------------------------------------------------------------------------------------

FIRST = "bottle/test/broken/000"


def csv_of(folder: Path, change: Callable[[list[list[str]]], Any] | None = None) -> Path:
    """A right CSV of the fixture's images, changed."""
    lines = [["image", "image_score"]]
    lines += [
        [f"bottle/test/{kind}/{i:03}.png", str(i + (kind == "broken"))]
        for kind in ("broken", "good")
        for i in range(4)
    ]
    if change:
        change(lines)
    path = folder / "scores.csv"
    path.write_text("\n".join(",".join(line) for line in lines))
    return path


def nan(folder: Path) -> None:
    values = np.eye(SIZE, dtype=np.float32)
    values[3, 4:6] = np.nan
    save(folder, FIRST, values)


def moved(folder: Path) -> None:
    shutil.move(folder / "bottle/test", folder / "bottle/tests")


BROKEN_MAPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        lambda f: (f / f"{FIRST}.tiff").unlink(),
        r"bottle: 1 of 8 maps are missing in \S+maps: bottle/test/broken/000.png",
    ),
    "many missing": (
        lambda f: shutil.rmtree(f / "bottle/test/broken"),
        r"bottle: 4 of 8 maps are missing in \S+maps: (\S+broken/00\d.png,? ?){3} and 1 more",
    ),
    "doubled": (
        lambda f: save(f, FIRST, np.eye(SIZE, dtype=np.float32), ".npy"),
        r"\S+000.npy and \S+000.tiff are maps of the same image",
    ),
    "of no image": (
        lambda f: save(f, "bottle/test/broken/900", np.eye(SIZE, dtype=np.float32)),
        r"\S+900.tiff is a map of no test image",
    ),
    "elsewhere": (moved, r"\S+maps has nothing for any test image, such as bottle/test/broken/000.png"),
    "text": (
        lambda f: (f / f"{FIRST}.tiff").write_text("hello"),
        r"\S+000.tiff cannot be read as an anomaly map: .+",
    ),
    "cut off": (
        lambda f: (f / f"{FIRST}.tiff").write_bytes((f / f"{FIRST}.tiff").read_bytes()[:600]),
        r"\S+000.tiff cannot be read as an anomaly map: .+",
    ),
    "constant": (
        lambda f: save(f, FIRST, np.full((SIZE, SIZE), 2.5, np.float32)),
        r"\S+000.tiff is constant: all 1600 values are 2.5",
    ),
    "NaN": (nan, r"\S+000.tiff has 2 of 1600 values that are NaN or infinite in 32 bit"),
    "wrong aspect": (
        lambda f: save(f, FIRST, np.arange(1200, dtype=np.float32).reshape(30, 40)),
        r"\S+000.tiff is 40x30, its image 40x40: a map is square or has the shape of its image. Was a .+",
    ),
    "colours": (
        lambda f: Image.effect_noise((SIZE, SIZE), 50).convert("RGB").save(f / f"{FIRST}.tiff"),
        r"\S+000.tiff cannot be read as an anomaly map: it has the channels of RGB: .+",
    ),
    "pages": (
        lambda f: Image.effect_noise((SIZE, SIZE), 50).save(
            f / f"{FIRST}.tiff", save_all=True, append_images=[Image.new("L", (SIZE, SIZE))]
        ),
        r"\S+000.tiff cannot be read as an anomaly map: it has 2 pages",
    ),
    "turned": (
        lambda f: Image.effect_noise((SIZE, SIZE), 50).save(f / f"{FIRST}.tiff", tiffinfo={274: 3}),
        r"\S+000.tiff cannot be read as an anomaly map: EXIF turns it, and nothing says .+",
    ),
    "signed": (
        lambda f: Image.effect_noise((SIZE, SIZE), 50).save(f / f"{FIRST}.tiff", tiffinfo={339: 2}),
        r"\S+000.tiff cannot be read as an anomaly map: it has values from -128 to 127: .+",
    ),
}


def turned_png(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((SIZE, SIZE), 50).save(folder / f"{FIRST}.png", exif=exif)


def instead(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Without the TIFF of the first image, with what `change` writes."""

    def changed(folder: Path) -> None:
        (folder / f"{FIRST}.tiff").unlink()
        change(folder)

    return changed


BROKEN_MAPS |= {
    "turned PNG": (
        instead(turned_png),
        r"\S+000.png cannot be read as an anomaly map: EXIF turns it, and nothing says .+",
    ),
    "pickled": (
        instead(lambda f: np.save(f / f"{FIRST}.npy", np.array([{}], object), allow_pickle=True)),
        r"\S+000.npy cannot be read as an anomaly map: Object arrays cannot be loaded .+",
    ),
    "no zip": (
        instead(lambda f: (f / f"{FIRST}.npz").write_bytes(b"PK\3\4broken")),
        r"\S+000.npz cannot be read as an anomaly map: .+",
    ),
    "two arrays": (
        instead(lambda f: np.savez(f / f"{FIRST}.npz", a=np.eye(SIZE), b=np.eye(SIZE))),
        r"\S+000.npz has 2 arrays \(a, b\): an anomaly map is one",
    ),
    "channels": (
        instead(lambda f: save(f, FIRST, np.random.default_rng(0).normal(size=(3, SIZE, SIZE)), ".npy")),
        r"\S+000.npy has the shape \[3, 40, 40\]: an anomaly map is \[H,W\]",
    ),
    "booleans": (
        instead(lambda f: save(f, FIRST, np.eye(SIZE, dtype=bool), ".npy")),
        r"\S+000.npy has values of the type bool: an anomaly map has numbers",
    ),
    "too large": (
        instead(lambda f: save(f, FIRST, 1e300 * np.eye(SIZE), ".npy")),
        r"\S+000.npy has 40 of 1600 values that are NaN or infinite in 32 bit",
    ),
}
BROKEN_CSV: dict[str, tuple[Callable[[list[list[str]]], Any], str]] = {
    "no column": (
        lambda lines: lines.__setitem__(0, ["image", "score"]),
        r"\S+scores.csv has no column image_score. Its first line: image, score",
    ),
    "empty": (
        lambda lines: lines.clear(),
        r"\S+scores.csv has no column image and no column image_score. .+",
    ),
    "only a head": (
        lambda lines: lines.__delitem__(slice(1, None)),
        r"\S+scores.csv has no line below its head",
    ),
    "missing": (
        lambda lines: lines.pop(),
        r"bottle: 1 of 8 image scores are missing in \S+scores.csv: bottle/test/good/003.png",
    ),
    "doubled": (
        lambda lines: lines.append(lines[1]),
        r"\S+scores.csv, line 10: bottle/test/broken/000.png has a score already",
    ),
    "of no image": (
        lambda lines: lines.append(["bottle/test/good/900.png", "1"]),
        r"\S+scores.csv: bottle/test/good/900.png is no test image",
    ),
    "no number": (
        lambda lines: lines[1].__setitem__(1, "high"),
        r"\S+scores.csv, line 2: the score of \S+broken/000.png is 'high', which is no finite number",
    ),
    "NaN": (
        lambda lines: lines[1].__setitem__(1, "nan"),
        r"\S+scores.csv, line 2: the score of bottle/test/broken/000.png is 'nan', which is no finite number",
    ),
    "grouped digits of Python": (
        lambda lines: lines[1].__setitem__(1, "1_0"),
        r"\S+scores.csv, line 2: the score of bottle/test/broken/000.png is '1_0', which is no finite number",
    ),
    "decimal comma": (  # without quotes: two fields, of which the first would count
        lambda lines: lines[1].__setitem__(1, "1,5"),
        r"\S+scores.csv cannot be read as CSV: line 2 has not 2 fields, as the first line has",
    ),
    "a column twice": (  # the last one would count
        lambda lines: [line.append(line[1] if i == 0 else str(-i)) for i, line in enumerate(lines)],
        r"\S+scores.csv cannot be read as CSV: the column 'image_score' occurs twice",
    ),
    "constant": (
        lambda lines: [line.__setitem__(1, "1") for line in lines[1:]],
        r"bottle: all 8 image scores are 1",
    ),
}


def refused(asked: dict[str, Any], **changes: Any) -> tuple[str, ...]:
    """What is complained of; nothing is written."""
    with pytest.raises(RequestError) as raised:
        package.score(**asked | changes)
    assert not (Path(asked["results"]) / "cells").exists()
    return raised.value.complaints


@pytest.mark.parametrize("what", BROKEN_MAPS)
def test_a_broken_folder_of_maps_is_one_clear_message(asked, maps, what):
    spoil, message = BROKEN_MAPS[what]
    spoil(maps)
    (said,) = refused(asked)
    assert re.fullmatch(message, said), said


@pytest.mark.parametrize("what", BROKEN_CSV)
def test_a_broken_csv_is_one_clear_message(asked, tmp_path, what):
    spoil, message = BROKEN_CSV[what]
    (said,) = refused(asked, csv=csv_of(tmp_path, spoil), maps=None)
    assert re.fullmatch(message, said), said


def test_everything_that_is_wrong_is_said_at_once(asked, maps):
    save(maps, FIRST, np.zeros((SIZE, SIZE), np.float32))
    nan_too = np.full((SIZE, SIZE), np.nan, np.float32)
    save(maps, "bottle/test/good/002", nan_too)
    assert len(refused(asked)) == 2
    (maps / f"{FIRST}.tiff").unlink()
    save(maps, "bottle/test/good/900", nan_too)
    assert len(refused(asked)) == 1  # what lies there is looked at first, then what is in it
    wrong = {"name": "stfpm", "dataset": "mvtec", "setting": "one", "preset": "exat", "profile": "papr"}
    said = refused(asked, **wrong, latency_ms=-1.0)
    assert [text.partition(":")[0] for text in said][:1] == ["--name 'stfpm' is a method of kdbench"]
    assert len(said) == 7
    assert refused(asked, maps=None) == (
        "nothing to score: give a folder MAPS, or --csv FILE with image scores",
    )
    assert refused(asked, maps="nowhere") == ("no folder of maps 'nowhere'",)
    assert refused(asked, name=" x")[0].startswith("--name ' x'")


def test_a_category_that_is_asked_for_must_be_complete_and_others_are_named(asked, kdbench, tmp_path):
    said = refused(asked, categories="bottle,screw")
    assert said[0].startswith("screw: 8 of 8 maps are missing")
    words = [f"--{name}={asked[name]}" for name in ("name", "dataset", "root", "results")]
    code, printed = kdbench("score", asked["maps"], *words, "--out", tmp_path / "out")
    assert code == 0, printed
    assert "note: no maps or scores for screw" in printed
    assert json.loads(read(asked["results"], CELLS).to_pylist()[0]["config"]) == {}
