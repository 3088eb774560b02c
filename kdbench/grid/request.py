"""From what the user asked for to the jobs that do it; everything is checked here, before anything runs."""

import itertools
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kdbench.cell import PROFILES, SETTINGS, Cell, Place, canonical_json, groups_of
from kdbench.data.fingerprint import Contents, check_apart, contents, fingerprint_of
from kdbench.dataset import Category, Dataset
from kdbench.errors import DataError, RequestError, reason, unknown
from kdbench.files import expanded, read_text
from kdbench.grid.cluster import Cluster, Need
from kdbench.metrics.presets import PRESETS
from kdbench.registry import dataset_names, get_dataset, get_method, method_names
from kdbench.results.storage import Storage

Model = TypeVar("Model", bound=BaseModel)
EVERY = "all"  # `all.batch_size=8` sets a key of every method
OF_METHODS = ("epochs", "backbone", "precision")  # keys of a request that are keys of every method


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How the command line shows a field, where its name and type do not say it."""

    metavar: str | None = None  # what stands for a value, such as its unit
    off: str = ""  # the option that means False


def split(text: str) -> tuple[str, ...]:
    """The names in a comma list.

    Raises ValueError if there is none: an unset shell variable gives that, and it must not mean all.
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
    """The names of `names_of`, with `both` as the two settings that it stands for."""
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
Settings = Annotated[tuple[str, ...], BeforeValidator(both_settings), Shown(metavar="|".join(SETTINGS))]
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
    Shown(metavar="|".join(PROFILES)),
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
KeepDetectors = Annotated[bool, Shown(off="--discard-detectors")]


class Request(BaseModel):
    """A grid: the fields are the options of `kdbench run` and the keys of a `--config` file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: Names = Field((), description="Comma list; all methods if not given.")
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
    set: Sets = Field(
        default_factory=dict, description="Change a method's key; of a comma list, each value is tried."
    )
    profile: Profile = None
    backbone: Backbone = None
    weights: WeightsFile = None
    preset: str = Field("exact", description="Evaluation preset, see docs/metrics.md.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N.")
    precision: Precision = None
    executor: Literal["local", "ray"] | None = Field(
        None, description="ray if cells can run side by side, if not given."
    )
    address: str | None = Field(
        None, description="Ray cluster to join (auto, HOST:PORT); RAY_ADDRESS if not given."
    )
    cpus_per_cell: Annotated[int | None, Shown(metavar="CORES")] = Field(
        None, gt=0, description="CPU cores of a cell; a fair share of all if not given."
    )
    gpus_per_cell: Annotated[float | None, Shown(metavar="GPUS")] = Field(
        None, gt=0, description="GPUs of a cell, 0.5 for half of one; as measured if not given."
    )
    memory_per_cell: Annotated[float | None, Shown(metavar="GiB")] = Field(
        None, gt=0, description="GiB of RAM of a cell; as measured if not given."
    )
    checkpoint_every: Annotated[float, Shown(metavar="MINUTES")] = Field(
        10.0, ge=0, description="Minutes between checkpoints of a training; 0: none."
    )
    latency: Annotated[bool, Shown(off="--no-latency")] = Field(
        True, description="Time one detector of each line of the report, when all cells have finished."
    )
    results: Results = "results"
    published: FolderName | None = Field(
        None, description="Folder of `kdbench report --rows`: what succeeded there is copied, not run."
    )
    timeout: Annotated[float | None, Shown(metavar="SECONDS")] = Field(
        None, gt=0, description="Seconds that a cell may take."
    )
    redo: Literal["failed", "all"] | None = Field(
        None, description="Run finished cells again; failed: also timings that were not alone."
    )
    keep_detectors: KeepDetectors = Field(True, description="Keep trained detectors.")
    keep_pictures: Annotated[bool, Shown(off="--discard-pictures")] = Field(
        True, description="Keep small pictures of anomaly maps."
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell and where it runs."""

    cell: Cell
    place: Place
    need: Need = field(default_factory=Need)


@dataclass(kw_only=True)
class Plan:
    """The jobs of a request in the order in which they should run, and what the user should know."""

    jobs: list[Job]
    notices: list[str] = field(default_factory=list)
    data: dict[str, "Found"] = field(default_factory=dict)  # per dataset


@dataclass(frozen=True, kw_only=True)
class Found:
    """A dataset on disk: its categories with the fingerprints of their content."""

    dataset: Dataset
    root: Path
    categories: dict[str, Category]
    fingerprints: dict[str, str]


def read_request(file: Path | None, options: Mapping[str, Any]) -> Request:
    """The request of a TOML file, each given option taking precedence; RequestError with every complaint."""
    return read_model(Request, file, options)


def read_model(model: type[Model], file: Path | None, options: Mapping[str, Any]) -> Model:
    """The same for any request whose fields are the options of a command."""
    values: dict[str, Any] = {}
    if file is not None:
        values = read_toml(file)
        if not isinstance(values.get("set", {}), Mapping):
            raise RequestError([f"{file}: set={values['set']!r} is not a table of METHOD.KEY = VALUE"])
        values["set"] = _flat(values.get("set", {}))
    given = {key: value for key, value in options.items() if value not in (None, (), {})}
    over = given.keys() & OF_METHODS  # --epochs takes precedence over METHOD.epochs of the file, too
    over |= {name.removeprefix(f"{EVERY}.") for name in given.get("set", {})}  # and so does --set all.epochs
    running = set(_given_methods(given))  # --methods runs a part of the file
    idle = set(method_names()) - running
    kept = {
        name: value
        for name, value in values.get("set", {}).items()
        if name.partition(".")[2] not in over and name.partition(".")[0] not in idle
    }
    given["set"] = {**kept, **given.get("set", {})}
    values |= given
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestError(complaints_of("", error, model)) from error


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
    """`METHOD.KEY=VALUE` texts as a mapping; VALUE is JSON if it can be, a comma list is values to try."""
    found: dict[str, Any] = {}
    complaints = []
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            complaints.append(f"--set {text!r} is not METHOD.KEY=VALUE")
            continue
        found[name] = _values(value)
    if complaints:
        raise RequestError(complaints)
    return found


def plan(request: Request, cluster: Cluster | None = None) -> Plan:
    """All jobs of a request, to run on `cluster` (None: this machine).

    Raises RequestError with every complaint at once if any of it cannot be run.
    """
    complaints: list[str] = []
    methods = request.methods or method_names()
    complaints += [unknown("method", m, method_names()) for m in methods if m not in method_names()]
    complaints += [
        unknown("dataset", d, dataset_names()) for d in request.dataset if d not in dataset_names()
    ]
    complaints += [unknown("setting", s, (*SETTINGS, "both")) for s in request.setting if s not in SETTINGS]
    if request.preset not in PRESETS:
        complaints.append(unknown("preset", request.preset, PRESETS))
    if request.profile is not None and request.profile not in PROFILES:
        complaints.append(unknown("profile", request.profile, PROFILES))
    if request.root is not None and len(request.dataset) > 1:
        complaints.append("--root is the folder of one dataset; for several set KDBENCH_DATA to their parent")
    if request.redo == "all" and request.published is not None:
        complaints.append(
            "--redo all runs every cell, and --published takes ended ones over: drop one of them"
        )
    device, wrong_device = choose_device(request.device, cluster, request.executor)
    complaints += wrong_device
    complaints += _wrong_set_names(request.set, methods)
    complaints += [
        _wrong_split(get_dataset(d), request.split) for d in request.dataset if d in dataset_names()
    ]
    complaints = [c for c in complaints if c]
    found: dict[str, Found] = {}
    for name in [d for d in request.dataset if d in dataset_names()]:
        try:
            found[name] = find_data(get_dataset(name), request.root, request.categories)
        except (RequestError, DataError) as error:
            complaints += str(error).splitlines()
    configs = _configs(request, [m for m in methods if m in method_names()], complaints)
    if request.weights is not None and not request.weights.exists():
        complaints.append(f"no weights file {str(request.weights)!r}")
    weights = _weights(request, configs, complaints)
    if complaints:
        raise RequestError(dict.fromkeys(complaints))

    planned = Plan(jobs=[], data=found)
    for data in found.values():
        planned.notices += [f"{data.dataset.name}: {note}" for note in data.dataset.notes]
        everything = data.dataset.all_categories(data.root)
        missing = [c for c in everything if c not in data.categories]
        if missing:
            planned.notices.append(
                f"{data.dataset.name}: {len(data.categories)} of {len(everything)} categories; "
                f"without {', '.join(missing)}. Their means are marked as partial and not ranked"
            )
    for seed, data, setting in itertools.product(request.seeds, found.values(), request.setting):
        profile = request.profile or data.dataset.profile
        for method in methods:
            for config in configs[method, profile, setting]:
                teacher = weights[config["backbone"]]
                place = Place(
                    root=str(data.root),
                    weights=teacher,
                    results=resolved(request.results),
                    device=device,
                    num_threads=request.cpus_per_cell,
                    keep_detectors=request.keep_detectors,
                    keep_pictures=request.keep_pictures,
                    checkpoint_every_s=60 * request.checkpoint_every,
                )
                for category, categories in groups_of(setting, tuple(data.categories)):
                    cell = Cell(
                        method=method,
                        config=canonical_json(config),
                        dataset=data.dataset.name,
                        setting=setting,
                        category=category,
                        categories=categories,
                        fingerprint=fingerprint_of(data.fingerprints[c] for c in categories),
                        teacher_sha256=teacher.sha256,
                        seed=seed,
                        preset=request.preset,
                        profile=profile,
                    )
                    planned.jobs.append(Job(cell=cell, place=place))
    # Two values of a key that mean the same make one cell, not two.
    planned.jobs = list({job.cell.id: job for job in planned.jobs}.values())
    return planned


def find_data(dataset: Dataset, root: Path | None, wanted: tuple[str, ...]) -> Found:
    """The dataset's categories on disk with fingerprints; RequestError with every complaint."""
    folder = dataset.root(root)
    present = dataset.present(folder)
    known = dataset.all_categories(folder)
    complaints = [
        unknown(f"{dataset.name} category", c, known, "categories") for c in wanted if c not in known
    ]
    complaints += [
        f"{dataset.name}: no folder {folder / c}" for c in wanted if c in known and c not in present
    ]
    if not present:
        complaints.append(
            f"{dataset.name}: {folder} has none of the categories {', '.join(known) or '(any folder)'}. "
            f"Is it the folder that holds them?"
        )
    names = [c for c in present if not wanted or c in wanted]

    def look(name: str) -> tuple[Category, Contents] | str:
        try:
            category = dataset.scan(folder, name)
            return category, contents(dataset, category)
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    with ThreadPoolExecutor(4) as pool:
        looked = dict(zip(names, pool.map(look, names), strict=True))
    complaints += [text for text in looked.values() if isinstance(text, str)]
    seen = [pair[1] for pair in looked.values() if not isinstance(pair, str)]
    try:  # a multiclass model must not train on what is a test image of another category
        check_apart(_union(c.train for c in seen), _union(c.test for c in seen))
    except DataError as error:
        complaints.append(str(error))
    if complaints:
        raise RequestError(complaints)
    good = {name: pair for name, pair in looked.items() if not isinstance(pair, str)}
    return Found(
        dataset=dataset,
        root=folder,
        categories={name: category for name, (category, _) in good.items()},
        fingerprints={name: content.fingerprint for name, (_, content) in good.items()},
    )


def _union(parts: Iterable[Mapping[str, Path]]) -> dict[str, Path]:
    return {digest: path for part in parts for digest, path in part.items()}


Configs = dict[tuple[str, str, str], list[dict[str, Any]]]  # (method, profile, setting) -> resolved


def _configs(request: Request, methods: list[str], complaints: list[str]) -> Configs:
    overrides = {key: getattr(request, key) for key in OF_METHODS if getattr(request, key) is not None}
    profiles = {request.profile or get_dataset(d).profile for d in request.dataset if d in dataset_names()}
    configs: Configs = {}
    for method, profile, setting in itertools.product(methods, sorted(profiles), request.setting):
        kind = get_method(method)
        tried = {
            name.partition(".")[2]: values if isinstance(values, list | tuple) else [values]
            for scope in (EVERY, method)  # the method's own setting wins
            for name, values in request.set.items()
            if name.partition(".")[0] == scope
        }
        empty = [key for key, values in tried.items() if not len(values)]
        if empty:
            complaints.append(f"{method}.{empty[0]}: the list of values to try is empty")
            continue
        for values in itertools.product(*tried.values()):
            raw = kind.recipe(profile, setting) | overrides | dict(zip(tried, values, strict=True))
            try:
                resolved = kind.Config.model_validate(raw).model_dump(mode="json")
            except ValidationError as error:
                complaints += complaints_of(f"{method}.", error, kind.Config)
                continue
            smoothing = PRESETS[request.preset].sigma if request.preset in PRESETS else None
            if smoothing is not None and resolved.get("sigma", 0.0) != smoothing:
                complaints.append(
                    f"preset {request.preset!r} is for maps smoothed with sigma {smoothing:g}, {method} has "
                    f"{resolved.get('sigma', 0.0):g}: --set {method}.sigma={smoothing:g}, or another preset"
                )
            configs.setdefault((method, profile, setting), []).append(resolved)
    return configs


def _weights(request: Request, configs: Configs, complaints: list[str]) -> dict[str, Any]:
    from kdbench.weights import check_levels, find_weights

    found: dict[str, Any] = {}
    for config in (config for tried in configs.values() for config in tried):
        try:
            check_levels(config["backbone"], tuple(config["levels"]))
        except RequestError as error:
            complaints += error.complaints
    if complaints:  # looking for weights may download them: only for a request that can be run otherwise
        return found
    for backbone in dict.fromkeys(config["backbone"] for tried in configs.values() for config in tried):
        try:
            found[backbone] = find_weights(backbone, request.weights)
        except RequestError as error:
            complaints += error.complaints
    return found


def resolved(results: str) -> str:
    """A results folder as every process finds it: an absolute path, or the URI as it is."""
    local = Storage(results).local
    return str(local.resolve()) if local else results


def choose_device(
    asked: str, cluster: Cluster | None = None, executor: str | None = None
) -> tuple[str, list[str]]:
    """The device that `auto` means here, or the one asked for; and complaints if there is no such device.

    Ray, here or on a `cluster`, hands out GPUs, and a worker sees only its own: there is no cuda:N to choose.
    """
    import torch

    if cluster and asked in ("auto", "cuda"):
        if asked == "cuda" and not cluster.gpus:
            return asked, [f"no device 'cuda' on any node. The cluster has {cluster}"]
        return ("cuda" if cluster.gpus else "cpu"), []
    if (cluster or executor == "ray") and asked.startswith("cuda:"):
        return asked, [
            f"device {asked!r}: Ray chooses the GPU. Devices: auto, cpu, cuda; or --executor local"
        ]
    if asked == "auto":
        return ("cuda" if torch.cuda.is_available() else "cpu"), []
    try:
        device = torch.device(asked)
    except RuntimeError:
        return asked, [f"no device {asked!r}. Devices: auto, cpu, cuda, cuda:N"]
    if device.type not in ("cpu", "cuda"):
        return asked, [f"device {asked!r} is not supported. Devices: auto, cpu, cuda, cuda:N"]
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return asked, [f"no device {asked!r}: this machine has {torch.cuda.device_count()} CUDA devices"]
    return asked, []


def _wrong_split(dataset: Dataset, split: str | None) -> str:
    if split is None or split == dataset.split:
        return ""
    reason = dataset.refused_splits.get(split)
    if reason:
        return f"{dataset.name}: the split {split!r} is refused: {reason}"
    return f"{dataset.name}: " + unknown("split", split, [dataset.split])


def _wrong_set_names(sets: Mapping[str, Any], methods: Iterable[str]) -> list[str]:
    scopes = (*methods, EVERY)
    return [
        f"--set {name}: " + unknown("method", name.partition(".")[0], scopes) + " (of this run)"
        for name in sets
        if name.partition(".")[0] not in scopes
    ]


def complaints_of(prefix: str, error: ValidationError, model: type[BaseModel]) -> list[str]:
    """What pydantic found, each as one line that names the key, its value and what is wrong with it."""
    texts = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "too_short" and len(item["input"]):
            continue  # its items are wrong, and are complained of
        if item["type"] == "extra_forbidden":
            texts.append(prefix + key + ": " + unknown("key", key, sorted(model.model_fields)))
        else:
            message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
            texts.append(f"{prefix}{key}={item['input']!r}: {message[0].lower()}{message[1:]}")
    return texts


def _flat(sets: Mapping[str, Any]) -> dict[str, Any]:
    """[set.dcam] attention = "none" and [set] "dcam.attention" = "none" are the same."""
    flat: dict[str, Any] = {}
    for name, value in sets.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _values(text: str) -> list[Any]:
    """The values that a text lists: JSON first, `[1,2],[2,3]` as two lists, else what commas part."""
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


def enough_disk(results: str, needed: int = 64 << 20) -> str | None:
    """A complaint if a results folder on a disk has less free space than results need at the least."""
    folder = Storage(results).local
    if folder is None:
        return None
    existing = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    stats = os.statvfs(existing)
    free = stats.f_bavail * stats.f_frsize
    return None if free >= needed else f"{folder}: {free >> 20} MiB free, {needed >> 20} MiB are needed"
