"""Export a detector as a file that runs without kdbench: ONNX, OpenVINO IR or torch.export, in float32.

The number of images of a batch is free in all of them. Nothing is pickled.
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.deploy.archive import save_program
from kdbench.deploy.metadata import NAME, PROPERTY, TENSORS
from kdbench.errors import RequestError
from kdbench.files import file_sha256, written_aside

if TYPE_CHECKING:
    import openvino
    from torch import nn
    from torch.onnx import ONNXProgram

OPSET = 20  # of ONNX
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
OUTPUTS = ("anomaly_map", "image_score")
NEEDS = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino"), "torch": ()}
LARGEST_ONNX = 2**31 - 1  # bytes of a protobuf


def check_packages(format: str) -> None:
    """RequestError if a package that this format needs is not installed."""
    missing = [name for name in NEEDS[format] if find_spec(name) is None]
    if missing:
        raise RequestError(
            [f'the format {format} needs {" and ".join(missing)}: pip install "kdbench[deploy]"']
        )


class Traced:
    """The graph of a detector for images of SIZE x SIZE pixels; the files of all formats are made from it."""

    def __init__(self, module: "nn.Module", size: int) -> None:
        import torch

        example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
        batch = torch.export.Dim("batch", min=1)
        with _quiet():
            self.program = torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}})

    @cached_property
    def onnx(self) -> "ONNXProgram":
        """The graph as ONNX; RequestError if a package is missing, or the detector is too large for it."""
        import torch

        check_packages("onnx")
        if (size := sum(tensor.nbytes for tensor in self.program.state_dict.values())) > LARGEST_ONNX:
            raise RequestError([f"its tensors take {size} bytes, and an ONNX file holds 2 GiB: take torch"])
        with _quiet():
            program = torch.onnx.export(
                self.program, dynamo=True, opset_version=OPSET, verbose=False, output_names=OUTPUTS
            )
        assert program is not None
        for value in (*program.model.graph.inputs, *program.model.graph.outputs):
            assert value.shape is not None
            value.shape[0] = "batch"
        return program


def export_torch(traced: Traced, path: Path, metadata: str = "") -> None:
    """Write an archive of torch.export (.pt2)."""
    with written_aside(path) as aside, _quiet():
        save_program(traced.program, aside, {NAME: metadata})


def export_onnx(traced: Traced, path: Path, metadata: str = "") -> None:
    """Write ONNX; RequestError if it cannot be written."""
    program = traced.onnx
    program.model.metadata_props[PROPERTY] = metadata
    with written_aside(path) as aside:
        program.save(aside, external_data=False)


def export_openvino(traced: Traced, path: Path, metadata: str = "") -> None:
    """Write OpenVINO's IR: the graph at `path` (.xml) and the tensors beside it (.bin), by way of ONNX."""
    check_packages("openvino")
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as folder:
        graph = Path(folder) / "detector.onnx"
        traced.onnx.save(graph, external_data=False)
        model = openvino.Core().read_model(graph)
        model.set_rt_info(metadata, [PROPERTY])
        save_ir(model, graph.with_suffix(".xml"))
        for suffix in (".bin", ".xml"):
            graph.with_suffix(suffix).replace(path.with_suffix(suffix))


def save_ir(model: "openvino.Model", path: Path) -> None:
    """Write a model's graph (.xml) and tensors (.bin); the graph keeps a hash of the tensors' file."""
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
    model.set_rt_info(file_sha256(path.with_suffix(".bin")), [TENSORS])
    openvino.save_model(model, path, compress_to_fp16=False)


WRITERS = {"onnx": export_onnx, "openvino": export_openvino, "torch": export_torch}


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without the warnings of torch's exporters about their own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
