"""Runtimes of exported detectors: from pixels to anomaly maps and image scores, without kdbench's methods.

A runtime that cannot compute in the requested precision, or on the requested device, raises an error.
"""

import importlib.metadata
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from kdbench.deploy.archive import load_program
from kdbench.deploy.metadata import TENSORS, rt_info
from kdbench.errors import RequestError, first_line, unknown
from kdbench.files import file_sha256

TORCH = "torch"  # the default; the latency of all rows that name no runtime
TENSORRT = "tensorrt"
INT8 = "int8"
PRECISIONS = ("fp32", "bf16", "fp16", INT8)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The package of a runtime, and what it can do."""

    package: str
    suffixes: tuple[str, ...]  # of the files that it runs; the first is exported for it
    precisions: tuple[str, ...]
    devices: tuple[str, ...]


# ONNX Runtime's kernels for processors have no bf16, and compute fp16 in fp32.
RUNTIMES = MappingProxyType(
    {
        TORCH: Kind(
            package="torch", suffixes=(".pt2",), precisions=("fp32", "bf16", "fp16"), devices=("cpu", "cuda")
        ),
        "torch-compile": Kind(
            package="torch", suffixes=(".pt2",), precisions=("fp32", "bf16", "fp16"), devices=("cpu", "cuda")
        ),
        "onnxruntime": Kind(
            package="onnxruntime", suffixes=(".onnx",), precisions=("fp32", INT8), devices=("cpu", "cuda")
        ),
        "openvino": Kind(
            package="openvino", suffixes=(".xml", ".onnx"), precisions=PRECISIONS, devices=("cpu",)
        ),
        TENSORRT: Kind(
            package="onnxruntime", suffixes=(".onnx",), precisions=("fp32", "fp16", INT8), devices=("cuda",)
        ),
    }
)


# The default runtime of a file.
RUNTIME_OF = {".pt2": TORCH, ".onnx": "onnxruntime", ".xml": "openvino"}


class Runtime(Protocol):
    """An exported detector that is ready to run."""

    name: str  # a key of RUNTIMES
    version: str
    precision: str

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Anomaly maps [B,S,S] and image scores [B] of RGB images uint8 [B,S,S,3]; larger is worse."""
        ...


def why_not(runtime: str, precision: str = "fp32", device: str = "cpu") -> str:
    """Why this runtime cannot run here in a precision, on a device (cpu, cuda, cuda:1); "" if it can."""
    if runtime not in RUNTIMES:
        return unknown("runtime", runtime, RUNTIMES)
    kind = RUNTIMES[runtime]
    if find_spec(kind.package) is None:
        return f'{runtime} is not installed: pip install "kdbench[deploy]"'
    if device.partition(":")[0] not in kind.devices:
        return f"{runtime} does not run on {device}: it runs on {' and '.join(kind.devices)}"
    if precision not in kind.precisions:
        return f"{runtime} does not compute in {precision}: it computes in {', '.join(kind.precisions)}"
    if runtime == "openvino":
        return _why_not_openvino(precision)
    provider = _provider(runtime, device)
    if kind.package == "onnxruntime" and provider not in _providers():
        return (
            f"{runtime} does not run on {device}: the installed onnxruntime has {', '.join(_providers())}, "
            f"not {provider}. Install onnxruntime-gpu in its place{_AND_TENSORRT[runtime == TENSORRT]}"
        )
    return ""


def open_runtime(
    path: str | Path,
    *,
    runtime: str,
    precision: str = "fp32",
    num_threads: int | None = None,
    device: str = "cpu",
) -> Runtime:
    """Load an exported detector: .pt2, .onnx or .xml, by the runtime.

    Without `num_threads` the runtime chooses the number; torch's holds for the whole process. int8 runs a
    quantised file, and only such a file.

    Raises RequestError if the runtime is not installed, does not support the precision or device, or cannot
    load the file.
    """
    path = Path(path)
    wrong = why_not(runtime, precision, device)
    if not wrong and path.suffix not in RUNTIMES[runtime].suffixes:
        wrong = f"{runtime} runs files {' and '.join(RUNTIMES[runtime].suffixes)}, not {path.name}"
    if not wrong and not path.is_file():
        wrong = f"there is no file {path}"
    if wrong:
        raise RequestError([wrong])
    opened: dict[str, Callable[..., Runtime]] = {
        "torch": _Torch,
        "onnxruntime": _OnnxRuntime,
        "openvino": _OpenVino,
    }
    try:
        return opened[RUNTIMES[runtime].package](path, runtime, precision, num_threads, device)
    except RequestError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no other type in common
        raise RequestError([f"{runtime} cannot load {path}: {first_line(error)}"]) from error


class _Torch:
    """An archive of torch.export, in eager mode or compiled."""

    def __init__(
        self, path: Path, runtime: str, precision: str, num_threads: int | None, device: str
    ) -> None:
        import torch

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.name, self.precision, self.version = runtime, precision, _version("torch")
        self._device = torch.device(device)
        module = load_program(path).module().to(self._device)
        if precision != "fp32":  # these nodes demand the fp32 that autocast is to replace
            for part in module.modules():  # code that runs without autocast is a part of its own
                if not isinstance(part, torch.fx.GraphModule):
                    continue
                for node in list(part.graph.nodes):
                    if node.target is torch.ops.aten._assert_tensor_metadata.default:
                        part.graph.erase_node(node)
                part.recompile()
        self._module: Callable[..., Any] = module
        if runtime == "torch-compile":
            self._module = torch.compile(module, dynamic=False)

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode(), self._autocast():
            maps, scores = self._module(torch.from_numpy(images).to(self._device))
        return maps.float().cpu().numpy(), scores.float().cpu().numpy()

    def _autocast(self) -> AbstractContextManager[Any]:
        import torch

        if self.precision == "fp32":
            return nullcontext()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        return torch.autocast(self._device.type, dtype)


class _OnnxRuntime:
    """ONNX Runtime, with its own kernels or with TensorRT's."""

    def __init__(
        self, path: Path, runtime: str, precision: str, num_threads: int | None, device: str
    ) -> None:
        import onnx
        import onnxruntime

        self.name, self.precision, self.version = runtime, precision, _version("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads or 0, 1
        options.log_severity_level = 3
        provider = _provider(runtime, device)
        settings: dict[str, Any] = {}
        if provider != "CPUExecutionProvider":
            settings["device_id"] = int(device.partition(":")[2] or 0)
        if runtime == TENSORRT:
            settings |= {"trt_fp16_enable": precision == "fp16", "trt_int8_enable": precision == INT8}
            # Else the processor would compute, in silence, the parts that TensorRT cannot run.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=[(provider, settings)], enable_fallback=False
        )
        operations = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        _check_quantised(path, precision, "QuantizeLinear" in operations)
        if self._session.get_providers()[0] != provider:
            libraries = f"CUDA and cuDNN{_AND_TENSORRT[runtime == TENSORRT]}"
            raise RequestError(
                [f"{runtime} does not run on {device}: {provider} did not start. It needs {libraries}"]
            )
        self._input = self._session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps, scores = self._session.run(None, {self._input: images})
        return maps, scores


class _OpenVino:
    """OpenVINO on the processor, one request at a time."""

    def __init__(
        self, path: Path, runtime: str, precision: str, num_threads: int | None, device: str
    ) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        written = rt_info(model, TENSORS)
        if written and written != file_sha256(path.with_suffix(".bin")):
            raise RequestError(
                [f"{path.with_suffix('.bin')} is not the one written with {path.name}. Copy the two together"]
            )
        operations = {operation.get_type_name() for operation in model.get_ops()}
        _check_quantised(path, precision, bool(operations & {"FakeQuantize", "FakeConvert"}))
        hint = _OPENVINO_HINTS.get(precision, "f32")  # with int8, all other operations are in fp32
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if num_threads is not None:
            settings["INFERENCE_NUM_THREADS"] = num_threads
        self.name, self.precision, self.version = runtime, precision, _version("openvino")
        compiled = core.compile_model(model, device.upper(), settings)
        self._request = compiled.create_infer_request()

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self._request.infer([images])
        maps, scores = (found[index] for index in range(2))
        return maps, scores


_AND_TENSORRT = {False: "", True: ", and tensorrt"}
_OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def _why_not_openvino(precision: str) -> str:
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.upper() in able:
        return ""
    return f"openvino does not compute in {precision} on this processor: it computes in {', '.join(able)}"


def _check_quantised(path: Path, precision: str, quantised: bool) -> None:
    """RequestError for int8 with a file that is not quantised, or another precision with a quantised file."""
    if quantised != (precision == INT8):
        what = "is quantised" if quantised else "is not quantised"
        raise RequestError([f"{path} {what}: it cannot run in {precision}"])


def _provider(runtime: str, device: str) -> str:
    """ONNX Runtime's name for the kernels of a runtime on a device."""
    if runtime == TENSORRT:
        return "TensorrtExecutionProvider"
    return "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _version(package: str) -> str:
    return importlib.metadata.version(package)
