"""The documents of --json: every key with its meaning. Scripts use them, so no key may go or change."""

import math
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _known(value: object) -> object:
    """The value, None for NaN: JSON has no NaN, so a missing number is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_known)]


class Part(BaseModel):
    """A document, or a part of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of(cls, source: object, **given: object) -> Self:
        """The part whose keys are attributes of an object, but for those that are given."""
        names = cls.model_fields.keys() - given.keys()
        return cls(**{name: getattr(source, name) for name in names}, **given)


class Method(Part):
    """A method."""

    name: str = Field(description="Its name for --methods.")
    family: str = Field(description="Family of `kdbench list methods`.")
    year: int | None = Field(description="Year of the paper.")
    paper: str = Field(description="Number or venue of the paper.")
    licence: str = Field(description="Licence of the authors' code.")
    fidelity: str = Field(description="How near it is to its paper.")
    summary: str = Field(description="One sentence on it.")
    needs: str = Field(description="Needs beyond a usual teacher; empty: none.")
    departures: tuple[str, ...] = Field(description="Where it departs from its paper.")


class Dataset(Part):
    """A dataset."""

    name: str = Field(description="Its name for --dataset.")
    title: str = Field(description="Its name in texts.")
    categories: tuple[str, ...] = Field(description="Its categories; empty: those on disk.")
    licence: str = Field(description="Its licence.")
    download: bool = Field(description="Whether `kdbench datasets download` fetches it.")
    notes: tuple[str, ...] = Field(description="Facts that a reader of numbers must know.")


class Backbone(Part):
    """A teacher that was tried."""

    name: str = Field(description="Its name for --backbone.")
    summary: str = Field(description="One sentence on it.")


class Published(Part):
    """A mean over all categories as its source gives it."""

    metric: str = Field(description="Its column in rows, if rows have it.")
    value: float = Field(description="A fraction.")
    source: str = Field(description="Who published it.")


class Recipe(Part):
    """A grid that comes with kdbench."""

    name: str = Field(description="Its name for --config.")
    summary: str = Field(description="One sentence on it.")
    published: tuple[Published, ...] = Field(description="Published means that a report shows beside ours.")


class Listed(Part):
    """`kdbench list` has all four keys, `kdbench list methods` the first, and so on."""

    methods: tuple[Method, ...] = Field(default=(), description="By family, the oldest first.")
    datasets: tuple[Dataset, ...] = Field(default=(), description="By name.")
    backbones: tuple[Backbone, ...] = Field(default=(), description="Teachers that were tried.")
    recipes: tuple[Recipe, ...] = Field(default=(), description="By name.")


class Cell(Part):
    """A cell of a run."""

    cell_id: str = Field(description="Its id.")
    method: str = Field(description="Column `method` of its rows.")
    dataset: str = Field(description="Column `dataset` of its rows.")
    setting: str = Field(description="Column `setting` of its rows.")
    category: str = Field(description="Its category; all in the multiclass setting.")
    seed: int = Field(description="Column `seed` of its rows.")
    profile: str = Field(description="Column `profile` of its rows.")
    status: str = Field(description="Column `status` of its rows, such as ok, failed; without rows: not run.")
    expected_s: Number = Field(
        description="Seconds that --dry-run expects; null: unknown, or nothing is to run."
    )


class Run(Part):
    """`kdbench run`."""

    results: str = Field(description="Folder or URI of the rows.")
    run_id: str | None = Field(description="Null after --dry-run.")
    complete: bool = Field(description="Whether every cell succeeded and every detector is measured.")
    counts: dict[str, int] = Field(description="Status -> number of cells.")
    cells: tuple[Cell, ...] = Field(description="All cells of the request.")
    report: str | None = Field(description="The leaderboard; null if none was written.")


class Running(Part):
    """A cell that runs."""

    cell_id: str = Field(description="Its id.")
    label: str = Field(description="Its method, dataset, setting and seed.")
    host: str = Field(description="Name of the machine that runs it.")
    pid: int = Field(description="Number of the process that runs it.")
    running_s: float = Field(description="Seconds since it started.")
    phase: str = Field(description="start, prepare, train or evaluate.")
    done: int = Field(description="Images of the phase so far.")
    total: int = Field(description="Images of the phase.")
    epoch: int | None = Field(description="Null outside of the training.")
    epochs: int | None = Field(description="Epochs of the training; null outside of it.")
    problem: str = Field(description="A problem that does not stop the cell; empty if there is none.")


class RunState(Part):
    """How far a run is."""

    run_id: str = Field(description="Its id.")
    num_cells: int = Field(description="Cells that it had to run.")
    counts: dict[str, int] = Field(description="Status -> number of cells; also running and waiting.")
    left_s: Number = Field(description="Seconds that are left; null: unknown, or nobody runs it.")
    running: tuple[Running, ...] = Field(description="The cells that run now.")


class Status(Part):
    """`kdbench status`."""

    results: str = Field(description="Folder or URI of the rows.")
    runs: tuple[RunState, ...] = Field(description="The runs that are going on, else the newest one.")


class Written(Part):
    """`kdbench report`."""

    results: str = Field(description="Folder or URI of the rows.")
    report: str = Field(description="The page.")
    files: tuple[str, ...] = Field(description="All files that were written.")


class Difference(Part):
    """A metric of a category that moved by more than the tolerance; numbers are fractions."""

    method: str = Field(description="The entry.")
    section: str = Field(description="Dataset, setting, profile, preset.")
    category: str = Field(description="The category.")
    metric: str = Field(description="Its title in tables.")
    before: Number = Field(description="Mean over the seeds that both folders have, in the first folder.")
    after: Number = Field(description="The mean in the second folder.")
    difference: Number = Field(description="After minus before.")
    significant: str = Field(description="yes or no and over what, or why it is not tested.")
    remark: str = Field(description="Empty, or why it is no regression.")


class Ended(Part):
    """A cell that succeeded before and fails now."""

    method: str = Field(description="The entry.")
    section: str = Field(description="Dataset, setting, profile, preset.")
    category: str = Field(description="The category.")
    seed: str = Field(description="The seed.")
    status: str = Field(description="The status now.")


class Compared(Part):
    """`kdbench compare`."""

    before: str = Field(description="Folder or URI of the rows before.")
    after: str = Field(description="Folder or URI of the rows after.")
    tolerance: float = Field(description="How much worse a metric may become, as a fraction.")
    num_compared: int = Field(description="Metrics of categories that both have.")
    num_regressions: int = Field(description="Metrics that became worse beyond the tolerance, or failed now.")
    num_only_before: int = Field(description="Rows that only the first folder has.")
    num_only_after: int = Field(description="Rows that only the second folder has.")
    beyond: tuple[Difference, ...] = Field(description="Metrics that moved by more than the tolerance.")
    failed: tuple[Ended, ...] = Field(description="Cells that succeeded before and fail now.")
    other_code: dict[str, tuple[str, str]] = Field(
        description="Versions and machines that differ: before and after."
    )


class Finding(Part):
    """A line of the doctor."""

    what: str = Field(description="A package, device, folder, teacher or dataset.")
    found: str = Field(description="Its version or state.")
    advice: str = Field(description="What to do; empty: nothing.")
    wrong: bool = Field(description="Whether kdbench cannot work like this.")


class Examined(Part):
    """`kdbench doctor`."""

    findings: tuple[Finding, ...] = Field(description="Versions, devices, folders, teachers, datasets.")


class Category(Part):
    """A category of a dataset that was checked."""

    category: str = Field(description="Its name.")
    present: bool = Field(description="Whether it is on disk.")
    good: bool = Field(description="Whether nothing is wrong with it.")
    train: int | None = Field(description="Normal training images; null: it cannot be listed.")
    normal: int | None = Field(description="Normal test images.")
    defective: int | None = Field(description="Defective test images.")
    masks: int | None = Field(description="Defective test images with a mask.")
    num_empty_masks: int | None = Field(description="Masks that mark nothing; null without --deep.")
    published: tuple[int, int, int] | None = Field(description="Train, normal, defective; null: unknown.")
    problems: tuple[str, ...] = Field(description="Complaints about its files.")
    remarks: tuple[str, ...] = Field(description="Remarks that only a person can judge.")


class Checked(Part):
    """`kdbench datasets check`."""

    dataset: str = Field(description="Its name.")
    root: str = Field(description="The folder.")
    categories: tuple[Category, ...] = Field(description="Those on disk and those that are published.")


class Scored(Part):
    """`kdbench score`."""

    name: str = Field(description="The name of the method in the tables.")
    results: str = Field(description="Folder or URI of the rows.")
    categories: tuple[str, ...] = Field(description="Those that have rows now.")
    left_out: tuple[str, ...] = Field(description="Those that have neither maps nor image scores.")
    report: str = Field(description="The leaderboard.")


class Image(Part):
    """A line of the table of predictions."""

    image: str = Field(description="Its path.")
    image_score: Number = Field(description="Larger is more anomalous; null: it could not be read.")
    decision: str | None = Field(description="anomalous or normal; null without a threshold.")
    map: str | None = Field(description="The anomaly map, a file below `out`.")
    heat_map: str | None = Field(description="The heat map, a file below `out`.")
    error: str | None = Field(description="Why it was not scored.")


class Predicted(Part):
    """`kdbench predict`."""

    out: str = Field(description="Folder of the table, maps and heat maps.")
    table: str = Field(description="The table, CSV.")
    threshold: Number = Field(description="An image score above it is anomalous; null: nothing is decided.")
    images: tuple[Image, ...] = Field(description="In the order in which they were scored.")


class Exported(Part):
    """A detector that became a file."""

    cell_id: str = Field(description="The cell.")
    file: str = Field(description="The file.")
    threshold: Number = Field(description="An image score above it is anomalous; null: there is none.")
    notes: tuple[str, ...] = Field(description="Notes on the file, its threshold and its metrics.")


class Exports(Part):
    """`kdbench export`."""

    detectors: tuple[Exported, ...] = Field(description="In the order of the cells.")


class Swept(Part):
    """`kdbench sweep`."""

    results: str = Field(description="Folder or URI of the rows.")
    sweep_id: str = Field(description="Its id.")
    complete: bool = Field(description="Whether there is a best configuration and no trial failed.")
    num_configurations: int = Field(description="Different configurations that were tried.")
    num_failed: int = Field(description="Configurations that failed.")
    best_trial: str | None = Field(description="The trial with the highest objective.")
    best_objective: Number = Field(description="Its objective, a fraction.")
    config: str | None = Field(description="The best, for `kdbench run --config`; null: nothing is chosen.")


# Command -> its document.
DOCUMENTS: dict[str, type[Part]] = {
    "compare": Compared,
    "datasets check": Checked,
    "doctor": Examined,
    "export": Exports,
    "list": Listed,
    "predict": Predicted,
    "report": Written,
    "run": Run,
    "score": Scored,
    "status": Status,
    "sweep": Swept,
}
