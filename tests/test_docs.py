"""The documents say what the code does."""

import re
from pathlib import Path

import pytest
import typer.main

from kdbench.cli.app import app
from kdbench.registry import method_names, methods_page
from kdbench.results.schema import (
    AUDIT_SCHEMA,
    CURVE_SCHEMA,
    INPUT_SCHEMA,
    LATENCY_SCHEMA,
    PICTURE_SCHEMA,
    ROW_SCHEMA,
    TRIAL_SCHEMA,
)

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


def test_the_methods_page_is_the_generated_one():
    assert (ROOT / "docs/methods.md").read_text(encoding="utf-8") == methods_page()
    assert all(f"## {name}\n" in methods_page() for name in method_names())


def test_every_column_is_documented():
    said = set(re.findall(r"[a-z0-9_*]+", (ROOT / "docs/results-format.md").read_text()))
    schemas = (ROW_SCHEMA, LATENCY_SCHEMA, CURVE_SCHEMA, PICTURE_SCHEMA, INPUT_SCHEMA)
    schemas += (TRIAL_SCHEMA, AUDIT_SCHEMA)
    names = {name for schema in schemas for name in schema.names}
    missing = {n for n in names if n not in said and not n.endswith("_version")}
    assert not missing


@pytest.mark.parametrize("command", sorted(typer.main.get_command(app).commands))
def test_every_command_is_in_the_readme(command):
    assert f"kdbench {command}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_two_commands_of_the_readme_are_in_its_first_screen():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])
    assert "make run" in first
    assert "make test" in first
