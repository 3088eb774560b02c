"""The Python interface: the functions that `import kdbench` offers beside the command line.

Arguments have the names of the options and of the keys in a TOML file, and mean the same. A wrong request
raises RequestError with every complaint; wrong images on disk raise DataError.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
from pydantic import BaseModel

from kdbench.engine.recipe import Recipe, recipe_of
from kdbench.errors import RequestError, ResultsError
from kdbench.grid.bars import Bars
from kdbench.grid.request import Request, read_model
from kdbench.grid.view import View
from kdbench.reports.folder import Folder
from kdbench.reports.shown import Compared, Figure, Leaderboard, all_figures, compared, leaderboard
from kdbench.sweeps._result import SweepResult

if TYPE_CHECKING:
    from kdbench.engine.detector import Detector
    from kdbench.grid.grid import GridResult

Model = TypeVar("Model", bound=BaseModel)
Names = str | Iterable[str]  # several names, or one; a text may be a comma list
AnyPath = str | Path


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

    The arguments are the options of `kdbench run`; those that are not given come from the TOML file `config`,
    or are the defaults. `progress` shows notes and bars, in a terminal and in a notebook.

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
    """Raise KeyboardInterrupt or ResultsError if a run did not go to its end."""
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
    published: AnyPath | None = None,
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
    """Compute the metrics of maps or image scores of another program, as rows beside those of kdbench.

    The arguments are the options of `kdbench score`; docs/outside.md has the layout of `maps` and `csv`.
    Returns the results folder. Raises RequestError or DataError with every complaint; then nothing is
    written.
    """
    from kdbench.grid.score import ScoreRequest
    from kdbench.grid.score import score as measure

    request = _asked(ScoreRequest, locals())
    measure(request)
    return ResultsFolder(request.results)


def compare(before: AnyPath, after: AnyPath, *, tolerance: float = 0.01) -> Compared:
    """Compare two results folders (paths or URIs); print the result, or let a notebook show it.

    `tolerance` is how much worse a metric may become, as a fraction: 0.01 is one point of percent. The result
    counts larger losses in `num_regressions`. Raises RequestError for a tolerance out of range, a folder
    without rows, or two folders with nothing in common.
    """
    return compared(before, after, tolerance)


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

    The arguments are the options of `kdbench distil-teacher`; the same call resumes. Raises RequestError for
    a wrong request, DataError if there are no images or one cannot be read.
    """
    from kdbench.grid.distil import make_teacher

    recipe = recipe_of(teacher, size, steps=steps, batch_size=batch_size, seed=seed)
    return make_teacher(recipe, images, out, _view(progress), weights=weights, device=device)


def open(where: AnyPath) -> "ResultsFolder":
    """The results in a folder or at a URI (s3://...), also while cells are still running.

    Raises RequestError if there are none.
    """
    folder = ResultsFolder(where)
    if folder._folder.is_empty:
        raise RequestError(
            [f"no results in {folder.where}: `kdbench run --results {folder.where}` writes them"]
        )
    return folder


class ResultsFolder:
    """The rows, detectors and figures of a results folder; every call reads them again.

    A filter is a column with its value, or with a list of values: `rows(method="stfpm", seed=[0, 1])`.
    Columns are those of docs/results-format.md.
    """

    def __init__(self, where: AnyPath) -> None:
        self._folder = Folder(where)
        self.where, self._results = self._folder.where, self._folder.results

    def __repr__(self) -> str:
        return f"<ResultsFolder {self.where}>"

    def rows(self, *, earlier: bool = False, **filters: object) -> pd.DataFrame:
        """One line for each category of a cell: its request, its status, all metrics as fractions.

        Rows of images that have changed since are left out, as in reports, unless `earlier` is true. `entry`
        names the method and the keys in which its recipes differ: a mean is over rows of one entry and
        section.
        """
        return self._folder.rows(filters, earlier=earlier)

    def scores(self, **filters: object) -> pd.DataFrame:
        """One line for each test image of a cell: its label and image score, and columns of the cell."""
        return self._folder.scores(filters)

    def curves(self, **filters: object) -> pd.DataFrame:
        """One line for each category of a cell: thinned ROC and PRO curves as lists, and columns of it."""
        return self._folder.curves(filters)

    def latencies(self, **filters: object) -> pd.DataFrame:
        """One line for each timing of a detector: device, batch size, precision, and milliseconds."""
        return self._folder.latencies(filters)

    def trials(self, **filters: object) -> pd.DataFrame:
        """One line for each trial of a sweep: its configuration and objective."""
        return self._folder.trials(filters)

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

        `weights` is the teacher's file, if a run would not find it. Raises RequestError if no cell or more
        than one fits, or if the detector was not kept.
        """
        import torch

        from kdbench.engine.detector import Detector
        from kdbench.grid.plan import choose_device

        row, place = self._folder.only_cell(cell, filters), torch.device(choose_device(device))
        return Detector(self._results, row, weights=weights, device=place)


def _view(progress: bool) -> View:
    """What shows a run to whoever called."""
    return Bars() if progress else View()


def _asked(model: type[Model], given: Mapping[str, Any]) -> Model:
    """The request of some arguments and the TOML file `config`."""
    values = {}
    for name in model.model_fields:
        value = given[name]
        if isinstance(value, Iterable) and not isinstance(value, str | Path | Mapping):
            value = tuple(value)
            if not value:  # perhaps a filter left nothing: it must not mean "all"
                raise RequestError([f"{name}=(): it names nothing. Leave it out for the default"])
        values[name] = value
    config = given.get("config")
    return read_model(model, None if config is None else Path(config), values)
