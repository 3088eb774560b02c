"""COCO, YOLO and CSV annotations become a folder that runs: masks, labels, splits, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from kdbench.data.annotations import Labelled, Shape
from kdbench.data.check import check
from kdbench.data.convert import Format, convert, marked
from kdbench.datasets.folder import Folder
from kdbench.errors import RequestError

SIZE = (16, 12)
SQUARE = [2.0, 3.0, 6.0, 3.0, 6.0, 8.0, 2.0, 8.0]  # x 2 to 6, y 3 to 8: 4 x 5 pixels
NORMAL = [f"n{i}.png" for i in range(10)]
RUNS = [12 * 2 + 3, 5, 7, 5, 12 * 12 + 4]  # columns 2 and 3, rows 3 to 7


def drawn(root: Path, *names: str) -> Path:
    for name in names:
        picture(root / name, size=SIZE, mode="RGB")
    return root


def coco(root: Path) -> dict[str, Any]:
    """Ten normal images, a polygon, an uncompressed RLE, and one image of two classes."""
    names = [*NORMAL, "a.png", "b.png", "sub/c.png"]
    drawn(root, *names)
    images = [
        {"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(names)
    ]
    drawing = {"polygon": [SQUARE], "runs": {"size": [12, 16], "counts": RUNS}}

    def annotation(number: int, image: int, kind: int, how: str) -> dict[str, Any]:
        return {"id": number, "image_id": image, "category_id": kind, "segmentation": drawing[how]}

    return {
        "images": images,
        "categories": [{"id": 1, "name": "scratch"}, {"id": 2, "name": "dent"}],
        "annotations": [
            annotation(1, 10, 1, "polygon"),
            annotation(2, 11, 2, "runs"),
            annotation(3, 12, 1, "polygon"),
            annotation(4, 12, 2, "runs"),
        ],
    }


def coco_file(root: Path, content: object = None) -> Path:
    file = root / "labels.json"
    content = coco(root) if content is None else content
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def yolo(root: Path, *, boxes: bool = False) -> Path:
    """Ten normal images, of which one has an empty file, and two with polygons or boxes."""
    drawn(root / "images", *NORMAL, "a.png", "b.png")
    (root / "labels").mkdir()
    (root / "labels/n0.txt").write_text("")
    for name, kind in (("a", 0), ("b", 1)):
        shares = [value / side for value, side in zip(SQUARE, SIZE * 4, strict=True)]
        line = [0.25, 0.4, 0.25, 0.4] if boxes else shares
        (root / f"labels/{name}.txt").write_text(f"{kind} {' '.join(map(str, line))}\n")
    (root / "data.yaml").write_text("train: images\nnames: [scratch, dent]\n")
    return root


ROWS = [
    "image,kind,polygon,split",
    *(f"{name},good,,{'train' if i < 6 else 'test'}" for i, name in enumerate(NORMAL)),
    f"a.png,scratch,{' '.join(map(str, SQUARE))},test",
    f"b.png,dent,{' '.join(map(str, SQUARE))},test",
]


def csv_file(root: Path, rows: list[str] | None = None) -> Path:
    drawn(root, *NORMAL, "a.png", "b.png")
    file = root / "labels.csv"
    file.write_text("\n".join(ROWS if rows is None else rows) + "\n")
    return file


def mask_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


def the_square() -> np.ndarray:
    expected = np.zeros(SIZE[::-1], bool)
    expected[3:8, 2:6] = True
    return expected


# What is written


@pytest.mark.parametrize("format", ["coco", "csv", "yolo"])
def test_images_that_the_source_does_not_list_are_named(tmp_path: Path, format: Format) -> None:
    write = {"coco": coco_file, "csv": csv_file, "yolo": yolo}[format]
    source = write(tmp_path / "source")
    assert convert(source, format, tmp_path / "first").left_out == ()
    (source.parent / "notes.txt").write_text("")
    for name in ("y.JPG", "x.png"):
        picture(source.parent / name, size=SIZE, mode="RGB")
    expected = () if format == "yolo" else tuple(str(source.parent / name) for name in ("x.png", "y.JPG"))
    assert convert(source, format, tmp_path / "second").left_out == expected


def test_coco_polygons_and_rle_become_masks(tmp_path: Path) -> None:
    out = tmp_path / "part"
    done = convert(coco_file(tmp_path / "source"), "coco", out)
    assert (done.num_train, done.num_good, done.kinds) == (8, 2, {"combined": 1, "dent": 1, "scratch": 1})
    assert done.masks
    assert (mask_of(out / "ground_truth/scratch/a_mask.png") == the_square()).all()
    of_runs = np.zeros(SIZE[::-1], bool)
    of_runs[3:8, 2:4] = True  # column by column, as RLE goes
    assert (mask_of(out / "ground_truth/dent/b_mask.png") == of_runs).all()
    assert (mask_of(out / "ground_truth/combined/sub_c_mask.png") == the_square()).all()
    assert (out / "test/scratch/a.png").read_bytes() == (tmp_path / "source/a.png").read_bytes()
    (found,) = check(Folder(), out, deep=True)
    assert (found.problems, found.remarks) == ((), (found.remarks[0],))  # two masks mark the same pixels
    assert {path.name for path in tmp_path.iterdir()} == {"source", "part", "cache"}


def test_yolo_polygons_are_shares_and_images_without_labels_are_normal(tmp_path: Path) -> None:
    out = tmp_path / "part"
    done = convert(yolo(tmp_path / "y"), "yolo", out)
    assert (done.num_train, done.num_good, done.kinds) == (8, 2, {"dent": 1, "scratch": 1})
    assert (mask_of(out / "ground_truth/scratch/a_mask.png") == the_square()).all()


def test_boxes_are_labels_and_no_masks(tmp_path: Path, kdbench: Callable[..., tuple[int, str]]) -> None:
    out = tmp_path / "part"
    code, said = kdbench(
        "datasets", "convert", yolo(tmp_path / "y", boxes=True), "--format", "yolo", "--out", out
    )
    assert code == 0
    assert "images with boxes: 2. A box is a label of its image and no mask" in said
    assert "8 normal images for training (80% by seed 0, the others test)" in said
    assert "2 normal and 2 defective test images: 1 dent, 1 scratch" in said
    assert not (out / "ground_truth").exists()
    (found,) = check(Folder(), out, deep=True)
    assert found.found is not None
    assert (found.problems, found.found.masks) == ((), 0)


def test_a_csv_may_say_which_images_are_for_training(tmp_path: Path) -> None:
    done = convert(csv_file(tmp_path / "c"), "csv", tmp_path / "part")
    assert (done.num_train, done.num_good, done.split_given) == (6, 4, True)
    assert sorted(p.name for p in (tmp_path / "part/train/good").iterdir()) == NORMAL[:6]


def test_the_seed_says_which_normal_images_are_for_training(tmp_path: Path) -> None:
    source = yolo(tmp_path / "y")

    def trained(out: str, **options: Any) -> set[str]:
        convert(source, "yolo", tmp_path / out, **options)
        return {path.name for path in (tmp_path / out / "train/good").iterdir()}

    assert trained("a", seed=1) == trained("b", seed=1)
    assert trained("c", seed=2) != trained("d", seed=1)
    assert len(trained("e", train_share=0.5)) == 5


def test_masks_can_be_left_out_where_some_images_have_boxes(tmp_path: Path) -> None:
    source = yolo(tmp_path / "y")
    (source / "labels/b.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    with pytest.raises(RequestError, match=r"1 of 2 defective images have boxes, first b\.png"):
        convert(source, "yolo", tmp_path / "part")
    done = convert(source, "yolo", tmp_path / "part", use_masks=False)
    assert (done.masks, done.boxes) == (False, 1)


def test_a_converted_folder_is_trained_on(tmp_path: Path, kdbench: Callable[..., tuple[int, str]]) -> None:
    from conftest import TINY

    convert(csv_file(tmp_path / "c"), "csv", tmp_path / "part")
    asked = ("--methods", "stfpm", "--dataset", "folder", "--root", tmp_path / "part")
    code, said = kdbench("run", *asked, *TINY, "--results", tmp_path / "r")
    assert code == 0, said


def test_the_centre_of_a_pixel_decides() -> None:
    def of(*points: tuple[float, float]) -> np.ndarray:
        shape = Shape(kind="dent", polygons=[list(points)])
        return marked(Labelled(path=Path("x"), name="x", size=(4, 3), shapes=[shape]))

    # By hand: centres lie at 0.5, 1.5, ...
    assert of((0, 0), (2, 0), (2, 1), (0, 1)).tolist() == [
        [True, True, False, False],
        4 * [False],
        4 * [False],
    ]
    assert of((0.6, 0), (1.4, 0), (1.4, 3), (0.6, 3)).sum() == 0
    assert of((0.6, 0), (1.6, 0), (1.6, 3), (0.6, 3)).sum(0).tolist() == [0, 3, 0, 0]
    assert of((-1, -1), (5, -1), (5, 4), (-1, 4)).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package
def test_compressed_rle_is_read_by_its_package_or_says_that_it_needs_it(tmp_path: Path) -> None:
    content = coco(tmp_path / "c")
    # what pycocotools' encode gives for rows 3 to 7 of columns 2 and 3
    content["annotations"][1]["segmentation"] = {"size": [12, 16], "counts": "k0570]4"}
    file = coco_file(tmp_path / "c", content)
    try:
        import pycocotools.mask  # type: ignore[import-not-found,import-untyped,unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(RequestError, match="annotation 2 is compressed RLE, which needs a package: `pip"):
            convert(file, "coco", tmp_path / "part")
        return
    convert(file, "coco", tmp_path / "part")
    assert mask_of(tmp_path / "part/ground_truth/dent/b_mask.png").sum() == 10
    content["annotations"][1]["segmentation"]["counts"] = "k05707^4"  # too many runs
    with pytest.raises(RequestError, match="annotation 2 is compressed RLE that cannot be read"):
        convert(coco_file(tmp_path / "c", content), "coco", tmp_path / "other")


# What is refused: one clear message each, and nothing is written


def changed(part: str, index: int, **values: object) -> Callable[[dict[str, Any]], object]:
    def change(content: dict[str, Any]) -> object:
        content[part][index] |= values
        return content

    return change


TWICE = "two categories have the id 1: scratch and hole"


def dropped(part: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: {name: value for name, value in content.items() if name != part}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: json.dumps(content)[:-9], "labels.json is no JSON"),
        (lambda content: [content], "has no list 'images' of objects"),
        (dropped("annotations"), "has no list 'annotations' of objects"),
        (changed("images", 0, id=3), "two images have the id 3: n0.png and n3.png"),
        (changed("images", 0, id=[3]), "has no id or no file_name"),
        (changed("images", 0, file_name="n3.png"), "the image n3.png is listed twice"),
        (changed("images", 0, file_name="gone.png"), "no image"),
        (changed("images", 0, file_name="../n0.png"), "is no path below"),
        (changed("images", 0, file_name="labels.json"), "is not an image file"),
        (changed("images", 0, width=99), "n0.png is 99x12 there, the file is 16x12"),
        (changed("annotations", 0, image_id=99), "annotation 1 is of the image 99, which is not listed"),
        (changed("annotations", 0, category_id=99), "annotation 1 has the category 99, which is not listed"),
        (changed("annotations", 0, segmentation=[[1, 2, 3, 4, 5]]), "has 5 numbers: a polygon has"),
        (changed("annotations", 0, segmentation=[[1, 2, 3, 4]]), "has 4 numbers: a polygon has"),
        (changed("annotations", 0, segmentation=[[1, 2, 99, 4, 3, 8]]), "has the point 99, 4 outside"),
        (changed("annotations", 0, segmentation=[[1, 2, "x", 4, 3, 8]]), "'x' is no number"),
        (changed("annotations", 0, segmentation=[[1, 2, float("nan"), 4, 3, 8]]), "nan is no number"),
        (changed("annotations", 0, segmentation=[3 * [1, 2]]), "a.png: its polygons hold no centre"),
        (changed("annotations", 0, segmentation=[[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]), "not shares of the size"),
        (changed("annotations", 0, segmentation=7), "neither polygons nor RLE"),
        (changed("annotations", 0, segmentation=[]), "annotation 1 has neither a segmentation nor a bbox"),
        (changed("annotations", 1, segmentation={"size": [12, 16], "counts": [9]}), "is RLE of 9 pixels"),
        (changed("annotations", 1, segmentation={"size": [9, 9], "counts": RUNS}), "is of 9x9, the image"),
        (
            lambda content: content | {"categories": [*content["categories"], {"id": 1, "name": "hole"}]},
            TWICE,
        ),
        (changed("categories", 0, name="a/b"), "the class 'a/b', which cannot name a folder"),
        (changed("categories", 0, name="good"), "the class 'good', which cannot name a folder"),
        (lambda content: content | {"annotations": []}, "none of 13 images has a defect"),
    ],
)
def test_a_broken_coco_file_has_one_clear_message(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    source = tmp_path / "c"
    file = coco_file(source, change(coco(source)))
    with pytest.raises(RequestError) as raised:
        convert(file, "coco", tmp_path / "part")
    first, *others = raised.value.complaints
    assert said in first
    # A class is named once for each of its images, a file that is no COCO file for each of its lists.
    assert all(first[-40:] == other[-40:] or "has no list" in other for other in others)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["c"]


def yolo_label(line: str) -> Callable[[Path], object]:
    return lambda root: (root / "labels/a.txt").write_text(line)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: (root / "labels/other.txt").write_text(""), "other.txt has no image"),
        (yolo_label("7 0.1 0.2 0.3 0.4"), "a.txt, line 1: no class '7'. Classes: 0, 1"),
        (yolo_label("scratch 0.1 0.2 0.3 0.4"), "no class 'scratch'"),
        (yolo_label("0 0.1 0.2 0.3"), "has 3 numbers: a polygon has"),
        (yolo_label("0 10 20 30 40"), "has numbers outside of 0 to 1"),
        (yolo_label("0 0.1 0.2 x 0.4"), "'x' is no number"),
        (lambda root: (root / "classes.txt").write_text("dent\n\nhole\n"), "classes.txt: line 2 is empty"),
        (lambda root: (root / "data.yaml").unlink(), "has neither classes.txt nor data.yaml"),
        (lambda root: (root / "data.yaml").write_text("train: x"), "data.yaml has no `names`"),
        (lambda root: (root / "data.yaml").write_text("names: [a"), "data.yaml is no YAML"),
        (lambda root: (root / "labels").rename(root / "gone"), "no folder"),
        (lambda root: picture(root / "images/a.bmp", size=SIZE), "would share"),
        (lambda root: (root / "images/n1.png").write_bytes(b"no"), "n1.png cannot be read as an image"),
        (lambda root: (root / "labels/a.txt").write_bytes(b"\xff\xfe0\0"), "a.txt: the text is UTF-16"),
    ],
)
def test_a_broken_yolo_folder_has_one_clear_message(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    source = yolo(tmp_path / "y")
    spoil(source)
    with pytest.raises(RequestError) as raised:
        convert(source, "yolo", tmp_path / "part")
    (complaint,) = raised.value.complaints
    assert said in complaint
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("image,kind", "file,kind", "has no column image"),
        ("polygon,split", "Polygon,split", "the column 'Polygon' is not read. Call it 'polygon'"),
        (
            "n0.png,good,,train",
            "n0.png,good,,val",
            "line 2: the split of n0.png is 'val' and not train or test",
        ),
        ("polygon,split", "split,split", "the column 'split' occurs twice"),
        ("n0.png,good,,train", "n0.png,good", "line 2 has not 4 fields"),
        ("n0.png,good,,train", "gone.png,good,,train", "no image"),
        ("n0.png,good,,train", "n0.png,good,1 2 3,train", "line 2: n0.png is normal and has a polygon"),
        ("n1.png,good,,train", "n0.png,good,,test", "n0.png is for 'test' here and for 'train' before"),
        (
            "n1.png,good,,train",
            "n0.png,dent,1 1 4 1 4 4,train",
            "normal in one line and defective in another",
        ),
        ("b.png,dent", "b.png,dent,x", "line 13 has not 4 fields"),
        ("b.png,dent,2.0", "b.png,dent,two", "line 13: 'two' is no number"),
        ("8.0,test\nb.png", "8.0,train\nb.png", "a.png is defective and for training"),
    ],
)
def test_a_broken_csv_has_one_clear_message(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = "\n".join(ROWS)
    assert old in text
    file = csv_file(tmp_path / "c", text.replace(old, new).split("\n"))
    with pytest.raises(RequestError) as raised:
        convert(file, "csv", tmp_path / "part")
    assert said in raised.value.complaints[0]
    assert not (tmp_path / "part").exists()


def test_nothing_is_overwritten_and_all_complaints_come_at_once(tmp_path: Path) -> None:
    content = coco(tmp_path / "c")
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    content["annotations"][1]["image_id"] = 99
    file = coco_file(tmp_path / "c", content)
    (tmp_path / "part").mkdir()
    with pytest.raises(RequestError) as raised:
        convert(file, "coco", tmp_path / "part", train_share=2)
    first, second, third, fourth = raised.value.complaints
    assert "is there already: nothing is overwritten" in first
    assert "is 2: between 0 and 1" in second
    assert "annotation 1 has 3 numbers" in third
    assert "annotation 2 is of the image 99" in fourth
    assert not list((tmp_path / "part").iterdir())


def test_many_complaints_are_counted(tmp_path: Path) -> None:
    content = coco(tmp_path / "c")
    content["annotations"] = [content["annotations"][0] | {"id": i, "image_id": 99} for i in range(50)]
    with pytest.raises(RequestError) as raised:
        convert(coco_file(tmp_path / "c", content), "coco", tmp_path / "part")
    assert len(raised.value.complaints) == 31
    assert raised.value.complaints[-1] == "and 20 more complaints"


def test_an_image_that_exif_turns_is_refused(tmp_path: Path) -> None:
    file = coco_file(tmp_path / "c")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "c/a.png").save(tmp_path / "c/a.png", exif=exif)
    with pytest.raises(RequestError, match=r"a\.png is turned by EXIF: coordinates have two meanings"):
        convert(file, "coco", tmp_path / "part")


def test_images_of_one_name_in_two_folders_are_named(tmp_path: Path) -> None:
    content = coco(tmp_path / "c")
    drawn(tmp_path / "c", "sub_c.png")
    content["images"].append({"id": 50, "file_name": "sub_c.png"})
    content["annotations"] += [content["annotations"][i] | {"id": 50 + i, "image_id": 50} for i in (0, 1)]
    with pytest.raises(RequestError, match=r"sub/c\.png and sub_c\.png would both be test/combined/sub_c"):
        convert(coco_file(tmp_path / "c", content), "coco", tmp_path / "part")
