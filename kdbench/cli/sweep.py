"""`kdbench sweep`: a request becomes a plan, its trials are run, and the report is written."""

import sys
from typing import Annotated

import typer

from kdbench.cli import documents
from kdbench.cli.options import OldOut, Out, options_of, report_folder
from kdbench.cli.report import write
from kdbench.cli.run import leaving_on_signals
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.streams import not_needed
from kdbench.cli.tables import show_values
from kdbench.cli.terminal import OK, SOME_FAILED, bars, say, say_next
from kdbench.sweeps._request import SweepRequest


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
        from kdbench.sweeps._result import summary
        from kdbench.sweeps._run import carry_out, planned

        view = bars()
        plan = planned(request, view)
        result = carry_out(plan, view, audit=audit)
        for part in summary(plan, result):
            if isinstance(part, str):
                say(part)
            else:
                show_values(part)
        write(plan.sweep.place.results, folder, page=True)
        if result.config:
            say_next("run the best configuration", "kdbench", "run", "--config", result.config)
    best = result.best or {}
    document = documents.Swept.of(
        result,
        results=plan.sweep.place.results,
        sweep_id=plan.sweep.id,
        num_configurations=len(result.rows),
        num_failed=len(result.failed),
        best_trial=best.get("trial_id"),
        best_objective=best.get("objective_value"),
    )
    return Answer(document=document, code=OK if result.complete else SOME_FAILED)
