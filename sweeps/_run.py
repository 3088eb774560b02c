"""Plan a sweep, then carry it out. Nothing here prints or exits: a view hears what happens."""

import json

from kdbench.errors import Complaints, RequestError, complained, number_of
from kdbench.grid.finished import reading
from kdbench.grid.prepare import before_planning, prepare
from kdbench.grid.view import View
from kdbench.results.store import OF_TRIALS, TRIALS, Results, read
from kdbench.sweeps._audit import audit_trials
from kdbench.sweeps._plan import SweepPlan, plan_sweep
from kdbench.sweeps._request import SweepRequest
from kdbench.sweeps._result import Lines, SweepResult, result_of
from kdbench.sweeps.tune import read_sweep, run_sweep


def planned(request: SweepRequest, view: View) -> SweepPlan:
    """The plan of a sweep; the view is told its notices. RequestError with every complaint."""
    before_planning(request.dataset, view)
    plan = plan_sweep(request)
    for notice in plan.notices:
        view.note(notice)
    return plan


def carry_out(plan: SweepPlan, view: View, *, audit: bool) -> SweepResult:
    """Run a sweep and tell the view each event; with `audit` its detectors then score the test images.

    The best configuration is written, unless test images chose it.
    """
    with complained(f"cannot write results in {plan.request.results}"):
        Results(plan.sweep.place.results).check_writable()
    try:
        complaints = prepare(plan.cells.jobs, plan.cells.data, view.decoding)
    finally:
        view.end()
    if complaints:
        raise RequestError(complaints)
    copied = take_over(plan, view)
    lines = Lines(plan)
    view.say(lines.first())
    end = run_sweep(plan, lambda row: view.say(lines.of(row)))
    if audit:
        num_left_out = audit_trials(plan, lambda row, value: view.say(lines.audited(row, value)), copied)
        if num_left_out:
            view.note(f"{number_of(num_left_out, 'copied trial')} without a detector here: not audited")
    return result_of(plan, end)


def take_over(plan: SweepPlan, view: View) -> frozenset[str]:
    """Copy the trials of this sweep that succeeded among published rows and not here.

    Returns the ids of all that succeeded there. RequestError if somebody changed a row.
    """
    folder, sweep = plan.request.published, plan.sweep
    if folder is None:
        return frozenset()
    with reading(folder):
        rows = [row for row in read(folder, TRIALS).to_pylist() if row["sweep_id"] == sweep.id]
    found = {row["trial_id"]: row for row in rows if row["status"] == "ok"}
    complaints = Complaints()
    for trial_id, row in found.items():
        searched = json.loads(row["searched"])
        if (sweep.trial_id(searched), sweep.said(searched)) != (trial_id, row["config"]):
            complaints.add(f"{folder}: the row of trial {trial_id} has another configuration. Delete it")
    complaints.check()
    new = found.keys() - {row["trial_id"] for row in read_sweep(sweep) if row["status"] == "ok"}
    with complained(f"cannot copy rows of {folder} to {sweep.place.results}"):
        Results(sweep.place.results).take_over(folder, new, OF_TRIALS)
    view.say(f"{number_of(len(new), 'trial')} taken over from {folder}")
    return frozenset(found)
