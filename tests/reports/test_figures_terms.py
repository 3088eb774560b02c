"""The figure of what drives a training."""

import pandas as pd
import pytest

from kdbench.reports import figures
from kdbench.reports.figures_terms import drivers, terms_of
from kdbench.reports.rows import Group

GROUP = Group(
    dataset="fabricated",
    setting="multiclass",
    profile="paper",
    preset="exact",
    metric_version=1,
    oracle=False,
)


def section(spread: float = 0.0) -> pd.DataFrame:
    """One cell of two categories, with two terms and one observed number at two steps."""
    row = {
        "entry": "dcam",
        "cell_id": "c0",
        "status": "ok",
        "num_steps": 100,
        "term_steps": [0, 0, 0, 99, 99, 99],
        "term_names": ["cosine", "divergence", "spread of gate 1"] * 2,
        "term_values": [2.0, 3.0, 0.05, 1.0, 0.5, spread],
        "term_gradients": [0.5, 7.0, None, None, None, None],
    }
    return pd.DataFrame([row | {"category": name} for name in ("a", "b")])


def test_a_line_per_cell_step_and_term():
    lines = terms_of(section())
    assert len(lines) == 6
    assert lines["share"].tolist() == pytest.approx([0.01] * 3 + [1.0] * 3)
    assert lines["gradient"].dropna().tolist() == [0.5, 7.0]


def test_the_figure_and_its_note_on_an_attention_that_is_dead():
    (sketch,) = drivers(GROUP, section())
    assert "dcam: spread of gate 1 is 0 at the end (cells: 1)" in sketch.says
    (axes,) = sketch.draw().axes
    drawn = {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}
    assert drawn["cosine"] == [2.0, 1.0]
    assert "spread of gate 1" not in drawn
    assert figures.render(sketch).svg.startswith(b"<?xml")
    (alive,) = drivers(GROUP, section(spread=0.01))
    assert "spread of gate" not in alive.says


def test_rows_without_terms_have_no_figure():
    old = section().assign(**{name: None for name in ("term_steps", "term_names", "term_values")})
    assert list(drivers(GROUP, old)) == []
