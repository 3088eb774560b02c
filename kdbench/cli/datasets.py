"""`kdbench datasets`: look at, check, decode, download and convert datasets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdbench.cli import complete, documents
from kdbench.cli.lists import list_datasets
from kdbench.cli.options import Root, at_home, comma_list, unusual
from kdbench.cli.scripts import Answer, for_scripts
from kdbench.cli.tables import Line, show
from kdbench.cli.terminal import OK, SOME_FAILED, decoding_bar, moving, note, say, say_next
from kdbench.errors import complained, number_of

if TYPE_CHECKING:
    from kdbench.data.audit import Shortcut
    from kdbench.data.check import CategoryCheck

data_app = typer.Typer(help="Look at, check, decode, download and convert datasets.", no_args_is_help=True)
data_app.command("list")(list_datasets)

Categories = Annotated[
    str | None,
    typer.Option(help="Comma list; all on disk if not given.", autocompletion=complete.categories),
]
Name = Annotated[str, typer.Argument(help="The dataset's name.", autocompletion=complete.datasets)]


@data_app.command("check")
@for_scripts
def check_dataset(
    name: Name,
    root: Root = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also decode every image and mask.")] = False,
    large_masks: Annotated[
        bool, typer.Option("--large-masks", help="Accept masks that mark more than half of their image.")
    ] = False,
) -> Answer:
    """Compare a dataset on disk with the published counts, and name each missing or wrong file."""
    from kdbench.data.check import check
    from kdbench.registry import get_dataset

    dataset = get_dataset(name)
    folder = dataset.root(root)
    with moving() as bars:
        bar = bars.add_task("decoding", total=None)
        found = check(
            dataset,
            folder,
            deep=deep,
            accept_large=large_masks,
            on_progress=lambda c, done, total: bars.update(bar, description=c, completed=done, total=total),
        )
    _show_categories(found, folder)
    for one in found:
        for problem in one.problems if one.present else ():
            say(problem)  # each names its category or its path
        for remark in one.remarks:
            note(remark)
        if one.num_empty_masks:
            empty = number_of(one.num_empty_masks, "empty mask")
            say(f"{one.category}: {empty}, which image metrics alone count")
    bad = [one for one in found if one.problems and one.present]
    absent = sum(not one.present for one in found)
    noted = sum(one.good and bool(one.remarks) for one in found)
    good = f"{len(found) - len(bad) - absent} of {number_of(len(found), 'category')} good"
    say(f"{good}{f' ({noted} with notes)' if noted else ''}, {len(bad)} wrong, {absent} absent")
    if bad:
        say("next: mend the files that are named above, then check again")
    elif len(found) > absent:
        say_next(
            "compare methods on them", "kdbench", "run", "--dataset", name, *unusual("--root", root, None)
        )
    document = documents.Checked(dataset=name, root=str(folder), categories=tuple(map(_category, found)))
    return Answer(document=document, code=SOME_FAILED if bad or absent else OK)


def _category(one: "CategoryCheck") -> documents.Category:
    counts = vars(one.found) if one.found else dict.fromkeys(("train", "normal", "defective", "masks"))
    return documents.Category.of(one, **counts)


def _show_categories(found: "Sequence[CategoryCheck]", folder: Path) -> None:
    """A table of the counts of each category."""
    lines = []
    for one in found:
        counts = one.found
        numbers = (counts.train, counts.normal, counts.defective, counts.masks) if counts else ("-",) * 4
        published = "/".join(map(str, one.published)) if one.published else "unknown"
        fine = None if not one.remarks else "yellow"
        style = fine if one.good else "yellow" if not one.present else "red"
        lines.append(Line(cells=(one.category, *map(str, numbers), published), style=style))
    show(("category", "train", "normal test", "defective", "masks", "published"), lines, title=str(folder))


@data_app.command("prepare")
def prepare_dataset(
    name: Name,
    root: Root = None,
    categories: Categories = None,
    image_size: Annotated[int, typer.Option(help="Side of the decoded images.")] = 256,
    preset: Annotated[str, typer.Option(help="Evaluation preset, for the masks.")] = "exact",
) -> None:
    """Decode all images once, before any run; `kdbench run` does the same if it is needed."""
    from kdbench.data.decoding import decode_dataset
    from kdbench.files import cache_folder
    from kdbench.registry import get_dataset

    dataset, wanted = get_dataset(name), comma_list("categories", categories)
    notices: list[str] = []
    try:
        with decoding_bar() as tick:
            num_images = decode_dataset(
                dataset, root, wanted, image_size=image_size, preset=preset, tick=tick, note=notices.append
            )
    finally:
        for notice in notices:
            note(notice)
    images = number_of(sum(num_images.values()), "image")
    say(f"ready in {cache_folder()}: {images} of {number_of(len(num_images), 'category')}")


@data_app.command("download")
def download_dataset(
    name: Name,
    root: Annotated[
        Path | None,
        typer.Option(help="The new folder; else the folder DATASET in KDBENCH_DATA.", callback=at_home),
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="I have read the licence.")
    ] = False,
) -> None:
    """Download, verify and unpack a dataset; the same command resumes."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

    from kdbench.data.download import download, download_folder, licence_of
    from kdbench.registry import get_dataset

    dataset = get_dataset(name)
    say(licence_of(dataset))
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with moving(*columns) as bars:
        bar = bars.add_task("download", total=None)
        path = download(
            dataset,
            download_folder(dataset, root),
            accept_licence=accept_licence,
            on_progress=lambda what, done, total: bars.update(
                bar, description=what, completed=done, total=total
            ),
        )
    say(f"{dataset.title} is in {path}")
    say_next("compare it with published counts", "kdbench", "datasets", "check", name, "--root", str(path))


@data_app.command("audit")
def audit_dataset(
    name: Name,
    root: Root = None,
    categories: Categories = None,
    out_: Annotated[
        Path | None,
        typer.Option("--out", help="Also write all numbers as CSV to this file.", callback=at_home),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(help="Also write them to this results folder, for its report.", callback=at_home),
    ] = None,
) -> None:
    """Find numbers that see no defect and still tell the test images apart: brightness, size, position."""
    from kdbench.data.audit import LEVEL, PERMUTATIONS, audit
    from kdbench.data.found import find_data
    from kdbench.data.pairing import misplaced, num_looked_at
    from kdbench.registry import get_dataset
    from kdbench.reports.statistics import holm

    dataset = get_dataset(name)
    data = find_data(dataset, root, comma_list("categories", categories))
    found = [*data.categories.values()]
    total, done = sum(len(c.train) + len(c.test) + num_looked_at(c) for c in found), 0
    with decoding_bar() as tick:

        def count(images: int) -> None:
            nonlocal done
            done += images
            tick(done, total)

        shortcuts = audit(found, holm, count)
        notes = [text for category in found for text in misplaced(dataset, category, count)]
    flagged = [shortcut for shortcut in shortcuts if shortcut.flagged]
    lines = [
        Line(cells=(one.category, one.number, f"{100 * one.auroc:.1f}", f"{one.p_holm:.2g}"))
        for one in flagged
    ]
    show(("category", "number", "image AUROC", "p (Holm)"), lines, title=str(data.root))
    say(
        f"{len(flagged)} of {len(shortcuts)} numbers tell normal from defective test images of "
        f"{number_of(len(found), 'category')} better than chance (p < {LEVEL:g} after Holm, {PERMUTATIONS} "
        "permutations each)"
    )
    for text in notes:
        note(text)
    if out_:
        numbers = ["category,number,image_auroc,p,p_holm"]
        numbers += [f'"{s.category}","{s.number}",{s.auroc:.6f},{s.p:.6g},{s.p_holm:.6g}' for s in shortcuts]
        with complained(f"cannot write {out_}"):
            out_.write_text("\n".join(numbers) + "\n", encoding="utf-8")
        say(f"all numbers: {out_}")
    if results and shortcuts:
        _for_the_report(results, name, shortcuts, data.fingerprints)
        say(f"for the report: {results}")


def _for_the_report(
    results: str, name: str, shortcuts: Sequence["Shortcut"], fingerprints: Mapping[str, str]
) -> None:
    """Write the rows of an audit to a results folder, in place of those of an earlier one."""
    from kdbench.data.fingerprint import fingerprint_of
    from kdbench.results.schema import SCHEMA_VERSION
    from kdbench.results.store import SHORTCUTS, Results

    common = {"schema_version": SCHEMA_VERSION, "dataset": name}
    rows = [
        common | one.columns | {"fingerprint": fingerprint_of([fingerprints[one.category]])}
        for one in shortcuts
    ]
    with complained(f"cannot write in {results}"):
        Results(results).write(SHORTCUTS, rows)


@data_app.command("convert")
def convert_dataset(
    source: Annotated[Path, typer.Argument(help="A COCO or CSV file, or a YOLO folder.", callback=at_home)],
    format_: Annotated[Literal["coco", "yolo", "csv"], typer.Option("--format", help="Format of SOURCE.")],
    out_: Annotated[Path, typer.Option("--out", help="The new folder, one category.", callback=at_home)],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, if not beside SOURCE.", callback=at_home)
    ] = None,
    train_share: Annotated[
        float, typer.Option(help="Share of the normal images for training, if SOURCE has no column split.")
    ] = 0.8,
    seed: Annotated[int, typer.Option(help="Seed that chooses this share of the normal images.")] = 0,
    masks: Annotated[
        bool, typer.Option("--masks/--no-masks", help="Draw polygons as masks, or take labels only.")
    ] = True,
) -> None:
    """Convert COCO, YOLO or CSV annotations to a folder that `--dataset folder` reads."""
    from kdbench.data.convert import convert

    done = convert(source, format_, out_, images=images, train_share=train_share, seed=seed, use_masks=masks)
    how = "by its column split" if done.split_given else f"{train_share:.0%} by seed {seed}, the others test"
    kinds = ", ".join(f"{count} {kind}" for kind, count in done.kinds.items())
    say(f"{number_of(done.num_train, 'normal image')} for training ({how})")
    say(f"{done.num_good} normal and {sum(done.kinds.values())} defective test images: {kinds}")
    say("images without an annotation count as normal", style="yellow")
    if done.boxes and masks:
        note(
            f"images with boxes: {done.boxes}. A box is a label of its image and no mask: no masks are "
            f"written, and there will be no pixel metrics"
        )
    if done.left_out:
        note(
            f"{len(done.left_out)} images there are not in {source} and were left out, first "
            f"{done.left_out[0]}"
        )
    say(f"{out_} is ready")
    say_next("check it", "kdbench", "datasets", "check", "folder", "--root", str(out_), "--deep")
