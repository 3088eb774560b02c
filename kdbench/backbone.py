"""Feature pyramids, the pretrained weights of the teacher, and where those weights come from.

timm is imported only when a network is built: it costs two seconds that a resumed run does not need.
"""

import hashlib
import importlib.metadata
import re
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.cell import Weights
from kdbench.errors import RequestError, first_line, reason
from kdbench.files import folder_of
from kdbench.known_backbones import BACKBONES, EMBEDDED, EMBEDDED_PACKAGE, FILE_HASHES, TINY

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")


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

    architecture = _architecture(backbone) if backbone == EMBEDDED else backbone
    try:
        body: Any = timm.create_model(architecture, pretrained=False, features_only=True, out_indices=levels)
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


def check_levels(backbone: str, levels: tuple[int, ...]) -> None:
    """Raise RequestError unless the levels ascend from 1 on and, as far as is known here, exist."""
    if not levels or any(fine >= coarse for fine, coarse in pairwise((0, *levels))):
        raise RequestError([f"levels {levels}: whole numbers from 1 on, each larger than the one before"])
    if backbone in BACKBONES and max(levels) > 4:
        raise RequestError([f"backbone {backbone!r} has the levels 1 to 4, not {max(levels)}"])


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
    config = _timm_config(backbone)
    return tuple(config.mean), tuple(config.std)


# --- where the weights come from -----------------------------------------------------------------------


def find_weights(backbone: str, given: Path | None = None, *, download: bool = True) -> Weights:
    """The teacher's weights, from `given`, the folder KDBENCH_WEIGHTS, the embedded package, or timm's hub.

    Raises RequestError naming the four ways when none of them has the backbone; never a random teacher.
    """
    if backbone == TINY:
        if given is not None:
            raise RequestError([f"--weights {given} would be ignored: {TINY!r} has fixed random weights"])
        return Weights(path="", source="fixed random convolutions", sha256="tiny-v1")
    if backbone not in BACKBONES:
        _timm_config(backbone)  # a name that does not exist is wrong whatever file comes with it
    if given is not None and not given.is_dir():
        if _names_others(backbone, given):
            raise RequestError(
                [f"{given} is named as other weights than {backbone}. Name theirs, or rename the file"]
            )
        return _weights(given, f"file {given.name}")
    if given is not None:
        found = _in_folder(backbone, given)
        if found is None:
            raise RequestError([f"no weights for {backbone} in the folder {given}"])
        return _weights(found, f"file {found.name}")
    folder = folder_of("KDBENCH_WEIGHTS")
    if folder and (found := _in_folder(backbone, folder)):
        return _weights(found, f"file {found.name}")
    if backbone == EMBEDDED:
        found = _embedded_file()
        if found:
            return _weights(found, f"package {EMBEDDED_PACKAGE}")
        reason = f"the package {EMBEDDED_PACKAGE} is not installed"
    else:
        try:
            return _from_timm_hub(backbone, download)
        except OSError as error:  # no network, no such file, a full disk
            reason = f"timm's hub: {first_line(error)}"
    raise RequestError([_four_ways(backbone, reason)])


def cached_weights(backbone: str) -> Weights | None:
    """The weights that `find_weights` would use without a download; None if there are none."""
    try:
        return find_weights(backbone, download=False)
    except RequestError:
        return None


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights(path: Path, source: str) -> Weights:
    try:
        return Weights(path=str(path.resolve()), source=source, sha256=file_sha256(path))
    except OSError as error:
        raise RequestError([f"{path}: {reason(error)}"]) from error


def _architecture(backbone: str) -> str:
    return backbone.partition(".")[0]


def _timm_tag(backbone: str) -> str:
    return backbone.partition(".")[2]


def _in_folder(backbone: str, folder: Path) -> Path | None:
    if not folder.is_dir():
        raise RequestError([f"the weights folder {str(folder)!r} does not exist"])
    name = _architecture(backbone)
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in WEIGHT_SUFFIXES
        and path.name.startswith((f"{name}.", f"{name}_", f"{name}-"))
        and not _names_others(backbone, path)
    )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise RequestError(
            [f"{folder} has several weights for {name}: {names}. Choose one with --weights FILE"]
        )
    return found[0] if found else None


def _names_others(backbone: str, path: Path) -> bool:
    """Whether the file's name has another tag of timm, or hash of torchvision, than the backbone's."""
    if path.stem.startswith(f"{_architecture(backbone)}."):
        return path.stem != backbone
    ending = re.search(r"-([0-9a-f]{8})$", path.stem)
    return ending is not None and ending[1] not in FILE_HASHES.get(backbone, (ending[1],))


def _embedded_file() -> Path | None:
    try:
        files = importlib.metadata.files(EMBEDDED_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".pth"), None)


def _from_timm_hub(backbone: str, download: bool) -> Weights:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    config = _timm_config(backbone)
    if not config.hf_hub_id:
        raise RequestError([_four_ways(backbone, "timm has no pretrained weights under this name")])
    path = try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    if not isinstance(path, str):
        if not download:
            raise FileNotFoundError("not downloaded yet")
        try:
            path = hf_hub_download(config.hf_hub_id, "model.safetensors")
        except LocalEntryNotFoundError as error:
            raise FileNotFoundError(f"{config.hf_hub_id} is not cached and cannot be reached") from error
    return _weights(Path(path), f"hub {config.hf_hub_id}")


def _timm_config(backbone: str) -> Any:
    import timm

    if not _timm_tag(backbone):
        near = ", ".join(name for name in BACKBONES if name.startswith(backbone + ".")) or f"{backbone}.TAG"
        raise RequestError(
            [f"backbone {backbone!r} has no tag, and a bare name means other weights. Name it: {near}"]
        )
    try:
        config = timm.get_pretrained_cfg(backbone, allow_unregistered=False)
    except (RuntimeError, KeyError):  # a model or a tag that timm does not know
        config = None
    if config is None or not timm.is_model(_architecture(backbone)):
        raise RequestError([f"timm has no backbone {backbone!r}. Known to work: {', '.join(BACKBONES)}"])
    return config


def _four_ways(backbone: str, reason: str) -> str:
    name = _architecture(backbone)
    return (
        f"no weights for the teacher {backbone!r} ({reason}). Four ways to give them: --weights FILE; "
        f"a file {name}*.pth or {name}*.safetensors in the folder KDBENCH_WEIGHTS; --backbone {EMBEDDED}, "
        f"whose weights come with the package {EMBEDDED_PACKAGE}; or a network connection for timm's download"
    )


def _renamed_by_order(backbone: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    # The package's file has its own names; order and shapes are those of timm's whole network.
    import timm

    with torch.device("meta"):  # only names and shapes; drawing numbers would move the random state
        names = timm.create_model(_architecture(backbone), pretrained=False).state_dict()
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
