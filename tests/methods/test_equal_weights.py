"""anomalib's methods and ours give the same maps with the same weights."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers/bin/python"  # anomalib has an environment of its own


@pytest.mark.slow
def test_maps_are_those_of_anomalib_with_the_same_weights():
    here = importlib.util.find_spec("anomalib") is not None
    if not here and not PEERS.exists():
        pytest.skip("anomalib is not installed: make equal-weights installs it")
    command = [sys.executable if here else str(PEERS), "tests/benchmarks/equal_weights.py", "--quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("| rd4ad | resnet18 |") == 3
