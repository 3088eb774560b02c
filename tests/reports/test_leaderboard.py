"""The leaderboard from rows written by hand: exact cells, with holes, failures, seeds and oracles."""

import json
from pathlib import Path

import pytest

from kdbench.cell import canonical_json
from kdbench.metrics.exact import METRICS
from kdbench.reports.entries import COLUMNS, entries
from kdbench.reports.leaderboard import write_leaderboard
from kdbench.reports.rows import load_rows
from kdbench.results.store import CELLS, Results

CATEGORIES = ["a", "b"]


def write(folder: Path, method: str, values: dict[str, float | None], **changes: object) -> None:
    """One multiclass cell: category -> the value of all metrics; None is a failed row."""
    row = {
        "schema_version": 1,
        "run_id": "r",
        "method": method,
        "config": canonical_json({"epochs": 2}),
        "dataset": "toy",
        "setting": "multiclass",
        "categories": CATEGORIES,
        "dataset_categories": CATEGORIES,
        "seed": 0,
        "profile": "paper",
        "selection": "heldout",
        "preset": "exact",
        "metric_version": 1,
        "teacher_sha256": "0123456789",
    } | changes
    row["cell_id"] = "-".join(
        str(row[k]) for k in ("dataset", "method", "setting", "seed", "selection")
    ) + str(abs(hash((row["config"], tuple(values)))))
    rows = []
    for category, value in values.items():
        metrics = dict.fromkeys((*METRICS, "mad"), value)
        status = "ok" if value is not None else "failed"
        rows.append(row | metrics | {"category": category, "status": status})
    Results(folder).write(CELLS, rows)


def table(text: str, title: str) -> list[list[str]]:
    """The first table under a heading that begins with `title`."""
    after = text.split(f"{title}", 1)[1]
    lines = after[after.index("|") :].split("\n\n", 1)[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


def test_complete_methods_are_ranked_by_their_mean_over_categories_and_seeds(tmp_path):
    for seed, value in ((0, 0.8), (1, 0.9)):
        write(tmp_path, "stfpm", {"a": value, "b": value + 0.02}, seed=seed)
        write(tmp_path, "other", {"a": value - 0.1, "b": value}, seed=seed)
    path, headline = write_leaderboard(tmp_path, tmp_path / "out")
    rows = table(path.read_text(), "## toy, multiclass")
    # stfpm: seeds 0.81 and 0.91: mean 0.86, deviation 0.0707
    assert rows[1][:3] == ["1", "stfpm", "86.00 ± 7.07"]
    assert rows[2][:3] == ["2", "other", "80.00 ± 7.07"]
    assert rows[1][-2:] == ["2", ""]
    assert "stfpm: I-AUROC 86.00 ± 7.07" in headline


def test_rows_of_several_devices_are_said_to_be_several_draws(tmp_path):
    write(tmp_path, "m1", {"a": 0.8, "b": 0.6}, device="cpu", device_name="chip", num_threads=1)
    write_leaderboard(tmp_path, tmp_path / "out")
    assert "another draw" not in (tmp_path / "out/leaderboard.md").read_text()
    write(tmp_path, "m2", {"a": 0.8, "b": 0.6}, device="cpu", device_name="chip", num_threads=2)
    write(tmp_path, "m3", {"a": 0.8, "b": 0.6}, device=None, device_name=None)
    write_leaderboard(tmp_path, tmp_path / "out")
    text = (tmp_path / "out/leaderboard.md").read_text()
    ranking = text.partition("\n### ")[2].partition("\n### ")[0]
    assert "The rows come from chip, 1 thread; chip, 2 threads. The same seed" in ranking


def test_every_table_that_sets_rows_of_several_devices_side_by_side_says_so(tmp_path):
    for method in ("m1", "m2"):
        chip = {"device": "cpu", "device_name": "chip"}
        write(tmp_path, method, {"a": 0.8, "b": 0.6}, **chip, num_threads=1)
        for name in "ab":
            own = {"setting": "oneclass", "categories": [name], "num_threads": 2}
            write(tmp_path, method, {name: 0.7}, **chip, **own)
    text = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    parts = {part.partition("\n")[0]: part for part in text.split("\n### ")[1:]}
    said = [title for title, part in parts.items() if "is another draw" in part]
    beside = [title for title in parts if title == "I-AUROC" or title.startswith("Oneclass against")]
    assert len(beside) == 2
    assert {*beside} <= {*said}
    assert not any(title.startswith("Ranking") for title in said)  # a section has rows of one chip here


def test_a_mean_over_fewer_categories_is_never_the_mean(tmp_path):
    write(tmp_path, "stfpm", {"a": 0.99}, setting="oneclass", categories=["a"])
    text = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    assert table(text, "## toy, oneclass")[1] == [
        "-",
        "stfpm",
        *["-"] * len(COLUMNS),
        "official recipe",
        "1",
        "1 of 2 categories",
    ]
    assert "Not the dataset's mean: over 1 of 2 categories (a)" in text
    assert table(text, "### Not the dataset's mean")[1] == ["stfpm", *["99.00"] * len(COLUMNS), "1"]
    assert table(text, "### I-AUROC per category")[1:] == [
        ["a", "99.00"],
        ["not run: b", "-"],
        ["mean", "-"],
    ]


def test_the_overview_has_no_column_of_holes_alone(tmp_path):
    """`first` is complete for both methods, `second` for one, `third` for none."""
    whole, part = {"a": 0.5, "b": 0.6}, {"a": 0.5}
    for dataset, stfpm, dcam in (("first", whole, whole), ("second", whole, part), ("third", part, part)):
        write(tmp_path, "stfpm", stfpm, dataset=dataset)
        write(tmp_path, "dcam", dcam, dataset=dataset)
    text = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    rows = table(text, "## Datasets and settings")
    columns = [
        "first, multiclass",
        "rank, first, multiclass",
        "second, multiclass",
        "rank, second, multiclass",
    ]
    assert rows[0] == ["method", *columns]
    assert rows[1] == ["dcam", "55.00", "1", "- (1 of 2 categories)", "-"]
    assert "## third, multiclass" in text


def test_a_failed_cell_is_a_hole_that_is_seen(tmp_path):
    write(tmp_path, "stfpm", {"a": 0.9, "b": 0.8})
    write(tmp_path, "other", {"a": 0.9, "b": None})
    text = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    rows = table(text, "## toy")
    assert rows[1][:3] == ["1", "stfpm", "85.00"]
    assert rows[2][:3] == ["-", "other", "-"]
    assert rows[2][-1] == "1 failed"
    # common to both methods is only a
    assert "over 1 of 2 categories (a)" in text
    assert table(text, "### I-AUROC per category")[2] == ["b", "80.00", "- (failed)"]


def test_a_category_that_one_seed_lacks_is_said(tmp_path):
    write(tmp_path, "stfpm", {"a": 0.9, "b": 0.8})
    write(tmp_path, "stfpm", {"a": 0.9}, seed=1)
    (entry,) = entries(load_rows(tmp_path))
    assert entry.holes == ("1 not run",)
    assert entry.means["mad"] is None


def test_configurations_of_one_method_are_lines_of_their_own_named_by_their_difference(tmp_path):
    for epochs in (2, 5):
        config = canonical_json({"epochs": epochs, "lr": 0.4})
        write(tmp_path, "stfpm", {"a": epochs / 10, "b": 0.2}, config=config)
    assert [e.name for e in entries(load_rows(tmp_path))] == ["stfpm (epochs=5)", "stfpm (epochs=2)"]


def test_another_teacher_is_another_line(tmp_path):
    for sha in ("aaaaaaaaaa", "bbbbbbbbbb"):
        config = canonical_json({"epochs": 2, "note": sha})
        write(tmp_path, "stfpm", {"a": 0.5, "b": 0.2}, config=config, teacher_sha256=sha)
    assert {e.name for e in entries(load_rows(tmp_path))} == {
        f"stfpm (note={sha}, teacher={sha[:8]})" for sha in ("aaaaaaaaaa", "bbbbbbbbbb")
    }


@pytest.mark.parametrize(
    "change",
    [
        {"preset": "other"},
        {"profile": "demo"},
        {"metric_version": 2},
        {"setting": "oneclass"},
        {"dataset": "t2"},
    ],
)
def test_what_is_not_comparable_never_shares_a_table(tmp_path, change):
    write(tmp_path, "stfpm", {"a": 0.9, "b": 0.8})
    write(tmp_path, "other", {"a": 0.9, "b": 0.8}, **change)
    text = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    sections = [s for s in text.split("\n## ")[1:-1] if not s.startswith("Datasets and settings")]
    assert len(sections) == 2
    assert not any("stfpm" in s and "other |" in s for s in sections)


def test_what_was_selected_on_test_images_is_never_ranked(tmp_path):
    write(tmp_path, "stfpm", {"a": 0.9, "b": 0.8})
    write(tmp_path, "oracle", {"a": 1.0, "b": 1.0}, selection="test")
    text = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    oracle = next(s for s in text.split("\n## ") if "selected on test images" in s.splitlines()[0])
    assert "| - | oracle |" in oracle
    assert "stfpm" not in oracle


def test_pixel_metrics_that_do_not_exist_are_holes_not_zeros(tmp_path):
    write(tmp_path, "stfpm", {"a": 0.9, "b": 0.8})
    file = next((tmp_path / "cells").glob("*.parquet"))
    import pyarrow.parquet as pq

    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row |= {"aupro": None, "mad": None}
    Results(tmp_path).write(CELLS, rows)
    (entry,) = entries(load_rows(tmp_path))
    assert entry.means["aupro"] is None
    assert entry.means["image_auroc"][:2] == pytest.approx((0.85, float("nan")), nan_ok=True)


def test_names_from_data_cannot_break_the_table(tmp_path):
    write(tmp_path, "stfpm", {"a|b": 0.9, "c\nd": 0.8}, dataset_categories=["a|b", "c\nd"])
    text = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    assert "a\\|b" in text
    assert "| c d |" in text


def test_no_rows_is_an_error_that_says_how_to_get_some(tmp_path):
    with pytest.raises(FileNotFoundError, match="kdbench run"):
        write_leaderboard(tmp_path, tmp_path / "out")


def test_config_of_a_row_is_json(tmp_path):
    write(tmp_path, "stfpm", {"a": 0.9, "b": 0.8})
    assert json.loads(load_rows(tmp_path)["config"][0]) == {"epochs": 2}
