"""What Ray workers run in test_schedule.py in place of execute_cell: a lease, then one way to end."""

import os
import signal
import time

import ray

from kdbench.cell import ELSEWHERE, outcome_of
from kdbench.errors import ResultsError
from kdbench.grid.attempt import execute_cell
from kdbench.grid.cluster import LostError
from kdbench.grid.lease import Holder, acquire, holders
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, Results


def _attempts(place, cell):
    storage = Storage(place.results)
    storage.write(f"attempts/{cell.id}-{time.time_ns()}", b"")
    return len([n for n in storage.names("attempts") if cell.id in n])


def dies_twice(cell, place, run_id, notify, timeout_s):
    acquire(Storage(place.results), Holder(cell_id=cell.id, run_id=run_id))
    if _attempts(place, cell) <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return outcome_of(cell, "ok", 0.0)


def dies_always(cell, place, run_id, notify, timeout_s):
    _attempts(place, cell)
    os.kill(os.getpid(), signal.SIGKILL)


def dies_after_its_rows(cell, place, run_id, notify, timeout_s):
    execute_cell(cell, place, run_id, notify, timeout_s)
    os.kill(os.getpid(), signal.SIGKILL)


def never_answers(cell, place, run_id, notify, timeout_s):
    """Its rows are there, but its answer is not: as from a host that was cut off while it answered."""
    execute_cell(cell, place, run_id, notify, timeout_s)
    signal.pause()


def raises(cell, place, run_id, notify, timeout_s):
    _attempts(place, cell)
    raise ValueError("what a bug of ours would raise")


def cannot_write(cell, place, run_id, notify, timeout_s):
    raise ResultsError("No space left on device")


def hangs(cell, place, run_id, notify, timeout_s):
    acquire(Storage(place.results), Holder(cell_id=cell.id, run_id=run_id))
    signal.pause()


def sees_gpus(cell, place, run_id, notify, timeout_s):
    return outcome_of(cell, "ok", 0.0, summary=os.environ.get("CUDA_VISIBLE_DEVICES", "all"))


def frees_itself(cell, place, run_id, notify, timeout_s):
    """The first time another run has the cell, which then dies."""
    storage = Storage(place.results)
    if _attempts(place, cell) == 1:
        return outcome_of(cell, ELSEWHERE, 0.0)
    return outcome_of(cell, "ok" if not holders(storage) else "failed", 0.0)


def dies_at_bottles(cell, place, run_id):
    """A timing that the kernel kills, for its memory say."""
    if cell.category == "bottle":
        os.kill(os.getpid(), signal.SIGKILL)
    return []


def waits(cell, place, run_id, notify, timeout_s):
    """A cell of two seconds that uses no processor."""
    time.sleep(2.0)
    return outcome_of(cell, "ok", 2.0)


def writes_a_row(cell, place, run_id, notify, timeout_s):
    """The least that a cell can do: hold its lease and write one row."""
    results = Results(place.results)
    lease = acquire(results.storage, Holder(cell_id=cell.id, run_id=run_id))
    row = {"cell_id": cell.id, "run_id": run_id, "category": cell.category, "status": "ok"}
    row |= {"method": cell.method, "config": cell.config, "device": "cpu", "num_threads": 1}
    row |= {"num_train": 2, "num_heldout": 0, "num_test": 2, "peak_memory_bytes": 1 << 28}
    row |= dict.fromkeys(("prepare_s", "train_s", "evaluate_s"), 0.001)
    results.write(CELLS, [row])
    lease.release()
    return outcome_of(cell, "ok", 0.0)


def on_a_broken_gpu_twice(cell, place, run_id, notify, timeout_s):
    if _attempts(place, cell) <= 2:
        raise LostError("the GPU of a does not compute: uncorrectable ECC error")
    return outcome_of(cell, "ok", 0.0)


def on_a_broken_gpu(cell, place, run_id, notify, timeout_s):
    raise LostError("the GPU of a does not compute: uncorrectable ECC error")


def on_a_node_with_a_broken_gpu(cell, place, run_id, notify, timeout_s):
    """The node whose name is in a file has a broken GPU, and says so at once; the other takes a moment."""
    here = ray.get_runtime_context().get_node_id()
    if Storage(place.results).read("broken").decode() == here:
        _attempts(place, cell)
        raise LostError("the GPU of a does not compute: uncorrectable ECC error")
    return takes_a_moment(cell, place, run_id, notify, timeout_s)


def takes_a_moment(cell, place, run_id, notify, timeout_s):
    lease = acquire(Storage(place.results), Holder(cell_id=cell.id, run_id=run_id))
    with lease.kept(dict):
        begun = time.time()
        time.sleep(0.5)
    return outcome_of(cell, "ok", 0.0, summary=str(begun))


class Neighbour:
    """Something else on a cluster, which has what it took."""

    def here(self):
        """Returns as soon as it has it."""
