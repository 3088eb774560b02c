"""The notebooks of docs/ run as they stand."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

QUICKSTART = Path(__file__).parents[1] / "docs/notebooks/quickstart.ipynb"


def outputs_of(cell, kind):
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_the_quick_start_runs_and_shows_what_it_promises(tmp_path):
    notebook = nbformat.read(QUICKSTART, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=folder).execute()
    names, run, board, _, figure, detector, picture = (c for c in notebook.cells if c.cell_type == "code")
    (methods,) = outputs_of(names, "text/plain")
    assert "'stfpm'" in methods
    shown = "".join(outputs_of(run, "text/plain"))
    assert "[1/1] stfpm synthetic/wood oneclass seed 0: ok in " in shown
    assert "Traceback" not in shown
    (table,) = outputs_of(board, "text/html")
    assert "over 1 of 8 categories (wood)" in table
    assert outputs_of(figure, "image/svg+xml")[0].startswith("<?xml")
    assert "<Detector stfpm of wood (synthetic), seed 0, 128 px on " in outputs_of(detector, "text/plain")[0]
    assert outputs_of(picture, "image/png")
