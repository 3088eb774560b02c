"""What can be asked of a command, how it is shown, and how paths, lists and files of options are read."""

from pathlib import Path

import pytest
import typer
from conftest import TINY

from kdbench.cli import app as cli
from kdbench.grid.request import Request
from kdbench.sweeps._request import SweepRequest

TOML = 'methods = ["stfpm"]\ndataset = "mvtec_ad"\nroot = "{root}"\ncategories = ["bottle"]\n{more}'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def parameters_of(command):
    found = typer.main.get_command(cli.app).commands[command].params
    return {parameter.name: parameter for parameter in found}


@pytest.mark.parametrize(("command", "model"), [("run", Request), ("sweep", SweepRequest)])
def test_every_field_of_a_request_is_an_option_that_says_what_it_is(command, model):
    options = parameters_of(command)
    for name, field in model.model_fields.items():
        assert options[name].help.startswith(field.description), name
        assert options[name].default is None, name  # else it would take precedence over a --config file


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        ("run", "timeout", "--timeout SECONDS"),
        ("run", "checkpoint_every", "--checkpoint-every MINUTES"),
        ("run", "memory_per_cell", "--memory-per-cell GiB"),
        ("run", "cpus_per_cell", "--cpus-per-cell CORES"),
        ("run", "redo", "--redo failed|all"),
        ("run", "methods", "--methods NAME,..."),
        ("run", "set", "--set METHOD.KEY=VALUE"),
        ("run", "checkpoint_every", "[default: 10]"),
        ("run", "dataset", "[default: synthetic]"),
        ("run", "keep_pictures", "--keep-pictures / --discard-pictures"),
        ("sweep", "report_every", "--report-every EPOCHS"),
        ("sweep", "trials", "[default: 20]"),
        ("sweep", "search", "--search random|optuna"),
    ],
)
def test_the_help_shows_units_choices_and_defaults(kdbench, command, option, words):
    code, text = kdbench(command, "--help")
    assert code == 0
    assert words in " ".join(text.split()), option


def test_the_former_name_of_out_works_and_says_so(kdbench, mvtec):
    usual = ("run", "--methods", "stfpm", "--dataset", "mvtec_ad", "--root", mvtec, *TINY)
    code, text = kdbench(*usual, "--categories", "bottle", "--report", "old")
    assert code == 0
    assert "note: --report is called --out now" in text
    assert Path("old/leaderboard.md").is_file()
    code, text = kdbench("report", "--out", "new")
    assert code == 0
    assert "note" not in text
    assert Path("new/leaderboard.md").is_file()


def test_both_names_of_out_together_are_an_error(kdbench):
    code, text = kdbench("probe", "--out", "a", "--report", "b")
    assert code == 2
    assert text == "error: --out a and --report b are the same option: leave out --report\n"


@pytest.mark.parametrize("option", ["--methods", "--dataset", "--categories", "--setting", "--seeds"])
def test_a_list_that_names_nothing_is_an_error(kdbench, option):
    code, text = kdbench("run", option, ",")
    assert code == 2
    assert text == f"error: {option[2:]}=',': it names nothing\n"


@pytest.mark.parametrize("option", ["--methods", "--seeds", "--setting", "--dataset", "--runtime-precision"])
def test_a_list_that_is_given_twice_is_an_error_and_not_its_last_part(kdbench, option):
    code, text = kdbench("run", option, "a,b", option, "c", "--dry-run")
    assert (code, text) == (2, f"error: {option} is given 2 times: write {option} a,b,c\n")


def test_a_category_with_a_comma_in_its_name_is_named_in_a_toml_list(kdbench, mvtec):
    (mvtec / "bottle").rename(mvtec / "a,b")
    toml = TOML.format(root=mvtec, more="").replace("bottle", "a,b").replace("mvtec_ad", "folder")
    Path("grid.toml").write_text(toml)
    code, text = kdbench("run", "--config", "grid.toml", *TINY, "--dry-run")
    assert code == 0
    assert "1 of 1 cell to run" in text
    code, text = kdbench("run", "--config", "grid.toml", "--categories", "a,b", *TINY, "--dry-run")
    assert code == 2
    assert "error: no folder category 'a'. Categories: a,b, screw" in text


def test_a_toml_file_with_a_byte_order_mark_is_read(kdbench, mvtec):
    Path("grid.toml").write_text(TOML.format(root=mvtec, more=""), encoding="utf-8-sig")
    code, text = kdbench("run", "--config", "grid.toml", *TINY, "--dry-run")
    assert code == 0
    assert "1 of 1 cell to run" in text


@pytest.mark.parametrize("command", ["run --config", "sweep stfpm --config", "sweep stfpm --space"])
def test_a_toml_file_of_another_encoding_is_named(kdbench, mvtec, command):
    Path("grid.toml").write_text("seeds = [0]\n", encoding="utf-16")
    data = ("--dataset", "mvtec_ad", "--root", mvtec, "--backbone", "tiny")
    code, text = kdbench(*command.split(), "grid.toml", *data)
    assert code == 2
    assert text == "error: grid.toml: the text is UTF-16. Save it as UTF-8\n"


def test_a_tilde_in_a_toml_file_is_the_home_folder(kdbench, mvtec, home):
    mvtec.rename(home / "base")
    Path("grid.toml").write_text(TOML.format(root="~/base", more='results = "~/res"\n'))
    code, _ = kdbench("run", "--config", "grid.toml", *TINY)
    assert code == 0
    assert [path.suffix for path in (home / "res/cells").iterdir()] == [".parquet"]
    assert not Path("~").exists()


def test_a_tilde_in_a_quoted_option_is_the_home_folder(kdbench, mvtec, home):
    mvtec.rename(home / "base")
    (home / "grid.toml").write_text(TOML.format(root="~/base", more=""))
    run = ("run", "--config", "~/grid.toml", "--out", "~/rep", *TINY)
    assert kdbench(*run, "--results", "~/res")[0] == 0
    assert kdbench("report", "--results", "~/res", "--out", "~/rep", "--rows", "~/rows")[0] == 0
    assert kdbench("status", "--results", "~/res")[0] == 0
    assert kdbench("compare", "~/res", "~/res", "--out", "~/compared")[0] == 0
    assert kdbench("datasets", "check", "mvtec_ad", "--root", "~/base")[0] == 1  # 13 categories are absent
    assert kdbench(*run, "--published", "~/rows", "--results", "~/b")[0] == 0
    assert kdbench("new-method", "mine", "--folder", "~")[0] == 0
    assert sorted(path.name for path in home.glob("[!.]*")) == [
        *("b", "base", "compared", "grid.toml", "kdbench-mine", "rep", "res", "rows")
    ]
    assert not Path("~").exists()


@pytest.mark.parametrize("option", ["--results", "--out", "--root", "--weights", "--config", "--published"])
def test_a_home_folder_that_does_not_exist_is_an_error(kdbench, option):
    code, text = kdbench("run", "--methods", "stfpm", option, "~no-such-user/x")
    assert code == 2
    assert "there is no home folder '~no-such-user'" in text
    assert not Path("~no-such-user").exists()
