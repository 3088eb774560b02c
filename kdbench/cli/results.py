"""`kdbench results`: look after a results folder."""

from typing import Annotated

import typer

from kdbench.cli.options import Results
from kdbench.cli.terminal import complained, say
from kdbench.errors import RequestError, number_of

results_app = typer.Typer(help="Look after a results folder.", no_args_is_help=True)


@results_app.callback()
def look_after() -> None:
    """Look after a results folder."""


@results_app.command("prune")
def prune(
    results: Results = "results",
    yes: Annotated[bool, typer.Option("--yes", help="Move the files; without it they are listed.")] = False,
) -> None:
    """List files that nothing refers to, such as rows of changed images; --yes moves them to pruned/."""
    from kdbench.grid.lease import holders
    from kdbench.results.prune import FOLDER, leftovers, move_away
    from kdbench.results.storage import Storage

    storage = Storage(results)
    with complained(f"cannot prune {results}"):
        try:
            found = leftovers(storage, lambda: {holder.cell_id for holder in holders(storage)})
        except FileNotFoundError as error:
            raise RequestError([str(error)]) from error
        for leftover in found:
            say(f"{leftover.why}: {number_of(len(leftover.files), 'file')}, {_size(leftover.num_bytes)}")
            for name in leftover.files:
                say(f"  {name}")
        every = sum(len(leftover.files) for leftover in found)
        total = f"{number_of(every, 'file')}, {_size(sum(leftover.num_bytes for leftover in found))}"
        if not found:
            say(f"nothing to move: something refers to every file of {results}")
        elif not yes:
            say(f"{total} in all. Nothing was moved: --yes moves them to {storage.path(FOLDER)}")
        else:
            moved = storage.path(move_away(storage, found))
            say(f"{total}: moved to {moved}. Delete that folder, or move its files back")


def _size(num_bytes: int) -> str:
    """A size in the largest unit that it reaches, with two digits after the point."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return number_of(num_bytes, "byte")
