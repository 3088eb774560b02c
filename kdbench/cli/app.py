"""The commands; the only place that prints and that decides on exit codes."""

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdbench.errors import DataError, RequestError

app = typer.Typer(
    help="Compare knowledge-distillation anomaly detectors: one command, exact metrics, traceable numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Without a terminal rich assumes 80 columns and cuts tables; logs and pipes have room.
out, err = (Console(stderr=e, width=None if sys.stdout.isatty() else 160) for e in (False, True))

OK, SOME_FAILED, WRONG_REQUEST, INTERRUPTED = 0, 1, 2, 130
REPORT = Path("reports/out")


def main() -> None:
    """Run a command and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character must not end a run
    try:
        app()
    except (RequestError, DataError) as error:
        for complaint in getattr(error, "complaints", (error,)):
            complain(str(complaint))
        sys.exit(WRONG_REQUEST)
    except BrokenPipeError:  # the reader of our output went away, as in `kdbench list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(SOME_FAILED)


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: brackets in it are no markup, and it is never cut."""
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def complain(text: str) -> None:
    """Print an error on standard error."""
    err.print(f"error: {text}", style="red", highlight=False, markup=False, soft_wrap=True)


def _table(*columns: str, title: str | None = None) -> Table:
    """A table that folds long cells instead of cutting them."""
    table = Table(title=escape(title) if title else None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _split(option: str, value: str | None) -> tuple[str, ...]:
    """The parts of a comma list; an empty one is an error: an unset shell variable must not mean all."""
    if value is None:
        return ()
    parts = tuple(part.strip() for part in value.split(",") if part.strip())
    if not parts:
        raise RequestError([f"--{option} is empty"])
    return parts


def _seeds(value: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in _split("seeds", value))
    except ValueError:
        raise RequestError([f"--seeds {value!r}: seeds are whole numbers, e.g. 0,1,2"]) from None


@app.command()
def run(
    methods: Annotated[str | None, typer.Option(help="Comma list; all methods if not given.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Comma list; synthetic if not given.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the dataset; else KDBENCH_DATA/DATASET.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Published split, where a dataset has several.")] = None,
    categories: Annotated[str | None, typer.Option(help="Comma list; all on disk if not given.")] = None,
    setting: Annotated[str | None, typer.Option(help="oneclass (default), multiclass or both.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma list; 0 if not given.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's epochs.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="METHOD.KEY=VALUE", help="Change a method's key; a comma list tries each."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="paper (each method's recipe) or demo (few epochs); depends on the dataset."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Teacher, see `kdbench list backbones`.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The teacher's weights: .pth or .safetensors.")] = None,
    preset: Annotated[str | None, typer.Option(help="Evaluation preset; exact if not given.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda, cuda:N.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto (default), fp32, bf16, fp16.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="local or ray; ray if cells can run side by side.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join (auto, HOST:PORT); else RAY_ADDRESS.")
    ] = None,
    cpus_per_cell: Annotated[
        int | None, typer.Option(help="CPU cores of a cell; a fair share of all if not given.")
    ] = None,
    gpus_per_cell: Annotated[
        float | None, typer.Option(help="GPUs of a cell, 0.5 for half of one; as measured if not given.")
    ] = None,
    memory_per_cell: Annotated[
        float | None, typer.Option(help="GiB of RAM of a cell; as measured if not given.")
    ] = None,
    checkpoint_every: Annotated[
        float | None, typer.Option(help="Minutes between checkpoints of a training (10); 0: none.")
    ] = None,
    latency: Annotated[
        bool | None,
        typer.Option("--latency/--no-latency", help="Time a detector of each entry afterwards (default)."),
    ] = None,
    results: Annotated[
        str | None, typer.Option(help="Folder or URI (s3://...) of the rows; results if not given.")
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(help="Folder of `kdbench report --rows`: what ended well there is copied, not run."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a cell may take.")] = None,
    redo: Annotated[
        str | None,
        typer.Option(help="failed or all: run ended cells again; failed: also timings that were not alone."),
    ] = None,
    keep_detectors: Annotated[
        bool | None,
        typer.Option("--keep-detectors/--discard-detectors", help="Keep trained detectors (default)."),
    ] = None,
    keep_pictures: Annotated[
        bool | None,
        typer.Option("--keep-pictures/--discard-pictures", help="Keep small anomaly maps (default)."),
    ] = None,
    report_: Annotated[Path, typer.Option("--report", help="Where the report is written.")] = REPORT,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and an estimate, run nothing.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with these keys (not report, dry-run); options win.")
    ] = None,
) -> None:
    """Train and evaluate every cell of methods x datasets x settings x seeds that has not ended yet."""
    with _without_collecting():
        from kdbench.grid.request import parse_sets, read_request

    request = read_request(
        config,
        {
            "methods": _split("methods", methods),
            "dataset": _split("dataset", dataset),
            "root": root,
            "split": split,
            "categories": _split("categories", categories),
            "setting": _split("setting", setting),
            "seeds": _seeds(seeds),
            "epochs": epochs,
            "set": parse_sets(set_ or []),
            "profile": profile,
            "backbone": backbone,
            "weights": weights,
            "preset": preset,
            "device": device,
            "precision": precision,
            "executor": executor,
            "address": address,
            "cpus_per_cell": cpus_per_cell,
            "gpus_per_cell": gpus_per_cell,
            "memory_per_cell": memory_per_cell,
            "checkpoint_every": checkpoint_every,
            "latency": latency,
            "results": results,
            "published": published,
            "timeout": timeout,
            "redo": redo,
            "keep_detectors": keep_detectors,
            "keep_pictures": keep_pictures,
        },
    )
    from kdbench.grid import schedule

    if request.address is None:
        request = request.model_copy(update={"address": os.environ.get("RAY_ADDRESS")})
    try:
        _run(request, dry_run, report_)
    finally:
        schedule.stop()


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Modules are no garbage: to look for it among them is a fifth of a command that has nothing to run."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def _run(request: Any, dry_run: bool, report_: Path) -> None:
    from kdbench.grid import schedule
    from kdbench.grid.cluster import this_machine
    from kdbench.grid.costs import known_costs, longest_first, with_needs
    from kdbench.grid.request import enough_disk, plan
    from kdbench.results.store import Results

    if "synthetic" in request.dataset:
        _announce_drawing()
    cluster = schedule.connect(request.executor, request.address)
    planned = plan(request, cluster)
    for notice in planned.notices:
        say(f"note: {notice}", style="yellow")
    cluster, store = cluster or this_machine(), Results(request.results)
    with _reading(request.results):
        costs = known_costs(store.storage)
        ends = store.ends(job.cell.id for job in planned.jobs)
    ended = {cell_id: end.status for cell_id, end in ends.items()}
    known = _published(request.published, {job.cell.id for job in planned.jobs} - ended.keys())
    ended |= dict.fromkeys(known, "ok")
    planned.jobs = with_needs(planned.jobs, request, cluster, costs, planned.data)
    # By the ends that were seen: what another run ends from now on nobody asked to run again.
    failed = {cell_id: end for cell_id, end in ends.items() if end.status != "ok"}
    again = {"all": ends, "failed": failed}.get(request.redo or "", {})
    todo = [job for job in planned.jobs if job.cell.id not in ended or job.cell.id in again]
    todo = [_replacing(job, again.get(job.cell.id)) for job in todo]
    schedule.refuse_impossible(todo, cluster)
    todo = longest_first(todo, planned.data, costs)
    asked = "ray" if request.executor is None and request.address else request.executor
    executor = schedule.choose_executor(asked, todo, cluster)
    if todo and request.latency and not request.keep_detectors:
        say("note: detectors that are not kept (--discard-detectors) cannot be timed", style="yellow")
    if dry_run:
        _show_plan(planned, todo, ended, costs, cluster, executor)
        return
    say(f"{len(planned.jobs)} cells: {len(planned.jobs) - len(todo)} ended before, {len(todo)} to run")
    run_id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + uuid4().hex[:6]
    if known or todo:
        with _complained(f"cannot write results in {request.results}"):
            store.check_writable()
    if known:
        with _complained(f"cannot copy rows of {request.published} to {request.results}"):
            store.take_over(request.published, known)
        say(f"{len(known)} cells taken over from {request.published}")
    if todo:
        full = enough_disk(request.results)
        if full:
            raise RequestError([full])
        _prepare(planned, todo)
        ended |= _execute(todo, planned, costs, request, executor, run_id)
    untimed = _measure(planned, ended, request, executor, run_id) if request.latency else 0
    if not any(status == "ok" for status in ended.values()):
        say("no cell ended well: nothing to report")
    else:
        _report(request.results, report_)
    counts = Counter(ended.get(job.cell.id, "not run") for job in planned.jobs)
    out.print("cells: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    if counts.keys() != {"ok"}:
        if len(ended) > counts["ok"]:
            say("run the same command with --redo failed to try those again")
        raise typer.Exit(SOME_FAILED)
    if untimed:
        raise typer.Exit(SOME_FAILED)


def _published(folder: str | None, wanted: Set[str]) -> set[str]:
    """Which of these cells ended well among published rows."""
    from kdbench.results.store import read_rows

    if folder is None:
        return set()
    with _reading(folder):
        ends = read_rows(folder, ["cell_id", "status"]).to_pylist()
    return {end["cell_id"] for end in ends if end["status"] == "ok"} & wanted


@contextmanager
def _complained(what: str) -> Iterator[None]:
    """An object store that does not answer, or a folder that may not be read or written, is a complaint."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output went away
        raise
    except OSError as error:
        raise RequestError([f"{what}: {error}"]) from error


def _reading(results: str) -> AbstractContextManager[None]:
    return _complained(f"cannot read results in {results}")


def _replacing(job: Any, before: Any) -> Any:
    """The job, knowing which end of its cell it replaces, if any."""
    from dataclasses import replace

    return replace(job, place=replace(job.place, replaces=before.run_id if before else None))


def _execute(
    todo: list[Any], planned: Any, costs: Any, request: Any, executor: str, run_id: str
) -> dict[str, str]:
    from kdbench.cli.view import View
    from kdbench.errors import ResultsError
    from kdbench.grid import schedule
    from kdbench.grid.costs import expected_seconds
    from kdbench.grid.status import RunFile, write_run
    from kdbench.results.store import Results

    ended: dict[str, str] = {}
    expected = expected_seconds(todo, planned.data, costs)
    labels = {job.cell.id: job.cell.label for job in todo}
    replaces = {job.cell.id: job.place.replaces for job in todo if job.place.replaces}
    view = View(out, expected)
    try:
        run = RunFile(run_id=run_id, started=time.time(), cells=expected, labels=labels, replaces=replaces)
        with _complained(f"cannot write results in {request.results}"):
            write_run(Results(request.results), run)
        with view:
            for outcome in schedule.execute(
                todo,
                planned.data,
                executor=executor,
                address=request.address,
                run_id=run_id,
                notify=view.notify,
                watch=lambda now: view.watch(now.holders, now.num_waiting, now.elsewhere),
                timeout_s=request.timeout,
            ):
                ended[outcome.cell_id] = outcome.status
                view.ended(outcome)
    except KeyboardInterrupt:
        out.print(
            f"interrupted: {len(ended)} of {len(todo)} cells ended and are kept; the same command resumes"
        )
        sys.exit(INTERRUPTED)
    except ResultsError as error:
        complain(
            f"cannot write results in {request.results}: {error}. "
            f"{len(ended)} cells ended and are kept; the same command resumes"
        )
        sys.exit(SOME_FAILED)
    return ended


def _measure(planned: Any, ended: dict[str, str], request: Any, executor: str, run_id: str) -> int:
    """Time a detector of each entry that was not timed yet; returns how many could not be timed."""
    import torch

    from kdbench.engine.provenance import device_name
    from kdbench.grid import schedule
    from kdbench.grid.costs import read_timed, to_time, without_timing
    from kdbench.results.store import Results

    good = [job for job in planned.jobs if ended.get(job.cell.id) == "ok"]
    known = good and (executor == "local" or not request.address)  # not what the nodes of a cluster have
    here = device_name(torch.device(good[0].place.device)) if known else None
    with _reading(request.results):
        there = read_timed(Results(request.results))
    jobs = to_time(good, there, here, busy_again=request.redo == "failed")
    lacking = without_timing(good, there)
    if lacking and request.keep_detectors:  # else it was said before
        cell = lacking[0].cell
        first = f"{cell.method} on {cell.dataset}, {cell.setting}"
        say(
            f"note: {len(lacking)} detectors cannot be timed, for they were not kept; first: {first}",
            style="yellow",
        )
    if jobs:
        say(f"timing {len(jobs)} detectors, each alone on the device (--no-latency: not)")
    num_wrong = 0
    timed = schedule.measure(jobs, executor=executor, address=request.address, run_id=run_id)
    for number, (job, error) in enumerate(timed, 1):
        if error:
            complain(f"{job.cell.label} could not be timed: {error}")
            num_wrong += 1
        else:
            say(f"[{number}/{len(jobs)}] {job.cell.method} is timed")
    return num_wrong


def _prepare(planned: Any, todo: list[Any]) -> None:
    """Build each teacher and decode images before the first cell: what is wrong with them is found here."""
    from kdbench.grid.prepare import prepare

    with _decoding_bar() as tick:
        complaints = prepare(todo, planned.data, tick)
    if complaints:
        raise RequestError(complaints)


@contextmanager
def _decoding_bar() -> Iterator[Any]:
    """A progress bar on a terminal, as a function that takes how many images are done, of how many."""
    from rich.progress import Progress

    with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
        bar = bars.add_task("decoding images", total=1)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _announce_drawing() -> None:
    from kdbench.datasets.synthetic import Synthetic
    from kdbench.files import cache_folder

    if not Synthetic.drawn():
        say(f"drawing the synthetic dataset in {cache_folder()} (once, under half a minute)")


def _show_plan(
    planned: Any, todo: list[Any], ended: dict[str, str], costs: Any, cluster: Any, executor: str
) -> None:
    """The cells in the order in which they start, then those that ended before."""
    from kdbench.cli.view import duration
    from kdbench.grid.cluster import makespan_s
    from kdbench.grid.costs import estimate_seconds

    seconds = estimate_seconds(todo, planned.data, costs)
    table = _table("cell", "method", "dataset", "setting", "category", "seed", "profile", "state", "estimate")
    pending = {job.cell.id for job in todo}
    for job in [*todo, *(job for job in planned.jobs if job.cell.id not in pending)]:
        cell = job.cell
        words = (cell.id[:8], cell.method, cell.dataset, cell.setting, cell.category, str(cell.seed))
        to_run = cell.id in pending
        state = f"to run ({job.need})" if to_run else ended[cell.id]
        expected = seconds.get(cell.id)
        estimate = "unknown" if expected is None else duration(expected)
        table.add_row(*words, cell.profile, state, estimate if to_run else "")
    out.print(table)
    where = f"{executor}: {cluster}"
    known = {cell_id: expected for cell_id, expected in seconds.items() if expected is not None}
    if len(known) < len(seconds):
        say(f"{len(todo)} of {len(planned.jobs)} cells to run with {where}")
        say("how long is unknown: none of the kind has ended, and there is no GPU here to measure a step on")
        return
    total = sum(known.values())
    planned_s = makespan_s([(known[job.cell.id], job.need) for job in todo], cluster)
    took = planned_s if executor == "ray" else total
    say(f"{len(todo)} of {len(planned.jobs)} cells to run, about {duration(took)} with {where}")
    if executor == "ray":
        say(f"about {duration(total)} one after another")


@app.command()
def status(
    results: Annotated[str, typer.Option(help="The results folder or URI.")] = "results",
) -> None:
    """How far the runs on a results folder are: queue, running cells, failures, time left."""
    from kdbench.cli.view import duration
    from kdbench.grid.status import states
    from kdbench.results.store import Results

    with _reading(results):
        found = states(Results(results))
    if not found:
        raise RequestError([f"no run has begun in {results}: `kdbench run --results {results}` begins one"])
    going = [state for state in found if state.running] or found[:1]
    for state in going:
        counted = ", ".join(f"{count} {name}" for name, count in state.counts.items() if count)
        left = f", about {duration(state.left_s)} left" if state.left_s and state.running else ""
        say(f"run {state.run.run_id}: {len(state.run.cells)} cells, {counted}{left}")
        for holder in state.running:
            said = holder.progress
            where = f"{said.get('phase', 'start')} {said.get('done', 0)}/{said.get('total', 0)} images"
            epochs = f", epoch {said['epoch']}/{said['epochs']}" if said.get("epochs") else ""
            took = duration(time.time() - holder.since)
            problem = f", {said['problem']}" if said.get("problem") else ""
            at = f"{holder.host} (process {holder.pid})"
            say(f"  {at}: {holder.label} · {where}{epochs}, for {took}{problem}")
        if not state.running and state.counts["waiting"]:
            say("  nobody is running it: the same `kdbench run` command resumes it")


@app.command()
def sweep(
    method: Annotated[
        str | None, typer.Argument(help="The method; or `method` in the --config file.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="synthetic if not given.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the dataset; else KDBENCH_DATA/DATASET.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Published split, where a dataset has several.")] = None,
    categories: Annotated[str | None, typer.Option(help="Comma list; all on disk if not given.")] = None,
    setting: Annotated[str | None, typer.Option(help="oneclass (default) or multiclass.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma list; a trial trains all of them.")] = None,
    trials: Annotated[int | None, typer.Option(help="Configurations to try; 20 if not given.")] = None,
    space: Annotated[
        Path | None, typer.Option(help="TOML file of ranges and choices; else the method's own.")
    ] = None,
    search: Annotated[str | None, typer.Option(help="random (default) or optuna.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="asha (default) or none.")] = None,
    objective: Annotated[str | None, typer.Option(help="The metric to maximise; mad if not given.")] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="synthetic (default): no test image is seen. test: to study the bias, never ranked."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the recipe's epochs.")] = None,
    report_every: Annotated[
        int | None, typer.Option(help="Epochs between looks at the objective; a ninth of all if not given.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Change a key of every trial."),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="paper or demo; depends on the dataset.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Teacher, see `kdbench list backbones`.")] = None,
    weights: Annotated[Path | None, typer.Option(help="The teacher's weights: .pth or .safetensors.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu or cuda.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto (default), fp32, bf16, fp16.")] = None,
    cpus_per_trial: Annotated[int | None, typer.Option(help="CPU cores of a trial; 1 if not given.")] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="1 on a GPU if not given; below 1, trials share one.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Trials at a time; as many as fit if not given.")
    ] = None,
    results: Annotated[str | None, typer.Option(help="Where rows are kept; results if not given.")] = None,
    keep_detectors: Annotated[
        bool | None,
        typer.Option("--keep-detectors/--discard-detectors", help="Keep them (default), for --audit."),
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="When all trials have ended, score them on the test images.")
    ] = False,
    report_: Annotated[Path, typer.Option("--report", help="Where the report is written.")] = REPORT,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with these keys (not audit, report); options win.")
    ] = None,
) -> None:
    """Search a method's configuration on normal images with synthetic defects; no test image is seen."""
    from kdbench.grid.request import parse_sets, read_model
    from kdbench.sweeps._plan import SweepRequest, plan_sweep

    request = read_model(
        SweepRequest,
        config,
        {
            "method": method,
            "dataset": _split("dataset", dataset),
            "root": root,
            "split": split,
            "categories": _split("categories", categories),
            "setting": _split("setting", setting),
            "seeds": _seeds(seeds),
            "trials": trials,
            "space": space,
            "search": search,
            "scheduler": scheduler,
            "objective": objective,
            "selection": selection,
            "epochs": epochs,
            "report_every": report_every,
            "set": parse_sets(set_ or []),
            "profile": profile,
            "backbone": backbone,
            "weights": weights,
            "device": device,
            "precision": precision,
            "cpus_per_trial": cpus_per_trial,
            "gpus_per_trial": gpus_per_trial,
            "max_concurrent": max_concurrent,
            "results": results,
            "keep_detectors": keep_detectors,
        },
    )
    if "synthetic" in request.dataset:
        _announce_drawing()
    planned = plan_sweep(request)
    for notice in planned.notices:
        say(f"note: {notice}", style="yellow")
    sys.exit(_sweep(planned, audit, report_))


def _sweep(planned: Any, audit: bool, folder: Path) -> int:
    """Run a sweep, show what it found and return the exit code."""
    from kdbench.reports.sweep import write_sweeps
    from kdbench.results.store import Results
    from kdbench.sweeps._audit import audit_trials
    from kdbench.sweeps._end import Lines, summary
    from kdbench.sweeps.tune import run_sweep

    store, where = Results(planned.sweep.place.results), planned.request.results
    try:
        store.check_writable()
    except OSError as error:
        raise RequestError([f"cannot write results in {where}: {error.strerror}"]) from error
    _prepare(planned.cells, planned.cells.jobs)
    lines = Lines(planned)
    say(lines.first())
    try:
        end = run_sweep(planned, lambda row: say(lines.of(row)))
        if audit:
            audit_trials(planned, lambda row, value: say(lines.audited(row, value)))
    except KeyboardInterrupt:
        say("interrupted: what ended is kept; the same command resumes")
        return INTERRUPTED
    good = summary(planned, end, say)
    with _complained(f"cannot write the report in {folder}"):
        path, *_ = write_sweeps(planned.sweep.place.results, folder)
    say(f"report: {path}")
    return OK if good else SOME_FAILED


@app.command()
def report(
    results: Annotated[str, typer.Option(help="The results folder or URI.")] = "results",
    out_: Annotated[Path, typer.Option("--out", help="Where the report is written.")] = REPORT,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Also upload rows and report to this dataset repository."),
    ] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Also log to this MLflow server.")] = None,
    wandb: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="Also log to this Weights & Biases project.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Also write all rows here, a few files that can be shared.")
    ] = None,
    into: Annotated[
        list[Path] | None, typer.Option(metavar="PAGE", help="Also fill the tables of this Markdown page.")
    ] = None,
) -> None:
    """Write the report of all rows of a results folder; works while cells are still running."""
    from kdbench.reports import publish
    from kdbench.reports.embed import embed
    from kdbench.reports.leaderboard import all_tables

    chosen = {"huggingface_hub": push_to_hub, "mlflow": mlflow, "wandb": wandb}
    for module in (name for name, value in chosen.items() if value):
        publish.check_extra(module)  # before the report is written, not after
    files = _report(results, out_, page=True)
    if rows:
        with _complained(f"cannot write rows in {rows}"):
            publish.write_rows(results, rows)
        say(f"rows: {rows}")
    if into:
        with _reading(results):
            tables = all_tables(results)
        for page in into:
            with _complained(f"cannot fill {page}"):
                embed(page, tables)
            say(f"tables: {page}")
    with _reading(results):
        if push_to_hub:
            say(f"pushed: {publish.push_to_hub(results, files, push_to_hub)}")
        if mlflow:
            say(f"logged {publish.log_to_mlflow(results, files, mlflow)} runs to MLflow at {mlflow}")
        if wandb:
            say(f"logged {publish.log_to_wandb(results, files, wandb)} runs to the wandb project {wandb}")


def _report(results: str, folder: Path, *, page: bool = False) -> list[Path]:
    """Write the leaderboard, or with `page` everything; say where it is; returns the files."""
    from kdbench.reports.leaderboard import write_leaderboard
    from kdbench.reports.sweep import write_sweeps
    from kdbench.results.store import read_trials

    with _complained(f"cannot write the report in {folder}"):
        try:
            if page:
                from kdbench.reports.page import write_report

                written = write_report(results, folder)
                path, headline, files = written.page, written.headline, written.files
            else:
                path, headline = write_leaderboard(results, folder)
                files = [path]
        except FileNotFoundError as error:
            if not read_trials(results).num_rows:
                raise RequestError([str(error)]) from error
            files = write_sweeps(results, folder)  # a sweep alone has no leaderboard
            say(f"report: {files[0]}")
            return files
    say(headline)
    say(f"report: {path}")
    return files


@app.command()
def compare(
    results_a: Annotated[str, typer.Argument(help="The results folder or URI before.")],
    results_b: Annotated[str, typer.Argument(help="The results folder or URI after.")],
    tolerance: Annotated[
        float, typer.Option(help="How much worse a metric may be, as a fraction; 0.01 is one point.")
    ] = 0.01,
    out_: Annotated[
        Path | None, typer.Option("--out", help="Also write compare.md and compare.csv here.")
    ] = None,
) -> None:
    """Show what changed between two results folders; exit code 1 if something became worse, for CI."""
    from kdbench.reports.compare import compare as compare_folders
    from kdbench.reports.compare import write_comparison

    with _reading(f"{results_a} or {results_b}"):
        found = compare_folders(results_a, results_b, tolerance)
    for table in (found.origins, found.ends, found.means, found.beyond):
        if table.body:
            shown = _table(*map(escape, table.head), title=table.title)
            for line in table.body:
                shown.add_row(*(escape(value.text) for value in line))
            out.print(shown)
    if out_:
        try:
            say(f"all differences: {write_comparison(found, out_)}")
        except OSError as error:
            raise RequestError([f"cannot write the comparison in {out_}: {error.strerror}"]) from error
    say(found.headline)
    if found.num_regressions:
        raise typer.Exit(SOME_FAILED)


@app.command()
def probe(
    results: Annotated[str, typer.Option(help="The results folder or URI, with detectors kept.")] = "results",
    root: Annotated[
        Path | None, typer.Option(help="Folder of the dataset; else KDBENCH_DATA/DATASET.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="The teacher's weights, as in `kdbench run`.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    report_: Annotated[Path, typer.Option("--report", help="Where the report is written.")] = REPORT,
) -> None:
    """Measure, with normal images only, how far the categories of each multiclass detector interfere."""
    from kdbench.engine.probe import probe as probe_detectors
    from kdbench.grid.request import choose_device
    from kdbench.results.store import Results, read_rows

    chosen, wrong = choose_device(device)
    if wrong:
        raise RequestError(wrong)
    with _complained(f"cannot probe the detectors of {results}"):
        count, left_out = probe_detectors(
            Results(results),
            read_rows(results).to_pylist(),
            root,
            weights,
            chosen,
            lambda method, category: say(f"probed {method} · {category}"),
        )
    for line in left_out:
        say(f"left out: {line}", style="yellow")
    say(f"{count} detectors probed; ended ones are not probed again")
    _report(results, report_)


list_app = typer.Typer(
    help="What there is to choose from.", no_args_is_help=False, invoke_without_command=True
)
app.add_typer(list_app, name="list")


@list_app.callback()
def list_all(context: typer.Context) -> None:
    """List methods, datasets and backbones."""
    if context.invoked_subcommand is None:
        list_methods()
        list_datasets()
        list_backbones()


@list_app.command("methods")
def list_methods(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the page docs/methods.md.")] = False,
) -> None:
    """Methods, how near each is to its paper, and where it departs from it."""
    from kdbench.registry import method_facts, method_names, methods_page

    if markdown:
        sys.stdout.write(methods_page())
        return
    table = _table("method", "paper", "fidelity", "what it is", title="methods")
    facts = [method_facts(name) for name in method_names()]
    for fact in facts:
        table.add_row(fact.name, fact.paper, fact.fidelity, fact.summary)
    out.print(table)
    for fact in facts:
        for departure in fact.departures:
            say(f"{fact.name}: {departure}")


@list_app.command("datasets")
def list_datasets() -> None:
    """Datasets with their categories and licences."""
    from kdbench.registry import dataset_names, get_dataset

    table = _table("dataset", "categories", "licence", "download", title="datasets")
    for name in dataset_names():
        dataset = get_dataset(name)
        known = f"{len(dataset.categories)}: {', '.join(dataset.categories)}"
        row = (name, known if dataset.categories else "what is on disk", dataset.licence)
        table.add_row(*map(escape, row), "yes" if getattr(dataset, "archives", ()) else "")
    out.print(table)
    for name in dataset_names():
        for note in get_dataset(name).notes:
            say(f"{name}: {note}")


@list_app.command("backbones")
def list_backbones() -> None:
    """Teachers that were tried; every timm backbone NAME.TAG with feature maps can be named."""
    from kdbench.known_backbones import BACKBONES

    table = _table("backbone", "what it is", title="backbones")
    for name, what in BACKBONES.items():
        table.add_row(name, what)
    out.print(table)
    say("and every timm backbone with feature maps, as NAME.TAG")


data_app = typer.Typer(help="Look at, check, decode and download datasets.", no_args_is_help=True)
app.add_typer(data_app, name="datasets")
data_app.command("list")(list_datasets)

Name = Annotated[str, typer.Argument(help="The dataset's name.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the dataset; else KDBENCH_DATA/DATASET.")]


@data_app.command("check")
def check_dataset(
    name: Name,
    root: Root = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every image and mask.")] = False,
) -> None:
    """Compare what is on disk with what was published, and name what is missing or wrong."""
    from rich.progress import Progress

    from kdbench.data.check import check
    from kdbench.registry import get_dataset

    dataset = get_dataset(name)
    folder = dataset.root(root)
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
        bar = bars.add_task("decoding", total=None)
        found = check(
            dataset,
            folder,
            deep=deep,
            on_progress=lambda c, done, total: bars.update(bar, description=c, completed=done, total=total),
        )
    table = _table("category", "train", "normal test", "defective", "masks", "published", title=str(folder))
    for one in found:
        counts = one.found
        numbers = (counts.train, counts.normal, counts.defective, counts.masks) if counts else ("-",) * 4
        published = "/".join(map(str, one.published)) if one.published else "unknown"
        style = None if one.good else "yellow" if not one.present else "red"
        table.add_row(escape(one.category), *map(str, numbers), published, style=style)
    out.print(table)
    for one in found:
        for problem in one.problems if one.present else ():
            say(problem)  # each names its category or its path
        if one.num_empty_masks:
            say(
                f"{one.category}: {one.num_empty_masks} masks mark nothing; they count for image metrics only"
            )
    bad = [one for one in found if one.problems and one.present]
    absent = sum(not one.present for one in found)
    say(
        f"{len(found) - len(bad) - absent} of {len(found)} categories good, {len(bad)} wrong, {absent} absent"
    )
    if bad or absent:
        raise typer.Exit(SOME_FAILED)


@data_app.command("prepare")
def prepare_dataset(
    name: Name,
    root: Root = None,
    categories: Annotated[str | None, typer.Option(help="Comma list; all on disk if not given.")] = None,
    image_size: Annotated[int, typer.Option(help="Side of the decoded images.")] = 256,
    preset: Annotated[str, typer.Option(help="Evaluation preset, for the masks.")] = "exact",
) -> None:
    """Decode all images once, so that no run has to; `kdbench run` does the same where it is needed."""
    from kdbench.errors import unknown
    from kdbench.files import cache_folder
    from kdbench.grid.prepare import decode
    from kdbench.grid.request import find_data
    from kdbench.metrics.presets import PRESETS
    from kdbench.registry import get_dataset

    if preset not in PRESETS:
        raise RequestError([unknown("preset", preset, PRESETS)])
    data = find_data(get_dataset(name), root, _split("categories", categories))
    needed = [(name, category, image_size, preset) for category in data.categories]
    with _decoding_bar() as tick:
        complaints = decode(needed, {name: data}, tick)
    if complaints:
        raise RequestError(complaints)
    num_images = sum(len(c.train) + len(c.test) for c in data.categories.values())
    say(f"{num_images} images of {len(data.categories)} categories are ready in {cache_folder()}")


@data_app.command("download")
def download_dataset(
    name: Name,
    root: Annotated[Path | None, typer.Option(help="Where it goes; else KDBENCH_DATA/DATASET.")] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="I have read the licence.")
    ] = False,
) -> None:
    """Download, verify and unpack a dataset; goes on where it was interrupted."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from kdbench.data.download import download, download_folder, licence_of
    from kdbench.registry import get_dataset

    dataset = get_dataset(name)
    say(licence_of(dataset))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        bar = bars.add_task("download", total=None)
        path = download(
            dataset,
            download_folder(dataset, root),
            accept_licence=accept_licence,
            on_progress=lambda what, done, total: bars.update(
                bar, description=what, completed=done, total=total
            ),
        )
    say(f"{dataset.title} is in {path}; compare it: kdbench datasets check {name} --root {path}")


@app.command("new-method")
def new_method_(
    name: Annotated[str, typer.Argument(help="Lower-case, like my_method.")],
    folder: Annotated[Path, typer.Option(help="Where the package is written.")] = Path(),
) -> None:
    """Write a package with a method of your own that runs as it stands."""
    from kdbench.new_method import new_method

    path = new_method(name, folder)
    out.print(
        f"wrote {path}; next: pip install -e {path}, then kdbench run --methods {name}", highlight=False
    )


@app.command()
def doctor() -> None:
    """Versions, devices, folders; what is missing and how to get it."""
    from kdbench.cli.doctor import examine

    findings = examine()
    table = _table("what", "found", "what to do", title="kdbench doctor")
    for finding in findings:
        table.add_row(
            *map(escape, (finding.what, finding.found, finding.advice)),
            style="red" if finding.wrong else None,
        )
    out.print(table)
    if any(finding.wrong for finding in findings):
        raise typer.Exit(SOME_FAILED)
