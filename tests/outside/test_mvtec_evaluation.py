"""MVTec's own evaluation of maps that we export, by a copy of its code that the user fetched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import STFPM, TINY

SCRIPT = "evaluate_experiment.py"


@pytest.mark.slow
def test_mvtecs_evaluation_gives_our_numbers(kdbench, mvtec, tmp_path):
    folder = os.environ.get("KDBENCH_MVTEC_EVALUATION")
    if not folder or not (Path(folder) / SCRIPT).exists():
        pytest.skip(f"KDBENCH_MVTEC_EVALUATION names no folder with MVTec's {SCRIPT}")
    where = ["--results", tmp_path / "r", "--root", mvtec]
    run = ["run", *STFPM, *TINY, *where, "--preset", "mvtec_original", "--out", tmp_path / "report"]
    for words in (run, ["export-maps", tmp_path / "maps", *where, "--original-size"]):
        code, printed = kdbench(*words)
        assert code == 0, printed
    # MVTec's code takes the largest value of the resized map as the score of an image: so does `score`.
    again = ["score", tmp_path / "maps", *where, "--name", "again", "--dataset", "mvtec_ad"]
    code, printed = kdbench(*again, "--preset", "mvtec_original", "--out", tmp_path / "report")
    assert code == 0, printed
    options = ["--dataset_base_dir", mvtec, "--anomaly_maps_dir", tmp_path / "maps"]
    options += ["--output_dir", tmp_path / "theirs", "--evaluated_objects", "bottle", "screw"]
    done = subprocess.run(
        [sys.executable, Path(folder) / SCRIPT, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((tmp_path / "theirs/metrics.json").read_text())
    rows = pd.read_parquet(tmp_path / "r/cells").set_index(["method", "category"])
    for category in ("bottle", "screw"):
        ours, scored = rows.loc["stfpm", category], rows.loc["again", category]
        assert ours["aupro"] == pytest.approx(theirs[category]["au_pro"], abs=1e-6)
        assert scored["aupro"] == pytest.approx(theirs[category]["au_pro"], abs=1e-6)
        assert scored["image_auroc"] == pytest.approx(theirs[category]["classification_au_roc"], abs=1e-12)
