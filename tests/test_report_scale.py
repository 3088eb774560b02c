"""A report of the size of a paper: fabricated rows of 5 methods, 2 settings, 27 categories and 5 seeds."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from fabricated import fabricate


@pytest.mark.slow
def test_the_report_of_a_whole_paper_takes_seconds_and_little_memory(tmp_path: Path) -> None:
    assert fabricate(tmp_path / "results") == 5 * 5 * (2 + 27)
    words = ["-m", "kdbench", "report", "--results", tmp_path / "results", "--out", tmp_path / "out"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor: what else runs on the machine must not fail a test.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak_bytes = 1024 * after.ru_maxrss
    text = (tmp_path / "out/leaderboard.md").read_text()
    assert "| 1 | fabricated_e | **" in text
    # About 5 on an idle core; twice or three times that where two tests share it.
    assert seconds < 30
    assert peak_bytes < 2**30
