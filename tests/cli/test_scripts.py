"""--quiet and --json: one document on standard output, its keys, and the exit codes of before."""

import json
import types
import typing

import pytest
import typer
from conftest import STFPM, TINY, replaced
from fabricated import row as fabricated_row
from pydantic import BaseModel

from kdbench import __version__
from kdbench.cli import app as cli
from kdbench.cli.documents import DOCUMENTS, Backbone, Listed
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.results.store import CELLS, Results

ALWAYS = {"kdbench", "exit_code", "errors"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a command line in this process: exit code, standard output, standard error."""

    def start(*words):
        monkeypatch.setattr("sys.argv", ["kdbench", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return start


@pytest.fixture
def run(call, mvtec):
    usual = ("run", *STFPM, "--root", mvtec, "--categories", "bottle", *TINY)
    return lambda *words: call(*replaced(usual, words))


def document_of(command, text):
    """What a command printed, which has all keys of its document and no other."""
    found = json.loads(text)
    assert found["kdbench"] == __version__
    DOCUMENTS[command].model_validate({key: value for key, value in found.items() if key not in ALWAYS})
    return found


def keys_of(model, before=""):
    """Every key of a document, those of its parts behind it."""
    for name, field in model.model_fields.items():
        yield before + name
        inner = [field.annotation, *typing.get_args(field.annotation)]
        for one in inner:
            if (
                isinstance(one, type)
                and not isinstance(one, types.GenericAlias)
                and issubclass(one, BaseModel)
            ):
                yield from keys_of(one, f"{before}{name}.")


def test_the_keys_of_the_documents_are_frozen():
    """Scripts of other people use them: a key that goes or changes its meaning is a breaking change."""
    assert {command: " ".join(keys_of(model)) for command, model in DOCUMENTS.items()} == {
        "compare": "before after tolerance num_compared num_regressions num_only_before num_only_after "
        "beyond beyond.method beyond.section beyond.category beyond.metric beyond.before beyond.after "
        "beyond.difference beyond.significant beyond.remark failed failed.method failed.section "
        "failed.category failed.seed failed.status other_code",
        "datasets check": "dataset root categories categories.category categories.present categories.good "
        "categories.train categories.normal categories.defective categories.masks categories.num_empty_masks "
        "categories.published categories.problems categories.remarks",
        "doctor": "findings findings.what findings.found findings.advice findings.wrong",
        "export": "detectors detectors.cell_id detectors.file detectors.threshold detectors.notes",
        "list": "methods methods.name methods.family methods.year methods.paper methods.licence "
        "methods.fidelity methods.summary methods.needs methods.departures datasets datasets.name "
        "datasets.title datasets.categories datasets.licence datasets.download datasets.notes backbones "
        "backbones.name backbones.summary recipes recipes.name recipes.summary recipes.published "
        "recipes.published.metric recipes.published.value recipes.published.source",
        "predict": "out table threshold images images.image images.image_score images.decision images.map "
        "images.heat_map images.error",
        "report": "results report files",
        "run": "results run_id complete counts cells cells.cell_id cells.method cells.dataset cells.setting "
        "cells.category cells.seed cells.profile cells.status cells.expected_s report",
        "score": "name results categories left_out report",
        "status": "results runs runs.run_id runs.num_cells runs.counts runs.left_s runs.running "
        "runs.running.cell_id runs.running.label runs.running.host runs.running.pid runs.running.running_s "
        "runs.running.phase runs.running.done runs.running.total runs.running.epoch runs.running.epochs "
        "runs.running.problem",
        "sweep": "results sweep_id complete num_configurations num_failed best_trial best_objective config",
    }


PARTS = ("methods", "datasets", "backbones", "recipes")


@pytest.mark.parametrize("command", [*DOCUMENTS, *(f"list {part}" for part in PARTS)])
def test_every_such_command_has_both_options(command):
    found = typer.main.get_command(cli.app)
    for word in command.split():
        found = found.commands[word]
    assert {"--quiet", "--json"} <= {option for parameter in found.params for option in parameter.opts}


def test_a_run_gives_its_cells_and_says_the_rest_on_standard_error(run, call):
    code, out, err = run("--json", "--dry-run")
    planned = document_of("run", out)
    assert (code, planned["run_id"], planned["counts"], planned["report"]) == (0, None, {"not run": 1}, None)
    assert planned["cells"][0]["expected_s"] > 0
    assert "1 of 1 cell to run" in err
    code, out, err = run("--json")
    found = document_of("run", out)
    assert (code, found["exit_code"], found["errors"], found["complete"]) == (0, 0, [], True)
    assert found["counts"] == {"ok": 1}
    assert (found["results"], found["report"]) == ("results", "reports/out/leaderboard.md")
    (cell,) = found["cells"]
    (row,) = Results("results").storage.names("cells")
    assert cell["cell_id"] in row
    assert (cell["method"], cell["category"], cell["seed"], cell["status"]) == ("stfpm", "bottle", 0, "ok")
    assert "1 cell: 0 finished before, 1 to run" in err
    code, out, _ = call("status", "--json")
    (state,) = document_of("status", out)["runs"]
    assert (code, state["run_id"], state["counts"]) == (0, found["run_id"], {"ok": 1})


def test_a_failed_cell_has_its_status_and_the_exit_code_of_before(run):
    code, out, _ = run("--json", "--timeout", "0.000001")
    found = document_of("run", out)
    assert (code, found["exit_code"], found["complete"], found["counts"]) == (1, 1, False, {"timeout": 1})


def test_a_wrong_request_is_a_document_with_every_complaint(run):
    code, out, err = run("--json", "--methods", "stfmp", "--preset", "x")
    found = json.loads(out)
    assert (code, found.keys(), found["exit_code"]) == (2, ALWAYS, 2)
    assert [f"error: {text}" for text in found["errors"]] == err.splitlines()
    assert len(found["errors"]) == 2


def test_quiet_prints_nothing_but_errors(run, call):
    assert run("--quiet") == (0, "", "")
    assert run("--quiet", "--timeout", "0.000001", "--seeds", "1") == (1, "", "")
    code, out, err = run("--quiet", "--methods", "stfmp")
    assert (code, out) == (2, "")
    assert err.startswith("error: no method 'stfmp'")
    assert call("list", "--quiet") == (0, "", "")


def test_a_comparison_gives_what_became_worse(call):
    for folder, value in (("a", 0.9), ("b", 0.5)):
        Results(folder).write(CELLS, [fabricated_row(image_auroc=value)])
    code, out, _ = call("compare", "a", "b", "--json")
    found = document_of("compare", out)
    assert (code, found["exit_code"], found["num_regressions"]) == (1, 1, 1)
    (worse,) = found["beyond"]
    assert (worse["metric"], worse["before"], worse["after"]) == ("I-AUROC", 0.9, 0.5)
    assert worse["difference"] == pytest.approx(-0.4)
    assert call("compare", "a", "b", "--quiet") == (1, "", "")


def test_a_check_names_what_is_wrong_and_what_is_absent(call, mvtec):
    (mvtec / "screw/ground_truth/broken/001_mask.png").unlink()
    code, out, _ = call("datasets", "check", "mvtec_ad", "--root", mvtec, "--json")
    found = document_of("datasets check", out)
    by_name = {one["category"]: one for one in found["categories"]}
    assert (code, found["root"]) == (1, str(mvtec))
    assert (by_name["bottle"]["present"], by_name["bottle"]["train"]) == (True, 10)
    assert by_name["screw"]["problems"]
    assert not by_name["cable"]["present"]


def test_lists_and_the_doctor_have_documents(call, monkeypatch):
    code, out, _ = call("list", "--json")
    found = document_of("list", out)
    assert code == 0
    assert "stfpm" in [one["name"] for one in found["methods"]]
    _, out, _ = call("list", "datasets", "--json")
    assert json.loads(out).keys() - ALWAYS == {"datasets"}
    code, out, err = call("list", "--json", "methods")
    assert (code, out) == (2, "")
    assert "stand after the name of the last command" in err
    monkeypatch.setenv("KDBENCH_CACHE", "/proc/kdbench")
    code, out, _ = call("doctor", "--json")
    found = document_of("doctor", out)
    assert (code, [one["what"] for one in found["findings"] if one["wrong"]]) == (1, ["cache"])
    assert len(found["errors"]) == 1


def test_a_report_names_its_files(call):
    Results("results").write(CELLS, [fabricated_row()])
    code, out, _ = call("report", "--json")
    found = document_of("report", out)
    assert (code, found["report"]) == (0, "reports/out/report.html")
    assert {"reports/out/leaderboard.csv", "reports/out/report.html"} <= {*found["files"]}


def test_what_libraries_print_is_no_part_of_a_document(capsys):
    @for_scripts
    def noisy() -> Answer:
        print("a library says this")  # noqa: T201
        return Answer(document=Listed(backbones=(Backbone(name="a", summary="b"),)))

    noisy(quiet=False, as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out)["backbones"] == [{"name": "a", "summary": "b"}]
    assert captured.err == "a library says this\n"
