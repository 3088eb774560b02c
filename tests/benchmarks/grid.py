"""What scheduling costs: seconds per cell, a grid against the ideal, the memory of a driver of 10,000 cells.

    python tests/benchmarks/grid.py [overhead] [scale]

The cells do nothing but wait, so that only scheduling is measured: a cell of real work would hide it.
"""

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # of the workers

import ray_work
from conftest import write_category

from kdbench.cell import Outcome
from kdbench.grid.cluster import session
from kdbench.grid.execution import Work
from kdbench.grid.grid import View, plan_grid, run_grid
from kdbench.grid.request import Request

NUM_WORKERS = 2
CELL_S = 2.0  # ray_work.waits
NUM_CELLS = 10_000


class Watch(View):
    """Sees when the first cell begins and when each has finished."""

    def __init__(self) -> None:
        self.started = self.took_s = 0.0

    def begin(self, expected: Mapping[str, float]) -> None:
        self.started = time.perf_counter()

    def finished(self, outcome: Outcome) -> None:
        assert outcome.status == "ok", outcome
        self.took_s = time.perf_counter() - self.started


def run(root: Path, results: Path, num_cells: int, work: Work) -> tuple[float, int]:
    """`kdbench run` with another work; returns seconds of execution and cells that were run."""
    request = Request(
        methods=("stfpm",),
        dataset=("mvtec_ad",),
        root=root,
        backbone="tiny",
        seeds=tuple(range(num_cells)),
        executor="ray",
        cpus_per_cell=1,
        latency=False,
        results=str(results),
    )
    watch = Watch()
    with session():  # before the clock runs
        result = run_grid(plan_grid(request), watch, work)
    return watch.took_s, result.num_finished


def overhead(root: Path, folder: Path) -> None:
    """A grid of equal cells on all workers, against the ideal; the first cells have started the workers."""
    run(root, folder / "warm", 2 * NUM_WORKERS, ray_work.waits)
    num = 30 * NUM_WORKERS
    took, _ = run(root, folder / "grid", num, ray_work.waits)
    ideal = num * CELL_S / NUM_WORKERS
    each = (took - ideal) * NUM_WORKERS / num
    print(f"{num} cells of {CELL_S:g} s on {NUM_WORKERS} workers: {took:.1f} s, {took / ideal:.3f} x ideal")
    print(f"overhead per cell: {each:.3f} s")


def scale(root: Path, folder: Path) -> None:
    """10,000 cells: the driver is killed half-way and started again; once more with nothing to do."""
    words = [sys.executable, __file__, "driver", str(root), str(folder / "many")]
    victim = subprocess.Popen(words, start_new_session=True)
    cells = folder / "many/cells"
    while not cells.is_dir() or sum(1 for _ in os.scandir(cells)) < NUM_CELLS / 2:
        assert victim.poll() is None
        time.sleep(1)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    for _ in range(2):
        subprocess.run(words, check=True)
    assert sum(1 for _ in os.scandir(cells)) == NUM_CELLS


def driver(root: Path, results: Path) -> None:
    started = time.perf_counter()
    took, count = run(root, results, NUM_CELLS, ray_work.writes_a_row)
    whole = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{NUM_CELLS} cells planned, {count} run in {took:.0f} s, {whole:.0f} s in all, driver {peak:.0f} MiB"
    )


def main() -> None:
    if sys.argv[1:2] == ["driver"]:
        driver(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = write_category(Path(temporary) / "mvtec", "bottle", train=2, good=1, bad=1).parent
        for name in sys.argv[1:] or ["overhead", "scale"]:
            {"overhead": overhead, "scale": scale}[name](root, Path(temporary))


if __name__ == "__main__":
    main()
