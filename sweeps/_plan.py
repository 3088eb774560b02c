"""From the request of a sweep to the plan of its trials; everything is checked here, before any trial."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kdbench.cell import digest_of
from kdbench.data.fingerprint import check_apart, contents
from kdbench.defects import DEFECTS_VERSION
from kdbench.engine.batches import split
from kdbench.engine.build import config_of
from kdbench.errors import RequestError, number_of, unknown
from kdbench.grid.plan import Plan, plan
from kdbench.grid.request import Request
from kdbench.metrics.exact import MAIN_METRICS, PIXEL_METRICS
from kdbench.registry import get_method, method_names
from kdbench.results.storage import Storage
from kdbench.sweeps._request import SweepRequest
from kdbench.sweeps._space import Space, check_space, default_of, described, read_space, space_of
from kdbench.sweeps._trial import Sweep

OBJECTIVES = (*MAIN_METRICS, "mad")
EXTRA = "pip install kdbench[sweep]"
RUNGS = 9  # reports of a whole training; successive halving judges after a ninth and after a third of it


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """A sweep that can be run."""

    request: SweepRequest
    sweep: Sweep
    space: Space
    first: dict[str, Any]  # the searched keys of the first trial, with their defaults
    cells: Plan  # of the default configuration, as `kdbench run` plans them
    gpus_per_trial: float
    notices: tuple[str, ...] = field(default=())

    @property
    def folder(self) -> str:
        """The folder below the results for the state of Ray and the best configuration."""
        return f"sweeps/{self.sweep.id}"


def plan_sweep(request: SweepRequest) -> SweepPlan:
    """Check a request and make its plan; RequestError with every complaint if it cannot run."""
    complaints = _wrong_words(request)
    missing = _missing_extra(request.search)
    complaints += [missing] if missing else []
    cells = None
    try:
        cells = plan(_as_run(request))
    except RequestError as error:
        complaints += error.complaints
    space: Space = {}
    if request.method in method_names():
        method_class = get_method(request.method)
        try:
            space = (
                space_of(request.method) if request.space is None else read_space(request.space, method_class)
            )
        except RequestError as error:
            complaints += error.complaints
    if cells is None or complaints:
        raise RequestError(dict.fromkeys(complaints))
    base = json.loads(cells.jobs[0].cell.config)
    fixed = {name.partition(".")[2] for name in request.set}
    if request.space is None:
        space = {key: domain for key, domain in space.items() if key not in fixed}
    both = sorted(fixed & set(space))
    complaints += [f"{request.method}.{key} is searched by {request.space} and set by --set" for key in both]
    complaints += check_space(space, method_class, base)
    complaints += _wrong_for_data(request, cells)
    device = cells.jobs[0].place.device
    complaints += _wrong_gpus(request, device)
    if complaints:
        raise RequestError(complaints)
    if request.selection == "synthetic":
        _check_heldout_apart(cells)
    gpus = request.gpus_per_trial
    gpus = (1.0 if device.startswith("cuda") else 0.0) if gpus is None else gpus
    sweep = _sweep(request, cells, space, gpus)
    notices = [*cells.notices, *_notices(request, sweep, space, base)]
    first = {key: default_of(get_method(request.method), base, key) for key in space}
    return SweepPlan(
        request=request,
        sweep=sweep,
        space=space,
        first=first,
        cells=cells,
        gpus_per_trial=gpus,
        notices=tuple(notices),
    )


def _as_run(request: SweepRequest) -> Request:
    """The request of a run of the default configuration; its complaints are complaints about the sweep."""
    same = set(SweepRequest.model_fields) & set(Request.model_fields)
    values = {name: getattr(request, name) for name in same}
    return Request(methods=(request.method,), cpus_per_cell=request.cpus_per_trial, **values)


def _wrong_words(request: SweepRequest) -> list[str]:
    complaints = []
    if request.objective not in OBJECTIVES:
        complaints.append(unknown("objective", request.objective, OBJECTIVES))
    for name, value in request.set.items():
        key = name.partition(".")[2]
        if isinstance(value, list | tuple) and len(value) > 1:
            complaints.append(f"--set {name}: several values. To search {key}, put it into --space")
    if request.report_every and request.epochs and request.report_every > request.epochs:
        complaints.append(f"--report-every {request.report_every} is more than --epochs {request.epochs}")
    return complaints


def _wrong_for_data(request: SweepRequest, cells: Plan) -> list[str]:
    """Complaints about images on disk that are too few or have no masks."""
    complaints = []
    for data in cells.data.values():
        for category in data.categories.values():
            if len(category.train) < 2:
                complaints.append(
                    f"{category.name} has 1 training image: a sweep holds out some and needs at least 2"
                )
            pixel = request.objective in (*PIXEL_METRICS, "mad")
            if request.selection == "test" and pixel and not category.has_masks:
                complaints.append(
                    f"{category.name} has no masks: {request.objective} of its test images needs them"
                )
    return complaints


def _wrong_gpus(request: SweepRequest, device: str) -> list[str]:
    if device.startswith("cuda:"):
        return [f"--device {device}: Ray chooses the GPU of each trial. Use --device cuda"]
    gpus = request.gpus_per_trial
    if device == "cpu" and gpus:
        return [f"--gpus-per-trial {gpus:g} with --device cpu: a GPU needs --device cuda"]
    if device == "cuda" and gpus == 0:
        return ["--gpus-per-trial 0 with --device cuda: use --device cpu, or a share above 0"]
    if gpus and gpus > 1:
        return [f"--gpus-per-trial {gpus:g}: a trial uses one GPU or a part of one"]
    return []


def _missing_extra(search: str) -> str | None:
    from importlib.util import find_spec

    if search == "optuna" and find_spec("optuna") is None:
        return f"--search optuna needs optuna: {EXTRA}"
    return None


def _check_heldout_apart(cells: Plan) -> None:
    """DataError if a held-out image, on which the objective is computed, equals a test image.

    `find_data` has compared all train images with all test images; this checks the images that judge.
    """
    (data,) = cells.data.values()
    test = {d: path for c in data.categories.values() for d, path in contents(data.dataset, c).test.items()}
    heldout: dict[str, Path] = {}
    for cell in (job.cell for job in cells.jobs):
        train = [path for name in cell.categories for path in data.categories[name].train]
        counts = [len(data.categories[name].train) for name in cell.categories]
        config = config_of(cell.method, cell.config)
        aside = split(counts, config, cell.seed, holds_out=True).heldout
        heldout |= {data.dataset.digest(train[i]): train[i] for i in aside}
    check_apart(heldout, test)


def _sweep(request: SweepRequest, cells: Plan, space: Space, gpus: float) -> Sweep:
    jobs = cells.jobs
    epochs = json.loads(jobs[0].cell.config)["epochs"]
    every = request.report_every or max(1, epochs // RUNGS)
    identity = {
        "cells": sorted(job.cell.id for job in jobs),
        "space": described(space),
        "defects": DEFECTS_VERSION,
        "report_every": every,
        **{
            name: getattr(request, name)
            for name in ("trials", "search", "scheduler", "objective", "selection")
        },
    }
    return Sweep(
        id=digest_of(identity)[:10],
        cells=tuple(job.cell for job in jobs),
        place=replace(jobs[0].place, gpu_share=min(1.0, gpus or 1.0)),
        objective=request.objective,
        selection=request.selection,
        report_every=every,
        search=request.search,
        scheduler=request.scheduler,
    )


def _notices(request: SweepRequest, sweep: Sweep, space: Space, base: Mapping[str, Any]) -> list[str]:
    notices = []
    if sweep.selection == "test":
        notices.append(
            "the objective is computed on test images: this studies the bias, and nothing ranks the result"
        )
    if sweep.scheduler != "none" and ("lr_drop" in space or base.get("lr_drop", 1.0) < 1):
        notices.append(
            "lr_drop lowers the learning rate late in the training, and a trial that is stopped early never "
            "gets there: --scheduler none judges all trials at their end"
        )
    return notices


def best_toml(planned: SweepPlan, trial: Mapping[str, Any]) -> str:
    """The file for `kdbench run --config` with the configuration of this trial."""
    request = planned.request
    head = {
        "methods": [request.method],
        "dataset": list(request.dataset),
        "root": str(request.root.resolve()) if request.root else None,
        "split": request.split,
        "categories": list(request.categories) or None,
        "setting": list(request.setting),
        "seeds": list(request.seeds),
        "epochs": request.epochs,
        "profile": request.profile,
        "backbone": request.backbone,
        "weights": str(request.weights.resolve()) if request.weights else None,
        "precision": request.precision,
    }
    config = json.loads(trial["config"])
    changed = {name.partition(".")[2] for name in request.set} | set(json.loads(trial["searched"]))
    lines = [f"# Chosen by a sweep of {number_of(request.trials, 'trial')}: {trial['objective']}"]
    lines[0] += f" {trial['objective_value']:.4f} on held-out normal images with synthetic defects."
    lines += [f"{key} = {_toml(value)}" for key, value in head.items() if value is not None]
    lines += ["", f"[set.{request.method}]"]
    # `kdbench run` takes a list as values to try, so a value that is a list stands in another list.
    found = {key: default_of(get_method(request.method), config, key) for key in sorted(changed)}
    values = {key: [value] if isinstance(value, list) else value for key, value in found.items()}
    lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """The value as TOML: JSON writes strings, numbers, truth values and lists of them in the same way."""
    return json.dumps(value, ensure_ascii=False)


def write_best(planned: SweepPlan, trial: Mapping[str, Any]) -> str:
    """Write the best configuration as TOML; returns its path."""
    storage, name = Storage(planned.sweep.place.results), f"{planned.folder}/best.toml"
    storage.write(name, best_toml(planned, trial).encode())
    return storage.path(name)
