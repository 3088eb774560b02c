"""The Python interface: what `import kdbench` offers beside the command line.

Arguments have the names of the options and of the keys in a TOML file, and mean the same. Whatever is wrong
with a request raises RequestError with every complaint; what is wrong with images on disk raises DataError.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
from pydantic import BaseModel

from kdbench.engine.recipe import Recipe, recipe_of
from kdbench.errors import RequestError, ResultsError, unknown
from kdbench.files import expanded
from kdbench.grid.bars import Bars
from kdbench.grid.request import Request, read_model
from kdbench.grid.view import Silent, View
from kdbench.reports.rows import load_rows
from kdbench.reports.shown import Compared, Figure, Leaderboard, all_figures, compared, leaderboard
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.store import CELLS, CURVES, LATENCY, SCORES, TRIALS, Kind, Results, read
from kdbench.sweeps._result import SweepResult

if TYPE_CHECKING:
    from kdbench.engine.detector import Detector
    from kdbench.grid.grid import GridResult

Model = TypeVar("Model", bound=BaseModel)
Names = str | Iterable[str]  # several names, or one; a text may be a comma list
AnyPath = str | Path
NAMED = 5  # cells that a message names
# What a line of scores or curves says of its cell.
OF_CELL = [
    *("cell_id", "method", "entry", "dataset", "setting", "category", "seed"),
    *("profile", "preset", "config"),
]


def run(
    *,
    methods: Names | None = None,
    dataset: Names | None = None,
    root: AnyPath | None = None,
    split: str | None = None,
    categories: Names | None = None,
    setting: Names | None = None,
    seeds: int | Iterable[int] | None = None,
    epochs: int | None = None,
    hold_out: float | None = None,
    set: Mapping[str, Any] | None = None,
    profile: str | None = None,
    backbone: str | None = None,
    weights: AnyPath | None = None,
    preset: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    executor: str | None = None,
    address: str | None = None,
    wait_for_gpus: int | None = None,
    wait: float | None = None,
    cpus_per_cell: int | None = None,
    gpus_per_cell: float | None = None,
    memory_per_cell: float | None = None,
    checkpoint_every: float | None = None,
    measure_every: int | None = None,
    compile: str | None = None,
    latency: bool | None = None,
    runtimes: Names | None = None,
    runtime_precision: Names | None = None,
    evaluate_exported: bool | None = None,
    results: AnyPath | None = None,
    published: AnyPath | None = None,
    timeout: float | None = None,
    redo: str | None = None,
    keep_detectors: bool | None = None,
    keep_pictures: bool | None = None,
    large_masks: bool | None = None,
    config: AnyPath | None = None,
    progress: bool = True,
) -> "ResultsFolder":
    """Train and evaluate every cell of methods x datasets x settings x seeds that has not finished yet.

    The arguments are the options of `kdbench run`; the others come from the TOML file `config`, or are the
    defaults. `progress` shows notes and bars, in a terminal and in a notebook.

    Returns the results folder, with the rows of earlier runs too; a cell that fails is a row. Raises
    RequestError for a wrong request, ResultsError if rows cannot be written, and KeyboardInterrupt if the
    run was interrupted; the same call resumes. A user without a home folder gets one. SIGTERM ends at once.
    """
    request = _asked(Request, locals())
    from kdbench.grid.grid import plan_grid, run_grid

    view = _view(progress)
    _raise_for(run_grid(plan_grid(request, view=view), view))
    return ResultsFolder(request.results)


def _raise_for(result: "GridResult") -> None:
    """Raise what a run in Python raises if it did not go to its end."""
    if result.stopped_by:
        raise KeyboardInterrupt
    if result.complaints:
        raise ResultsError("; ".join(result.complaints))


def sweep(
    *,
    method: str | None = None,
    dataset: str | None = None,
    root: AnyPath | None = None,
    split: str | None = None,
    categories: Names | None = None,
    setting: str | None = None,
    seeds: int | Iterable[int] | None = None,
    trials: int | None = None,
    space: AnyPath | None = None,
    search: str | None = None,
    scheduler: str | None = None,
    objective: str | None = None,
    selection: str | None = None,
    epochs: int | None = None,
    report_every: int | None = None,
    set: Mapping[str, Any] | None = None,
    profile: str | None = None,
    backbone: str | None = None,
    weights: AnyPath | None = None,
    device: str | None = None,
    precision: str | None = None,
    cpus_per_trial: int | None = None,
    gpus_per_trial: float | None = None,
    max_concurrent: int | None = None,
    address: str | None = None,
    results: AnyPath | None = None,
    keep_detectors: bool | None = None,
    audit: bool = False,
    config: AnyPath | None = None,
    progress: bool = True,
) -> SweepResult:
    """Search a method's configuration on normal images with synthetic defects; no test image is seen.

    The arguments are the options of `kdbench sweep`. With `audit` the detectors of all finished trials score
    the test images afterwards, which chooses nothing.

    Raises RequestError for a wrong request, KeyboardInterrupt if the sweep was interrupted; the same call
    resumes.
    """
    from kdbench.sweeps._request import SweepRequest
    from kdbench.sweeps._run import carry_out, planned

    request, view = _asked(SweepRequest, locals()), _view(progress)
    return carry_out(planned(request, view), view, audit=audit)


def score(
    maps: AnyPath | None = None,
    *,
    name: str,
    dataset: str,
    root: AnyPath | None = None,
    csv: AnyPath | None = None,
    categories: Names | None = None,
    setting: str | None = None,
    seed: int | None = None,
    profile: str | None = None,
    preset: str | None = None,
    latency_ms: float | None = None,
    latency_device: str | None = None,
    results: AnyPath | None = None,
    replace: bool | None = None,
) -> "ResultsFolder":
    """Measure anomaly maps or image scores that another program made, as rows beside those of kdbench.

    The arguments are the options of `kdbench score`; docs/outside.md has the layout of `maps` and `csv`.
    Returns the results folder. Raises RequestError or DataError with everything that is wrong, and then
    nothing is written.
    """
    from kdbench.grid.score import ScoreRequest
    from kdbench.grid.score import score as measure

    request = _asked(ScoreRequest, locals())
    measure(request)
    return ResultsFolder(request.results)


def compare(before: AnyPath, after: AnyPath, *, tolerance: float = 0.01) -> Compared:
    """What changed between two results folders (paths or URIs); print it, or let a notebook show it.

    `tolerance` is how much worse a metric may be, as a fraction: 0.01 is one point of percent. The result
    counts what became worse beyond it in `num_regressions`. Raises RequestError for a tolerance out of range,
    a folder without rows, or nothing in common.
    """
    return compared(_place(before), _place(after), tolerance)


def distil_teacher(
    images: AnyPath,
    out: AnyPath,
    *,
    teacher: str = Recipe.teacher,
    weights: AnyPath | None = None,
    size: str = "small",
    steps: int = Recipe.steps,
    batch_size: int = Recipe.batch_size,
    seed: int = Recipe.seed,
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Make a teacher for EfficientAD from the photographs below a folder; returns its file.

    The arguments are the options of `kdbench distil-teacher`, which says what they mean; the same call
    resumes. Raises RequestError for a wrong request, DataError if there are no images or one cannot be read.
    """
    from kdbench.grid.distil import make_teacher

    recipe = recipe_of(teacher, size, steps=steps, batch_size=batch_size, seed=seed)
    file, given = Path(_place(out)), None if weights is None else Path(_place(weights))
    make_teacher(recipe, Path(_place(images)), file, _view(progress), weights=given, device=device)
    return file


def open(where: AnyPath) -> "ResultsFolder":
    """The results in a folder or at a URI (s3://...), also while cells are still running.

    Raises RequestError if there are none.
    """
    folder = ResultsFolder(where)
    if not any(folder._results.storage.names(kind.folder) for kind in (CELLS, TRIALS)):
        raise RequestError(
            [f"no results in {folder.where}: `kdbench run --results {folder.where}` writes them"]
        )
    return folder


class ResultsFolder:
    """The rows, detectors and figures of a results folder, read anew by every call.

    Filters are columns with a value, or with a list of values that may stand there:
    `rows(method="stfpm", seed=[0, 1])`. Columns are those of docs/results-format.md.
    """

    def __init__(self, where: AnyPath) -> None:
        self.where = _place(where)
        self._results = Results(self.where)

    def __repr__(self) -> str:
        return f"<ResultsFolder {self.where}>"

    def rows(self, *, earlier: bool = False, **filters: object) -> pd.DataFrame:
        """One line for each category of a cell: what was asked, how it went, all metrics as fractions.

        Rows of images that changed since are left out, as in reports, unless `earlier` is true. `entry` names
        the method and the keys in which its recipes differ. Rows with the same entry and section have one
        mean.
        """
        rows = self._rows_that_count()
        if earlier:
            every = self._read(CELLS)
            rows = every.merge(rows[["cell_id", "category", "entry"]], how="left", on=["cell_id", "category"])
        return _chosen(rows[[*ROW_SCHEMA.names, "entry"]], filters)

    def scores(self, **filters: object) -> pd.DataFrame:
        """One line for each test image of a cell: its label and image score, and what the cell was."""
        return _chosen(self._of_cells(SCORES), filters)

    def curves(self, **filters: object) -> pd.DataFrame:
        """One line for each category of a cell: its ROC and PRO curves as lists, thinned, and what it was."""
        return _chosen(self._of_cells(CURVES), filters)

    def latencies(self, **filters: object) -> pd.DataFrame:
        """One line for each timing of a detector: device, batch size, precision, and milliseconds."""
        return _chosen(self._read(LATENCY), filters)

    def trials(self, **filters: object) -> pd.DataFrame:
        """One line for each trial of a sweep: its configuration and objective."""
        return _chosen(self._read(TRIALS), filters)

    def leaderboard(self) -> Leaderboard:
        """The rankings of all methods; print it, let a notebook show it, or take numbers from its `frame`."""
        return leaderboard(self.where)

    def figures(self) -> dict[str, Figure]:
        """The figures of the report by name; each is drawn when it is shown or saved."""
        return all_figures(self.where)

    def detector(
        self,
        cell: str | None = None,
        *,
        weights: AnyPath | None = None,
        device: str = "auto",
        **filters: object,
    ) -> "Detector":
        """The trained detector of one cell, named by its id or by filters that fit no other succeeded cell.

        `weights` is the teacher's file, if a run would not find it. Raises RequestError if no cell
        fits, or more than one, and if its detector was not kept.
        """
        import torch

        from kdbench.engine.detector import Detector
        from kdbench.grid.plan import choose_device

        row = self._only_cell(cell, filters)
        file = None if weights is None else Path(_place(weights))
        return Detector(self._results, row, weights=file, device=torch.device(choose_device(device)))

    def _rows_that_count(self) -> pd.DataFrame:
        try:
            return load_rows(self.where)
        except FileNotFoundError as error:  # no cell has finished
            raise RequestError([str(error)]) from error

    def _read(self, kind: Kind) -> pd.DataFrame:
        return read(self._results.storage, kind).to_pandas()

    def _of_cells(self, kind: Kind) -> pd.DataFrame:
        """Rows of a kind, of cells that have rows, with what the cell was."""
        return self._read(kind).merge(self._rows_that_count()[OF_CELL], on=["cell_id", "category"])

    def _only_cell(self, cell: str | None, filters: dict[str, object]) -> dict[str, Any]:
        if cell is not None:
            filters = filters | {"cell_id": cell}
        rows = _chosen(self.rows(earlier=cell is not None), filters)
        if rows.empty:
            what = ", ".join(f"{name}={value!r}" for name, value in filters.items()) or "any filter"
            raise RequestError([f"no cell with {what} in {self.where}"])
        good = rows[rows["status"] == "ok"].drop_duplicates("cell_id")
        if good.empty:
            raise RequestError([f"no cell of these succeeded: {', '.join(sorted(rows['status'].unique()))}"])
        if len(good) > 1:
            columns = ["method", "dataset", "setting", "category", "seed", "profile", "config"]
            differ = [name for name in columns if good[name].nunique() > 1]
            ids = ", ".join(good["cell_id"].head(NAMED)) + (", ..." if len(good) > NAMED else "")
            raise RequestError([f"{len(good)} cells fit. Name {' or '.join(differ)}, or one of {ids}"])
        rows_of_cell = read(self._results.storage, CELLS, only=[good["cell_id"].iloc[0]]).to_pylist()
        row: dict[str, Any] = rows_of_cell[0]
        return row


def _chosen(rows: pd.DataFrame, filters: Mapping[str, object]) -> pd.DataFrame:
    """The lines that fit all filters; RequestError for an unknown column."""
    wrong = [unknown("column", name, list(rows)) for name in filters if name not in rows]
    if wrong:
        raise RequestError(wrong)
    fits = pd.Series(True, rows.index)
    for name, value in filters.items():
        if isinstance(value, Iterable) and not isinstance(value, str):
            fits &= rows[name].isin([*value])
        else:
            fits &= rows[name] == value
    return rows[fits].reset_index(drop=True)


def _view(progress: bool) -> View:
    """What shows a run to whoever called."""
    return Bars() if progress else Silent()


def _place(where: AnyPath) -> str:
    return expanded(str(where))


def _asked(model: type[Model], given: Mapping[str, Any]) -> Model:
    """The request of some arguments and the TOML file `config`."""
    values = {}
    for name in model.model_fields:
        value = given[name]
        if isinstance(value, Iterable) and not isinstance(value, str | Path | Mapping):
            value = tuple(value)
            if not value:  # perhaps what a filter left: it must not mean "all"
                raise RequestError([f"{name}=(): it names nothing. Leave it out for the default"])
        values[name] = value
    config = given.get("config")
    return read_model(model, None if config is None else Path(_place(config)), values)
