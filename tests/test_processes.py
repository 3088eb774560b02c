"""Processes that kdbench starts do not import the program that calls it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = """
from pathlib import Path

from kdbench.datasets._draw.shots import draw_shots, shots

print("the script runs")
draw_shots(Path("drawn"), [*shots("gear")[:1], *shots("wood")[:1]], seed=0, workers=2)
"""


def test_a_script_without_a_guard_draws_its_images_and_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    call = [sys.executable, script]
    done = subprocess.run(call, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the script runs\n"), done.stderr
    assert len([*(tmp_path / "drawn").rglob("*.png")]) == 2
