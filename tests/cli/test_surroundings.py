"""Commands in processes with unusual surroundings: no home folder, consoles without UTF-8."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import STFPM, TINY

UNKNOWN_USER = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def start(*words, prefix=(), without=(), **environment):
    """A finished process that ran a command of kdbench; `without` are variables that it does not have."""
    variables = {name: value for name, value in os.environ.items() if name not in without} | environment
    command = [*prefix, sys.executable, "-m", "kdbench", *map(str, words)]
    return subprocess.run(command, env=variables, capture_output=True, check=False)


def may_be_an_unknown_user() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNKNOWN_USER, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_be_an_unknown_user(), reason="this system maps no user to an unknown one")
@pytest.mark.parametrize(
    "words",
    [
        ("list", "backbones"),
        pytest.param(("doctor",), marks=pytest.mark.slow),
        pytest.param(("run", *STFPM, *TINY), marks=pytest.mark.slow),
    ],
)
def test_a_user_without_name_and_home_can_work(tmp_path, mvtec, words):
    more = ("--root", mvtec, "--results", tmp_path / "r", "--out", tmp_path / "o") if "run" in words else ()
    without = ("HOME", "USER", "LOGNAME", "KDBENCH_CACHE", "XDG_CACHE_HOME")
    done = start(*words, *more, prefix=UNKNOWN_USER, without=without, TMPDIR=str(tmp_path))
    home = tmp_path / "kdbench-54321"
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().splitlines() == [
        f"note: user 54321 has no home folder; it is {home} now. HOME or KDBENCH_CACHE chooses another"
    ]
    assert (home / ".cache/kdbench/images").is_dir() == ("run" in words)


def test_a_category_whose_name_this_console_cannot_read_is_refused_with_the_way_out(mvtec):
    (mvtec / "bottle").rename(mvtec / "Gehäuse 中")
    words = ("datasets", "check", "folder", "--root", mvtec, "--deep")
    done = start(*words, **ASCII)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    text = done.stdout.decode("ascii")
    assert "is not ascii. Set PYTHONUTF8=1, so that names are read as UTF-8" in " ".join(text.split())
    assert start(*words, **ASCII | {"PYTHONUTF8": "1"}).returncode == 0


def test_a_category_whose_name_is_no_text_is_refused_before_anything_runs(mvtec, tmp_path, kdbench):
    try:
        (mvtec / "bottle").rename(mvtec / os.fsdecode(b"bo\xe4"))
    except OSError:
        pytest.skip("this file system has no such names")
    words = ("--dataset", "folder", "--methods", "stfpm", "--root", mvtec, "--results", tmp_path / "r")
    code, text = kdbench("run", *words, *TINY)
    assert code == 2
    assert text == f"error: the name of the folder '{mvtec}/bo\\udce4' is not utf-8. Rename it\n"
    assert not Path(tmp_path / "r").exists()
