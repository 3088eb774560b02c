"""The documents say what the code does."""

import re
import tomllib
from pathlib import Path

import pytest
import typer.main
import yaml
from test_packaging import LAYERS

from kdbench import __version__
from kdbench.cli.app import app
from kdbench.cli.documents import DOCUMENTS
from kdbench.metrics.exact import METRICS
from kdbench.metrics.legacy import LEGACY_METRICS
from kdbench.registry import method_names, methods_page
from kdbench.results.schema import (
    AUDIT_SCHEMA,
    CURVE_SCHEMA,
    DEPLOYED_SCHEMA,
    INPUT_SCHEMA,
    LATENCY_SCHEMA,
    PICTURE_SCHEMA,
    ROW_SCHEMA,
    SHORTCUT_SCHEMA,
    TRIAL_SCHEMA,
)

ROOT = Path(__file__).parents[1]
FOR_DEVELOPERS = [
    (ROOT / "docs/architecture.md", 120),
    (ROOT / "CONTRIBUTING.md", 60),
    (ROOT / "docs/gpu.md", 90),
]
FOLDERS = r"(?:kdbench|methods|datasets|sweeps|reports|tests|docs|\.ci)"


def test_the_methods_page_is_the_generated_one():
    assert (ROOT / "docs/methods.md").read_text(encoding="utf-8") == methods_page()
    assert all(f"## {name}\n" in methods_page() for name in method_names())


def test_every_column_is_documented():
    said = set(re.findall(r"[a-z0-9_*]+", (ROOT / "docs/results-format.md").read_text()))
    schemas = (ROW_SCHEMA, LATENCY_SCHEMA, CURVE_SCHEMA, PICTURE_SCHEMA, INPUT_SCHEMA)
    schemas += (TRIAL_SCHEMA, AUDIT_SCHEMA, DEPLOYED_SCHEMA, SHORTCUT_SCHEMA)
    names = {name for schema in schemas for name in schema.names}
    missing = {n for n in names if n not in said and not n.endswith("_version")}
    assert not missing


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_is_in_the_reference(command):
    assert f"kdbench {command}" in (ROOT / "docs/commands.md").read_text()


def test_every_extra_is_on_the_page_for_the_installation():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "docs/installation.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    first = "".join(line.split("|")[1] for line in table.splitlines()[2:])
    assert {*re.findall(r"`(\w+)`", first)} == {*extras}


@pytest.mark.parametrize("command", DOCUMENTS)
def test_every_key_of_a_document_is_documented(command):
    (line,) = re.findall(
        rf"^\| `{command}` \| (.*) \|$", (ROOT / "docs/scripts.md").read_text(), re.MULTILINE
    )
    schema = DOCUMENTS[command].model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    assert {key for part in parts for key in part["properties"]} == {*re.findall(r"`(\w+)`", line)}


@pytest.mark.parametrize("name", [*METRICS, "mad", *LEGACY_METRICS])
def test_every_metric_has_its_formula_in_the_reference(name):
    assert f"`{name}`" in (ROOT / "docs/metrics.md").read_text()


def test_the_two_commands_of_the_readme_are_in_its_first_screen():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])
    assert "make run" in first
    assert "make test" in first


@pytest.mark.parametrize(("page", "most_lines"), FOR_DEVELOPERS, ids=lambda value: getattr(value, "name", ""))
def test_files_and_tests_that_the_pages_for_developers_name_exist(page, most_lines):
    text = page.read_text()
    assert len(text.splitlines()) <= most_lines
    named = re.findall(rf"`({FOLDERS}/[\w./*-]*)(?:::(\w+))?`", text)
    named += [(name, "") for name in re.findall(r"`([\w.]+\.(?:md|py|toml|cff))`", text)]
    assert len(named) > 10
    for path, test in named:
        if "NAME" not in path:
            assert list(ROOT.glob(path.rstrip("/"))), path
        if test:
            assert f"def {test}(" in (ROOT / path).read_text(), test


def test_the_layers_of_the_architecture_page_are_those_of_the_import_test():
    page = (ROOT / "docs/architecture.md").read_text()
    part = page.partition("## The layers")[2].partition("## ")[0]
    lines = [line.strip() for line in part.splitlines() if line.startswith("    ")]
    assert [tuple(re.split(r"\s{2,}", line)[0].split()) for line in lines] == list(LAYERS)


def test_the_tree_of_the_architecture_page_has_every_entry_of_the_package():
    tree = (ROOT / "docs/architecture.md").read_text().partition("## The layers")[0]
    words = set(re.findall(r"[\w.]+", tree))
    entries = {path.name for path in (ROOT / "kdbench").iterdir() if not path.name.startswith(("__", "."))}
    assert {*entries} - {"py.typed"} - words == set()


def test_the_citation_has_the_version_of_the_package():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_the_hooks_and_the_workflow_run_what_make_and_ci_run():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tools = [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks]
    recipe = (ROOT / "Makefile").read_text().partition("\ntest:")[2].partition("\n\n")[0]
    assert tools == ["ruff format", "ruff check", "mypy"]
    assert all(f"$(BIN)/{tool}" in recipe for tool in tools)
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["ci"]["steps"]
    assert steps[-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
