"""From a request to its jobs; everything is checked here, before anything runs."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdbench.cell import PROFILES, SETTINGS, Cell, Place, canonical_json, groups_of
from kdbench.data.fingerprint import fingerprint_of
from kdbench.data.found import Found, find_data
from kdbench.engine.possible import wrong_preset, wrong_runtimes, wrong_smoothing
from kdbench.errors import Complaints, RequestError, number_of, unknown
from kdbench.grid.cluster import Cluster, Need
from kdbench.grid.request import EVERY, OF_METHODS, Request, validated
from kdbench.registry import dataset_names, get_dataset, get_method, method_facts, method_names, usual_methods
from kdbench.results.storage import Storage
from kdbench.weights import Weights, check_levels, find_weights

Configs = dict[tuple[str, str, str], list[dict[str, Any]]]  # (method, profile, setting) -> values of keys


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell with its place and its need."""

    cell: Cell
    place: Place
    need: Need = field(default_factory=Need)


@dataclass(kw_only=True)
class Plan:
    """The jobs of a request in the order in which they should run, and what the user should know."""

    jobs: list[Job]
    notices: list[str] = field(default_factory=list)
    data: dict[str, Found] = field(default_factory=dict)  # per dataset


def plan(request: Request, cluster: Cluster | None = None) -> Plan:
    """All jobs of a request, to run on a Ray `cluster` (None: this machine); they have no needs yet.

    Raises RequestError with every complaint at once if any of it cannot be run.
    """
    left_out = list(_left_out(request))
    if not request.methods:
        request = request.model_copy(update={"methods": usual_methods()})  # it reads every method's file
    complaints, device = Complaints(), ""
    complaints.add(*wrong_words(request))
    with complaints.collecting():
        device = choose_device(request.device, cluster, request.executor)
    asked = request.runtimes, request.runtime_precision
    complaints.add(*wrong_runtimes(*asked, device or "cpu", here=not cluster), *_unused_runtimes(request))
    complaints.add(*_wrong_set_names(request))
    datasets = [get_dataset(name) for name in request.dataset if name in dataset_names()]
    complaints.add(*filter(None, (dataset.wrong_split(request.split) for dataset in datasets)))
    found: dict[str, Found] = {}
    for dataset in datasets:
        with complaints.collecting():
            found[dataset.name] = find_data(dataset, request.root, request.categories)
    profiles = {request.profile or dataset.profile for dataset in datasets}
    configs = _configs(request, sorted(profiles), complaints)
    complaints.add(*_too_few_to_hold_out(request, found, configs))
    complaints.add(*_slow_precisions(configs, device))
    weights = _weights(request, configs, complaints)
    complaints.check()
    # Two values of a key that mean the same make one cell, not two.
    jobs = {job.cell.id: job for job in _jobs(request, found, configs, weights, device)}
    return Plan(jobs=[*jobs.values()], data=found, notices=[*left_out, *_notices(found)])


def _slow_precisions(configs: Configs, device: str) -> Iterator[str]:
    """A complaint about fp16 on a CPU, which converts it in every operation: twenty times as slow as bf16."""
    asked = {method for (method, _, _), every in configs.items() for c in every if c["precision"] == "fp16"}
    if device == "cpu" and asked:
        yield f"precision fp16 of {', '.join(sorted(asked))}: a CPU is slow in fp16. Choose auto, bf16, fp32"


def resolved(results: str) -> str:
    """The name of a results folder for every process: an absolute path, or the URI as it is."""
    local = Storage(results).local
    return str(local.resolve()) if local else results


def choose_device(asked: str, cluster: Cluster | None = None, executor: str | None = None) -> str:
    """The device that `auto` means here, or the one asked for; RequestError if there is no such device.

    Ray, here or on a `cluster`, hands out GPUs, and a worker sees only its own: there is no cuda:N to choose.
    """
    import torch

    from kdbench.engine.device import unused_gpu

    if cluster and asked in ("auto", "cuda"):
        if asked == "cuda" and not cluster.gpus:
            raise RequestError([f"no device 'cuda' on any node. The cluster has {cluster}"])
        return "cuda" if cluster.gpus else "cpu"
    if (cluster or executor == "ray") and asked.startswith("cuda:"):
        raise RequestError(
            [f"device {asked!r}: Ray chooses the GPU. Devices: auto, cpu, cuda; or --executor local"]
        )
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise RequestError([f"no device {asked!r}. Devices: auto, cpu, cuda, cuda:N"]) from None
    if device.type not in ("cpu", "cuda"):
        raise RequestError([f"device {asked!r} is not supported. Devices: auto, cpu, cuda, cuda:N"])
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        text = f"no device {asked!r}: this machine has {count} CUDA devices"
        raise RequestError(["; ".join(filter(None, (text, unused_gpu())))])
    return asked


def _left_out(request: Request) -> Iterator[str]:
    """A notice for each method that does not run because nobody named it, with what it needs."""
    for name in () if request.methods else method_names():
        needs = method_facts(name).needs
        if needs:
            yield f"{name} is left out: it needs {needs}. Name it with --methods"


def wrong_words(request: Request) -> Iterator[str]:
    """A complaint for each unknown method, dataset, setting, preset or profile, and each clash of options."""
    for method in request.methods:
        if method not in method_names():
            yield unknown("method", method, method_names())
    for dataset in request.dataset:
        if dataset not in dataset_names():
            yield unknown("dataset", dataset, dataset_names())
    for setting in request.setting:
        if setting not in SETTINGS:
            yield unknown("setting", setting, (*SETTINGS, "both"))
    yield from wrong_preset(request.preset)
    if request.profile is not None and request.profile not in PROFILES:
        yield unknown("profile", request.profile, PROFILES)
    if request.root is not None and len(request.dataset) > 1:
        yield "--root is the folder of one dataset; for several set KDBENCH_DATA to their parent"
    if request.redo == "all" and request.published is not None:
        yield "--redo all runs every cell, and --published takes finished ones over: drop one of them"


def _unused_runtimes(request: Request) -> Iterator[str]:
    if request.runtimes != ("torch",) and not request.latency and not request.evaluate_exported:
        yield "--runtimes is for timings and for --evaluate-exported: leave out --no-latency"


def _wrong_set_names(request: Request) -> Iterator[str]:
    scopes = (*request.methods, EVERY)
    for name in request.set:
        scope = name.partition(".")[0]
        if scope not in scopes:
            yield f"--set {name}: " + unknown("method", scope, scopes) + " (of this run)"


def _notices(found: Mapping[str, Found]) -> list[str]:
    notices = []
    for name, data in found.items():
        notices += [f"{name}: {note}" for note in (*data.dataset.notes, *data.notes)]
        everything = data.dataset.all_categories(data.root)
        missing = [c for c in everything if c not in data.categories]
        if missing:
            notices.append(
                f"{name}: {len(data.categories)} of {number_of(len(everything), 'category')}; "
                f"without {', '.join(missing)}. Their means are marked as partial and not ranked"
            )
    return notices


def _configs(request: Request, profiles: Iterable[str], complaints: Complaints) -> Configs:
    """Every configuration of each known method; adds a complaint for each that its method refuses."""
    overrides = {key: getattr(request, key) for key in OF_METHODS if getattr(request, key) is not None}
    known = [name for name in request.methods if name in method_names()]
    configs: Configs = {}
    for method, profile, setting in itertools.product(known, profiles, request.setting):
        recipe = get_method(method).recipe(profile, setting) | overrides
        for values in _tried(request, method, complaints):
            with complaints.collecting():
                config = _config(method, recipe | values, request.preset)
                configs.setdefault((method, profile, setting), []).append(config)
    return configs


def _tried(request: Request, method: str, complaints: Complaints) -> Iterator[dict[str, Any]]:
    """Every combination of the values that --set gives keys of a method."""
    tried = {
        name.partition(".")[2]: values if isinstance(values, list | tuple) else [values]
        for scope in (EVERY, method)  # the method's own setting wins
        for name, values in request.set.items()
        if name.partition(".")[0] == scope
    }
    empty = [key for key, values in tried.items() if not len(values)]
    if empty:
        complaints.add(f"{method}.{empty[0]}: the list of values to try is empty")
        return
    for values in itertools.product(*tried.values()):
        yield dict(zip(tried, values, strict=True))


def _config(method: str, values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """The validated configuration; RequestError if the method or the preset does not take it."""
    config_class = get_method(method).Config
    config = validated(config_class, values, f"{method}.").model_dump(mode="json")
    if wrong := wrong_smoothing(preset, method, config.get("sigma", 0.0)):
        raise RequestError([wrong])
    return config


def _too_few_to_hold_out(request: Request, found: Mapping[str, Found], configs: Configs) -> Iterator[str]:
    """A complaint for each category with too few training images for methods that hold some out."""
    for data in found.values():
        profile = request.profile or data.dataset.profile
        for name, category in data.categories.items():
            count = len(category.train)
            holding: dict[str, list[dict[str, Any]]] = {}
            for (method, of_profile, _), tried in configs.items():
                if of_profile == profile and (some := [c for c in tried if _least(method, c) > count]):
                    holding.setdefault(method, []).extend(some)
            if holding:
                needed = max(_least(method, config) for method in holding for config in holding[method])
                whole = [
                    f"{method}.checkpoint=last"
                    for method, tried in holding.items()
                    if all(_least(method, config | {"checkpoint": "last"}) <= count for config in tried)
                ]
                none = f", or hold out none: --set {' --set '.join(whole)}" if whole else ""
                yield (
                    f"{data.dataset.name} {name} has {count} training image{'s' * (count > 1)}, and some are "
                    f"held out by {', '.join(holding)}: at least {needed} are needed. "
                    f"Add images{none}"
                )


def _least(method: str, config: Mapping[str, Any]) -> int:
    """How many images a category needs: one to train on, perhaps one to hold out and one for a threshold."""
    found = get_method(method)
    taken = found.Config.model_validate(config)
    return 1 + found.holds_out(taken) + bool(taken.hold_out)


def _weights(request: Request, configs: Configs, complaints: Complaints) -> dict[str, Weights]:
    """The weights of each backbone; none once there is a complaint."""
    if request.weights is not None and not request.weights.exists():
        complaints.add(f"no weights file {str(request.weights)!r}")
    every = [config for tried in configs.values() for config in tried]
    for config in every:
        with complaints.collecting():
            check_levels(config["backbone"], tuple(config["levels"]))
    found: dict[str, Weights] = {}
    if complaints.texts:  # weights may have to be downloaded: only for a request that is right otherwise
        return found
    for backbone in dict.fromkeys(config["backbone"] for config in every):
        with complaints.collecting():
            found[backbone] = find_weights(backbone, request.weights)
    return found


def _jobs(
    request: Request,
    found: Mapping[str, Found],
    configs: Configs,
    weights: Mapping[str, Weights],
    device: str,
) -> Iterator[Job]:
    for seed, data, setting in itertools.product(request.seeds, found.values(), request.setting):
        profile = request.profile or data.dataset.profile
        for method in request.methods:
            for config in configs[method, profile, setting]:
                place = Place(
                    root=str(data.root),
                    weights=weights[config["backbone"]],
                    results=resolved(request.results),
                    device=device,
                    num_threads=request.cpus_per_cell,
                    keep_detectors=request.keep_detectors,
                    keep_pictures=request.keep_pictures,
                    large_masks=request.large_masks,
                    checkpoint_every_s=60 * request.checkpoint_every,
                    measure_every=request.measure_every,
                    compile=request.compile,
                    runtimes=request.runtimes,
                    runtime_precisions=request.runtime_precision,
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
                        teacher_sha256=place.weights.sha256,
                        seed=seed,
                        preset=request.preset,
                        profile=profile,
                    )
                    yield Job(cell=cell, place=place)
