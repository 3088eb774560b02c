"""Rows of images that changed since are named, and count in no mean (promise 5)."""

import io
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import STFPM, TINY
from fabricated import all_metrics, row
from PIL import Image

from kdbench.errors import DataError
from kdbench.grid.status import RunFile, write_run
from kdbench.reports.entries import entries
from kdbench.reports.leaderboard import Section, assemble, write_leaderboard
from kdbench.reports.rows import load, sections
from kdbench.results.prune import leftovers
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, SCORES, Results, read
from kdbench.results.superseded import Superseded, changes, last_asked, runs_ahead


def cell(cell_id: str, content: str, started: str | None, **changes: Any) -> dict[str, Any]:
    facts = {"dataset": "folder", "categories": ["part"], "split_sha256": None, "status": "ok"}
    facts["dataset_categories"] = ["part", "screw"]
    return {"cell_id": cell_id, "fingerprint": content, "started_at": started} | facts | changes


def superseded(cells: Iterable[dict[str, Any]], **asked: str) -> dict[str, Superseded]:
    return changes(cells, lambda: asked).instead


def test_the_content_that_started_last_counts():
    cells = [cell("a0", "old", "2026-01-01T00:00:00+00:00"), cell("a1", "old", "2026-01-02T00:00:00+00:00")]
    cells += [cell("b1", "new", "2026-01-04T00:00:00+00:00"), cell("b0", "new", "2026-01-03T00:00:00+00:00")]
    instead = Superseded(fingerprint="new", since="2026-01-03T00:00:00+00:00")
    assert superseded(cells) == {"a0": instead, "a1": instead}
    assert superseded(reversed(cells)) == {"a0": instead, "a1": instead}


def test_of_three_contents_the_last_counts_and_one_that_came_back_counts_again():
    cells = [cell("a", "old", "2001"), cell("b", "between", "2002"), cell("c", "new", "2003")]
    assert superseded(cells).keys() == {"a", "b"}
    assert superseded([*cells, cell("d", "old", "2004")]).keys() == {"b", "c"}


@pytest.mark.parametrize(
    "other",
    [{"dataset": "visa"}, {"split_sha256": "another split"}, {"categories": ["part", "screw"]}],
    ids=["dataset", "split", "categories"],
)
def test_what_is_of_other_images_on_purpose_is_not_superseded(other):
    assert superseded([cell("a", "old", "2001"), cell("b", "new", "2002", **other)]) == {}


@pytest.mark.parametrize("times", [(None, None), ("2001", "2001")], ids=["unknown", "the same second"])
def test_where_nobody_knows_what_came_last_nothing_is_superseded(times):
    assert superseded([cell("a", "one", times[0]), cell("b", "two", times[1])]) == {}


def test_rows_without_a_content_supersede_nothing():
    assert superseded([cell("a", "old", "2001"), cell("b", None, "2002"), cell("c", "new", None)]) == {
        "c": Superseded(fingerprint="old", since="2001")
    }


def test_a_change_that_was_taken_back_counts_again():
    """The cells of the images of today finished long ago: the last run found them, and ran nothing."""
    cells = [cell("a", "today", "2001"), cell("b", "between", "2002")]
    assert superseded(cells).keys() == {"a"}
    assert superseded(cells, a="2003", b="2002").keys() == {"b"}
    assert superseded(cells, a="2001", b="2002").keys() == {"a"}


def test_a_cell_that_failed_since_its_images_changed_is_no_sign_of_its_images():
    cells = [cell("a", "old", "2001"), cell("b", "new", "2002"), cell("c", "old", "2003", status="failed")]
    assert superseded(cells).keys() == {"a", "c"}
    # What a run asked for was on the disk when it began, whatever became of its cells.
    assert superseded(cells, c="2004").keys() == {"b"}


def test_a_time_of_the_future_says_nothing():
    """A clock was wrong: what ran since it was set right would never count."""
    early, future = "2026-01-01T00:00:00+00:00", "2931-01-01T00:00:00+00:00"
    cells = [cell("a", "old", future), cell("b", "new", early)]
    assert superseded(cells).keys() == {"a"}
    assert superseded(cells, a=future).keys() == {"a"}
    assert superseded([cell("a", "old", future), cell("b", "new", future)]) == {}
    soon = (datetime.now(UTC) + timedelta(minutes=30)).isoformat(timespec="seconds")
    assert superseded([cell("a", "old", early), cell("b", "new", soon)]).keys() == {"a"}


def test_a_run_of_the_future_is_named(tmp_path):
    results = Results(tmp_path)
    assert runs_ahead(results.storage) == []
    for run_id in ("20260101-000000-abcdef", "by hand"):
        write_run(results, RunFile(run_id=run_id, started=0.0, cells={}))
    assert runs_ahead(results.storage) == []
    write_run(results, RunFile(run_id="29310101-000000-abcdef", started=0.0, cells={}))
    (said,) = runs_ahead(results.storage)
    assert said.startswith(f"the run 29310101-000000-abcdef of {tmp_path} began in the future: a clock is ")


def test_of_two_folders_with_other_categories_the_last_one_counts():
    """The mean of a dataset over what two folders had would be of neither."""
    both = {"dataset_categories": ["part", "screw"]}
    cells = [cell("a", "p1", "2001", **both), cell("b", "s1", "2002", categories=["screw"], **both)]
    other = cell("c", "p2", "2003", dataset_categories=["part"])
    counts = {"a": Superseded(fingerprint="p2", since="2003"), "b": Superseded(fingerprint="", since="2003")}
    assert superseded([*cells, other]) == counts
    assert superseded([*cells, other | {"categories": ["nut"], "dataset_categories": ["nut"]}]) == {
        name: Superseded(fingerprint="", since="2003") for name in "ab"
    }
    assert superseded([*cells, other], a="2004", b="2004").keys() == {"c"}
    assert superseded([*cells, other | {"split_sha256": "another"}]) == {}
    assert superseded([*cells, other | {"started_at": "2002"}]).keys() == {
        "a"
    }  # nobody knows the last folder


def test_a_folder_that_gained_categories_keeps_its_rows():
    before = [
        cell("a", "p1", "2001", dataset_categories=["part"]),
        cell("b", "both", "2001", categories=["part", "screw"], dataset_categories=["part", "screw"]),
    ]
    after = cell("c", "n1", "2002", categories=["nut"], dataset_categories=["nut", "part", "screw"])
    assert superseded([*before, after]) == {}


def test_files_of_runs_are_read_only_where_images_changed():
    def never() -> dict[str, str]:
        raise AssertionError("nobody needs to know")

    assert changes([cell("a", "old", "2001"), cell("b", "old", "2002")], never).instead == {}


def test_runs_tell_what_they_asked_for_last(tmp_path):
    results = Results(tmp_path)
    for number, (cells, finished) in enumerate([({"a": 1.0}, ["b"]), ({"c": 1.0}, []), ({}, ["a"])]):
        run = RunFile(run_id=f"run-{number}", started=86400.0 * number, cells=cells, finished=finished)
        write_run(results, run)
    days = [f"1970-01-0{number}T00:00:00+00:00" for number in (1, 2, 3)]
    assert last_asked(results.storage) == {"a": days[2], "b": days[0], "c": days[1]}
    results.storage.write("runs/old.json", b'{"run_id": "old", "started": 432000.0, "cells": {"b": 1}}')
    assert last_asked(results.storage)["b"] == "1970-01-06T00:00:00+00:00"


@pytest.mark.parametrize("content", [b"half", b"[]", b"{}", b'{"cells": {}, "started": "now"}'])
def test_a_damaged_file_of_a_run_is_named(tmp_path, content):
    storage = Storage(tmp_path)
    storage.write("runs/bad.json", content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/runs/bad\.json is damaged\. Delete it"):
        last_asked(storage)


def write(folder: Path, method: str, day: int, content: dict[str, str], value: float, **changes: Any) -> None:
    """Oneclass cells of one day: category -> its content."""
    for name, print_ in content.items():
        facts = {
            "cell_id": f"{method}-{name}-{print_}",
            "method": method,
            "setting": "oneclass",
            "category": name,
            "categories": [name],
            "dataset_categories": ["a", "b"],
            "fingerprint": print_,
            "started_at": f"2026-01-0{day}T00:00:00+00:00",
        }
        Results(folder).write(CELLS, [row(**all_metrics(value) | facts | changes)])


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    """Two methods ran; then a label of `b` was corrected, and the first ran again."""
    write(tmp_path, "first", 1, {"a": "a1", "b": "b1"}, 0.5)
    write(tmp_path, "second", 1, {"a": "a1", "b": "b1"}, 0.75)
    write(tmp_path, "first", 3, {"b": "b2"}, 0.25)
    return tmp_path


def test_the_mean_is_of_the_rows_that_count(corrected):
    ((_, rows),) = sections(load(corrected).cells)
    first, second = entries(rows)
    assert (first.name, first.holes, first.unlike) == ("first", (), ())
    assert first.means["mad"].mean == pytest.approx((0.5 + 0.25) / 2)
    # Its `b` is of images that are no longer there: a hole, and no mean of two kinds of images.
    assert (second.name, second.holes) == ("second", ("1 of 2 categories",))
    assert second.means["mad"] is None


def holes_of(folder: Path) -> Section:
    return next(section for section in assemble(load(folder)) if section.title == "Holes")


def test_the_mean_is_over_the_categories_that_the_folder_has_now(tmp_path):
    """`b` was removed; `a` has rows from before and from after that."""
    write(tmp_path, "m", 1, {"a": "a1", "b": "b1"}, 0.5)
    write(tmp_path, "m", 2, {"a": "a1"}, 0.25, cell_id="later", seed=1, dataset_categories=["a"])
    rows = load(tmp_path)
    assert rows.earlier["cell_id"].tolist() == ["m-b-b1"]
    ((_, cells),) = sections(rows.cells)
    (entry,) = entries(cells)
    assert (entry.holes, entry.dataset_categories) == ((), ["a"])
    assert entry.means["mad"].mean == pytest.approx((0.5 + 0.25) / 2)
    assert "they are of a folder that had other categories" in holes_of(tmp_path).tables[0].notes[0]


def test_the_report_names_the_rows_that_do_not_count(corrected):
    table = holes_of(corrected).tables[0]
    assert table.title == "Rows of earlier images, left out"
    title = "fabricated, oneclass, profile paper, preset exact (metrics v1)"
    day = "2026-01-0{}T00:00:00+00:00".format
    assert [[value.text for value in line] for line in table.body] == [
        [name, title, "b", "0", f"{name}-b-b1", day(1), day(3)] for name in ("first", "second")
    ]
    assert "A row counts if it has the images of the cell of its dataset" in table.notes[0]
    markdown = write_leaderboard(corrected, corrected / "report")[0].read_text()
    assert "first-b-b1" in markdown
    assert markdown.count("second-b-b1") == 1


def test_a_change_that_was_taken_back_counts_again_in_the_report(corrected):
    """The last run asked for the first images again, and all of its cells had finished."""
    day_4 = datetime(2026, 1, 4, tzinfo=UTC).timestamp()
    finished = ["first-a-a1", "first-b-b1"]
    write_run(Results(corrected), RunFile(run_id="last", started=day_4, cells={}, finished=finished))
    rows = load(corrected)
    assert rows.earlier["cell_id"].tolist() == ["first-b-b2"]
    ((_, cells),) = sections(rows.cells)
    assert {entry.name: entry.means["mad"].mean for entry in entries(cells)} == {"first": 0.5, "second": 0.75}
    assert [one.files for one in leftovers(Storage(corrected), set)] == [("cells/first-b-b2.parquet",)]


def test_the_terminal_says_what_does_not_count(corrected):
    assert holes_of(corrected).headline == (
        "rows of earlier images of fabricated/b: 2, which do not count; the report names them, "
        "`kdbench results prune` moves them away"
    )
    assert holes_of(corrected).headline in write_leaderboard(corrected, corrected / "report")[1]


def test_nothing_is_said_where_all_rows_count(tmp_path):
    write(tmp_path, "first", 1, {"a": "a1", "b": "b1"}, 0.5)
    assert all(section.title != "Holes" for section in assemble(load(tmp_path)))


def test_scores_of_rows_that_do_not_count_are_left_out(corrected):
    for cell_id in ("first-b-b1", "first-b-b2"):
        score = {"category": "b", "image": "x", "defect": "d", "label": True, "image_score": 1.0}
        Results(corrected).write(SCORES, [{"cell_id": cell_id} | score])
    assert load(corrected).scores["cell_id"].tolist() == ["first-b-b2"]


def test_a_recipe_that_does_not_count_gives_no_name_to_the_one_that_does(tmp_path):
    write(tmp_path, "m", 1, {"a": "a1", "b": "b1"}, 0.5, config='{"lr": 0.1}')
    write(tmp_path, "m", 2, {"a": "a2", "b": "b2"}, 0.75, config='{"lr": 0.2}')
    rows = load(tmp_path)
    assert set(rows.cells["entry"]) == {"m"}
    assert set(rows.earlier["entry"]) == {"m (lr=0.1)"}


def test_a_category_that_ran_twice_with_the_same_images_is_said_so(tmp_path):
    """The same recipe in two words: `auto`, which was bf16, and bf16."""
    for precision in ("auto", "bf16"):
        config = f'{{"precision": "{precision}"}}'
        write(tmp_path, "m", 1, {"a": "a1"}, 0.5, cell_id=precision, config=config, precision="bf16")
    ((_, rows),) = sections(load(tmp_path).cells)
    (entry,) = entries(rows)
    assert entry.holes == ("1 of 2 categories", "1 twice, with the same images")


def test_a_label_that_was_corrected_and_put_back_is_followed(mvtec, tmp_path, kdbench):
    """The same command three times: it runs, runs again for the other label, and finds the first rows."""
    results = tmp_path / "r"
    words = [*STFPM, "--root", mvtec, *TINY, "--categories", "bottle", "--results", results]
    mask = next((mvtec / "bottle/ground_truth").rglob("*.png"))
    masks = [mask.read_bytes(), _turned(mask)]
    found = []
    for day, content in enumerate((masks[0], masks[1], masks[0]), 1):
        mask.write_bytes(content)
        assert kdbench("run", *words, "--executor", "local", "--out", tmp_path / "out")[0] == 0
        _at_day(day, results)
        rows = load(results)
        found.append((rows.cells["cell_id"].tolist(), rows.earlier["cell_id"].tolist()))
    ((first,), _), ((second,), _), _ = found
    assert found == [([first], []), ([second], [first]), ([first], [second])]


def _turned(mask: Path) -> bytes:
    """The mask with its rows as columns."""
    content = io.BytesIO()
    Image.fromarray(np.asarray(Image.open(mask)).T).save(content, "PNG")
    return content.getvalue()


def _at_day(day: int, results: Path) -> None:
    """Date the newest run and its rows: in a test the runs may be of the same second."""
    began = datetime(2026, 1, day, tzinfo=UTC)
    run = max((results / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    said = json.loads(run.read_text())
    run.write_text(json.dumps(said | {"started": began.timestamp()}))
    for one in read(results, CELLS).to_pylist():
        if one["run_id"] == said["run_id"]:
            Results(results).write(CELLS, [one | {"started_at": began.isoformat(timespec="seconds")}])
