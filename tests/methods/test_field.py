"""The whole field, ten methods, on real images in both settings, with an epoch at 64 px."""

from pathlib import Path

import pytest

from kdbench.registry import method_facts, method_names
from kdbench.results.store import CELLS, read
from kdbench.weights import EMBEDDED, file_sha256

USUAL = [name for name in method_names() if not method_facts(name).needs]


@pytest.mark.slow
def test_ten_methods_run_on_real_images_in_both_settings(kdbench, shared: Path, tmp_path: Path):
    """Dinomaly has a small random transformer, EfficientAD a teacher of three steps: their rows say so."""
    images = shared / "data/mvtec_ad"
    if not images.is_dir():
        pytest.skip("no folder shared/data/mvtec_ad beside the checkout")
    file = tmp_path / "pdn_small.safetensors"
    words = ("--images", images / "bottle/train", "--teacher", EMBEDDED, "--steps", 3, "--batch-size", 1)
    code, text = kdbench("distil-teacher", *words, "--out", file)
    assert code == 0, text

    common = ["--dataset", "mvtec_ad", "--root", images, "--categories", "bottle,grid", "--setting", "both"]
    common += ["--epochs", 1, "--set", "all.image_size=64", "--set", "all.batch_size=16", "--no-latency"]
    common += [
        "--executor",
        "local",
        "--cpus-per-cell",
        1,
        "--results",
        tmp_path / "r",
        "--out",
        tmp_path / "o",
    ]
    for run in (
        ("--methods", ",".join(USUAL), "--backbone", EMBEDDED),
        ("--methods", "dinomaly", "--backbone", "tiny_vit", "--set", "dinomaly.crop=56"),
        ("--methods", "efficientad", "--weights", file),
    ):
        code, text = kdbench("run", *run, *common)
        assert code == 0, text

    rows = read(tmp_path / "r", CELLS).to_pylist()
    expected = [
        (m, s, c) for m in method_names() for s in ("multiclass", "oneclass") for c in ("bottle", "grid")
    ]
    assert sorted((row["method"], row["setting"], row["category"]) for row in rows) == sorted(expected)
    assert {row["status"] for row in rows} == {"ok"}
    for row in rows:
        assert 0 <= row["image_auroc"] <= 1
        assert 0 <= row["pixel_auroc"] <= 1
    marked = {row["method"]: row["teacher_source"] for row in rows}
    assert marked["dinomaly"] == "fixed random transformer"
    assert marked["efficientad"] == f"file {file.name}, distilled from {EMBEDDED} in 3 steps of 1 images"
    assert {row["teacher_sha256"] for row in rows if row["method"] == "efficientad"} == {file_sha256(file)}
    assert (tmp_path / "o/leaderboard.md").exists()
