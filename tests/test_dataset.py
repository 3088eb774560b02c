"""A dataset's folders: everything wrong is an error with its path, and content has a fingerprint."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_category, write_image, write_mask

from kdbench.data.fingerprint import fingerprint, fingerprint_of
from kdbench.dataset import Category, Dataset
from kdbench.datasets._layout import scan_layout
from kdbench.datasets.folder import Folder
from kdbench.datasets.mvtec_ad import MVTecAD
from kdbench.errors import DataError
from kdbench.files import cache_folder, image_files
from kdbench.registry import dataset_names, get_dataset

MVTEC = MVTecAD()


def print_of(root: Path, name: str = "bottle", dataset: Dataset = MVTEC) -> str:
    return fingerprint(dataset, dataset.scan(root, name))


def test_a_category_lists_its_images_by_name_with_labels_from_the_folders(mvtec: Path) -> None:
    found = MVTEC.scan(mvtec, "bottle")
    assert [path.name for path in found.train] == [f"{i:03}.png" for i in range(10)]
    assert [(s.defect, s.path.stem, s.label) for s in found.test] == [
        *(("broken", f"{i:03}", True) for i in range(4)),
        *(("good", f"{i:03}", False) for i in range(4)),
    ]
    assert [s.mask and s.mask.name for s in found.test] == [
        *(f"{i:03}_mask.png" for i in range(4)),
        *4 * [None],
    ]
    assert found.has_masks
    assert found.relative(found.test[0].path) == "bottle/test/broken/000.png"


def _remove(*parts: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = folder.joinpath(*parts)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return path

    return spoil


def _add(part: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = folder / part
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("hello")
        return path

    return spoil


def _folder_of_images(folder: Path) -> Path:
    return write_image(folder / "test/good/below/000.png", 3).parent


def _empty(part: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir()
        return folder / part

    return spoil


def _no_good(folder: Path) -> Path:
    shutil.rmtree(folder / "test/good")
    return folder / "test"


def _no_defect(folder: Path) -> Path:
    shutil.rmtree(folder / "test/broken")
    shutil.rmtree(folder / "ground_truth")
    return folder / "test"


def _mask_without_image(folder: Path) -> Path:
    return write_mask(folder / "ground_truth/broken/099_mask.png")


def _masks_of_no_kind(folder: Path) -> Path:
    return write_mask(folder / "ground_truth/scratched/000_mask.png").parent


def _two_masks(folder: Path) -> Path:
    return write_mask(folder / "ground_truth/broken/000.png")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_remove("ground_truth/broken/002_mask.png"), "1 of 4 masks of 'broken' missing"),
        (_remove("ground_truth/broken"), "no folder"),
        (_remove("ground_truth"), "no folder"),
        (_remove("test"), "no folder"),
        (_remove("train"), "no folder"),
        (_remove("train/good"), "no folder"),
        (_empty("train/good"), "has no images"),
        (_empty("test/broken"), "has no images"),
        (_empty("test/scratched"), "has no images"),
        (_no_good, "no normal (test/good) images"),
        (_no_defect, "no defective images"),
        (_mask_without_image, "is a mask without an image"),
        (_masks_of_no_kind, ""),
        (_two_masks, ""),
        (_add("train/good/notes.txt"), "is not an image file (.png)"),
        (_add("test/good/000.jpg"), "is not an image file (.png)"),
        (_folder_of_images, "is a folder, and images lie in"),
        (_add("test/notes.txt"), "lies beside the folders of test images"),
        (_add("ground_truth/broken/notes.txt"), "is not an image file (.png)"),
    ],
)
def test_what_is_wrong_in_a_layout_is_an_error_with_its_path(
    mvtec: Path, spoil: Callable[[Path], Path], said: str
) -> None:
    path = spoil(mvtec / "bottle")
    with pytest.raises(DataError) as raised:
        MVTEC.scan(mvtec, "bottle")
    assert said in str(raised.value)
    assert str(path.parent if said == "has no images" else path) in str(raised.value)


def test_a_link_that_leads_nowhere_is_an_error_with_its_path(mvtec: Path) -> None:
    (mvtec / "bottle/train/good/zzz.png").symlink_to(mvtec / "gone.png")
    with pytest.raises(DataError, match=r"zzz\.png is not an image file"):
        MVTEC.scan(mvtec, "bottle")


def test_what_file_managers_leave_behind_is_passed_over(mvtec: Path) -> None:
    before = MVTEC.scan(mvtec, "bottle")
    for folder in ("train/good", "test/good", "test/broken", "ground_truth/broken", "test"):
        for name in ("Thumbs.db", ".DS_Store", "._000.png", "desktop.ini"):
            (mvtec / "bottle" / folder / name).write_text("litter")
    (mvtec / "bottle/test/__MACOSX").mkdir()
    (mvtec / "bottle/test/.hidden").mkdir()
    (mvtec / "bottle/readme.txt").write_text("MVTec has two such files in every category")
    assert MVTEC.scan(mvtec, "bottle") == before


def test_masks_may_be_named_like_their_images(mvtec: Path) -> None:
    for path in (mvtec / "bottle/ground_truth/broken").iterdir():
        path.rename(path.with_name(path.name.replace("_mask", "")))
    masks = [sample.mask for sample in MVTEC.scan(mvtec, "bottle").test if sample.mask]
    assert [mask.name for mask in masks] == ["000.png", "001.png", "002.png", "003.png"]


def test_suffixes_in_capitals_are_images(mvtec: Path) -> None:
    path = mvtec / "bottle/train/good/000.png"
    path.rename(path.with_suffix(".PNG"))
    assert MVTEC.scan(mvtec, "bottle").train[0].name == "000.PNG"


def test_without_required_masks_either_all_or_none_must_be_there(mvtec: Path) -> None:
    shutil.rmtree(mvtec / "bottle/ground_truth")
    assert not scan_layout(Folder(), mvtec, "bottle", masks_required=False).has_masks
    write_image(mvtec / "bottle/test/scratched/000.png", 7)
    write_mask(mvtec / "bottle/ground_truth/scratched/000_mask.png")
    with pytest.raises(
        DataError, match=r"4 defective images without a mask, others have one, first: .*broken/000\.png"
    ):
        scan_layout(Folder(), mvtec, "bottle", masks_required=False)


def test_image_files_lists_all_known_suffixes_by_name(tmp_path: Path) -> None:
    for name in ("b.tif", "a.jpg", "c d.bmp", "ü.jpeg"):
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path)] == ["a.jpg", "b.tif", "c d.bmp", "ü.jpeg"]


# --- where a dataset lies ---------------------------------------------------------------------------------


def test_a_root_is_found_below_kdbench_data(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mvtec.rename(mvtec.with_name("mvtec_ad"))
    monkeypatch.setenv("KDBENCH_DATA", str(mvtec.parent))
    root = MVTEC.root(None)
    assert root == mvtec.with_name("mvtec_ad")
    assert MVTEC.present(root) == ("bottle", "screw")


def test_a_given_root_wins_over_kdbench_data(mvtec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_DATA", "/nowhere")
    assert MVTEC.root(mvtec) == mvtec


def test_without_a_root_the_error_says_where_images_can_be_had() -> None:
    with pytest.raises(DataError, match=r"--root FOLDER, or a folder mvtec_ad in KDBENCH_DATA.*mvtec\.com"):
        MVTEC.root(None)


def test_a_root_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"mvtec_ad: no folder '{tmp_path / 'gone'}'"):
        MVTEC.root(tmp_path / "gone")


def test_the_cache_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere"


# --- fingerprints -----------------------------------------------------------------------------------------


def _one_byte(root: Path) -> None:
    path = root / "bottle/train/good/000.png"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _another_mask(root: Path) -> None:
    write_image(root / "bottle/ground_truth/broken/000_mask.png", 5)


def _another_name(root: Path) -> None:
    (root / "bottle/train/good/009.png").rename(root / "bottle/train/good/099.png")


def _another_role(root: Path) -> None:
    (root / "bottle/train/good/009.png").rename(root / "bottle/test/good/009.png")


def _another_kind(root: Path) -> None:
    for part in ("test", "ground_truth"):
        (root / "bottle" / part / "broken").rename(root / "bottle" / part / "cracked")


def _one_less(root: Path) -> None:
    (root / "bottle/test/good/003.png").unlink()


def _another_category(root: Path) -> None:
    (root / "bottle").rename(root / "cable")


@pytest.mark.parametrize(
    "change",
    [_one_byte, _another_mask, _another_name, _another_role, _another_kind, _one_less, _another_category],
)
def test_a_changed_content_name_or_role_is_another_fingerprint(
    mvtec: Path, change: Callable[[Path], None]
) -> None:
    before = print_of(mvtec)
    change(mvtec)
    assert print_of(mvtec, "bottle" if (mvtec / "bottle").is_dir() else "cable") != before


def test_neither_place_nor_time_of_change_move_the_fingerprint(mvtec: Path) -> None:
    before = print_of(mvtec)
    moved = mvtec.rename(mvtec.with_name("mit Leerzeichen, ü"))
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    assert print_of(moved) == before


def test_the_mask_threshold_is_part_of_the_fingerprint(mvtec: Path) -> None:
    class Strict(MVTecAD):
        mask_above = 127

    assert print_of(mvtec, dataset=Strict()) != print_of(mvtec)


def test_the_fingerprint_of_several_categories_does_not_depend_on_their_order() -> None:
    assert fingerprint_of(["a", "b"]) == fingerprint_of(iter(["b", "a"])) != fingerprint_of(["a", "c"])


def test_a_test_image_with_the_content_of_a_train_image_is_an_error(mvtec: Path) -> None:
    train, test = mvtec / "bottle/train/good/003.png", mvtec / "bottle/test/good/001.png"
    shutil.copy(train, test)
    with pytest.raises(DataError) as raised:
        print_of(mvtec)
    assert str(raised.value) == f"{test} is a test image and has the content of the train image {train}"


def test_two_train_images_may_be_equal(mvtec: Path) -> None:
    shutil.copy(mvtec / "bottle/train/good/003.png", mvtec / "bottle/train/good/004.png")
    assert print_of(mvtec)


def test_a_file_that_cannot_be_read_is_named(mvtec: Path) -> None:
    found = MVTEC.scan(mvtec, "bottle")
    found.train[3].unlink()
    with pytest.raises(DataError, match=r"train/good/003\.png: No such file or directory"):
        fingerprint(MVTEC, found)


class Counting(MVTecAD):
    """Counts the files that are read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def digest(self, path: Path) -> str:
        self.read.append(path.name)
        return super().digest(path)


def test_every_file_is_read_once_and_a_changed_one_again(mvtec: Path) -> None:
    dataset = Counting()
    first = print_of(mvtec, dataset=dataset)
    assert len(dataset.read) == 10 + 8 + 4
    dataset.read.clear()
    assert print_of(mvtec, dataset=dataset) == first
    assert dataset.read == []
    write_image(mvtec / "bottle/train/good/005.png", 77)
    assert print_of(mvtec, dataset=dataset) != first
    assert dataset.read == ["005.png"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\0\0\0\0", b"[]", b"7", b"\xff\xfe{}", b'{"x": 3}', b"null", b'"text"', "entries"],
)
def test_a_damaged_memory_of_digests_is_built_anew(mvtec: Path, content: bytes | str) -> None:
    dataset = Counting()
    first = print_of(mvtec, dataset=dataset)
    (memory,) = (cache_folder() / "digests").iterdir()
    whole = memory.read_text()
    if content == "entries":  # right files, wrong entries
        path = mvtec / "bottle/train/good/000.png"
        content = f'{{"{path}": 7, "{path.with_name("001.png")}": [1]}}'.encode()
    memory.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert print_of(mvtec, dataset=dataset) == first
    assert memory.read_text() == whole


def test_the_memory_of_digests_leaves_no_temporary_file(mvtec: Path) -> None:
    print_of(mvtec)
    assert [path.suffix for path in (cache_folder() / "digests").iterdir()] == [".json"]


# --- every dataset ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", dataset_names())
def test_a_dataset_says_what_it_is(name: str) -> None:
    dataset = get_dataset(name)
    assert dataset.name == name
    assert dataset.title
    assert dataset.licence
    assert dataset.source
    assert len(set(dataset.categories)) == len(dataset.categories)
    assert set(dataset.textures) <= set(dataset.categories)
    assert set(dataset.counts) <= set(dataset.categories)
    assert dataset.profile in ("paper", "demo")


@pytest.mark.parametrize("name", ["mvtec_ad", "synthetic"])
@pytest.mark.parametrize("keep", [0, 20, 60, 1500])
def test_an_image_that_is_cut_off_is_named_with_a_reason_when_its_digest_needs_the_pixels(
    tmp_path: Path, name: str, keep: int
) -> None:
    dataset = get_dataset(name)
    folder = write_category(tmp_path, dataset.categories[0], train=2, good=1, bad=1)
    path = folder / "train/good/001.png"
    path.write_bytes(path.read_bytes()[:keep])
    said = _failure(tmp_path, dataset)
    assert said is None or (said.startswith(str(path)) and "None" not in said)


def _failure(root: Path, dataset: Dataset) -> str | None:
    try:
        print_of(root, dataset.categories[0], dataset)
    except DataError as error:
        return str(error)
    return None


def test_mvtec_ad_has_the_published_sums() -> None:
    assert len(MVTEC.categories) == 15
    assert [sum(column) for column in zip(*MVTEC.counts.values(), strict=True)] == [3629, 467, 1258]


@pytest.mark.parametrize("name", ["bottle", "screw", "transistor"])
def test_the_real_categories_have_the_published_counts(shared: Path, name: str) -> None:
    found = MVTEC.scan(shared / "data/mvtec_ad", name)
    normal = sum(not sample.label for sample in found.test)
    assert (len(found.train), normal, len(found.test) - normal) == MVTEC.counts[name]
    assert all(bool(sample.mask) == sample.label for sample in found.test)


def test_a_real_category_has_no_image_in_train_and_test(shared: Path) -> None:
    assert len(print_of(shared / "data/mvtec_ad")) == 20


def test_a_category_is_plain_data(tmp_path: Path) -> None:
    write_category(tmp_path, "bottle", train=2, good=1, bad=1)
    first, second = MVTEC.scan(tmp_path, "bottle"), MVTEC.scan(tmp_path, "bottle")
    assert isinstance(first, Category)
    assert first == second
