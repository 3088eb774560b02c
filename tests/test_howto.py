"""The commands of the pages for users are executed, each page from its first command to its last."""

import os
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from conftest import SMALL, replaced, write_category
from test_own_method import install
from test_site import CODE, COMMAND, SHELL

from kdbench.results.store import TRIALS, read

ROOT = Path(__file__).parents[1]
QUICK = {"run": (*SMALL, "--executor", "local"), "sweep": SMALL}


def shown(page):
    """The commands of a page, as lists of words after `kdbench`."""
    code = "\n".join(CODE.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))
    lines = [shlex.split(line.replace("\\\n", " "), comments=True) for line in COMMAND.findall(code)]
    return [[*takewhile(lambda word: word not in SHELL, words)] for words in lines]


@pytest.fixture
def execute(tmp_path):
    """Execute a command that a page shows, smaller: with a tiny network and two epochs, in a folder."""

    def call(words, *changes):
        small = replaced(words, [*QUICK.get(words[0], ()), *changes])
        path = f"{tmp_path / 'site'}{os.pathsep}{ROOT}"
        done = subprocess.run(
            [sys.executable, "-m", "kdbench", *map(str, small)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    return call


@pytest.mark.slow
def test_own_images_in_ten_minutes(execute, tmp_path):
    pytest.importorskip("onnxscript", reason="needs kdbench[deploy]")
    write_category(tmp_path, "parts", train=20, good=10, bad=10)
    *commands, last = shown("own-images.md")
    assert [words[0] for words in commands] == ["datasets", "run", "run", "report", "export"]
    text = "".join(map(execute, commands))
    assert "1 of 1 category good" in text
    assert "cells: 3 ok" in text
    assert (tmp_path / "reports/parts/report.html").is_file()
    (file,) = (tmp_path / "detectors").glob("*.onnx")
    assert last[1].startswith("detectors/")
    assert "20 images scored" in execute([last[0], f"detectors/{file.name}", *last[2:]])
    assert len((tmp_path / "predictions/predictions.csv").read_text().splitlines()) == 21


@pytest.mark.slow
def test_a_method_of_your_own(execute, tmp_path):
    write, run = shown("own-method.md")
    execute(write)
    install(tmp_path / "kdbench-my_method", "my_method", tmp_path / "site")
    text = execute(run, "--categories", "wood,mesh", "--no-latency")
    assert "my_method: I-AUROC" in text
    assert "cells: 2 ok" in text


@pytest.mark.slow
def test_the_main_commands_about_reports(execute, tmp_path):
    write_category(tmp_path / "mvtec", "bottle", seed=1)
    usual = ("--methods", "stfpm", "--dataset", "mvtec_ad", "--root", tmp_path / "mvtec", "--no-latency")
    for folder in ("results-before", "results-after"):
        execute(["run", "--results", folder], *usual)
    (compare,) = (words for words in shown("reports.md") if words[0] == "compare")
    assert "0 regressions" in execute(compare)
    assert (tmp_path / "reports/compare/compare.md").is_file()


@pytest.mark.slow
def test_a_sweep_and_what_it_chose(execute, tmp_path):
    write_category(tmp_path / "mvtec", "bottle", train=10, good=3, bad=3)
    usual = ("--root", tmp_path / "mvtec", "--categories", "bottle", "--trials", 2, "--max-concurrent", 1)
    search, train, audit, *measured = shown("sweeps.md")
    assert [*search, "--audit"] == audit
    text = execute(search, *usual)
    (folder,) = (tmp_path / "results/sweeps").iterdir()
    assert text.endswith(f"/results/sweeps/{folder.name}/best.toml\n")
    chosen = [word.replace("ID", folder.name) for word in train]
    assert chosen == ["run", "--config", f"results/sweeps/{folder.name}/best.toml"]
    assert "cells: 1 ok" in execute(chosen, "--no-latency")
    execute(audit, *usual)
    trials = read(tmp_path / "results", TRIALS).to_pylist()
    ended = {one["trial_id"] for one in trials if one["status"] == "ok" and not one["stopped_early"]}
    assert len(trials) == 2
    assert {path.stem for path in (tmp_path / "results/audits").iterdir()} == ended != set()
    assert [*(tmp_path / "results/sweeps").iterdir()] == [folder]
    assert [words[:2] for words in measured] == [["sweep", "stfpm"], ["sweep", "dcam"]]  # long; they parse
