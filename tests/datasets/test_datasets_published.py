"""Sets that have a layout of their own: LOCO, AD 2, Real-IAD, DAGM, KolektorSDD2; small trees, made here."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, counts, picture, without
from PIL import Image

from kdbench.data.check import check
from kdbench.data.fingerprint import fingerprint
from kdbench.data.store import open_truth
from kdbench.dataset import Dataset
from kdbench.datasets.dagm import DAGM
from kdbench.datasets.kolektor_sdd2 import COPIES, KolektorSDD2
from kdbench.datasets.mvtec_ad_2 import MVTecAD2
from kdbench.datasets.mvtec_loco import MVTecLOCO
from kdbench.datasets.real_iad import RealIAD
from kdbench.errors import DataError
from kdbench.metrics.exact import spro
from kdbench.metrics.presets import PRESETS

SIZE = (12, 10)
CONFIG = [
    {"defect_name": "two", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True},
    {"defect_name": "one", "pixel_value": 254, "saturation_threshold": 3, "relative_saturation": False},
    {"defect_name": "big", "pixel_value": 253, "saturation_threshold": 9999, "relative_saturation": False},
]


def mask(path: Path, value: int, *boxes: tuple[int, int, int, int]) -> Path:
    """A mask with rectangles of `value`, each top, left, bottom, right."""
    pixels = np.zeros(SIZE[::-1], np.uint8)
    for top, left, bottom, right in boxes:
        pixels[top:bottom, left:right] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def images(folder: Path, number: int, name: str = "{:03}.png", mode: str = "RGB") -> None:
    for index in range(number):
        picture(folder / name.format(index), size=SIZE, mode=mode)


# MVTec LOCO AD


def loco(root: Path, category: str = "pushpins") -> Path:
    """A logical anomaly with two overlapping masks, one with two parts, and two structural ones."""
    folder = root / category
    for part, number in (("train/good", 8), ("validation/good", 2), ("test/good", 2)):
        images(folder / part, number)
    images(folder / "test/logical_anomalies", 2)
    images(folder / "test/structural_anomalies", 2)
    truth = folder / "ground_truth"
    mask(truth / "logical_anomalies/000/000.png", 255, (0, 0, 2, 4), (6, 6, 8, 8))  # 12 pixels in two parts
    mask(truth / "logical_anomalies/000/001.png", 254, (1, 0, 4, 4))  # 12, of which 4 are in both
    mask(truth / "logical_anomalies/001/000.png", 253, (0, 0, 3, 3))  # 9
    mask(truth / "structural_anomalies/000/000.png", 255, (4, 4, 5, 5))  # 1
    mask(truth / "structural_anomalies/001/000.png", 254, (4, 4, 6, 5))  # 2
    (folder / "defects_config.json").write_text(json.dumps(CONFIG))
    (folder / "readme.txt").write_text("hello")
    return root


def test_loco_has_several_masks_for_an_image_and_areas_that_have_to_be_found(tmp_path: Path) -> None:
    dataset = MVTecLOCO()
    found = dataset.scan(loco(tmp_path), "pushpins")
    assert counts(found) == (8, 2, 4)
    assert [(s.defect, s.path.name, [m.name for m in s.masks]) for s in found.test if s.label] == [
        ("logical_anomalies", "000.png", ["000.png", "001.png"]),
        ("logical_anomalies", "001.png", ["000.png"]),
        ("structural_anomalies", "000.png", ["000.png"]),
        ("structural_anomalies", "001.png", ["000.png"]),
    ]
    areas = {found.relative(path): area for path, area in dataset.saturations(found).items()}
    # By hand: half of 12; 3 of 12; never more than all 9; half of 1, but at least a pixel; all of 2.
    assert list(areas.values()) == [6, 3, 9, 1, 2]


def test_the_truth_of_loco_keeps_a_pixel_of_two_defects_twice(tmp_path: Path) -> None:
    dataset = MVTecLOCO()
    found = dataset.scan(loco(tmp_path), "pushpins")
    truth = open_truth(dataset, found, fingerprint(dataset, found), PRESETS["mvtec_original"])
    assert truth.regions is not None
    assert truth.saturating is not None
    assert np.bincount(truth.saturating.region).tolist() == [0, 12, 12, 9, 1, 2]
    assert truth.saturating.area.tolist() == [6, 3, 9, 1, 2]
    # PRO has the parts that hang together, which are 2 + 1 + 1 + 1 of the same pixels.
    assert int(truth.regions.max()) == 5
    assert set(truth.saturating.pixel) == set(np.flatnonzero(truth.regions))
    assert len(truth.saturating.pixel) == np.count_nonzero(truth.regions) + 4
    first = truth.saturating.pixel[truth.saturating.region == 2]
    start = truth.starts[[s.path.name == "000.png" and s.label for s in found.test].index(True)]
    assert sorted(first - start) == [12 * row + column for row in (1, 2, 3) for column in range(4)]


def test_where_masks_are_made_larger_the_areas_are_made_larger_with_them(tmp_path: Path) -> None:
    dataset = MVTecLOCO()
    found = dataset.scan(loco(tmp_path), "pushpins")
    truth = open_truth(dataset, found, fingerprint(dataset, found), PRESETS["exact"])
    assert truth.saturating is not None
    sizes = np.bincount(truth.saturating.region)[1:]
    assert truth.saturating.area / sizes == pytest.approx([6 / 12, 3 / 12, 9 / 9, 1 / 1, 2 / 2])


def test_the_truth_of_loco_is_what_saturating_pro_takes(tmp_path: Path) -> None:
    dataset = MVTecLOCO()
    found = dataset.scan(loco(tmp_path), "pushpins")
    truth = open_truth(dataset, found, fingerprint(dataset, found), PRESETS["mvtec_original"])
    assert truth.regions is not None
    assert truth.saturating is not None
    scores = np.random.default_rng(0).permutation(len(truth.regions)).astype(np.float64)
    normal = np.flatnonzero(truth.regions == 0)
    saturating = truth.saturating
    value = spro(scores, saturating.pixel, saturating.region, saturating.area, limit=1.0)
    # Slowly, for each mask by itself: the share found above each normal pixel, at most 1, over the rates.
    shares = [
        [
            min(
                1, (scores[truth.saturating.pixel[truth.saturating.region == 1 + i]] > scores[n]).sum() / area
            )
            for i, area in enumerate(truth.saturating.area)
        ]
        for n in normal
    ]
    assert value == pytest.approx(np.mean(shares), abs=1e-9)


def test_a_row_of_loco_and_its_table_have_the_saturating_pro_of_the_maps(
    tmp_path: Path, kdbench: Callable[..., tuple[int, str]]
) -> None:
    dataset, rng, maps = MVTecLOCO(), np.random.default_rng(0), []
    found = dataset.scan(loco(tmp_path / "loco"), "pushpins")
    for sample in found.test:  # each defect is found in part
        values = rng.random(SIZE[::-1], np.float32)
        for path in sample.masks:
            values += 0.6 * (np.asarray(Image.open(path)) > 0)
        maps.append(values.ravel())
        path = (tmp_path / "maps" / found.relative(sample.path)).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values)
    words = ("--name", "other", "--dataset", "mvtec_loco", "--root", tmp_path / "loco")
    words = (*words, "--preset", "mvtec_original", "--results", tmp_path / "r", "--out", tmp_path / "out")
    code, said = kdbench("score", tmp_path / "maps", *words)
    assert code == 0, said
    (row,) = pd.read_parquet(tmp_path / "r/cells").to_dict("records")
    truth = open_truth(dataset, found, fingerprint(dataset, found), PRESETS["mvtec_original"]).saturating
    assert truth is not None
    expected = spro(np.concatenate(maps), truth.pixel, truth.region, truth.area, limit=0.05)
    assert row["spro_05"] == pytest.approx(expected, abs=1e-12)
    assert row["spro_05"] > row["aupro_05"] > 0  # less has to be found of some defects
    report = (tmp_path / "out/leaderboard.md").read_text()
    assert "| method | I-FPR 95 | sPRO 5 % |" in report
    assert f"| {100 * row['spro_05']:.2f} |" in report


def test_another_threshold_is_another_fingerprint(tmp_path: Path) -> None:
    dataset = MVTecLOCO()
    before = fingerprint(dataset, dataset.scan(loco(tmp_path), "pushpins"))
    file = tmp_path / "pushpins/defects_config.json"
    file.write_text(file.read_text().replace("0.5", "0.6"))
    assert fingerprint(dataset, dataset.scan(tmp_path, "pushpins")) != before


def test_other_datasets_say_no_areas(tmp_path: Path) -> None:
    dataset = KolektorSDD2()
    found = dataset.scan(ksdd2(tmp_path), "surface")
    truth = open_truth(dataset, found, fingerprint(dataset, found), PRESETS["exact"])
    assert truth.saturating is None


# MVTec AD 2


def ad_2(root: Path, category: str = "vial") -> Path:
    """Grey images, names that say the light, masks below test_public, and two splits without labels."""
    folder = root / category
    images(folder / "train/good", 8, "{:03}_regular.png", "L")
    images(folder / "validation/good", 2, "{:03}_regular.png", "L")
    for light in ("regular", "overexposed"):
        images(folder / "test_public/good", 2, f"{{:03}}_{light}.png", "L")
        images(folder / "test_public/bad", 1, f"{{:03}}_{light}.png", "L")
        mask(folder / f"test_public/ground_truth/bad/000_{light}_mask.png", 255, (2, 2, 5, 5))
    images(folder / "test_private", 3, "{:03}_regular.png", "L")
    images(folder / "test_private_mixed", 3, "{:03}_mixed.png", "L")
    return root


def test_ad_2_is_tested_on_its_public_split_and_names_the_images_of_the_private_ones(tmp_path: Path) -> None:
    dataset = MVTecAD2()
    found = dataset.scan(ad_2(tmp_path), "vial")
    assert counts(found) == (8, 4, 2)
    assert {s.defect for s in found.test} == {"good", "bad"}
    assert [s.mask and found.relative(s.mask) for s in found.test if s.label] == [
        "vial/test_public/ground_truth/bad/000_overexposed_mask.png",
        "vial/test_public/ground_truth/bad/000_regular_mask.png",
    ]
    private = dataset.unlabelled(tmp_path, "vial")
    assert {split: [path.name for path in paths] for split, paths in private.items()} == {
        "test_private": [f"{i:03}_regular.png" for i in range(3)],
        "test_private_mixed": [f"{i:03}_mixed.png" for i in range(3)],
    }
    assert dataset.refused_splits.keys() == private.keys()


def test_the_private_images_of_ad_2_need_not_be_there(tmp_path: Path) -> None:
    ad_2(tmp_path)
    without("vial/test_private")(tmp_path)
    assert list(MVTecAD2().unlabelled(tmp_path, "vial")) == ["test_private_mixed"]
    assert MVTecLOCO().unlabelled(tmp_path, "vial") == {}


# Real-IAD


def real_iad(root: Path, category: str = "toy", size: str = "realiad_256") -> Path:
    """JPEG views of objects, masks as PNG beside those of defects; an NG object has a normal view, too."""
    folder = root / size / category
    lists: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}

    def view(part: str, path: str, kind: str = "OK") -> None:
        picture(folder / path, size=SIZE, mode="RGB")
        marked = None if kind == "OK" else path.replace(".jpg", ".png")
        if marked:
            picture(folder / marked, 255, size=SIZE)
        entry = {"category": category, "anomaly_class": kind, "image_path": path, "mask_path": marked}
        lists[part].append(entry)

    for item in range(2):
        for side in range(1, 5):
            view("train", f"OK/S{item:04}/{category}_{item:04}_OK_C{side}_20231021.jpg")
    for side in (1, 2):
        view("test", f"OK/S0009/{category}_0009_OK_C{side}_20231021.jpg")
        view("test", f"NG/AK/S0001/{category}_0001_NG_AK_C{side}_20231021.jpg", "AK" if side == 1 else "OK")
    view("test", f"NG/HS/S0002/{category}_0002_NG_HS_C1_20231021.jpg", "HS")
    file = root / f"realiad_jsons/realiad_jsons/{category}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"meta": {"normal_class": "OK", "prefix": f"{category}/"}, **lists}))
    return root


def test_real_iad_takes_views_and_labels_from_its_lists(tmp_path: Path) -> None:
    dataset, root = RealIAD(), real_iad(tmp_path)
    found = dataset.scan(root, "toy")
    assert dataset.present(root) == ("toy",)
    assert counts(found) == (8, 3, 2)
    assert {s.defect for s in found.test} == {"good", "pit", "scratch"}
    assert [s.label for s in found.test if "/NG/AK/" in str(s.path)] == [True, False]  # by the list
    content = (root / "realiad_jsons/realiad_jsons/toy.json").read_bytes()
    once = hashlib.sha256(content).hexdigest()
    assert dataset.split_sha256(root) == hashlib.sha256(once.encode()).hexdigest()


def test_one_of_the_sizes_of_real_iad_has_to_be_chosen(tmp_path: Path) -> None:
    dataset, root = RealIAD(), real_iad(tmp_path)
    real_iad(root, size="realiad_1024")
    assert dataset.present(root) == ()
    assert dataset.hint(root).endswith(f"Choose one: --root {root / 'realiad_1024'}")
    assert "realiad_256, realiad_1024" in dataset.hint(root)
    found = dataset.scan(root / "realiad_1024", "toy")
    assert found.relative(found.train[0]).startswith("toy/OK/S0000/")
    assert dataset.present(root / "realiad_1024") == ("toy",)


def test_counts_of_all_categories_together_are_compared_when_all_are_there(tmp_path: Path) -> None:
    class Two(RealIAD):
        categories = ("toy", "usb")
        whole = (16, 6, 5)

    real_iad(tmp_path)
    assert check(Two(), tmp_path)[0].problems == ()
    assert "usb is not in" in check(Two(), tmp_path)[1].problems[0]
    real_iad(tmp_path, "usb")
    assert [one.problems for one in check(Two(), tmp_path)] == [
        (),
        ("all categories: 4 defective test images, published are 5: 1 missing",),
    ]


# DAGM


def dagm(root: Path, category: str = "Class1") -> Path:
    """Suffixes in capitals, a list of labels that begins with a number, and defects in Train."""
    for part, first in (("Train", 11), ("Test", 1)):
        lines = ["1"]
        for number in range(first, first + 10):
            defective = number % 4 == 0
            picture(root / category / part / f"{number:04}.PNG", size=SIZE)
            named = f"{number:04}_label.PNG" if defective else "0"
            lines.append(f"{number}\t{int(defective)}\t{number:04}.PNG\t0\t{named}")
            if defective:
                mask(root / category / part / "Label" / named, 255, (2, 2, 7, 9))
        (root / category / part / "Label/Labels.txt").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    return root


def test_dagm_takes_labels_from_its_list_and_leaves_the_defects_of_train_out(tmp_path: Path) -> None:
    found = DAGM().scan(dagm(tmp_path), "Class1")
    assert [path.name for path in found.train] == [f"{n:04}.PNG" for n in range(11, 21) if n % 4]
    assert counts(found) == (7, 8, 2)
    assert [(s.path.name, s.mask and s.mask.name) for s in found.test if s.label] == [
        ("0004.PNG", "0004_label.PNG"),
        ("0008.PNG", "0008_label.PNG"),
    ]


def test_the_published_sums_of_dagm_are_those_of_its_counts() -> None:
    for name, (train, normal, defective) in DAGM.counts.items():
        twice = 2 if int(name.removeprefix("Class")) > 6 else 1
        assert train + normal == twice * 1000  # the publisher's sums of Train and Test
        assert normal + defective == twice * 575
    assert sum(defective for _, _, defective in DAGM.counts.values()) == 1054


# KolektorSDD2


def ksdd2(root: Path) -> Path:
    """Images and masks of one suffix side by side, a defect in train, and the copies of the archive."""
    for part, numbers in (("train", range(10000, 10009)), ("test", range(20000, 20005))):
        for number in numbers:
            picture(root / part / f"{number}.png", size=SIZE, mode="RGB")
            boxes = [(2, 2, 8, 8)] if number % 5 == 3 else []
            mask(root / part / f"{number}_GT.png", 255, *boxes)
    for name in COPIES:
        picture(root / "train" / name, size=SIZE)
    return root


def test_ksdd2_takes_labels_from_masks_and_leaves_copies_and_defects_of_train_out(tmp_path: Path) -> None:
    dataset, root = KolektorSDD2(), ksdd2(tmp_path)
    found = dataset.scan(root, "surface")
    assert dataset.present(root) == ("surface",)
    assert counts(found) == (7, 4, 1)
    assert [path.name for path in found.train] == [
        f"{n}.png" for n in range(10000, 10009) if n not in (10003, 10008)
    ]
    assert [s.path.name for s in found.test if s.label] == ["20003.png"]
    assert (2085 + 246 + 894 + 110) == 3335  # as published, without the copies
    assert KolektorSDD2.counts["surface"] == (2085, 894, 110)


# All of them

SETS: list[tuple[Dataset, Callable[[Path], Path], str]] = [
    (MVTecLOCO(), loco, "pushpins"),
    (MVTecAD2(), ad_2, "vial"),
    (RealIAD(), real_iad, "toy"),
    (DAGM(), dagm, "Class1"),
    (KolektorSDD2(), ksdd2, "surface"),
]


@pytest.mark.parametrize(
    ("dataset", "total"),
    [
        (MVTecLOCO(), (1778, 575, 432 + 561)),
        (MVTecAD2(), (2528, 379, 705)),
        (DAGM(), (8050 - 1046, 8050 - 1054, 1054)),
        (KolektorSDD2(), (2085, 894, 110)),
    ],
)
def test_published_counts_add_up(dataset: Dataset, total: tuple[int, int, int]) -> None:
    assert tuple(map(sum, zip(*dataset.counts.values(), strict=True))) == total
    assert tuple(dataset.counts) == dataset.categories


def test_real_iad_is_published_with_sums_only() -> None:
    assert sum(RealIAD.whole) == 151_050
    assert len(RealIAD.categories) == 30
    assert not RealIAD.counts


@pytest.mark.parametrize(("dataset", "tree", "category"), SETS, ids=[dataset.name for dataset, *_ in SETS])
def test_a_deep_check_reads_a_small_copy_and_finds_only_that_images_are_missing(
    tmp_path: Path, dataset: Dataset, tree: Callable[[Path], Path], category: str
) -> None:
    found = {one.category: one for one in check(dataset, tree(tmp_path), deep=True)}[category]
    assert found.found is not None
    assert all("published are" in problem for problem in found.problems)
    assert bool(found.problems) == (category in dataset.counts)


@pytest.mark.parametrize(("dataset", "tree", "category"), SETS, ids=[dataset.name for dataset, *_ in SETS])
def test_a_cell_is_trained(
    tmp_path: Path,
    dataset: Dataset,
    tree: Callable[[Path], Path],
    category: str,
    kdbench: Callable[..., tuple[int, str]],
) -> None:
    import kdbench as api

    root = tree(tmp_path / "data")
    asked = ("--methods", "stfpm", "--dataset", dataset.name, "--root", root, "--categories", category)
    code, said = kdbench("run", *asked, *TINY, "--results", tmp_path / "r")
    assert code == 0, said
    (row,) = api.open(tmp_path / "r").rows().to_dict("records")
    assert (row["status"], row["dataset"], row["category"]) == ("ok", dataset.name, category)
    found = dataset.scan(root, category)
    assert (row["num_train"] + row["num_heldout"], row["num_test"], row["num_defective"]) == (
        len(found.train),
        len(found.test),
        counts(found)[2],
    )
    assert 0 <= row["aupro"] <= 1


def _rewritten(part: str, old: str, new: str) -> Callable[[Path], str]:
    def spoil(root: Path) -> str:
        text = (root / part).read_bytes().decode()
        assert old in text
        (root / part).write_bytes(text.replace(old, new, 1).encode())
        return str(root / part)

    return spoil


def _added(part: str) -> Callable[[Path], str]:
    return lambda root: str(picture(root / part, 255, size=SIZE))


LOCO, JSON = "pushpins/defects_config.json", "realiad_jsons/realiad_jsons/toy.json"
LIST, VIEW = "Class1/Test/Label/Labels.txt", "NG/HS/S0002/toy_0002_NG_HS_C1_20231021"


@pytest.mark.parametrize(
    ("number", "spoil", "said"),
    [
        (0, without(LOCO), "It says how much of a defect has to be found"),
        (0, _rewritten(LOCO, "0.5", "1.5"), "is no defect with pixel_value"),
        (0, _rewritten(LOCO, "true", '"yes"'), "is no defect with pixel_value"),
        (0, _rewritten(LOCO, "254", "255"), "two defects of the pixel_value 255"),
        (0, _rewritten(LOCO, "[", ""), "defects_config.json"),
        (0, without("pushpins/ground_truth/logical_anomalies/001"), "no folder"),
        (0, without("pushpins/ground_truth/logical_anomalies/001/000.png"), "has no mask of"),
        (0, _added("pushpins/ground_truth/logical_anomalies/002/000.png"), "has masks of no test image"),
        (0, without("pushpins/test/good"), "has no normal (test/good) images"),
        (1, without("vial/test_public/ground_truth/bad/000_regular_mask.png"), "1 of 2 masks of 'bad'"),
        (1, _added("vial/test_public/ground_truth/ugly/000_mask.png"), "has no folder of test images"),
        (1, without("vial/test_public"), "no folder"),
        (1, without("vial/test_public/good"), "has no normal (test_public/good) images"),
        (2, without(JSON), "It says which images are for training"),
        (2, _rewritten(JSON, '"HS"', '"XX"'), "has the class 'XX'"),
        (2, _rewritten(JSON, '"HS"', '"OK"'), "has the class 'OK' and the mask"),
        (2, _rewritten(JSON, '"test"', '"rest"'), "has no list 'test'"),
        (2, _rewritten(JSON, VIEW, f"../{VIEW}"), "is no path of a JPEG or PNG"),
        (2, _rewritten(JSON, "OK/S0000/toy_0000_OK_C1", "OK/S0000/toy_0000_OK_C2"), "is listed twice"),
        (2, without(f"realiad_256/toy/{VIEW}.png"), "1 file of"),
        (2, _added("realiad_256/toy/OK/S0000/more.jpg"), "1 file beyond"),
        (3, without(LIST), "It says which images are defective"),
        (3, _rewritten(LIST, "4\t1", "4\t2"), "is '4 2 0004.PNG 0 0004_label.PNG' and not NUMBER"),
        (3, _rewritten(LIST, "4\t1", "4\t0"), "has the label 0 and the mask 0004_label.PNG"),
        (3, _rewritten(LIST, "0003.PNG", "0002.PNG"), "is listed twice"),
        (3, without("Class1/Test/0004.PNG"), "0004.PNG is listed and not in"),
        (3, without("Class1/Test/Label/0004_label.PNG"), "0004_label.PNG is listed and not in"),
        (3, _added("Class1/Test/0099.PNG"), "0099.PNG is not listed, but in"),
        (4, without("train/10003_GT.png"), "10003.png has no mask"),
        (4, without("test/20003.png"), "is a mask without an image"),
        (4, _added("test/20003_GT (copy 2).png"), "has no mask"),
        (4, without("test"), "no folder"),
    ],
)
def test_what_is_wrong_is_an_error_with_its_path(
    tmp_path: Path, number: int, spoil: Callable[[Path], str], said: str
) -> None:
    dataset, tree, category = SETS[number]
    spoil(tree(tmp_path))
    with pytest.raises(DataError) as raised:
        dataset.scan(tmp_path, category)
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [(7, "has the value 7, which"), (0, "has the values []"), (None, "has the values [")],
)
def test_a_mask_of_loco_has_one_value_that_the_file_explains(
    tmp_path: Path, value: int | None, said: str
) -> None:
    dataset = MVTecLOCO()
    found = dataset.scan(loco(tmp_path), "pushpins")
    path = tmp_path / "pushpins/ground_truth/logical_anomalies/000/001.png"
    if value is None:
        picture(path, size=SIZE)
    else:
        mask(path, value, (1, 1, 4, 4))
    with pytest.raises(DataError) as raised:
        dataset.saturations(found)
    assert said in str(raised.value)
    assert str(path) in str(raised.value)
    assert any(
        said in problem
        for problem in {c.category: c for c in check(dataset, tmp_path, deep=True)}["pushpins"].problems
    )
