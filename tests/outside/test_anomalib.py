"""anomalib, trained and scored in its own environment: its numbers are those of `kdbench score`."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
WEIGHTS = "weights/resnet18_imagenet_layers1to3_bnfolded.pth"


@pytest.fixture(scope="module")
def peer() -> Path:
    """The Python of `make bench-peers`, of this checkout or of the one that this is a worktree of."""
    common = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--git-common-dir"], capture_output=True, text=True, check=False
    ).stdout.strip()
    for folder in (ROOT, (ROOT / common).parent):
        if (folder / ".venv-peers/bin/python").exists():
            return folder / ".venv-peers/bin/python"
    pytest.skip("no environment with anomalib: `make bench-peers` makes it")


@pytest.mark.slow
@pytest.mark.parametrize("model", [("stfpm", "--epochs", "2"), ("patchcore", "--coreset", "0.001")])
def test_its_numbers_are_ours(peer, shared, kdbench, tmp_path, model):
    data, maps = shared / "data/mvtec_ad", tmp_path / "maps"
    name, *more = model
    words = [ROOT / "tests/outside_anomalib.py", shared / WEIGHTS, "--root", data, "--category", "bottle"]
    words += ["--model", name, "--out", maps, *more]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([peer, *words], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    options = [
        "--name",
        "theirs",
        "--dataset",
        "mvtec_ad",
        "--root",
        data,
        "--csv",
        maps / "image_scores.csv",
    ]
    code, printed = kdbench("score", maps, *options, "--results", tmp_path / "r", "--out", tmp_path / "out")
    assert code == 0, printed
    (row,) = pd.read_parquet(tmp_path / "r/cells").to_dict("records")
    theirs = json.loads((maps / "anomalib.json").read_text())
    assert row["image_auroc"] == pytest.approx(theirs["image_AUROC"], abs=0.001)
    assert row["pixel_auroc"] == pytest.approx(theirs["pixel_AUROC"], abs=0.001)
    assert row["pixel_auroc"] > {"stfpm": 0.55, "patchcore": 0.9}[name]  # two epochs teach STFPM little


AUPIMO = """
import json, sys
import numpy as np, torch
from anomalib.metrics.pimo.functional import aupimo_scores
from kdbench.metrics.overlap import overlap

found = []
for seed in range(2):
    rng = np.random.default_rng(seed)
    masks = np.zeros((8, 256, 256), bool)
    for mask in masks[:4]:
        top, left, height, width = rng.integers(10, 100, 4)
        mask[top : top + height, left : left + width] = True
    maps = (rng.gamma(2, 1, masks.shape) + masks * rng.gamma(3, 2, masks.shape)).astype(np.float32)
    # The more steps its thresholds have, the nearer it comes to every score as a threshold.
    arrays = torch.from_numpy(maps), torch.from_numpy(masks)
    *_, classes, scores, _ = aupimo_scores(*arrays, num_thresholds=2_000_000)
    ours = overlap(maps[4:].ravel(), [own[mask] for own, mask in zip(maps[:4], masks[:4])])
    found.append([scores[classes == 1].tolist(), ours.per_image().tolist()])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_aupimo_is_that_of_anomalib(peer):
    words = [peer, "-c", AUPIMO]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for theirs, ours in json.loads(done.stdout.splitlines()[-1]):
        assert ours == pytest.approx(theirs, abs=1e-6)
        assert max(ours) > 0.05
