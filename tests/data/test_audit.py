"""The audit finds a planted shortcut, and none where the same images are dealt out by chance."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from kdbench.data.audit import audit, auroc_and_p, numbers_of, random_labellings, trivial_numbers
from kdbench.data.fingerprint import fingerprint, fingerprint_of
from kdbench.registry import get_dataset
from kdbench.reports.statistics import holm


def write(path: Path, seed: int, *, shift: float = 0, border: float = 0, size: int = 48) -> None:
    noise = np.random.default_rng(seed)
    pixels = 110 + noise.normal(0, 12, (size, size)) + noise.normal(0, 4) + shift
    pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = (pixels[:2] + border,) * 2 + (
        (pixels[:, :2] + border),
    ) * 2
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def category(root: Path, planted: dict[str, float], *, shuffled: bool = False):
    """Forty normal and forty defective images without any defect; `planted` goes to the defective ones."""
    for i in range(12):
        write(root / f"bottle/train/good/{i:03}.png", i)
    marked = np.arange(80) >= 40
    given = np.random.default_rng(1).permutation(marked) if shuffled else marked
    for i, (label, gets) in enumerate(zip(marked, given, strict=True)):
        folder = "broken" if label else "good"
        write(root / f"bottle/test/{folder}/{i:03}.png", 100 + i, **(planted if gets else {}))
        if label:
            mask = np.zeros((int(planted.get("size", 48)) if gets else 48,) * 2, np.uint8)
            mask[5:9, 5:9] = 255
            (root / "bottle/ground_truth/broken").mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / f"bottle/ground_truth/broken/{i:03}_mask.png")
    return get_dataset("mvtec_ad").scan(root, "bottle")


PLANTED = {
    "mean brightness": {"shift": 12},
    "brightness of the border": {"border": 25},
    "pixels of the image": {"size": 52},
}


@pytest.mark.parametrize("number", PLANTED)
def test_a_planted_shortcut_is_found(tmp_path, number):
    found = audit([category(tmp_path, PLANTED[number])], holm)
    flagged = {shortcut.number: shortcut for shortcut in found if shortcut.flagged}
    assert number in flagged
    assert flagged[number].auroc > 0.95


@pytest.mark.parametrize("number", PLANTED)
def test_the_same_images_with_shuffled_labels_have_none(tmp_path, number):
    found = audit([category(tmp_path, PLANTED[number], shuffled=True)], holm)
    assert found
    assert [shortcut for shortcut in found if shortcut.flagged] == []


def test_auroc_is_scikit_learns_and_p_that_of_all_labellings():
    values, label = (
        np.array([3.0, 1.0, 2.0, 2.0, 5.0, 0.5, 4.0, 2.5]),
        np.array([1, 0, 0, 1, 1, 0, 1, 0], bool),
    )
    auroc, p = auroc_and_p(values, label, random_labellings(label))
    assert auroc == pytest.approx(roc_auc_score(label, values), abs=1e-12)
    every = [
        roc_auc_score(np.isin(np.arange(8), chosen), values) for chosen in itertools.combinations(range(8), 4)
    ]
    exact = np.mean([abs(a - 0.5) >= abs(auroc - 0.5) - 1e-12 for a in every])
    assert p == pytest.approx(exact, abs=0.01)


def test_a_number_that_is_low_for_defects_is_flagged_as_well(tmp_path):
    found = audit([category(tmp_path, {"shift": -12})], holm)
    assert {s.number: round(s.auroc, 1) for s in found if s.flagged}["mean brightness"] == 0.0


def test_the_numbers_of_an_image_by_hand(tmp_path):
    pixels = np.zeros((100, 50), np.uint8)
    pixels[60:80, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    numbers, small = numbers_of(tmp_path / "a.png")
    assert numbers["mean brightness"] == pytest.approx(200 * 200 / 5000)
    assert numbers["brightness of the border"] == 0
    assert numbers["bright share"] == pytest.approx(200 / 5000)
    assert numbers["height of the bright part"] == pytest.approx(0.695)
    assert numbers["side of the bright part"] == pytest.approx(0.29)
    assert numbers["pixels of the image"] == 5000
    assert numbers["bytes of the file"] == (tmp_path / "a.png").stat().st_size
    assert small.shape == (1024,)


def test_a_constant_number_is_left_out_and_a_copy_of_a_training_image_is_at_distance_nought(tmp_path):
    found = category(tmp_path, {})
    values = trivial_numbers(found)
    assert "pixels of the image" not in values
    distance = "distance of the nearest training image"
    assert values[distance].min() > 1
    found.test[0].path.write_bytes(found.train[3].read_bytes())
    assert trivial_numbers(found)[distance][0] == pytest.approx(0, abs=1e-4)


def test_the_command_prints_what_is_flagged_and_writes_all(tmp_path, kdbench):
    category(tmp_path, PLANTED["mean brightness"])
    code, text = kdbench("datasets", "audit", "mvtec_ad", "--root", tmp_path, "--out", tmp_path / "a.csv")
    assert code == 0, text
    assert "mean brightness" in text
    assert "numbers tell normal from defective test images of 1 category better than chance" in text
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "category,number,image_auroc,p,p_holm"
    assert any(line.startswith('"bottle","mean brightness",0.9') for line in lines)


def test_the_brightness_of_the_real_screws_is_found(shared):
    screw = get_dataset("mvtec_ad").scan(shared / "data/mvtec_ad", "screw")
    found = {s.number: s for s in audit([screw], holm)}
    assert found["mean brightness"].auroc == 1.0
    assert found["mean brightness"].flagged


def test_the_command_leaves_rows_for_the_report(tmp_path, kdbench):
    own = category(tmp_path, PLANTED["mean brightness"])
    code, text = kdbench(
        "datasets", "audit", "mvtec_ad", "--root", tmp_path, "--results", tmp_path / "results"
    )
    assert code == 0, text
    rows = pd.read_parquet(tmp_path / "results/shortcuts/mvtec_ad.parquet").set_index("number")
    found = {one.number: one for one in audit([own], holm)}
    assert set(rows.index) == set(found)
    brightness = rows.loc["mean brightness"]
    assert (brightness["category"], brightness["dataset"]) == ("bottle", "mvtec_ad")
    assert brightness["image_auroc"] == found["mean brightness"].auroc
    assert brightness["flagged"]
    assert not rows["flagged"].all()
    assert brightness["fingerprint"] == fingerprint_of([fingerprint(get_dataset("mvtec_ad"), own)])
