"""Feature pyramids, and the teacher: a frozen pyramid with pretrained weights.

timm is imported only when a network is built: it costs two seconds that a resumed run does not need.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdbench.errors import Complaints, RequestError
from kdbench.weights import (
    EMBEDDED,
    EMBEDDED_PACKAGE,
    RANDOM,
    TINY,
    TINY_PDN,
    TINY_VIT,
    Weights,
    architecture,
    check_build,
    check_levels,
    is_pdn,
    is_vit,
    timm_config,
    why_no_state,
    why_unreadable,
)

PDN_CHANNELS = 384  # of the only level of a patch description network
# (output channels, kernel) of each of its convolutions but the last; a pooling follows the first two.
PDN_SMALL = ((128, 4), (256, 4), (256, 3))
PDN_MEDIUM = ((256, 4), (512, 4), (512, 1), (512, 3))
PDN_TINY = ((8, 4), (12, 4), (12, 3))


class FeaturePyramid(nn.Module):
    """Normalised images [B,3,H,W] -> one map [B,C,h,w] per level; nothing past the last level is computed.

    If `crop` is set, the network sees only that square of the centre.
    """

    def __init__(
        self, body: nn.Module, levels: tuple[int, ...], channels: list[int], strides: list[int]
    ) -> None:
        super().__init__()
        self.body, self.levels, self.channels, self.strides = body, levels, channels, strides
        self.crop = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.crop:
            top, left = ((side - self.crop) // 2 for side in images.shape[2:])
            images = images[..., top : top + self.crop, left : left + self.crop]
        return list(self.body(images))

    def level_modules(self) -> list[nn.Module]:
        """The parts of the network that end with a level each; ValueError if it has no such parts."""
        if isinstance(self.body, _Tiny):
            return [self.body.stages[level - 1] for level in self.levels]
        names = getattr(self.body, "return_layers", None)
        if not names:
            raise ValueError(f"{type(self.body).__name__} has no parts that end with a level each")
        return [self.body.get_submodule(name) for name in names]

    @property
    def pretrained(self) -> nn.Module:
        """The part whose tensors a weights file names."""
        return self.body.network if isinstance(self.body, Blocks | OneLevel) else self.body


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


class Blocks(nn.Module):
    """Images [B,3,H,W] -> the patch tokens after the blocks `levels` (from 1 on) as maps [B,C,h,w].

    Class and register tokens take part in the blocks but not in the maps. Positions are interpolated for
    other image sizes than that of the training; H and W are multiples of the patch.
    """

    def __init__(self, network: Any, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.indices = network, [level - 1 for level in levels]
        self.network.blocks = self.network.blocks[: levels[-1]]
        self.network.norm = nn.Identity()  # it would follow the last block, which may be cut off

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.network.forward_intermediates(
            images, indices=self.indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def build_blocks(backbone: str, levels: tuple[int, ...]) -> tuple[Blocks, int, int]:
    """The randomly started transformer up to its last level, its channels and its stride.

    Raises RequestError for a network that timm does not have or that has fewer blocks.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True}
    if backbone == TINY_VIT:
        shape: dict[str, Any] = {
            "img_size": 56,
            "patch_size": 14,
            "embed_dim": 32,
            "depth": 10,
            "num_heads": 2,
        }
        network: Any = VisionTransformer(**shape, reg_tokens=4, no_embed_class=True, **options)
    else:
        try:
            network = timm.create_model(backbone, pretrained=False, **options)
        except (RuntimeError, TypeError) as error:
            raise RequestError([f"backbone {backbone!r} with levels {levels}: {error}"]) from error
    if levels[-1] > len(network.blocks):
        raise RequestError(
            [f"backbone {backbone!r} has the levels 1 to {len(network.blocks)}, not {levels[-1]}"]
        )
    return Blocks(network, levels), network.embed_dim, network.patch_embed.patch_size[0]


def pdn_channels(backbone: str) -> int:
    """Channels of the teacher's level."""
    return 16 if backbone == TINY_PDN else PDN_CHANNELS


def build_pdn(backbone: str, outputs: int, *, padded: bool = False) -> nn.Sequential:
    """A randomly started network of this size with `outputs` channels: [B,3,H,W] -> [B,outputs,h,w].

    No convolution is padded: 256 pixels become 56 places. A teacher learns `padded`, with the same tensors:
    256 pixels become 64 places.
    """
    medium = backbone.startswith("pdn_medium")
    hidden = PDN_TINY if backbone == TINY_PDN else PDN_MEDIUM if medium else PDN_SMALL
    layers, inputs = list[nn.Module](), 3
    for number, (channels, kernel) in enumerate(hidden):
        padding = (0, 0, 0, 1, 3)[kernel] if padded else 0
        layers += [nn.Conv2d(inputs, channels, kernel, padding=padding), nn.ReLU()]
        layers += [nn.AvgPool2d(2, padding=int(padded))] if number < 2 else []
        inputs = channels
    layers.append(nn.Conv2d(inputs, outputs, 4))
    if medium:
        layers += [nn.ReLU(), nn.Conv2d(outputs, outputs, 1)]
    return nn.Sequential(*layers)


class OneLevel(nn.Module):
    """A patch description network as a pyramid of one level."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.network(images)]


def pyramid(backbone: str, levels: tuple[int, ...]) -> FeaturePyramid:
    """A pyramid that ends with the last level, initialised at random by torch's global generator."""
    check_levels(backbone, levels)
    if backbone == TINY:
        channels = [_Tiny.CHANNELS[level - 1] for level in levels]
        return FeaturePyramid(_Tiny(levels), levels, channels, [2 ** (level + 1) for level in levels])
    if is_pdn(backbone):
        channels = [pdn_channels(backbone)]
        return FeaturePyramid(OneLevel(build_pdn(backbone, channels[0])), levels, channels, [4])
    if is_vit(backbone):
        blocks, width, stride = build_blocks(backbone, levels)
        return FeaturePyramid(blocks, levels, [width] * len(levels), [stride] * len(levels))
    check_build()
    import timm

    name = architecture(backbone) if backbone == EMBEDDED else backbone
    try:
        body: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=levels)
    except (RuntimeError, AssertionError, IndexError) as error:
        raise RequestError([f"backbone {backbone!r} with levels {levels}: {error}"]) from error
    if hasattr(body, "blocks") and hasattr(body, "_stage_out_idx"):
        # timm also keeps and runs the EfficientNet stages behind the last level, which are not needed.
        body.blocks = body.blocks[: max(body._stage_out_idx)]
    # timm initialises the last normalisation of every residual block with 0. The papers take their students
    # from torchvision, which initialises it with 1.
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return FeaturePyramid(body, levels, body.feature_info.channels(), body.feature_info.reduction())


def teacher(backbone: str, levels: tuple[int, ...], weights: Weights) -> FeaturePyramid:
    """A frozen pyramid with pretrained weights in eval mode; RequestError if the weights do not fit."""
    if backbone in RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20210301)
            network = pyramid(backbone, levels)
    else:
        with torch.random.fork_rng(devices=[]):  # keeps the random start of the student
            network = pyramid(backbone, levels)
        state = read_state(Path(weights.path))
        if backbone == EMBEDDED:
            state = _renamed_by_order(backbone, state)
        _load(network.pretrained, state, backbone, weights)
    return network.requires_grad_(False).eval()


def normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel with which this backbone was trained, for pixels 0..1."""
    if backbone in (*RANDOM, EMBEDDED):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if is_pdn(backbone):
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
    config = timm_config(backbone)
    return tuple(config.mean), tuple(config.std)


def read_state(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a weights file, read without unpickling objects; RequestError for another file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old pickle protocols before it refuses them
            safe = path.suffix == ".safetensors"
            state: Any = load_file(path) if safe else torch.load(path, weights_only=True, map_location="cpu")
    # The parsers raise many types (IndexError, struct.error, UnpicklingError ...), all for a wrong file.
    except Exception as error:
        raise RequestError([f"{path} is not a weights file: {why_unreadable(path, error)}"]) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RequestError([f"{path} is not a weights file: {why_no_state(state)}"])
    return state


def _renamed_by_order(backbone: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embedded package's tensors under timm's names: order and shapes are those of the whole network."""
    import timm

    with torch.device("meta"):  # names and shapes only, so that no random number is drawn
        names = timm.create_model(architecture(backbone), pretrained=False).state_dict()
    if [tuple(t.shape) for t in state.values()] != [tuple(t.shape) for t in names.values()]:
        raise RequestError([f"the weights of {EMBEDDED_PACKAGE} do not have the shapes of {backbone}"])
    return dict(zip(names, state.values(), strict=True))


def _load(body: nn.Module, state: dict[str, Tensor], backbone: str, weights: Weights) -> None:
    wanted = body.state_dict()
    # Files from before 2018 have no counter; a frozen BatchNorm does not read it.
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    wrong = [n for n in wanted if n in state and state[n].shape != wanted[n].shape]
    if missing or wrong:
        first = missing[0] if missing else f"{wrong[0]} {tuple(state[wrong[0]].shape)}"
        raise RequestError(
            [
                f"{weights.path} does not fit {backbone}: {len(missing)} of {len(wanted)} tensors missing, "
                f"{len(wrong)} of another shape, first: {first}{_other_names(list(state), missing)}"
            ]
        )
    own = {n: state[n] for n in wanted if n in state}
    _refuse_others(own, list(state), backbone, weights)
    body.load_state_dict(own, strict=False)


def _refuse_others(own: dict[str, Tensor], names: list[str], backbone: str, weights: Weights) -> None:
    """RequestError for weights of a larger network, and for values that no training gives.

    A ResNet-34 has all tensors of a ResNet-18 and some more. `names` are all names in the file.
    """
    complaints = Complaints()
    if not is_pdn(backbone) and set(names) - set(own):
        import timm

        with torch.device("meta"):
            whole = timm.create_model(architecture(backbone), pretrained=False, num_classes=0).state_dict()
        parts = {name.partition(".")[0] for name in whole}
        more = [name for name in names if name.partition(".")[0] in parts and name not in whole]
        if more:
            complaints.add(
                f"{weights.path} does not fit {backbone}: it has {len(more)} tensors that this network "
                f"does not have, first: {more[0]}"
            )
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not tensor.is_floating_point():
            complaints.add(f"{weights.path}: {name} has the type {tensor.dtype}; weights are floating-point")
        elif not tensor.isfinite().all():
            complaints.add(f"{weights.path}: {name} has values that are NaN or infinite")
    complaints.texts[3:] = []
    complaints.check()


def _other_names(names: list[str], missing: list[str]) -> str:
    """The names in a file that lacks these tensors, or the advice to remove a prefix of all its names."""
    if not missing:
        return ""
    for name in names:
        prefix = name.removesuffix(missing[0])
        if {prefix + other for other in missing} <= set(names):
            return f". The file has them as {name}: remove {prefix!r} from its names and save it again"
    return f". The file has {len(names)} tensors, first: {', '.join(names[:3])}"
