"""The interference probe: its composites by hand, and a whole probe of a small detector."""

import numpy as np
import pandas as pd
import pytest
from conftest import STFPM, TINY
from fabricated import row

from kdbench.engine.probe import AREA, _at_size, compose, probe
from kdbench.errors import RequestError
from kdbench.results.store import CELLS, DETECTORS, Results


def test_mixup_is_the_rounded_mean_and_cutpaste_changes_its_rectangle_only():
    own, others = np.full((40, 32, 32, 3), 100, np.uint8), np.full((5, 32, 32, 3), 51, np.uint8)
    made = compose(own, others, np.random.default_rng(0))
    assert (made.mixed == 76).all()  # 75.5, rounded up
    assert (made.pasted[made.where] == 51).all()
    assert (made.pasted[~made.where] == 100).all()
    shares = made.where.mean((1, 2))
    assert shares.min() >= 0.8 * AREA[0]
    assert shares.max() <= 1.2 * AREA[1]
    assert shares.std() > 0.01
    assert (own == 100).all()


def test_composites_follow_the_generator():
    own = np.random.default_rng(5).integers(0, 256, (6, 16, 16, 3), np.uint8)
    one, again, other = (compose(own, own[::-1], np.random.default_rng(s)) for s in (0, 0, 1))
    assert (one.pasted == again.pasted).all()
    assert (one.pasted != other.pasted).any()


def test_masks_are_resized_to_the_nearest_pixel():
    mask = np.zeros((1, 4, 4), bool)
    mask[0, 1, 2] = True
    grown = _at_size(mask, 8)
    assert grown[0, 2:4, 4:6].all()
    assert grown.sum() == 4
    assert (_at_size(mask, 4) == mask).all()


@pytest.fixture
def trained(kdbench, mvtec, tmp_path):
    words = ["run", *STFPM, "--root", mvtec, "--setting", "multiclass", *TINY]
    words += ["--results", tmp_path / "r", "--report", tmp_path / "out"]
    code, printed = kdbench(*words)
    assert code == 0, printed
    return ["probe", "--results", tmp_path / "r", "--root", mvtec, "--report", tmp_path / "out"]


def test_every_category_of_a_multiclass_detector_is_probed_once(trained, kdbench, tmp_path):
    code, printed = kdbench(*trained)
    assert code == 0, printed
    rows = pd.read_parquet(tmp_path / "r/probes")
    assert list(rows["category"]) == ["bottle", "screw"]
    assert list(rows["num_images"]) == [4, 4]
    values = rows[["mixup_image_auroc", "cutpaste_image_auroc", "cutpaste_pixel_auroc"]]
    assert ((values >= 0) & (values <= 1)).all().all()
    (file,) = (tmp_path / "r/probes").glob("*.parquet")
    written = file.stat().st_mtime_ns
    code, printed = kdbench(*trained)
    assert "0 detectors probed" in printed
    assert file.stat().st_mtime_ns == written
    report = (tmp_path / "out/leaderboard.md").read_text()
    assert "Cross-class interference" in report
    assert f"{100 * values['mixup_image_auroc'].mean():.2f}" in report


def other(results, cell_id, **changes):
    """A row of a multiclass cell whose detector was kept."""
    one = row(**{"cell_id": cell_id, "dataset": "mvtec_ad"} | changes)
    Results(results).write(CELLS, [one])
    Results(results).storage.write(DETECTORS.name(cell_id), b"")
    return one


def test_what_cannot_be_probed_is_left_out_and_named(trained, kdbench, tmp_path):
    results = tmp_path / "r"
    for seed in range(5):
        other(results, f"unkept-{seed}", seed=seed)
        (results / f"detectors/unkept-{seed}.safetensors").unlink()
    other(results, "single", categories=["a"])
    other(results, "changed", categories=["bottle", "screw"])
    code, printed = kdbench(*trained)
    assert code == 0, printed
    assert "1 detector probed" in printed
    (probed,) = (results / "probes").iterdir()
    assert "stfpm" in set(pd.read_parquet(probed)["method"])
    lines = [line.removeprefix("left out: ") for line in printed.splitlines() if line.startswith("left out")]
    named = "; ".join(f"fabricated_a on mvtec_ad, seed {seed} (unkept-{seed})" for seed in range(3))
    assert sorted(lines)[1:] == [
        "fabricated_a on mvtec_ad, seed 0 (single): a probe mixes categories, its detector has one: a",
        f"{named}; 2 more: no detector was kept; run it again without --discard-detectors (--redo all)",
    ]
    assert lines[-1].startswith("fabricated_a on mvtec_ad, seed 0 (changed): the images under ")
    code, printed = kdbench(*trained)  # as before, with nothing new
    assert code == 0
    assert "0 detectors probed" in printed


def test_one_root_is_not_that_of_several_datasets(tmp_path):
    rows = [other(tmp_path, name, dataset=name) for name in ("mvtec_ad", "visa")]
    with pytest.raises(RequestError, match="detectors of mvtec_ad, visa are to be probed"):
        probe(Results(tmp_path), rows, tmp_path, None, "cpu", lambda method, category: None)
    (tmp_path / "detectors/visa.safetensors").unlink()
    with pytest.raises(RequestError) as raised:  # of the other one alone it is the root, if a wrong one
        probe(Results(tmp_path), rows, tmp_path, None, "cpu", lambda method, category: None)
    assert len(raised.value.complaints) == 2


def test_if_no_detector_can_be_probed_it_is_an_error(trained, kdbench, mvtec, tmp_path):
    image = mvtec / "bottle/test/good/000.png"
    image.write_bytes((mvtec / "bottle/test/good/001.png").read_bytes())
    code, printed = kdbench(*trained)
    assert code == 2
    assert "are not those that it was trained on" in printed
    (detector,) = (tmp_path / "r/detectors").iterdir()
    detector.unlink()
    code, printed = kdbench(*trained)
    assert code == 2
    assert f"({detector.stem}): no detector was kept" in printed
