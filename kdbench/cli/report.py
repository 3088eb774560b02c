"""`kdbench report` and `compare`: reports and comparisons of rows."""

from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.cli import documents
from kdbench.cli.options import REPORT, Out, Results, at_home, unusual
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.tables import show_values
from kdbench.cli.terminal import OK, SOME_FAILED, note, reading, say, say_next
from kdbench.errors import DataError, RequestError, complained, number_of, reason

if TYPE_CHECKING:
    from kdbench.reports.tables import Table


@for_scripts
def report(
    results: Results = "results",
    out: Out = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Also upload rows and report to this dataset repository."),
    ] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Also log to this MLflow server.")] = None,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Also log to this Weights & Biases project.")
    ] = None,
    rows: Annotated[
        Path | None,
        typer.Option(help="Also write all rows here, a few files that can be shared.", callback=at_home),
    ] = None,
    into: Annotated[
        list[Path] | None,
        typer.Option(metavar="PAGE", help="Also fill the tables of this Markdown page.", callback=at_home),
    ] = None,
) -> Answer:
    """Write the report of all rows of a results folder; works while cells are still running."""
    from kdbench.reports import publish
    from kdbench.reports.embed import embed
    from kdbench.reports.leaderboard import all_tables

    chosen = {"huggingface_hub": push_to_hub, "mlflow": mlflow, "wandb": wandb}
    for module in (name for name, value in chosen.items() if value):
        publish.check_extra(module)  # before the report is written, not after
    files = write(results, out or REPORT, page=True)
    if rows:
        with complained(f"cannot write rows in {rows}"):
            publish.write_rows(results, rows)
        say(f"rows: {rows}")
    if into:
        with reading(results):
            tables = all_tables(results)
        for page in into:
            with complained(f"cannot fill {page}"):
                embed(page, tables)
            say(f"tables: {page}")
    with reading(results):
        if push_to_hub:
            say(f"pushed: {publish.push_to_hub(results, files, push_to_hub)}")
        if mlflow:
            logged = number_of(publish.log_to_mlflow(results, files, mlflow), "run")
            say(f"logged {logged} to MLflow at {mlflow}")
        if wandb:
            logged = number_of(publish.log_to_wandb(results, files, wandb), "run")
            say(f"logged {logged} to the wandb project {wandb}")
        _say_export(results)
    names = tuple(map(str, files))
    return Answer(document=documents.Written(results=results, report=names[0], files=names))


def _say_export(results: str) -> None:
    """Name the command that exports the best detectors, if cells kept some."""
    from kdbench.results.storage import Storage
    from kdbench.results.store import CELLS, DETECTORS, read

    storage = Storage(results)
    if DETECTORS.names(storage) and CELLS.names(storage):
        datasets = {*read(storage, CELLS, columns=["dataset"])["dataset"].to_pylist()}
        where = (*unusual("--results", results, "results"), *_root_option(datasets))
        say_next("the best detectors as files", "kdbench", "export", "--best", "image_auroc", *where)


def _root_option(names: Set[str]) -> tuple[str, ...]:
    """--root with a placeholder, if it is one dataset whose images nothing else finds."""
    from kdbench.registry import dataset_names, get_dataset

    if len(names) > 1 or not names <= {*dataset_names()}:
        return ()
    (dataset,) = map(get_dataset, names)
    if not dataset.drawn():  # kdbench draws the images where they are needed
        return ()
    try:
        dataset.root(None)
    except DataError:
        return ("--root", "FOLDER")
    return ()


def write(results: str, folder: Path, *, page: bool = False) -> list[Path]:
    """Write the leaderboard, with `page` the whole report, and print its path; returns its files."""
    from kdbench.reports.leaderboard import write_leaderboard

    with complained(f"cannot write the report in {folder}"):
        try:
            if page:
                from kdbench.reports.page import write_report

                written = write_report(results, folder)
                path, headline = written.page, written.headline
                files = [path, *(file for file in written.files if file != path)]
            else:
                path, headline = write_leaderboard(results, folder)
                files = [path]
        except FileNotFoundError as error:
            raise RequestError([str(error)]) from error
    say(headline)
    say(f"report: {path}")
    return files


@for_scripts
def compare(
    results_a: Annotated[str, typer.Argument(help="The results folder or URI before.", callback=at_home)],
    results_b: Annotated[str, typer.Argument(help="The results folder or URI after.", callback=at_home)],
    tolerance: Annotated[
        float, typer.Option(help="How much worse a metric may become, as a fraction; 0.01 is one point.")
    ] = 0.01,
    out: Annotated[
        Path | None, typer.Option(help="Also write compare.md and compare.csv here.", callback=at_home)
    ] = None,
) -> Answer:
    """Show what changed between two results folders; exit code 1 if something became worse, for CI."""
    from kdbench.reports.compare import compare as compare_folders
    from kdbench.reports.compare import write_comparison

    with reading(f"{results_a} or {results_b}"):
        found = compare_folders(results_a, results_b, tolerance)
    for table in (found.origins, found.ends, found.means, found.beyond):
        if table.body:
            show_values(table)
    for text in found.origins.notes:
        note(text)
    if out:
        try:
            say(f"all differences: {write_comparison(found, out)}")
        except OSError as error:
            raise RequestError([f"cannot write the comparison in {out}: {reason(error)}"]) from error
    say(found.headline)
    if not out:
        words = (results_a, results_b, "--out", "FOLDER")
        say_next("every difference as files", "kdbench", "compare", *words)
    document = documents.Compared.of(
        found,
        before=results_a,
        after=results_b,
        tolerance=tolerance,
        beyond=tuple(documents.Difference(**values) for values in _by_column(found.beyond)),
        failed=tuple(documents.Ended(**values) for values in _by_column(found.ends)),
        other_code={
            what.text: (before.text, after.text)
            for what, before, after, differs in found.origins.body
            if differs.text
        },
    )
    return Answer(document=document, code=SOME_FAILED if found.num_regressions else OK)


def _by_column(table: "Table") -> Iterator[dict[str, Any]]:
    """Each line of a table: column -> its number, else its text."""
    for line in table.body:
        values = zip(table.head, line, strict=True)
        yield {name: value.text if value.mean is None else value.mean for name, value in values}
