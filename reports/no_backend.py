"""Imports matplotlib, whatever backend the environment names; figures.py imports this module first.

A notebook kernel sets MPLBACKEND for every command that it starts. matplotlib cannot
be imported if it does not know that backend. A report draws on canvases of its own and needs no backend.
"""

import contextlib
import os
import sys


def _import_matplotlib() -> None:
    """Import matplotlib without MPLBACKEND; then choose the backend that it names, if matplotlib knows it."""
    if "matplotlib" in sys.modules:
        return  # the program that uses kdbench has chosen its backend
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
