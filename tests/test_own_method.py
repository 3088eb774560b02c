"""`kdbench new-method` writes a package whose method is found by its entry point and runs."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY

from kdbench.method import Method

ROOT = Path(__file__).parents[1]


def install(package: Path, name: str, site: Path) -> None:
    """What `pip install -e` leaves: the module on the path and the entry point in its metadata."""
    facts = site / f"kdbench_{name}-0.1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kdbench-{name}\nVersion: 0.1.0\n")
    points = (package / "pyproject.toml").read_text().split('entry-points."')[1]
    group, lines = points.split('"]\n', 1)
    (facts / "entry_points.txt").write_text(f"[{group}]\n" + lines.split("\n\n")[0].replace('"', "") + "\n")
    (site / f"kdbench_{name}.py").write_text((package / f"kdbench_{name}.py").read_text())


@pytest.mark.slow
def test_a_new_method_runs_as_it_is_written(kdbench, mvtec, tmp_path):
    code, printed = kdbench("new-method", "my_method", "--folder", tmp_path)
    assert code == 0
    assert "kdbench-my_method" in printed
    install(tmp_path / "kdbench-my_method", "my_method", tmp_path / "site")
    words = [
        "--methods",
        "my_method",
        "--dataset",
        "mvtec_ad",
        "--root",
        mvtec,
        "--categories",
        "bottle",
        *TINY,
    ]
    command = [sys.executable, "-m", "kdbench", "run", *map(str, words), "--results", "r"]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = pd.read_parquet(tmp_path / "r/cells").to_dict("records")
    assert (row["method"], row["status"]) == ("my_method", "ok")
    assert "my_method" in (tmp_path / "reports/out/leaderboard.md").read_text()
    file = tmp_path / "site/kdbench_my_method.py"
    assert row["method_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_text(file.read_text() + "\n# another version\n")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = "note: my_method: another version of its files trained 1 of the finished cells, which are kept"
    assert said in " ".join((done.stdout + done.stderr).split())


def test_the_template_names_every_part_that_a_method_may_have(kdbench, tmp_path):
    assert kdbench("new-method", "my_method", "--folder", tmp_path)[0] == 0
    written = (tmp_path / "kdbench-my_method/kdbench_my_method.py").read_text()
    given = {
        "trained",
        "train",
        "detector_state",
        "load_detector",
        "recipe",
        "holds_out",
    }  # nobody writes these
    parts = {name for name in vars(Method) if name[0].islower()} - given
    assert {"prepare", "calibrate", "teach", "scheduler_every", "needs"} <= parts
    assert {name for name in parts if name not in written} == set()


@pytest.mark.parametrize("name", ["Stfpm", "my-method", "class", "_x", "../evil", "stfpm", ""])
def test_unusable_names_are_refused(kdbench, tmp_path, name):
    code, printed = kdbench("new-method", "--folder", tmp_path, "--", name)
    assert code == 2
    assert "error:" in printed
    assert not list(tmp_path.glob("kdbench-*"))


def test_a_folder_that_exists_is_not_overwritten(kdbench, tmp_path):
    assert kdbench("new-method", "mine", "--folder", tmp_path)[0] == 0
    written = (tmp_path / "kdbench-mine/kdbench_mine.py").read_text()
    code, printed = kdbench("new-method", "mine", "--folder", tmp_path)
    assert code == 2
    assert "exists already" in printed
    assert (tmp_path / "kdbench-mine/kdbench_mine.py").read_text() == written
