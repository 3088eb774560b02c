"""The same weights in kdbench and in anomalib: how far apart their anomaly maps are, as a page of figures.

    make equal-weights

Needs anomalib beside kdbench, in an environment of its own, and no download: all networks start at random,
and each tensor of one side is copied to the other.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import vision_transformer
from torch import Tensor, nn

from kdbench.backbone import build_pdn, normalisation, pyramid, teacher
from kdbench.cell import Weights
from kdbench.method import Method
from kdbench.methods._reverse import Bottleneck
from kdbench.registry import get_method

LIMIT = 1e-4  # of the largest difference, as a share of the map's range
BATCH, SEED = 2, 0
PAGE = """# Equal weights, equal maps

Written by `make equal-weights`. kdbench and anomalib {anomalib} (torch {torch}, timm {timm}) get the same
random weights and the same images, and their anomaly maps are compared in fp32 on a CPU. A figure is the
largest difference at any place, as a share of the range of anomalib's map. Equal means at most {limit:g}.

## Equal

| method | network | image | compared | difference |
|---|---|---|---|---|
{equal}

## Different on purpose

| method | network | image | compared | difference | why |
|---|---|---|---|---|---|
{different}

The convolutions behind the joined levels of a Wide ResNet have {ours} in kdbench, after the official
code, and {theirs} in anomalib, so that no weights fit both. anomalib's Dinomaly has no biases in its MLPs:
they are 0 here for the comparison. When its network is built, timm's antialiasing of positions is switched
off for the whole process, which changes the levels of images of other sizes than that of the teacher's
training: the comparison is at that size.
"""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison; `why` is empty where the maps must be equal."""

    method: str
    network: str
    size: int
    what: str
    apart: float
    why: str = ""

    def __str__(self) -> str:
        cells = (self.method, self.network, f"{self.size} px", self.what, f"{self.apart:.1e}", self.why)
        return "| " + " | ".join(cells[: None if self.why else -1]) + " |"


def apart(ours: Tensor, theirs: Tensor, border: int = 0) -> float:
    """The largest difference of maps [B,H,W] but for a border, as a share of the range of `theirs`."""
    inside = slice(border, ours.shape[-1] - border)
    ours, theirs = (x[..., inside, inside] for x in (ours, theirs))
    return ((ours - theirs).abs().max() / (theirs.max() - theirs.min())).item()


def some_images(size: int) -> Tensor:
    """Pixels from 0 to 1, [B,3,S,S]: coarse noise and fine noise."""
    parts = [torch.rand(BATCH, 3, n, n) for n in (8, size)]
    big = nn.functional.interpolate(parts[0], (size, size), mode="bilinear")
    return (0.8 * big + 0.2 * parts[1]).clamp(0, 1)


@torch.no_grad()
def shaken(network: nn.Module) -> nn.Module:
    """The network with normalisations that change something, in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.weight, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                tensor.normal_(0, 0.1)
    return network.eval()


def copied(source: list[nn.Module], target: nn.Module) -> None:
    """Give `target` the tensors of `source`, in their order; AssertionError where a shape differs."""
    tensors = [tensor for module in source for tensor in module.state_dict().values()]
    names = list(target.state_dict())
    assert [t.shape for t in tensors] == [t.shape for t in target.state_dict().values()], names
    target.load_state_dict(dict(zip(names, tensors, strict=True)))


def ours_of(name: str, state: dict[str, Tensor], backbone: str, **config: Any) -> Method:
    """Our method, with these tensors as its teacher's weights."""
    kind = get_method(name)
    asked = kind.Config(backbone=backbone, **config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "teacher.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
        weights = Weights(path=str(file), source="", sha256="")
        return kind(asked, teacher(backbone, asked.levels, weights)).eval()


def normalised(pixels: Tensor, backbone: str) -> Tensor:
    mean, std = (torch.tensor(x)[:, None, None] for x in normalisation(backbone))
    return (pixels - mean) / std


@contextmanager
def without_download() -> Iterator[None]:
    """anomalib's networks start at random, and timm's positions stay as timm has them."""
    create, resample = timm.create_model, vision_transformer.resample_abs_pos_embed
    timm.create_model = lambda name, pretrained=False, **options: create(name, pretrained=False, **options)
    try:
        yield
    finally:
        timm.create_model = create
        vision_transformer.resample_abs_pos_embed = resample


# --- reverse distillation ---


@torch.no_grad()
def reverse_distillation(network: str, size: int) -> Iterator[Line]:
    """RD4AD, whose map anomalib calls `add`."""
    theirs, ours = reverse_pair(network, size)
    pixels = normalised(some_images(size), ours.config.backbone)
    said = {"method": "rd4ad", "network": network, "size": size}
    taught = ours.teacher(pixels)
    smooth = ours.anomaly_map(pixels, taught), theirs(pixels).anomaly_map[:, 0]
    radius = theirs.anomaly_map_generator.kernel_size // 2
    theirs.anomaly_map_generator.kernel_size = 1  # no smoothing
    ours.config = ours.config.model_copy(update={"sigma": 0.0})
    sharp = ours.anomaly_map(pixels, taught), theirs(pixels).anomaly_map[:, 0]
    yield Line(**said, what="map before smoothing", apart=apart(*sharp))
    yield Line(**said, what=f"map without a border of {radius} px", apart=apart(*smooth, radius))
    why = "the blur repeats the last pixel when it mirrors, as scipy and the official code do"
    yield Line(**said, what="map with its border", apart=apart(*smooth), why=why)


def reverse_pair(network: str, size: int) -> tuple[Any, Any]:
    """anomalib's model and ours, with the same tensors."""
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    layers = ["layer1", "layer2", "layer3"]
    theirs: Any = ReverseDistillationModel(network, (size, size), layers, "add", pre_trained=False)
    shaken(theirs)
    encoder = theirs.encoder.feature_extractor
    ours: Any = ours_of("rd4ad", encoder.state_dict(), f"{network}.tv_in1k", image_size=size)
    their, our = theirs.bottleneck, ours.bottleneck
    copied([their.conv1, their.bn1, their.conv2, their.bn2], our.to_deepest[0])
    copied([their.conv3, their.bn3], our.to_deepest[1])
    copied([their.bn_layer], our.stage)
    copied([theirs.decoder], ours.decoder)
    return theirs, ours


def wide_shapes() -> tuple[list[int], list[int]]:
    """The first convolution behind the joined levels of a Wide ResNet, there and here."""
    from anomalib.models.image.reverse_distillation.components import get_bottleneck_layer

    name = "wide_resnet50_2"
    with torch.device("meta"):
        theirs: Any = get_bottleneck_layer(name).bn_layer[0]
        ours: Any = Bottleneck(pyramid(f"{name}.tv_in1k", (1, 2, 3)), name).stage[0]
    return list(theirs.conv1.weight.shape), list(ours.path[0].weight.shape)


# --- EfficientAD ---


@torch.no_grad()
def efficientad(size_name: str, size: int = 256) -> Iterator[Line]:
    """EfficientAD; its networks have only their real sizes."""
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    theirs: Any = EfficientAdModel(model_size=size_name).eval()
    quantiles = torch.tensor([[0.1, 0.9], [0.2, 0.7]])
    theirs.mean_std["mean"].normal_(0, 0.1)
    theirs.mean_std["std"].uniform_(0.05, 0.2)
    for name, value in zip(("qa_st", "qb_st", "qa_ae", "qb_ae"), quantiles.flatten(), strict=True):
        theirs.quantiles[name].copy_(value)
    backbone = f"pdn_{size_name}.distilled"
    with torch.device("meta"):
        names = build_pdn(backbone, 384).state_dict()  # those of the public files
    state = dict(zip(names, theirs.teacher.state_dict().values(), strict=True))
    ours: Any = ours_of("efficientad", state, backbone, image_size=size)
    copied([theirs.student], ours.student)
    copied([theirs.ae.encoder, theirs.ae.decoder], ours.autoencoder)
    ours.mean.copy_(theirs.mean_std["mean"].flatten())
    ours.std.copy_(theirs.mean_std["std"].flatten())
    ours.quantiles.copy_(quantiles)
    pixels = some_images(size)
    images = normalised(pixels, backbone)
    maps = ours.anomaly_map(images, ours.teacher(images)), theirs(pixels).anomaly_map[:, 0]
    said = {"method": "efficientad", "network": backbone.partition(".")[0], "size": size}
    yield Line(**said, what="map without a border of 18 px", apart=apart(*maps, 18))
    why = "the cut-off border is set to 0 after the quantiles, as in nelson1425's code; before them there"
    yield Line(**said, what="map with its border", apart=apart(*maps), why=why)


# --- Dinomaly ---


@torch.no_grad()
def dinomaly(network: str, size: int) -> Iterator[Line]:
    """Dinomaly at the size of its teacher's positions, which both sides then take as they are."""
    backbone = f"{network}.lvd142m"
    theirs, ours = dinomaly_pair(backbone, size)
    images = normalised(some_images(size), backbone)
    said = {"method": "dinomaly", "network": network, "size": size}
    blurred = list[Tensor]()
    theirs.gaussian_blur.register_forward_hook(lambda module, given, found: blurred.append(found[:, 0]))
    theirs.remove_class_token = True
    answer = theirs(images)
    taught = ours.teacher(images)
    smooth, sharp = ours.smooth_map(taught), ours.raw_map(taught)
    yield Line(**said, what="map before smoothing", apart=apart(sharp, answer.anomaly_map[:, 0]))
    yield Line(
        **said, what="smoothed map of 256 px without a border of 2 px", apart=apart(smooth, blurred[0], 2)
    )
    why = "the blur repeats the last pixel when it mirrors"
    yield Line(**said, what="smoothed map with its border", apart=apart(smooth, blurred[0]), why=why)
    theirs.remove_class_token = False
    whole = theirs(images).anomaly_map[:, 0]
    why = "class and register tokens are left out of bottleneck and decoder; anomalib drops them after"
    yield Line(**said, what="map before smoothing", apart=apart(sharp, whole), why=why)


def dinomaly_pair(backbone: str, size: int) -> tuple[Any, Any]:
    """anomalib's model and ours, with the same tensors; ours has no bias where anomalib has none."""
    from anomalib.models.image.dinomaly.torch_model import DinomalyModel

    with without_download():
        theirs: Any = DinomalyModel(backbone).eval()
    state = theirs.encoder.feature_extractor.state_dict()
    ours: Any = ours_of("dinomaly", state, backbone, image_size=size, crop=size)
    their = theirs.bottleneck[0]
    copied_without_bias(their, ours.bottleneck)
    for there, here in zip(theirs.decoder, ours.decoder, strict=True):
        copied([there.norm1], here.norm1)
        copied([there.norm2], here.norm2)
        copied([there.attn.qkv], here.qkv)
        copied([there.attn.proj], here.out)
        copied_without_bias(there.mlp, here.mlp)
    return theirs, ours


def copied_without_bias(their: Any, ours: nn.Sequential) -> None:
    """The two linear layers of an MLP."""
    linear = [module for module in ours if isinstance(module, nn.Linear)]
    for there, here in zip((their.fc1, their.fc2), linear, strict=True):
        here.weight.data.copy_(there.weight)
        here.bias.data.zero_()


# --- all ---


def compared(*, quick: bool) -> list[Line]:
    """Every comparison; `quick` leaves out the large networks."""
    work: list[Callable[[], Iterator[Line]]] = [
        lambda: reverse_distillation("resnet18", 128),
        lambda: efficientad("small"),
        lambda: dinomaly("vit_small_patch14_reg4_dinov2", 518),
    ]
    if not quick:
        work[1:1] = [lambda: reverse_distillation("resnet50", 256)]
        work[3:3] = [lambda: efficientad("medium")]
        work += [lambda: dinomaly("vit_base_patch14_reg4_dinov2", 518)]
    lines = []
    for one in work:
        torch.manual_seed(SEED)
        lines += one()
    return lines


def main() -> int:
    """Compare, print the page, and return 1 if maps that must be equal are not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without the large networks")
    parser.add_argument("--out", type=Path, help="write the page there")
    asked = parser.parse_args()
    lines = compared(quick=asked.quick)
    theirs, ours = wide_shapes()
    versions = {name: version(name) for name in ("anomalib", "torch", "timm")}
    equal = [line for line in lines if not line.why]
    page = PAGE.format(
        **versions,
        limit=LIMIT,
        equal="\n".join(map(str, equal)),
        different="\n".join(str(line) for line in lines if line.why),
        theirs=theirs,
        ours=ours,
    )
    print(page)
    if asked.out:
        asked.out.write_text(page)
    return int(any(line.apart > LIMIT for line in equal))


if __name__ == "__main__":
    raise SystemExit(main())
