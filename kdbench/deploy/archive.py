"""Archives of torch.export (.pt2), written and read without pickle.

torch writes its example inputs as a pickle. Its reader runs pickles and libraries that it finds in one of
several places. So kdbench leaves the inputs out, and reads no archive that holds more than raw tensors, JSON
and texts.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import RequestError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Entries below the folder that is the archive's root.
_RAW = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id|models/model\.json"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+|extra/[\w.]+"
)
_CONFIG = re.compile(r"data/(?:weights/model_weights|constants/model_constants)_config\.json")
_EMPTY = "data/sample_inputs/model.pt"


def save_program(program: "ExportedProgram", path: Path, extra: dict[str, str]) -> None:
    """Write an archive of a program; `extra` are texts to store beside it, by name."""
    import torch

    inputs, program.example_inputs = program.example_inputs, None
    try:
        with path.open("wb") as file:  # given a path, torch would want another suffix
            torch.export.save(program, file, extra_files=extra)
    finally:
        program.example_inputs = inputs


def load_program(path: Path) -> "ExportedProgram":
    """The program of an archive; RequestError for another file, or one with a pickle or machine code."""
    import torch

    check_archive(path)
    return torch.export.load(path)


def read_extra(path: Path, name: str) -> str:
    """A text that was saved beside the program; "" if there is none. RequestError as `load_program`."""
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.partition("/")[2] == f"extra/{name}":
                return archive.read(entry).decode()
    return ""


def check_archive(path: Path) -> None:
    """RequestError if the file is no archive of torch.export, or may run code when torch reads it."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = _wrong(archive)
    except (zipfile.BadZipFile, ValueError) as error:
        raise RequestError([f"{path} is not an archive of torch.export: {error}"]) from error
    if wrong:
        raise RequestError([f"{path} is not read: its part {wrong} may hold a pickle or code"])


def _wrong(archive: zipfile.ZipFile) -> str:
    """The first part that is not raw tensors, JSON or text; "" if there is none."""
    seen = set()
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        config = _CONFIG.fullmatch(name)
        if entry.filename in seen or not (config or _RAW.fullmatch(name) or name == _EMPTY):
            return entry.filename
        if name == _EMPTY and entry.file_size:
            return entry.filename
        if config and any(part["use_pickle"] for part in json.loads(archive.read(entry))["config"].values()):
            return entry.filename
        seen.add(entry.filename)
    return ""
