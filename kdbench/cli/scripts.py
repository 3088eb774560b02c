"""Commands for scripts: --quiet prints errors only, --json one document on standard output."""

import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated

import typer

from kdbench import __version__
from kdbench.cli.documents import Part
from kdbench.cli.terminal import OK, WRONG_REQUEST, err, out
from kdbench.errors import DataError, RequestError, complaints_in

Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; all else goes to standard error.")
]
OPTIONS = {"quiet": Quiet, "as_json": Json}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a command, and its exit code."""

    document: Part
    code: int = OK
    errors: tuple[str, ...] = ()  # complaints that were printed already


def for_scripts(command: Callable[..., Answer | None]) -> Callable[..., None]:
    """Give a command --quiet and --json, and leave with the code of its answer.

    A group has no answer (None) if one of its commands gives it.
    """

    def filled(*, quiet: bool, as_json: bool, **given: object) -> None:
        def write(code: int, errors: tuple[str, ...] = (), document: Part | None = None) -> None:
            if as_json:
                found = document.model_dump(mode="json", exclude_unset=True) if document else {}
                whole = {"kdbench": __version__, "exit_code": code, "errors": errors} | found
                sys.stdout.write(json.dumps(whole, indent=2, allow_nan=False) + "\n")

        try:
            with _said_elsewhere(quiet, as_json):
                answer = command(**given)
        except (RequestError, DataError) as error:
            write(WRONG_REQUEST, complaints_in(error))
            raise
        except typer.Exit as left:
            write(left.exit_code)
            raise
        if answer is None and (quiet or as_json):
            raise RequestError(["--quiet and --json stand after the name of the last command"])
        if answer is None:
            return
        write(answer.code, answer.errors, answer.document)
        if answer.code != OK:
            raise typer.Exit(answer.code)

    parameters = [
        *inspect.signature(command).parameters.values(),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
            for name, annotation in OPTIONS.items()
        ),
    ]
    filled.__name__, filled.__doc__ = command.__name__, command.__doc__
    filled.__annotations__ = {one.name: one.annotation for one in parameters}
    filled.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    )
    return filled


@contextmanager
def _said_elsewhere(quiet: bool, as_json: bool) -> Iterator[None]:
    """A context in which the console prints nothing, or prints on standard error."""
    before = out.quiet, out.width
    out.quiet = quiet
    try:
        if as_json:
            out.width = err.width
            with redirect_stdout(sys.stderr):
                yield
        else:
            yield
    finally:
        out.quiet = before[0]
        if as_json:
            out.width = before[1]
