"""The commands; the only place that prints and that decides on exit codes."""

import os
import sys
import time
from collections import Counter
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
    executor: Annotated[str | None, typer.Option(help="local (default) or ray.")] = None,
    cpus_per_cell: Annotated[
        int | None, typer.Option(help="CPU cores of a cell; all with local, 1 with ray if not given.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Where rows are kept; results if not given.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds that a cell may take.")] = None,
    redo: Annotated[str | None, typer.Option(help="failed or all: run ended cells again.")] = None,
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
    from kdbench.request import enough_disk, parse_sets, plan, read_request

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
            "cpus_per_cell": cpus_per_cell,
            "results": results,
            "timeout": timeout,
            "redo": redo,
            "keep_detectors": keep_detectors,
            "keep_pictures": keep_pictures,
        },
    )
    if "synthetic" in request.dataset:
        _announce_drawing()
    planned = plan(request)
    for notice in planned.notices:
        say(f"note: {notice}", style="yellow")
    from kdbench.results import Results

    store = Results(request.results)
    ended = store.statuses(job.cell.id for job in planned.jobs)
    again = {"all": tuple(ended), "failed": tuple(i for i, s in ended.items() if s != "ok")}.get(
        request.redo or "", ()
    )
    todo = [job for job in planned.jobs if job.cell.id not in ended or job.cell.id in again]
    if dry_run:
        _show_plan(planned, todo, ended, request.results)
        return
    say(f"{len(planned.jobs)} cells: {len(planned.jobs) - len(todo)} ended before, {len(todo)} to run")
    if todo:
        try:
            store.check_writable()
        except OSError as error:
            raise RequestError([f"cannot write results in {request.results}: {error.strerror}"]) from error
        full = enough_disk(request.results)
        if full:
            raise RequestError([full])
        _prepare(planned, todo)
        ended |= _execute(todo, request)
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


def _execute(todo: list[Any], request: Any) -> dict[str, str]:
    from kdbench.live import View
    from kdbench.run import ResultsError
    from kdbench.schedule import execute

    ended: dict[str, str] = {}
    run_id = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + uuid4().hex[:6]
    view = View(out, len(todo))
    try:
        with view:
            for outcome in execute(
                todo,
                executor=request.executor,
                run_id=run_id,
                notify=view.notify,
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


def _prepare(planned: Any, todo: list[Any]) -> None:
    """Build each teacher and decode images before the first cell: what is wrong with them is found here."""
    import json

    from kdbench.backbone import teacher

    complaints: list[str] = []
    teachers: dict[tuple[Any, ...], Any] = {}
    needed: dict[tuple[Any, ...], None] = {}
    for job in todo:
        config = json.loads(job.cell.config)
        teachers[config["backbone"], tuple(config["levels"])] = job.place.weights
        for category in job.cell.categories:
            needed[job.cell.dataset, category, config["image_size"], job.cell.preset] = None
    for (name, levels), weights in teachers.items():
        try:
            teacher(name, levels, weights)
        except RequestError as error:
            complaints += error.complaints
    complaints += _decode([(planned.data[name], *rest) for name, *rest in needed])
    if complaints:
        raise RequestError(complaints)


def _decode(needed: list[Any]) -> list[str]:
    """Decode images and masks of (found dataset, category, image size, preset) once; returns complaints."""
    from rich.progress import Progress

    from kdbench.dataset import cache_folder
    from kdbench.images import images_ready, open_images, open_truth
    from kdbench.presets import PRESETS

    def to_decode(data: Any, category: str, size: int) -> int:
        found, fingerprint = data.categories[category], data.fingerprints[category]
        ready = images_ready(data.dataset, found, fingerprint, size)
        return 0 if ready else len(found.train) + len(found.test)

    complaints = []
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
        cold = sum(to_decode(data, category, size) for data, category, size, _ in needed)
        bar = bars.add_task("decoding images", total=cold or 1)
        for data, category, size, preset in needed:
            found, fingerprint = data.categories[category], data.fingerprints[category]
            try:
                open_images(data.dataset, found, fingerprint, size, lambda n: bars.advance(bar, n))
                open_truth(data.dataset, found, fingerprint, PRESETS[preset])
            except DataError as error:
                complaints.append(str(error))
            except OSError as error:
                complaints.append(
                    f"cannot write decoded images in {cache_folder()}: {error.strerror or error}"
                )
    return complaints


def _announce_drawing() -> None:
    from kdbench.dataset import cache_folder
    from kdbench.datasets.synthetic import Synthetic

    if not Synthetic.drawn():
        say(f"drawing the synthetic dataset in {cache_folder()} (once, under half a minute)")


def _show_plan(planned: Any, todo: list[Any], ended: dict[str, str], results: Path) -> None:
    from kdbench.estimate import estimate_seconds
    from kdbench.live import duration

    pending = {job.cell.id for job in todo}
    jobs, seconds = planned.jobs, estimate_seconds(todo, planned.data, results)
    table = _table("cell", "method", "dataset", "setting", "category", "seed", "profile", "state", "estimate")
    for job in jobs:
        cell = job.cell
        state = "to run" if cell.id in pending else ended[cell.id]
        table.add_row(
            cell.id[:8],
            cell.method,
            cell.dataset,
            cell.setting,
            cell.category,
            str(cell.seed),
            cell.profile,
            state,
            duration(seconds[cell.id]) if cell.id in pending else "",
        )
    out.print(table)
    total = duration(sum(seconds.values()))
    say(f"{len(todo)} of {len(jobs)} cells to run, about {total} one after another on this machine")


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="The results folder.")] = Path("results"),
    out_: Annotated[Path, typer.Option("--out", help="Where the report is written.")] = REPORT,
) -> None:
    """Write the leaderboard of all rows of a results folder; works while cells are still running."""
    _report(results, out_)


def _report(results: Path, folder: Path) -> None:
    from kdbench.reports.leaderboard import write_leaderboard

    try:
        path, headline = write_leaderboard(results, folder)
    except FileNotFoundError as error:
        raise RequestError([str(error)]) from error
    except OSError as error:
        raise RequestError([f"cannot write the report in {folder}: {error.strerror}"]) from error
    say(headline)
    say(f"report: {path}")


@app.command()
def probe(
    results: Annotated[Path, typer.Option(help="The results folder, with detectors kept.")] = Path("results"),
    root: Annotated[
        Path | None, typer.Option(help="Folder of the dataset; else KDBENCH_DATA/DATASET.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="The teacher's weights, as in `kdbench run`.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N.")] = "auto",
    report_: Annotated[Path, typer.Option("--report", help="Where the report is written.")] = REPORT,
) -> None:
    """Measure, with normal images only, how far the categories of each multiclass detector interfere."""
    from kdbench.probe import probe as probe_detectors
    from kdbench.request import choose_device
    from kdbench.results import Results, read_rows

    chosen, wrong = choose_device(device)
    if wrong:
        raise RequestError(wrong)
    try:
        rows = read_rows(results).to_pylist()
    except FileNotFoundError as error:
        raise RequestError([str(error)]) from error
    count = probe_detectors(
        Results(results),
        rows,
        root,
        weights,
        chosen,
        lambda method, category: say(f"probed {method} · {category}"),
    )
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

    from kdbench.check import check
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
    from kdbench.dataset import cache_folder
    from kdbench.errors import unknown
    from kdbench.presets import PRESETS
    from kdbench.registry import get_dataset
    from kdbench.request import find_data

    if preset not in PRESETS:
        raise RequestError([unknown("preset", preset, PRESETS)])
    data = find_data(get_dataset(name), root, _split("categories", categories))
    complaints = _decode([(data, category, image_size, preset) for category in data.categories])
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

    from kdbench.download import download, download_folder, licence_of
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
    from kdbench.doctor import examine

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
