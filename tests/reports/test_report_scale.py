"""A report of the size of a paper: fabricated rows of 5 methods, 2 settings, 27 categories and 5 seeds."""

import subprocess
import sys
from pathlib import Path

import pytest
from fabricated import fabricate

# A process inherits the peak memory of the one that starts it, and this one has run many tests.
MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss)
"""


@pytest.mark.slow
def test_the_report_of_a_whole_paper_takes_seconds_and_little_memory(tmp_path: Path) -> None:
    assert fabricate(tmp_path / "results") == 5 * 5 * (2 + 27)
    words = ["-m", "kdbench", "report", "--results", tmp_path / "results", "--out", tmp_path / "out"]
    command = [sys.executable, "-c", MEASURED, sys.executable, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak_bytes = map(float, done.stdout.split())
    text = (tmp_path / "out/leaderboard.md").read_text()
    assert "| 1 | fabricated_e | **" in text
    assert seconds < 60  # of the processor: half a minute where nothing else runs
    assert 2**27 < peak_bytes < 2**30
