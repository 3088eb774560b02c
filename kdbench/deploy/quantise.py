"""Make int8 files of exported detectors, calibrated on normal images."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kdbench.deploy.export import save_ir

if TYPE_CHECKING:
    from onnx import ModelProto

NUM_CALIBRATION = 64  # images whose activations set the ranges; NNCF's default of 300 takes minutes


def calibration_images(images: np.ndarray) -> np.ndarray:
    """At most NUM_CALIBRATION of the images [N,S,S,3], evenly spaced in their order."""
    count = min(len(images), NUM_CALIBRATION)
    return np.ascontiguousarray(images[np.linspace(0, len(images) - 1, count).round().astype(int)])


def quantise(source: Path, target: Path, images: np.ndarray, *, symmetric: bool = False) -> None:
    """Write an int8 version of an ONNX file; `images` are normal training images uint8 [N,S,S,3].

    The suffix of `target` chooses the runtime: .xml is for OpenVINO, by NNCF's post-training quantisation;
    .onnx is for ONNX Runtime, by its static quantisation of convolutions and products of matrices, per
    channel. All else stays in fp32. With `symmetric` zero is 0 in every range of an .onnx, and biases stay in
    fp32: TensorRT reads no other file. Errors of the two packages pass through.
    """
    if target.suffix == ".xml":
        _quantise_openvino(source, target, images)
    else:
        _quantise_onnx(source, target, images, symmetric)


def _quantise_openvino(source: Path, target: Path, images: np.ndarray) -> None:
    import nncf
    import openvino

    with _quiet("nncf"):
        model = openvino.Core().read_model(source)
        calibration = nncf.Dataset([image[None] for image in images])
        quantised = nncf.quantize(model, calibration, subset_size=len(images))
    save_ir(quantised, target)


def _quantise_onnx(source: Path, target: Path, images: np.ndarray, symmetric: bool) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        """Gives ONNX Runtime one image after another."""

        def __init__(self, name: str) -> None:
            self.left = iter([{name: image[None]} for image in images])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder, _quiet("root"):
        prepared = Path(folder) / "prepared.onnx"  # batch normalisation becomes part of the convolutions
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(_input_of(prepared)),
            op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
        )


def _input_of(path: Path) -> str:
    import onnx

    model: ModelProto = onnx.load(path, load_external_data=False)
    return str(model.graph.input[0].name)


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """A context in which a package prints only errors."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # NNCF draws a bar
            yield
    finally:
        log.setLevel(before)
