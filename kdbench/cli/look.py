"""`kdbench status`, `doctor` and `new-method`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli import documents
from kdbench.cli.options import Results, at_home, unusual
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.tables import Line, show
from kdbench.cli.terminal import OK, SOME_FAILED, complain, reading, say, say_next
from kdbench.errors import RequestError, number_of
from kdbench.grid.console import duration

if TYPE_CHECKING:
    from kdbench.grid.status import RunState


@for_scripts
def status(results: Results = "results") -> Answer:
    """Say how far the runs on a results folder are: queue, running cells, failures, time left."""
    from kdbench.grid.status import states
    from kdbench.results.store import Results

    with reading(results):
        found = states(Results(results))
    if not found:
        raise RequestError([f"no run has begun in {results}: `kdbench run --results {results}` begins one"])
    going = [state for state in found if state.running] or found[:1]
    for state in going:
        ended = ", ".join(f"{count} {name}" for name, count in state.counts.items() if count)
        left = f", about {duration(state.left_s)} left" if state.left_s and state.running else ""
        say(f"run {state.run.run_id}: {number_of(len(state.run.cells), 'cell')}, {ended}{left}")
        for holder in state.running:
            now = holder.progress
            where = f"{now.get('phase', 'start')} {now.get('done', 0)}/{now.get('total', 0)} images"
            epochs = f", epoch {now['epoch']}/{now['epochs']}" if now.get("epochs") else ""
            took = duration(time.time() - holder.since)
            problem = f", {now['problem']}" if now.get("problem") else ""
            at = f"{holder.host} (process {holder.pid})"
            say(f"  {at}: {holder.label} · {where}{epochs}, for {took}{problem}")
        if not state.running and state.counts["waiting"]:
            say("  nobody is running it: the same `kdbench run` command resumes it")
    if not any(state.running for state in going):
        say_next("a page of what finished", "kdbench", "report", *unusual("--results", results, "results"))
    return Answer(document=documents.Status(results=results, runs=tuple(map(_state, going))))


def _state(state: "RunState") -> documents.RunState:
    running = []
    for holder in state.running:
        now = holder.progress
        running.append(
            documents.Running.of(
                holder,
                running_s=time.time() - holder.since,
                phase=now.get("phase", "start"),
                done=now.get("done", 0),
                total=now.get("total", 0),
                epoch=now.get("epoch") or None,
                epochs=now.get("epochs") or None,
                problem=now.get("problem") or "",
            )
        )
    return documents.RunState(
        run_id=state.run.run_id,
        num_cells=len(state.run.cells),
        counts={name: count for name, count in state.counts.items() if count},
        left_s=state.left_s if state.running else None,
        running=tuple(running),
    )


def write_method(
    name: Annotated[str, typer.Argument(help="Lower-case, like my_method.")],
    folder: Annotated[Path, typer.Option(help="Where the package is written.", callback=at_home)] = Path(),
) -> None:
    """Write a package with a method of your own, which runs as it is."""
    from kdbench.cli.new_method import new_method

    path = new_method(name, folder)
    say(f"wrote {path}, a package that runs as it is")
    say_next("install it", "pip", "install", "-e", str(path))
    say_next("then run it", "kdbench", "run", "--methods", name)


@for_scripts
def doctor() -> Answer:
    """Show versions, devices and folders, what is missing, and how to get it."""
    from kdbench.cli.doctor import examine

    findings = examine()
    lines = [
        Line(cells=(one.what, one.found, one.advice), style="red" if one.wrong else None) for one in findings
    ]
    show(("what", "found", "what to do"), lines, title="kdbench doctor")
    wrong = tuple(f"{one.what}: {one.found}. {one.advice}" for one in findings if one.wrong)
    for text in wrong:
        complain(text)
    if not wrong:
        say("nothing is wrong")
        say_next("a first run, which downloads nothing", "kdbench", "run", "--methods", "stfpm,dcam")
    found = tuple(documents.Finding.of(one) for one in findings)
    document = documents.Examined(findings=found)
    return Answer(document=document, code=SOME_FAILED if wrong else OK, errors=wrong)
