"""A folder of photographs from which a teacher is distilled; each is read when it is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdbench.cell import digest_of
from kdbench.picture import images_below, open_image, resized


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Images in the order of their paths; `fingerprint` is a hash of their names and sizes in bytes.

    Their content is not hashed: it may be a hundred gigabytes.
    """

    paths: Sequence[Path]
    fingerprint: str

    def read(self, index: int, sizes: Sequence[int], *, grey: bool) -> list[np.ndarray]:
        """One image as uint8 [S,S,3] for every size, without its colours if it is to be grey.

        Raises DataError if it cannot be read.
        """
        image = open_image(self.paths[index]).image
        if grey:
            image = image.convert("L").convert("RGB")
        return [resized(image, size) for size in sizes]


def find_photographs(folder: Path) -> Photographs:
    """The photographs below a folder; DataError if there is none."""
    paths = images_below(folder)
    named = [[path.relative_to(folder).as_posix(), path.stat().st_size] for path in paths]
    return Photographs(paths=paths, fingerprint=digest_of(named)[:20])
