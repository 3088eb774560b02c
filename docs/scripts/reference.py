"""Parts of the site that are made of the code: commands with their options, columns, metrics, presets."""

import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import pyarrow as pa
import typer.main
from pydantic import BaseModel

from kdbench.cli.app import app
from kdbench.cli.documents import DOCUMENTS
from kdbench.metrics.exact import DEFINITIONS
from kdbench.metrics.presets import PRESETS, metric_version
from kdbench.results import store

# Folder of the results -> columns of its files.
SCHEMAS = {
    kind.folder: kind.schema
    for kind in vars(store).values()
    if isinstance(kind, store.Kind) and kind.schema is not None
}
OF = {
    "image": "images: a score and a label each",
    "pixel": "pixels and regions of all test images",
    "overlap": "pixels, each defective image by itself",
    "saturating": "pixels and defects with a saturation",
}


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a | in a cell is escaped."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in one)} |" for one in lines)


def commands() -> str:
    """Every command with its arguments and options, as its definition has them."""
    group = typer.main.get_command(app)
    parts = [_command(names, command) for names, command in _leaves((), group)]
    return "\n\n".join(["## Every option", *parts])


def _leaves(names: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield names, command
    else:
        for name in sorted(inner):
            yield from _leaves((*names, name), inner[name])


def _command(names: tuple[str, ...], command: Any) -> str:
    context = command.context_class(command, info_name=f"kdbench {' '.join(names)}")
    records = [one.get_help_record(context) for one in command.params]  # None for those that are hidden
    body = [(f"`{one[0]}`", _escaped(" ".join(one[1].split()))) for one in records if one]
    usage = " ".join([context.info_name, *command.collect_usage_pieces(context)])
    parts = [f"### kdbench {' '.join(names)}", _escaped(command.help or ""), f"```text\n{usage}\n```"]
    return "\n\n".join([*parts, table(("argument or option", "what it does"), body)] if body else parts)


def _escaped(text: str) -> str:
    """Text that Markdown leaves as it is, outside of `code`."""
    parts = text.split("`")
    plain = [html.escape(part, quote=False).replace("*", "\\*").replace("_", "\\_") for part in parts[::2]]
    parts[::2] = [part.replace("[", "\\[") for part in plain]
    return "`".join(parts)


def columns() -> str:
    """Every column of every kind of file with its type."""
    parts = ["## Every column and its type"]
    for folder, found in SCHEMAS.items():
        parts += [f"### `{folder}/`", table(("column", "type"), [(f"`{f.name}`", _type(f)) for f in found])]
    return "\n\n".join(parts)


def _type(field: pa.Field) -> str:
    return f"`{str(field.type).replace('element: ', '').replace('item: ', '')}`"


def metrics() -> str:
    """The metrics as they are defined: column, title, what they are computed of, where they count."""
    body = [(f"`{one.name}`", one.title, OF[one.of], _yes(one.in_mad), _yes(one.main)) for one in DEFINITIONS]
    head = ("column", "title in tables", "computed of", "counts in mAD", "in the ranking's table")
    return f"## All metrics\n\n{table(head, body)}"


def presets() -> str:
    """The presets as they are defined."""
    body = [
        (
            f"`{name}`",
            f"{one.evaluation_size} x {one.evaluation_size}" if one.evaluation_size else "size of the image",
            one.mask_rule,
            "the method's" if one.sigma is None else f"{one.sigma:g}",
            f"`{one.pro}`" if one.pro else "",
            str(metric_version(name)),
        )
        for name, one in PRESETS.items()
    ]
    head = ("preset", "`evaluation_size`", "`mask_rule`", "`sigma`", "own column", "`metric_version`")
    return f"## As they are defined\n\n{table(head, body)}"


def documents() -> str:
    """Every key of every document of --json with its type."""
    parts = ["## Every key"]
    for command, model in DOCUMENTS.items():
        parts += [f"### kdbench {command}", table(("key", "type", "what it is"), _keys(model, ""))]
    return "\n\n".join(parts)


def _keys(model: type[BaseModel], before: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        of_parts = [one for one in get_args(field.annotation) if hasattr(one, "model_fields")]
        kind = "list" if of_parts else _words_of(field.annotation)
        yield f"`{before}{name}`", kind, _escaped(field.description or "")
        for one in of_parts:
            yield from _keys(one, f"{before}{name}[].")


def _words_of(annotation: Any) -> str:
    shown = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return f"`{shown.replace('typing.', '').replace('None', 'null')}`"


def _yes(value: bool) -> str:
    return "yes" if value else ""
