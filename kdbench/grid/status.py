"""How far the runs on a results folder are, told from its files only: from any terminal, on any machine."""

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kdbench.grid.lease import Holder, holders
from kdbench.results.store import RUNS, Results

MAX_RUNS = 20  # looked at, the newest first


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """What a run set out to do: `runs/<run_id>.json`."""

    run_id: str
    started: float
    cells: dict[str, float]  # to run: cell id -> expected seconds, or a number in proportion to them
    finished: list[str] = field(default_factory=list)  # cells of the plan that had finished before
    labels: dict[str, str] = field(default_factory=dict)
    replaces: dict[str, str] = field(default_factory=dict)  # cell id -> the run whose end does not count


@dataclass(frozen=True, kw_only=True)
class State:
    """How far one run is."""

    run: RunFile
    counts: Counter[str]  # by status; "running" and "waiting" are two of them
    running: list[Holder]
    left_s: float | None  # None: no cell has ended yet, so nobody knows


def write_run(results: Results, run: RunFile) -> None:
    """Say what a run sets out to do, before its first cell."""
    results.storage.write(RUNS.name(run.run_id), json.dumps(asdict(run)).encode())


def states(results: Results, now: float | None = None) -> list[State]:
    """The newest runs that had cells to run, newest first; if a process is gone its cells are waiting."""
    names = RUNS.names(results.storage)[::-1][:MAX_RUNS]
    runs = [RunFile(**json.loads(results.storage.read(name))) for name in names]
    running = holders(results.storage)
    now = time.time() if now is None else now
    return [_state(results, run, running, now) for run in runs if run.cells]


def seconds_left(
    cells: Mapping[str, float], ended: Collection[str], running: Mapping[str, float], elapsed_s: float
) -> float | None:
    """Time for what is left at the pace so far, each cell weighed by its expected time.

    `running` is cell id -> the part of it that is done. None while nothing is.
    """
    parts = {cell_id: 1.0 if cell_id in ended else running.get(cell_id, 0.0) for cell_id in cells}
    done = sum(weight * parts[cell_id] for cell_id, weight in cells.items())
    return elapsed_s * (sum(cells.values()) - done) / done if done else None


def part_done(phase: str, done: int, total: int) -> float:
    """How much of a cell is done; what is not training counts as nothing."""
    if phase == "evaluate":
        return 1.0
    return done / total if phase == "train" and total else 0.0


def _state(results: Results, run: RunFile, running: list[Holder], now: float) -> State:
    own = [holder for holder in running if holder.cell_id in run.cells]
    ends = results.ends(run.cells)
    ended = {cell_id: end.status for cell_id, end in ends.items() if end.run_id != run.replaces.get(cell_id)}
    busy = {holder.cell_id for holder in own}
    counts: Counter[Any] = Counter(status for cell_id, status in ended.items() if cell_id not in busy)
    counts["running"] = len(own)
    counts["waiting"] = len(run.cells) - len(ended.keys() | busy)
    return State(
        run=run,
        counts=counts,
        running=own,
        left_s=seconds_left(
            run.cells, ended.keys() - busy, {h.cell_id: _part(h) for h in own}, now - run.started
        ),
    )


def _part(holder: Holder) -> float:
    said = holder.progress
    return part_done(said.get("phase", ""), said.get("done", 0), said.get("total", 0))
