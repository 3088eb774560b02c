"""Tables of a report inside pages that people write."""

from pathlib import Path

import pytest

from kdbench.errors import RequestError
from kdbench.reports.embed import embed
from kdbench.reports.tables import Table, number, text

RANKING = Table(title="Ranking: a, b (v1)", head=("method", "AUROC"), body=((text("x"), number(0.5)),))
COSTS = Table(title="Costs", head=("method", "ms"), body=((text("x"), number(7)),))
PAGE = """# Mine

<!-- table: Ranking: a, b (v1) -->
| old |
<!-- /table -->

Between them.

<!-- table: Costs -->
<!-- /table -->
"""


def test_blocks_are_filled_and_everything_else_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    embed(page, [COSTS, RANKING])
    filled = """# Mine

<!-- table: Ranking: a, b (v1) -->

| method | AUROC |
|---|---|
| x | 0.5 |

<!-- /table -->

Between them.

<!-- table: Costs -->

| method | ms |
|---|---|
| x | 7 |

<!-- /table -->
"""
    assert page.read_text() == filled
    embed(page, [COSTS, RANKING])
    assert page.read_text() == filled


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (PAGE, "no table 'Costs'. Tables: Ranking: a, b (v1)"),
        ("no block", "has no block"),
        (None, "No such file"),
        (b"\xff", "can't decode"),
    ],
)
def test_a_page_that_cannot_be_filled_stays_as_it_is(tmp_path: Path, said, complaint: str) -> None:
    page = tmp_path / "page.md"
    if said is not None:
        page.write_bytes(said if isinstance(said, bytes) else said.encode())
    with pytest.raises(RequestError) as raised:
        embed(page, [RANKING])
    assert complaint in str(raised.value)
    assert said is None or page.read_bytes() == (said if isinstance(said, bytes) else said.encode())
