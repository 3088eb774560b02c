"""Runtimes of exported detectors: equal numbers, and errors instead of silent changes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.deploy.archive import save_program
from kdbench.deploy.quantise import quantise
from kdbench.deploy.runtimes import RUNTIMES, open_runtime, why_not
from kdbench.errors import RequestError

pytest.importorskip("openvino", reason="needs the extra deploy")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


class Small(nn.Module):
    """From pixels to map and score, as a detector does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.layer(images.movedim(-1, 1).float() / 255).square().sum(1)
        return maps, maps.amax((1, 2))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, dynamic = tmp_path_factory.mktemp("exported"), ({0: torch.export.Dim("batch")},)
    module, example = Small().eval(), (torch.from_numpy(PIXELS[:2]),)
    program = torch.export.export(module, example, dynamic_shapes=dynamic)
    save_program(program, folder / "small.pt2", {})
    torch.onnx.export(
        module,
        example,
        folder / "small.onnx",
        dynamo=True,
        external_data=False,
        dynamic_shapes=dynamic,
        verbose=False,
    )
    return folder


@pytest.mark.parametrize(
    ("runtime", "name"), [("torch", "small.pt2"), ("onnxruntime", "small.onnx"), ("openvino", "small.onnx")]
)
def test_every_runtime_gives_what_the_module_gives_at_any_batch_size(files, runtime, name):
    opened = open_runtime(files / name, runtime=runtime, num_threads=1)
    assert (opened.name, opened.precision) == (runtime, "fp32")
    assert opened.version[0].isdigit()
    for count in (1, 3):
        maps, scores = opened.run(PIXELS[:count])
        with torch.no_grad():
            expected = Small()(torch.from_numpy(PIXELS[:count]))
        assert (maps.dtype, scores.shape) == (np.float32, (count,))
        np.testing.assert_allclose(maps, expected[0].numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores, expected[1].numpy(), rtol=1e-4)


@pytest.mark.slow
def test_the_compiled_module_gives_the_same(files):
    compiled = open_runtime(files / "small.pt2", runtime="torch-compile")
    eager = open_runtime(files / "small.pt2", runtime="torch")
    np.testing.assert_allclose(compiled.run(PIXELS)[0], eager.run(PIXELS)[0], rtol=1e-4, atol=1e-5)


def test_a_lower_precision_is_near_and_not_equal(files):
    fp32, bf16 = (open_runtime(files / "small.pt2", runtime="torch", precision=p) for p in ("fp32", "bf16"))
    exact, rounded = fp32.run(PIXELS)[0], bf16.run(PIXELS)[0]
    assert 0 < np.abs(rounded / exact - 1).max() < 0.05


def test_what_a_runtime_cannot_do_is_said(files, monkeypatch):
    def complaint(name, **asked):
        with pytest.raises(RequestError) as raised:
            open_runtime(files / name, **asked)
        (text,) = raised.value.complaints
        return text

    assert "Did you mean 'openvino'?" in complaint("small.onnx", runtime="openvno")
    assert "onnxruntime runs files .onnx, not small.pt2" in complaint("small.pt2", runtime="onnxruntime")
    assert "computes in fp32, int8" in complaint("small.onnx", runtime="onnxruntime", precision="bf16")
    assert "there is no file" in complaint("none.onnx", runtime="onnxruntime")
    assert "not quantised" in complaint("small.onnx", runtime="onnxruntime", precision="int8")
    assert "not quantised" in complaint("small.onnx", runtime="openvino", precision="int8")
    import onnxruntime

    has = f"the installed onnxruntime has {', '.join(onnxruntime.get_available_providers())}, not"
    assert complaint("small.onnx", runtime="onnxruntime", device="cuda") == (
        f"onnxruntime does not run on cuda: {has} CUDAExecutionProvider. Install onnxruntime-gpu in its place"
    )
    assert complaint("small.onnx", runtime="tensorrt", device="cuda") == (
        f"tensorrt does not run on cuda: {has} TensorrtExecutionProvider. "
        "Install onnxruntime-gpu in its place, and tensorrt"
    )
    assert complaint("small.onnx", runtime="tensorrt") == "tensorrt does not run on cpu: it runs on cuda"
    assert "openvino does not run on cuda" in complaint("small.onnx", runtime="openvino", device="cuda")
    (files / "damaged.onnx").write_bytes(b"no model")
    for runtime in ("onnxruntime", "openvino"):
        assert f"{runtime} cannot load" in complaint("damaged.onnx", runtime=runtime)


def test_a_file_of_int8_for_tensorrt_has_zero_at_0_and_no_bias_of_int32(files, tmp_path):
    """TensorRT reads no other: it refuses a zero point, and has no kernel for a bias in int32."""
    import onnx
    from onnx.numpy_helper import to_array

    for symmetric in (False, True):
        quantise(files / "small.onnx", tmp_path / "int8.onnx", PIXELS, symmetric=symmetric)
        graph = onnx.load(tmp_path / "int8.onnx").graph
        values = {tensor.name: to_array(tensor) for tensor in graph.initializer}
        read = [node for node in graph.node if node.op_type == "DequantizeLinear"]
        zeros = [values[node.input[2]] for node in read]
        of_int32 = [node for node in read if values.get(node.input[0], zeros[0]).dtype == np.int32]
        assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros) == symmetric
        assert bool(of_int32) != symmetric
        exact = open_runtime(files / "small.onnx", runtime="onnxruntime").run(PIXELS)[1]
        rounded = open_runtime(tmp_path / "int8.onnx", runtime="onnxruntime", precision="int8").run(PIXELS)[1]
        assert 0 < np.abs(rounded / exact - 1).max() < 0.05


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("kdbench.deploy.runtimes.find_spec", lambda name: None)
    for runtime in RUNTIMES:
        assert why_not(runtime) == f'{runtime} is not installed: pip install "kdbench[deploy]"'
