"""The published layouts with their irregularities, links, made splits, and what `check` says of a copy."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import counts, picture, without, write_category
from PIL import Image

from kdbench.data.check import CategoryCheck, Counts, check
from kdbench.data.fingerprint import fingerprint
from kdbench.dataset import Dataset
from kdbench.datasets._layout import by_hash
from kdbench.datasets.btad import BTAD
from kdbench.datasets.folder import Folder
from kdbench.datasets.kolektor_sdd import ITEMS, KolektorSDD
from kdbench.datasets.magnetic_tile import DEFECTS, MagneticTile
from kdbench.datasets.mpdd import MPDD
from kdbench.datasets.mvtec_ad import MVTecAD
from kdbench.datasets.visa import VisA
from kdbench.errors import DataError
from kdbench.metrics.presets import PRESETS
from kdbench.registry import dataset_names, get_dataset

MVTEC = MVTecAD()


# VisA


def visa(root: Path, name: str = "capsules", *, defect: int = 3) -> Path:
    """Two training, one normal and two defective test images of VisA, with names of 3 and of 4 digits."""
    lines = ["object,split,label,image,mask", "candle,train,normal,candle/Data/Images/Normal/0000.JPG,"]
    parts = [("train", "000"), ("train", "0101"), ("test", "001")]
    for split, number in parts:
        picture(root / name / f"Data/Images/Normal/{number}.JPG", mode="RGB")
        lines.append(f"{name},{split},normal,{name}/Data/Images/Normal/{number}.JPG,")
    for number in ("000", "0099"):
        picture(root / name / f"Data/Images/Anomaly/{number}.JPG", mode="RGB")
        picture(root / name / f"Data/Masks/Anomaly/{number}.png", defect)
        lines.append(
            f"{name},test,anomaly,{name}/Data/Images/Anomaly/{number}.JPG,{name}/Data/Masks/Anomaly/{number}.png"
        )
    (root / name / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    return root


def test_visa_is_read_as_it_is_published(tmp_path: Path) -> None:
    dataset, root = VisA(), visa(tmp_path)
    found = dataset.scan(root, "capsules")
    assert [found.relative(path) for path in found.train] == [
        "capsules/Data/Images/Normal/000.JPG",
        "capsules/Data/Images/Normal/0101.JPG",
    ]
    assert [(found.relative(s.path), s.defect, s.label, s.mask and s.mask.name) for s in found.test] == [
        ("capsules/Data/Images/Anomaly/000.JPG", "anomaly", True, "000.png"),
        ("capsules/Data/Images/Anomaly/0099.JPG", "anomaly", True, "0099.png"),
        ("capsules/Data/Images/Normal/001.JPG", "good", False, None),
    ]
    assert dataset.present(root) == ("capsules",)
    assert len(dataset.all_categories(root)) == 12
    content = (root / "split_csv/1cls.csv").read_bytes()
    assert b"\r\n" in content
    assert dataset.split_sha256(root) == hashlib.sha256(content).hexdigest()


def test_visa_refuses_the_splits_that_train_on_anomalies() -> None:
    assert VisA.split == "1cls"
    assert set(VisA.refused_splits) == {"2cls_fewshot", "2cls_highshot"}
    assert all("anomalies" in reason for reason in VisA.refused_splits.values())


def test_another_split_of_the_same_files_is_another_fingerprint(tmp_path: Path) -> None:
    dataset, root = VisA(), visa(tmp_path)
    before = fingerprint(dataset, dataset.scan(root, "capsules"))
    file = root / "split_csv/1cls.csv"
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    assert fingerprint(dataset, dataset.scan(root, "capsules")) == before
    file.write_bytes(
        file.read_bytes().replace(
            b"train,normal,capsules/Data/Images/Normal/000", b"test,normal,capsules/Data/Images/Normal/000"
        )
    )
    assert fingerprint(dataset, dataset.scan(root, "capsules")) != before


def _listed(old: str, new: str, named: str) -> Callable[[Path], str]:
    def spoil(root: Path) -> str:
        file = root / "split_csv/1cls.csv"
        text = file.read_bytes().decode()
        assert old in text
        file.write_bytes(text.replace(old, new).encode())
        return named

    return spoil


def _too_many(part: str) -> Callable[[Path], str]:
    return lambda root: str(picture(root / part))


def _bytes_in_list(root: Path) -> str:
    file = root / "split_csv/1cls.csv"
    file.write_bytes(file.read_bytes() + b"\xff\xfe")
    return str(file)


def _utf16_list(root: Path) -> str:
    file = root / "split_csv/1cls.csv"
    file.write_text(file.read_text(), encoding="utf-16")
    return str(file)


def _lower_case(root: Path) -> str:
    path = root / "capsules/Data/Images/Normal/000.JPG"
    path.rename(path.with_suffix(".jpg"))
    return str(path)


NORMAL, ANOMALY = "capsules/Data/Images/Normal", "capsules/Data/Images/Anomaly"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("split_csv"), "1cls.csv: No such file"),
        (without("split_csv/1cls.csv"), "It says which images are for training"),
        (without(f"{NORMAL}/000.JPG"), "1 of 7 files"),
        (without("capsules/Data/Masks/Anomaly/0099.png"), "1 of 7 files"),
        (without("capsules/Data/Masks"), "no folder"),
        (without(ANOMALY), "no folder"),
        (_lower_case, "1 of 7 files"),
        (_too_many(f"{NORMAL}/002.JPG"), "1 file beyond"),
        (_too_many("capsules/Data/Masks/Anomaly/002.png"), "1 file beyond"),
        (_too_many(f"{NORMAL}/002.png"), "is not an image file"),
        (_listed("test,anomaly", "train,anomaly", f"{ANOMALY}/000.JPG"), "an anomaly for training"),
        (_listed("test,normal", "val,normal", f"{NORMAL}/001.JPG"), "'normal' for 'val'"),
        (_listed("test,normal", "test,good", f"{NORMAL}/001.JPG"), "'good' for 'test'"),
        (
            _listed("Masks/Anomaly/000.png", "Masks/Anomaly/0099.png", f"{ANOMALY}/000.JPG"),
            "has the mask of another image, capsules/Data/Masks/Anomaly/0099.png",
        ),
        (_listed(",capsules/Data/Masks/Anomaly/000.png", ",", f"{ANOMALY}/000.JPG"), "its mask is ''"),
        (_listed("0101.JPG", "000.JPG", f"{NORMAL}/000.JPG"), "is listed twice"),
        (_listed(f"{NORMAL}/0101.JPG", f"../{NORMAL}/0101.JPG", "0101.JPG"), "1 of 7 files"),
        (_listed("capsules,", "cashew,", "'capsules'"), "has no line for"),
        (_listed("object,split", "object,part", "split"), "has no column"),
        (_listed("object,split", "object,object", ""), "the column 'object' occurs twice"),
        (_listed("test,normal,", "test,normal,,", ""), "has not 5 fields, as the first line has"),
        (_listed("test,normal", "train,normal", "capsules"), "has no normal images"),
        (_bytes_in_list, "cannot be read"),
        (_utf16_list, "1cls.csv cannot be read: the text is UTF-16. Save it as UTF-8"),
    ],
)
def test_what_is_wrong_in_visa_is_an_error_with_its_path(
    tmp_path: Path, spoil: Callable[[Path], str], said: str
) -> None:
    root = visa(tmp_path)
    named = spoil(root)
    with pytest.raises(DataError) as raised:
        VisA().scan(root, "capsules")
    assert said in str(raised.value)
    assert named in str(raised.value)


def test_a_visa_without_its_list_has_no_split_hash(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1cls\.csv"):
        VisA().split_sha256(tmp_path)


# Magnetic tile


def magnetic(root: Path, tiles: int = 5) -> Path:
    """Two exposures of each tile, 20 frames apart; the next tile comes 1000 frames later."""
    for frame in range(0, 1000 * tiles, 1000):
        for name in (f"exp1_num_{frame}", f"exp2_num_{frame + 20}"):
            picture(root / f"MT_Free/Imgs/{name}.jpg")
            picture(root / f"MT_Free/Imgs/{name}.png", 0)
    for kind in DEFECTS:
        picture(root / kind / "Imgs/exp2_num_7.jpg")
        picture(root / kind / "Imgs/exp2_num_7.png", 255 if kind != "MT_Uneven" else 0)
    return root


def test_magnetic_tile_has_masks_beside_its_images_and_a_split_by_tile_that_is_stable(tmp_path: Path) -> None:
    dataset, root = MagneticTile(), magnetic(tmp_path)
    found = dataset.scan(root, "tile")
    assert dataset.present(root) == ("tile",)
    assert counts(found) == (8, 2, 5)
    assert [s.defect for s in found.test] == ["good"] * 2 + ["blowhole", "break", "crack", "fray", "uneven"]
    assert [s.mask for s in found.test if not s.label] == [None, None]
    assert found.relative(found.test[-1].path) == "MT_Uneven/Imgs/exp2_num_7.jpg"
    assert found.test[-1].mask == root / "MT_Uneven/Imgs/exp2_num_7.png"
    # By hand: the order of sha256("exp1_num_0.jpg") and so on; both images of the last tile are for testing.
    frames = [0, 1000, 2000, 3000, 4000]
    last = max(frames, key=lambda n: hashlib.sha256(f"exp1_num_{n}.jpg".encode()).hexdigest())
    stems = {f"exp1_num_{last}", f"exp2_num_{last + 20}"}
    assert {s.path.stem for s in found.test if not s.label} == stems
    assert MagneticTile.mask_above == 127
    assert any("no official split" in note for note in MagneticTile.notes)


def test_normal_tiles_need_no_masks(tmp_path: Path) -> None:
    before = MagneticTile().scan(magnetic(tmp_path), "tile")
    for path in (tmp_path / "MT_Free/Imgs").glob("*.png"):
        path.unlink()
    assert MagneticTile().scan(tmp_path, "tile") == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("MT_Free"), "no folder"),
        (without("MT_Crack/Imgs"), "no folder"),
        (without("MT_Crack/Imgs/exp2_num_7.png"), "has no mask"),
        (without("MT_Crack/Imgs/exp2_num_7.jpg"), "has no images"),
        (_too_many("MT_Crack/Imgs/other.png"), "is a mask without an image"),
        (_too_many("MT_Free/Imgs/other.png"), "is a mask without an image"),
        (_too_many("MT_Free/Imgs/other.bmp"), "is not an image file"),
        (_too_many("MT_Free/Imgs/other.jpg"), "the name does not end with the number of a frame"),
    ],
)
def test_what_is_wrong_in_magnetic_tile_is_an_error_with_its_path(
    tmp_path: Path, spoil: Callable[[Path], str], said: str
) -> None:
    named = Path(spoil(magnetic(tmp_path)))
    with pytest.raises(DataError) as raised:
        MagneticTile().scan(tmp_path, "tile")
    assert said in str(raised.value)
    assert str(named.parent if said == "has no images" else named.with_suffix("")) in str(raised.value)


# KolektorSDD


def kolektor(root: Path, parts: int = 2) -> Path:
    """Fifty items of `parts` images; the second of every tenth has a crack."""
    for number, item in enumerate(ITEMS):
        for part in range(parts):
            picture(root / item / f"Part{part}.jpg")
            cracked = part == 1 and number % 10 == 0
            picture(root / item / f"Part{part}_label.bmp", 255 if cracked else 0)
    return root


def test_kolektor_sdd_takes_labels_from_masks_and_splits_by_item(tmp_path: Path) -> None:
    dataset, root = KolektorSDD(), kolektor(tmp_path)
    found = dataset.scan(root, "commutator")
    assert dataset.present(root) == ("commutator",)
    assert sum(counts(found)) == 100
    assert counts(found)[2] == 5
    trained = {path.parent.name for path in found.train}
    assert trained == {path.name for path in by_hash(root / item for item in ITEMS)[:40]}
    cracked_and_trained = sum(s.label and s.path.parent.name in trained for s in found.test)
    assert counts(found)[0] == 80 - cracked_and_trained
    assert not any(s.path.parent.name in trained for s in found.test if not s.label)
    assert [s.mask is not None for s in found.test] == [s.label for s in found.test]
    assert {s.defect for s in found.test if s.label} == {"crack"}
    assert any("mask" in note for note in KolektorSDD.notes)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without("kos07"), "1 of 50 items missing"),
        (without("kos07/Part1_label.bmp"), "has no mask"),
        (without("kos07/Part1.jpg"), "is a mask without an image"),
        (
            lambda root: str((root / "kos07/Part1_label.bmp").write_bytes(b"BM") and root / "kos07/Part1"),
            "cannot be read",
        ),
    ],
)
def test_what_is_wrong_in_kolektor_sdd_is_an_error_with_its_path(
    tmp_path: Path, spoil: Callable[[Path], str], said: str
) -> None:
    named = spoil(kolektor(tmp_path))
    with pytest.raises(DataError) as raised:
        KolektorSDD().scan(tmp_path, "commutator")
    assert said in str(raised.value)
    assert named.removesuffix(".jpg").removesuffix("_label.bmp") in str(raised.value)


# BTAD, MPDD, published counts


def btad(root: Path) -> Path:
    for name, image, mask in (("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")):
        for part, number in (("train/ok", 3), ("test/ok", 2), ("test/ko", 2)):
            for index in range(number):
                picture(root / name / part / f"{index:04}{image}")
        for index in range(2):
            picture(root / name / "ground_truth/ko" / f"{index:04}{mask}", 255)
    return root


@pytest.mark.parametrize("name", ["01", "02", "03"])
def test_btad_has_folders_ok_and_ko_and_two_kinds_of_files(tmp_path: Path, name: str) -> None:
    found = BTAD().scan(btad(tmp_path), name)
    assert counts(found) == (3, 2, 2)
    assert [(s.defect, s.label, s.mask and s.mask.stem) for s in found.test] == [
        ("ko", True, "0000"),
        ("ko", True, "0001"),
        ("good", False, None),
        ("good", False, None),
    ]


def test_btad_may_have_empty_folders_of_masks_for_normal_images(tmp_path: Path) -> None:
    btad(tmp_path)
    (tmp_path / "01/ground_truth/ok").mkdir()
    assert counts(BTAD().scan(tmp_path, "01")) == (3, 2, 2)


@pytest.mark.parametrize(
    ("dataset", "total"),
    [
        (MVTEC, (3629, 467, 1258)),
        (VisA(), (8659, 962, 1200)),
        (MagneticTile(), (780, 952 - 780, 115 + 85 + 57 + 32 + 103)),
        (BTAD(), (1799, 451, 290)),
        (MPDD(), (888, 176, 282)),
    ],
)
def test_published_counts_add_up_to_the_published_totals(
    dataset: Dataset, total: tuple[int, int, int]
) -> None:
    assert tuple(map(sum, zip(*dataset.counts.values(), strict=True))) == total
    assert tuple(dataset.counts) == dataset.categories


def test_mpdd_has_the_layout_of_mvtec_ad(tmp_path: Path) -> None:
    write_category(tmp_path, "tubes", train=3, good=2, bad=2)
    assert counts(MPDD().scan(tmp_path, "tubes")) == (3, 2, 2)


@pytest.mark.parametrize("name", dataset_names())
def test_every_dataset_says_what_it_is(name: str) -> None:
    dataset = get_dataset(name)
    assert dataset.title
    assert dataset.licence
    assert dataset.source
    assert set(dataset.textures) <= set(dataset.categories)
    assert set(dataset.counts) <= set(dataset.categories)
    assert dataset.split not in dataset.refused_splits


# A folder of one's own


def test_a_folder_has_the_categories_that_are_on_disk(tmp_path: Path) -> None:
    write_category(tmp_path, "my part", train=3, good=1, bad=2)
    write_category(tmp_path, "ünit 'b'", seed=1, train=2, good=1, bad=1)
    (tmp_path / "notes").mkdir()
    (tmp_path / ".git/train").mkdir(parents=True)
    (tmp_path / "readme.txt").write_text("hello")
    dataset = Folder()
    assert dataset.all_categories(tmp_path) == ("my part", "ünit 'b'")
    found = dataset.scan(tmp_path, "my part")
    assert counts(found) == (3, 1, 2)
    assert found.relative(found.train[0]) == "my part/train/good/000.png"


def test_a_folder_can_be_one_category_itself(tmp_path: Path) -> None:
    write_category(tmp_path, "part", train=3, good=1, bad=2)
    dataset = Folder()
    root = dataset.root(tmp_path / "part")
    assert dataset.all_categories(root) == ("part",)
    found = dataset.scan(root, "part")
    assert found == dataset.scan(tmp_path, "part")
    assert found.relative(found.train[0]) == "part/train/good/000.png"


def test_a_folder_takes_every_kind_of_image_with_or_without_masks(tmp_path: Path) -> None:
    for index, suffix in enumerate((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".TIFF")):
        for part in ("train/good", "test/good", "test/dent"):
            picture(tmp_path / "part" / part / f"{index}{suffix}")
    assert counts(Folder().scan(tmp_path, "part")) == (6, 6, 6)
    assert not Folder().scan(tmp_path, "part").has_masks
    for index in range(6):
        picture(tmp_path / f"part/ground_truth/dent/{index}.png", 255)
    assert Folder().scan(tmp_path, "part").has_masks


def test_half_a_category_is_an_error_and_not_passed_over(tmp_path: Path) -> None:
    write_category(tmp_path, "part", train=2, good=1, bad=1)
    shutil.rmtree(tmp_path / "part/train")
    assert Folder().present(tmp_path) == ("part",)
    with pytest.raises(DataError, match=r"no folder .*train/good"):
        Folder().scan(tmp_path, "part")


def test_images_that_would_share_a_mask_are_an_error(tmp_path: Path) -> None:
    write_category(tmp_path, "part", train=2, good=1, bad=2)
    picture(tmp_path / "part/test/broken/001.bmp")
    with pytest.raises(DataError, match=r"001\.bmp and .*001\.png would share a mask"):
        Folder().scan(tmp_path, "part")


def test_defects_for_training_are_an_error(tmp_path: Path) -> None:
    write_category(tmp_path, "part", train=2, good=1, bad=2)
    picture(tmp_path / "part/train/broken/000.png")
    with pytest.raises(DataError, match="train/broken lies beside the normal images"):
        Folder().scan(tmp_path, "part")


def test_a_folder_has_to_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path))
    with pytest.raises(DataError, match="folder needs --root FOLDER"):
        Folder().root(None)


# Links


def mvtec_like(root: Path) -> Path:
    write_category(root, "bottle", train=2, good=1, bad=1)
    return root


LINKED = [
    (MVTEC, mvtec_like, "bottle", "bottle/train/good/000.png"),
    (MVTEC, mvtec_like, "bottle", "bottle/test/broken"),
    (MVTEC, mvtec_like, "bottle", "bottle/ground_truth"),
    (Folder(), mvtec_like, "bottle", "bottle/test/good/000.png"),
    (BTAD(), btad, "01", "01/ground_truth/ko/0000.png"),
    (VisA(), visa, "capsules", f"{NORMAL}/000.JPG"),
    (VisA(), visa, "capsules", "capsules/Data/Masks"),
    (MagneticTile(), magnetic, "tile", "MT_Crack/Imgs/exp2_num_7.png"),
    (MagneticTile(), magnetic, "tile", "MT_Free"),
    (KolektorSDD(), kolektor, "commutator", "kos03/Part0.jpg"),
]


@pytest.mark.parametrize(("dataset", "tree", "category", "part"), LINKED)
def test_a_link_that_leaves_the_category_is_an_error_that_names_it(
    tmp_path: Path, dataset: Dataset, tree: Callable[[Path], Path], category: str, part: str
) -> None:
    root = tree(tmp_path / "data")
    path = root / part
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(DataError) as raised:
        dataset.scan(root, category)
    assert f"{path}" in str(raised.value)
    assert f"is a link to {tmp_path / 'outside'}" in str(raised.value)


def test_links_to_a_category_and_within_one_are_fine(tmp_path: Path) -> None:
    mvtec_like(tmp_path / "elsewhere")
    root = tmp_path / "data"
    root.mkdir()
    (root / "bottle").symlink_to(tmp_path / "elsewhere/bottle")
    good = tmp_path / "elsewhere/bottle/train/good"
    (good / "001.png").unlink()
    (good / "001.png").symlink_to("000.png")
    assert counts(MVTEC.scan(root, "bottle")) == (2, 1, 1)


# check


class Small(MVTecAD):
    """MVTec AD with as many images as the trees here have."""

    counts = {"bottle": (2, 1, 1), "screw": (3, 1, 1)}  # noqa: RUF012
    categories = tuple(counts)


def checked(root: Path, dataset: Dataset | None = None, **options: bool) -> dict[str, CategoryCheck]:
    found = check(dataset or Small(), root, **options)
    return {one.category: one for one in found}


def test_check_names_what_is_absent_and_what_is_complete(tmp_path: Path) -> None:
    found = checked(mvtec_like(tmp_path))
    assert list(found) == ["bottle", "screw"]
    assert found["bottle"] == CategoryCheck(
        category="bottle",
        present=True,
        found=Counts(train=2, normal=1, defective=1, masks=1),
        published=(2, 1, 1),
        problems=(),
    )
    assert found["bottle"].good
    assert not found["screw"].present
    assert found["screw"].found is None
    assert found["screw"].problems == (f"screw is not in {tmp_path}",)


def test_check_says_how_many_are_missing_or_too_many(tmp_path: Path) -> None:
    write_category(tmp_path, "bottle", train=2, good=3, bad=1)
    write_category(tmp_path, "screw", train=1, good=1, bad=1)
    found = checked(tmp_path)
    assert found["bottle"].problems == ("bottle: 3 normal test images, published are 1: 2 too many",)
    assert found["screw"].problems == ("screw: 1 train image, published are 3: 2 missing",)


def test_check_turns_every_error_into_a_problem_with_its_path(tmp_path: Path) -> None:
    mvtec_like(tmp_path)
    write_category(tmp_path, "screw", train=3, good=1, bad=1)
    shutil.rmtree(tmp_path / "bottle/ground_truth")
    found = checked(tmp_path)
    assert found["bottle"].present
    assert found["bottle"].found is None
    assert str(tmp_path / "bottle/ground_truth/broken") in found["bottle"].problems[0]
    assert found["screw"].good


def test_only_a_deep_check_reads_the_images(tmp_path: Path) -> None:
    mvtec_like(tmp_path)
    bottle = tmp_path / "bottle"
    (bottle / "train/good/000.png").write_bytes(b"")
    (bottle / "ground_truth/broken/000_mask.png").write_bytes(b"no image")
    assert checked(tmp_path)["bottle"].good
    told: list[tuple[str, int, int]] = []
    found = check(Small(), tmp_path, deep=True, on_progress=lambda *news: told.append(news))[0]
    assert told == [("bottle", done, 4) for done in (1, 2, 3, 4)]
    assert len(found.problems) == 2
    assert f"{bottle / 'train/good/000.png'} cannot be read" in found.problems[0]
    assert f"{bottle / 'ground_truth/broken/000_mask.png'} cannot be read" in found.problems[1]


def test_a_deep_check_looks_into_the_masks(tmp_path: Path) -> None:
    mvtec_like(tmp_path)
    mask = tmp_path / "bottle/ground_truth/broken/000_mask.png"
    good = checked(tmp_path, deep=True)["bottle"]
    assert (good.problems, good.num_empty_masks) == ((), 0)
    picture(mask, 0, size=(40, 40))
    found = checked(tmp_path, deep=True)["bottle"]
    assert f"{mask} marks no defect" in found.problems[0]
    assert found.num_empty_masks == 0  # counted are those that are published so
    picture(mask, 255, size=(41, 40))
    assert f"{mask} is 41x40, its image 40x40" in checked(tmp_path, deep=True)["bottle"].problems[0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_a_deep_check_reads_every_kind_of_mask(tmp_path: Path, mode: str) -> None:
    class Half(Small):
        mask_above = 127
        empty_masks = True

    mvtec_like(tmp_path)
    mask = tmp_path / "bottle/ground_truth/broken/000_mask.png"
    for value, num_empty in ((0, 1), (255, 0)):
        picture(mask, value, size=(40, 40), mode=mode)
        assert checked(tmp_path, Half(), deep=True)["bottle"].num_empty_masks == num_empty


def test_a_deep_check_finds_a_train_image_in_test(tmp_path: Path) -> None:
    mvtec_like(tmp_path)
    twin = tmp_path / "bottle/test/good/000.png"
    shutil.copy(tmp_path / "bottle/train/good/001.png", twin)
    (problem,) = checked(tmp_path, deep=True)["bottle"].problems
    assert f"{twin} is a test image and has the content of the train image" in problem


def test_masks_that_are_published_empty_are_counted_and_no_problem(tmp_path: Path) -> None:
    class Few(MagneticTile):
        counts = {"tile": (8, 2, 5)}  # noqa: RUF012

    found = checked(magnetic(tmp_path), Few(), deep=True)["tile"]
    assert (found.problems, found.num_empty_masks) == ((), 1)


def test_check_compares_totals_where_no_split_is_published(tmp_path: Path) -> None:
    found = checked(kolektor(tmp_path), KolektorSDD())["commutator"]
    assert found.published is None
    assert found.problems == (
        "commutator: 95 normal images, published are 347: 252 missing",
        "commutator: 5 defective images, published are 52: 47 missing",
    )


def test_check_of_a_folder_compares_with_nothing(tmp_path: Path) -> None:
    found = checked(mvtec_like(tmp_path), Folder())
    assert found["bottle"].good
    assert found["bottle"].published is None
    with pytest.raises(DataError, match="has no categories"):
        check(Folder(), tmp_path / "bottle/train")


# The real data


def test_visa_capsules_are_complete(shared: Path) -> None:
    found = VisA().scan(shared / "data/visa", "capsules")
    assert counts(found) == (542, 60, 100)
    assert sum(s.mask is not None for s in found.test) == 100


def test_the_published_counts_are_those_of_the_published_list(shared: Path) -> None:
    lines = (shared / "data/visa/split_csv/1cls.csv").read_text().splitlines()[1:]
    rows = [line.split(",")[:3] for line in lines]
    kinds = (["train", "normal"], ["test", "normal"], ["test", "anomaly"])
    listed = {name: tuple(rows.count([name, *kind]) for kind in kinds) for name in VisA.categories}
    assert listed == VisA.counts
    assert list(dict.fromkeys(row[0] for row in rows)) == list(VisA.categories)


def test_magnetic_tile_has_four_empty_masks(shared: Path) -> None:
    dataset = MagneticTile()
    found = dataset.scan(shared / "data/magnetic_tile", "tile")
    assert counts(found) == MagneticTile.counts["tile"]
    empty = [
        f"{s.defect}/{s.mask.name}"
        for s in found.test
        if s.mask and not (np.asarray(Image.open(s.mask)) > dataset.mask_above).any()
    ]
    assert empty == [
        "uneven/exp3_num_45042.png",
        "uneven/exp4_num_124690.png",
        "uneven/exp4_num_352527.png",
        "uneven/exp4_num_45057.png",
    ]
    assert any("4 of the 103 masks" in note for note in MagneticTile.notes)
    assert fingerprint(dataset, found)  # no test image is also in train


def test_check_of_the_real_mvtec_ad_finds_four_complete_categories(shared: Path) -> None:
    found = checked(shared / "data/mvtec_ad", MVTEC)
    assert [name for name, one in found.items() if one.good] == ["grid", "bottle", "screw", "transistor"]
    assert sum(not one.present for one in found.values()) == 11


def test_the_empty_masks_are_kept_out_of_pixel_metrics(tmp_path: Path) -> None:
    from kdbench.data.store import open_truth

    dataset, root = MagneticTile(), magnetic(tmp_path)
    found = dataset.scan(root, "tile")
    truth = open_truth(dataset, found, fingerprint(dataset, found), PRESETS["exact"])
    assert [s.defect for s, marked in zip(found.test, truth.marked, strict=True) if not marked] == ["uneven"]
