"""What MkDocs does beside its settings: pages that lie outside of docs/, and parts that are made of the code.

The site has the tree of the repository, with docs/ at its root and README.md as its first page. A link to any
other file of the repository brings this file into the site, so that the same link holds in both.
"""

import logging
import re
import sys
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import reference

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md"}  # page of the repository -> its place in the site; all others keep theirs
# ](target), [name]: target; the rest of a target, from # on, stays as it is.
LINK = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s#:]+)(?=[)\s#])", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
# Page -> what is made of the code at its end.
MADE = {
    "commands.md": reference.commands,
    "results-format.md": reference.columns,
    "metrics.md": reference.metrics,
    "presets.md": reference.presets,
    "scripts.md": reference.documents,
}
PYTHON = "# Python interface\n\n::: kdbench.api\n"
METHOD = "# What a method may use\n\n::: kdbench.method\n"
log = logging.getLogger("mkdocs.hooks.site")


def place(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return PAGES.get(path, path.removeprefix("docs/"))


def linked(text: str, path: str) -> tuple[str, set[str]]:
    """The Markdown of a page of the repository with the links of the site, and the files that it links."""
    targets = set()

    def replaced(match: re.Match[str]) -> str:
        target = normpath(join(dirname(path), match[2]))
        if not (ROOT / target).is_file():
            log.warning("%s links %s, which is no file of the repository", path, match[2])
            return match[0]
        targets.add(target)
        return match[1] + relpath(place(target), dirname(place(path)) or ".")

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(replaced, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(replaced, text[end:])]), targets


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/ and some page links, and the pages of the Python interface."""
    waiting = ["README.md", "CHANGELOG.md", *(f"docs/{one.src_uri}" for one in files.documentation_pages())]
    done = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        inside = path.startswith("docs/")
        if path.endswith("report.html"):  # it offers its figures as files
            waiting += [one.relative_to(ROOT).as_posix() for one in (ROOT / path).parent.glob("figures/*")]
        if not path.endswith(".md"):
            if not inside:
                files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
            continue
        content, targets = linked((ROOT / path).read_text(encoding="utf-8"), path)
        waiting += sorted(targets)
        if not inside:
            files.append(File.generated(config, place(path), content=content))
    files.append(File.generated(config, "python.md", content=PYTHON))
    files.append(File.generated(config, "method.md", content=METHOD))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of a page in docs/, and what is made of the code."""
    if page.file.generated_by is None:
        markdown = linked(markdown, f"docs/{page.file.src_uri}")[0]
    if page.file.src_uri in MADE:
        markdown += f"\n\n{MADE[page.file.src_uri]()}\n"
    return markdown.replace(" ± ", "\u00a0±\u00a0")  # a number and its deviation stay on one line
