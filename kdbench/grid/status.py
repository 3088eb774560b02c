"""How far the runs on a results folder are. Its files tell, so any terminal on any machine can show it."""

import json
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

from kdbench.grid.lease import Holder, holders
from kdbench.results.store import RUNS, Results

MAX_RUNS = 20  # only so many of the newest runs are read


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """The plan of a run: the content of `runs/<run_id>.json`."""

    run_id: str
    started: float
    cells: dict[str, float]  # to run: id -> expected seconds, or a number in proportion to them
    finished: list[str] = field(default_factory=list)  # cells of the plan that had finished before the run
    labels: dict[str, str] = field(default_factory=dict)
    replaces: dict[str, str] = field(default_factory=dict)  # cell id -> the run whose outcome does not count


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How far one run is."""

    run: RunFile
    counts: Counter[str]  # of cells by status, which may be "running" or "waiting", too
    running: list[Holder]
    left_s: float | None  # None: no cell has finished yet, so nobody knows


def write_run(results: Results, run: RunFile) -> None:
    """Write the plan of a run, before its first cell."""
    results.storage.write(RUNS.name(run.run_id), json.dumps(asdict(run)).encode())


def states(results: Results, now: float | None = None) -> list[RunState]:
    """The newest runs that had cells to run, the newest first. Cells of a lost process count as waiting."""
    names = RUNS.names(results.storage)[::-1][:MAX_RUNS]
    runs = [RunFile(**json.loads(results.storage.read(name))) for name in names]
    running = holders(results.storage)
    now = time.time() if now is None else now
    return [_state(results, run, running, now) for run in runs if run.cells]


def seconds_left(
    cells: Mapping[str, float], finished: Collection[str], running: Mapping[str, float], elapsed_s: float
) -> float | None:
    """Seconds that the rest takes at the pace so far, where the weight of a cell is its expected time.

    `running` is cell id -> the part of it that is done. None while no part of any cell is done.
    """
    parts = {cell_id: 1.0 if cell_id in finished else running.get(cell_id, 0.0) for cell_id in cells}
    done = sum(weight * parts[cell_id] for cell_id, weight in cells.items())
    return elapsed_s * (sum(cells.values()) - done) / done if done else None


def part_done(phase: str, done: int, total: int) -> float:
    """How much of a cell is done, by its training; evaluation and preparation count as no time."""
    if phase == "evaluate":
        return 1.0
    return done / total if phase == "train" and total else 0.0


def _state(results: Results, run: RunFile, running: list[Holder], now: float) -> RunState:
    running = [holder for holder in running if holder.cell_id in run.cells]
    ends = results.ends(run.cells)
    statuses = {
        cell_id: end.status for cell_id, end in ends.items() if end.run_id != run.replaces.get(cell_id)
    }
    busy = {holder.cell_id for holder in running}
    counts: Counter[str] = Counter(status for cell_id, status in statuses.items() if cell_id not in busy)
    counts["running"] = len(running)
    counts["waiting"] = len(run.cells) - len(statuses.keys() | busy)
    return RunState(
        run=run,
        counts=counts,
        running=running,
        left_s=seconds_left(
            run.cells, statuses.keys() - busy, {h.cell_id: _part(h) for h in running}, now - run.started
        ),
    )


def _part(holder: Holder) -> float:
    progress = holder.progress
    return part_done(progress.get("phase", ""), progress.get("done", 0), progress.get("total", 0))
