"""What a shell completes, asked as bash asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.cli import app as cli

ROOT = Path(cli.__file__).parents[2]
SCRIPT = """
import sys
from kdbench.cli import app as cli
sys.argv = ['kdbench']
try:
    cli.main()
finally:
    heavy = {'torch', 'ray', 'pandas', 'timm', 'pyarrow'} & set(sys.modules)
    print(*heavy, file=sys.stderr)
"""


def completed(line, folder):
    """What a shell offers behind a line, and which large modules it loaded for that."""
    asked = {"_KDBENCH_COMPLETE": "complete_bash", "COMP_WORDS": line}
    asked |= {"COMP_CWORD": str(len(line.split(" ")) - 1), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=os.environ | asked, capture_output=True, text=True
    )
    return done.stdout.split(), done.stderr.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kdbench run --methods stf", ["stfpm"]),
        ("kdbench run --methods stfpm,rd", ["stfpm,rd4ad", "stfpm,rdpp"]),
        ("kdbench run --dataset mvtec_a", ["mvtec_ad", "mvtec_ad_2"]),
        ("kdbench run --categories w", ["wood"]),
        (
            "kdbench run --dataset mvtec_ad --categories wood,t",
            ["wood,tile", "wood,toothbrush", "wood,transistor"],
        ),
        ("kdbench run --dataset folder --root parts --categories b", ["bolt"]),
        ("kdbench run --dataset folder --root gone --categories b", []),
        ("kdbench run --dataset nothing --categories b", []),
        ("kdbench run --setting b", ["both"]),
        ("kdbench sweep dc", ["dcam"]),
        ("kdbench datasets check vi", ["visa"]),
        ("kdbench datasets audit btad --categories 0", ["01", "02", "03"]),
        ("kdbench score --dataset visa --categories cap", ["capsules"]),
        ("kdbench export --results mine 12", ["123"]),
        ("kdbench predict --results mine 4", ["456"]),
        ("kdbench export-maps out --results mine --cell 1", ["123"]),
    ],
)
def test_names_are_completed_without_anything_heavy(tmp_path, line, offered):
    (tmp_path / "parts/bolt/train/good").mkdir(parents=True)
    (tmp_path / "parts/nut/train/good").mkdir(parents=True)
    (tmp_path / "mine/detectors").mkdir(parents=True)
    for name in ("123", "456"):
        (tmp_path / f"mine/detectors/{name}.safetensors").touch()
    assert completed(line, tmp_path) == (offered, [])
