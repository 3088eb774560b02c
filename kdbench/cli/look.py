"""`kdbench list`, `status`, `doctor` and `new-method`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from kdbench.cli.options import Results, at_home
from kdbench.cli.terminal import SOME_FAILED, duration, new_table, reading, say, show
from kdbench.errors import RequestError

list_app = typer.Typer(
    help="What there is to choose from.", no_args_is_help=False, invoke_without_command=True
)


def status(results: Results = "results") -> None:
    """Say how far the runs on a results folder are: queue, running cells, failures, time left."""
    from kdbench.grid.status import states
    from kdbench.results.store import Results

    with reading(results):
        found = states(Results(results))
    if not found:
        raise RequestError([f"no run has begun in {results}: `kdbench run --results {results}` begins one"])
    going = [state for state in found if state.running] or found[:1]
    for state in going:
        counted = ", ".join(f"{count} {name}" for name, count in state.counts.items() if count)
        left = f", about {duration(state.left_s)} left" if state.left_s and state.running else ""
        say(f"run {state.run.run_id}: {len(state.run.cells)} cells, {counted}{left}")
        for holder in state.running:
            now = holder.progress
            where = f"{now.get('phase', 'start')} {now.get('done', 0)}/{now.get('total', 0)} images"
            epochs = f", epoch {now['epoch']}/{now['epochs']}" if now.get("epochs") else ""
            took = duration(time.time() - holder.since)
            problem = f", {now['problem']}" if now.get("problem") else ""
            at = f"{holder.host} (process {holder.pid})"
            say(f"  {at}: {holder.label} · {where}{epochs}, for {took}{problem}")
        if not state.running and state.counts["waiting"]:
            say("  nobody is running it: the same `kdbench run` command resumes it")


@list_app.callback()
def list_all(context: typer.Context) -> None:
    """List methods, datasets and backbones."""
    if context.invoked_subcommand is None:
        list_methods()
        list_datasets()
        list_backbones()


@list_app.command("methods")
def list_methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/methods.md.")] = False,
) -> None:
    """List methods by family, how near each is to its paper, what it needs, and where it departs from it."""
    from kdbench.registry import FAMILIES, method_names, methods_by_family, methods_page

    if markdown:
        sys.stdout.write(methods_page())
        return
    families = list(methods_by_family(method_names()))
    table = new_table(
        *("family", "method", "year", "paper", "authors' licence", "fidelity", "what it is"), title="methods"
    )
    for family, facts in families:
        for fact in facts:
            year = "" if fact.year is None else str(fact.year)
            words = (family, fact.name, year, fact.paper, fact.licence, fact.fidelity, fact.summary)
            table.add_row(*map(escape, words), end_section=fact is facts[-1])
    show(table)
    for family, facts in families:
        say(f"{family or 'other'}: {FAMILIES[family]}")
        for fact in facts:
            if fact.needs:
                say(f"  {fact.name}: needs {fact.needs}; it runs where --methods names it")
            for departure in fact.departures:
                say(f"  {fact.name}: {departure}")


@list_app.command("datasets")
def list_datasets() -> None:
    """List datasets with their categories and licences."""
    from kdbench.registry import dataset_names, get_dataset

    table = new_table("dataset", "categories", "licence", "download", title="datasets")
    for name in dataset_names():
        dataset = get_dataset(name)
        known = f"{len(dataset.categories)}: {', '.join(dataset.categories)}"
        row = (name, known if dataset.categories else "what is on disk", dataset.licence)
        table.add_row(*map(escape, row), "yes" if dataset.archives else "")
    show(table)
    for name in dataset_names():
        for note in get_dataset(name).notes:
            say(f"{name}: {note}")


@list_app.command("backbones")
def list_backbones() -> None:
    """List the teachers that were tried; every timm backbone with feature maps can be named, as NAME.TAG."""
    from kdbench.weights import BACKBONES

    table = new_table("backbone", "what it is", title="backbones")
    for name, what in BACKBONES.items():
        table.add_row(name, what)
    show(table)
    say("and every timm backbone with feature maps, as NAME.TAG")


def write_method(
    name: Annotated[str, typer.Argument(help="Lower-case, like my_method.")],
    folder: Annotated[Path, typer.Option(help="Where the package is written.", callback=at_home)] = Path(),
) -> None:
    """Write a package with a method of your own, which runs as it is."""
    from kdbench.cli.new_method import new_method

    path = new_method(name, folder)
    say(f"wrote {path}; next: pip install -e {path}, then kdbench run --methods {name}")


def doctor() -> None:
    """Show versions, devices and folders; what is missing and how to get it."""
    from kdbench.cli.doctor import examine

    findings = examine()
    table = new_table("what", "found", "what to do", title="kdbench doctor")
    for finding in findings:
        table.add_row(
            *map(escape, (finding.what, finding.found, finding.advice)),
            style="red" if finding.wrong else None,
        )
    show(table)
    if any(finding.wrong for finding in findings):
        raise typer.Exit(SOME_FAILED)
