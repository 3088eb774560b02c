"""The embedded dataset: drawn on this machine, the same everywhere, so that nothing is downloaded."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from kdbench.dataset import Category, Dataset
from kdbench.datasets._draw import shots
from kdbench.datasets._layout import scan_layout
from kdbench.errors import DataError
from kdbench.files import build_once, cache_folder, not_cached


class Synthetic(Dataset):
    name = "synthetic"
    title = "Synthetic"
    categories = shots.CATEGORIES
    textures = shots.TEXTURES
    licence = "Apache-2.0, part of kdbench"
    source = "kdbench itself"
    profile = "demo"

    def root(self, given: Path | None) -> Path:
        folder = given or self._folder()
        if folder.is_dir():
            return folder.resolve()
        if folder.exists():
            raise DataError(f"{folder} is not a folder")
        try:
            return build_once(folder, shots.draw).resolve()
        except OSError as error:
            raise DataError(not_cached(error)) from error

    def drawn(self) -> bool:
        return self._folder().is_dir()

    @staticmethod
    def _folder() -> Path:
        return cache_folder() / f"synthetic-v{shots.VERSION}"

    def scan(self, root: Path, category: str) -> Category:
        return scan_layout(self, root, category, suffixes=(".png",))

    def digest(self, path: Path) -> str:
        # Of the pixels: the bytes of a PNG depend on the compressor, the drawing does not.
        with Image.open(path) as image:
            return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


DATASET = Synthetic
