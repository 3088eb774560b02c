"""`kdbench export-maps`, `rescore` and `probe`: maps and numbers from kept detectors, without training."""

from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli import complete
from kdbench.cli.options import Device, OldOut, Out, Results, Root, Weights, at_home, report_folder
from kdbench.cli.report import write
from kdbench.cli.terminal import SOME_FAILED, complain, complained, reading, say
from kdbench.errors import RequestError, number_of

# A folder of maps has one value of each.
NAMED = ("method", "dataset", "setting", "preset", "profile", "seed")


def export_maps(
    out: Annotated[Path, typer.Argument(help="Folder that gets the maps.", callback=at_home)],
    results: Results = "results",
    method: Annotated[
        str | None, typer.Option(help="The method, if there are several.", autocompletion=complete.methods)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="The dataset, if there are several.", autocompletion=complete.datasets)
    ] = None,
    setting: Annotated[str | None, typer.Option(metavar="oneclass|multiclass", help="The setting.")] = None,
    preset: Annotated[str | None, typer.Option(help="The preset of the cells.")] = None,
    profile: Annotated[str | None, typer.Option(help="The profile of the cells.")] = None,
    seed: Annotated[int | None, typer.Option(help="The seed, if there are several.")] = None,
    cell: Annotated[
        list[str] | None,
        typer.Option(metavar="CELL_ID", help="These cells only.", autocompletion=complete.cells),
    ] = None,
    original_size: Annotated[
        bool,
        typer.Option("--original-size", help="Resize each map to its image's size, for MVTec's code."),
    ] = False,
    root: Root = None,
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Write the anomaly maps of kept detectors as TIFF files, and their image scores as CSV."""
    import torch

    from kdbench.engine.export import SCORES
    from kdbench.engine.export import export_maps as export
    from kdbench.grid.plan import choose_device
    from kdbench.results.store import Results

    asked = dict(zip(NAMED, (method, dataset, setting, preset, profile, seed), strict=True))
    rows = _chosen(results, asked, cell)
    if out.is_dir() and any(out.iterdir()):
        raise RequestError([f"{out} is not empty: maps of another export would stay among the new ones"])
    chosen = torch.device(choose_device(device))
    with complained(f"cannot write maps in {out}"):
        count = export(
            Results(results),
            rows,
            out,
            root=root,
            weights=weights,
            device=chosen,
            original_size=original_size,
            tick=lambda method, category: say(f"scored {method} · {category}"),
        )
    say(f"{count} maps in {out}, and their image scores in {out / SCORES}")


def _chosen(
    results: str, asked: dict[str, str | int | None], cells: list[str] | None
) -> list[dict[str, object]]:
    """One row of each cell that fits; RequestError if none does, or if they would share file names."""
    from kdbench.reports.rows import load_rows
    from kdbench.results.store import CELLS, read

    with reading(results):
        rows = load_rows(results)
    rows = rows[(rows["status"] == "ok") & rows["outside_sha256"].isna()]
    for name, value in asked.items():
        if value is not None:
            rows = rows[rows[name] == value]
    if cells:
        rows = rows[rows["cell_id"].isin(cells)]
    if rows.empty:
        raise RequestError([f"no cell of {results} that succeeded fits"])
    columns = [name for name in (*NAMED, "config") if rows[name].nunique() > 1]
    if columns:
        several = [f"{name} ({', '.join(sorted(map(str, rows[name].unique())))})" for name in columns]
        raise RequestError(
            [
                f"{rows['cell_id'].nunique()} cells fit, and they differ in {'; '.join(several)}. A folder "
                "has the maps of one: name it, or its cells with --cell"
            ]
        )
    # Read again: pandas makes floats of whole numbers where the rows of another program have none.
    wanted = dict.fromkeys(rows["cell_id"])
    found = {row["cell_id"]: row for row in reversed(read(results, CELLS, only=wanted).to_pylist())}
    return [found[cell_id] for cell_id in wanted]


def rescore(
    results: Results = "results", root: Root = None, weights: Weights = None, device: Device = "auto"
) -> None:
    """Compute metrics that rows lack from kept detectors; nothing is trained, and no value changes."""
    import torch

    from kdbench.engine.rescore import rescore as compute
    from kdbench.grid.plan import choose_device
    from kdbench.results.store import Results

    chosen = torch.device(choose_device(device))
    with complained(f"cannot score the detectors of {results} again"):
        count, why = compute(
            Results(results),
            root,
            weights,
            chosen,
            lambda method, category: say(f"scored {method} · {category}"),
        )
    say(
        f"all metrics of {number_of(count, 'cell')} are there now"
        if count or why
        else "no row lacks a metric"
    )
    for line in why:
        complain(line)
    if why:
        raise typer.Exit(SOME_FAILED)


def probe(
    results: Results = "results",
    root: Root = None,
    weights: Weights = None,
    device: Device = "auto",
    out: Out = None,
    report: OldOut = None,
) -> None:
    """Measure, with normal images only, how far the categories of each multiclass detector interfere."""
    from kdbench.engine.probe import probe as probe_detectors
    from kdbench.grid.plan import choose_device
    from kdbench.results.store import CELLS, Results, read

    folder = report_folder(out, report)
    chosen = choose_device(device)
    with complained(f"cannot probe the detectors of {results}"):
        count, left_out = probe_detectors(
            Results(results),
            read(results, CELLS).to_pylist(),
            root,
            weights,
            chosen,
            lambda method, category: say(f"probed {method} · {category}"),
        )
    for line in left_out:
        say(f"left out: {line}", style="yellow")
    say(f"{number_of(count, 'detector')} probed; those that were probed before are not probed again")
    write(results, folder)
