"""The command `kdbench`: its subcommands, and how an error becomes a message and an exit code."""

import os
import sys
from io import TextIOWrapper

import typer

from kdbench.cli.datasets import data_app
from kdbench.cli.look import doctor, list_app, new_method_, status
from kdbench.cli.report import compare, probe, report
from kdbench.cli.results import results_app
from kdbench.cli.run import run
from kdbench.cli.sweep import sweep
from kdbench.cli.terminal import SOME_FAILED, WRONG_REQUEST, complain, warn
from kdbench.errors import DataError, RequestError
from kdbench.files import provide_home

app = typer.Typer(
    help="Compare knowledge-distillation anomaly detectors: one command, exact metrics, traceable numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run a command and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run
    try:
        if note := provide_home():
            warn(note)
        app()
    except (RequestError, DataError) as error:
        for complaint in getattr(error, "complaints", (error,)):
            complain(str(complaint))
        sys.exit(WRONG_REQUEST)
    except BrokenPipeError:  # the reader of our output went away, as in `kdbench list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(SOME_FAILED)


for command in (run, status, sweep, report, compare, probe):
    app.command()(command)
app.command("new-method")(new_method_)
app.command()(doctor)
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="datasets")
app.add_typer(results_app, name="results")
