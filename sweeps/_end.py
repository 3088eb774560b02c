"""What a person reads while a sweep runs and when it has ended."""

import json
from collections.abc import Callable
from typing import Any

from kdbench.reports import sweep as reports
from kdbench.reports.sweep import find_best
from kdbench.reports.tables import Table
from kdbench.results.store import AUDITS, TRIALS, read
from kdbench.sweeps._plan import SweepPlan, write_best
from kdbench.sweeps._trial import HOPELESS
from kdbench.sweeps.tune import Row, SweepEnd, read_sweep


class Lines:
    """One line for each thing that happens to a trial."""

    def __init__(self, planned: SweepPlan) -> None:
        self.planned, self.sweep = planned, planned.sweep
        self.ended: dict[str, Row] = {}
        for row in read_sweep(self.sweep):
            if row["status"] != "running":
                self.ended[row["trial_id"]] = row

    def first(self) -> str:
        """What will be done."""
        first, ended = self.sweep.cells[0], len(self.ended)
        seen = "synthetic defects on held-out normal images"
        if self.sweep.selection == "test":
            seen = "test images"
        before = f", {ended} ended before" if ended else ""
        return (
            f"sweep {self.sweep.id}: {self.planned.request.trials} trials of {first.method} on "
            f"{first.dataset} {first.setting}{before}; {self.sweep.objective} of {seen}, every "
            f"{self.sweep.report_every} of {self.sweep.epochs} epochs; {self.sweep.search}, "
            f"{self.sweep.scheduler}"
        )

    def of(self, row: Row) -> str:
        """What a trial's row says now."""
        name = row["trial_id"].rpartition("-")[2][:6]
        keys = "default" if row["is_default"] else said(json.loads(row["searched"]))
        value = row["objective_value"]
        shown = f"{self.sweep.objective} {value:.4f}" if value is not None else ""
        if row["status"] == "running":
            return f"trial {name}: epoch {row['epochs_trained']}/{row['epochs']}, {shown}"
        self.ended[row["trial_id"]] = row
        best = find_best(list(self.ended.values()))
        how = f"stopped at epoch {row['epochs_trained']}" if row["stopped_early"] else row["status"]
        if row["error"]:
            shown = row["error"].strip().splitlines()[-1][:200]
        top = f"; best so far {best['objective_value']:.4f}" if best else ""
        count = f"[{len(self.ended)}/{self.planned.request.trials}]"
        return f"{count} trial {name} {how}: {shown} ({keys}){top}"

    def audited(self, row: Row, value: float) -> str:
        """What the test images say of a trial."""
        name = row["trial_id"].rpartition("-")[2][:6]
        objective = self.sweep.objective
        return f"audit {name}: {objective} {row['objective_value']:.4f}, of the test images {value:.4f}"


def said(searched: dict[str, Any]) -> str:
    """Keys and values as people write them."""
    return ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in searched.items()
    )


def summary(
    planned: SweepPlan, end: SweepEnd, say: Callable[[str], None], show: Callable[[Table], None]
) -> bool:
    """Say what the sweep found and write its best configuration; returns whether all trials succeeded."""
    rows = read_sweep(planned.sweep)
    failed = [row for row in rows if row["status"] not in ("ok", "running")]
    stopped = sum(row["stopped_early"] for row in rows)
    say(
        f"{end.num_trials} trials, {len(rows)} different configurations: {stopped} stopped early, "
        f"{len(failed)} failed, {end.num_errors} of Ray's trials ended with an error"
    )
    for row in failed:
        say(f"failed: {row['trial_id']}: {(row['error'] or '').strip().splitlines()[-1][:300]}")
    say("")
    _show_tables(planned, say, show)
    best = find_best(rows)
    if best is None:
        say("no trial was trained to its end: nothing is chosen")
    elif planned.sweep.selection == "test":
        say("chosen on test images: no configuration is written; it must not be compared with others")
    else:
        say(f"best configuration: kdbench run --config {write_best(planned, best)}")
    if end.num_errors:
        say("the same command tries those again that ended with an error")
    hopeless = sum(any(kind.__name__ in (row["error"] or "") for kind in HOPELESS) for row in failed)
    if hopeless:
        say(f"{hopeless} diverged or cannot be configured so: not tried again, they would fail again")
    return bool(best) and not failed and not end.num_errors


def _show_tables(planned: SweepPlan, say: Callable[[str], None], show: Callable[[Table], None]) -> None:
    """The best trials and the importance of keys, as the report has them."""
    results = planned.sweep.place.results
    trials, audits = (read(results, kind).to_pandas() for kind in (TRIALS, AUDITS))
    (found,) = (one for one in reports.sweeps(trials, audits) if one.id == planned.sweep.id)
    best, importance = reports.best_trials(found), reports.importance_table(found)
    for table in (best, importance):
        if table.body:
            show(table)
    for note in importance.notes:
        say(note)
