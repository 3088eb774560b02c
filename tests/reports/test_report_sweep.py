"""The report of sweeps: tables by hand, importance of keys that matter and that do not, what peeking buys."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import all_metrics
from fabricated import row as cell
from fabricated import trial_row as row
from scipy.stats import spearmanr

from kdbench.reports import figures_sweep
from kdbench.reports.figures import render
from kdbench.reports.leaderboard import assemble, rendered
from kdbench.reports.page import write_report
from kdbench.reports.rows import load
from kdbench.reports.sweep import (
    Importance,
    SweepRows,
    best_trials,
    find_best,
    headline,
    importance,
    importance_table,
    peeking,
    peeking_table,
    spearman,
    sweeps,
)
from kdbench.reports.tables import Table
from kdbench.results.store import AUDITS, CELLS, TRIALS, Results

NO_AUDITS = pd.DataFrame({"sweep_id": [], "trial_id": [], "mad": []})


def sweep(rows: list[dict], audits: list[dict] | None = None) -> SweepRows:
    return SweepRows(trials=pd.DataFrame(rows), audits=pd.DataFrame(audits) if audits else NO_AUDITS)


def lines(table: Table) -> list[list[str]]:
    return [[value.text for value in line] for line in table.body]


def stopped(number: int, value: float) -> dict:
    """A trial that was stopped at its third epoch."""
    return row(
        number, value, objective_epochs=[3], objective_history=[value], epochs_trained=3, stopped_early=True
    )


def audit(number: int, value: float, category: str = "bottle") -> dict:
    return {
        "trial_id": f"s1-t{number:03}",
        "sweep_id": "s1",
        "category": category,
        "mad": value,
        "selection": "test",
    }


def written(folder: Path, rows: list[dict], audits: tuple[dict, ...] = ()) -> Path:
    results = Results(folder)
    for one in rows:
        results.write(TRIALS, [one])
    for trial_id in {one["trial_id"] for one in audits}:
        results.write(AUDITS, [one for one in audits if one["trial_id"] == trial_id])
    return folder


def test_only_trials_that_were_trained_to_the_end_can_be_best_and_the_first_of_equal_ones_is():
    failed = row(5, None, status="failed", objective_epochs=[], objective_history=[])
    running = row(6, 0.99, status="running")
    rows = [row(2, 0.8), row(1, 0.8), stopped(3, 0.9), failed, running, row(0, 0.7)]
    best = find_best(rows)
    assert best is not None
    assert best["trial_id"] == "s1-t001"
    assert find_best([stopped(3, 0.9), failed, running]) is None


def test_the_table_of_the_best_ten_is_exact():
    rows = [
        row(0, 0.5, {"lr": 0.4, "levels": [1, 2, 3]}),
        row(1, 0.75, {"lr": 0.1, "levels": [2, 3]}),
        stopped(2, 0.9) | {"searched": '{"lr": 1.0, "levels": [1]}'},
    ]
    found = best_trials(sweep(rows))
    assert found.title == "Best trials: Sweep of stfpm: mvtec_ad, oneclass (s1)"
    assert found.head == ("rank", "trial", "mad", "levels", "lr")
    assert lines(found) == [
        ["1", "t001", "0.7500", "[2, 3]", "0.1"],
        ["2", "t000 (default)", "0.5000", "[1, 2, 3]", "0.4"],
    ]
    assert (found.body[0][2].mean, found.body[0][4].mean) == (0.75, 0.1)  # not rounded, and sortable
    many = lines(best_trials(sweep([row(i, 0.01 * i) for i in range(15)])))
    assert len(many) == 10
    assert many[-1][:2] == ["10", "t005"]
    none = best_trials(sweep([stopped(2, 0.9)]))
    assert none.body == ()
    assert none.notes[0] == "No trial was trained to the end yet."


def drawn(count: int, matters: float) -> SweepRows:
    """Trials whose objective follows `a`, and `kind` a little, beside noise; `b` does nothing."""
    generator = np.random.default_rng(1)
    rows = []
    for i in range(count):
        a, b, kind = generator.uniform(), generator.uniform(), ("x", "y")[generator.integers(2)]
        value = 0.5 + matters * (0.3 * a + 0.1 * (kind == "x")) + generator.normal(0, 0.01)
        rows.append(row(i, value, {"a": a, "b": b, "kind": kind}))
    return sweep(rows)


@pytest.mark.slow
def test_importance_finds_the_keys_that_matter():
    found = importance(drawn(60, 1.0))
    assert isinstance(found, Importance)
    assert list(found.drop) == ["a", "kind", "b"]
    assert found.explained > 0.8
    assert found.drop["a"] > 2 * found.drop["kind"] > 20 * abs(found.drop["b"])
    assert (found.num_trials, found.epoch) == (60, 9)
    shown = importance_table(drawn(60, 1.0))
    assert [line[0] for line in lines(shown)] == ["a", "kind", "b"]
    assert shown.body[0][1].mean == found.drop["a"]
    assert "60 trials at epoch 9" in shown.notes[0]


@pytest.mark.slow
def test_importance_of_noise_is_said_to_be_nothing():
    shown = importance_table(drawn(30, 0.0))
    assert "That is nothing: the trials do not show which key matters" in shown.notes[0]
    assert shown.body == ()


def test_too_few_trials_have_no_importance():
    (why,) = importance_table(drawn(9, 1.0)).notes
    assert why == "No importance: 9 trials cannot say which key matters: 10 are needed."
    same = importance(sweep([row(i, 0.5) for i in range(12)]))
    assert same == "all 12 trials have the same objective at epoch 9: no key matters"


def test_trials_that_were_stopped_are_compared_at_the_epoch_that_all_reached():
    trials = drawn(20, 1.0).trials.to_dict("records")
    for one in trials:
        one["objective_history"] = [one["objective_value"] - 0.2, 0.1]
    trials[7] |= {"objective_epochs": [3], "objective_history": trials[7]["objective_history"][:1]}
    found = importance(sweep(trials))
    assert isinstance(found, Importance)
    assert found.epoch == 3
    assert next(iter(found.drop)) == "a"


def test_spearman_is_scipys_and_its_interval_that_of_bonett_and_wright():
    generator = np.random.default_rng(0)
    for n in (5, 12, 40):
        x = generator.integers(0, 8, n).astype(float)
        y = x + generator.normal(0, 3, n)
        assert spearman(x, y)[0] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    x = np.arange(12.0)
    y = x.copy()
    y[[0, 6, 11]] = y[[11, 0, 6]]
    r, low, high = spearman(x, y)
    reach = 1.96 * ((1 + r * r / 2) / 9) ** 0.5
    z = 0.5 * np.log((1 + r) / (1 - r))
    assert (low, high) == pytest.approx(
        [(np.exp(2 * e) - 1) / (np.exp(2 * e) + 1) for e in (z - reach, z + reach)], abs=1e-4
    )
    assert all(np.isnan(spearman(x, np.ones(12))))
    assert spearman(x, x)[0] == pytest.approx(1)
    assert np.isnan(spearman(x, x)[1])


def test_what_peeking_would_have_bought_is_the_gap_between_the_two_choices():
    trials = [row(0, 0.5), row(1, 0.8), row(2, 0.7), stopped(3, 0.9)]
    values = {0: (0.70, 0.80), 1: (0.80, 0.84), 2: (0.90, 0.88), 3: (0.99, 0.99)}
    audits = [
        audit(i, v, c) for i, pair in values.items() for v, c in zip(pair, ("bottle", "screw"), strict=True)
    ]
    found = peeking(sweep(trials, audits))
    assert found is not None
    assert (found.default, found.chosen, found.best) == pytest.approx((0.75, 0.82, 0.89))
    assert found.spearman == pytest.approx(0.5)
    shown = peeking_table(sweep(trials, audits))
    assert shown.head == ("configuration", "test mad, %")
    assert lines(shown) == [
        ["default", "75.00"],
        ["chosen by the objective", "82.00"],
        ["best of all trials on test images", "89.00"],
        ["what peeking would have bought", "7.00"],
    ]
    assert shown.notes[0].startswith("Of 3 trials")
    assert shown.notes[1].endswith("these trials: 0.50.")  # three pairs have no interval
    one = sweep(trials, [one for one in audits if one["trial_id"] == "s1-t001"])
    assert peeking(one) is None
    assert peeking_table(one).notes == ("Fewer than two trials were audited.",)


def swept(folder: Path) -> Path:
    """Four trials, one of them stopped, and audits of the others."""
    rows = [row(i, 0.5 + 0.03 * i, {"lr": 10.0**-i, "fusion": "sum"}) for i in range(3)] + [stopped(4, 0.4)]
    rows[3]["searched"] = rows[0]["searched"]
    return written(folder, rows, tuple(audit(i, 0.6 + 0.1 * i) for i in range(3)))


def test_a_sweep_is_a_section_of_the_report_beside_those_of_cells(tmp_path):
    results = swept(tmp_path / "r")
    Results(results).write(CELLS, [cell(**all_metrics(0.5)), cell(category="b", **all_metrics(0.5))])
    report = write_report(results, tmp_path / "out")
    text = (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8")
    assert "## Sweep of stfpm: mvtec_ad, oneclass (s1)\n\n### Best trials\n" in text
    assert "Trials: 4 ok; 1 of them stopped early" in text
    assert "The best trial has 0.5600, the default 0.5000 (+0.0600)." in text
    assert "| what peeking would have bought | 0.00 |" in text
    cells = pd.read_csv(tmp_path / "out/leaderboard.csv")
    best = cells[cells["table"] == "Best trials: Sweep of stfpm: mvtec_ad, oneclass (s1)"]
    assert best.loc[best["column"] == "mad", "mean"].tolist() == [0.56, 0.53, 0.5]
    page = report.page.read_text(encoding="utf-8")
    assert ">Sweep of stfpm: mvtec_ad, oneclass (s1)</h2>" in page
    assert "4 trials of 1 sweep." in page
    for name in ("progress", "slices", "peeking"):
        assert tmp_path / f"out/figures/sweep-s1-{name}.svg" in report.files
        assert f'<a href="figures/sweep-s1-{name}.png">' in page
    assert set(report.files) == {path for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_sweep_alone_has_a_report(tmp_path):
    report = write_report(swept(tmp_path / "r"), tmp_path / "out")
    assert report.headline == (
        "Sweep of stfpm: mvtec_ad, oneclass (s1)\n  Trials: 4 ok; 1 of them stopped early\n"
        "  best mad 0.5600, the default 0.5000 (+0.0600)"
    )
    page = report.page.read_text(encoding="utf-8")
    assert "<title>kdbench report: mvtec_ad</title>" in page
    assert "<p>4 trials of 1 sweep.</p>" in page
    assert "Rows behind the numbers" not in page
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")


def test_figures_of_a_sweep_are_the_same_for_the_same_rows_and_have_the_colours_of_all_others(tmp_path):
    (found,) = sweeps(load(swept(tmp_path / "r")).trials, load(tmp_path / "r").audits)
    for sketch, again in zip(figures_sweep.sketches(found), figures_sweep.sketches(found), strict=True):
        one, two = render(sketch), render(again)
        assert (one.svg, one.png) == (two.svg, two.png)
        assert figures_sweep.CHOSEN.lower() in one.svg.decode()


def test_each_searched_key_has_a_panel_with_an_axis_of_its_kind(tmp_path):
    rows = [row(i, 0.5 + 0.01 * i, {"fusion": ("sum", "cat")[i % 2], "lr": 10.0**-i}) for i in range(6)]
    _, slices, *_ = figures_sweep.sketches(sweep(rows))
    assert slices.draw
    fusion, lr = slices.draw().axes
    assert [label.get_text() for label in fusion.get_xticklabels()] == ["cat", "sum"]
    assert lr.get_xscale() == "log"
    assert lr.lines[1].get_xdata().tolist() == [10.0**-i for i in range(6)]


def test_a_sweep_on_test_images_is_marked():
    found = best_trials(sweep([row(0, 0.5, selection="test"), row(1, 0.6, selection="test")]))
    assert found.notes[0].startswith("Chosen on test images: this shows what that does. It is never ranked")
    assert found.notes[1].startswith("Objective: mad of test images.")
    assert not any("held-out" in note for note in found.notes)


def test_a_sweep_that_only_began_is_reported(tmp_path):
    begun = row(0, None, status="running", objective_epochs=[], objective_history=[])
    results = written(tmp_path / "r", [begun])
    text = rendered(assemble(load(results)))["leaderboard.md"]
    assert "No trial was trained to the end yet." in text
    assert "Trials: 1 running; 0 of them stopped early" in text
    (found,) = sweeps(load(results).trials, load(results).audits)
    assert headline(found).endswith("Trials: 1 running; 0 of them stopped early")
    drawn = list(figures_sweep.sketches(found))
    assert [one.why_not for one in drawn] == ["no trial was trained to the end"] * 2


def test_a_searched_text_cannot_become_markup(tmp_path):
    rows = [row(0, 0.5, {"name": "<b>|x"}), row(1, 0.6, {"name": "a"})]
    report = write_report(written(tmp_path / "r", rows), tmp_path / "out")
    assert "&lt;b&gt;|x" in report.page.read_text(encoding="utf-8")
    assert json.loads(rows[0]["searched"])["name"] not in report.page.read_text(encoding="utf-8")
