"""matplotlib, whatever the environment says; figures.py imports this module before any part of matplotlib.

A notebook kernel sets MPLBACKEND for every command that it starts. matplotlib cannot be imported where it
does not know that backend. A report draws on canvases of its own and needs none.
"""

import contextlib
import os
import sys


def _import_matplotlib() -> None:
    """Import it without MPLBACKEND, then choose that backend as matplotlib would, if it is known here."""
    if "matplotlib" in sys.modules:
        return  # the program that uses us has chosen its backend
    named = os.environ.pop("MPLBACKEND", "")
    try:
        import matplotlib as mpl
    finally:
        if named:
            os.environ["MPLBACKEND"] = named
    if named:
        with contextlib.suppress(ValueError):
            mpl.rcParams["backend"] = named


_import_matplotlib()
