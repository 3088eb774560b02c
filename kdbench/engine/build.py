"""A trained detector from a results folder, ready to score images."""

import json

import torch
from safetensors.torch import load

from kdbench.backbone import teacher
from kdbench.cell import Weights
from kdbench.engine.device import place_networks
from kdbench.method import Method
from kdbench.registry import get_method
from kdbench.results.store import DETECTORS, Results


def load_detector(
    results: Results, cell_id: str, *, method: str, config: str, weights: Weights, device: torch.device
) -> Method:
    """The detector of a cell on a device, in eval mode; `config` is the JSON of its row.

    Raises FileNotFoundError if it was not kept, RuntimeError if the file is another method's.
    """
    kind = get_method(method)
    settings = kind.Config.model_validate(json.loads(config))
    detector: Method = kind(settings, teacher(settings.backbone, settings.levels, weights))
    detector.load_detector(load(results.storage.read(DETECTORS.name(cell_id))))
    place_networks(detector, device)
    detector.eval()
    return detector
