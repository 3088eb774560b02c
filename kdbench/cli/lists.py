"""`kdbench list`: methods, datasets, backbones and recipes to choose from."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli import documents
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.tables import Line, show
from kdbench.cli.terminal import say, say_next

list_app = typer.Typer(
    help="List methods, datasets, backbones and recipes.", no_args_is_help=False, invoke_without_command=True
)


@list_app.callback()
@for_scripts
def list_all(context: typer.Context) -> Answer | None:
    """List methods, datasets, backbones and recipes."""
    if context.invoked_subcommand is not None:
        return None
    methods, datasets, backbones, recipes = _methods(), _datasets(), _backbones(), _recipes()
    _show_methods(methods)
    _show_datasets(datasets)
    _show_backbones(backbones)
    _show_recipes(recipes)
    listed = documents.Listed(methods=methods, datasets=datasets, backbones=backbones, recipes=recipes)
    return Answer(document=listed)


@list_app.command("methods")
@for_scripts
def list_methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/methods.md.")] = False,
) -> Answer:
    """List methods by family, how near each is to its paper, what it needs, and where it departs from it."""
    methods = _methods()
    if markdown:
        from kdbench.registry import methods_page

        sys.stdout.write(methods_page())
    else:
        _show_methods(methods)
    return Answer(document=documents.Listed(methods=methods))


@list_app.command("datasets")
@for_scripts
def list_datasets() -> Answer:
    """List datasets with their categories and licences."""
    datasets = _datasets()
    _show_datasets(datasets)
    return Answer(document=documents.Listed(datasets=datasets))


@list_app.command("backbones")
@for_scripts
def list_backbones() -> Answer:
    """List the teachers that were tried; every timm backbone with feature maps can be named, as NAME.TAG."""
    backbones = _backbones()
    _show_backbones(backbones)
    return Answer(document=documents.Listed(backbones=backbones))


@list_app.command("recipes")
@for_scripts
def list_recipes() -> Answer:
    """List the grids that come with kdbench, and the published means that a report puts beside ours."""
    recipes = _recipes()
    _show_recipes(recipes)
    return Answer(document=documents.Listed(recipes=recipes))


def _methods() -> tuple[documents.Method, ...]:
    from kdbench.registry import method_names, methods_by_family

    families = methods_by_family(method_names())
    return tuple(documents.Method.of(fact) for _, facts in families for fact in facts)


def _datasets() -> tuple[documents.Dataset, ...]:
    from kdbench.registry import dataset_names, get_dataset

    found = map(get_dataset, dataset_names())
    return tuple(documents.Dataset.of(one, download=bool(one.archives)) for one in found)


def _backbones() -> tuple[documents.Backbone, ...]:
    from kdbench.weights import BACKBONES

    return tuple(documents.Backbone(name=name, summary=what) for name, what in BACKBONES.items())


def _recipes() -> tuple[documents.Recipe, ...]:
    from kdbench.grid.recipes import published, recipe_names, says
    from kdbench.grid.request import read_request

    found = []
    for name in recipe_names():
        request = read_request(Path(name), {})
        (method,), (dataset,), (setting,) = request.methods, request.dataset, request.setting
        known = tuple(map(documents.Published.of, published(method, dataset, setting)))
        found.append(documents.Recipe(name=name, summary=says(name), published=known))
    return tuple(found)


def _show_methods(methods: tuple[documents.Method, ...]) -> None:
    from kdbench.registry import FAMILIES, OF_ALL

    lines = []
    for one, following in zip(methods, (*methods[1:], None), strict=True):
        year = "" if one.year is None else str(one.year)
        words = (one.family, one.name, year, one.paper, one.licence, one.fidelity, one.summary)
        lines.append(Line(cells=words, ends_section=not following or following.family != one.family))
    head = ("family", "method", "year", "paper", "authors' licence", "fidelity", "what it is")
    show(head, lines, title="methods")
    for family in dict.fromkeys(one.family for one in methods):
        say(f"{family or 'other'}: {FAMILIES[family]}")
        for one in (one for one in methods if one.family == family):
            if one.needs:
                say(f"  {one.name}: needs {one.needs}; it runs where --methods names it")
            for departure in one.departures:
                say(f"  {one.name}: {departure}")
    say(OF_ALL)
    say_next("compare some of them", "kdbench", "run", "--methods", "NAME,NAME")


def _show_datasets(datasets: tuple[documents.Dataset, ...]) -> None:
    lines = []
    for one in datasets:
        known = f"{len(one.categories)}: {', '.join(one.categories)}" if one.categories else "all on disk"
        lines.append(Line(cells=(one.name, known, one.licence, "yes" if one.download else "")))
    show(("dataset", "categories", "licence", "download"), lines, title="datasets")
    for one in datasets:
        for text in one.notes:
            say(f"{one.name}: {text}")
    say_next("look at images on disk", "kdbench", "datasets", "check", "NAME", "--root", "FOLDER")


def _show_backbones(backbones: tuple[documents.Backbone, ...]) -> None:
    lines = [Line(cells=(one.name, one.summary)) for one in backbones]
    show(("backbone", "what it is"), lines, title="backbones")
    say("and every timm backbone with feature maps, as NAME.TAG")
    say_next("train with one of them", "kdbench", "run", "--backbone", "NAME")


def _show_recipes(recipes: tuple[documents.Recipe, ...]) -> None:
    lines = []
    for one in recipes:
        known = ", ".join(f"{number.metric} {100 * number.value:.2f}" for number in one.published)
        lines.append(Line(cells=(one.name, one.summary, known or "none known")))
    show(("recipe", "what it is", "published means, percent"), lines, title="recipes")
    say_next("how long one takes", "kdbench", "run", "--config", "RECIPE", "--root", "FOLDER", "--dry-run")
