"""The Python interface: what `import kdbench` offers, and what comes of it."""

import inspect
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ALL_SET
from fabricated import all_metrics, row
from fabricated import trial_row as trial
from PIL import Image
from safetensors.torch import load, save

import kdbench
from kdbench import api
from kdbench.errors import DataError, RequestError
from kdbench.grid.request import Request
from kdbench.metrics.presets import PRESETS
from kdbench.results.store import CELLS, DETECTORS, TRIALS, Results, read
from kdbench.sweeps._request import SweepRequest

TINY = {"methods": "stfpm", "dataset": "mvtec_ad", "backbone": "tiny", "epochs": 2, "set": ALL_SET}
TINY |= {"executor": "local", "latency": False}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def complaints_of(call, *arguments, **more):
    with pytest.raises(RequestError) as raised:
        call(*arguments, **more)
    return list(raised.value.complaints)


# --- what is offered --------------------------------------------------------------------------------------


def test_the_names_that_kdbench_offers_are_frozen():
    """Other people's notebooks use them: a name that goes is a breaking change."""
    assert kdbench.__all__ == [
        *("__version__", "compare", "datasets", "distil_teacher", "methods", "open", "run", "score", "sweep")
    ]
    for name in kdbench.__all__:
        assert name in dir(kdbench)
        assert getattr(kdbench, name)
    offered = [name for name in vars(api.ResultsFolder) if not name.startswith("_")]
    assert offered == [
        *("rows", "scores", "curves", "latencies", "trials", "leaderboard", "figures", "detector")
    ]
    with pytest.raises(AttributeError, match="module 'kdbench' has no attribute 'runn'"):
        kdbench.runn  # noqa: B018, the look is what is tested


def test_methods_and_datasets_are_folders_and_functions():
    import kdbench.datasets.visa
    import kdbench.methods.stfpm

    assert "stfpm" in kdbench.methods()
    assert "visa" in kdbench.datasets()
    assert kdbench.methods.stfpm.METHOD.name == "stfpm"
    assert kdbench.datasets.visa.DATASET.name == "visa"


@pytest.mark.parametrize(
    ("function", "model", "more"),
    [
        (kdbench.run, Request, ["config", "progress"]),
        (kdbench.sweep, SweepRequest, ["audit", "config", "progress"]),
    ],
)
def test_the_arguments_are_the_options_of_the_command(function, model, more):
    parameters = inspect.signature(function).parameters
    assert list(parameters) == [*model.model_fields, *more]
    for name in model.model_fields:
        assert parameters[name].default is None, name
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY


# --- runs -------------------------------------------------------------------------------------------------


def test_a_run_returns_its_rows_and_the_same_call_runs_nothing_again(mvtec, capsys):
    results = kdbench.run(**TINY, root=mvtec, categories=["bottle"])
    text = capsys.readouterr().out
    assert "note: mvtec_ad: 1 of 15 categories" in text
    assert "1 cell: 0 finished before, 1 to run" in text
    assert "[1/1] stfpm mvtec_ad/bottle oneclass seed 0: ok in " in text
    (before,) = results.rows()["run_id"]
    again = kdbench.run(**TINY, root=mvtec, categories="bottle", progress=False)
    assert capsys.readouterr().out == ""
    assert list(again.rows()["run_id"]) == [before]
    assert list(again.rows(status="ok")) == [*CELLS.schema.names, "entry"]


def test_a_run_takes_a_toml_file_and_arguments_take_precedence(mvtec, monkeypatch):
    monkeypatch.setenv("HOME", str(mvtec.parent))
    Path("grid.toml").write_text('categories = "bottle"\nseeds = [3]\nresults = "~/of-the-file"\n')
    given = {**TINY, "root": mvtec, "config": "grid.toml"}
    assert list(kdbench.run(**given, seeds=range(2), progress=False).rows()["seed"]) == [0, 1]
    folder = kdbench.run(**given, results="~/given", progress=False)
    assert list(folder.rows()["seed"]) == [3]
    assert sorted(path.name for path in mvtec.parent.glob("*g*ve*")) == ["given"]


def test_a_cell_that_fails_is_a_row_and_no_exception(mvtec):
    results = kdbench.run(**TINY | {"set": ALL_SET | {"stfpm.lr": 1e30}}, root=mvtec, progress=False)
    assert list(results.rows()["status"]) == ["failed", "failed"]
    assert complaints_of(results.detector) == ["no cell of these succeeded: failed"]


def test_a_run_that_is_interrupted_raises(mvtec, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kdbench.grid.schedule.execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kdbench.run(**TINY, root=mvtec)


def test_rows_that_cannot_be_written_raise(mvtec, monkeypatch):
    def full(*_, **__):
        raise kdbench.errors.ResultsError("No space left on device")

    monkeypatch.setattr("kdbench.grid.schedule.execute", full)
    with pytest.raises(kdbench.errors.ResultsError, match=r"^cannot write results in results: No space left"):
        kdbench.run(**TINY, root=mvtec)


def test_everything_that_is_wrong_with_a_request_is_said_at_once(mvtec):
    wrong = {"methods": ["stfmp"], "preset": "exat", "device": "abacus"}
    assert complaints_of(kdbench.run, **TINY | wrong, root=mvtec) == [
        "no method 'stfmp'. Did you mean 'stfpm'? Methods: " + ", ".join(kdbench.methods()),
        "no preset 'exat'. Did you mean 'exact'? Presets: " + ", ".join(PRESETS),
        "no device 'abacus'. Devices: auto, cpu, cuda, cuda:N",
    ]
    assert complaints_of(kdbench.run, timeout=-1, seeds="0,x") == [
        "seeds.1='x': input should be a valid integer, unable to parse string as an integer",
        "timeout=-1: input should be greater than 0",
    ]
    assert complaints_of(kdbench.run, set=3) == ["set=3 is not a table of METHOD.KEY = VALUE"]


@pytest.mark.parametrize("empty", [[], (), set(), iter(())])
def test_an_empty_list_does_not_mean_all(empty):
    assert complaints_of(kdbench.run, methods=empty) == [
        "methods=(): it names nothing. Leave it out for the default"
    ]


@pytest.mark.slow
def test_a_script_may_call_run_without_a_guard_and_is_not_run_again_by_its_timing(mvtec):
    given = {**TINY, "latency": True, "root": str(mvtec), "categories": "bottle"}
    Path("script.py").write_text(
        f"import kdbench\nprint('begun')\nresults = kdbench.run(**{given!r})\n"
        "print(len(results.latencies()), 'timings')\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True)
    assert done.stdout.count("begun") == 1
    assert "[1/1] stfpm is timed" in done.stdout
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 2  # two batch sizes
    assert done.stderr == ""


@pytest.mark.slow
def test_a_sweep_returns_its_trials_and_a_file_for_a_run(mvtec):
    asked = {name: TINY[name] for name in ("dataset", "backbone", "set")}
    asked |= {"root": mvtec, "categories": "bottle", "device": "cpu"}
    found = kdbench.sweep(method="stfpm", **asked, epochs=2, trials=2, max_concurrent=1, progress=False)
    assert found.complete
    assert sorted(found.trials["status"]) == ["ok", "ok"]
    assert found.best["objective_value"] == found.trials["objective_value"].max()
    assert repr(found) == (
        f"<SweepResult of 2 configurations, best: mad {found.best['objective_value']:.4f}>"
    )
    results = kdbench.run(config=found.config, executor="local", latency=False, progress=False)
    assert list(results.rows()["status"]) == ["ok"]
    assert len(kdbench.open("results").trials(method="stfpm")) == 2


# --- results ----------------------------------------------------------------------------------------------


def fabricate(*changes, categories=("bottle", "screw")):
    """A results folder with a oneclass cell for each mapping of changes."""
    for i, one in enumerate(changes):
        common = {"setting": "oneclass", "dataset_categories": list(categories), "cell_id": f"c{i}"}
        category = one.get("category", "bottle")
        Results("results").write(CELLS, [row(**common | {"categories": [category]} | one)])
    return kdbench.open("results")


def test_a_folder_without_results_is_an_error():
    nothing = "no results in {0}: `kdbench run --results {0}` writes them"
    assert complaints_of(kdbench.open, "gone") == [nothing.format("gone")]
    Results("swept").write(TRIALS, [trial(0, 0.5)])
    swept = kdbench.open("swept")
    assert len(swept.trials()) == 1
    for look in (swept.rows, swept.scores, swept.curves, swept.detector):
        assert complaints_of(look) == [nothing.format("swept")]
    assert swept.leaderboard().frame.empty
    assert str(swept.leaderboard()) == "no cell has finished: nothing to rank"


def test_filters_are_columns_with_a_value_or_with_several():
    results = fabricate({"category": "a"}, {"category": "a", "seed": 1}, {"category": "b"})
    assert len(results.rows()) == 3
    assert list(results.rows(category="a")["seed"].sort_values()) == [0, 1]
    assert len(results.rows(category=["a", "b"], seed=0)) == 2
    assert len(results.rows(category="c")) == 0
    (complaint,) = complaints_of(results.rows, categry="a")
    assert complaint.startswith("no column 'categry'. Did you mean 'category'? Columns: schema_version, ")


def test_rows_of_images_that_changed_are_left_out_unless_they_are_asked_for():
    changed = {"fingerprint": "new", "started_at": "2026-01-02T00:00:00+00:00"}
    results = fabricate({"fingerprint": "old", "started_at": "2026-01-01T00:00:00+00:00"}, changed)
    assert list(results.rows()["fingerprint"]) == ["new"]
    assert sorted(results.rows(earlier=True)["fingerprint"]) == ["new", "old"]
    assert list(results.rows(earlier=True, fingerprint="old")["entry"].isna()) == [True]


def test_a_leaderboard_is_text_html_and_numbers():
    values = {("stfpm", "bottle"): 0.5, ("stfpm", "screw"): 0.7, ("<dcam> & $x$", "bottle"): 0.9}
    values["<dcam> & $x$", "screw"] = 0.9
    results = fabricate(
        *({"method": m, "category": c, **all_metrics(value)} for (m, c), value in values.items())
    )
    board = results.leaderboard()
    text = str(board).splitlines()
    assert text[0].startswith("Ranking: ")
    assert [line.split()[0] for line in text[2:4]] == ["1", "2"]
    assert "60.00" in text[3]
    assert repr(board) == str(board)
    html = board._repr_html_()
    assert "<td>&lt;dcam&gt; &amp; $x$</td>" in html
    assert 'class="dataframe tex2jax_ignore' in html
    assert "<dcam>" not in html
    frame = board.frame.set_index("method")
    assert frame["rank"].to_dict() == {"<dcam> & $x$": 1.0, "stfpm": 2.0}
    assert frame["mad"]["stfpm"] == pytest.approx(0.6)


def test_a_mean_over_fewer_categories_than_the_dataset_has_is_no_mean():
    board = fabricate({"category": "bottle", **all_metrics(0.5)}).leaderboard()
    (line,) = board.frame.to_dict("records")
    assert np.isnan(line["mad"])
    assert np.isnan(line["rank"])
    assert line["remarks"] == "1 of 2 categories"
    assert "Not the dataset's mean: over 1 of 2 categories (bottle)" in str(board)


def test_long_texts_are_shown_whole():
    name = "stfpm" + 80 * "x"
    board = fabricate({"method": name}).leaderboard()
    assert name in str(board)
    assert name in board._repr_html_()


def test_figures_are_drawn_when_they_are_shown_or_saved():
    figures = fabricate(
        *({"method": m, "category": c, **all_metrics(0.5)} for m in "ab" for c in ("bottle", "screw"))
    ).figures()
    name = next(name for name in figures if name.startswith("categories-"))
    assert repr(figures[name]) == f"<Figure {figures[name].title}>"
    assert figures[name]._repr_svg_().startswith("<?xml")
    figures[name].save("figure.png")
    with Image.open("figure.png") as image:
        assert image.format == "PNG"
    figures[name].save(Path("figure.svg"))
    assert Path("figure.svg").read_text() == figures[name]._repr_svg_()
    with pytest.raises(ValueError, match=r"figure.pdf ends in '.pdf': a figure is .svg or .png"):
        figures[name].save("figure.pdf")


def test_a_comparison_counts_what_became_worse(tmp_path):
    for folder, value in (("before", 0.9), ("after", 0.8)):
        Results(folder).write(CELLS, [row(image_auroc=value)])
    found = kdbench.compare("before", Path("after"))
    assert found.num_regressions == 1
    assert str(found).startswith("1 difference, 1 beyond the tolerance; 1 regression; ")
    assert "<table" in found._repr_html_()
    assert kdbench.compare("before", "after", tolerance=0.2).num_regressions == 0


# --- detectors --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory, _mvtec):
    """A results folder with one detector of each category, and the root of its images."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_CACHE", str(folder / "cache"))
        return kdbench.run(**TINY, root=_mvtec, results=folder / "results", progress=False), _mvtec


def test_a_detector_gives_the_scores_of_its_cell_for_paths_arrays_and_tensors(trained):
    results, root = trained
    detector = results.detector(category="screw")
    assert (detector.image_size, detector.row["category"]) == (32, "screw")
    kept = results.scores(category="screw", method="stfpm")
    paths = [root / name for name in kept["image"]]
    maps, scores = detector.predict(paths)
    assert (maps.shape, maps.dtype, scores.dtype) == ((8, 32, 32), np.float32, np.float64)
    np.testing.assert_array_equal(scores, kept["image_score"])
    np.testing.assert_array_equal(scores, maps.max((1, 2)))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    tensors = torch.from_numpy(pixels).movedim(-1, 1)
    for images in (pixels, list(pixels), tensors, tensors / 255, [*map(str, paths)], (p for p in paths)):
        np.testing.assert_array_equal(detector.predict(images)[1], scores)
    for image in (paths[0], str(paths[0]), pixels[0], tensors[0]):
        one_map, one_score = detector.predict(image)
        # A processor may add the same products in another order for a batch of another size.
        np.testing.assert_allclose(one_map, maps[:1], rtol=1e-5)
        np.testing.assert_allclose(one_score, scores[:1], rtol=1e-5)
        np.testing.assert_array_equal(one_score, one_map.max((1, 2)))
    assert [part.shape for part in detector.predict([])] == [(0, 32, 32), (0,)]


RANGE = "a tensor is uint8, or from 0 to 1 and not normalised"
SHAPES = "an array is uint8 [H,W,3] or [N,H,W,3] in RGB, a tensor [3,H,W] or [N,3,H,W]"


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros((8, 8, 3)), f"an image is float64 [8, 8, 3]: {SHAPES}"),
        (np.zeros((8, 8), np.uint8), f"images have the shape [8, 8]: {SHAPES}"),
        (np.zeros((8, 8, 4), np.uint8), f"an image is uint8 [8, 8, 4]: {SHAPES}"),
        (np.zeros((0, 8, 3), np.uint8), f"an image is uint8 [0, 8, 3]: {SHAPES}"),
        (torch.zeros(1, 8, 8), f"an image is uint8 [8, 8, 1]: {SHAPES}"),
        (torch.full((3, 8, 8), 2.0), f"an image has values from 2 to 2: {RANGE}"),
        (torch.full((3, 8, 8), -0.5), f"an image has values from -0.5 to -0.5: {RANGE}"),
        (torch.full((3, 8, 8), torch.nan), f"an image has values from nan to nan: {RANGE}"),
        ([7], "int is no image: it is a path, an array or a tensor"),
    ],
)
def test_what_is_no_image_is_refused(trained, image, complaint):
    detector = trained[0].detector(category="bottle")
    assert complaints_of(detector.predict, image) == [complaint]


def test_a_file_that_is_no_image_is_named(trained, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        trained[0].detector(category="bottle").predict(tmp_path / "a.png")


def test_a_detector_is_of_one_cell(trained):
    results, _ = trained
    ids = list(results.rows()["cell_id"])
    assert complaints_of(results.detector) == [f"2 cells fit. Name category, or one of {', '.join(ids)}"]
    assert results.detector(ids[0]).row["cell_id"] == ids[0]
    assert complaints_of(results.detector, category="grid") == [
        f"no cell with category='grid' in {results.where}"
    ]
    assert repr(results.detector(category="bottle")) == (
        "<Detector stfpm of bottle (mvtec_ad), seed 0, 32 px on cpu>"
    )


def test_a_detector_that_was_not_kept_or_has_another_teacher_is_refused(trained, tmp_path):
    results, _ = trained
    for kind in ("cells", "detectors"):
        (tmp_path / "copy" / kind).mkdir(parents=True)
    row_ = results.detector(category="bottle").row
    Results(tmp_path / "copy").write(CELLS, [row_ | {"teacher_sha256": "0" * 64}])
    other = kdbench.open(tmp_path / "copy")
    assert complaints_of(other.detector) == [
        "fixed random convolutions is not the teacher of this stfpm: give its weights"
    ]
    Results(tmp_path / "copy").write(CELLS, [row_])
    assert complaints_of(other.detector) == [
        f"{row_['cell_id']}: no detector was kept; run it again without --discard-detectors (--redo all)"
    ]
    content = results._results.storage.read(DETECTORS.name(row_["cell_id"]))
    (tmp_path / "copy" / DETECTORS.name(row_["cell_id"])).write_bytes(content)
    assert other.detector().row["category"] == "bottle"


def test_a_file_of_another_detector_in_its_place_is_refused_and_an_older_one_is_read(trained, kdbench):
    """Both have tensors of the same names and shapes: its numbers would be of another category."""
    results, _ = trained
    ids = {row["category"]: row["cell_id"] for row in results.rows().to_dict("records")}
    folder = results._results.storage
    screw, bottle = (folder.read(DETECTORS.name(ids[name])) for name in ("screw", "bottle"))
    path = folder.path(DETECTORS.name(ids["screw"]))
    again = "delete it and run its cell again (--redo all)"
    copied = (
        f"{path} is the detector of {ids['bottle']}: somebody copied or renamed it. Put the file of "
        f"{ids['screw']} there, or {again}"
    )
    damaged = f"{path} is damaged. Delete it, and run its cell again (--redo all)"
    try:
        for content, said in ((bottle, copied), (screw[:-10], damaged)):
            folder.write(DETECTORS.name(ids["screw"]), content)
            with pytest.raises(DataError) as raised:
                results.detector(category="screw")
            assert str(raised.value) == said
            code, printed = kdbench("predict", ids["screw"], path, "--results", results.where)
            assert (code, printed) == (2, f"error: {said}\n")
        # An older kdbench wrote neither a header nor the attempt.
        folder.write(DETECTORS.name(ids["screw"]), save(load(screw)))
        (rows,) = read(folder, CELLS, only=[ids["screw"]]).to_pylist()
        Results(folder).write(CELLS, [rows | {"attempt_id": None}])
        assert results.detector(category="screw").row["category"] == "screw"
    finally:
        folder.write(DETECTORS.name(ids["screw"]), screw)
        Results(folder).write(CELLS, [rows])


def test_curves_and_scores_say_what_their_cell_was(trained):
    results, _ = trained
    for frame in (results.scores(), results.curves()):
        assert set(frame["method"]) == {"stfpm"}
        assert set(frame["category"]) == {"bottle", "screw"}
    assert isinstance(results.latencies(), pd.DataFrame)


def test_a_run_from_python_leaves_handlers_and_streams_and_gives_a_home_to_who_has_none(
    mvtec, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [*map(signal.getsignal, numbers)], sys.stdout, sys.stderr
    same = {"backbone": "tiny", "epochs": 1, "set": {"all.image_size": 32}, "latency": False}
    kdbench.run(
        methods="stfpm",
        dataset="mvtec_ad",
        root=mvtec,
        categories="bottle",
        executor="local",
        results=tmp_path / "r",
        **same,
    )
    assert ([*map(signal.getsignal, numbers)], sys.stdout, sys.stderr) == before
    assert os.environ["HOME"] == str(tmp_path / f"kdbench-{os.getuid()}")
