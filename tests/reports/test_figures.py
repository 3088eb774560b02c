"""Figures by their values: what is on a front, where spans lie, what is said instead of a figure."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricated_run import Grid, fabricate

from kdbench.reports import figures_accuracy as accuracy
from kdbench.reports import figures_speed as speed
from kdbench.reports.costs import latencies
from kdbench.reports.entries import entries
from kdbench.reports.figures import COLOURS, Sketch, add_legend, log_axis, marks, new_figure, render
from kdbench.reports.figures_speed import Point, Timing
from kdbench.reports.rows import load, sections
from kdbench.results.store import CURVES, read

CATEGORIES = ("bottle", "cable", "grid", "nut", "tile", "wood")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    fabricate(folder, Grid(datasets={"toy": CATEGORIES}, seeds=(0, 1), num_images=12, pictures=False))
    return load(folder), folder


def section(rows, setting: str):
    (found,) = [(group, cells) for group, cells in sections(rows[0].cells) if group.setting == setting]
    return found


def point(name: str, ms: float, percent: float, *, busy: bool = False) -> Point:
    times = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms"), ms)
    timing = Timing(
        entry=name, place="gpu", precision="fp32", batch_size=1, images_per_s=1.0, busy=busy, **times
    )
    return Point(timing=timing, accuracy=percent, deviation=0.0, off_front="busy" if busy else "")


def test_the_front_holds_what_nothing_else_beats_and_nothing_busy():
    placed = [point("a", 3, 70), point("b", 5, 80), point("c", 6, 75), point("d", 9, 90)]
    placed += [point("e", 5, 79), point("f", 1, 99, busy=True), point("g", 9, 90)]
    assert [p.timing.entry for p in speed.front(placed)] == ["a", "b", "d"]


def test_what_has_no_rank_is_hollow_says_why_and_is_not_on_the_front(rows):
    """stfpm is the fastest; of one seed it beats nothing, and what was selected on test images never does."""
    group, cells = section(rows, "multiclass")
    look, here = marks(cells["entry"]), rows[0].latencies["place"] == "Tesla X"

    def names(cells: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
        found = entries(cells)
        timed = speed.timings(found, rows[0].latencies[here])
        (sketch,) = speed.accuracy_latency(group, found, timed, look)
        (axes,) = sketch.draw().axes
        filled = {bars.get_label(): bars[0].get_markerfacecolor() for bars in axes.containers}
        placed = speed.points(found, [t for t in timed if t.batch_size == 1], "mad")
        return [p.timing.entry for p in speed.front(placed)], filled

    whole, all_filled = names(cells)
    assert whole[0] == "stfpm"
    assert all_filled["stfpm"] == look["stfpm"].colour
    front, filled = names(cells[(cells["entry"] != "stfpm") | (cells["seed"] == 0)])
    assert "stfpm" not in front
    assert front
    assert {name for name, colour in filled.items() if colour == "white"} == {"stfpm (1 of 2 seeds)"}
    nothing, hollow = names(cells.assign(oracle=True))
    assert nothing == []
    assert hollow["dcam (selected on test images)"] == "white"


def test_timings_are_means_of_what_ran_alone_as_in_the_tables(rows):
    group, cells = section(rows, "oneclass")
    found = entries(cells)
    timed = speed.timings(found, rows[0].latencies)
    assert {(t.place, t.batch_size) for t in timed} == {
        (place, size) for place in ("Tesla X", "Other GPU 40 GB <laptop>") for size in (1, 8)
    }
    assert {t.entry for t in timed if t.busy} == {"dskd"}
    (dcam,) = [t for t in timed if (t.entry, t.place, t.batch_size) == ("dcam", "Tesla X", 8)]
    table = next(
        t for t in latencies(group, found, rows[0].latencies, rows[0].untimed) if "Tesla X" in t.title
    )
    (line,) = [line for line in table.body if [line[1].text, line[3].text] == ["dcam", "8"]]
    own = rows[0].latencies.query("entry == 'dcam' and setting == 'oneclass' and batch_size == 8")
    medians = own.loc[own["place"] == "Tesla X", "p50_ms"]
    assert dcam.p50_ms == pytest.approx(medians.mean())
    assert medians.mean() != pytest.approx(medians.median(), rel=1e-3)
    shown = [line[table.head.index(name)].mean for name in ("p50 ms", "images/s")]
    assert [dcam.p50_ms, dcam.images_per_s] == pytest.approx(shown)


def test_whiskers_end_at_the_lowest_and_highest_of_fewer_than_100_batches(rows):
    """Detectors of 60 batches: two together have percentiles, one alone has not, and no p99."""
    group, cells = section(rows, "oneclass")
    found, look = entries(cells), marks(cells["entry"])
    here = rows[0].latencies.query("place == 'Tesla X' and setting == 'oneclass' and entry == 'dcam'")
    one, two = (
        here[here["cell_id"] == here["cell_id"].iloc[0]],
        here[here["cell_id"].isin(here["cell_id"][:4])],
    )
    for timed, (low, high) in ((one, (0, 100)), (two, (1, 99))):
        times = np.concatenate([*timed.loc[timed["batch_size"] == 1, "times_ms"]])
        (sketch,) = speed.latency_distributions(group, found, timed, look)
        assert "or the lowest and highest time if fewer than 100 batches were timed." in sketch.says
        lines = sketch.draw().axes[0].lines
        assert [bool(line.get_path_effects()) for line in lines] == [False] * 4 + [True]  # the median
        whiskers = [line.get_xdata() for line in lines[:2]]
        assert sorted(np.ravel(whiskers))[::3] == pytest.approx(np.percentile(times, [low, high]))
        assert {np.isnan(t.p99_ms) for t in speed.timings(found, timed)} == {True}
    times = [np.resize(own, 100) for own in one["times_ms"]]
    (first, *_) = speed.timings(found, one.assign(times_ms=times))
    assert first.p99_ms == one["p99_ms"].iloc[0]


def test_precisions_are_points_and_figures_of_their_own(rows):
    """Four times as fast in bf16; nobody knows whether snl's timings in bf16 were taken alone."""
    group, cells = section(rows, "oneclass")
    found, slow = entries(cells), rows[0].latencies
    columns = ["p50_ms", "p90_ms", "p99_ms"]
    fast = slow.assign(precision="bf16", **{name: slow[name] / 4 for name in columns})
    fast["busy"] = fast["busy"].astype(object).where(fast["method"] != "snl", None)
    both = pd.concat([slow, fast], ignore_index=True)
    timed = speed.timings(found, both)
    by_key = {(t.entry, t.place, t.precision, t.batch_size): t for t in timed}
    assert len(by_key) == len(timed) == 2 * len(speed.timings(found, slow))
    for (entry, place, precision, size), timing in by_key.items():
        assert timing.p50_ms == pytest.approx(
            by_key[entry, place, "fp32", size].p50_ms / (4 if precision == "bf16" else 1)
        )
    assert {t.precision for t in timed if t.entry == "snl" and t.busy} == {"bf16"}
    look = marks(cells["entry"])
    plots = [*speed.accuracy_latency(group, found, timed, look)]
    assert [sketch.title.removesuffix(f": {group.title}") for sketch in plots] == [
        f"{place}, {precision}: Accuracy against latency"
        for place in ("Other GPU 40 GB <laptop>", "Tesla X")
        for precision in ("bf16", "fp32")
    ]
    boxes = [*speed.latency_distributions(group, found, both, look)]
    assert len({sketch.name for sketch in boxes}) == len(boxes) == 4
    for sketch in boxes:
        drawn = sketch.draw.args[0]
        assert drawn["precision"].nunique() == 1
        assert set(drawn["setting"]) == {"oneclass"}
        assert render(sketch).svg


def test_of_the_seeds_the_lowest_is_shown_of_which_the_most_was_kept(rows):
    _, cells = section(rows, "oneclass")
    found = entries(cells)
    seeds = cells.drop_duplicates("cell_id").set_index("cell_id")["seed"]
    assert set(seeds) == {0, 1}
    later = {cell_id: 2 for cell_id, seed in seeds.items() if seed > 0}
    assert set(accuracy.picture_cells(found, later)["seed"]) == {1}
    one = accuracy.picture_cells(found, {})["cell_id"].iloc[0]
    mixed = accuracy.picture_cells(found, later | {one: 3}).set_index("cell_id")["seed"]
    assert mixed[one] == 0
    assert sorted(set(mixed)) == [0, 1]


def test_every_figure_of_a_whole_run_is_drawn_or_says_why_not(rows):
    loaded, folder = rows
    look = marks(loaded.cells["entry"])
    group, cells = section(rows, "oneclass")
    found = entries(cells)
    chosen = accuracy.picture_cells(found, {})
    assert chosen.groupby("entry").size().to_dict() == {m: 6 - (m == "stfpm") for m in look}
    assert set(chosen["seed"]) == {0}
    ended = accuracy.succeeded_cells(found)
    kept = read(folder, CURVES, only=ended["cell_id"]).to_pandas().merge(ended, on=["cell_id", "category"])
    sketches = [
        *speed.accuracy_latency(group, found, speed.timings(found, loaded.latencies), look),
        accuracy.heat_map(group, found),
        *accuracy.curves(group, found, kept, look),
        accuracy.critical_differences(group, found, look),
        accuracy.training(group, cells, look),
        accuracy.interference(group, found, loaded.probes, look),
    ]
    names = [sketch.name for sketch in sketches]
    assert len(set(names)) == len(names) == 8
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names)
    assert {s.name.split("-toy")[0]: s.why_not for s in sketches if not s.draw} == {
        "interference": "only multiclass detectors interfere"
    }
    said = "mean over 5 categories and over seeds 0 and 1."  # bottle failed for one method
    assert said in sketches[3].says


def kept_curves(*lines: tuple[str, str, int, list[float], list[float]]) -> pd.DataFrame:
    """Curves as they are read: entry, category, seed, false positive rates, per-region overlaps."""
    columns = ["entry", "category", "seed", "pro_fpr", "pro"]
    kept = pd.DataFrame(lines, columns=columns)
    return kept.assign(image_fpr=None, image_tpr=None, pixel_fpr=None, pixel_tpr=None)


def test_a_curve_is_the_mean_over_the_seeds_so_that_a_collapsed_one_shows(rows):
    """Seed 1 finds nothing in "nut" until 0.15, then all; a step, whose points are at rates of its own."""
    group, cells = section(rows, "multiclass")
    found, look = entries(cells[cells["entry"].isin(["dcam", "snl"])]), marks(["dcam", "snl"])
    good = ([0.0, 0.0, 0.3], [0.0, 1.0, 1.0])
    kept = kept_curves(
        ("dcam", "nut", 0, *good),
        ("dcam", "nut", 1, [0.0, 0.15, 0.15, 0.3], [0.0, 0.0, 1.0, 1.0]),
        *(("dcam", "wood", seed, *good) for seed in (0, 1)),
        *(("snl", category, seed, *good) for category in ("nut", "wood") for seed in (0, 1)),
    )
    rate, heights = accuracy.mean_heights(kept, accuracy.PANELS[2])
    collapsed = heights["dcam", "nut"]
    assert collapsed[rate < 0.149] == pytest.approx(0.5)
    assert collapsed[rate > 0.151] == pytest.approx(1)
    assert heights["snl", "nut"] == pytest.approx(1)
    mean, each = accuracy.curves(group, found, kept, look)
    assert "mean over 2 categories and over seeds 0 and 1." in mean.says
    ((axes,),) = [mean.draw().axes]
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert drawn["dcam"][rate < 0.149] == pytest.approx(0.75)  # of two categories
    assert drawn["snl"] == pytest.approx(1)
    nut, _ = each.draw().axes
    assert {line.get_label(): line.get_ydata()[0] for line in nut.lines} == {"dcam": 0.5, "snl": 1.0}
    second = next(iter(accuracy.curves(group, found, kept[kept["seed"] == 1], look)))
    assert "2 categories and over seed 1 (no other seed kept curves)." in second.says
    uneven = next(iter(accuracy.curves(group, found, kept.iloc[1:], look)))
    assert "2 categories and over the seeds of each that kept curves." in uneven.says


def test_error_bars_of_interference_end_at_100_and_can_be_seen_on_every_bar(rows):
    group, cells = section(rows, "multiclass")
    found, look = entries(cells[cells["entry"].isin(["dcam", "snl"])]), marks(cells["entry"])

    def ends(probes: pd.DataFrame) -> list[list[tuple[float, float]]]:
        sketch = accuracy.interference(group, found, probes, look)
        assert "standard deviation over seeds, cut at 100 %" in sketch.says
        (axes,) = sketch.draw().axes
        lines = axes.collections  # of each entry the thin bars of its three probes
        assert all(part.get_path_effects() for part in (*lines, *axes.lines[:-1]))
        assert (
            min(low for own in lines for low, _ in np.array(own.get_segments())[..., 1]) > axes.get_ylim()[0]
        )
        return [[tuple(segment[:, 1]) for segment in own.get_segments()] for own in lines]

    probes = rows[0].probes.query("setting == 'multiclass' and entry in ['dcam', 'snl']")
    columns = [*accuracy.PROBES]
    spread = probes.assign(**{name: np.where(probes["seed"] == 0, 1.0, 0.9) for name in columns})
    deviation = 10 / np.sqrt(2)
    assert ends(spread) == [[pytest.approx((95 - deviation, 100))] * 3] * 2
    low = probes.assign(**{name: np.where(probes["seed"] == 0, 0.6, 0.4) for name in columns})
    deviation = 20 / np.sqrt(2)
    assert ends(low) == [[pytest.approx((50 - deviation, 50 + deviation))] * 3] * 2
    one_seed = accuracy.interference(group, found, probes[probes["seed"] == 0], look).draw().axes[0]
    assert [len(segment) for own in one_seed.collections for segment in own.get_segments()] == [0] * 6
    assert "#000000" not in COLOURS  # on which no line can be seen


def test_what_is_missing_is_said_in_words(rows):
    group, cells = section(rows, "multiclass")
    two = entries(cells[cells["entry"].isin(["dcam", "snl"])])
    nothing = rows[0].latencies.iloc[:0]
    (latency,) = speed.accuracy_latency(group, two, speed.timings(two, nothing), {})
    assert (latency.draw, latency.why_not) == (None, "no detector was timed")
    assert accuracy.critical_differences(group, two, {}).why_not == "it needs 3 complete methods, there are 2"
    assert accuracy.interference(group, two, rows[0].probes.iloc[:0], {}).why_not == "no detector was probed"
    (curves,) = accuracy.curves(group, two, pd.DataFrame(), {})
    assert curves.why_not == "the cells kept no curves of these rows"
    assert not list(speed.latency_distributions(group, two, nothing, {}))
    failed = cells.assign(status="failed", **{"epoch_loss": None})
    assert accuracy.training(group, failed, {}).why_not == "no cell kept its losses"


def test_the_same_rows_give_the_same_bytes_and_text_stays_text(rows):
    group, cells = section(rows, "multiclass")
    found, look = entries(cells), marks(cells["entry"])
    one, two = (render(accuracy.critical_differences(group, found, look)) for _ in range(2))
    assert one == two
    assert b">critical difference " in one.svg
    assert b"<dc:date>" not in one.svg
    assert one.png.startswith(b"\x89PNG")


def test_the_heat_map_writes_each_mean_and_leaves_a_hole(rows):
    group, cells = section(rows, "oneclass")
    found = entries(cells)
    svg = render(accuracy.heat_map(group, found)).svg.decode()
    own = cells[(cells["entry"] == "dcam") & (cells["category"] == "grid")]
    assert f">{100 * own['mad'].mean():.1f}</text>" in svg
    assert len(re.findall(r">\d\d\.\d</text>", svg)) == 6 * 5 - 1


def test_spans_use_as_few_lanes_as_a_host_needs():
    def cell(name: str, host: str, start: int, seconds: float) -> dict:
        stamp = f"2026-01-01T00:00:{start:02}+00:00"
        times = {"prepare_s": 0.0, "train_s": seconds, "evaluate_s": 0.0}
        return {"cell_id": name, "method": "m", "host": host, "started_at": stamp, **times}

    cells = pd.DataFrame(
        [cell("a", "x", 0, 10), cell("b", "x", 5, 10), cell("c", "x", 10, 10), cell("d", "y", 3, 1)]
    )
    placed = speed.spans(cells)
    assert [(s.host, s.lane, s.begin, s.end) for s in placed] == [
        ("x", 0, 0, 10),
        ("x", 1, 5, 15),
        ("x", 0, 10, 20),
        ("y", 0, 3, 4),
    ]


def test_resumed_cells_are_left_out_and_the_rest_is_counted(rows):
    cells = rows[0].cells
    (whole,) = speed.workers(cells, {})
    assert whole.says.startswith("68 cells in ")  # 5 methods x 2 seeds x 7 cells, two of them failed
    resumed = cells.assign(resumed_at_epoch=np.where(cells["setting"] == "oneclass", 3, None))
    (rest,) = speed.workers(resumed, {})
    assert rest.says.startswith("10 cells in ")


def test_looks_differ_in_colour_and_shape_also_beyond_eight_entries():
    look = marks(f"entry {i}" for i in range(16))
    assert len({(mark.colour, mark.marker) for mark in look.values()}) == 16
    assert len(set(COLOURS)) == 8
    assert look["entry 0"] == marks(["entry 0"])["entry 0"]


def test_a_sketch_that_cannot_be_drawn_is_a_bug_to_render():
    with pytest.raises(AssertionError):
        render(Sketch(name="n", title="t", says="", draw=None, why_not="no rows"))


def test_a_legend_of_many_lines_leaves_the_panels_their_room():
    """matplotlib warned that it gave up the layout, which is an error in tests."""

    def draw(number: int):
        figure, ((axes,),) = new_figure(6.4, 3.6)
        for i in range(number):
            axes.plot([0, 1], [0, i], label=f"a recipe with a name that fills the line of a legend {i:2}")
        add_legend(figure)
        return figure

    assert draw(6).get_figheight() == pytest.approx(3.6)
    assert draw(20).get_figheight() == pytest.approx(3.6 + 20 * 0.2 - 1.2)
    assert render(Sketch(name="many", title="many", says="", draw=lambda: draw(20))).height == 614


@pytest.mark.parametrize("times", [(2.35, 2.6), (1040.0, 1830.0), (5.8, 6.0), (30.0, 90.0), (1.0, 900.0)])
def test_an_axis_of_latencies_has_numbers_however_near_they_are(times):
    _, ((axes,),) = new_figure(4, 3)
    axes.plot(times, (0, 1))
    log_axis(axes, times)
    low, high = axes.get_xlim()
    assert len([tick for tick in axes.get_xticks() if low <= tick <= high]) >= 3


def digest() -> str:
    """Of a small figure, drawn with all that `kdbench report` imports."""
    import hashlib

    from kdbench.reports import page
    from kdbench.reports.figures import Sketch, new_figure, render

    def draw():
        figure, ((axes,),) = new_figure(3, 2)
        axes.plot([1, 2])
        return figure

    assert page.write_report
    drawn = render(Sketch(name="n", title="t", says="", draw=draw))
    return hashlib.sha256(drawn.svg + drawn.png).hexdigest()


# A notebook's backend is unknown to an environment without that package: there it is as no_such_backend is.
@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no_such_backend"])
def test_figures_are_the_same_whatever_the_environment_says_of_matplotlib(backend, tmp_path):
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: black\nfont.size: 30\nbackend: TkAgg\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", f"{inspect.getsource(digest)}\nprint(digest())"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


def test_only_one_module_of_the_reports_imports_matplotlib():
    """It is the one that does so whatever the environment says."""
    found = set()
    for path in (Path(__file__).parents[2] / "reports").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {path.name for name in names if name.partition(".")[0] == "matplotlib"}
    assert found == {"figures.py", "no_backend.py"}
