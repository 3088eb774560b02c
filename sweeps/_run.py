"""Plan a sweep, then carry it out. Nothing here prints or exits: a view hears what happens."""

from kdbench.errors import RequestError, complained
from kdbench.grid.prepare import before_planning, prepare
from kdbench.grid.view import View
from kdbench.results.store import Results
from kdbench.sweeps._audit import audit_trials
from kdbench.sweeps._plan import SweepPlan, plan_sweep
from kdbench.sweeps._request import SweepRequest
from kdbench.sweeps._result import Lines, SweepResult, result_of
from kdbench.sweeps.tune import run_sweep


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
    lines = Lines(plan)
    view.say(lines.first())
    end = run_sweep(plan, lambda row: view.say(lines.of(row)))
    if audit:
        audit_trials(plan, lambda row, value: view.say(lines.audited(row, value)))
    return result_of(plan, end)
