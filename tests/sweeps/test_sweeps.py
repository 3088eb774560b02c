"""Sweeps without Ray: spaces, what is refused, what judges a trial, what is kept, and the audit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import slow_but, write_category, write_image
from safetensors.torch import load

from kdbench.backbone import teacher
from kdbench.cell import PROFILES, SETTINGS, canonical_json
from kdbench.engine import train
from kdbench.engine.batches import Batches, split_heldout
from kdbench.engine.run import run_cell
from kdbench.errors import DataError, RequestError
from kdbench.grid.plan import plan
from kdbench.grid.request import read_model, read_request
from kdbench.grid.view import View
from kdbench.metrics.exact import METRICS
from kdbench.registry import get_method, method_names
from kdbench.reports.publish import write_rows
from kdbench.reports.tables import Table
from kdbench.results.store import AUDITS, DETECTORS, TRIALS, Results, read
from kdbench.sweeps._audit import audit_trials
from kdbench.sweeps._plan import SweepPlan, SweepRequest, best_toml, plan_sweep
from kdbench.sweeps._run import take_over
from kdbench.sweeps._space import FIXED, Between, OneOf, check_space, read_space, space_of
from kdbench.sweeps._trial import WORST, end_trial, run_trial
from kdbench.weights import find_weights

READINGS = Path(__file__).parents[2] / "reports/published/readings"
SMALL = {"all.image_size": 32, "all.batch_size": 4}


@pytest.fixture
def planned(mvtec: Path, tmp_path: Path):
    """A sweep of STFPM on the tiny tree, with changes."""

    def make(**changes: Any) -> SweepPlan:
        asked: dict[str, Any] = {
            "method": "stfpm",
            "dataset": ("mvtec_ad",),
            "root": mvtec,
            "backbone": "tiny",
            "epochs": 4,
            "report_every": 2,
            "set": SMALL,
            "results": tmp_path / "r",
            "device": "cpu",
        }
        return plan_sweep(SweepRequest(**(asked | changes)))

    return make


@pytest.mark.parametrize("file", sorted(READINGS.glob("*.toml")), ids=lambda file: file.stem)
def test_a_published_search_of_readings_can_be_planned(file, mvtec, tmp_path):
    small = {"root": mvtec, "categories": ("bottle",), "backbone": "tiny", "results": tmp_path / "r"}
    small["device"] = "cpu"
    base = file.stem in ("rd4ad", "stfpm")
    assert base or read_model(SweepRequest, file, small).search == "optuna"
    # Optuna is an extra, which these tests do without.
    planned = plan_sweep(read_model(SweepRequest, file, small | {"search": "random"}))
    assert planned.request.method == file.stem
    assert planned.request.trials == (1 if base else 30)
    assert (planned.sweep.epochs, planned.sweep.report_every) == (20, 4)
    assert {cell.seed for cell in planned.sweep.cells} == {0, 1}
    assert base or not {"sigma", "image_size", "batch_size"} & planned.space.keys()


def test_a_sweep_into_a_folder_without_a_name_is_refused(kdbench):
    code, text = kdbench("sweep", "stfpm", "--results", "")
    assert (code, text) == (2, "error: results='': string should have at least 1 character\n")


def test_a_search_that_does_not_exist_is_refused_with_those_that_do(kdbench):
    code, text = kdbench("sweep", "stfpm", "--search", "bohb")
    assert (code, text) == (2, "error: search='bohb': input should be 'random' or 'optuna'\n")


def trial(sweep_plan: SweepPlan, **searched: Any) -> tuple[dict[str, Any], list[tuple[int, float]]]:
    """Run a trial in this process: its row, and what was reported."""
    reports: list[tuple[int, float]] = []
    values = sweep_plan.first | searched
    run_trial(sweep_plan.sweep, values, lambda *report: reports.append(report))
    row = sweep_plan.sweep.written(values)
    assert row is not None
    return row, reports


# --- spaces -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", method_names())
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_method_takes_what_its_space_can_draw_and_its_default_is_in_it(method, profile, setting):
    kind, space = get_method(method), space_of(method)
    base = kind.Config.model_validate(kind.recipe(profile, setting)).model_dump(mode="json")
    assert check_space(space, kind, base) == []
    generator = np.random.default_rng(0)
    for _ in range(50):  # and any of them together
        drawn = {
            key: d.values[generator.integers(len(d.values))] if isinstance(d, OneOf) else (d.low, d.high)[i]
            for key, d in space.items()
            for i in [generator.integers(2)]
        }
        kind.Config.model_validate(base | drawn)


def test_what_searchers_are_handed_comes_back():
    choice = OneOf(values=([1, 2, 3], [2, 3], "a", 0, True))
    for value in choice.values:
        assert choice.decoded(choice.encoded(value)) == value
    assert choice.encoded(0.0) == "0"  # of a default that was written otherwise
    number = Between(low=0.01, high=1.0, log=True)
    assert number.decoded(0.123456789) == 0.1235
    assert number.decoded(0.99999) == 1.0
    assert number.decoded(0.0100001) == 0.01
    assert Between(low=2, high=9, whole=True).decoded(np.int64(4)) == 4


def test_a_space_of_ones_own_is_read(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text(
        "lr = {low = 0.1, high = 1, log = true}\nbatch_size = {low = 4, high = 64}\n"
        '[levels]\nvalues = [[1, 2], [1, 2, 3]]\n[fusion]\nvalues = ["product", "sum"]\n'
    )
    assert read_space(file, get_method("stfpm")) == {
        "lr": Between(low=0.1, high=1, log=True),
        "batch_size": Between(low=4, high=64, whole=True),
        "levels": OneOf(values=([1, 2], [1, 2, 3])),
        "fusion": OneOf(values=("product", "sum")),
    }


def test_everything_wrong_in_a_space_is_said_at_once(tmp_path):
    file = tmp_path / "space.toml"
    file.write_text(
        "lr = {low = 1.0, high = 0.1}\nmomentum = 0.9\nsigma = {low = 0, high = 4, log = true}\n"
        "batch_size = {low = 4.5, high = 8}\nfusion = {values = ['sum']}\nlevels = {lo = 1, high = 2}\n"
        "loss_scale = {low = 1}\nweight_decay = {low = 'a', high = 2}\n"
    )
    with pytest.raises(RequestError) as refused:
        read_space(file, get_method("stfpm"))
    said = [text.removeprefix(f"{file}: ") for text in refused.value.complaints]
    assert said == [
        "lr: low=1.0 is not below high=0.1",
        "momentum: 0.9 is neither {low, high} nor {values}; for one value use --set",
        "sigma: a range by logarithm begins above 0: low=0",
        "batch_size: it takes whole numbers: low=4.5, high=8",
        "fusion: values=['sum'] is not a list of two or more",
        "levels: no word 'lo'. Did you mean 'low'? Words: low, high, log, values",
        "loss_scale: a range has low and high, a choice has values",
        "weight_decay: low='a' and high=2 are numbers, log=False is true or false",
    ]


def test_a_space_is_checked_against_the_method(planned, tmp_path):
    file = tmp_path / "space.toml"
    file.write_text(
        "lrr = {low = 0.1, high = 1}\nmomentum = {low = 0.5, high = 1.5}\nepochs = {low = 1, high = 9}\n"
        "fusion = {values = ['sum', 'max']}\nlr = {low = 0.5, high = 1.0}\n"
    )
    with pytest.raises(RequestError) as refused:
        planned(space=file)
    assert [text.partition(" Keys:")[0] for text in refused.value.complaints] == [
        "stfpm.lrr: no key 'lrr'. Did you mean 'lr'?",
        "stfpm.momentum=1.5: input should be less than 1",
        f"stfpm.epochs cannot be searched: {FIXED['epochs']}",
        "stfpm.fusion='max': input should be 'product' or 'sum'",
        "stfpm.lr: the sweep begins with the default 0.4, which is not in the space. Widen the space",
    ]


def test_a_method_without_a_space_says_how_to_give_one():
    for name in ("brittle", "tune", "_space"):
        with pytest.raises(RequestError, match=f"{name} has no search space .*--space FILE"):
            space_of(name)


def test_what_is_set_is_not_searched(planned, tmp_path):
    assert "lr" not in planned(set=SMALL | {"stfpm.lr": 0.1}).space
    assert json.loads(planned(set=SMALL | {"stfpm.lr": 0.1}).sweep.cells[0].config)["lr"] == 0.1
    file = tmp_path / "space.toml"
    file.write_text("lr = {low = 0.1, high = 1}\n")
    with pytest.raises(RequestError, match=r"stfpm\.lr is searched by .*space\.toml and set by --set"):
        planned(space=file, set=SMALL | {"stfpm.lr": 0.4})


# --- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "maad"}, "no objective 'maad'. Did you mean 'mad'?"),
        ({"method": "stfmp"}, "no method 'stfmp'. Did you mean 'stfpm'?"),
        ({"set": SMALL | {"stfpm.lr": [0.1, 0.2]}}, "To search lr, put it into --space"),
        ({"report_every": 9}, "--report-every 9 is more than --epochs 4"),
        ({"gpus_per_trial": 0.5}, "--gpus-per-trial 0.5 with --device cpu"),
        ({"categories": ("botle",)}, "Did you mean 'bottle'?"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
def test_a_wrong_request_is_refused_before_any_trial(planned, tmp_path, changes, said):
    with pytest.raises(RequestError) as refused:
        planned(**changes)
    assert said in str(refused.value)
    assert not (tmp_path / "r").exists()


def test_a_missing_extra_is_named(planned, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"--search optuna needs optuna: pip install kdbench\[sweep\]"):
        planned(search="optuna")


def test_a_late_drop_of_the_rate_is_pointed_out(planned):
    notices = planned(method="rd4ad", set=SMALL | {"rd4ad.lr_drop": 0.8}).notices
    assert any("--scheduler none judges all trials at their end" in text for text in notices)
    assert not any("lr_drop" in text for text in planned(method="rd4ad").notices)
    quiet = planned(method="rd4ad", set=SMALL | {"rd4ad.lr_drop": 0.8}, scheduler="none").notices
    assert not any("lr_drop" in text for text in quiet)


def test_a_sweep_is_the_same_wherever_it_runs_and_another_if_its_numbers_change(planned, tmp_path):
    sweep = planned().sweep
    for same in ({"results": tmp_path / "other"}, {"cpus_per_trial": 2}, {"max_concurrent": 1}):
        assert planned(**same).sweep.id == sweep.id
    others = (
        {"trials": 9},
        {"epochs": 5},
        {"search": "random", "scheduler": "none"},
        {"objective": "aupro"},
        {"selection": "test"},
        {"seeds": (1,)},
        {"categories": ("bottle",)},
        {"set": SMALL | {"stfpm.momentum": 0.8}},
    )
    assert len({planned(**changes).sweep.id for changes in others} | {sweep.id}) == len(others) + 1


def test_a_train_image_with_the_content_of_a_test_image_ends_the_sweep(planned, mvtec):
    """Also across categories: the objective of a multiclass sweep must not contain it."""
    copy = mvtec / "screw/train/good/000.png"
    copy.write_bytes((mvtec / "bottle/test/broken/001.png").read_bytes())
    with pytest.raises(RequestError, match=r"bottle/test/broken/001\.png is a test image"):
        planned(setting=("multiclass",))


# --- trials -----------------------------------------------------------------------------------------------


def test_a_trial_says_everything_in_its_row(planned):
    made = planned(setting=("multiclass",), seeds=(0, 1))
    row, reports = trial(made)
    assert [epoch for epoch, _ in reports] == [2, 4] == row["objective_epochs"]
    assert [value for _, value in reports] == row["objective_history"]
    assert row["objective_value"] == row["objective_history"][-1]
    assert (row["status"], row["error"], row["stopped_early"], row["is_default"]) == ("ok", None, False, True)
    assert (row["epochs"], row["epochs_trained"], row["seeds"]) == (4, 4, [0, 1])
    assert (row["num_train"], row["num_heldout"]) == (2 * 16, 2 * 4)  # of two models
    assert (row["selection"], row["objective"], row["metric_version"]) == ("synthetic", "mad", 1)
    assert (row["categories"], row["setting"]) == (["bottle", "screw"], "multiclass")
    assert json.loads(row["searched"]).keys() == made.space.keys()
    assert 0 < row["objective_value"] < 1
    assert row["started_at"] <= row["ended_at"]
    empty = {"error", "driver", "git_commit", "git_dirty"}
    assert not [name for name, value in row.items() if value is None and name not in empty]


def test_no_test_image_has_a_say(planned, tmp_path):
    """Promise 2: with other test images a trial reports the same and keeps the same detector."""
    for name in ("one", "other"):
        write_category(tmp_path / name, "bottle", seed=1)
    for i in range(4):
        write_image(tmp_path / "other/bottle/test/good" / f"{i:03}.png", 9000 + i)
        write_image(tmp_path / "other/bottle/test/broken" / f"{i:03}.png", 9100 + i)
    found = {}
    for name in ("one", "other"):
        made = planned(root=tmp_path / name, results=tmp_path / "r" / name)
        row, reports = trial(made)
        kept = Results(tmp_path / "r" / name).storage.read(DETECTORS.name(row["trial_id"]))
        found[name] = reports, load(kept)  # the header of the file names the trial
    (reports, one), (others, other) = found["one"], found["other"]
    assert reports == others
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_trial_trains_what_the_run_of_its_configuration_trains(planned):
    """STFPM holds images out anyway: the detector is that of `kdbench run`, bit for bit."""
    made = planned(categories=("bottle",), epochs=6)
    row, _ = trial(made, weight_decay=1.0)
    (job,) = made.cells.jobs
    cell = replace(job.cell, config=row["config"])
    ended = run_cell(cell, job.place, lambda progress: None)
    expected = ended.detector
    assert ended.rows[0]["best_epoch"] < 6  # and not merely the last
    kept = load(Results(made.sweep.place.results).storage.read(DETECTORS.name(row["trial_id"])))
    assert {f"0/bottle/{name}" for name in expected} == set(kept)
    assert all(torch.equal(tensor, kept[f"0/bottle/{name}"]) for name, tensor in expected.items())


def test_the_objective_of_a_sweep_on_test_images_is_the_test_metric(planned):
    made = planned(selection="test", objective="pixel_auroc")
    row, _ = trial(made)
    assert row["selection"] == "test"
    rows = [r for job in made.cells.jobs for r in run_cell(job.cell, job.place, lambda progress: None).rows]
    assert row["objective_value"] == pytest.approx(np.mean([r["pixel_auroc"] for r in rows]), abs=1e-12)


def test_the_objective_is_the_mean_of_categories_and_seeds(planned):
    one, _ = trial(planned(categories=("bottle",)))
    two, _ = trial(planned(categories=("screw",)))
    both, _ = trial(planned())
    assert both["objective_value"] == pytest.approx((one["objective_value"] + two["objective_value"]) / 2)


def test_a_trial_that_ended_is_only_reported_again(planned, tmp_path):
    made = planned(categories=("bottle",))
    row, reports = trial(made)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    again, repeated = trial(made)
    assert repeated == reports
    assert again == row
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")} == files


@pytest.mark.slow
def test_a_trial_that_was_killed_goes_on_where_it_was(planned, tmp_path):
    undisturbed, reports = trial(planned(epochs=6, results=tmp_path / "u"))
    made = planned(epochs=6)
    sweep = replace(made.sweep, place=replace(made.sweep.place, checkpoint_every_s=1e-9))
    seen: list[tuple[int, float]] = []

    def killed(epoch: int, value: float) -> None:
        seen.append((epoch, value))
        if epoch == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(sweep, made.first, killed)
    results = Results(tmp_path / "r")
    row = sweep.written(made.first)
    assert row is not None
    assert (row["status"], row["epochs_trained"]) == ("running", 4)
    run_trial(sweep, made.first, lambda *report: seen.append(report))
    assert seen == reports
    row = sweep.written(made.first)
    assert row is not None
    assert row["objective_history"] == undisturbed["objective_history"]
    assert results.storage.names("checkpoints") == []


def test_what_cannot_be_trained_is_a_failed_row_and_the_worst(planned):
    made = planned(categories=("bottle",), precision="fp32")
    row, reports = trial(made, lr=1e30)
    assert row["status"] == "failed"
    assert "TrainingDiverged" in row["error"]
    assert reports == [(4, WORST)]
    row, reports = trial(made, fusion="no such")
    assert (row["status"], reports) == ("failed", [(4, WORST)])
    assert json.loads(row["config"])["fusion"] == "no such"


@pytest.mark.parametrize(
    ("lr", "num_errors", "again", "never"),
    [(1e30, 0, False, True), (0.4, 1, True, False), (1e30, 1, True, True), (0.4, 0, False, False)],
)
def test_only_trials_that_may_end_well_are_said_to_be_tried_again(planned, lr, num_errors, again, never):
    from kdbench.sweeps._result import result_of, summary  # imports Ray
    from kdbench.sweeps.tune import SweepEnd

    made = planned(categories=("bottle",), precision="fp32")
    trial(made, lr=lr)
    if num_errors:
        end_trial(made.sweep, made.first | {"lr": 0.1}, "The actor died")
    result = result_of(made, SweepEnd(num_trials=2, num_errors=num_errors))
    assert result.complete == (lr == 0.4 and not num_errors)
    parts = list(summary(made, result))
    lines = [part for part in parts if isinstance(part, str)]
    tables = [part for part in parts if isinstance(part, Table)]
    assert [table.head[:3] for table in tables] == ([("rank", "trial", "mad")] if lr == 0.4 else [])
    assert "No importance: " in "\n".join(lines)
    assert ("the same command runs the trials that had an error again" in lines) == again
    assert any(line.startswith("1 diverged") for line in lines) == never


def test_other_errors_are_a_row_and_go_on_to_who_may_try_again(planned, mvtec):
    made = planned(categories=("bottle",))
    write_image(mvtec / "bottle/train/good/000.png", 7777)
    with pytest.raises(ValueError, match="changed since the run was planned"):
        trial(made)
    (row,) = read(made.sweep.place.results, TRIALS).to_pylist()
    assert row["status"] == "failed"


def test_the_driver_completes_rows_of_trials_that_were_stopped_or_killed(planned):
    made = planned(categories=("bottle",))

    def stop(epoch: int, value: float) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        run_trial(made.sweep, made.first, stop)
    end_trial(made.sweep, made.first, None)
    row = made.sweep.written(made.first)
    assert row is not None
    assert (row["status"], row["stopped_early"], row["epochs_trained"]) == ("ok", True, 2)
    killed = made.first | {"lr": 0.1}
    end_trial(made.sweep, killed, "The actor died")  # before its first report: there is no row yet
    row = made.sweep.written(killed)
    assert row is not None
    assert (row["status"], row["error"], row["objective_value"]) == ("failed", "The actor died", None)


@pytest.mark.parametrize("method", slow_but(["dcam", "snl", "dskd", "rd4ad"], "stfpm"))
def test_the_first_epochs_of_a_long_training_are_a_short_one(method):
    """What stopping early relies on; a drop of the rate at a share of the epochs breaks it."""

    def losses(epochs: int, run: int, **changes: Any) -> list[float]:
        kind = get_method(method)
        small = {"backbone": "tiny", "image_size": 32, "batch_size": 4, "epochs": epochs, "precision": "fp32"}
        config = kind.Config(**small, **changes)
        torch.manual_seed(0)
        built = kind(config, teacher("tiny", config.levels, find_weights("tiny")))
        pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
        batches = Batches(
            pixels, built.teacher, "tiny", device=torch.device("cpu"), precision="fp32", batch_size=4
        )
        training = train.Training(built, "fp32", torch.Generator().manual_seed(0))
        return [training.epoch(batches, None, lambda count: None).loss for _ in range(run)]

    assert losses(20, 4) == losses(4, 4)
    if method in ("snl", "dskd", "rd4ad"):
        assert losses(20, 4, lr_drop=0.5) != losses(4, 4, lr_drop=0.5)


class Listener(View):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def say(self, text: str) -> None:
        self.told.append(text)


def test_trials_that_succeeded_elsewhere_are_reported_and_not_trained(planned, tmp_path, monkeypatch):
    made = planned(categories=("bottle",))
    row, reports = trial(made)
    results = Results(made.sweep.place.results)
    failed = made.sweep.row(made.first | {"lr": 0.1}) | {"status": "failed", "ended_at": row["ended_at"]}
    stranger = row | {"trial_id": "another-sweep", "sweep_id": "another"}
    for one in (failed, stranger):
        results.write(TRIALS, [one])
    write_rows(made.sweep.place.results, tmp_path / "rows")

    again = planned(categories=("bottle",), results=tmp_path / "again", published=tmp_path / "rows")
    view = Listener()
    copied = take_over(again, view)
    assert copied == {row["trial_id"]}
    assert view.told == [f"1 trial taken over from {tmp_path / 'rows'}"]
    assert read(tmp_path / "again", TRIALS).to_pylist() == [row]
    monkeypatch.setattr(train, "Training", None)  # what trains would fail
    assert trial(again) == (row, reports)
    assert audit_trials(again, lambda row, value: None, copied) == 1
    with pytest.raises(RequestError, match="1 of 1 trial kept no detector"):
        audit_trials(again, lambda row, value: None)
    assert take_over(again, view) == copied
    assert view.told[-1] == f"0 trials taken over from {tmp_path / 'rows'}"


def test_published_trials_that_somebody_changed_are_refused(planned, tmp_path):
    made = planned(categories=("bottle",))
    row = made.sweep.row(made.first) | {"status": "ok"}
    edited = json.loads(row["config"]) | {"lr": 0.1}
    Results(made.sweep.place.results).write(TRIALS, [row | {"config": canonical_json(edited)}])
    write_rows(made.sweep.place.results, tmp_path / "rows")
    again = planned(categories=("bottle",), results=tmp_path / "again", published=tmp_path / "rows")
    with pytest.raises(RequestError, match=rf"the row of trial {row['trial_id']} has another configuration"):
        take_over(again, Listener())


def test_rows_of_a_report_are_no_folder_to_sweep_in(planned, tmp_path):
    made = planned(categories=("bottle",))
    Results(made.sweep.place.results).write(TRIALS, [made.sweep.row(made.first)])
    write_rows(made.sweep.place.results, tmp_path / "rows")
    with pytest.raises(DataError, match=r"has rows of `kdbench report --rows`: name another folder"):
        Results(tmp_path / "rows").check_writable()


# --- the end ----------------------------------------------------------------------------------------------


def test_the_best_configuration_is_a_file_that_run_takes(planned, mvtec, tmp_path):
    root = mvtec.rename(mvtec.with_name('mit "ü" \\ und Leerzeichen'))
    made = planned(root=root, seeds=(0, 2), categories=("bottle",), setting=("multiclass",))
    searched = made.first | {"levels": [2, 3], "lr": 4e-05, "fusion": "sum"}
    row = {**made.sweep.row(searched), "objective_value": 0.5}
    file = tmp_path / "best.toml"
    file.write_text(best_toml(made, row), encoding="utf-8")
    jobs = plan(read_request(file, {"results": tmp_path / "r"})).jobs
    assert [job.cell for job in jobs] == [
        replace(cell, config=made.sweep.config(searched)) for cell in made.sweep.cells
    ]


@pytest.mark.slow
def test_an_audit_gives_the_test_metrics_of_the_trials_detectors(planned):
    made = planned(seeds=(0, 1))
    row, _ = trial(made)
    told: list[float] = []
    audit_trials(made, lambda row, value: told.append(value))
    audits = read(made.sweep.place.results, AUDITS).to_pylist()
    assert [(a["seed"], a["category"]) for a in audits] == [
        (0, "bottle"),
        (0, "screw"),
        (1, "bottle"),
        (1, "screw"),
    ]
    assert {a["selection"] for a in audits} == {"test"}
    assert {a["trial_id"] for a in audits} == {row["trial_id"]}
    rows = [r for job in made.cells.jobs for r in run_cell(job.cell, job.place, lambda progress: None).rows]
    for audit, expected in zip(audits, rows, strict=True):
        assert (audit["category"], audit["seed"]) == (expected["category"], expected["seed"])
        assert [audit[m] for m in METRICS] == pytest.approx([expected[m] for m in METRICS])
    assert told == [pytest.approx(np.mean([a["mad"] for a in audits]))]
    audit_trials(made, lambda row, value: told.append(value))
    assert len(told) == 1  # once is enough


def test_an_audit_without_detectors_says_so(planned):
    made = planned(keep_detectors=False, categories=("bottle",))
    trial(made)
    with pytest.raises(RequestError, match="1 of 1 trial kept no detector"):
        audit_trials(made, lambda row, value: None)


def test_the_images_that_judge_are_those_that_run_holds_out(planned, mvtec):
    """20 % of each category by the seed, and none that was trained on."""
    made = planned(setting=("multiclass",))
    row, _ = trial(made)
    kept, aside = split_heldout([10, 10], 0.2, 0)
    assert (row["num_train"], row["num_heldout"]) == (len(kept), len(aside))
    assert not set(kept) & set(aside)
