"""The pages and the site that is made of them: links lead somewhere, commands parse, the site builds."""

import json
import os
import re
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import typer.main

from kdbench.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\]\(|^\[[^\]]+\]: )([^)\s]+)", re.MULTILINE)
CODE = re.compile(r"^```sh\n(?s:.*?)^```$|^ {4}.*$", re.MULTILINE)
COMMAND = re.compile(r"^(?: {4})?(?:ray job submit .*? -- )?kdbench ((?:.*\\\n)*.*)$", re.MULTILINE)
SHELL = {"|", "||", "&&", ">"}  # where a command ends
INLINE = re.compile(r"`kdbench ([^`]*)`")


def anchors(text: str) -> set[str]:
    """What a # may name in a page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def dead(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in LINK.findall(FENCE.sub("", text)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


def misread(words: list[str]) -> str:
    """What the command line says about these words after `kdbench`, "" if it takes them."""
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        name, *words = words
        if name not in command.commands:
            return f"there is no command {name}"
        command = command.commands[name]
    try:
        command.make_context(command.name, words)
    except Exception as error:  # typer brings its own click, whose errors have no public name
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_internal_link_is_dead(page):
    assert dead(page, page.read_text(encoding="utf-8")) == []


def test_dead_links_are_found():
    text = "[one](README.md) [two](README.md#licence) [three](gone.md) [four](README.md#gone)\n\n[five]: no"
    assert dead(ROOT / "page.md", text) == ["gone.md", "README.md#gone", "no"]


def test_every_page_has_a_place_in_the_site():
    places = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(places) == len({*places})
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= {*places}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_parse(page):
    code = "\n".join(CODE.findall(page.read_text(encoding="utf-8")))
    lines = [shlex.split(line.replace("\\\n", " "), comments=True) for line in COMMAND.findall(code)]
    shown = [[*takewhile(lambda word: word not in SHELL, words)] for words in lines]
    assert {" ".join(words): misread(words) for words in shown if misread(words)} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_sentences_name_are_there(page):
    group = typer.main.get_command(app)
    for shown in INLINE.findall(page.read_text(encoding="utf-8")):
        command, options = group, [word.partition("=")[0] for word in shown.split() if word.startswith("--")]
        for word in shown.split():
            command = getattr(command, "commands", {}).get(word, command)
        of_all = {name for one in group.params for name in one.opts}
        assert command is not group or shown.split()[0] in {"COMMAND", "--help", *of_all}, shown
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        assert set(options) <= {*known, "--help"}, shown


def test_commands_that_do_not_parse_are_found():
    assert misread(["run", "--epochs", "3"]) == ""
    assert "--epoch" in misread(["report", "--epoch", "3"])
    assert "integer" in misread(["run", "--epochs", "three"])
    assert misread(["train"]) == "there is no command train"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="needs kdbench[docs]")
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    done = subprocess.run(call, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    pages = {
        page.parent.relative_to(tmp_path).as_posix(): page.read_text()
        for page in tmp_path.rglob("index.html")
    }
    first = pages["."]
    assert 'data-md-color-scheme="default"' in first
    assert 'data-md-color-scheme="slate"' in first
    assert 'data-md-component="search-query"' in first
    places = {
        one["location"].partition("#")[0]
        for one in json.loads((tmp_path / "search/search_index.json").read_text())["docs"]
    }
    assert {"", "commands/", "python/", "own-images/", "CONTRIBUTING/"} <= places
    for name, page in pages.items():
        fetched = re.findall(r'<(?:script|img|link|iframe)[^>]* (?:src|href)="?(?:https?:)?//[^>]*', page)
        assert not fetched, name
    report = tmp_path / "reports/published/first-comparison/report.html"
    figures = set(re.findall(r'href="(figures/[^"]+)', report.read_text(encoding="utf-8")))
    assert figures
    assert [name for name in figures if not (report.parent / name).is_file()] == []
    assert "--checkpoint-every" in pages["commands"]
    assert "kdbench.api.ResultsFolder.rows" in pages["python"]
    assert "list&lt;" in pages["results-format"]
