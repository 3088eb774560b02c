"""The input of both executors, the local one and Ray's, and their reports."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kdbench.cell import Cell, Notify, Outcome, Place
from kdbench.data.found import Found
from kdbench.errors import RequestError
from kdbench.grid.attempt import execute_cell
from kdbench.grid.cluster import Cluster
from kdbench.grid.lease import Holder, holders
from kdbench.grid.plan import Job
from kdbench.grid.stopping import Stop
from kdbench.results.storage import Storage

TICK_S = 1.0  # seconds between two looks at what is running

Executor = Literal["local", "ray"]
Work = Callable[[Cell, Place, str, Notify, float | None], Outcome]


@dataclass(frozen=True, kw_only=True)
class Running:
    """The state of a run now: the leases of its cells, and how many cells wait."""

    holders: list[Holder]
    num_waiting: int
    elsewhere: list[Holder]  # cells of this run that another run is working on


Watch = Callable[[Running], None]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Cells to run, how to run them, and who is told."""

    jobs: Sequence[Job]
    data: Mapping[str, Found]
    run_id: str
    executor: Executor = "local"
    address: str | None = None  # of the Ray cluster, if it is not one of this machine alone
    notify: Notify = lambda progress: None  # is told how far the cell in this process is
    watch: Watch = lambda running: None
    timeout_s: float | None = None
    work: Work = execute_cell
    stop: Stop = field(default_factory=Stop)

    @property
    def storage(self) -> Storage:
        """The results folder."""
        return Storage(self.jobs[0].place.results)

    def look(self) -> list[Holder] | None:
        """Who runs cells now; None if the storage does not answer now."""
        try:
            return holders(self.storage)
        except OSError:
            return None

    def own(self, now: Sequence[Holder]) -> list[Holder]:
        """The holders that run cells of this run."""
        return [holder for holder in now if holder.run_id == self.run_id]


def refuse_impossible(jobs: Sequence[Job], cluster: Cluster) -> None:
    """Raise RequestError for needs that no node can meet; Ray would let such a cell wait for ever."""
    needs = dict.fromkeys(job.need for job in jobs)
    complaints = [f"no node has {need} for a cell" for need in needs if not cluster.fits(need)]
    if complaints:
        raise RequestError([*complaints, f"the cluster has {cluster}"])
