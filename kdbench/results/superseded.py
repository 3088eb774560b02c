"""Find cells whose images changed since: of each set of images, the content that ran last counts.

A row does not know where its images lie, only their content (`fingerprint`). Rows of one dataset, one split
file and the same categories are taken for rows of the same images. If they differ in the fingerprint, the
images changed, or a label did. What counts is the fingerprint of the cell that started last, or that the last
run asked for and found finished, as it does when a change is taken back. The rows of every other fingerprint
are superseded. If the last two began in the same second, or at an unknown time, none is.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kdbench.errors import DataError
from kdbench.results.storage import Storage
from kdbench.results.store import RUNS

# What has to be known of a cell; its category and seed do not matter.
COLUMNS = ("cell_id", "dataset", "categories", "status", "fingerprint", "split_sha256", "started_at")


@dataclass(frozen=True, kw_only=True)
class Superseded:
    """Why the rows of a cell do not count."""

    fingerprint: str  # of the content that counts
    since: str  # when the first cell of that content started


def superseded(
    cells: Iterable[Mapping[str, Any]], asked: Callable[[], Mapping[str, str]]
) -> dict[str, Superseded]:
    """Cell id -> what counts instead, for all cells of superseded content; `cells` have COLUMNS.

    `asked` returns the `last_asked` of the same folder; it is only called if images changed.
    """
    contents: dict[tuple[Any, ...], dict[str, list[tuple[str, str]]]] = {}
    for cell in cells:
        fingerprint, split, started = (_text(cell[name]) for name in COLUMNS[-3:])
        if fingerprint and cell["categories"] is not None:
            images = (cell["dataset"], split, tuple(sorted(cell["categories"])))
            if cell["status"] == "failed":  # perhaps because the images changed before it started
                started = ""
            contents.setdefault(images, {}).setdefault(fingerprint, []).append((started, cell["cell_id"]))
    found = dict[str, Superseded]()
    changed = [of_images for of_images in contents.values() if len(of_images) > 1]
    runs = asked() if changed else {}
    for of_images in changed:
        last = {
            fingerprint: max(max(started, runs.get(cell_id, "")) for started, cell_id in own)
            for fingerprint, own in of_images.items()
        }
        newest, *others = sorted(last, key=lambda fingerprint: last[fingerprint], reverse=True)
        if last[newest] > last[others[0]]:
            instead = Superseded(fingerprint=newest, since=min(started for started, _ in of_images[newest]))
            found |= {cell_id: instead for other in others for _, cell_id in of_images[other]}
    return found


def last_asked(storage: Storage) -> dict[str, str]:
    """Cell id -> when the last run began that ran it or found it finished, in the format of `started_at`."""
    found = dict[str, str]()
    for name in RUNS.names(storage):
        try:
            run = json.loads(storage.read(name))
            began = datetime.fromtimestamp(run["started"], UTC).isoformat(timespec="seconds")
            cell_ids = [*run["cells"], *run.get("finished", ())]
        except (ValueError, KeyError, TypeError) as error:
            path = storage.path(name)
            raise DataError(f"{path} is damaged. Delete it: no row needs it") from error
        for cell_id in cell_ids:
            found[cell_id] = max(began, found.get(cell_id, ""))
    return found


def _text(value: object) -> str:
    """A text, "" where a frame or a table has none."""
    return value if isinstance(value, str) else ""
