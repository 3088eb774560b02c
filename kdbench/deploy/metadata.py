"""The metadata of an exported detector, in its file and in the JSON beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kdbench.deploy.threshold import Threshold
from kdbench.errors import RequestError, first_line

if TYPE_CHECKING:
    import openvino

NAME = "kdbench.json"  # of the metadata inside of an archive; ONNX and OpenVINO have a property `kdbench`
PROPERTY = "kdbench"
# A property of OpenVINO's graph (.xml): the SHA-256 of the file of its tensors (.bin).
TENSORS = "kdbench_tensors"


class Scale(BaseModel):
    """Two values of the anomaly maps of normal images: the median (low) and the largest value (high)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float


class Metadata(BaseModel):
    """Which cell an exported detector comes from, how images become pixels for it, and its threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    cell_id: str
    method: str
    config: dict[str, Any]
    dataset: str
    setting: str
    category: str
    categories: tuple[str, ...]  # whose normal images it was trained on
    seed: int
    profile: str
    teacher_source: str
    teacher_sha256: str
    image_size: int  # the side of the square, in pixels
    input: str = "images: uint8 RGB [B,S,S,3]; the detector normalises them itself"
    outputs: str = "anomaly_map: float32 [B,S,S]; image_score: float32 [B]; larger is more anomalous"
    resize_rule: str  # how a file becomes pixels
    precision: str = "fp32"
    licences: dict[str, str]  # of the training images, the authors' code and the teacher, as far as known
    trained_with: dict[str, str]
    versions: dict[str, str]  # of the packages that exported it
    threshold: Threshold | None = None
    scale: Scale | None = None

    def text(self) -> str:
        """The metadata as JSON that people can read."""
        return self.model_dump_json(indent=2)


def beside(path: Path) -> Path:
    """The JSON beside an exported detector: the metadata, and how it was compared with torch."""
    return path.with_name(f"{path.name}.json")


def read_metadata(path: Path) -> Metadata:
    """The metadata inside of an exported detector; RequestError if it has none that this kdbench reads."""
    try:
        return Metadata.model_validate_json(metadata_text(path))
    except ValidationError as error:
        raise RequestError([f"the metadata of {path} are not kdbench's: {first_line(error)}"]) from error


def metadata_text(path: Path) -> str:
    """The text in an exported detector, "" if there is none; RequestError if it cannot be read."""
    if path.suffix not in _READERS:
        kinds = ", ".join(_READERS)
        raise RequestError([f"{path} is no exported detector: its name ends with one of {kinds}"])
    if not path.is_file():
        raise RequestError([f"there is no file {path}"])
    try:
        return _READERS[path.suffix](path)
    except RequestError:
        raise
    except Exception as error:  # the readers' errors have no other type in common
        raise RequestError([f"cannot read {path}: {first_line(error)}"]) from error


def _of_archive(path: Path) -> str:
    from kdbench.deploy.archive import read_extra

    return read_extra(path, NAME)


def _of_onnx(path: Path) -> str:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return next((entry.value for entry in model.metadata_props if entry.key == PROPERTY), "")


def _of_openvino(path: Path) -> str:
    import openvino

    return rt_info(openvino.Core().read_model(path), PROPERTY)


def rt_info(model: "openvino.Model", name: str) -> str:
    """A property of OpenVINO's graph; "" if it has none of this name."""
    return str(model.get_rt_info([name]).astype(str)) if model.has_rt_info([name]) else ""


_READERS = {".pt2": _of_archive, ".onnx": _of_onnx, ".xml": _of_openvino}
