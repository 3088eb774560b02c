"""`kdbench list`, `status`, `doctor` and `new-method`."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli.options import Results, at_home, unusual
from kdbench.cli.tables import Line, show
from kdbench.cli.terminal import SOME_FAILED, complain, duration, reading, say, say_next
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
    if not any(state.running for state in going):
        say_next("a page of what finished", "kdbench", "report", *unusual("--results", results, "results"))


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
    lines = []
    for family, facts in families:
        for fact in facts:
            year = "" if fact.year is None else str(fact.year)
            words = (family, fact.name, year, fact.paper, fact.licence, fact.fidelity, fact.summary)
            lines.append(Line(cells=words, ends_section=fact is facts[-1]))
    head = ("family", "method", "year", "paper", "authors' licence", "fidelity", "what it is")
    show(head, lines, title="methods")
    for family, facts in families:
        say(f"{family or 'other'}: {FAMILIES[family]}")
        for fact in facts:
            if fact.needs:
                say(f"  {fact.name}: needs {fact.needs}; it runs where --methods names it")
            for departure in fact.departures:
                say(f"  {fact.name}: {departure}")
    say_next("compare some of them", "kdbench", "run", "--methods", "NAME,NAME")


@list_app.command("datasets")
def list_datasets() -> None:
    """List datasets with their categories and licences."""
    from kdbench.registry import dataset_names, get_dataset

    lines = []
    for name in dataset_names():
        dataset = get_dataset(name)
        known = f"{len(dataset.categories)}: {', '.join(dataset.categories)}"
        words = (name, known if dataset.categories else "what is on disk", dataset.licence)
        lines.append(Line(cells=(*words, "yes" if dataset.archives else "")))
    show(("dataset", "categories", "licence", "download"), lines, title="datasets")
    for name in dataset_names():
        for note in get_dataset(name).notes:
            say(f"{name}: {note}")
    say_next("look at images on disk", "kdbench", "datasets", "check", "NAME", "--root", "FOLDER")


@list_app.command("backbones")
def list_backbones() -> None:
    """List the teachers that were tried; every timm backbone with feature maps can be named, as NAME.TAG."""
    from kdbench.weights import BACKBONES

    lines = [Line(cells=(name, what)) for name, what in BACKBONES.items()]
    show(("backbone", "what it is"), lines, title="backbones")
    say("and every timm backbone with feature maps, as NAME.TAG")
    say_next("train with one of them", "kdbench", "run", "--backbone", "NAME")


def write_method(
    name: Annotated[str, typer.Argument(help="Lower-case, like my_method.")],
    folder: Annotated[Path, typer.Option(help="Where the package is written.", callback=at_home)] = Path(),
) -> None:
    """Write a package with a method of your own, which runs as it is."""
    from kdbench.cli.new_method import new_method

    path = new_method(name, folder)
    say(f"wrote {path}, a package that runs as it is")
    say_next("install it", "pip", "install", "-e", str(path))
    say_next("then run it", "kdbench", "run", "--methods", name)


def doctor() -> None:
    """Show versions, devices and folders; what is missing and how to get it."""
    from kdbench.cli.doctor import examine

    findings = examine()
    lines = [
        Line(cells=(one.what, one.found, one.advice), style="red" if one.wrong else None) for one in findings
    ]
    show(("what", "found", "what to do"), lines, title="kdbench doctor")
    if wrong := [one for one in findings if one.wrong]:
        for one in wrong:
            complain(f"{one.what}: {one.found}. {one.advice}")
        raise typer.Exit(SOME_FAILED)
    say("nothing is wrong")
    say_next("a first run, which downloads nothing", "kdbench", "run", "--methods", "stfpm,dcam")
