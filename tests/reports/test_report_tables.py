"""Tables in three formats: the exact text of a report with holes, ties, failures and names full of markup."""

import csv
import io
from pathlib import Path

from fabricated import all_metrics, row, scores, write_scores

from kdbench.reports.leaderboard import assemble, rendered, write_leaderboard
from kdbench.reports.rows import load
from kdbench.reports.tables import Table, Value, hole, percent, text, to_csv, to_latex, to_markdown
from kdbench.results.store import CELLS, LATENCY, Results

GOLDEN = Path(__file__).parents[1] / "golden"
NASTY = "a|b <i>&amp; _x_ 5% $x$ #{~^\\} `ü` ☃"
CATEGORIES = [NASTY, "plain", "third"]


def write_golden_rows(folder: Path) -> None:
    """Two settings of three categories: a tie, two seeds, a failed row, a lone category, an oracle, timings.

    All values are sums of powers of two, so that their means have no rounding of their own.
    """
    results = Results(folder)

    def write(number: int, values: dict[str, float | None], **changes: object) -> None:
        facts = {"cell_id": f"cell{number}", "dataset": "nasty|<b>", "dataset_categories": CATEGORIES}
        facts |= {"categories": CATEGORIES, "num_parameters": 1234567, "flops": 10**9, "train_s": 12.5}
        rows = []
        for category, value in values.items():
            ended = (
                {"status": "ok"}
                if value is not None
                else {"status": "oom", "error": "Traceback\nno | memory"}
            )
            of_row = {"category": category, "texture": category != "third"}
            rows.append(row(**facts | of_row | all_metrics(value) | ended | changes))
        results.write(CELLS, rows)

    whole = dict(zip(CATEGORIES, (0.875, 0.8125, 0.75), strict=True))
    write(1, whole, method="tie_b")
    write(2, {name: value + 1 / 64 for name, value in whole.items()}, method="tie_b", seed=1)
    write(3, {name: value + 1 / 64 for name, value in whole.items()}, method="tie_a")
    write(4, whole, method="tie_a", seed=1)
    write(5, dict(zip(CATEGORIES, (1.0, 0.96875, 0.9375), strict=True)), method="one_seed")
    write(6, dict(zip(CATEGORIES, (0.5, None, 0.625), strict=True)), method="<script>&", seed=0)
    write(7, {"plain": 0.9375}, method="tie_a", setting="oneclass", categories=["plain"])
    for number, name in enumerate(CATEGORIES, 9):
        write(number, {name: whole[name]}, method="tie_b", setting="oneclass", categories=[name])
    write(8, dict.fromkeys(CATEGORIES, 1.0), method="tie_a", selection="test")
    timing = {name: row()[name] for name in ("run_id", "config", "dataset", "setting", "profile", "device")}
    timing |= {"device_name": "fabricated GPU", "precision": "fp32", "batch_size": 1, "images_per_s": 500.0}
    for number, method, p50, busy in (
        (1, "tie_b", 2.0, False),
        (2, "tie_b", 2.5, False),
        (3, "tie_a", 1.0, True),
    ):
        times = {"p50_ms": p50, "p99_ms": 2 * p50, "busy": busy, "neighbours": "python 4711" if busy else ""}
        results.write(LATENCY, [timing | times | {"cell_id": f"cell{number}", "method": method, "seed": 0}])


def golden(folder: Path) -> dict[str, str]:
    write_golden_rows(folder)
    return rendered(assemble(load(folder)))


def test_a_report_is_exactly_the_reviewed_one(tmp_path: Path) -> None:
    found = golden(tmp_path)
    assert sorted(found) == [f"leaderboard.{kind}" for kind in ("csv", "md", "tex")]
    for name, content in found.items():
        assert content == (GOLDEN / name).read_text(encoding="utf-8")


NAMES = Table(
    title="T & <t>",
    head=("method", "a|b"),
    body=((text("x|<i>*y*</i> [z](u) &lt;"), Value(text="1.00 ± 0.50", mean=0.01, best=True)),),
    notes=("100 %\nsure",),
)


def test_markdown_escapes_what_would_be_markup() -> None:
    assert to_markdown(NAMES) == (
        "| method | a\\|b |\n|---|---|\n"
        "| x\\|&lt;i&gt;\\*y\\*&lt;/i&gt; \\[z\\](u) &amp;lt; | **1.00 ± 0.50** |\n\n100 % sure\n"
    )


def test_latex_escapes_every_special_character() -> None:
    said = Table(title="t_1", head=("method",), body=((text("a_b & 5% $x$ #{}~^\\ <>"),),))
    assert to_latex(said) == (
        "\\begin{table}\n\\centering\n\\caption{t\\_1}\\label{tab:t-1}\n\\begin{tabular}{l}\n\\toprule\n"
        "method \\\\\n\\midrule\n"
        "a\\_b \\& 5\\% \\$x\\$ \\#\\{\\}\\textasciitilde{}\\textasciicircum{}\\textbackslash{} "
        "\\textless{}\\textgreater{} \\\\\n\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )
    assert "\\begin{tabular}{lr}" in to_latex(NAMES)
    assert "\\textbf{1.00 $\\pm$ 0.50}" in to_latex(NAMES)


def test_csv_has_full_precision_and_the_cells_of_each_number() -> None:
    line = (
        text("m"),
        percent(1 / 3, 0.1, cell_ids=["c1", "c2"], bounds=(0.3, 0.4)),
        hole("not run"),
        text(""),
    )
    (found,) = csv.DictReader(io.StringIO(to_csv([Table(title="t", head=("method", "v"), body=(line[:2],))])))
    assert found["line"] == "m"
    assert float(found["mean"]) == 1 / 3
    assert (found["std"], found["low"], found["high"]) == ("0.1", "0.3", "0.4")
    assert found["cell_ids"].split() == ["c1", "c2"]
    written = to_csv([Table(title="t", head=("method", "v", "hole", "empty"), body=(line,))])
    assert [one["hole"] for one in csv.DictReader(io.StringIO(written))] == ["", "not run"]


def test_every_number_of_the_report_names_cells_that_exist(tmp_path: Path) -> None:
    write_golden_rows(tmp_path)
    rows = load(tmp_path)
    known = set(rows.cells["cell_id"])
    ranking = next(t for s in assemble(rows) for t in s.tables if t.title.startswith("Ranking: nasty"))
    for line in ranking.body:
        of_method = rows.cells[rows.cells["method"] == line[1].text]
        for value in line[2:11]:
            assert set(value.cell_ids) <= known & set(of_method["cell_id"])
            if value.mean is not None:
                assert (
                    len(value.cell_ids) == of_method.loc[of_method["selection"] != "test", "seed"].nunique()
                )


def test_a_report_needs_neither_scores_nor_timings_nor_probes(tmp_path: Path) -> None:
    Results(tmp_path).write(CELLS, [row(category=name, **all_metrics(0.5)) for name in ("a", "b")])
    text_ = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    assert "| 1 | fabricated\\_a |".replace("\\", "") in text_
    assert "Latency" not in text_
    assert "95 % intervals" not in text_


def test_scores_of_a_cell_that_still_runs_are_left_out(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.write(CELLS, [row(category=name, **all_metrics(0.5)) for name in ("a", "b")])
    write_scores(tmp_path, [s for name in ("a", "b") for s in scores("c0", name, merit=1, seed=0)])
    write_scores(tmp_path, scores("running", "a", merit=1, seed=0))
    assert set(load(tmp_path).scores["cell_id"]) == {"c0"}
    (tmp_path / "cells/.c9.parquet.0123.tmp").write_bytes(b"half a file")
    text_ = write_leaderboard(tmp_path, tmp_path / "out")[0].read_text()
    assert "95 % intervals" in text_


if __name__ == "__main__":  # writes the golden files anew; look at the difference before committing it
    from tempfile import TemporaryDirectory

    GOLDEN.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        for file, said in golden(Path(folder)).items():
            (GOLDEN / file).write_text(said, encoding="utf-8")
