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
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # of the workers

import ray_work
from conftest import write_category

from kdbench.grid import schedule
from kdbench.grid.cluster import this_machine
from kdbench.grid.costs import known_costs, longest_first, with_needs
from kdbench.grid.request import Request, plan
from kdbench.results.store import Results

NUM_WORKERS = 2
CELL_S = 2.0  # ray_work.waits
NUM_CELLS = 10_000


def run(root: Path, results: Path, num_cells: int, work: schedule.Work) -> tuple[float, int]:
    """The steps of `kdbench run` with another work; returns seconds of execution and cells that were run."""
    request = Request(
        methods=("stfpm",),
        dataset=("mvtec_ad",),
        root=root,
        backbone="tiny",
        seeds=tuple(range(num_cells)),
        executor="ray",
        cpus_per_cell=1,
        results=str(results),
    )
    planned = plan(request)
    store = Results(request.results)
    costs = known_costs(store.storage)
    jobs = with_needs(planned.jobs, request, this_machine(), costs, planned.data)
    ended = store.ends(job.cell.id for job in jobs)
    todo = longest_first([j for j in jobs if j.cell.id not in ended], planned.data, costs)
    schedule._start_ray(None, this_machine())
    started, count = time.perf_counter(), 0
    if todo:
        for outcome in schedule.execute(
            todo,
            planned.data,
            executor="ray",
            run_id="bench",
            notify=lambda progress: None,
            watch=lambda running: None,
            work=work,
        ):
            assert outcome.status == "ok", outcome
            count += 1
    return time.perf_counter() - started, count


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
