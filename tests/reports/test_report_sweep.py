"""The report of sweeps: tables by hand, importance of keys that matter and that do not, what peeking buys."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated import all_metrics
from fabricated import row as cell
from fabricated import trial_row as row
from scipy.stats import spearmanr

from kdbench.reports.leaderboard import assemble, write_tables
from kdbench.reports.rows import load
from kdbench.reports.sweep import (
    Importance,
    find_best,
    importance,
    importance_text,
    peeking,
    peeking_text,
    spearman,
    sweep_sections,
    top_table,
    write_sweeps,
)
from kdbench.results.store import AUDITS, CELLS, TRIALS, Results


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
    assert top_table(pd.DataFrame(rows)) == (
        "| rank | trial | mad | levels | lr |\n|---|---|---|---|---|\n"
        "| 1 | t001 | 0.7500 | [2, 3] | 0.1 |\n| 2 | t000 (default) | 0.5000 | [1, 2, 3] | 0.4 |\n"
    )
    many = top_table(pd.DataFrame([row(i, 0.01 * i) for i in range(15)]))
    assert many.count("\n") == 2 + 10
    assert "| 10 | t005 |" in many
    assert top_table(pd.DataFrame([stopped(2, 0.9)])) == "No trial was trained to the end yet.\n"


def drawn(count: int, matters: float) -> pd.DataFrame:
    """Trials whose objective follows `a`, and `kind` a little, beside noise; `b` does nothing."""
    generator = np.random.default_rng(1)
    rows = []
    for i in range(count):
        a, b, kind = generator.uniform(), generator.uniform(), ("x", "y")[generator.integers(2)]
        value = 0.5 + matters * (0.3 * a + 0.1 * (kind == "x")) + generator.normal(0, 0.01)
        rows.append(row(i, value, {"a": a, "b": b, "kind": kind}))
    return pd.DataFrame(rows)


@pytest.mark.slow
def test_importance_finds_the_keys_that_matter():
    found = importance(drawn(60, 1.0))
    assert isinstance(found, Importance)
    assert list(found.drop) == ["a", "kind", "b"]
    assert found.explained > 0.8
    assert found.drop["a"] > 2 * found.drop["kind"] > 20 * abs(found.drop["b"])
    assert (found.num_trials, found.epoch) == (60, 9)
    assert "| a | " in importance_text(drawn(60, 1.0))


@pytest.mark.slow
def test_importance_of_noise_is_said_to_be_nothing():
    text = importance_text(drawn(30, 0.0))
    assert "That is nothing: the trials do not show which key matters" in text
    assert "| key |" not in text


def test_too_few_trials_have_no_importance():
    assert importance_text(drawn(9, 1.0)) == (
        "Importance of keys: 9 trials are too few to say which key matters: 10 are needed.\n"
    )
    same = pd.DataFrame([row(i, 0.5) for i in range(12)])
    assert "all 12 trials have the same objective at epoch 9" in importance_text(same)


def test_trials_that_were_stopped_are_compared_at_the_epoch_that_all_reached():
    trials = drawn(20, 1.0).to_dict("records")
    for one in trials:
        one["objective_history"] = [one["objective_value"] - 0.2, 0.1]
    trials[7] |= {"objective_epochs": [3], "objective_history": trials[7]["objective_history"][:1]}
    found = importance(pd.DataFrame(trials))
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
    trials = pd.DataFrame([row(0, 0.5), row(1, 0.8), row(2, 0.7), stopped(3, 0.9)])
    values = {0: (0.70, 0.80), 1: (0.80, 0.84), 2: (0.90, 0.88), 3: (0.99, 0.99)}
    audits = pd.DataFrame(
        [audit(i, v, c) for i, pair in values.items() for v, c in zip(pair, ("bottle", "screw"), strict=True)]
    )
    found = peeking(trials, audits)
    assert found is not None
    assert (found.default, found.chosen, found.best) == pytest.approx((0.75, 0.82, 0.89))
    assert found.spearman == pytest.approx(0.5)
    text = peeking_text(trials, audits)
    assert "| **what peeking would have bought** | **7.00** |" in text
    assert "| default | 75.00 |" in text
    assert "Of 3 trials" in text
    assert "these trials: 0.50." in text  # three pairs have no interval
    assert peeking(trials, audits[audits["trial_id"] == "s1-t001"]) is None


@pytest.mark.slow
def test_the_report_has_tables_and_figures(tmp_path):
    rows = [row(i, 0.5 + 0.03 * i, {"lr": 10.0**-i, "fusion": "sum"}) for i in range(3)] + [stopped(4, 0.4)]
    rows[3]["searched"] = rows[0]["searched"]
    results = written(tmp_path / "r", rows, tuple(audit(i, 0.6 + 0.1 * i) for i in range(3)))
    path, *figures = write_sweeps(results, tmp_path / "out")
    text = path.read_text()
    assert set(figures) == {*(tmp_path / "out/figures").iterdir()}
    assert "## Sweep of stfpm: mvtec_ad, oneclass (s1)" in text
    assert "Trials: 4 ok; 1 of them stopped early" in text
    assert "The default has 0.5000, the best trial 0.5600 (+0.0600)" in text
    sweep_sections(results, tmp_path / "again")
    for name in ("progress", "slices", "peeking"):
        assert f"(figures/sweep-s1-{name}.svg)" in text
        svg = (tmp_path / f"out/figures/sweep-s1-{name}.svg").read_bytes()
        assert svg.startswith(b"<?xml")
        assert (tmp_path / f"out/figures/sweep-s1-{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"again/figures/sweep-s1-{name}.svg").read_bytes() == svg


def test_a_report_with_a_sweep_names_the_files_of_its_figures(tmp_path):
    """What is not named is not uploaded, and the leaderboard links to it."""
    results = written(tmp_path / "r", [row(0, 0.5), row(1, 0.6)])
    Results(results).write(CELLS, [cell(**all_metrics(0.5)), cell(category="b", **all_metrics(0.5))])
    files, _ = write_tables(results, assemble(load(results)), tmp_path / "out")
    text = (tmp_path / "out/leaderboard.md").read_text(encoding="utf-8")
    linked = re.findall(r"\((figures/sweep-[^)]+)\)", text)
    assert len(linked) == 2
    assert {tmp_path / "out" / link for link in linked} < set(files)
    assert set(files) == {path for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_sweep_on_test_images_is_marked(tmp_path):
    results = written(tmp_path / "r", [row(0, 0.5, selection="test"), row(1, 0.6, selection="test")])
    text, _ = sweep_sections(results, tmp_path)
    assert "**Chosen on test images: shows what that does, is never ranked and never a result.**" in text
    assert "mad of test images" in text


def test_a_sweep_that_only_began_is_reported(tmp_path):
    begun = row(0, None, status="running", objective_epochs=[], objective_history=[])
    results = written(tmp_path / "r", [begun])
    text, figures = sweep_sections(results, tmp_path)
    assert "Trials: 1 running" in text
    assert figures == []
    assert "No trial was trained to the end yet." in text
    assert sweep_sections(tmp_path / "nothing", tmp_path) == ("", [])
