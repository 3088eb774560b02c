"""Tables of a report inside a page that people write, such as a README."""

import re
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import RequestError, reason, unknown
from kdbench.files import written_aside
from kdbench.reports.tables import Table, to_markdown

BLOCK = re.compile(r"(<!-- table: ([^\n]+?) -->\n).*?(<!-- /table -->)", re.DOTALL)


def embed(page: Path, tables: Sequence[Table]) -> None:
    """Fill every block `<!-- table: TITLE --> ... <!-- /table -->` of a page with the table of that title.

    Raises RequestError for a page that cannot be read, has no block, or names an unknown table.
    """
    try:
        before = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError([f"{page}: {reason(error)}"]) from error
    known = {table.title: table for table in tables}
    named = [title for _, title, _ in BLOCK.findall(before)]
    complaints = [f"{page}: {unknown('table', title, [*known])}" for title in named if title not in known]
    if not named:
        complaints.append(f"{page} has no block <!-- table: TITLE --> ... <!-- /table --> to fill")
    if complaints:
        raise RequestError(complaints)

    def filled(block: re.Match[str]) -> str:
        return f"{block[1]}\n{to_markdown(known[block[2]])}\n{block[3]}"

    after = BLOCK.sub(filled, before)
    if after != before:
        with written_aside(page) as aside:
            aside.write_text(after, encoding="utf-8")
