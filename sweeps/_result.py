"""The output of a sweep: a line for each event of a trial, and at its end a summary."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdbench.errors import last_line, number_of

if TYPE_CHECKING:
    import pandas as pd

    from kdbench.reports.tables import Table
    from kdbench.sweeps._plan import SweepPlan
    from kdbench.sweeps.tune import Row, SweepEnd


@dataclass(frozen=True, kw_only=True, eq=False)
class SweepResult:
    """The result of a sweep."""

    rows: tuple[dict[str, Any], ...]  # one for each configuration, those of earlier calls too
    best: dict[str, Any] | None  # the row with the highest objective; None: no training was completed
    config: str | None  # the TOML file of the best, for `kdbench run --config`; None: nothing is chosen
    num_trials: int  # all trials of Ray; a configuration that was drawn twice counts twice
    num_errors: int  # trials that Ray will run again

    def __repr__(self) -> str:
        best = f"{self.best['objective']} {self.best['objective_value']:.4f}" if self.best else "none"
        return f"<SweepResult of {len(self.rows)} configurations, best: {best}>"

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of trials that failed."""
        return [row for row in self.rows if row["status"] not in ("ok", "running")]

    @property
    def complete(self) -> bool:
        """Whether there is a best configuration and no trial failed."""
        return self.best is not None and not self.failed and not self.num_errors

    @property
    def trials(self) -> "pd.DataFrame":
        """The rows as a frame, with the columns of docs/results-format.md."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))


def result_of(plan: "SweepPlan", end: "SweepEnd") -> SweepResult:
    """The result by the rows of a sweep; writes the best configuration, unless test images chose it."""
    from kdbench.reports.sweep import find_best
    from kdbench.sweeps._plan import write_best
    from kdbench.sweeps.tune import read_sweep

    rows = read_sweep(plan.sweep)
    best = find_best(rows)
    return SweepResult(
        rows=tuple(rows),
        best=best,
        config=write_best(plan, best) if best and plan.sweep.selection != "test" else None,
        num_trials=end.num_trials,
        num_errors=end.num_errors,
    )


class Lines:
    """One line for each event of a trial."""

    def __init__(self, plan: "SweepPlan") -> None:
        from kdbench.sweeps.tune import read_sweep

        self.plan, self.sweep = plan, plan.sweep
        rows = read_sweep(self.sweep)
        self.finished = {row["trial_id"]: row for row in rows if row["status"] != "running"}

    def first(self) -> str:
        """The line that says what the sweep will do."""
        first, finished = self.sweep.cells[0], len(self.finished)
        seen = "synthetic defects on held-out normal images"
        if self.sweep.selection == "test":
            seen = "test images"
        before = f", {finished} finished before" if finished else ""
        return (
            f"sweep {self.sweep.id}: {number_of(self.plan.request.trials, 'trial')} of {first.method} on "
            f"{first.dataset} {first.setting}{before}; {self.sweep.objective} of {seen}, every "
            f"{self.sweep.report_every} of {number_of(self.sweep.epochs, 'epoch')}; {self.sweep.search}, "
            f"{self.sweep.scheduler}"
        )

    def of(self, row: "Row") -> str:
        """The line for a trial whose row has changed."""
        from kdbench.reports.sweep import find_best

        name = row["trial_id"].rpartition("-")[2][:6]
        keys = "default" if row["is_default"] else searched_text(json.loads(row["searched"]))
        value = row["objective_value"]
        shown = f"{self.sweep.objective} {value:.4f}" if value is not None else ""
        if row["status"] == "running":
            return f"trial {name}: epoch {row['epochs_trained']}/{row['epochs']}, {shown}"
        self.finished[row["trial_id"]] = row
        best = find_best(list(self.finished.values()))
        how = f"stopped at epoch {row['epochs_trained']}" if row["stopped_early"] else row["status"]
        if row["error"]:
            shown = last_line(row["error"])[:200]
        top = f"; best so far {best['objective_value']:.4f}" if best else ""
        count = f"[{len(self.finished)}/{self.plan.request.trials}]"
        return f"{count} trial {name} {how}: {shown} ({keys}){top}"

    def audited(self, row: "Row", value: float) -> str:
        """The line for the test score of a trial."""
        name = row["trial_id"].rpartition("-")[2][:6]
        objective = self.sweep.objective
        return f"audit {name}: {objective} {row['objective_value']:.4f}, of the test images {value:.4f}"


def searched_text(searched: Mapping[str, object]) -> str:
    """Keys and values as people write them."""
    return ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in searched.items()
    )


def summary(plan: "SweepPlan", result: SweepResult) -> "Iterator[str | Table]":
    """The summary of a sweep: lines and tables."""
    from kdbench.sweeps._trial import HOPELESS

    stopped = sum(row["stopped_early"] for row in result.rows)
    different = number_of(len(result.rows), "different configuration")
    yield (
        f"{number_of(result.num_trials, 'trial')}, {different}: {stopped} stopped early, "
        f"{len(result.failed)} failed, {result.num_errors} of Ray's trials had an error"
    )
    for row in result.failed:
        yield f"failed: {row['trial_id']}: {last_line(row['error'] or '')[:300]}"
    yield ""
    yield from _tables(plan)
    if result.best is None:
        yield "no training was completed: nothing is chosen"
    elif plan.sweep.selection == "test":
        yield "chosen on test images: no configuration is written; it must not be compared with others"
    if result.num_errors:
        yield "the same command runs the trials that had an error again"
    hopeless = sum(any(kind.__name__ in (row["error"] or "") for kind in HOPELESS) for row in result.failed)
    if hopeless:
        yield f"{hopeless} diverged or had a refused configuration: not tried again, they would fail again"


def _tables(plan: "SweepPlan") -> "Iterator[str | Table]":
    """The tables of the report with the best trials and the importance of keys."""
    from kdbench.reports import sweep as reports
    from kdbench.results.store import AUDITS, TRIALS, read

    trials, audits = (read(plan.sweep.place.results, kind).to_pandas() for kind in (TRIALS, AUDITS))
    (found,) = (one for one in reports.sweeps(trials, audits) if one.id == plan.sweep.id)
    importance = reports.importance_table(found)
    for table in (reports.best_trials(found), importance):
        if table.body:
            yield table
    yield from importance.notes
