"""Find cells whose images changed since: of each set of images, the content that ran last counts.

A row does not know where its images lie, only their content (`fingerprint`). Rows of one dataset, one split
file and the same categories are taken for rows of the same images. If they differ in the fingerprint, the
images changed, or a label did. What counts is the fingerprint of the cell that started last, or that the last
run asked for and found finished, as it does when a change is taken back. The rows of every other fingerprint
are superseded. If the last two began in the same second, or at an unknown time, none is. A time of the future
is unknown: a clock was wrong.

A folder of one's own may lose categories, or be another folder: of rows of one dataset and split file, those
count whose categories the folder of the last cell had.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kdbench.errors import DataError
from kdbench.results.storage import Storage
from kdbench.results.store import RUNS

# What has to be known of a cell; its category and seed do not matter.
COLUMNS = (
    *("cell_id", "dataset", "categories", "dataset_categories", "status"),
    *("fingerprint", "split_sha256", "started_at"),
)


AHEAD = timedelta(hours=1)  # so far may the clocks of machines that share a folder differ
RUN_STAMP = "%Y%m%d-%H%M%S"  # what the id of a run begins with, in UTC


@dataclass(frozen=True, kw_only=True)
class Superseded:
    """Why the rows of a cell do not count."""

    fingerprint: str  # of the content that counts; "" if the folder no longer has its categories
    since: str  # when the first cell of what counts started


@dataclass(frozen=True, kw_only=True)
class _Cell:
    cell_id: str
    started: str  # "" if that is unknown, or says nothing
    categories: frozenset[str]


# What cells of the same dataset and split saw, and which of them: the content of some categories (a
# fingerprint), or the categories that their folder had.
_Seen = dict[Hashable, list[_Cell]]
Asked = Callable[[], Mapping[str, str]]  # the `last_asked` of a folder; only called if images changed


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What the rows of changed images mean today."""

    instead: dict[str, Superseded]  # cell id -> what counts instead, for all cells of superseded content
    folders: dict[str, tuple[str, ...]]  # cell id -> the categories of its folder now, if that changed


def changes(cells: Iterable[Mapping[str, Any]], asked: Asked) -> Changes:
    """What changed among the images of these cells, which have COLUMNS."""
    instead, folders = dict[str, Superseded](), dict[str, tuple[str, ...]]()
    rows = [row for row in cells if _text(row["fingerprint"])]
    for every, seen in _changed(rows, asked, lambda row: tuple(row["dataset_categories"]), "dataset"):
        of_folder = [cell for own in seen.values() for cell in own]
        folders |= {cell.cell_id: every for cell in of_folder}
        lost = [cell for cell in of_folder if not cell.categories <= {*every}]
        instead |= _instead(lost, "", seen[every])
    for fingerprint, seen in _changed(rows, asked, lambda row: row["fingerprint"], "categories"):
        others = [cell for content, own in seen.items() if content != fingerprint for cell in own]
        instead |= _instead(others, fingerprint, seen[fingerprint])
    return Changes(instead=instead, folders=folders)


def _changed(
    rows: Iterable[Mapping[str, Any]], asked: Asked, what: Callable[[Mapping[str, Any]], Any], within: str
) -> Iterator[tuple[Any, _Seen]]:
    """Of cells of one dataset and split, and with `within` "categories" of the same categories, that saw
    several things: the one that counts, and which cells saw which."""
    groups, soon = dict[Hashable, _Seen](), _soon()

    def known(time: str) -> str:
        return time if time < soon else ""

    for row in rows:
        if row["categories"] is None or row["dataset_categories"] is None:
            continue
        # A cell may have failed because its images changed before it started.
        started = "" if row["status"] == "failed" else known(_text(row["started_at"]))
        cell = _Cell(cell_id=row["cell_id"], started=started, categories=frozenset(row["categories"]))
        key = (row["dataset"], _text(row["split_sha256"]), cell.categories if within == "categories" else "")
        groups.setdefault(key, {}).setdefault(what(row), []).append(cell)
    changed = [seen for seen in groups.values() if len(seen) > 1]
    runs = {cell_id: known(time) for cell_id, time in asked().items()} if changed else {}
    for seen in changed:
        if (newest := _last(seen, runs)) is not None:
            yield newest, seen


def _last(seen: _Seen, runs: Mapping[str, str]) -> Hashable | None:
    """What the cell saw that started last or was asked for last; None if nobody knows which it was."""
    last = {
        what: max(max(cell.started, runs.get(cell.cell_id, "")) for cell in own) for what, own in seen.items()
    }
    newest, second, *_ = sorted(last, key=lambda what: last[what], reverse=True)
    return newest if last[newest] > last[second] else None


def _instead(
    cells: Iterable[_Cell], fingerprint: str, newest: Iterable[_Cell]
) -> Iterator[tuple[str, Superseded]]:
    counts = Superseded(fingerprint=fingerprint, since=min(cell.started for cell in newest))
    return ((cell.cell_id, counts) for cell in cells)


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


def runs_ahead(storage: Storage) -> list[str]:
    """A notice if the newest run of a folder, by its id, began later than now."""
    runs = [run for name in RUNS.names(storage) if (run := RUNS.owner(name))[:8].isdigit()]
    newest = max(runs, default="")
    if newest <= (datetime.now(UTC) + AHEAD).strftime(RUN_STAMP):
        return []
    return [
        f"the run {newest} of {storage} began in the future: a clock is wrong, or was. Where images changed, "
        f"rows of the future do not count as the newest"
    ]


def _soon() -> str:
    return (datetime.now(UTC) + AHEAD).isoformat(timespec="seconds")


def _text(value: object) -> str:
    """A text, "" where a frame or a table has none."""
    return value if isinstance(value, str) else ""
