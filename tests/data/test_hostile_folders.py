"""Folders of images that other people have: what a check says of them before a run, and what a run says."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TINY, write_category
from PIL import Image, ImageCms

from kdbench.cell import canonical_json
from kdbench.data.check import check
from kdbench.data.fingerprint import fingerprint
from kdbench.data.found import find_data
from kdbench.data.masks import LARGE_MASK
from kdbench.datasets.folder import Folder
from kdbench.errors import DataError, RequestError
from kdbench.grid.plan import plan
from kdbench.grid.request import Request
from kdbench.registry import get_dataset

Spoil = Callable[[Path], object]
RUN = ("run", "--methods", "stfpm", "--dataset", "folder", "--root", "parts", "--results", "results", *TINY)


@pytest.fixture
def part(tmp_path, monkeypatch) -> Path:
    """A folder with one category, `part`, and the current folder above it."""
    monkeypatch.chdir(tmp_path)
    part = write_category(tmp_path / "parts", "part", train=3, good=2, bad=2)
    with Image.open(part / "ground_truth/broken/001_mask.png") as mask:
        mask.putpixel((0, 0), 255)  # no two masks are the same
        mask.save(part / "ground_truth/broken/001_mask.png")
    return part


def invert(mask: Path) -> None:
    Image.fromarray(255 - np.asarray(Image.open(mask))).save(mask)


def problems(part: Path, **options: bool) -> tuple[str, ...]:
    (found,) = check(Folder(), part.parent, deep=True, **options)
    return found.problems


def remarks(part: Path, **options: bool) -> tuple[str, ...]:
    (found,) = check(Folder(), part.parent, deep=True, **options)
    assert found.problems == ()
    return found.remarks


def complaint(root: Path) -> str:
    """What a run complains of before anything else."""
    with pytest.raises((RequestError, DataError)) as raised:
        find_data(Folder(), root, ())
    return str(raised.value)


# large masks


def test_inverted_masks_are_named_once_and_a_run_says_in_its_rows_that_they_were_accepted(kdbench, part):
    for number in ("000", "001"):
        invert(part / f"ground_truth/broken/{number}_mask.png")
    said = (
        "part: 2 masks mark more than 50% of the image; no mask does so in the published datasets that we "
        "measured. Inverted, or saved without its colours? If the defects are that large, say --large-masks. "
        "part/ground_truth/broken/000_mask.png, part/ground_truth/broken/001_mask.png"
    )
    assert remarks(part) == (said,)
    code, text = kdbench("datasets", "check", "folder", "--root", "parts", "--deep")
    assert code == 0
    assert text.count(said) == 1
    assert "1 of 1 category good (1 with notes), 0 wrong, 0 absent" in text
    code, text = kdbench(*RUN, "--seeds", "0,1")
    assert code == 0
    assert text.count(f"note: folder {said}") == 1
    code, text = kdbench(*RUN, "--seeds", "2", "--large-masks")
    assert code == 0
    assert "more than 50%" not in text
    rows = pq.read_table("results/cells").to_pylist()
    kept = sorted((row["seed"], row["num_large_masks"], row["large_masks_accepted"]) for row in rows)
    assert kept == [(0, 2, False), (1, 2, False), (2, 2, True)]
    assert remarks(part, accept_large=True) == ()
    code, text = kdbench("datasets", "check", "folder", "--root", "parts", "--deep", "--large-masks")
    assert "1 of 1 category good, 0 wrong, 0 absent" in text


@pytest.mark.parametrize(("rows", "named"), [(20, False), (21, True), (40, True)])
def test_a_mask_is_large_above_half_of_its_image(part, rows, named):
    mask = np.zeros((40, 40), np.uint8)
    mask[:rows] = 255
    Image.fromarray(mask).save(part / "ground_truth/broken/000_mask.png")
    assert bool(remarks(part)) == named


def test_masks_of_few_defects_and_folders_without_masks_get_no_note(kdbench, part):
    code, text = kdbench(*RUN)
    assert (code, "note" in text) == (0, False)
    (row,) = pq.read_table("results/cells").to_pylist()
    assert (row["num_large_masks"], row["large_masks_accepted"]) == (0, False)
    shutil.rmtree(part / "ground_truth")
    assert remarks(part) == ()
    assert kdbench(*RUN)[0] == 0
    rows = pq.read_table("results/cells").to_pylist()
    assert [row["num_large_masks"] for row in rows if row["num_regions"] is None] == [None]


def test_every_inverted_mask_of_the_real_sets_is_large_and_none_as_published(shared):
    largest = 0.0
    for path in (shared / "data/mvtec_ad/transistor/ground_truth").rglob("*.png"):
        largest = max(largest, float((np.asarray(Image.open(path)) > 0).mean()))
    assert largest == pytest.approx(0.492, abs=5e-4)
    assert largest < LARGE_MASK < 1 - largest


def test_soft_masks_of_ones_own_are_an_error(kdbench, part):
    mask = part / "ground_truth/broken/000_mask.png"
    Image.open(mask).resize((80, 80)).resize((40, 40), Image.Resampling.BICUBIC).save(mask)
    (problem,) = problems(part)
    assert problem.startswith(f"{mask} cannot be read as a mask: it has ")
    code, text = kdbench(*RUN)
    assert (code, problem in text) == (2, True)


def test_the_mask_of_a_normal_image_must_mark_nothing(kdbench, part):
    mask = part / "ground_truth/good/000_mask.png"
    mask.parent.mkdir()
    Image.new("L", (40, 40), 0).save(mask)
    assert remarks(part) == ()
    assert kdbench(*RUN)[0] == 0
    shutil.copy(part / "ground_truth/broken/000_mask.png", mask)
    said = f"{mask} marks a defect in a normal image: is the image in the wrong folder?"
    assert problems(part) == (said,)
    shutil.rmtree(Path(os.environ["KDBENCH_CACHE"]) / "images")
    code, text = kdbench(*RUN, "--seeds", "1")
    assert (code, said in text) == (2, True)


# the same picture twice


def conflict(part: Path, kind: str) -> str:
    """Put the picture of test/good/000.png into test/broken, as it is or saved in another way."""
    good, bad = part / "test/good/000.png", part / f"test/broken/000{kind}"
    if kind == ".png":
        shutil.copy(good, bad)
    else:
        (part / "test/broken/000.png").unlink()
        Image.open(good).save(bad)
    return (
        f"{good} is a normal test image and has the content of the defective test image {bad}. "
        f"Remove the one that is in the wrong folder"
    )


@pytest.mark.parametrize("kind", [".png", ".bmp", ".tif"])
def test_a_picture_that_is_normal_and_defective_is_an_error_of_check_and_run(kdbench, part, kind):
    said = conflict(part, kind)
    assert problems(part) == (said,)
    code, text = kdbench(*RUN)
    assert (code, said in text) == (2, True)
    assert not list(Path("results").rglob("*.parquet"))


@pytest.mark.parametrize("kind", [".png", ".bmp", ".tif"])
def test_a_picture_of_train_and_test_is_an_error_whatever_kind_of_file_it_is_in(kdbench, part, kind):
    trained, tested = part / "train/good/001.png", part / f"test/good/new{kind}"
    shutil.copy(trained, tested) if kind == ".png" else Image.open(trained).save(tested)
    said = f"{tested} is a test image and has the content of the train image {trained}"
    assert problems(part) == (said,)
    code, text = kdbench(*RUN)
    assert (code, said in text) == (2, True)


def test_a_picture_twice_with_the_same_label_is_a_note(kdbench, part):
    shutil.copytree(part / "test/broken", part / "test/dent")
    shutil.copytree(part / "ground_truth/broken", part / "ground_truth/dent")
    assert remarks(part) == (
        "part: 2 masks mark exactly the pixels that another one marks. Copied to the wrong image? First: "
        "part/ground_truth/dent/000_mask.png, as part/ground_truth/broken/000_mask.png",
        "part: 2 pictures are there more than once with the same label and count as often, first: "
        "part/test/broken/000.png, part/test/dent/000.png",
    )
    assert kdbench(*RUN)[0] == 0


def test_transparent_images_beside_opaque_ones_are_an_error(kdbench, part):
    """A cut-out object on nothing beside photographs: the black around it would be what is found."""
    paths = sorted((part / "test/broken").iterdir())
    for path in paths:
        image = Image.open(path).convert("RGBA")
        image.putpixel((0, 0), (255, 255, 255, 0))
        image.save(path)
    said = (
        f"{paths[0]} and 1 more images of part have transparent parts, which are read as black; "
        f"{part / 'train/good/000.png'} and 4 more have none. Save all of them without transparency, on the "
        f"same background"
    )
    assert problems(part) == (said,)
    code, text = kdbench(*RUN)
    assert (code, said in text) == (2, True)


def test_images_that_are_all_transparent_in_parts_are_fine(kdbench, part):
    for path in part.glob("t*/*/*.png"):
        image = Image.open(path).convert("RGBA")
        image.putpixel((0, 0), (255, 255, 255, 0))
        image.save(path)
    assert remarks(part) == ()
    assert kdbench(*RUN)[0] == 0


def test_categories_that_share_images_are_named_by_a_check_and_a_run(kdbench, part):
    other = part.with_name("another")
    shutil.copytree(part, other)
    for path in other.glob("train/good/*.png"):
        Image.open(path).point(lambda value: value // 2).save(path)
    said = "another and part share 4 test images, which count in both"
    first, second = check(Folder(), part.parent, deep=True)
    assert (first.remarks, second.remarks) == ((), (said,))
    assert f"note: folder: {said}" in kdbench(*RUN, "--dry-run")[1]
    shutil.copy(part / "test/good/000.png", other / "train/good/000.png")
    shutil.rmtree(other / "test/good")
    shutil.copytree(other / "train/good", other / "test/good")
    (other / "test/good/000.png").unlink()
    for path in other.glob("test/good/*.png"):
        Image.open(path).rotate(90).save(path)
    leak = (
        f"{part / 'test/good/000.png'} is a test image and has the content of the train image "
        f"{other / 'train/good/000.png'}"
    )
    first, second = check(Folder(), part.parent, deep=True)
    assert (first.problems, second.problems) == ((), (leak,))
    assert complaint(part.parent) == leak


def test_a_corrected_mask_is_seen_though_its_size_and_time_stay_the_same(part):
    """As after `tar -x`, `cp -p` or `rsync -t`."""
    mask = part / "ground_truth/broken/000_mask.png"
    Image.open(mask).save(mask, "BMP")
    before, stat = fingerprint(Folder(), Folder().scan(part.parent, "part")), mask.stat()
    image = Image.open(mask)
    image.putpixel((1, 1), 255)
    image.save(mask, "BMP")
    os.utime(mask, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (mask.stat().st_size, mask.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert fingerprint(Folder(), Folder().scan(part.parent, "part")) != before


def test_a_defect_that_is_lost_where_masks_are_made_smaller_is_a_note(kdbench, part):
    size = 1024
    mask = np.zeros((size, size), np.uint8)
    mask[1, 1] = 255  # the nearest pixels that are taken have odd distances from it
    Image.fromarray(mask).save(part / "ground_truth/broken/000_mask.png")
    Image.effect_noise((size, size), 50).save(part / "test/broken/000.png")
    code, text = kdbench(*RUN)
    assert code == 0
    assert text.count("1 mask marks nothing at the size at which pixels are judged") == 1
    assert "part/ground_truth/broken/000_mask.png" in text
    (row,) = pq.read_table("results/cells").to_pylist()
    assert row["num_regions"] == 2  # both of the other mask


def test_images_of_a_single_colour_and_of_other_colour_profiles_are_notes(part):
    paths = [part / "test/good/000.png", part / "test/good/001.png"]
    Image.new("RGB", (40, 40), (0, 0, 0)).save(paths[0])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.open(paths[1]).save(paths[1], icc_profile=profile)
    assert remarks(part) == (
        "part: 1 image of a single colour, first: part/test/good/000.png",
        "part: colour profiles, which are not applied, differ between part/test/good/001.png, "
        "part/train/good/000.png",
    )


# too few images


@pytest.mark.parametrize("white", [16383, 32767, 32768])
def test_images_of_16_bit_that_use_less_than_half_of_the_range_are_named_once(kdbench, part, white):
    paths = [*part.glob("train/good/*.png"), *part.glob("test/*/*.png")]
    for path in paths:
        grey = np.asarray(Image.open(path).convert("L"), np.uint16)
        Image.fromarray(grey * (white // 512)).save(path)
    first = np.asarray(Image.open(paths[0])).copy()
    first[0, 0] = white
    Image.fromarray(first).save(paths[0])
    said = (
        f"part: no value of its 16-bit images is above {white} of 65535, {white / 65535:.0%} of the range: "
        f"they are read as dark as that. Scale them to all 16 bit if their camera has fewer"
    )
    named = white < 32768
    assert remarks(part) == ((said,) if named else ())
    for seed in (0, 1):  # also where the images are decoded already
        code, text = kdbench(*RUN, "--seeds", seed)
        assert (code, text.count(f"note: folder {said}")) == (0, named)


def test_one_training_image_is_refused_where_images_are_held_out_and_noted_by_a_check(kdbench, part):
    for number in ("001", "002"):
        (part / f"train/good/{number}.png").unlink()
    names = {"methods": "stfpm,rd4ad", "dataset": "folder", "root": "parts", "backbone": "tiny"}
    with pytest.raises(RequestError) as raised:
        plan(Request(**names, set={"rd4ad.checkpoint": "last"}))
    assert raised.value.complaints == (
        "folder part has 1 training image, and some are held out by stfpm: at least 2 are needed. Add "
        "images, or hold out none: --set stfpm.checkpoint=last",
    )
    with pytest.raises(RequestError) as raised:
        plan(Request(**names | {"methods": "rd4ad"}, hold_out=0.1))
    assert raised.value.complaints == (
        "folder part has 1 training image, and some are held out by rd4ad: at least 2 are needed. Add images",
    )
    code, text = kdbench("datasets", "check", "folder", "--root", "parts")
    assert code == 0
    assert text.count("note: part: 1 training image. Methods that hold out some need at least 2") == 1


def test_a_method_that_holds_out_nothing_trains_on_one_image(kdbench, part):
    for number in ("001", "002"):
        (part / f"train/good/{number}.png").unlink()
    assert kdbench(*RUN)[0] == 2
    assert kdbench(*RUN, "--set", "stfpm.checkpoint=last")[0] == 0
    (row,) = pq.read_table("results/cells").to_pylist()
    assert (row["status"], row["num_train"], row["num_heldout"]) == ("ok", 1, 0)


# masks and EXIF


def test_a_mask_that_is_not_turned_as_its_image_is_gets_a_note(part):
    exif = Image.Exif()
    exif[0x0112] = 3
    path = part / "test/broken/000.png"
    Image.open(path).save(path, exif=exif)
    assert remarks(part) == (
        "part: 1 mask belongs to an image that EXIF turns, and says no orientation: taken as drawn on the "
        "upright image. part/ground_truth/broken/000_mask.png",
    )
    mask = part / "ground_truth/broken/000_mask.png"
    Image.open(mask).save(mask, exif=exif)
    assert remarks(part) == ()


def test_a_mask_of_the_size_of_the_image_as_it_is_stored_is_an_error_that_says_why(part):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = part / "test/broken/000.png", part / "ground_truth/broken/000_mask.png"
    Image.effect_noise((40, 30), 9).save(image, exif=exif)
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(mask)
    said = (
        f"{mask} is 40x30, its image 30x40: {image}. EXIF turns the image and not the mask: save both upright"
    )
    assert problems(part) == (said,)
    Image.open(mask).save(mask, exif=exif)
    assert remarks(part) == ()


def stored(part: Path) -> str:
    """The fingerprint that the category had when a mask was nothing but its stored values."""
    category = Folder().scan(part.parent, "part")
    files = [("train", "good", path) for path in category.train]
    files += [("test", sample.defect, sample.path) for sample in category.test]
    files += [("mask", sample.defect, sample.mask) for sample in category.test if sample.mask]
    listed = sorted(
        [role, kind, category.relative(path), hashlib.sha256(path.read_bytes()).hexdigest()]
        for role, kind, path in files
    )
    return hashlib.sha256(canonical_json(["part", 0, listed]).encode()).hexdigest()[:20]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda mask: mask.convert("RGB"), True),
        (lambda mask: mask.convert("RGBA"), True),
        (lambda mask: mask.convert("LA"), True),
        (lambda mask: mask.convert("1"), True),
        (lambda mask: mask.quantize(2), False),
        (lambda mask: Image.merge("LA", (Image.new("L", mask.size, 255), mask)), False),
    ],
    ids=["rgb", "opaque rgba", "opaque grey and alpha", "one bit", "palette", "alpha"],
)
def test_rows_of_masks_that_were_once_read_in_another_way_are_not_taken_for_rows_of_these(part, change, same):
    mask = part / "ground_truth/broken/000_mask.png"
    change(Image.open(mask)).save(mask)
    found = fingerprint(Folder(), Folder().scan(part.parent, "part"))
    assert (found == stored(part)) == same
    assert fingerprint(Folder(), Folder().scan(part.parent, "part")) == found  # from what is remembered


@pytest.mark.parametrize(
    ("orientation", "mode", "same"), [(1, "L", True), (6, "RGB", True), (6, "L", False), (3, "L", True)]
)
def test_rows_of_images_that_pillow_scrambled_are_not_taken_for_rows_of_these(part, orientation, mode, same):
    """Uncompressed grey TIFFs were read in the wrong shape where EXIF turns them to a side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.effect_noise((40, 30), 50).convert(mode).save(part / "train/good/tall.tif", exif=exif)
    found = fingerprint(Folder(), Folder().scan(part.parent, "part"))
    assert (found == stored(part)) == same


def test_an_image_of_several_pages_is_an_error_also_where_all_cells_finished_before(kdbench, part):
    assert kdbench(*RUN)[0] == 0
    path = part / "train/good/000.png"
    image = Image.open(path)
    image.resize((8, 8)).save(path, "TIFF", save_all=True, append_images=[image])
    said = f"{path} cannot be read as an image: it has 2 pages (TIFF), 8x8, 40x40. Save the page"
    assert said in complaint(part.parent)


# layouts of other tools, and names


def test_normal_abnormal_and_mask_folders_are_recognised_with_the_commands_that_convert_them(part):
    (part / "train/good").rename(part / "normal")
    (part / "test/broken").rename(part / "abnormal")
    (part / "ground_truth/broken").rename(part / "mask")
    for old in ("train", "test", "ground_truth"):
        shutil.rmtree(part / old)
    expected = (
        f"{part} holds normal, abnormal, mask. kdbench reads train/good, test/good, test/KIND and "
        f"ground_truth/KIND: `cd {part} && mkdir -p train test ground_truth && mv normal train/good && "
        f"mv abnormal test/abnormal && mv mask ground_truth/abnormal`, then move about a fifth of train/good "
        f"to test/good"
    )
    for root in (part, part.parent):
        assert expected in complaint(root)
        with pytest.raises(DataError) as raised:
            check(Folder(), root)
        assert expected in str(raised.value)
    (command,) = re.findall(r"`(.*?)`", expected)
    subprocess.run(command, shell=True, check=True)
    (part / "test/good").mkdir()
    (part / "train/good/000.png").rename(part / "test/good/000.png")
    assert problems(part) == ()


def test_a_folder_of_defects_that_has_a_folder_for_each_kind_gives_these_kinds(part):
    (part / "train/good").rename(part / "OK")
    for source, made in (("test", "NOK"), ("ground_truth", "masks")):
        (part / made).mkdir()
        (part / source / "broken").rename(part / made / "bent lead")
        shutil.rmtree(part / source)
    shutil.rmtree(part / "train")
    (command,) = re.findall(r"`(.*?)`", complaint(part))
    assert command.endswith("mv OK train/good && mv NOK/* test/ && mv masks/* ground_truth/")
    subprocess.run(command, shell=True, check=True)
    for folder in ("test", "ground_truth"):
        assert [path.name for path in (part / folder).iterdir()] == ["bent lead"]
        assert len([*(part / folder / "bent lead").iterdir()]) == 2


def renamed(old: str, new: str) -> Spoil:
    return lambda part: (part / old).rename(part / new)


def copied(*pairs: tuple[str, str]) -> Spoil:
    def copy(part: Path) -> None:
        for old, new in pairs:
            (part / new).parent.mkdir(exist_ok=True)
            shutil.copy(part / old, part / new)

    return copy


def renamed_masks(new: Callable[[str], str]) -> Spoil:
    """Each mask 000_mask.png is called `new("000")`, the last one first."""

    def rename(part: Path) -> None:
        for mask in sorted((part / "ground_truth/broken").iterdir(), reverse=True):
            mask.rename(mask.with_name(new(mask.stem.removesuffix("_mask"))))

    return rename


def without_good(part: Path) -> None:
    for path in (part / "train/good").iterdir():
        path.rename(part / "train" / path.name)
    (part / "train/good").rmdir()


ACCENT, LETTERS = "\u00e9", "e\u0301"  # the same to the eye

# name: what is done to a good category, and what is said of it
FOLDERS: dict[str, tuple[Spoil, str]] = {
    "train/ok": (
        renamed("train/good", "train/ok"),
        "no folder {part}/train/good. There is ok: `mv {part}/train/ok {part}/train/good`",
    ),
    "images directly in train": (
        without_good,
        "no folder {part}/train/good. {part}/train holds 000.png, 001.png, 002.png",
    ),
    "no train": (lambda part: shutil.rmtree(part / "train"), "no folder {part}/train/good"),
    "no test": (lambda part: shutil.rmtree(part / "test"), "no folder {part}/test"),
    "test/ok beside test/good": (
        copied(("train/good/000.png", "test/ok/000.png")),
        "{part}/test/ok would count as defects: normal images lie in {part}/test/good",
    ),
    "test/Good beside test/good": (
        copied(("test/good/000.png", "test/Good/000.png")),
        "{part}/test/Good and {part}/test/good look the same (case, "
        "spaces, accents): other computers take them for one. Rename one",
    ),
    "test/Good": (
        renamed("test/good", "test/Good"),
        "{part}/test/Good would count as defects: normal images lie in {part}/test/good",
    ),
    "a space behind good": (
        copied(("train/good/000.png", "test/good /000.png")),
        "{part}/test/good and {part}/test/good  look the same (case, spaces, accents): other computers "
        "take them for one. Rename one",
    ),
    "something invisible in good": (
        renamed("test/good", "test/go\u200bod"),
        "{part}/test/go\u200bod would count as defects: normal images lie in {part}/test/good",
    ),
    "masks end with _GT": (
        renamed_masks("{}_GT.png".format),
        "part: 2 of 2 masks of 'broken' missing, first: {part}/ground_truth/broken/000_mask.png. The masks "
        "there end with _GT: `cd {part}/ground_truth/broken && for mask in *_GT.png; "
        'do mv "$mask" "${mask%_GT.png}_mask.png"; done`',
    ),
    "masks have other names": (
        renamed_masks("label{}.png".format),
        "part: 2 of 2 masks of 'broken' missing, first: {part}/ground_truth/broken/000_mask.png. There is "
        "label000.png, label001.png",
    ),
    "masks in a folder masks": (
        renamed("ground_truth", "masks"),
        "{part}/masks is not read: masks of test/KIND lie in {part}/ground_truth/KIND",
    ),
    "numbers of masks are off by one": (
        renamed_masks(lambda stem: f"{int(stem) + 1:03}_mask.png"),
        "part: 1 of 2 masks of 'broken' missing, first: {part}/ground_truth/broken/000_mask.png. There is "
        "001_mask.png, 002_mask.png",
    ),
    "a mask too many": (
        copied(("ground_truth/broken/000_mask.png", "ground_truth/broken/007_mask.png")),
        "{part}/ground_truth/broken/007_mask.png is a mask without an image in {part}/test/broken",
    ),
    "two masks of an image": (
        copied(("ground_truth/broken/000_mask.png", "ground_truth/broken/000_mask_1.png")),
        "{part}/ground_truth/broken/000_mask.png and {part}/ground_truth/broken/000_mask_1.png are masks of "
        "the same image. Unite them in one file, or move one away",
    ),
    "two masks of an image, one without _mask": (
        copied(("ground_truth/broken/000_mask.png", "ground_truth/broken/000.png")),
        "{part}/ground_truth/broken/000.png and {part}/ground_truth/broken/000_mask.png are masks of "
        "the same image. Unite them in one file, or move one away",
    ),
    "images that differ by case": (
        copied(("test/broken/000.png", "test/broken/A.png"), ("test/broken/001.png", "test/broken/a.png")),
        "{part}/test/broken/A.png and {part}/test/broken/a.png look the same (case, "
        "spaces, accents): other computers take them for one. Rename one",
    ),
    "images whose accents are stored in two ways": (
        copied(*(("train/good/000.png", f"train/good/{name}.png") for name in (ACCENT, LETTERS))),
        f"{{part}}/train/good/{LETTERS}.png and {{part}}/train/good/{ACCENT}.png look the same (case, "
        f"spaces, accents): other computers take them for one. Rename one",
    ),
    "a defect in train": (
        copied(("test/broken/000.png", "train/broken/000.png")),
        "{part}/train/broken lies beside the normal images for training. Move it away",
    ),
    "a text file beside images": (
        lambda part: (part / "test/good/notes.txt").write_text("x"),
        "{part}/test/good/notes.txt is not an image file (.png, .jpg, .jpeg, .bmp, .tif, .tiff). Move it "
        "away: nothing is skipped in silence",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_wrong_with_a_folder_is_said_by_a_check_and_before_a_run(part, name):
    spoil, expected = FOLDERS[name]
    spoil(part)
    expected = expected.replace("{part}", str(part))
    assert problems(part) == (expected,)
    assert complaint(part.parent) == expected


def test_a_mask_whose_name_only_stores_its_accent_in_another_way_is_found(part):
    (part / "test/broken/000.png").rename(part / f"test/broken/{ACCENT}.png")
    (part / "ground_truth/broken/000_mask.png").rename(part / f"ground_truth/broken/{LETTERS}_mask.png")
    assert remarks(part) == ()


def test_a_category_is_found_whichever_way_its_accents_are_typed(part):
    part.rename(part.with_name(f"Teil {LETTERS}"))
    for typed in (ACCENT, LETTERS):
        found = find_data(Folder(), part.parent, (f"Teil {typed}",))
        assert list(found.categories) == [f"Teil {LETTERS}"]


def test_a_folder_without_categories_says_what_it_holds(part):
    root = part.parent.parent
    (root / "notes").mkdir()
    for line in (complaint(root),):
        assert line.endswith(f"They are in {part.parent}: --root {part.parent}")
    shutil.rmtree(part.parent)
    assert complaint(root / "notes").endswith("It holds nothing. Is it the folder that holds them?")


def test_the_root_of_a_published_set_is_the_folder_above_the_categories(tmp_path):
    write_category(tmp_path / "mvtec", "bottle", train=2, good=1, bad=1)
    for root, expected in (
        (tmp_path / "mvtec/bottle", f"It is one category: --root {tmp_path / 'mvtec'} --categories bottle"),
        (tmp_path, f"They are in {tmp_path / 'mvtec'}: --root {tmp_path / 'mvtec'}"),
        (tmp_path / "mvtec/bottle/test", "It holds broken, good. Is it the folder that holds them?"),
    ):
        with pytest.raises(RequestError) as raised:
            find_data(get_dataset("mvtec_ad"), root, ())
        assert str(raised.value).endswith(expected)


@pytest.mark.parametrize(
    ("dataset", "archived"), [("folder", False), ("mpdd", False), ("mvtec_ad", True), ("btad", True)]
)
def test_only_what_comes_in_an_archive_may_be_half_unpacked(tmp_path, dataset, archived):
    write_category(tmp_path, "part", train=2, good=1, bad=2)
    if dataset == "btad":
        for old, new in (("train/good", "train/ok"), ("test/good", "test/ok")):
            (tmp_path / "part" / old).rename(tmp_path / "part" / new)
    (tmp_path / "part/ground_truth/broken/001_mask.png").unlink()
    for spoil in (lambda: None, lambda: shutil.rmtree(tmp_path / "part/test")):
        spoil()
        with pytest.raises(DataError) as raised:
            get_dataset(dataset).scan(tmp_path, "part")
        assert ("The archive may be half unpacked; unpack it again" in str(raised.value)) == archived


@pytest.mark.parametrize("name", ["a" * 230, "\u4e2d" * 75], ids=["230 letters", "75 Chinese characters"])
def test_a_category_may_have_any_name_that_a_folder_can_have(kdbench, part, name):
    part.rename(part.with_name(name))
    shutil.copytree(part.with_name(name), part.with_name(name[:-1]))  # the same to what is cut off
    code, text = kdbench(*RUN)
    assert code == 0, text
    assert {row["category"] for row in pq.read_table("results/cells").to_pylist()} == {name, name[:-1]}
