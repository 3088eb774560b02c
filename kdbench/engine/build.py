"""A method on its device, from the config in a cell or a row."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from kdbench.backbone import FeaturePyramid, teacher
from kdbench.engine.device import place_networks
from kdbench.errors import DataError, RequestError
from kdbench.method import Method
from kdbench.registry import get_method
from kdbench.results.store import DETECTORS, Results
from kdbench.weights import Weights, find_weights, header_text

NOT_KEPT = "no detector was kept; run it again without --discard-detectors (--redo all)"
# Keys of a header: of which cell or trial a kept detector is, and of which attempt at a cell.
OF, ATTEMPT = "kdbench: of", "kdbench: attempt"


def config_of(method: str, config: str) -> Method.Config:
    """The validated config of a method; `config` is the JSON of a cell or a row."""
    return get_method(method).Config.model_validate(json.loads(config))


def build_teacher(method: str, config: str, weights: Weights) -> FeaturePyramid:
    """The frozen teacher of a method; `config` is the JSON of a cell.

    Raises RequestError if the weights do not fit it.
    """
    validated = config_of(method, config)
    return teacher(validated.backbone, validated.levels, weights)


def build_method(method: str, config: str, weights: Weights, device: torch.device) -> Method:
    """The untrained method on its device; torch's global generator draws the networks' random start.

    Raises RequestError if there is no such method or the weights do not fit its teacher.
    """
    built = get_method(method)(config_of(method, config), build_teacher(method, config, weights))
    place_networks(built, device)
    return built


def write_detector(
    results: Results, owner: str, state: dict[str, torch.Tensor], attempt_id: str | None = None
) -> None:
    """Write the tensors of a cell's `detector_state`, or of a trial; the file says whose they are."""
    header = {OF: owner} | ({ATTEMPT: attempt_id} if attempt_id else {})
    results.storage.write(DETECTORS.name(owner), save(state, header))


def kept_state(results: Results, owner: str, attempt_id: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors that `write_detector` wrote; `attempt_id` is that of the cell's rows.

    Raises FileNotFoundError if it wrote none, DataError if the file is damaged, or says that it is another
    one's or of another attempt: all these have tensors of the same names and shapes. Older files say nothing.
    """
    name = DETECTORS.name(owner)
    path, content = results.storage.path(name), results.storage.read(name)
    found = header_text(io.BytesIO(content), OF)
    if found not in ("", owner):
        raise DataError(
            f"{path} is the detector of {found}: somebody copied or renamed it. Put the file of {owner} "
            f"there, or delete it and run its cell again (--redo all)"
        )
    if header_text(io.BytesIO(content), ATTEMPT) != (attempt_id or ""):
        raise DataError(of_another_attempt(path, owner))
    try:
        return load(content)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged. Delete it, and run its cell again (--redo all)") from error


def of_another_attempt(path: str, cell_id: str) -> str:
    """What is wrong with a file that does not belong to the rows of its cell."""
    return (
        f"{path} and the rows of {cell_id} are of two attempts at the cell: somebody copied files of another "
        f"results folder here. Copy all files of the cell, or run it again (--redo all)"
    )


def load_detector(
    results: Results, row: Mapping[str, Any], *, weights: Weights, device: torch.device
) -> Method:
    """The trained detector of a row's cell on a device, in eval mode.

    Raises as `kept_state`; RuntimeError if the file is another method's.
    """
    state = kept_state(results, row["cell_id"], row["attempt_id"])
    detector = build_method(row["method"], row["config"], weights, device)
    detector.load_detector(state)
    return detector.eval()


def detector_of(results: Results, row: dict[str, Any], weights: Path | None, device: torch.device) -> Method:
    """The detector of a row's cell, in eval mode; `weights` are its teacher's, if they are not found.

    Raises RequestError for another teacher or if no detector was kept, DataError as `kept_state`.
    """
    found = find_weights(config_of(row["method"], row["config"]).backbone, weights)
    if found.sha256 != row["teacher_sha256"]:
        raise RequestError([f"{found.source} is not the teacher of this {row['method']}: give its weights"])
    try:
        return load_detector(results, row, weights=found, device=device)
    except FileNotFoundError as error:
        raise RequestError([f"{row['cell_id']}: {NOT_KEPT}"]) from error
