"""The measurements in a results folder: timings, and exported detectors that were evaluated."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from kdbench.deploy.runtimes import TORCH, why_not
from kdbench.results.attempts import read_beside
from kdbench.results.store import DETECTORS, LATENCY, Kind, Results, read

MEASURED_COLUMNS = ("cell_id", "device", "device_name", "runtime", "precision", "why_not")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The files of kept detectors in a results folder, and the rows of their measurements."""

    kept: Set[str]
    rows: Sequence[Mapping[str, Any]]

    def done(self, device_name: str | None = None, *, busy_again: bool = False) -> set[tuple[str, ...]]:
        """The keys of all that is measured: (cell, device, runtime) and (cell, device, runtime, precision).

        If `device_name` is given, only rows of that device count. With `busy_again`, rows that were timed
        while something else ran do not count. A hole counts as long as nothing can fill it here.
        """
        found: set[tuple[str, ...]] = set()
        for row in self.rows:
            runtime = row["runtime"] or TORCH
            hole = row["why_not"] and not why_not(runtime, row["precision"], row["device"])
            busy = busy_again and not row["why_not"] and row.get("busy", False) is not False
            if not hole and not busy and device_name in (None, row["device_name"]):
                key = (row["cell_id"], row["device"], runtime)
                found |= {key, (*key, str(row["precision"]))}
        return found


def read_measured(results: Results, kind: Kind = LATENCY) -> Measured:
    """Read the rows of timings, or of exported detectors that were evaluated (DEPLOYED)."""
    columns = (*MEASURED_COLUMNS, "busy") if kind is LATENCY else MEASURED_COLUMNS
    # How fast a detector is does not depend on the attempt that trained it; its metrics do.
    known = read if kind is LATENCY else read_beside
    rows = known(results.storage, kind, columns=columns).to_pylist()
    return Measured(kept=set(DETECTORS.names(results.storage)), rows=rows)
