"""Teacher features on disk: computed once per image, teacher and precision, for all processes of a machine.

They depend on nothing else, so all methods, seeds and both settings share them. A store is a folder with one
memory-mapped file per level, [N,H,W,C] in the dtype of the teacher's output.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from kdbench.cell import digest_of
from kdbench.files import build_once, cache_folder

# The features of one cell may take this share of the free space in the cache folder.
DISK_SHARE = 0.25

# NumPy has no bfloat16: its bits are stored as int16, and the file's name says so.
BITS = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}

Teach = Callable[[np.ndarray], list[Tensor]]  # uint8 [B,S,S,3] -> the levels [B,C,h,w]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The images of several stores, one store after another; `rows` are the images that are used.

    `names` identify the content of the stores, `made_by` everything else that the features depend on.
    """

    names: Sequence[str]
    pixels: Sequence[np.ndarray]
    rows: np.ndarray
    made_by: str

    def fits(self, bytes_per_image: int) -> bool:
        """Whether the features that are not on disk yet fit into DISK_SHARE of the free space."""
        missing = sum(
            len(pixels)
            for name, pixels in zip(self.names, self.pixels, strict=True)
            if not self._folder(name).is_dir()
        )
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return missing * bytes_per_image <= DISK_SHARE * shutil.disk_usage(folder).free

    def open(self, teach: Teach, batch_size: int) -> "Features":
        """Map the features; compute those first that no process has computed."""
        stores = []
        for name, pixels in zip(self.names, self.pixels, strict=True):
            build = partial(_write, pixels=pixels, teach=teach, batch_size=batch_size)
            folder = build_once(self._folder(name), build)
            stores.append([_map(path) for path in sorted(folder.glob("level*.npy"))])
        return Features(stores, self.rows)

    def _folder(self, name: str) -> Path:
        digest = digest_of([name, self.made_by])[:12]
        return cache_folder() / "features" / f"{name}-{digest}"


class Features:
    """The levels of the images `rows` of several stores, memory-mapped."""

    def __init__(self, stores: Sequence[Sequence[Tensor]], rows: np.ndarray) -> None:
        self.stores = stores
        ends = np.cumsum([len(levels[0]) for levels in stores])
        self.store = np.searchsorted(ends, rows, side="right")
        self.row = rows - np.concatenate([[0], ends])[self.store]

    def take(self, index: Tensor) -> list[Tensor]:
        """The levels [B,C,h,w] of these images, channels-last, on the device of `index`."""
        chosen = index.cpu().numpy()
        places = list(zip(self.store[chosen].tolist(), self.row[chosen].tolist(), strict=True))
        levels = range(len(self.stores[0]))
        stacked = [torch.stack([self.stores[store][level][row] for store, row in places]) for level in levels]
        return [level.to(index.device, non_blocking=True).permute(0, 3, 1, 2) for level in stacked]


def _write(folder: Path, pixels: np.ndarray, teach: Teach, batch_size: int) -> None:
    """Write one file per level, batch after batch; the name of the file says its dtype."""
    files: list[BinaryIO] = []
    try:
        for first in range(0, len(pixels), batch_size):
            levels = [
                level.permute(0, 2, 3, 1).contiguous().cpu() for level in teach(pixels[first:][:batch_size])
            ]
            if not files:
                for number, level in enumerate(levels):
                    dtype = str(level.dtype).removeprefix("torch.")
                    files.append((folder / f"level{number}.{dtype}.npy").open("wb"))
                    descr = np.lib.format.dtype_to_descr(np.dtype(BITS[level.dtype]))
                    header = {
                        "descr": descr,
                        "fortran_order": False,
                        "shape": (len(pixels), *level.shape[1:]),
                    }
                    np.lib.format.write_array_header_2_0(files[-1], header)
            for file, level in zip(files, levels, strict=True):
                bits = level.view(torch.int16) if level.dtype == torch.bfloat16 else level
                file.write(bits.numpy().tobytes())
    finally:
        for file in files:
            file.close()


def _map(path: Path) -> Tensor:
    # Copy-on-write: torch needs writable memory, and what it writes must not reach the file.
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    return mapped.view(torch.bfloat16) if path.name.endswith(".bfloat16.npy") else mapped
