"""The store of decoded images: right pixels for every kind of file, built once, whole or not there."""

import io
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_category
from PIL import Image

from kdbench.data.fingerprint import fingerprint
from kdbench.data.store import decode, images_ready, open_images, open_truth
from kdbench.dataset import Category, Sample
from kdbench.datasets.mvtec_ad import MVTecAD
from kdbench.errors import DataError
from kdbench.files import cache_folder
from kdbench.metrics.exact import label_regions
from kdbench.metrics.presets import PRESETS, Preset

MVTEC = MVTecAD()
SMALL = Preset(evaluation_size=8, mask_rule=PRESETS["exact"].mask_rule)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def flat(mode: str, value: object) -> Image.Image:
    return Image.new(mode, (6, 4), value)  # type: ignore[arg-type]


# --- pixels -----------------------------------------------------------------------------------------------

PALETTE = flat("P", 1)
PALETTE.putpalette([0, 0, 0, 10, 200, 30])


@pytest.mark.parametrize(
    ("suffix", "image", "options", "expected"),
    [
        ("png", flat("L", 77), {}, (77, 77, 77)),
        ("png", flat("1", 1), {}, (255, 255, 255)),
        ("png", flat("1", 0), {}, (0, 0, 0)),
        ("png", flat("RGB", (1, 2, 3)), {}, (1, 2, 3)),
        ("png", PALETTE, {}, (10, 200, 30)),
        # over black: value * alpha / 255, here 200 * 51 / 255 = 40 and so on
        ("png", flat("LA", (200, 51)), {}, (40, 40, 40)),
        ("png", flat("RGBA", (200, 100, 50, 51)), {}, (40, 20, 10)),
        ("png", flat("RGBA", (200, 100, 50, 255)), {}, (200, 100, 50)),
        ("png", PALETTE, {"transparency": 0}, (10, 200, 30)),
        ("png", PALETTE, {"transparency": b"\xff\x33"}, (2, 40, 6)),
        # 16 bit scaled by 257, so that 65535 is 255: 25700 / 257 = 100
        ("png", flat("I;16", 25700), {}, (100, 100, 100)),
        ("png", flat("I;16", 65535), {}, (255, 255, 255)),
        ("tiff", flat("I", 25700), {}, (100, 100, 100)),
        ("tiff", flat("CMYK", (255, 0, 0, 0)), {}, (0, 255, 255)),
        ("bmp", flat("RGB", (9, 8, 7)), {}, (9, 8, 7)),
        ("bmp", flat("L", 5), {}, (5, 5, 5)),
        ("tif", flat("RGB", (9, 8, 7)), {"compression": "tiff_lzw"}, (9, 8, 7)),
    ],
)
def test_every_kind_of_file_becomes_three_channels_of_the_right_values(
    tmp_path: Path,
    suffix: str,
    image: Image.Image,
    options: dict[str, object],
    expected: tuple[int, int, int],
) -> None:
    pixels = decode(saved(tmp_path / f"a.{suffix}", image, **options), 5)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (5, 5, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [list(expected)]


def test_a_cmyk_jpeg_is_readable(tmp_path: Path) -> None:
    pixels = decode(saved(tmp_path / "a.jpg", flat("CMYK", (0, 255, 255, 0)), quality=95), 5)
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() <= 6


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 0)), (6, (0, 1)), (8, (1, 0))]
)
def test_a_photograph_is_turned_upright_by_its_exif_tag(
    tmp_path: Path, orientation: int, corner: tuple[int, int]
) -> None:
    """The stored top left corner is bright; 6 means that the camera was turned and it belongs top right."""
    stored = np.zeros((32, 32), np.uint8)
    stored[:16, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(saved(tmp_path / "a.jpg", Image.fromarray(stored), exif=exif, quality=95), 2)[..., 0]
    assert np.argwhere(pixels > 128).tolist() == [list(corner)]


def test_the_size_changes_by_averaging_areas_and_not_by_picking_pixels(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255  # every second pixel is white
    pixels = decode(saved(tmp_path / "a.png", Image.fromarray(board.astype(np.uint8))), 8)
    assert np.abs(pixels.astype(int) - 128).max() <= 2


def test_the_aspect_is_not_kept(tmp_path: Path) -> None:
    halves = np.zeros((4, 40), np.uint8)
    halves[:, 20:] = 200
    pixels = decode(saved(tmp_path / "a.png", Image.fromarray(halves)), 10)
    assert pixels[:, :4].max() == 0
    assert pixels[:, 6:].min() == 200


@pytest.mark.parametrize("name", ["with space.png", "quote'\".png", "ünïcödé 漢字.png", "[red] $HOME *.png"])
def test_names_may_hold_any_character(tmp_path: Path, name: str) -> None:
    assert decode(saved(tmp_path / name, flat("L", 9)), 2).tolist() == np.full((2, 2, 3), 9).tolist()


def test_a_jpeg_that_is_named_png_is_readable(tmp_path: Path) -> None:
    assert decode(saved(tmp_path / "a.png", flat("L", 9), format="JPEG"), 2).shape == (2, 2, 3)


@pytest.mark.slow
def test_a_huge_image_that_is_within_reason_is_decoded_without_a_warning(tmp_path: Path) -> None:
    pixels = decode(saved(tmp_path / "a.png", Image.new("1", (10_000, 9_000), 1)), 4)  # line scan cameras
    assert pixels.min() == 255


def _png_bytes() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_of(width: int, height: int, *chunks: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (
        _chunk(b"IHDR", head),
        *chunks,
        _chunk(b"IDAT", zlib.compress(b"\0" * 100)),
        _chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


WHOLE = _png_bytes()
BROKEN = {
    "truncated": WHOLE[: len(WHOLE) // 2],
    "only a header": WHOLE[:40],
    "empty": b"",
    "text": b"404 not found\n",
    "bad checksum": WHOLE[:40] + b"\xff" + WHOLE[41:],
    "bomb": _png_of(50_000, 50_000),
    "text bomb": _png_of(8, 8, _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (2 << 20)))),
    "floating point": b"",  # written below
    "12 bit": b"",
    "below zero": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_image_that_cannot_be_read_is_an_error_with_its_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(BROKEN[kind])
    if kind == "floating point":
        saved(path, flat("F", 200.0), format="TIFF")
    if kind == "12 bit":
        saved(path, flat("I;16", 4095))
    if kind == "below zero":
        saved(path, flat("I", -3), format="TIFF")
    with pytest.raises(DataError) as raised:
        decode(path, 8)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


# --- masks ------------------------------------------------------------------------------------------------


def one_image(
    folder: Path, mask: Image.Image, size: tuple[int, int] | None = None, **options: object
) -> Category:
    """A category with one defective image of `size` and this mask, and one normal one."""
    Image.new("L", size or mask.size, 100).save(folder / "bad.png")
    Image.new("L", (8, 8), 90).save(folder / "good.png")
    Image.new("L", (8, 8), 80).save(folder / "train.png")
    mask.save(folder / "mask.png", **options)
    bad = Sample(path=folder / "bad.png", label=True, defect="broken", mask=folder / "mask.png")
    good = Sample(path=folder / "good.png", label=False, defect="good")
    return Category(name="bottle", root=folder, train=(folder / "train.png",), test=(bad, good))


def truth_of(category: Category, dataset: MVTecAD = MVTEC, preset: Preset = SMALL) -> np.ndarray:
    truth = open_truth(dataset, category, fingerprint(dataset, category), preset)
    assert truth.label.tolist() == [True, False]
    assert truth.regions is not None
    assert truth.regions.dtype == np.int32
    assert (truth.shapes == preset.evaluation_size).all()
    return np.asarray(truth.regions).reshape(-1, preset.evaluation_size, preset.evaluation_size)


SPOTS = np.zeros((8, 8), np.uint8)
SPOTS[1:3, 1:3] = 255
SPOTS[3, 3] = 255  # touches by a corner: the same region
SPOTS[6, 0:4] = 255


def test_regions_are_numbered_over_the_hand_made_masks(tmp_path: Path) -> None:
    regions = truth_of(one_image(tmp_path, Image.fromarray(SPOTS)))
    expected = np.zeros((2, 8, 8), np.int32)
    expected[0, 1:3, 1:3] = expected[0, 3, 3] = 1
    expected[0, 6, 0:4] = 2
    assert regions.tolist() == expected.tolist()
    assert regions.tolist() == label_regions(np.stack([SPOTS > 0, np.zeros((8, 8), bool)])).tolist()


RGBA_SPOTS = np.dstack([SPOTS, SPOTS, SPOTS, np.full((8, 8), 255, np.uint8)])


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(SPOTS),
        Image.fromarray(SPOTS // 255),
        Image.fromarray(SPOTS > 0),
        Image.fromarray(SPOTS.astype(np.uint16) * 257),
        Image.fromarray(np.dstack([SPOTS, 0 * SPOTS, 0 * SPOTS])),
        Image.fromarray(RGBA_SPOTS),
        Image.fromarray(RGBA_SPOTS[..., 2:]),
    ],
    ids=["grey", "0 and 1", "one bit", "16 bit", "red", "opaque rgba", "opaque grey"],
)
def test_a_mask_says_the_same_in_every_kind_of_file(tmp_path: Path, mask: Image.Image) -> None:
    assert (truth_of(one_image(tmp_path, mask))[0] > 0).tolist() == (SPOTS > 0).tolist()


def test_a_palette_says_by_colour_what_is_defect(tmp_path: Path) -> None:
    """Index 0 is white, as adaptive palettes have it, and three classes of defect have colours."""
    mask = Image.fromarray(np.where(SPOTS > 0, np.indices((8, 8)).sum(0) % 3, 3).astype(np.uint8), "P")
    mask.putpalette([255, 255, 255, 200, 0, 0, 0, 0, 90, 0, 0, 0])
    assert (truth_of(one_image(tmp_path, mask))[0] > 0).tolist() == (SPOTS > 0).tolist()


def test_the_threshold_of_the_dataset_decides_what_is_defect(tmp_path: Path) -> None:
    class Strict(MVTecAD):
        mask_above = 127

    grey = np.zeros((8, 8), np.uint8)
    grey[0, 0], grey[0, 4], grey[0, 6] = 127, 128, 255
    category = one_image(tmp_path, Image.fromarray(grey))
    assert np.argwhere(truth_of(category, Strict())[0]).tolist() == [[0, 4], [0, 6]]
    assert np.argwhere(truth_of(category)[0]).tolist() == [[0, 0], [0, 4], [0, 6]]


def test_a_threshold_above_one_does_not_lose_one_bit_masks(tmp_path: Path) -> None:
    class Strict(MVTecAD):
        mask_above = 127

    category = one_image(tmp_path, Image.fromarray(SPOTS > 0))
    assert (truth_of(category, Strict())[0] > 0).tolist() == (SPOTS > 0).tolist()


def test_masks_change_size_by_the_nearest_pixel(tmp_path: Path) -> None:
    large = np.kron(SPOTS, np.ones((5, 5), np.uint8))
    assert (truth_of(one_image(tmp_path, Image.fromarray(large)))[0] > 0).tolist() == (SPOTS > 0).tolist()


def test_a_mask_of_another_size_than_its_image_is_an_error(tmp_path: Path) -> None:
    category = one_image(tmp_path, Image.fromarray(SPOTS), size=(8, 9))
    with pytest.raises(DataError, match=r"mask\.png is 8x8, its image 8x9: .*bad\.png"):
        truth_of(category)


def test_a_mask_has_the_size_of_the_upright_image(tmp_path: Path) -> None:
    category = one_image(tmp_path, Image.fromarray(np.kron(SPOTS, np.ones((1, 2), np.uint8))))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (8, 16), 100).save(tmp_path / "bad.png", format="JPEG", exif=exif)  # upright 16x8
    assert (truth_of(category)[0] > 0).tolist() == (SPOTS > 0).tolist()


@pytest.mark.parametrize("kind", [k for k in BROKEN if BROKEN[k]] + ["empty"])
def test_a_mask_that_cannot_be_read_is_an_error_with_its_path(tmp_path: Path, kind: str) -> None:
    category = one_image(tmp_path, Image.fromarray(SPOTS))
    (tmp_path / "mask.png").write_bytes(BROKEN[kind])
    with pytest.raises(DataError, match=r"mask\.png cannot be read as a mask"):
        truth_of(category)


def test_a_jpeg_mask_is_refused_where_all_above_0_is_defect(tmp_path: Path) -> None:
    class Strict(MVTecAD):
        mask_above = 127

    category = one_image(tmp_path, Image.fromarray(np.kron(SPOTS, np.ones((8, 8), np.uint8))), format="JPEG")
    with pytest.raises(DataError, match=r"mask\.png cannot be read as a mask: JPEG blurs what is marked"):
        truth_of(category)
    assert truth_of(category, Strict())[0].any()


def test_without_masks_there_are_labels_and_no_regions(tmp_path: Path) -> None:
    category = one_image(tmp_path, Image.fromarray(SPOTS))
    bare = tuple(Sample(path=s.path, label=s.label, defect=s.defect) for s in category.test)
    category = Category(name="bottle", root=tmp_path, train=category.train, test=bare)
    truth = open_truth(MVTEC, category, "f", SMALL)
    assert truth.regions is None
    assert truth.label.tolist() == [True, False]


# --- the store --------------------------------------------------------------------------------------------


def stores() -> list[str]:
    return sorted(p.name for p in (cache_folder() / "images").iterdir() if p.suffix != ".lock")


def test_images_come_in_the_order_of_the_category_and_cannot_be_written(mvtec: Path) -> None:
    category = MVTEC.scan(mvtec, "bottle")
    done: list[int] = []
    images = open_images(MVTEC, category, "f", 16, done.append)
    assert images.train.shape == (10, 16, 16, 3)
    assert images.test.shape == (8, 16, 16, 3)
    for index, path in enumerate(category.train):
        assert images.train[index].tolist() == decode(path, 16).tolist()
    for index, sample in enumerate(category.test):
        assert images.test[index].tolist() == decode(sample.path, 16).tolist()
    assert sum(done) == 18
    with pytest.raises(ValueError, match="read-only"):
        images.train[0] = 0


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads that open images, in a process that may use one core of its machine."""
    threads: set[int] = set()
    opened = Image.open

    def noted(*given: Any, **named: Any) -> Image.Image:
        threads.add(threading.get_ident())
        return opened(*given, **named)

    monkeypatch.setattr(Image, "open", noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return threads


def test_a_store_is_decoded_by_as_many_threads_as_the_process_may_use(mvtec: Path, readers: set[int]) -> None:
    category = MVTEC.scan(mvtec, "bottle")
    readers.clear()
    open_images(MVTEC, category, "f", 16)
    assert len(readers) <= 2  # one for the training images, then one for the test images


def test_a_store_is_decoded_once_and_then_found(mvtec: Path) -> None:
    category = MVTEC.scan(mvtec, "bottle")
    assert not images_ready(MVTEC, category, "f", 16)
    open_images(MVTEC, category, "f", 16)
    assert images_ready(MVTEC, category, "f", 16)
    assert not images_ready(MVTEC, category, "f", 17)
    assert not images_ready(MVTEC, category, "g", 16)
    done: list[int] = []
    open_images(MVTEC, category, "f", 16, done.append)
    assert done == []


def test_a_changed_image_is_another_store(mvtec: Path) -> None:
    category = MVTEC.scan(mvtec, "bottle")
    before = open_images(MVTEC, category, fingerprint(MVTEC, category), 16).train[0].tolist()
    Image.new("L", (9, 9), 33).save(category.train[0])
    after = open_images(MVTEC, category, fingerprint(MVTEC, category), 16).train[0]
    assert before != after.tolist()
    assert np.unique(after).tolist() == [33]
    assert len(stores()) == 2


def test_many_that_start_together_decode_once_and_none_reads_half(tmp_path: Path) -> None:
    write_category(tmp_path, "bottle", train=24)
    category = MVTEC.scan(tmp_path, "bottle")
    expected = np.stack([decode(path, 32) for path in category.train])
    together = threading.Barrier(6)
    done: list[int] = []
    found: list[bool] = []

    def start() -> None:
        together.wait()
        images = open_images(MVTEC, category, "f", 32, done.append)
        found.append(bool((images.train == expected).all()))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6
    assert sum(done) == 24 + 8
    assert len(stores()) == 1


@pytest.mark.parametrize("part", ["train/good/005.png", "test/good/001.png"])
def test_a_failing_build_leaves_nothing_behind(mvtec: Path, part: str) -> None:
    path = mvtec / "bottle" / part
    path.write_bytes(path.read_bytes()[:200])
    category = MVTEC.scan(mvtec, "bottle")
    with pytest.raises(DataError, match=part):
        open_images(MVTEC, category, "f", 16)
    assert stores() == []
    Image.new("L", (40, 40), 9).save(path)
    assert open_images(MVTEC, category, "f", 16).test.shape == (8, 16, 16, 3)


def test_a_failing_truth_leaves_nothing_behind(tmp_path: Path) -> None:
    category = one_image(tmp_path, Image.fromarray(SPOTS), size=(8, 9))
    with pytest.raises(DataError):
        open_truth(MVTEC, category, "f", SMALL)
    assert stores() == []


def test_a_store_that_finds_no_space_is_an_error_and_leaves_nothing(mvtec: Path) -> None:
    category = MVTEC.scan(mvtec, "bottle")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            open_images(MVTEC, category, "f", 256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert stores() == []


FULL_DISK = """
import sys
from pathlib import Path
from kdbench.datasets.mvtec_ad import MVTecAD
from kdbench.data.store import open_images
dataset = MVTecAD()
try:
    open_images(dataset, dataset.scan(Path(sys.argv[1]), "bottle"), "f", 256)
except OSError as error:
    print(error.strerror)
print([p.name for p in (Path(sys.argv[2]) / "images").iterdir() if p.suffix != ".lock"])
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a file system of its own: Linux, unshare")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(mvtec: Path, tmp_path: Path) -> None:
    """A memory-mapped file that finds no space kills the process (SIGBUS), where a plain write raises."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=1M tmpfs "$1" || exit 77; shift; exec "$@"'
    python = [sys.executable, "-c", FULL_DISK, str(mvtec), str(disk)]
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", mount, "sh", str(disk), *python],
        env={**os.environ, "KDBENCH_CACHE": str(disk)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert done.stdout == "No space left on device\n[]\n", (done.returncode, done.stderr)
