"""Which cells are of images that changed since: of each set of images the content that ran last counts.

A row does not know where its images lie, only their content (`fingerprint`). Rows of one dataset, one split
file and the same categories are taken for rows of the same images. If they differ in the fingerprint, the
images changed, or a label did: the fingerprint of the cell that started last counts, and the rows of every
other are superseded. Where two fingerprints started last at the same second, or nobody knows when, none is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# What has to be known of a cell; its category and seed do not matter.
COLUMNS = ("cell_id", "dataset", "categories", "fingerprint", "split_sha256", "started_at")


@dataclass(frozen=True, kw_only=True)
class Superseded:
    """Why the rows of a cell do not count."""

    fingerprint: str  # of the content that counts
    since: str  # when the first cell of that content started


def superseded(cells: Iterable[Mapping[str, Any]]) -> dict[str, Superseded]:
    """Cell id -> what counts instead, of all cells of superseded content; `cells` have COLUMNS."""
    contents: dict[tuple[Any, ...], dict[str, list[tuple[str, str]]]] = {}
    for cell in cells:
        fingerprint, split, started = (_text(cell[name]) for name in COLUMNS[-3:])
        if fingerprint and cell["categories"] is not None:
            images = (cell["dataset"], split, tuple(sorted(cell["categories"])))
            contents.setdefault(images, {}).setdefault(fingerprint, []).append((started, cell["cell_id"]))
    found = dict[str, Superseded]()
    for of_images in contents.values():
        last = {fingerprint: max(started for started, _ in own) for fingerprint, own in of_images.items()}
        newest, *others = sorted(last, key=lambda fingerprint: last[fingerprint], reverse=True)
        if others and last[newest] > last[others[0]]:
            instead = Superseded(fingerprint=newest, since=min(started for started, _ in of_images[newest]))
            found |= {cell_id: instead for other in others for _, cell_id in of_images[other]}
    return found


def _text(value: object) -> str:
    """A text, "" where a frame or a table has none."""
    return value if isinstance(value, str) else ""
