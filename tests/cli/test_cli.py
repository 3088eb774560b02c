"""The command line from end to end: exit codes, what is kept, what is run again, and what is said."""

import importlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from conftest import TINY, replaced, write_image
from fabricated import row as fabricated_row
from fabricated import trial_row as trial

from kdbench import registry
from kdbench.cli import app as cli
from kdbench.reports.leaderboard import assemble
from kdbench.reports.rows import load
from kdbench.reports.tables import to_markdown
from kdbench.results.store import CELLS, LATENCY, TRIALS, End, Results, read

Call = Callable[..., tuple[int, str]]

# A method that misbehaves on request, in the second epoch of training.
BRITTLE = '''"""STFPM that misbehaves."""

import resource
import shutil
from pathlib import Path
from typing import ClassVar

import torch

from kdbench.methods.stfpm import STFPM


class Brittle(STFPM):
    """Does what `act` says."""

    name = "brittle"
    paper = "none"
    fidelity = "after the abstract"
    departures: ClassVar[tuple[str, ...]] = ()

    class Config(STFPM.Config):
        act: str = "nothing"
        path: str = ""

    def __init__(self, config, teacher):
        super().__init__(config, teacher)
        self.steps = 0

    def loss(self, images, taught):
        self.steps += 1
        if self.steps == 3:
            getattr(self, self.config.act)()
        return super().loss(images, taught)

    def nothing(self):
        pass

    def interrupt(self):
        raise KeyboardInterrupt

    def oom(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    def host_oom(self):
        raise MemoryError

    def broken(self):
        raise RuntimeError("first line\\nsecond line [/bold] {x}")

    def full_disk(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def spoil(self):
        for path in sorted(Path(self.config.path).glob("*.png")):
            shutil.copy(path, path.with_name("zzz.png"))


METHOD = Brittle
'''


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in a folder of their own, where `results` and `reports/out` are made."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def run(kdbench: Call, mvtec: Path) -> Call:
    """`kdbench run` of STFPM on the tiny tree, with more words."""
    usual = ("--methods", "stfpm", "--dataset", "mvtec_ad", "--root", mvtec, *TINY)
    return lambda *words: kdbench("run", *replaced(usual, words))


@pytest.fixture
def brittle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Call) -> Iterator[Call]:
    """The same of a method of another package that does what `act` says, in cells of one category."""
    site = tmp_path / "site"
    (site / "brittle-1.0.dist-info").mkdir(parents=True)
    (site / "brittle_method.py").write_text(BRITTLE)
    (site / "brittle-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: brittle\nVersion: 1\n")
    (site / "brittle-1.0.dist-info/entry_points.txt").write_text(
        "[kdbench.methods]\nbrittle = brittle_method\n"
    )
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    registry._method_modules.cache_clear()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def call(*words: object) -> tuple[int, str]:
        try:
            return run(*replaced(("--methods", "brittle", "--categories", "bottle"), words))
        finally:  # of `full_disk`; not at the fixture's end, pytest writes its own log before
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    yield call
    registry._method_modules.cache_clear()
    sys.modules.pop("brittle_method", None)


def rows(folder: str = "results") -> list[dict[str, Any]]:
    return read(Path(folder), CELLS).to_pylist()


def files(folder: str = "results") -> list[str]:
    """Files of cells, so not: pictures of inputs, and a file per run, named by its time."""
    found = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] not in ("inputs", "runs"))


def files_of(*rows: dict[str, Any]) -> list[str]:
    """What a results folder holds after these rows: all but the rows only of cells that succeeded."""
    ids = {row["cell_id"]: row["status"] for row in rows}
    well = [cell for cell, status in ids.items() if status == "ok"]
    kept = [f"detectors/{cell}.safetensors" for cell in well]
    kept += [
        f"{part}/{cell}.parquet" for part in ("curves", "normals", "pictures", "scores") for cell in well
    ]
    return sorted([f"cells/{cell}.parquet" for cell in ids] + kept)


def times(folder: str = "results") -> dict[str, int]:
    return {name: (Path(folder) / name).stat().st_mtime_ns for name in files(folder)}


def traceless(text: str) -> bool:
    return "Traceback" not in text


# --- a run that ends well ---------------------------------------------------------------------------------


def test_a_run_writes_rows_scores_and_a_report(run: Call) -> None:
    code, text = run()
    assert code == 0, text
    found = rows()
    assert [(r["category"], r["status"], r["seed"]) for r in sorted(found, key=lambda r: r["category"])] == [
        ("bottle", "ok", 0),
        ("screw", "ok", 0),
    ]
    assert files() == files_of(*found)
    assert "2 cells: 0 finished before, 2 to run" in text
    assert "cells: 2 ok" in text
    assert "report: reports/out/leaderboard.md" in text
    assert "stfpm" in Path("reports/out/leaderboard.md").read_text()


def test_a_row_says_what_it_is_from(run: Call, mvtec: Path) -> None:
    run("--categories", "bottle", "--seeds", "3")
    (row,) = rows()
    assert (row["num_train"], row["num_heldout"], row["num_test"], row["num_defective"]) == (8, 2, 8, 4)
    assert (row["num_steps"], row["num_regions"], row["evaluation_size"]) == (4, 4, 256)
    assert len(row["epoch_loss"]) == len(row["epoch_heldout"]) == 2
    assert row["best_epoch"] == 1 + row["epoch_heldout"].index(min(row["epoch_heldout"]))
    assert (row["selection"], row["profile"], row["preset"], row["seed"]) == ("heldout", "paper", "exact", 3)
    assert (row["backbone"], row["teacher_sha256"]) == ("tiny", "tiny-v1")
    assert json.loads(row["config"])["image_size"] == 32
    assert (row["categories"], len(row["dataset_categories"]), row["texture"]) == (["bottle"], 15, False)
    assert all(0 <= row[name] <= 1 for name in ("image_auroc", "pixel_auroc", "aupro", "aupro_05", "mad"))
    assert all(row[name] > 0 for name in ("train_s", "evaluate_s", "flops", "num_parameters"))
    assert row["error"] is None


def test_per_image_scores_are_kept(run: Call) -> None:
    import pyarrow.parquet as pq

    run("--categories", "bottle")
    (row,) = rows()
    scores = pq.read_table(f"results/scores/{row['cell_id']}.parquet").to_pylist()
    assert [(s["image"], s["label"], s["defect"]) for s in scores] == [
        *((f"bottle/test/broken/{i:03}.png", True, "broken") for i in range(4)),
        *((f"bottle/test/good/{i:03}.png", False, "good") for i in range(4)),
    ]
    pairs = [(a, b) for a in scores[:4] for b in scores[4:]]
    wins = sum(
        (a["image_score"] > b["image_score"]) + 0.5 * (a["image_score"] == b["image_score"]) for a, b in pairs
    )
    assert row["image_auroc"] == pytest.approx(wins / 16)


def test_detectors_that_are_not_kept_cannot_be_timed_and_that_is_said(run: Call, kdbench: Call) -> None:
    words = ("--categories", "bottle", "--latency")
    note = "note: detectors that are not kept (--discard-detectors) cannot be timed"
    for more in (("--dry-run",), ()):
        code, text = run(*words, "--discard-detectors", *more)
        assert code == 0, text
        assert text.count("timed") == text.count(note) == 1
    assert kdbench("report", "--rows", "shared")[0] == 0
    code, text = run(*words, "--results", "others", "--published", "shared")
    assert code == 0
    assert "note: 1 detector not kept, and so not timed; first: stfpm on mvtec_ad, oneclass" in text
    (row,) = rows("others")
    Results("others").write(LATENCY, [{"cell_id": row["cell_id"], "device": "cuda", "device_name": "a"}])
    assert "cannot be timed" not in run(*words, "--results", "others")[1]
    assert "cannot be timed" not in run(*words, "--discard-detectors", "--no-latency", "--seeds", "1")[1]


@pytest.mark.slow
def test_pictures_are_kept_unless_they_are_discarded(run: Call) -> None:
    assert run("--categories", "bottle", "--discard-pictures")[0] == 0
    assert not Path("results/pictures").exists()
    assert not Path("results/inputs").exists()
    assert len(list(Path("results/curves").iterdir())) == 1
    Path("grid.toml").write_text("keep_pictures = false\n")
    assert run("--seeds", "1", "--categories", "bottle", "--config", "grid.toml")[0] == 0
    assert not Path("results/pictures").exists()
    assert run("--seeds", "2", "--categories", "bottle")[0] == 0
    assert len(list(Path("results/pictures").iterdir())) == len(list(Path("results/inputs").iterdir())) == 1


def test_the_same_command_runs_nothing_again(run: Call) -> None:
    run("--categories", "bottle")
    before = times()
    code, text = run("--categories", "bottle")
    assert code == 0
    assert "1 cell: 1 finished before, 0 to run" in text
    assert "cells: 1 ok" in text
    assert times() == before


def test_the_same_command_goes_on_with_what_is_missing(run: Call) -> None:
    run("--categories", "screw")
    before = times()
    code, text = run()
    assert code == 0
    assert "2 cells: 1 finished before, 1 to run" in text
    assert sorted(row["category"] for row in rows()) == ["bottle", "screw"]
    assert {name: times()[name] for name in before} == before


def test_what_ended_well_among_published_rows_is_taken_over(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle")
    assert kdbench("report", "--rows", "shared")[0] == 0
    words = ("--results", "others", "--published", "shared")

    _, text = run(*words, "--dry-run")
    assert "1 of 2 cells to run" in text
    assert not Path("others").exists()

    code, text = run(*words)
    assert code == 0
    assert "1 cell taken over from shared" in text
    assert "2 cells: 1 finished before, 1 to run" in text
    taken = [row for row in rows("others") if row["category"] == "bottle"]
    assert taken == rows()
    (file,) = Path("results/scores").iterdir()
    assert pq.read_table(Path("others/scores", file.name)).equals(pq.read_table(file))
    assert "taken over" not in run(*words)[1]


def test_failed_cells_of_published_rows_are_run(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle", "--set", "stfpm.lr=1e30")
    assert kdbench("report", "--rows", "shared")[0] == 0
    words = ("--categories", "bottle", "--set", "stfpm.lr=1e30", "--results", "others")
    _, text = run(*words, "--published", "shared")
    assert "1 cell: 0 finished before, 1 to run" in text


def test_published_rows_are_no_results_folder(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle")
    kdbench("report", "--rows", "shared")
    code, text = run("--categories", "bottle", "--results", "shared")
    assert code == 2
    assert "shared has rows of `kdbench report --rows`" in text
    assert [path.name for path in Path("shared/cells").iterdir()] == ["rows.parquet"]
    code, text = run("--published", "shared", "--redo", "all")
    assert code == 2
    assert "drop one of them" in text
    code, text = run("--published", "nowhere")
    assert code == 2
    assert "cannot read results in nowhere" in text


def test_published_rows_that_cannot_be_copied_are_named(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle")
    kdbench("report", "--rows", "shared")
    scores = Path("shared/scores/rows.parquet")
    scores.unlink()
    scores.mkdir()  # even root cannot read a folder
    code, text = run("--categories", "bottle", "--results", "others", "--published", "shared")
    assert code == 2
    assert "cannot copy rows of shared to others: " in text


def test_a_multiclass_cell_has_a_row_per_category(run: Call) -> None:
    code, _ = run("--setting", "multiclass")
    assert code == 0
    multi = rows()
    assert sorted(row["category"] for row in multi) == ["bottle", "screw"]
    assert {tuple(row["categories"]) for row in multi} == {("bottle", "screw")}
    assert {row["num_train"] for row in multi} == {16}
    assert len({row["cell_id"] for row in multi}) == 1


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(run: Call) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("--categories", "bottle", "--results", folder, "--seeds", seed)
    first, second, third = (rows(folder)[0] for folder in "abc")
    assert first["epoch_loss"] == second["epoch_loss"] != third["epoch_loss"]
    assert first["cell_id"] == second["cell_id"] != third["cell_id"]
    assert first["pixel_auroc"] == second["pixel_auroc"]


def test_a_grid_from_a_clean_folder_gives_the_same_tables_and_a_deleted_cell_comes_back_equal(
    run: Call, kdbench: Call, mvtec: Path
) -> None:
    """Both settings, probed; only what was timed may differ."""

    def tables(folder: str) -> dict[str, str]:
        found = [table for section in assemble(load(folder)) for table in section.tables]
        timed = ("Latency on", "Training on")
        return {table.title: to_markdown(table) for table in found if not table.title.startswith(timed)}

    words = ("--methods", "dcam,dskd", "--setting", "both", "--no-latency")

    def made(folder: str) -> str:
        code, said = run(*words, "--results", folder)
        assert code == 0
        assert kdbench("probe", "--results", folder, "--root", mvtec)[0] == 0
        return said

    made("one")
    made("other")
    first = tables("one")
    assert any(title.startswith("Cross-class interference") for title in first)
    assert tables("other") == first

    lost = {
        row["cell_id"] for row in rows("other") if row["method"] == "dskd" and row["category"] == "bottle"
    }
    for cell_id in lost:
        Path(f"other/cells/{cell_id}.parquet").unlink()
    assert "6 cells: 4 finished before, 2 to run" in made("other")
    assert tables("other") == first


def test_redo_all_runs_what_ended_well_again(run: Call) -> None:
    run("--categories", "bottle")
    before = times()
    code, text = run("--categories", "bottle", "--redo", "all")
    assert code == 0
    assert "1 cell: 0 finished before, 1 to run" in text
    assert times().keys() == before.keys()
    assert all(times()[name] > before[name] for name in before)


@pytest.mark.parametrize("redo", [(), ("--redo", "all")])
def test_what_another_run_ends_meanwhile_is_not_run_again(
    run: Call, monkeypatch: pytest.MonkeyPatch, redo: tuple[str, ...]
) -> None:
    run("--categories", "bottle")
    before, look = times(), Results.ends
    (file,) = Path("results/cells").iterdir()
    theirs = file.rename("theirs")

    def and_then_it_ends(results: Results, cell_ids: Iterable[str]) -> dict[str, End]:
        found = look(results, cell_ids)
        theirs.rename(file)
        return found

    monkeypatch.setattr(Results, "ends", and_then_it_ends)
    code, text = run("--categories", "bottle", *redo)
    assert code == 0
    assert "1 cell: 0 finished before, 1 to run" in text
    assert "cells: 1 ok" in text
    assert times() == before


def test_folders_may_have_names_that_look_like_markup(run: Call) -> None:
    code, text = run("--categories", "bottle", "--results", "[/x] r", "--report", "[/bold] [red]out")
    assert code == 0, text
    assert "report: [/bold] [red]out/leaderboard.md" in text
    assert run("--categories", "bottle", "--results", "[/x] r", "--dry-run", "--seeds", "7")[0] == 0


def test_images_below_a_strange_path_run(run: Call, mvtec: Path) -> None:
    strange = mvtec.rename(mvtec.with_name("mit Leerzeichen, 'ü' [red] ]"))
    assert run("--root", strange, "--categories", "bottle")[0] == 0


def test_file_names_that_are_not_utf8_are_refused_or_run_but_do_not_crash(run: Call, mvtec: Path) -> None:
    path = mvtec / "bottle/test/good/000.png"
    try:
        path.rename(os.fsdecode(os.fsencode(path.parent) + b"/\xff.png"))
    except OSError:
        pytest.skip("this file system has no such names")
    code, text = run("--categories", "bottle")
    assert code in (0, 2), text
    assert traceless(text)


# --- a cell that ends badly -------------------------------------------------------------------------------


def test_a_training_that_diverges_is_a_failed_row(run: Call) -> None:
    words = ("--categories", "bottle", "--set", "stfpm.lr=1e30", "--set", "all.precision=fp32")
    code, text = run(*words)
    assert code == 1
    (row,) = rows()
    assert (row["status"], row["category"], row["image_auroc"]) == ("failed", "bottle", None)
    assert row["error"].startswith("Traceback")
    assert "TrainingDiverged" in row["error"]
    assert "a lower learning rate may help" in text
    assert "cells: 1 failed" in text
    assert "--redo failed" in text
    assert traceless(text)
    assert files() == files_of(row)


def test_a_failed_cell_is_not_run_again_unless_asked_for(brittle: Call) -> None:
    assert brittle("--set", "brittle.act=broken,nothing")[0] == 1
    before = times()
    code, text = brittle("--set", "brittle.act=broken,nothing")
    assert code == 1
    assert "2 cells: 2 finished before, 0 to run" in text
    assert "cells: 1 failed, 1 ok" in text or "cells: 1 ok, 1 failed" in text
    assert times() == before
    code, text = brittle("--set", "brittle.act=broken,nothing", "--redo", "failed")
    assert code == 1
    assert "2 cells: 1 finished before, 1 to run" in text
    (failed,) = [row["cell_id"] for row in rows() if row["status"] == "failed"]
    assert [name for name in times() if times()[name] != before[name]] == [f"cells/{failed}.parquet"]


@pytest.mark.parametrize(
    ("act", "status", "said"),
    [
        ("oom", "oom", "CUDA out of memory"),
        ("host_oom", "oom", "MemoryError"),
        ("broken", "failed", "first line"),
    ],
)
def test_what_goes_wrong_in_a_method_is_a_row_with_its_traceback_and_the_others_go_on(
    brittle: Call, act: str, status: str, said: str
) -> None:
    code, text = brittle("--set", f"brittle.act={act},nothing")
    assert code == 1
    assert said in text
    assert traceless(text)
    by_act = {json.loads(row["config"])["act"]: row for row in rows()}
    assert {name: row["status"] for name, row in by_act.items()} == {act: status, "nothing": "ok"}
    assert "brittle_method.py" in by_act[act]["error"]
    assert said in by_act[act]["error"]


def test_a_cell_that_takes_too_long_is_a_timeout_row(run: Call) -> None:
    code, text = run("--categories", "bottle", "--timeout", "0.000001")
    assert code == 1
    (row,) = rows()
    assert row["status"] == "timeout"
    assert "--timeout" in row["error"]
    assert "cells: 1 timeout" in text


def test_a_failed_multiclass_cell_has_a_hole_for_every_category(brittle: Call) -> None:
    brittle("--set", "brittle.act=broken", "--setting", "multiclass", "--categories", "bottle,screw")
    assert sorted((row["category"], row["status"]) for row in rows()) == [
        ("bottle", "failed"),
        ("screw", "failed"),
    ]


def test_data_that_changes_during_the_run_is_a_failed_row(brittle: Call, mvtec: Path) -> None:
    code, _ = brittle(
        *("--categories", "bottle,screw", "--set", "brittle.act=spoil"),
        *("--set", f"brittle.path={mvtec / 'screw/train/good'}"),
    )
    assert code == 1
    by_category = {row["category"]: row for row in rows()}
    assert by_category["bottle"]["status"] == "ok"
    assert by_category["screw"]["status"] == "failed"
    assert "changed since the run was planned" in by_category["screw"]["error"]


def test_a_redone_cell_that_fails_keeps_no_scores_of_before(run: Call) -> None:
    """Whoever joins scores to rows would see scores of a cell that has no numbers."""
    run("--categories", "bottle")
    assert run("--categories", "bottle", "--redo", "all", "--timeout", "0.000001")[0] == 1
    (row,) = rows()
    assert row["status"] == "timeout"
    assert files() == files_of(row)


# --- interruptions and full disks -------------------------------------------------------------------------


def test_an_interruption_loses_only_the_cell_that_runs(brittle: Call) -> None:
    words = ("--set", "brittle.act=nothing,interrupt")
    code, text = brittle(*words)
    assert code == 130
    assert "interrupted: 1 of 2 cells finished and kept; the same command resumes" in text
    assert traceless(text)
    (row,) = rows()
    assert row["status"] == "ok"
    assert files() == files_of(row)
    before = times()
    code, text = brittle(*words)
    assert code == 130
    assert "2 cells: 1 finished before, 1 to run" in text
    assert times() == before


@pytest.mark.parametrize(
    "step", ["kdbench.grid.grid.plan", "kdbench.grid.grid.prepare", "kdbench.cli.run.write"]
)
def test_an_interruption_outside_of_the_cells_has_the_same_code(
    run: Call, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step, interrupted)
    code, text = run("--categories", "bottle")
    assert code == 130
    assert traceless(text)


def test_a_disk_that_becomes_full_keeps_what_is_whole(brittle: Call) -> None:
    words = ("--set", "brittle.act=nothing,full_disk")
    code, text = brittle(*words)
    assert code == 1
    assert "cannot write results in results: " in text
    assert "1 of 2 cells finished and kept; the same command resumes" in text
    assert traceless(text)
    (row,) = rows()
    assert files() == files_of(row)


# --- a wrong request --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "stfmp"), "error: no method 'stfmp'. Did you mean 'stfpm'?"),
        (("--dataset", "mvtec"), "error: no dataset 'mvtec'. Did you mean 'mvtec_ad'?"),
        (("--categories", "botle"), "error: no mvtec_ad category 'botle'. Did you mean 'bottle'?"),
        (("--categories", "metal nut"), "error: no mvtec_ad category 'metal nut'. Did you mean 'metal_nut'?"),
        (("--setting", "oneclas"), "error: no setting 'oneclas'. Did you mean 'oneclass'?"),
        (("--set", "stfpm.lrr=1"), "error: stfpm.lrr: no key 'lrr'. Did you mean 'lr'?"),
        (("--set", "lr=1"), "error: --set 'lr=1' is not METHOD.KEY=VALUE"),
        (("--seeds", "one"), "error: seeds.0='one': input should be a valid integer"),
        (("--seeds", "-1"), "seed"),
        (("--seeds", str(2**63)), "seed"),
        (("--epochs", "0"), "error: stfpm.epochs=0: input should be greater than or equal to 1"),
        (("--timeout", "nan"), "error: timeout=nan: input should be greater than 0"),
        (("--weights", "gone.pth"), "error: no weights file 'gone.pth'"),
        (("--device", "cuda:99"), "error: no device 'cuda:99'"),
        (("--config", "gone.toml"), "error: gone.toml: No such file or directory"),
        (("--epochs", "many"), "--epochs"),
        (("--eopchs", "3"), "--eopchs"),
    ],
)
def test_a_wrong_request_is_one_message_and_runs_nothing(
    run: Call, words: tuple[str, ...], said: str
) -> None:
    code, text = run(*words)
    assert code == 2
    assert said in text
    assert traceless(text)
    assert not Path("results").exists()


def test_all_complaints_are_printed(run: Call) -> None:
    code, text = run("--methods", "stfmp", "--setting", "x", "--device", "abacus", "--preset", "x")
    assert code == 2
    assert text.count("error: ") == 4


def test_weights_that_are_not_weights_are_found_before_anything_is_trained(run: Call, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    path.write_text("<html>404</html>")
    code, text = run("--backbone", "resnet18.tv_in1k", "--weights", path)
    assert code == 2
    assert f"error: {path} is not a weights file: " in text
    assert traceless(text)
    assert files() == []


def test_an_image_that_is_cut_off_is_found_before_anything_is_trained(run: Call, mvtec: Path) -> None:
    for part in ("bottle/test/broken/002.png", "screw/train/good/001.png"):
        path = mvtec / part
        path.write_bytes(path.read_bytes()[:500])
    code, text = run()
    assert code == 2
    assert f"error: {mvtec / 'bottle/test/broken/002.png'} cannot be read as an image" in text
    assert f"error: {mvtec / 'screw/train/good/001.png'} cannot be read as an image" in text
    assert traceless(text)
    assert files() == []


def _wrong_size(path: Path) -> None:
    write_image(path, 3, size=39)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("spoil", [_wrong_size, _cut_off])
def test_a_wrong_mask_is_found_before_anything_is_trained_also_the_second_time(
    run: Call, mvtec: Path, spoil: Callable[[Path], None]
) -> None:
    path = mvtec / "bottle/ground_truth/broken/001_mask.png"
    spoil(path)
    for _ in range(2):
        code, text = run("--categories", "bottle")
        assert code == 2
        assert f"error: {path}" in text
        assert traceless(text)
        assert files() == []


def test_a_missing_mask_is_found_before_anything_is_trained(run: Call, mvtec: Path) -> None:
    path = mvtec / "bottle/ground_truth/broken/001_mask.png"
    path.unlink()
    code, text = run()
    assert code == 2
    assert str(path) in text
    assert text.count("error: ") == 1
    assert not Path("results").exists()


@pytest.mark.parametrize("results", ["a-file", "a-file/below", "/proc/kdbench"])
def test_results_that_cannot_be_written_are_found_before_anything_is_trained(run: Call, results: str) -> None:
    Path("a-file").write_text("precious")
    code, text = run("--results", results)
    assert code == 2
    assert f"error: cannot write results in {results}: " in text
    assert traceless(text)
    assert Path("a-file").read_text() == "precious"


@pytest.mark.parametrize("option", ["--results", "--published"])
def test_a_folder_without_a_name_is_not_the_current_one(run: Call, option: str) -> None:
    """What an unset shell variable gives."""
    code, text = run(option, "")
    assert code == 2
    assert f"error: {option[2:]}='': string should have at least 1 character" in text
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("status", "--results", ""),
        ("report", "--results", ""),
        ("report", "--results", "file://"),
        ("probe", "--results", ""),
        ("compare", "results", ""),
        ("compare", "", "results"),
    ],
)
def test_nothing_is_read_from_a_folder_without_a_name(kdbench: Call, words: tuple[str, ...]) -> None:
    Results("results").write(CELLS, [fabricated_row()])
    Results(".").write(CELLS, [fabricated_row()])
    code, text = kdbench(*words)
    assert code == 2
    assert "names no folder" in text


@pytest.mark.parametrize("cache", ["a-file", "/proc/kdbench"])
@pytest.mark.parametrize("dataset", ["mvtec_ad", "synthetic"])
def test_a_cache_that_cannot_be_written_is_one_message(
    run: Call, kdbench: Call, monkeypatch: pytest.MonkeyPatch, cache: str, dataset: str
) -> None:
    Path("a-file").write_text("precious")
    monkeypatch.setenv("KDBENCH_CACHE", cache)
    call = (
        run if dataset == "mvtec_ad" else lambda: kdbench("run", "--methods", "stfpm", "--backbone", "tiny")
    )
    code, text = call()
    assert code == 2
    assert f"error: cannot write in the cache folder {cache}: " in text
    assert text.endswith("KDBENCH_CACHE chooses another\n")
    assert traceless(text)


def test_a_damaged_file_of_an_asked_cell_is_named(run: Call) -> None:
    run("--categories", "bottle")
    (path,) = Path("results/cells").iterdir()
    path.write_bytes(b"PAR1")
    code, text = run("--categories", "bottle")
    assert code == 2
    assert f"error: {path} is damaged" in text
    assert "Delete it: the cell will run again" in text


def test_a_file_that_cannot_be_read_is_a_complaint_and_not_called_damaged(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle")
    (path,) = Path("results/cells").iterdir()
    path.unlink()
    path.mkdir()  # even root cannot read a folder
    for words in (("status",), ("compare", "results", "results"), ("report",), ("probe",)):
        code, text = kdbench(*words)
        assert code == 2
        assert text.startswith("error: cannot ")
        assert f"Is a directory: '{path}'" in text
    code, text = run("--categories", "bottle")
    assert code == 2
    assert "error: cannot read results in results: " in text
    assert "damaged" not in text


@pytest.mark.parametrize("words", [("--dry-run", "--seeds", "1"), ("--seeds", "1")])
def test_a_damaged_file_of_another_cell_is_named(run: Call, words: tuple[str, ...]) -> None:
    run("--categories", "bottle")
    path = Path("results/cells/abc.parquet")
    path.write_bytes(b"PAR1")
    code, text = run("--categories", "bottle", *words)
    assert code == 2
    assert f"{path} is damaged" in text
    assert traceless(text)


# --- --dry-run --------------------------------------------------------------------------------------------


def test_a_dry_run_shows_the_cells_and_runs_nothing(run: Call) -> None:
    code, text = run("--dry-run", "--seeds", "0,1")
    assert code == 0
    assert text.count("to run ") >= 4
    assert re.search(r"4 of 4 cells to run, about [\d.]+ s with local: ", text)
    assert not Path("results").exists()


@pytest.mark.parametrize("words", [("--dry-run",), ()])
def test_what_this_machine_cannot_run_is_refused(run: Call, words: tuple[str, ...]) -> None:
    code, text = run("--cpus-per-cell", "6400", *words)
    assert code == 2
    assert "error: no node has 6400 CPUs, 0 GPUs for a cell\nerror: the cluster has " in text
    assert not Path("results").exists()
    assert run("--memory-per-cell", "1e6", *words)[0] == 2


def test_a_dry_run_knows_what_ended_and_estimates_the_rest(run: Call) -> None:
    run("--categories", "bottle")
    before = times()
    code, text = run("--dry-run")
    assert code == 0
    assert re.search(r"1 of 2 cells to run, about [\d.]+ s with local: ", text)
    assert times() == before


# --- the other commands -----------------------------------------------------------------------------------


def test_list_shows_everything(kdbench: Call) -> None:
    code, text = kdbench("list")
    assert code == 0
    for word in ("stfpm", "arXiv:2103.04257", "mvtec_ad", "CC BY-NC-SA 4.0", "synthetic", "resnet18.tv_in1k"):
        assert word in text


@pytest.mark.parametrize(
    ("what", "word"),
    [("methods", "stfpm"), ("datasets", "transistor"), ("backbones", "wide_resnet50_2.tv_in1k")],
)
def test_list_shows_a_part(kdbench: Call, what: str, word: str) -> None:
    code, text = kdbench("list", what)
    assert code == 0
    assert word in text


def test_list_says_family_year_and_licence_of_every_method(kdbench: Call) -> None:
    code, text = kdbench("list", "methods")
    assert code == 0
    line = next(line for line in text.splitlines() if "arXiv:2201.10703" in line)
    assert [cell.strip() for cell in line.split("│")][1:6] == [
        "reverse",
        "rd4ad",
        "2022",
        "arXiv:2201.10703",
        "MIT",
    ]
    assert "transformer: teacher and student are transformers\n  dinomaly: needs the weights" in text


def test_doctor_says_what_is_there_and_what_to_do(
    kdbench: Call, mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mvtec.rename(mvtec.with_name("mvtec_ad"))
    monkeypatch.setenv("KDBENCH_DATA", str(mvtec.parent))
    code, text = kdbench("doctor")
    assert code == 0
    for word in ("torch", "python", "precision auto", "cache", "2 of 15 categories", "KDBENCH_WEIGHTS"):
        assert word in text


@pytest.mark.parametrize(("num_threads", "advised"), [(2, False), (3, True)])
def test_doctor_says_when_torch_has_more_threads_than_the_container_has_cores(
    kdbench: Call, monkeypatch: pytest.MonkeyPatch, num_threads: int, advised: bool
) -> None:
    monkeypatch.setattr("kdbench.machine.cores", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: num_threads)
    _, text = kdbench("doctor")
    assert ("OMP_NUM_THREADS=2" in text) is advised


@pytest.mark.parametrize("cache", ["a-file", "a-file/below", "/proc/kdbench"])
def test_doctor_finds_a_cache_that_cannot_be_written(
    kdbench: Call, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    Path("a-file").touch()
    monkeypatch.setenv("KDBENCH_CACHE", cache)
    code, text = kdbench("doctor")
    assert code == 1
    assert "set KDBENCH_CACHE to a folder that you can write" in text


def test_doctor_shows_any_path(kdbench: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "[/x] cache"))
    code, text = kdbench("doctor")
    assert code == 0
    assert "[/x] cache" in text.replace("\n", "")


def test_a_report_of_nothing_but_failed_cells_shows_the_holes(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle", "--timeout", "0.000001")
    code, text = kdbench("report")
    assert code == 0
    assert "1 timeout" in text
    assert "1 timeout" in Path("reports/out/leaderboard.md").read_text()


def test_a_report_of_nothing_says_how_to_get_results(kdbench: Call) -> None:
    code, text = kdbench("report", "--results", "empty")
    assert (code, text) == (2, "error: no results in empty: `kdbench run --results empty` writes them\n")


def test_a_report_can_be_written_later_and_elsewhere(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle")
    Path("reports/out/leaderboard.md").unlink()
    code, text = kdbench("report", "--out", "elsewhere")
    assert code == 0
    assert "report: elsewhere/report.html" in text
    assert "stfpm" in Path("elsewhere/leaderboard.md").read_text()


def test_a_report_names_the_export_with_the_options_that_it_needs(
    run: Call, kdbench: Call, mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("--categories", "bottle", "--results", "mine")
    command = "kdbench export --best image_auroc --results mine"
    assert kdbench("report", "--results", "mine")[1].endswith(f"{command} --root FOLDER\n")
    mvtec.rename(mvtec.parent / "mvtec_ad")
    monkeypatch.setenv("KDBENCH_DATA", str(mvtec.parent))
    assert kdbench("report", "--results", "mine")[1].endswith(f"{command}\n")


def test_a_report_that_cannot_be_written_is_an_error(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle")
    Path("a-file").touch()
    code, text = kdbench("report", "--out", "a-file")
    assert code == 2
    assert text.startswith("error: cannot write the report in a-file: ")


def test_what_a_report_writes_beside_it_and_cannot_is_an_error(kdbench: Call) -> None:
    Results("results").write(CELLS, [fabricated_row()])
    Path("a-file").touch()
    code, text = kdbench("report", "--rows", "a-file")
    assert code == 2
    assert "error: cannot write rows in a-file: " in text
    page = Path("a" * 250)  # a temporary file beside it has too long a name
    page.write_text("<!-- table: What is missing -->\n<!-- /table -->\n")
    code, text = kdbench("report", "--into", page)
    assert code == 2
    assert f"error: cannot fill {page}: " in text


def test_a_sweep_alone_has_a_report_and_rows_to_share_but_no_other_tables(kdbench: Call) -> None:
    Results("results").write(TRIALS, [trial(0, 0.5)])
    Path("page.md").write_text("<!-- table: a -->\n<!-- /table -->\n")
    code, text = kdbench("report", "--rows", "shared", "--into", "page.md")
    assert code == 2
    assert "report: reports/out/report.html" in text
    assert "Sweep of stfpm" in Path("reports/out/leaderboard.md").read_text()
    assert read("shared", TRIALS).equals(read("results", TRIALS))
    assert "no table 'a'" in text
    assert text.count("error: ") == 1


def test_a_report_of_a_sweep_alone_that_cannot_be_written_is_an_error(kdbench: Call) -> None:
    Results("results").write(TRIALS, [trial(0, 0.5)])
    Path("a-file").touch()
    code, text = kdbench("report", "--out", "a-file")
    assert code == 2
    assert text.startswith("error: cannot write the report in a-file: ")


def test_a_report_of_a_damaged_file_names_it(run: Call, kdbench: Call) -> None:
    run("--categories", "bottle")
    Path("results/cells/abc.parquet").write_bytes(b"PAR1 and more that is not Parquet")
    code, text = kdbench("report")
    assert code == 2
    assert "results/cells/abc.parquet is damaged" in text


def test_the_options_of_run_are_frozen() -> None:
    """Scripts of other people use them: a name that goes is a breaking change."""
    command = typer.main.get_command(cli.app).commands["run"]  # type: ignore[attr-defined]
    assert sorted(
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    ) == [
        "--address",
        "--backbone",
        "--categories",
        "--checkpoint-every",
        "--compile",
        "--config",
        "--cpus-per-cell",
        "--dataset",
        "--device",
        "--discard-detectors",
        "--discard-pictures",
        "--doubt-large-masks",
        "--dry-run",
        "--epochs",
        "--evaluate-exported",
        "--executor",
        "--gpus-per-cell",
        "--hold-out",
        "--json",
        "--keep-detectors",
        "--keep-pictures",
        "--large-masks",
        "--latency",
        "--measure-every",
        "--memory-per-cell",
        "--methods",
        "--no-evaluate-exported",
        "--no-latency",
        "--out",
        "--precision",
        "--preset",
        "--profile",
        "--published",
        "--quiet",
        "--redo",
        "--report",
        "--results",
        "--root",
        "--runtime-precision",
        "--runtimes",
        "--seeds",
        "--set",
        "--setting",
        "--split",
        "--timeout",
        "--wait",
        "--wait-for-gpus",
        "--weights",
    ]


def test_the_options_of_sweep_are_frozen() -> None:
    command = typer.main.get_command(cli.app).commands["sweep"]  # type: ignore[attr-defined]
    options = sorted(
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    )
    assert [option for option in options if option.startswith("-")] == [
        "--address",
        "--audit",
        "--backbone",
        "--categories",
        "--config",
        "--cpus-per-trial",
        "--dataset",
        "--device",
        "--discard-detectors",
        "--epochs",
        "--gpus-per-trial",
        "--json",
        "--keep-detectors",
        "--max-concurrent",
        "--objective",
        "--out",
        "--precision",
        "--profile",
        "--published",
        "--quiet",
        "--report",
        "--report-every",
        "--results",
        "--root",
        "--scheduler",
        "--search",
        "--seeds",
        "--selection",
        "--set",
        "--setting",
        "--space",
        "--split",
        "--trials",
        "--weights",
    ]


def test_every_option_and_command_is_documented() -> None:
    group = typer.main.get_command(cli.app)
    assert {"run", "report", "list", "doctor"} <= set(group.commands)  # type: ignore[attr-defined]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("words", [["--help"], ["list", "methods"], ["run", "--help"]])
def test_looking_around_loads_neither_torch_nor_ray_nor_pandas(words: list[str]) -> None:
    script = (
        "import sys, contextlib, io\n"
        "from kdbench.cli import app as cli\n"
        f"sys.argv = ['kdbench', *{words!r}]\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "    cli.main()\n"
        "assert len(said.getvalue()) > 100\n"
        "print(*{'torch', 'torchvision', 'timm', 'ray', 'pandas', 'scipy', 'pyarrow'} & set(sys.modules))"
    )
    root = Path(cli.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
