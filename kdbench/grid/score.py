"""Anomaly maps and image scores of other programs become rows like our own."""

import unicodedata
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from kdbench.cell import SETTINGS, Cell, Place, Weights, groups_of
from kdbench.errors import Complaints, complained, unknown
from kdbench.grid.request import File, Names, Request, Results, Root, Shown

if TYPE_CHECKING:
    from kdbench.data.maps import Given

LONGEST = 60  # characters of a name, which has to fit into tables


class ScoreRequest(BaseModel):
    """Maps or scores of another program, and their name: the fields are the options of `kdbench score`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    maps: Annotated[File | None, Shown(is_argument=True)] = Field(
        None, description="Folder of maps: the folders of the dataset, with TIFF, NPY, NPZ, PNG."
    )
    name: str = Field("", description="The name of the method in the tables.")
    dataset: str = Field("", description="The dataset that was scored.")
    root: Root = None
    csv: File | None = Field(
        None,
        description="Image scores (columns image and image_score), also without MAPS; if not given, the "
        "largest value of each map.",
    )
    categories: Names = Field((), description="Comma list; all that have maps if not given.")
    setting: Annotated[str, Shown(metavar="|".join(SETTINGS))] = Field(
        "oneclass", description="Whether each category has a model of its own."
    )
    seed: int = Field(0, ge=0, description="Seed of the training.")
    profile: str | None = Field(None, description="Section of the report; the dataset's if not given.")
    preset: str = Field("exact", description="Evaluation preset, see docs/presets.md.")
    latency_ms: Annotated[float | None, Shown(metavar="MS")] = Field(
        None, description="Milliseconds of one image, shown as given by you."
    )
    latency_device: str | None = Field(None, description="The device of --latency-ms.")
    results: Results = "results"
    replace: bool = Field(False, description="Replace rows of other maps under the same name.")


def score(request: ScoreRequest) -> "Given":
    """Compute the metrics and write the rows.

    Raises RequestError with every complaint; then nothing is written.
    """
    from kdbench.data.fingerprint import fingerprint_of
    from kdbench.data.found import find_data
    from kdbench.data.maps import find
    from kdbench.engine import outside
    from kdbench.grid.attempt import write_output
    from kdbench.grid.plan import resolved
    from kdbench.registry import get_dataset
    from kdbench.results.store import LATENCY, Results

    _check(request)
    dataset = get_dataset(request.dataset)
    found = find_data(dataset, request.root, request.categories)
    everything = [*found.categories.values()]
    given = find(request.maps, request.csv, everything, all_of=bool(request.categories))
    where = resolved(request.results)
    place = Place(root=str(found.root), weights=Weights(path="", source="", sha256=""), results=where)
    results, complaints, outputs = Results(where), Complaints(), []
    for category, categories in groups_of(request.setting, given.categories):
        cell = Cell(
            method=request.name,
            config="{}",
            dataset=dataset.name,
            setting=request.setting,
            category=category,
            categories=categories,
            fingerprint=fingerprint_of(found.fingerprints[one] for one in categories),
            teacher_sha256="",
            seed=request.seed,
            preset=request.preset,
            profile=request.profile or dataset.profile,
        )
        with complaints.collecting():
            output = outside.measured(cell, place, dataset, found.categories, given)
            complaints.add(*_of_others(request, cell, output.rows[0]["outside_sha256"]))
            outputs.append((cell.id, output))
    complaints.check()
    with complained(f"cannot write rows in {request.results}"):
        results.check_writable()
        for cell_id, output in outputs:
            write_output(results, cell_id, output, run_id=None, keep_detector=False)
            if request.latency_ms is not None:
                results.write(LATENCY, [_timing(request, output.rows[0])])
    return given


def _of_others(request: ScoreRequest, cell: Cell, digest: str) -> list[str]:
    """A complaint if the cell has rows of other maps and the request does not replace them."""
    from kdbench.results.store import CELLS, Results, read

    storage = Results(request.results).storage
    if request.replace or not storage.exists(CELLS.name(cell.id)):
        return []
    before = read(storage, CELLS, only=[cell.id], columns=["outside_sha256"])["outside_sha256"][0].as_py()
    if before == digest:
        return []
    told = f"{cell.label}: {request.results} has rows of other maps or scores under this name"
    return [f"{told}. --replace replaces them; --name or --seed tells them apart"]


def _check(request: ScoreRequest) -> None:
    """RequestError for options that are missing or wrong."""
    from kdbench.grid.plan import wrong_words
    from kdbench.registry import method_names

    complaints, name = Complaints(), request.name
    if not name:
        complaints.add("--name NAME is missing: the name of the method in the tables")
    elif name != name.strip() or not name.isprintable() or len(name) > LONGEST:
        complaints.add(
            f"--name {name!r}: a name has at most {LONGEST} visible characters, no space around them"
        )
    elif unicodedata.normalize("NFC", name).casefold() in method_names():
        complaints.add(f"--name {name!r} is a method of kdbench: choose another, such as {name} (anomalib)")
    if request.setting not in SETTINGS:
        complaints.add(unknown("setting", request.setting, SETTINGS))
    asked = {"dataset": (request.dataset,), "preset": request.preset, "profile": request.profile}
    complaints.add(*wrong_words(Request.model_validate(asked)))
    if request.maps is None and request.csv is None:
        complaints.add("nothing to score: give a folder MAPS, or --csv FILE with image scores")
    if (request.latency_ms is None) != (request.latency_device is None):
        complaints.add("--latency-ms and --latency-device belong together: a time is one of a device")
    if request.latency_ms is not None and not 0 < request.latency_ms < float("inf"):
        complaints.add(f"--latency-ms {request.latency_ms}: it is a number of milliseconds above 0")
    complaints.check()


def _timing(request: ScoreRequest, row: dict[str, Any]) -> dict[str, Any]:
    """The row of a time that the user gave."""
    from kdbench.results.schema import GIVEN, RECIPE, picked

    assert request.latency_ms is not None
    return {
        **picked(row, "schema_version", "cell_id", *RECIPE, "seed", "profile"),
        "batch_size": 1,
        "p50_ms": request.latency_ms,
        "images_per_s": 1000 / request.latency_ms,
        "device_name": request.latency_device,
        "neighbours": GIVEN,
    }
