"""A method on its device, from the config in a cell or a row."""

import json

import torch
from safetensors.torch import load

from kdbench.backbone import FeaturePyramid, teacher
from kdbench.engine.device import place_networks
from kdbench.method import Method
from kdbench.registry import get_method
from kdbench.results.store import DETECTORS, Results
from kdbench.weights import Weights


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


def load_detector(
    results: Results, cell_id: str, *, method: str, config: str, weights: Weights, device: torch.device
) -> Method:
    """The trained detector of a cell on a device, in eval mode; `config` is the JSON of its row.

    Raises FileNotFoundError if it was not kept, RuntimeError if the file is another method's.
    """
    detector = build_method(method, config, weights, device)
    detector.load_detector(load(results.storage.read(DETECTORS.name(cell_id))))
    return detector.eval()
