"""Exported detectors: every method in every format gives what torch gives, from one file without pickle."""

import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.backbone import pyramid, teacher
from kdbench.deploy.archive import check_archive, load_program
from kdbench.deploy.export import OPSET, SUFFIXES, WRITERS, Traced
from kdbench.deploy.metadata import metadata_text
from kdbench.deploy.runtimes import open_runtime
from kdbench.engine.module import Deployed
from kdbench.errors import RequestError
from kdbench.method import Method
from kdbench.registry import get_method, method_names
from kdbench.weights import find_weights

RUNTIMES = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}  # by format
OF_A_TEST = '{"of": "a test"}'
SIZE = 64


LESS = {"dinomaly": {"levels": (3, 10)}}  # than the papers' depth, which only takes time
REAL = {"efficientad": "pdn_small.distilled", "dinomaly": "vit_small_patch14_reg4_dinov2.lvd142m"}
REAL_SIZE = {"dinomaly": 448}
QUICK = ("stfpm", "dcam", "efficientad")  # 32 images of these take seconds; those of Dinomaly 6 GB


def deployed(name: str, **changes: object) -> Deployed:
    """A method with the smallest network."""
    method = get_method(name)
    config = method.Config(
        **{"backbone": "tiny", "image_size": SIZE} | method.tiny | LESS.get(name, {}) | changes
    )
    torch.manual_seed(0)
    return used(method(config, teacher(config.backbone, config.levels, find_weights(config.backbone))))


def used(method: Method) -> Deployed:
    """The detector of a method, with statistics of BatchNorm that are not those of its start."""
    size = method.config.image_size
    images = torch.randn(4, 3, size, size)
    method.train()
    with torch.no_grad():
        method.anomaly_map(images, method.teacher(images))
    return Deployed(method)


def pixels(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def files_of(module: Deployed, folder: Path, name: str) -> dict[str, Path]:
    """The detector's file of each format."""
    traced, files = Traced(module, module.image_size), {}
    for kind, write in WRITERS.items():
        files[kind] = folder / f"{name}{SUFFIXES[kind]}"
        write(traced, files[kind], OF_A_TEST)
    return files


def check_equal(module: Deployed, files: dict[str, Path], counts: Sequence[int]) -> None:
    """Every file gives the maps and scores of torch, for batches of so many images."""
    sessions = {kind: open_runtime(path, runtime=RUNTIMES[kind]) for kind, path in files.items()}
    for count in counts:
        images = pixels(count, module.image_size)
        with torch.inference_mode():
            maps, scores = (found.numpy() for found in module(torch.from_numpy(images)))
        assert maps.shape == (count, module.image_size, module.image_size)
        for kind, session in sessions.items():
            found_maps, found_scores = session.run(images)
            assert np.abs(found_maps - maps).max() <= 1e-3 * np.abs(maps).max(), kind
            assert np.abs(found_scores - scores).max() <= 1e-3 * np.abs(scores).max(), kind
            assert found_maps.dtype == found_scores.dtype == np.float32


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Deployed, dict[str, Path]]]:
    """A method's detector and its file of each format; each method is exported once."""

    @cache
    def of(name: str) -> tuple[Deployed, dict[str, Path]]:
        module = deployed(name)
        return module, files_of(module, tmp_path_factory.mktemp(name), name)

    return of


@pytest.mark.parametrize("name", method_names())
def test_every_format_gives_what_torch_gives(exported, name):
    module, files = exported(name)
    check_archive(files["torch"])
    check_equal(module, files, (1, 3, 32))


@pytest.mark.parametrize("name", method_names())
def test_an_archive_runs_in_bf16(exported, name):
    _, files = exported(name)
    exact, rounded = (open_runtime(files["torch"], runtime="torch", precision=p) for p in ("fp32", "bf16"))
    maps, again = exact.run(pixels(3))[0], rounded.run(pixels(3))[0]
    assert 0 < np.abs(again - maps).max() < 0.05 * np.abs(maps).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", method_names())
def test_every_format_gives_what_torch_gives_at_real_sizes(name, tmp_path):
    """At 256 px with a ResNet-18, or as the method has it; weights are not needed to compare."""
    backbone, size = REAL.get(name, "resnet18.tv_in1k"), REAL_SIZE.get(name, 256)
    config = get_method(name).Config(backbone=backbone, image_size=size)
    torch.manual_seed(0)
    module = used(get_method(name)(config, pyramid(backbone, config.levels).requires_grad_(False)))
    counts = (1, 3, 32) if name in QUICK else (1, 3)
    check_equal(module, files_of(module, tmp_path, name), counts)


def test_tensors_of_another_detector_beside_a_graph_of_openvino_are_refused(exported, tmp_path):
    """Two detectors of one method fit one another, and their thresholds do not."""
    _, files = exported("stfpm")
    graph = Path(shutil.copy(files["openvino"], tmp_path))
    tensors = Path(shutil.copy(files["openvino"].with_suffix(".bin"), tmp_path))
    open_runtime(graph, runtime="openvino")
    content = bytearray(tensors.read_bytes())
    content[100] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(RequestError) as raised:
        open_runtime(graph, runtime="openvino")
    assert raised.value.complaints == (
        f"{tensors} is not the one written with {graph.name}. Copy the two together",
    )


def test_the_metadata_are_inside_of_every_format(exported):
    _, files = exported("stfpm")
    assert {kind: metadata_text(path) for kind, path in files.items()} == dict.fromkeys(files, OF_A_TEST)


def test_what_only_a_loss_uses_is_not_exported():
    assert any(name.startswith("method.student") for name in deployed("dcam").state_dict())
    assert not any("attention" in name for name in deployed("dcam").state_dict())


def test_a_detector_gives_what_its_method_gives_and_leaves_it_as_it_was():
    module = deployed("dcam")
    images = torch.from_numpy(pixels(2))
    normalised = (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = module.method.anomaly_map(normalised, module.method.teacher(normalised))
        maps, scores = module(images)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(scores, expected.amax((1, 2)))
    config = get_method("dcam").Config(backbone="tiny", image_size=SIZE)
    built = get_method("dcam")(config, teacher("tiny", (1, 2, 3), find_weights("tiny")))
    Deployed(built)
    assert hasattr(built, "attention")
    assert all(parameter.requires_grad for parameter in built.trained())


@pytest.mark.parametrize("crop", [28, 56])
def test_positions_of_a_transformer_are_interpolated_as_in_training(tmp_path, crop):
    config = get_method("dinomaly").Config(backbone="tiny_vit", image_size=SIZE, crop=crop, levels=(3, 10))
    torch.manual_seed(0)
    network = teacher("tiny_vit", config.levels, find_weights("tiny_vit"))
    torch.nn.init.normal_(network.body.network.pos_embed)  # of 4x4 places, for a crop of 2x2 or 4x4
    method = get_method("dinomaly")(config, network).eval()
    module, images = Deployed(method), pixels(2)
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = method.anomaly_map(normalised, method.teacher(normalised)).numpy()
    WRITERS["onnx"](Traced(module, module.image_size), tmp_path / "detector.onnx")
    maps, _ = open_runtime(tmp_path / "detector.onnx", runtime="onnxruntime").run(images)
    assert np.abs(maps - expected).max() <= 1e-5 * np.abs(expected).max()


class Harm:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, ("raise SystemExit('the file ran code')",)


@pytest.mark.parametrize(
    "part", ["data/sample_inputs/model.pt", "data/weights/model.pt", "data/aotinductor/a.so"]
)
def test_an_archive_with_a_pickle_or_code_is_not_read(exported, tmp_path, part):
    _, files = exported("stfpm")
    path = tmp_path / "hostile.pt2"
    with zipfile.ZipFile(files["torch"]) as good, zipfile.ZipFile(path, "w") as bad:
        root = good.namelist()[0].partition("/")[0]
        for name in good.namelist():
            if name != f"{root}/{part}":
                bad.writestr(name, good.read(name))
        bad.writestr(f"{root}/{part}", pickle.dumps(Harm()))
    with pytest.raises(RequestError, match="may hold a pickle or code"):
        load_program(path)


def test_an_archive_that_says_that_a_tensor_is_pickled_is_not_read(exported, tmp_path):
    _, files = exported("stfpm")
    path = tmp_path / "hostile.pt2"
    with zipfile.ZipFile(files["torch"]) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            bad.writestr(name, content.replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(RequestError, match=r"model_weights_config\.json may hold a pickle"):
        load_program(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\3\4"])
def test_a_file_that_is_no_archive_is_named(tmp_path, content):
    path = tmp_path / "detector.pt2"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=f"{path} is not an archive of torch.export"):
        load_program(path)


def test_onnx_states_its_opset_and_takes_any_number_of_images(exported):
    import onnx

    model = onnx.load(exported("stfpm")[1]["onnx"])
    onnx.checker.check_model(model)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    (taken,) = model.graph.input
    assert [d.dim_value or d.dim_param for d in taken.type.tensor_type.shape.dim] == ["batch", SIZE, SIZE, 3]
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [value.name for value in model.graph.output] == ["anomaly_map", "image_score"]
