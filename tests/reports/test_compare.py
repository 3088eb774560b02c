"""Two results folders side by side: what is paired, what is a regression, and the exit codes."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from fabricated import all_metrics, row, scores, write_scores

from kdbench.cell import canonical_json
from kdbench.errors import RequestError
from kdbench.reports.compare import HEAD, compare
from kdbench.reports.entries import COLUMNS
from kdbench.results.store import CELLS, Results

Call = Callable[..., tuple[int, str]]

NUM = len(COLUMNS)  # values of a category that can differ


def write(folder: Path, values: dict[str, float | None], **changes: Any) -> None:
    """One multiclass cell of the given categories; None is a failed row."""
    facts = {"cell_id": f"{changes.get('method', 'm')}-{changes.get('seed', 0)}"}
    facts |= {"dataset_categories": [*values], "categories": [*values]} | changes
    rows = []
    for category, value in values.items():
        status = "ok" if value is not None else "failed"
        rows.append(row(**{"category": category, "status": status} | all_metrics(value) | facts))
    Results(folder).write(CELLS, rows)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "before", tmp_path / "after"


def cell(line: tuple[Any, ...], column: str) -> str:
    return str(line[HEAD.index(column)].text)


def test_the_same_rows_differ_in_nothing(folders: tuple[Path, Path], kdbench: Call) -> None:
    for folder in folders:
        write(folder, {"a": 0.9, "b": 0.8})
    code, said = kdbench("compare", *folders)
    assert code == 0
    assert (
        f"{2 * NUM} differences, 0 beyond the tolerance; 0 regressions; 0 rows only before, 0 only after"
        in said
    )


@pytest.mark.parametrize(
    ("after", "tolerance", "code"),
    [(0.79, 0.01, 0), (0.7899, 0.01, 1), (0.75, 0.05, 0), (0.95, 0.01, 0), (0.7999, 0.0, 1)],
)
def test_a_regression_is_what_is_beyond_the_tolerance(
    folders: tuple[Path, Path], kdbench: Call, after: float, tolerance: float, code: int
) -> None:
    write(folders[0], {"a": 0.9, "b": 0.8})
    write(folders[1], {"a": 0.9, "b": after})
    found, said = kdbench("compare", *folders, "--tolerance", tolerance)
    assert found == code
    assert f"{NUM * code} regressions" in said


def test_what_succeeded_and_fails_now_is_a_regression(folders: tuple[Path, Path], kdbench: Call) -> None:
    write(folders[0], {"a": 0.9, "b": 0.8})
    write(folders[1], {"a": 0.9, "b": None})
    code, said = kdbench("compare", *folders)
    assert code == 1
    assert "Succeeded before, fail now" in said
    assert f"{NUM} differences, 0 beyond the tolerance; 1 regression" in said


def test_a_failure_is_a_regression_also_where_the_precision_changed(
    folders: tuple[Path, Path], kdbench: Call
) -> None:
    """A row that failed early does not know its precision: it is that of the others of its own folder."""
    for folder, precision in zip(folders, ("bf16", "fp32"), strict=True):
        for name in "ab":
            failed = folder == folders[1] and name == "a"
            facts = {"cell_id": name, "setting": "oneclass", "dataset_categories": ["a", "b"]}
            write(folder, {name: None if failed else 0.9}, precision=None if failed else precision, **facts)
    code, said = kdbench("compare", *folders)
    assert code == 1
    assert "1 regression; 0 rows only before, 0 only after" in said
    remarks = {cell(line, "remark") for line in compare(*folders, 0.01).categories.body}
    assert remarks == {"other recipe: precision"}


def test_of_several_recipes_that_all_fail_each_is_a_regression(folders: tuple[Path, Path]) -> None:
    for folder, precision in zip(folders, ("bf16", None), strict=True):
        for lr in (0.4, 0.1):
            value = lr if precision else None
            write(
                folder, {"a": value}, config=canonical_json({"lr": lr}), cell_id=f"{lr}", precision=precision
            )
    found = compare(*folders, 0.01)
    assert (found.num_regressions, found.num_only_before, found.num_only_after) == (2, 0, 0)


def test_what_only_one_folder_has_is_counted_and_no_regression(folders: tuple[Path, Path]) -> None:
    write(folders[0], {"a": 0.9, "b": 0.8})
    write(folders[0], {"a": 0.9, "b": 0.8}, method="gone")
    write(folders[1], {"a": 0.9, "b": 0.8})
    write(folders[1], {"a": 0.9, "b": 0.8}, seed=1)
    found = compare(*folders, 0.01)
    assert (found.num_only_before, found.num_only_after, found.num_regressions) == (2, 2, 0)


def test_only_seeds_that_both_have_are_averaged(folders: tuple[Path, Path]) -> None:
    for seed, value in ((0, 0.5), (1, 0.7), (2, 0.1)):
        write(folders[0], {"a": value, "b": 0.8}, seed=seed)
    for seed, value in ((0, 0.6), (1, 0.8)):
        write(folders[1], {"a": value, "b": 0.8}, seed=seed)
    line = compare(*folders, 0.01).categories.body[0]
    assert [cell(line, name) for name in HEAD[2:7]] == ["a", "I-AUROC", "60.00", "70.00", "+10.00"]
    assert line[HEAD.index("before")].cell_ids == ("m-0", "m-1")


def test_a_changed_default_is_compared_and_named(folders: tuple[Path, Path]) -> None:
    for folder, lr in zip(folders, (0.4, 0.1), strict=True):
        write(folder, {"a": lr, "b": 0.8}, config=canonical_json({"lr": lr, "epochs": 2}))
    found = compare(*folders, 0.01)
    line = found.categories.body[0]
    assert [cell(line, name) for name in ("method", "difference", "remark")] == [
        "fabricated_a",
        "-30.00",
        "other recipe: lr",
    ]
    assert found.num_regressions == NUM


def test_what_changed_in_one_setting_is_not_said_of_the_other(folders: tuple[Path, Path]) -> None:
    for folder, epochs, lr in zip(folders, (1, 2), (0.1, 0.2), strict=True):
        one, all_ = canonical_json({"epochs": epochs, "lr": 0.1}), canonical_json({"epochs": 5, "lr": lr})
        write(folder, {"a": 0.9}, setting="oneclass", cell_id="one", config=one)
        write(folder, {"a": 0.9}, setting="multiclass", cell_id="all", config=all_)
    lines = compare(*folders, 0.01).categories.body
    assert {(cell(line, "section").split(", ")[1], cell(line, "remark")) for line in lines} == {
        ("oneclass", "other recipe: epochs"),
        ("multiclass", "other recipe: lr"),
    }


def test_of_several_recipes_each_is_compared_with_itself(folders: tuple[Path, Path]) -> None:
    for folder, shift in zip(folders, (0.0, 0.05), strict=True):
        for lr in (0.4, 0.1):
            config = canonical_json({"lr": lr})
            write(folder, {"a": lr + shift, "b": 0.8}, config=config, cell_id=f"lr-{lr}")
    lines = [line for line in compare(*folders, 0.01).categories.body if cell(line, "category") == "a"]
    assert {cell(line, "method") for line in lines} == {"fabricated_a (lr=0.1)", "fabricated_a (lr=0.4)"}
    assert {cell(line, "difference") for line in lines} == {"+5.00"}
    assert {cell(line, "remark") for line in lines} == {""}


def test_other_images_are_said_and_are_no_regression(folders: tuple[Path, Path]) -> None:
    for folder, value in zip(folders, (0.9, 0.5), strict=True):
        write(folder, {"a": value, "b": 0.8}, fingerprint=f"images {value}")
    found = compare(*folders, 0.01)
    assert {cell(line, "remark") for line in found.categories.body} == {"other images"}
    assert found.num_regressions == 0


def test_means_are_of_the_same_images_only(folders: tuple[Path, Path]) -> None:
    for folder, value in zip(folders, (0.9, 0.5), strict=True):
        write(folder, {"a": value}, fingerprint=f"images {value}", method="moved")
        write(folder, {"a": value}, fingerprint="images", method="same")
    assert {line[0].text for line in compare(*folders, 0.01).means.body} == {"same"}


def test_with_several_seeds_significance_is_over_them_too(folders: tuple[Path, Path]) -> None:
    """Better with one seed, worse with another, on the same images: that is no improvement."""
    merits = ((1.0, 1.6, 0.4), (1.9, 0.6, 1.7))
    for folder, by_seed in zip(folders, merits, strict=True):
        for seed, merit in enumerate(by_seed):
            write(folder, {"a": 0.5 + merit / 10}, seed=seed)
            own = scores(f"m-{seed}", "a", merit=merit, seed=1, num_images=600)
            write_scores(folder, own)
    lines = {cell(line, "metric"): line for line in compare(*folders, 0.01).categories.body}
    assert cell(lines["I-AUROC"], "significant") == "no (images and seeds)"


def test_significance_is_over_the_same_images(folders: tuple[Path, Path]) -> None:
    for folder, merit in zip(folders, (3.0, 0.5), strict=True):
        write(folder, {"a": 0.9, "b": 0.8})
        write_scores(folder, scores("m-0", "a", merit=merit, seed=1) + scores("m-0", "b", merit=1.0, seed=2))
    lines = compare(*folders, 0.01).categories.body
    said = {(cell(line, "category"), cell(line, "metric")): cell(line, "significant") for line in lines}
    assert said["a", "I-AUROC"] == "yes (images)"
    assert said["b", "I-AUROC"] == "no (images)"
    assert said["a", "P-AUROC"] == "not tested"


def test_significance_is_over_the_seeds_where_there_are_six(folders: tuple[Path, Path]) -> None:
    for seed in range(6):
        write(folders[0], {"a": 0.8, "b": 0.8}, seed=seed)
        write(folders[1], {"a": 0.8 + 0.001 * (seed + 1), "b": 0.8 + 0.001 * (-1) ** seed}, seed=seed)
    lines = compare(*folders, 0.01).categories.body
    said = {(cell(line, "category"), cell(line, "metric")): cell(line, "significant") for line in lines}
    assert said["a", "AUPRO"] == "yes (seeds)"
    assert said["b", "AUPRO"] == "no (seeds)"


def test_seeds_that_contradict_their_mean_are_said(folders: tuple[Path, Path]) -> None:
    for seed in range(15):
        write(folders[0], {"a": 0.8}, seed=seed)
        write(folders[1], {"a": 0.5 if seed == 0 else 0.81 + 0.001 * seed}, seed=seed)
    line = compare(*folders, 0.01).categories.body[0]
    assert float(cell(line, "difference")) < 0
    assert cell(line, "significant") == "yes (seeds, against the mean)"


def test_means_are_paired_over_the_categories(folders: tuple[Path, Path]) -> None:
    names = "abcdef"
    write(folders[0], {name: 0.5 for name in names})
    write(folders[1], {name: 0.5 + 0.01 * (i + 1) for i, name in enumerate(names)})
    means = compare(*folders, 0.1).means
    line = means.body[0]
    assert [value.text for value in line[2:6]] == ["I-AUROC", "50.00", "53.50", "+3.50"]
    said = "95 % for normal values, 88 % for skewed ones"  # of a difference, six categories, one seed
    assert means.notes == (f"Simulated coverage of these intervals: over categories {said}.",)
    expected = scipy.stats.ttest_1samp(0.01 * np.arange(1, 7), 0)
    assert line[7].mean == pytest.approx(expected.pvalue)
    assert (line[6].low, line[6].high) == pytest.approx(tuple(expected.confidence_interval()))


def test_means_over_too_few_categories_have_no_interval_and_no_coverage(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write(folder, {"a": 0.5, "b": 0.6})
    assert compare(*folders, 0.1).means.notes == ()


def test_versions_and_machines_that_differ_are_marked(folders: tuple[Path, Path]) -> None:
    for folder, commit in zip(folders, ("abc", "def"), strict=True):
        write(folder, {"a": 0.9, "b": 0.8}, git_commit=commit, git_dirty=commit == "def", host="node")
    lines = {
        line[0].text: [value.text for value in line[1:]] for line in compare(*folders, 0.01).origins.body
    }
    assert lines["git_commit"] == ["abc", "def (dirty)", "*"]
    assert lines["host"] == ["node", "node", ""]


@pytest.mark.parametrize(
    ("after", "told"),
    [({"num_threads": 2}, True), ({"num_threads": 1}, False), ({"device": "cuda", "num_threads": 1}, True)],
)
def test_the_same_seed_elsewhere_is_said_to_be_another_draw(
    folders: tuple[Path, Path], kdbench: Call, after: dict[str, Any], told: bool
) -> None:
    write(folders[0], {"a": 0.9}, device="cpu", device_name="chip", num_threads=1)
    write(folders[1], {"a": 0.9}, **{"device": "cpu", "device_name": "chip"} | after)
    assert ("is another draw" in " ".join(kdbench("compare", *folders)[1].split())) == told
    other = "chip, 2 threads" if after["num_threads"] == 2 else "chip; chip, 1 thread"
    notes = compare(*folders, 0.01).origins.notes
    assert len(notes) == told
    assert all(other in note for note in notes)


def test_everything_can_be_written(folders: tuple[Path, Path], kdbench: Call, tmp_path: Path) -> None:
    write(folders[0], {"a": 0.9, "b": 0.8})
    write(folders[1], {"a": 0.9, "b": 0.7})
    code, said = kdbench("compare", *folders, "--out", tmp_path / "out")
    assert code == 1
    assert f"all differences: {tmp_path / 'out/compare.md'}" in said
    text = (tmp_path / "out/compare.md").read_text()
    assert f"{NUM} beyond the tolerance; {NUM} regressions" in text
    with (tmp_path / "out/compare.csv").open(newline="") as file:
        found = {(one["line"], one["column"]): one["mean"] for one in csv.DictReader(file)}
    name = "fabricated_a / fabricated, multiclass, profile paper, preset exact (metrics v1) / b / mAD"
    assert float(found[name, "difference"]) == pytest.approx(-0.1)


@pytest.mark.parametrize("tolerance", [-0.01, 1.0, float("nan")])
def test_a_tolerance_that_is_no_fraction_is_refused(folders: tuple[Path, Path], tolerance: float) -> None:
    with pytest.raises(RequestError, match="it is a fraction"):
        compare(*folders, tolerance)


def test_wrong_input_is_exit_code_2(folders: tuple[Path, Path], kdbench: Call) -> None:
    write(folders[0], {"a": 0.9, "b": 0.8})
    code, said = kdbench("compare", *folders)
    assert code == 2
    assert f"no results in {folders[1]}" in said
    write(folders[1], {"a": 0.9, "b": 0.8}, preset="ader")
    code, said = kdbench("compare", *folders)
    assert code == 2
    assert "have no row in common" in said
