"""The command `kdbench`: its subcommands, and how an error becomes a message and an exit code."""

import sys

import typer

from kdbench.cli.datasets import data_app
from kdbench.cli.deploy import export, predict
from kdbench.cli.distil import distil_teacher
from kdbench.cli.kept import export_maps, probe, rescore
from kdbench.cli.lists import list_app
from kdbench.cli.look import doctor, status, write_method
from kdbench.cli.report import compare, report
from kdbench.cli.results import results_app
from kdbench.cli.run import run
from kdbench.cli.score import score
from kdbench.cli.serve import serve
from kdbench.cli.streams import failed, lossy_streams, needed
from kdbench.cli.sweep import sweep
from kdbench.cli.terminal import OK, SOME_FAILED, WRONG_REQUEST, complain, give_home, warn
from kdbench.errors import DataError, RequestError, complaints_in

app = typer.Typer(
    help="Compare knowledge-distillation anomaly detectors: one command, exact metrics, traceable numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run a command and leave with its exit code; also with 1 if its whole output was lost."""
    with lossy_streams():
        code = _carry_out()
        sys.stdout.flush()
        if lost := failed(sys.stdout):
            text = f"the output could not be written: {lost}"
            if needed(sys.stdout):
                complain(text)
                code = code or SOME_FAILED
            else:
                warn(text)
    sys.exit(code)


def _carry_out() -> int | str | None:
    """Run the command of the command line, print complaints about it, and return its exit code."""
    try:
        give_home()
        app()
    except (RequestError, DataError) as error:
        for complaint in complaints_in(error):
            complain(complaint)
        return WRONG_REQUEST
    except SystemExit as left:
        return left.code
    return OK


for command in (run, status, sweep, report, compare, probe, rescore, score, export, predict, serve):
    app.command()(command)
app.command("new-method")(write_method)
app.command("distil-teacher")(distil_teacher)
app.command("export-maps")(export_maps)
app.command()(doctor)
app.add_typer(list_app, name="list")
app.add_typer(data_app, name="datasets")
app.add_typer(results_app, name="results")
