"""`kdbench sweep`: a request becomes a plan, its trials are run, and the report is written."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli import documents
from kdbench.cli.options import OldOut, Out, options_of, report_folder
from kdbench.cli.report import write
from kdbench.cli.run import announce_drawing, leaving_on_signals
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.streams import not_needed
from kdbench.cli.tables import show_values
from kdbench.cli.terminal import OK, SOME_FAILED, decoding_bar, note, say, say_next
from kdbench.errors import RequestError, complained
from kdbench.sweeps._request import SweepRequest
from kdbench.sweeps._result import Lines, SweepResult, result_of, summary

if TYPE_CHECKING:
    from kdbench.sweeps._plan import SweepPlan


@for_scripts
@options_of(SweepRequest)
def sweep(
    request: SweepRequest,
    out: Out = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="When all trials have finished, score them on the test images.")
    ] = False,
    report: OldOut = None,
) -> Answer:
    """Search a method's configuration on normal images with synthetic defects; no test image is seen."""
    folder = report_folder(out, report)
    not_needed(sys.stdout)
    with leaving_on_signals():
        plan = planned(request)
        result = carry_out(plan, audit=audit)
        for part in summary(plan, result):
            if isinstance(part, str):
                say(part)
            else:
                show_values(part)
        write(plan.sweep.place.results, folder, page=True)
        if result.config:
            say_next("run the best configuration", "kdbench", "run", "--config", result.config)
    best = result.best or {}
    document = documents.Swept(
        results=plan.sweep.place.results,
        sweep_id=plan.sweep.id,
        complete=result.complete,
        num_configurations=len(result.rows),
        num_failed=len(result.failed),
        best_trial=best.get("trial_id"),
        best_objective=best.get("objective_value"),
        config=result.config,
    )
    return Answer(document=document, code=OK if result.complete else SOME_FAILED)


def planned(request: SweepRequest) -> "SweepPlan":
    """The plan of a sweep; what the user should know of it is said."""
    from kdbench.sweeps._plan import plan_sweep

    if "synthetic" in request.dataset:
        announce_drawing()
    plan = plan_sweep(request)
    for notice in plan.notices:
        note(notice)
    return plan


def carry_out(plan: "SweepPlan", *, audit: bool) -> SweepResult:
    """Run a sweep and say what each trial does; with `audit` its detectors score the test images then.

    The best configuration is written, unless test images chose it.
    """
    from kdbench.grid.prepare import prepare
    from kdbench.results.store import Results
    from kdbench.sweeps._audit import audit_trials
    from kdbench.sweeps.tune import run_sweep

    with complained(f"cannot write results in {plan.request.results}"):
        Results(plan.sweep.place.results).check_writable()
    with decoding_bar() as tick:
        complaints = prepare(plan.cells.jobs, plan.cells.data, tick)
    if complaints:
        raise RequestError(complaints)
    lines = Lines(plan)
    say(lines.first())
    end = run_sweep(plan, lambda row: say(lines.of(row)))
    if audit:
        audit_trials(plan, lambda row, value: say(lines.audited(row, value)))
    return result_of(plan, end)
