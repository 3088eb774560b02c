"""A report of the size of a paper: fabricated rows of 5 methods, 2 settings, 27 categories and 5 seeds."""

import os
import sys
from pathlib import Path

import pytest
from fabricated import fabricate


@pytest.mark.slow
def test_the_report_of_a_whole_paper_takes_seconds_and_little_memory(tmp_path: Path) -> None:
    assert fabricate(tmp_path / "results") == 5 * 5 * (2 + 27)
    words = ["-m", "kdbench", "report", "--results", tmp_path / "results", "--out", tmp_path / "out"]
    pid = os.posix_spawn(sys.executable, [sys.executable, *map(str, words)], os.environ)
    _, status, used = os.wait4(pid, 0)  # of this process alone: the tests before have had larger ones
    assert status == 0
    text = (tmp_path / "out/leaderboard.md").read_text()
    assert "| 1 | fabricated_e | **" in text
    assert used.ru_utime + used.ru_stime < 60  # of the processor: half a minute where nothing else runs
    assert 1024 * used.ru_maxrss < 2**30
