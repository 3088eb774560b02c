"""MVTec's own evaluation of maps that we export, by a copy of its code that the user fetched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
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
    options = ["--dataset_base_dir", mvtec, "--anomaly_maps_dir", tmp_path / "maps"]
    options += ["--output_dir", tmp_path / "theirs", "--evaluated_objects", "bottle", "screw"]
    done = subprocess.run(
        [sys.executable, Path(folder) / SCRIPT, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads((tmp_path / "theirs/metrics.json").read_text())
    rows = pd.read_parquet(tmp_path / "r/cells").set_index("category")
    scores = pd.read_parquet(tmp_path / "r/scores")
    for category, row in rows.iterrows():
        assert row["aupro"] == pytest.approx(theirs[category]["au_pro"], abs=1e-4)
        # A maximum at the size of the method's input is no maximum of the larger map: the ranks may differ.
        own = scores[scores["category"] == category]
        step = 1 / (own["label"].sum() * (~own["label"]).sum())
        assert row["image_auroc"] == pytest.approx(
            theirs[category]["classification_au_roc"], abs=1e-4 + 2 * step
        )
        assert np.isfinite(row["aupro"])
