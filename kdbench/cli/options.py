"""The options of the commands. Those of a request come from its model, which declares each of them once."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdbench.cli.complete import OF_FIELDS, of_names
from kdbench.cli.terminal import note
from kdbench.errors import RequestError
from kdbench.files import expanded
from kdbench.grid.request import Request, Shown, parse_sets, read_model, split

REPORT = Path("reports/out")
T = TypeVar("T")


def at_home(value: object) -> object:
    """A path, a URI or a list of them that a person typed, with `~` expanded."""
    if isinstance(value, list):
        return [at_home(one) for one in value]
    if isinstance(value, Path):
        return Path(expanded(str(value)))
    return expanded(value) if isinstance(value, str) else value


def comma_list(option: str, value: str | None) -> tuple[str, ...]:
    """The names of a comma list, none if it is not given; RequestError if it is given and names nothing."""
    if value is None:
        return ()
    try:
        return tuple(split(value))
    except ValueError as error:
        raise RequestError([f"--{option} {value!r}: {error}"]) from error


def unusual(option: str, value: object, usual: object) -> tuple[str, ...]:
    """The words of an option, if it is not at its default."""
    return () if value == usual else (option, str(value))


def help_of(model: type[BaseModel], name: str) -> str:
    """The help of a field of a request, with its default."""
    field = model.model_fields[name]
    default = _default(name, field)
    return (field.description or "") + (f" [default: {default}]" if default else "")


def report_folder(out: Path | None, former: Path | None) -> Path:
    """The folder of the report; RequestError if both names of the option were used."""
    if former is None:
        return out or REPORT
    if out is not None:
        raise RequestError([f"--out {out} and --report {former} are the same option: leave out --report"])
    note("--report is called --out now")
    return former


def options_of(model: type[BaseModel]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Give a command an option for each field of a model, and `--config` for a TOML file of a grid.

    The command is called with the request first, then with its own options.
    """
    of_grid = "set" in model.model_fields

    def with_options(command: Callable[..., T]) -> Callable[..., T]:
        _, *own = inspect.signature(command).parameters.values()

        def filled(**given: object) -> T:
            config = given.pop("config", None)
            asked = {name: given.pop(name) for name in model.model_fields}
            asked |= {name: _once(name, value) for name, value in asked.items() if name != "set"}
            texts = asked.get("set")
            if isinstance(texts, list):
                asked["set"] = parse_sets(texts)
            request = read_model(model, config if isinstance(config, Path) else None, asked)
            return command(request, **given)

        parameters = [
            *(_parameter(name, field, help_of(model, name)) for name, field in model.model_fields.items()),
            *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own),
            *([_config(own, recipes=model is Request)] if of_grid else []),
        ]
        filled.__name__, filled.__doc__ = command.__name__, command.__doc__
        filled.__annotations__ = {one.name: one.annotation for one in parameters}
        filled.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return filled

    return with_options


def _once(name: str, value: object) -> object:
    """The value of an option that may be given once: the parser would drop all but the last in silence."""
    if not isinstance(value, list):
        return value
    if len(value) > 1:
        option = f"--{name.replace('_', '-')}"
        raise RequestError([f"{option} is given {len(value)} times: write {option} {','.join(value)}"])
    return value[0] if value else None


def _parameter(name: str, field: FieldInfo, text: str) -> inspect.Parameter:
    """Typer's parameter for a field. If not given, it is None: the --config file or the model decides."""
    shown = next((one for one in field.metadata if isinstance(one, Shown)), Shown())
    of_field = _without_none(field.annotation)
    metavar = shown.metavar or _metavar(of_field)
    completion = of_names(lambda ctx: shown.words) if shown.words else OF_FIELDS.get(name)
    if field.is_required() or shown.is_argument:
        option = typer.Argument(help=text, metavar=metavar, autocompletion=completion)
    else:
        off = f"/{shown.off}" if shown.off else ""
        names = f"--{name.replace('_', '-')}{off}"
        option = typer.Option(names, help=text, metavar=metavar, autocompletion=completion)
    annotation = Annotated[_type_of_option(of_field) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _config(own: Sequence[inspect.Parameter], *, recipes: bool) -> inspect.Parameter:
    """The option `--config`; `recipes` says whether recipes are for this command."""
    names = [one.name.replace("_", "-") for one in own if one.annotation is not OldOut] + ["quiet", "json"]
    text = f"TOML file of these options (not {', '.join(names)}); those given here take precedence."
    if recipes:
        text = f"{text} Or a recipe, see `kdbench list recipes`."
    option = typer.Option(help=text, metavar="FILE|RECIPE" if recipes else "FILE", callback=at_home)
    annotation = Annotated[Path | None, option]
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _without_none(annotation: object) -> object:
    """The type of a field without None and without its validators."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not NoneType)
        return _without_none(annotation)
    return annotation


def _type_of_option(of_field: object) -> type:
    """The type that Typer parses; anything else is text for it, which the model parses."""
    if get_origin(of_field) in (Mapping, tuple):
        return list[str]
    return of_field if isinstance(of_field, type) and of_field in (bool, int, float, Path) else str


def _metavar(of_field: object) -> str | None:
    if get_origin(of_field) is Literal:
        return "|".join(get_args(of_field))
    return "NAME,..." if get_origin(of_field) is tuple else None


def _default(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True) if not field.is_required() else None
    if isinstance(value, bool):
        shown = next((one for one in field.metadata if isinstance(one, Shown)), Shown())
        return f"--{name.replace('_', '-')}" if value else shown.off or ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value or "")


# Options that several commands have.
Results = Annotated[str, typer.Option(help="Folder or URI (s3://...) of the rows.", callback=at_home)]
Out = Annotated[
    Path | None,
    typer.Option("--out", help=f"Folder of the report. [default: {REPORT}]", callback=at_home),
]
OldOut = Annotated[
    Path | None,
    typer.Option("--report", help="The former name of --out.", hidden=True, callback=at_home),
]
Root = Annotated[Path | None, typer.Option(help=help_of(Request, "root"), callback=at_home)]
Weights = Annotated[Path | None, typer.Option(help=help_of(Request, "weights"), callback=at_home)]
Device = Annotated[str, typer.Option(help=Request.model_fields["device"].description)]
