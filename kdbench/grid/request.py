"""The request of a run: the options of `kdbench run` and the keys of its TOML file."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kdbench.cell import PROFILES, SETTINGS
from kdbench.errors import RequestError, reason, unknown
from kdbench.files import expanded, read_text
from kdbench.grid.recipes import grid_file
from kdbench.registry import method_names

Model = TypeVar("Model", bound=BaseModel)
EVERY = "all"  # `all.batch_size=8` sets a key of every method
# Keys of a request that are also keys of every method.
OF_METHODS = ("epochs", "backbone", "precision", "hold_out")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How the command line shows a field, if its name and type do not tell."""

    metavar: str | None = None  # the word for a value in the help, such as its unit
    off: str = ""  # the option that means False
    is_argument: bool = False  # whether it stands without a name
    words: tuple[str, ...] = ()  # what a shell completes


def split(text: str) -> tuple[str, ...]:
    """The names in a comma list.

    Raises ValueError if there is none: an unset shell variable gives none, and that must not mean all.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise ValueError("it names nothing")
    return names


def names_of(value: object) -> object:
    """A comma list or a single number as a tuple; anything else as it is."""
    if isinstance(value, str):
        return split(value)
    return (value,) if isinstance(value, int) else value


def both_settings(value: object) -> object:
    """The names of `names_of`; the name `both` becomes the two settings."""
    names = names_of(value)
    if not isinstance(names, list | tuple):
        return names
    return tuple(dict.fromkeys(one for name in names for one in (SETTINGS if name == "both" else (name,))))


def folder_name(value: object) -> object:
    """A results folder as text, since it may also be a URI, with `~` expanded."""
    return expanded(str(value)) if isinstance(value, str | Path) else value


def path_at_home(value: object) -> object:
    """A path with `~` expanded."""
    return Path(expanded(str(value))) if isinstance(value, str | Path) and str(value) else value


# A path, or a URI that pyarrow knows; an empty one, of an unset shell variable, would be the current folder.
FolderName = Annotated[str, Field(min_length=1), BeforeValidator(folder_name)]
File = Annotated[Path, BeforeValidator(path_at_home)]
Names = Annotated[tuple[str, ...], BeforeValidator(names_of)]
Settings = Annotated[
    tuple[str, ...],
    BeforeValidator(both_settings),
    Shown(metavar="|".join(SETTINGS), words=(*SETTINGS, "both")),
]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], BeforeValidator(names_of), Shown(metavar="SEED,...")]

# Fields that runs and sweeps have in common.
Root = Annotated[
    File | None, Field(description="Folder of the dataset; else the folder DATASET in KDBENCH_DATA.")
]
Split = Annotated[str | None, Field(description="Published split, where a dataset has several.")]
Categories = Annotated[Names, Field(description="Comma list; all that are on disk if not given.")]
Epochs = Annotated[int | None, Field(description="Epochs of each training, instead of the recipe's.")]
Sets = Annotated[Mapping[str, Any], Shown(metavar="METHOD.KEY=VALUE")]
Profile = Annotated[
    str | None,
    Field(description="paper (each method's recipe) or demo (few epochs); the dataset's own if not given."),
    Shown(metavar="|".join(PROFILES), words=PROFILES),
]
Backbone = Annotated[
    str | None, Field(description="Teacher, see `kdbench list backbones`; the recipe's if not given.")
]
WeightsFile = Annotated[
    File | None, Field(description="The teacher's weights: a file .pth or .safetensors, or their folder.")
]
Precision = Annotated[
    str | None,
    Field(description="auto: the fastest that the device has; the recipe's if not given."),
    Shown(metavar="auto|fp32|bf16|fp16"),
]
Results = Annotated[FolderName, Field(description="Folder or URI (s3://...) of the rows.")]
Address = Annotated[
    str | None, Field(description="Ray cluster to join (auto, HOST:PORT); RAY_ADDRESS if not given.")
]
KeepDetectors = Annotated[bool, Shown(off="--discard-detectors")]


class Request(BaseModel):
    """A grid: the fields are the options of `kdbench run` and the keys of a `--config` file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: Names = Field((), description="Comma list; all that need no special teacher if not given.")
    dataset: Names = Field(("synthetic",), min_length=1, description="Comma list.")
    root: Root = None
    split: Split = None
    categories: Categories = ()
    setting: Settings = Field(
        ("oneclass",),
        min_length=1,
        description="oneclass (a model for each category), multiclass (one for all) or both.",
    )
    seeds: Seeds = Field((0,), min_length=1, description="Comma list.")
    epochs: Epochs = None
    hold_out: Annotated[float | None, Shown(metavar="SHARE")] = Field(
        None, description="Share of the normal images, such as 0.1, that serves only for the thresholds."
    )
    set: Sets = Field(
        default_factory=dict, description="Change a method's key; of a comma list, each value is tried."
    )
    profile: Profile = None
    backbone: Backbone = None
    weights: WeightsFile = None
    preset: str = Field("exact", description="Evaluation preset, see docs/presets.md.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N.")
    precision: Precision = None
    executor: Literal["local", "ray"] | None = Field(
        None, description="local or ray; if not given, ray when cells can run side by side."
    )
    address: Address = None
    wait_for_gpus: Annotated[int | None, Shown(metavar="GPUS")] = Field(
        None, gt=0, description="Ask the cluster for so many GPUs and wait until it has them."
    )
    wait: Annotated[float, Shown(metavar="MINUTES")] = Field(
        30.0, gt=0, description="Minutes after which --wait-for-gpus gives up."
    )
    cpus_per_cell: Annotated[int | None, Shown(metavar="CORES")] = Field(
        None, gt=0, description="CPU cores of a cell; a fair share of all if not given."
    )
    gpus_per_cell: Annotated[float | None, Shown(metavar="GPUS")] = Field(
        None, gt=0, le=1, description="GPUs of a cell, 0.5 for half of one; as measured if not given."
    )
    memory_per_cell: Annotated[float | None, Shown(metavar="GiB")] = Field(
        None, gt=0, description="GiB of RAM of a cell; as measured if not given."
    )
    checkpoint_every: Annotated[float, Shown(metavar="MINUTES")] = Field(
        10.0, ge=0, description="Minutes between checkpoints of a training; 0: none."
    )
    measure_every: Annotated[int, Shown(metavar="EPOCHS")] = Field(
        0, ge=0, description="Epochs between two looks at the test images, which choose nothing; 0: none."
    )
    compile: Annotated[Literal["auto", "on", "off"], Shown(metavar="auto|on|off")] = Field(
        "auto", description="Compile losses; auto: where a long training saves time by it."
    )
    latency: Annotated[bool, Shown(off="--no-latency")] = Field(
        True, description="Time one detector of each line of the report, when all cells have finished."
    )
    runtimes: Names = Field(
        ("torch",),
        min_length=1,
        description="Comma list of runtimes in which detectors are timed: torch, torch-compile, "
        "onnxruntime, openvino, tensorrt.",
    )
    runtime_precision: Annotated[Names, Shown(metavar="fp32,bf16,fp16,int8")] = Field(
        (), description="Comma list for the runtimes; fp32 and that of the training if not given."
    )
    evaluate_exported: Annotated[bool, Shown(off="--no-evaluate-exported")] = Field(
        False, description="Export each detector, and compute the metrics of each runtime and precision, too."
    )
    results: Results = "results"
    published: FolderName | None = Field(
        None, description="Folder of `kdbench report --rows`: cells that succeeded there are copied, not run."
    )
    timeout: Annotated[float | None, Shown(metavar="SECONDS")] = Field(
        None, gt=0, description="Seconds that a cell may take."
    )
    redo: Literal["failed", "all"] | None = Field(
        None, description="Run cells again: all, or those that failed and timings that were not alone."
    )
    keep_detectors: KeepDetectors = Field(True, description="Keep trained detectors.")
    keep_pictures: Annotated[bool, Shown(off="--discard-pictures")] = Field(
        True, description="Keep small pictures of anomaly maps."
    )
    large_masks: Annotated[bool, Shown(off="--doubt-large-masks")] = Field(
        False, description="Accept masks that mark more than half of their image, instead of naming them."
    )


def read_request(file: Path | None, options: Mapping[str, Any]) -> Request:
    """The request of a TOML file and of options, which take precedence; RequestError with every complaint."""
    return read_model(Request, file, options)


def read_model(model: type[Model], file: Path | None, options: Mapping[str, Any]) -> Model:
    """The request of class `model`, by a TOML file or a recipe and by options; RequestError as above."""
    if "set" not in model.model_fields:  # no method is configured
        return validated(model, _given(options))
    values: dict[str, Any] = {}
    if file is not None:
        file = grid_file(file)
        values = read_toml(file)
        values["set"] = _flat(values.get("set", {}), f"{file}: ")
    given = _given(options)
    given["set"] = _flat(given.get("set", {}))
    over = given.keys() & OF_METHODS  # --epochs takes precedence over METHOD.epochs of the file, too
    over |= {name.removeprefix(f"{EVERY}.") for name in given["set"]}  # and so does --set all.epochs
    running = set(_given_methods(given))  # --methods runs a part of the file
    idle = set(method_names()) - running
    kept = {
        name: value
        for name, value in values.get("set", {}).items()
        if name.partition(".")[2] not in over and name.partition(".")[0] not in idle
    }
    given["set"] = kept | given["set"]
    values |= given
    return validated(model, values)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given."""
    return {key: value for key, value in options.items() if value not in (None, (), {})}


def validated(model: type[Model], values: Mapping[str, Any], prefix: str = "") -> Model:
    """The model with these values; RequestError with every complaint, each beginning with `prefix`.

    true and false are no numbers, though pydantic takes them for 1 and 0.
    """
    try:
        taken = model.model_validate(values)
    except ValidationError as error:
        raise RequestError(complaints_of(prefix, error, model)) from error
    complaints = [
        f"{prefix}{key}={value!r}: true and false are no numbers"
        for key, value in values.items()
        if _has_truth(value) and not _has_truth(getattr(taken, key))
    ]
    if complaints:
        raise RequestError(complaints)
    return taken


def _has_truth(value: object) -> bool:
    """Whether this is true or false, or a list with one of them."""
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_has_truth, value)))


def read_toml(file: Path) -> dict[str, Any]:
    """The keys of a TOML file; RequestError if it cannot be read."""
    try:
        return tomllib.loads(read_text(file))
    except (OSError, ValueError) as error:
        raise RequestError([f"{file}: {reason(error)}"]) from error


def _given_methods(given: Mapping[str, Any]) -> Iterable[str]:
    methods = given.get("methods")
    try:
        names = names_of(methods)
    except ValueError:  # the model complains of it
        names = ()
    return names if isinstance(names, list | tuple) else method_names()


def parse_sets(assignments: Iterable[str]) -> dict[str, Any]:
    """`METHOD.KEY=VALUE` texts as a mapping; RequestError with every complaint.

    VALUE is read as JSON where it is JSON; a comma list gives several values to try.
    """
    found: dict[str, Any] = {}
    complaints = []
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            complaints.append(f"--set {text!r} is not METHOD.KEY=VALUE")
            continue
        if name in found:
            complaints.append(f"--set {name} is given twice. To try several values, write {name}=A,B")
        found[name] = _values(value)
    if complaints:
        raise RequestError(complaints)
    return found


def complaints_of(prefix: str, error: ValidationError, model: type[BaseModel]) -> list[str]:
    """The errors of pydantic: each in a line with the key, its value and what is wrong with it."""
    texts = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "too_short" and len(item["input"]):
            continue  # its items are wrong, and have their own complaints
        if item["type"] == "extra_forbidden":
            texts.append(prefix + key + ": " + unknown("key", key, sorted(model.model_fields)))
        else:
            message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
            texts.append(f"{prefix}{key}={item['input']!r}: {message[0].lower()}{message[1:]}")
    return texts


def _flat(sets: object, where: str = "") -> dict[str, Any]:
    """Make [set.dcam] attention = "none" the same as [set] "dcam.attention" = "none"."""
    if not isinstance(sets, Mapping):
        raise RequestError([f"{where}set={sets!r} is not a table of METHOD.KEY = VALUE"])
    flat: dict[str, Any] = {}
    twice = []
    for name, value in sets.items():
        own = {name: value}
        if isinstance(value, Mapping) and "." not in name:
            own = {f"{name}.{key}": inner for key, inner in value.items()}
        twice += [f"{where}set {key} is given twice" for key in own if key in flat]
        flat |= own
    if twice:
        raise RequestError(twice)
    return flat


def _values(text: str) -> list[Any]:
    """The values in a text: JSON if it is, so that `[1,2],[2,3]` is two lists, else split at commas."""
    for whole in (text, f"[{text}]") if text.strip() else ():
        try:
            value = json.loads(whole)
        except json.JSONDecodeError:
            continue
        return value if whole != text else [value]
    return [_literal(part) for part in text.split(",")]


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
