"""The teacher: where its weights come from, that they fit, and that nothing is ever random in silence."""

import functools
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdbench.backbone import normalisation, pyramid, read_state, teacher
from kdbench.errors import RequestError
from kdbench.files import LFS_POINTER, file_sha256
from kdbench.weights import (
    BACKBONES,
    EMBEDDED,
    EMBEDDED_PACKAGE,
    RANDOM,
    Weights,
    cached_weights,
    find_weights,
)

RESNET = "resnet18.tv_in1k"
LEVELS = (1, 2, 3)
REAL = "weights/resnet18_imagenet_layers1to3_bnfolded.pth"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached_in(hub: Path, content: bytes = b"hub") -> Path:
    """The file that a download of resnet18.tv_in1k leaves in the hub's cache."""
    model = hub / "models--timm--resnet18.tv_in1k"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("abc")
    return written(model / "snapshots/abc/model.safetensors", content)


def written(path: Path, content: bytes = b"file") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def weights(path: Path) -> Weights:
    return Weights(path=str(path), source="file", sha256=file_sha256(path))


# --- the four ways, in their order ------------------------------------------------------------------------


def test_a_given_file_wins_over_every_other_way(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_in(hub)
    monkeypatch.setenv("KDBENCH_WEIGHTS", str(written(tmp_path / "folder/resnet18.pth").parent))
    path = written(tmp_path / "any name.pth", b"abc")
    found = find_weights(RESNET, path)
    assert found.path == str(path)
    assert found.source == "file any name.pth"
    assert found.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"


@pytest.mark.parametrize(
    "name", ["resnet18.pth", "resnet18-f37072fd.pth", "resnet18_imagenet.pt", "resnet18.tv_in1k.safetensors"]
)
def test_the_folder_wins_over_the_hubs_cache(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cached_in(hub)
    path = written(tmp_path / "folder" / name)
    for other in ("resnet180.pth", "wide_resnet18.pth", "resnet18.txt", "resnet50.pth"):
        written(path.with_name(other))
    monkeypatch.setenv("KDBENCH_WEIGHTS", str(path.parent))
    assert find_weights(RESNET) == Weights(path=str(path), source=f"file {name}", sha256=file_sha256(path))


def test_the_folder_wins_over_the_embedded_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "folder/tf_efficientnet_lite0.pth")
    monkeypatch.setenv("KDBENCH_WEIGHTS", str(path.parent))
    assert find_weights(EMBEDDED).path == str(path)


def test_a_folder_without_the_backbone_leaves_it_to_the_next_way(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached_in(hub)
    monkeypatch.setenv("KDBENCH_WEIGHTS", str(written(tmp_path / "folder/resnet50.pth").parent))
    assert find_weights(RESNET).path == str(path.resolve())
    assert find_weights(EMBEDDED).source == f"package {EMBEDDED_PACKAGE}"


def test_the_hubs_cache_is_used_without_a_network(hub: Path) -> None:
    path = cached_in(hub, b"abc")
    found = find_weights(RESNET)
    assert found.path == str(path)
    assert found.source == "hub timm/resnet18.tv_in1k"
    assert found.sha256.startswith("ba7816bf")
    assert cached_weights(RESNET) == found


def test_without_any_way_one_message_names_the_four(hub: Path) -> None:
    with pytest.raises(RequestError) as raised:
        find_weights(RESNET)
    (text,) = raised.value.complaints
    assert text.startswith("no weights for the teacher 'resnet18.tv_in1k' (")
    for way in ("--weights FILE", "KDBENCH_WEIGHTS", f"--backbone {EMBEDDED}", "network connection"):
        assert way in text
    assert "\n" not in text
    assert cached_weights(RESNET) is None


def test_several_files_for_a_backbone_are_not_guessed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("resnet18-a.pth", "resnet18-b.safetensors"):
        written(tmp_path / name)
    monkeypatch.setenv("KDBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(RequestError, match=r"several weights for resnet18: resnet18-a\.pth, "):
        find_weights(RESNET)


@pytest.mark.parametrize("name", ["resnet18.a1_in1k.safetensors", "resnet18_a1_0-d63eafa0.pth"])
def test_weights_that_are_named_as_others_of_the_architecture_are_never_taken(
    tmp_path: Path, hub: Path, name: str
) -> None:
    """They would fit: the rows would be those of another teacher."""
    path = written(tmp_path / name)
    with pytest.raises(RequestError, match=r"is named as other weights than resnet18\.tv_in1k"):
        find_weights(RESNET, path)
    with pytest.raises(RequestError, match=r"no weights for resnet18\.tv_in1k in the folder"):
        find_weights(RESNET, tmp_path)
    right = written(tmp_path / "resnet18-f37072fd.pth")
    assert find_weights(RESNET, tmp_path).path == str(right)


def test_torchvisions_second_weights_are_not_the_first(tmp_path: Path) -> None:
    for name, fits in (("wide_resnet50_2-95faca4d.pth", True), ("wide_resnet50_2-9ba9bcbe.pth", False)):
        path = written(tmp_path / name)
        if fits:
            assert find_weights("wide_resnet50_2.tv_in1k", path).path == str(path)
        else:
            with pytest.raises(RequestError, match="other weights"):
                find_weights("wide_resnet50_2.tv_in1k", path)


def test_a_weights_folder_that_does_not_exist_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDBENCH_WEIGHTS", str(tmp_path / "gone"))
    with pytest.raises(RequestError, match=r"weights folder '.*gone' does not exist"):
        find_weights(RESNET)


def test_a_given_folder_is_searched_like_the_variable(tmp_path: Path, hub: Path) -> None:
    path = written(tmp_path / "folder/resnet18.pth")
    assert find_weights(RESNET, path.parent).path == str(path)


@pytest.mark.parametrize("backbone", ["resnet18", "wide_resnet50_2", ""])
@pytest.mark.parametrize("given", [False, True])
def test_a_name_without_a_tag_is_refused_whatever_the_weights(
    tmp_path: Path, hub: Path, backbone: str, given: bool
) -> None:
    file = written(tmp_path / "weights.pth") if given else None
    with pytest.raises(RequestError, match="has no tag"):
        find_weights(backbone, file)


@pytest.mark.parametrize("backbone", ["resnet18.nope", "resnet19.tv_in1k", "../../x.y", "resnet18.embedded"])
@pytest.mark.parametrize("given", [False, True])
def test_an_unknown_backbone_is_refused_whatever_the_weights(
    tmp_path: Path, hub: Path, backbone: str, given: bool
) -> None:
    file = written(tmp_path / "weights.pth") if given else None
    with pytest.raises(RequestError) as raised:
        find_weights(backbone, file)
    assert backbone in str(raised.value)
    assert RESNET in str(raised.value)


# --- files that are not weights ---------------------------------------------------------------------------


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def _saved(path: Path, value: object, **options: bool) -> bytes:
    torch.save(value, path, **options)
    return path.read_bytes()


STATE = {"a": torch.arange(6.0), "b": torch.zeros(2, 3)}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ALONE = "Save the tensors alone: torch.save(model.state_dict(), FILE)"
EVIL = f"it holds the Python object posix.mkdir, and reading objects may run any code. {ALONE}"
HTML = "it begins with '<html>404 not found</html>', as neither torch.save nor safetensors writes it"
CUT = "it is damaged or cut off after {size} bytes. Get it again"
NOT_WEIGHTS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty.pth": (lambda p: b"", "it is empty"),
    "text.pth": (lambda p: b"<html>404 not found</html>\n", HTML),
    "pointer.pth": (lambda p: LFS, LFS_POINTER),
    "number.pth": (lambda p: b"0", "it begins with '0', as neither torch.save nor safetensors writes it"),
    "dots.pth": (lambda p: b"..\n", "it begins with '..', as neither torch.save nor safetensors writes it"),
    "truncated.pth": (
        lambda p: _saved(p, STATE)[:-200],
        CUT,
    ),
    "half.pth": (lambda p: _saved(p, STATE)[:300], CUT),
    "old half.pth": (
        lambda p: _saved(p, STATE, _use_new_zipfile_serialization=False)[:200],
        CUT,
    ),
    "old cut.pth": (
        lambda p: _saved(p, STATE, _use_new_zipfile_serialization=False)[:-7],
        CUT,
    ),
    "evil.pth": (lambda p: pickle.dumps(Evil(p.parent / "executed"), protocol=2), EVIL),
    "evil zip.pth": (lambda p: _saved(p, Evil(p.parent / "executed")), EVIL),
    "evil old.pth": (
        lambda p: _saved(p, Evil(p.parent / "executed"), _use_new_zipfile_serialization=False),
        EVIL,
    ),
    "list.pth": (lambda p: _saved(p, [torch.zeros(3)]), "it holds no dictionary of tensors but a list"),
    "tensor.pth": (lambda p: _saved(p, torch.zeros(3)), "it holds no dictionary of tensors but a Tensor"),
    "numbers.pth": (
        lambda p: _saved(p, {"a": 1.0}),
        f"it holds no dictionary of tensors but one with 1 other things: 'a'. {ALONE}",
    ),
    "nested.pth": (
        lambda p: _saved(p, {"model": STATE, "optimizer": {}, "epoch": 3}),
        "it holds no dictionary of tensors but one with 3 other things: 'model', 'optimizer', 'epoch'. "
        + ALONE,
    ),
    "listed.pth": (lambda p: _saved(p, {"state_dict": [1]}), "it holds no dictionary of tensors but a list"),
    "module.pth": (
        lambda p: _saved(p, torch.nn.Linear(2, 2)),
        "it holds the Python object torch.nn.modules.linear.Linear, and reading objects may run any code. "
        + ALONE,
    ),
    "empty.safetensors": (lambda p: b"", "it is empty"),
    "text.safetensors": (lambda p: b"<html>404 not found</html>\n", HTML),
    "pointer.safetensors": (lambda p: LFS, LFS_POINTER),
    "truncated.safetensors": (
        lambda p: (save_file(STATE, p), p.read_bytes()[:-9])[1],
        CUT,
    ),
    "pickle.safetensors": (lambda p: _saved(p, STATE), "torch.save wrote it. Rename it to .pth"),
    "safetensors.pth": (
        lambda p: (save_file(STATE, p), p.read_bytes())[1],
        "it is in the format safetensors. Rename it to .safetensors",
    ),
}


@pytest.mark.parametrize("name", NOT_WEIGHTS)
def test_a_file_that_is_not_weights_is_one_clear_error_that_never_advises_to_trust_it(
    tmp_path: Path, name: str
) -> None:
    make, message = NOT_WEIGHTS[name]
    path = written(tmp_path / name)
    path.write_bytes(make(path))
    with pytest.raises(RequestError) as raised:
        read_state(path)
    message = message.replace("{size}", str(path.stat().st_size))
    assert raised.value.complaints == (f"{path} is not a weights file: {message}",)
    assert not (tmp_path / "executed").exists()


def test_a_folder_is_not_a_weights_file(tmp_path: Path) -> None:
    for suffix in (".pth", ".safetensors"):
        folder = tmp_path / f"folder{suffix}"
        folder.mkdir()
        with pytest.raises(RequestError, match="is not a weights file"):
            read_state(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "resnet18.pth")
    path.chmod(0)
    with pytest.raises(RequestError, match=r"resnet18\.pth: Permission denied"):
        find_weights(RESNET, path)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"gone\.pth: No such file or directory"):
        find_weights(RESNET, tmp_path / "gone.pth")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
def test_weights_are_read_by_name(tmp_path: Path, name: str, wrapped: bool) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(STATE, path)
    else:
        torch.save({"state_dict": STATE, "epoch": 3} if wrapped else STATE, path)
    state = read_state(path)
    assert list(state) == ["a", "b"]
    assert state["a"].tolist() == [0, 1, 2, 3, 4, 5]


# --- weights that do not fit ------------------------------------------------------------------------------


@functools.cache
def random_state(backbone: str) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        return dict(pyramid(backbone, LEVELS).body.state_dict())


def own_weights(path: Path) -> dict[str, torch.Tensor]:
    """A file with random weights of the right shapes; what is in it."""
    torch.save(random_state(RESNET), path)
    return dict(random_state(RESNET))


def test_a_teacher_has_the_weights_of_the_file_and_is_frozen(tmp_path: Path) -> None:
    state = own_weights(tmp_path / "w.pth")
    network = teacher(RESNET, LEVELS, weights(tmp_path / "w.pth"))
    for name, tensor in network.body.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_more_tensors_than_the_pyramid_needs_may_be_in_the_file(tmp_path: Path) -> None:
    state = own_weights(tmp_path / "w.pth")
    torch.save(
        state | {"layer4.0.conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, tmp_path / "w.pth"
    )
    assert teacher(RESNET, LEVELS, weights(tmp_path / "w.pth")).channels == [64, 128, 256]


def test_files_from_before_the_batch_counter_fit(tmp_path: Path) -> None:
    state = own_weights(tmp_path / "w.pth")
    torch.save({n: t for n, t in state.items() if "num_batches" not in n}, tmp_path / "w.pth")
    assert teacher(RESNET, LEVELS, weights(tmp_path / "w.pth")).strides == [4, 8, 16]


def test_one_missing_tensor_is_an_error_that_names_it(tmp_path: Path) -> None:
    state = own_weights(tmp_path / "w.pth")
    del state["layer3.1.bn2.running_mean"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        RequestError, match=r"w\.pth does not fit .*: 1 of \d+ .*: layer3\.1\.bn2\.running_mean"
    ):
        teacher(RESNET, LEVELS, weights(tmp_path / "w.pth"))


@pytest.mark.parametrize("prefix", ["module.", "model.backbone."])
def test_a_prefix_of_all_names_is_named_with_what_to_do(tmp_path: Path, prefix: str) -> None:
    """DataParallel and training frameworks put one there."""
    state = own_weights(tmp_path / "w.pth")
    torch.save(
        {"state_dict": {"head.bias": torch.zeros(2)} | {prefix + name: t for name, t in state.items()}},
        tmp_path / "w.pth",
    )
    with pytest.raises(RequestError) as raised:
        teacher(RESNET, LEVELS, weights(tmp_path / "w.pth"))
    assert str(raised.value) == (
        f"{tmp_path}/w.pth does not fit {RESNET}: 75 of 90 tensors missing, 0 of another shape, first: "
        f"conv1.weight. The file has them as {prefix}conv1.weight: remove {prefix!r} from its names and save "
        "it again"
    )


def test_the_weights_of_another_network_are_an_error(tmp_path: Path) -> None:
    with torch.device("meta"):  # shapes only
        shapes = {n: t.shape for n, t in pyramid("wide_resnet50_2.tv_in1k", (1,)).body.state_dict().items()}
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "w.pth")
    with pytest.raises(RequestError, match=r"does not fit resnet18\.tv_in1k: .* of another shape"):
        teacher(RESNET, (1,), weights(tmp_path / "w.pth"))


def test_the_weights_of_a_deeper_network_are_an_error_though_all_tensors_are_there(tmp_path: Path) -> None:
    """A ResNet-34 begins each stage as a ResNet-18."""
    state = own_weights(tmp_path / "w.pth")
    for name in ("layer1.2.conv1.weight", "layer4.2.conv1.weight"):
        torch.save(state | {name: torch.zeros(3)}, tmp_path / "w.pth")
        with pytest.raises(RequestError) as raised:
            teacher(RESNET, LEVELS, weights(tmp_path / "w.pth"))
        assert str(raised.value) == (
            f"{tmp_path}/w.pth does not fit {RESNET}: it has 1 tensors that this network "
            f"does not have, first: {name}"
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.to(torch.int8), "has the type torch.int8; weights are floating-point"),
        (lambda t: t.to(torch.complex64), "has the type torch.complex64; weights are floating-point"),
        (lambda t: t * torch.nan, "has values that are NaN or infinite"),
        (lambda t: t / 0, "has values that are NaN or infinite"),
    ],
)
def test_weights_that_no_training_gives_are_an_error(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    state = own_weights(tmp_path / "w.pth")
    name = "layer2.0.conv1.weight"
    torch.save(state | {name: change(state[name])}, tmp_path / "w.pth")
    with pytest.raises(RequestError) as raised:
        teacher(RESNET, LEVELS, weights(tmp_path / "w.pth"))
    assert str(raised.value) == f"{tmp_path}/w.pth: {name} {said}"


def test_foreign_names_are_an_error(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    with pytest.raises(RequestError, match=r"does not fit .*\. The file has 2 tensors, first: a, b$"):
        teacher(RESNET, LEVELS, weights(tmp_path / "w.pth"))
    with pytest.raises(RequestError, match="shapes of tf_efficientnet_lite0"):
        teacher(EMBEDDED, LEVELS, weights(tmp_path / "w.pth"))


# --- networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["tiny", RESNET, EMBEDDED])
def test_building_a_teacher_does_not_move_the_random_state(tmp_path: Path, backbone: str) -> None:
    own_weights(tmp_path / "w.pth")
    found = find_weights(backbone, tmp_path / "w.pth" if backbone == RESNET else None)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    teacher(backbone, LEVELS, found)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_tiny_teacher_is_the_same_whatever_the_seed() -> None:
    found = find_weights("tiny")
    torch.manual_seed(1)
    first = teacher("tiny", LEVELS, found).state_dict()
    torch.manual_seed(2)
    second = teacher("tiny", LEVELS, found).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_student_depends_on_the_seed() -> None:
    torch.manual_seed(1)
    first = pyramid("tiny", LEVELS).state_dict()["body.stem.weight"]
    torch.manual_seed(2)
    assert not torch.equal(first, pyramid("tiny", LEVELS).state_dict()["body.stem.weight"])


@pytest.mark.parametrize(
    ("backbone", "levels", "channels", "strides"),
    [
        ("tiny", (1, 2, 3), [8, 16, 24], [4, 8, 16]),
        ("tiny", (2, 4), [16, 32], [8, 32]),
        (RESNET, (1, 2, 3), [64, 128, 256], [4, 8, 16]),
        (RESNET, (2,), [128], [8]),
        (EMBEDDED, (1, 2, 3), [24, 40, 112], [4, 8, 16]),
        (EMBEDDED, (1, 2), [24, 40], [4, 8]),
    ],
)
def test_levels_have_their_channels_and_strides_and_nothing_is_computed_past_them(
    backbone: str, levels: tuple[int, ...], channels: list[int], strides: list[int]
) -> None:
    network = pyramid(backbone, levels)
    assert network.channels == channels
    assert network.strides == strides
    maps = network(torch.randn(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 64 // s) for c, s in zip(channels, strides, strict=True)
    ]
    torch.stack([m.square().mean() for m in maps]).sum().backward()
    unread = [name for name, p in network.named_parameters() if p.grad is None]
    assert unread == []


@pytest.mark.parametrize("backbone", ["tiny", RESNET])
@pytest.mark.parametrize("levels", [(9,), (0, 9), (-1,), (-9,), (1, 1), (2, 1)])
def test_levels_that_do_not_exist_or_are_out_of_order_are_an_error(
    backbone: str, levels: tuple[int, ...]
) -> None:
    """timm gives levels in its own order and counts negative ones from the end: no name for two things."""
    with pytest.raises(RequestError, match="level"):
        pyramid(backbone, levels)


def test_the_tiny_backbone_has_no_level_zero() -> None:
    with pytest.raises(RequestError, match="level"):
        pyramid("tiny", (0, 1))


def test_an_unknown_architecture_is_an_error_that_names_it() -> None:
    with pytest.raises(RequestError, match=r"nonsense\.embedded"):
        pyramid("nonsense.embedded", LEVELS)


def test_the_embedded_teacher_has_imagenet_weights() -> None:
    network = teacher(EMBEDDED, LEVELS, find_weights(EMBEDDED))
    state = network.body.state_dict()
    assert normalisation(EMBEDDED) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    # In the right order:
    # no variance is below zero, a batch counter is a whole number, means are of both signs.
    assert all(bool((t >= 0).all()) for name, t in state.items() if name.endswith("running_var"))
    assert all(t.dtype == torch.int64 for name, t in state.items() if name.endswith("num_batches_tracked"))
    assert all(bool((t < 0).any() and (t > 0).any()) for n, t in state.items() if n.endswith("running_mean"))
    raw = list(read_state(Path(find_weights(EMBEDDED).path)).values())
    assert torch.equal(state["conv_stem.weight"], raw[0])


def test_the_embedded_weights_are_those_of_the_package() -> None:
    found = find_weights(EMBEDDED)
    assert found.source == f"package {EMBEDDED_PACKAGE}"
    assert found.sha256 == file_sha256(Path(found.path))
    assert Path(found.path).suffix == ".pth"


def test_the_papers_backbones_are_normalised_as_torchvision_did() -> None:
    for backbone in BACKBONES:
        if backbone.endswith(".tv_in1k"):
            assert normalisation(backbone) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_real_resnet18_has_its_parameters_and_shapes(shared: Path) -> None:
    network = teacher(RESNET, LEVELS, find_weights(RESNET, shared / REAL))
    assert sum(p.numel() for p in network.parameters()) == 2_782_784
    maps = network(torch.zeros(1, 3, 256, 256))
    assert [tuple(m.shape) for m in maps] == [(1, 64, 64, 64), (1, 128, 32, 32), (1, 256, 16, 16)]
    assert all(bool(torch.isfinite(m).all() and (m >= 0).all() and m.std() > 0) for m in maps)


def test_other_real_weights_do_not_fit_resnet18(shared: Path) -> None:
    (other,) = (shared / "weights").glob("squeezenet*")
    with pytest.raises(RequestError, match=r"does not fit resnet18\.tv_in1k"):
        teacher(RESNET, LEVELS, find_weights(RESNET, other))


def test_known_backbones_are_named_with_a_tag() -> None:
    assert all("." in name or name in RANDOM for name in BACKBONES)
    assert EMBEDDED in BACKBONES


def test_a_student_starts_as_torchvision_starts_it():
    """timm would start the last normalisation of every residual block at 0: every block switched off."""
    scales = [
        m.weight for m in pyramid("resnet18.tv_in1k", (1, 2, 3)).modules() if hasattr(m, "running_mean")
    ]
    assert len(scales) == 15
    assert all((scale == 1).all() for scale in scales)


def test_a_torchvision_of_another_build_than_torch_is_a_complaint_with_advice(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    said = r"torchvision does not fit torch: operator torchvision::nms does not exist\. Install both"
    with pytest.raises(RequestError, match=said):
        pyramid("resnet18.tv_in1k", (1, 2))
