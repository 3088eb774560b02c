"""Feature pyramids, and the teacher: a frozen pyramid with pretrained weights.

timm is imported only when a network is built: it costs two seconds that a resumed run does not need.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.cell import Weights
from kdbench.errors import RequestError, first_line
from kdbench.weights import (
    EMBEDDED,
    EMBEDDED_PACKAGE,
    TINY,
    architecture,
    check_levels,
    timm_config,
)


class FeaturePyramid(nn.Module):
    """Normalised images [B,3,H,W] -> one map [B,C,h,w] per level, nothing computed past the last of them."""

    def __init__(
        self, body: nn.Module, levels: tuple[int, ...], channels: list[int], strides: list[int]
    ) -> None:
        super().__init__()
        self.body, self.levels, self.channels, self.strides = body, levels, channels, strides

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images))


class _Tiny(nn.Module):
    """A stem and four small stages: level i has stride 2^(i+1)."""

    CHANNELS = (8, 16, 24, 32)

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.wanted = levels
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        inputs = (8, *self.CHANNELS)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs[i], c, 3, stride=2, padding=1), nn.BatchNorm2d(c), nn.ReLU())
            for i, c in enumerate(self.CHANNELS[: max(levels)])
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.stem(images).relu(), []
        for level, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if level in self.wanted:
                maps.append(x)
        return maps


def pyramid(backbone: str, levels: tuple[int, ...]) -> FeaturePyramid:
    """A randomly initialised pyramid (torch's global generator) that ends at the last level asked for."""
    check_levels(backbone, levels)
    if backbone == TINY:
        channels = [_Tiny.CHANNELS[level - 1] for level in levels]
        return FeaturePyramid(_Tiny(levels), levels, channels, [2 ** (level + 1) for level in levels])
    import timm

    name = architecture(backbone) if backbone == EMBEDDED else backbone
    try:
        body: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=levels)
    except (RuntimeError, AssertionError, IndexError) as error:
        raise RequestError([f"backbone {backbone!r} with levels {levels}: {error}"]) from error
    if hasattr(body, "blocks") and hasattr(body, "_stage_out_idx"):
        # timm keeps (and runs) the EfficientNet stages behind the last level; nobody reads them.
        body.blocks = body.blocks[: max(body._stage_out_idx)]
    # timm starts the last normalisation of every residual block at 0; torchvision, where the papers take
    # their students from, at 1.
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return FeaturePyramid(body, levels, body.feature_info.channels(), body.feature_info.reduction())


def teacher(backbone: str, levels: tuple[int, ...], weights: Weights) -> FeaturePyramid:
    """The frozen pretrained pyramid in eval mode; RequestError if the weights do not fit it."""
    if backbone == TINY:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20210301)
            network = pyramid(backbone, levels)
    else:
        with torch.random.fork_rng(devices=[]):  # building must not move the student's random start
            network = pyramid(backbone, levels)
        state = read_state(Path(weights.path))
        if backbone == EMBEDDED:
            state = _renamed_by_order(backbone, state)
        _load(network.body, state, backbone, weights)
    return network.requires_grad_(False).eval()


def normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for pixels in 0..1, that this backbone was trained with."""
    if backbone in (TINY, EMBEDDED):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    config = timm_config(backbone)
    return tuple(config.mean), tuple(config.std)


def read_state(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a weights file, read without unpickling any object; RequestError if it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old pickle protocols before it refuses them
            safe = path.suffix == ".safetensors"
            state: Any = load_file(path) if safe else torch.load(path, weights_only=True, map_location="cpu")
    # The parsers raise whatever they stumble over (IndexError, struct.error, UnpicklingError ...); whichever
    # it is, the file is not what it should be.
    except Exception as error:
        raise RequestError([f"{path} is not a weights file: {first_line(error)}"]) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RequestError([f"{path} is not a weights file: it holds no dictionary of tensors"])
    return state


def _renamed_by_order(backbone: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    # The package's file has its own names; order and shapes are those of timm's whole network.
    import timm

    with torch.device("meta"):  # only names and shapes; drawing numbers would move the random state
        names = timm.create_model(architecture(backbone), pretrained=False).state_dict()
    if [tuple(t.shape) for t in state.values()] != [tuple(t.shape) for t in names.values()]:
        raise RequestError([f"the weights of {EMBEDDED_PACKAGE} do not have the shapes of {backbone}"])
    return dict(zip(names, state.values(), strict=True))


def _load(body: nn.Module, state: dict[str, Tensor], backbone: str, weights: Weights) -> None:
    wanted = body.state_dict()
    # Files from before 2018 lack the counter; a frozen BatchNorm never reads it.
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    wrong = [n for n in wanted if n in state and state[n].shape != wanted[n].shape]
    if missing or wrong:
        first = missing[0] if missing else f"{wrong[0]} {tuple(state[wrong[0]].shape)}"
        raise RequestError(
            [
                f"{weights.path} does not fit {backbone}: {len(missing)} of {len(wanted)} tensors missing, "
                f"{len(wrong)} of another shape, first: {first}"
            ]
        )
    body.load_state_dict({n: state[n] for n in wanted if n in state}, strict=False)
