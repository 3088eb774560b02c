"""The request of a sweep: the options of `kdbench sweep` and the keys of its TOML file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kdbench.grid.request import (
    Address,
    Backbone,
    Categories,
    Epochs,
    File,
    FolderName,
    KeepDetectors,
    Names,
    Precision,
    Profile,
    Results,
    Root,
    Seeds,
    Sets,
    Settings,
    Shown,
    Split,
    WeightsFile,
)


class SweepRequest(BaseModel):
    """A sweep: the fields are the options of `kdbench sweep` and the keys of its `--config` file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(description="The method; it may also be the key `method` of the --config file.")
    dataset: Annotated[Names, Shown(metavar="NAME")] = Field(
        ("synthetic",), min_length=1, max_length=1, description="The dataset."
    )
    root: Root = None
    split: Split = None
    categories: Categories = ()
    setting: Settings = Field(
        ("oneclass",),
        min_length=1,
        max_length=1,
        description="oneclass (a model for each category) or multiclass (one for all).",
    )
    seeds: Seeds = Field((0,), min_length=1, description="Comma list; a trial trains all of them.")
    trials: int = Field(20, ge=1, description="Configurations to try.")
    space: File | None = Field(None, description="TOML file of ranges and choices; else the method's own.")
    search: Literal["random", "optuna"] = Field("random", description="The way to propose configurations.")
    scheduler: Literal["asha", "none"] = Field(
        "asha", description="asha (successive halving) stops trials early; none stops no trial."
    )
    objective: str = Field("mad", description="The metric to maximise.")
    selection: Literal["synthetic", "test"] = Field(
        "synthetic",
        description="synthetic: no test image is seen. test: to study the bias, never ranked.",
    )
    epochs: Epochs = None
    report_every: Annotated[int | None, Shown(metavar="EPOCHS")] = Field(
        None, ge=1, description="Epochs between looks at the objective; a ninth of all if not given."
    )
    set: Sets = Field(default_factory=dict, description="Change a key of every trial.")
    profile: Profile = None
    backbone: Backbone = None
    weights: WeightsFile = None
    device: str = Field("auto", description="auto, cpu or cuda.")
    precision: Precision = None
    cpus_per_trial: Annotated[int, Shown(metavar="CORES")] = Field(
        1, ge=1, description="CPU cores of a trial."
    )
    gpus_per_trial: Annotated[float | None, Shown(metavar="GPUS")] = Field(
        None, ge=0, description="1 on a GPU if not given; below 1, trials share one."
    )
    max_concurrent: Annotated[int | None, Shown(metavar="TRIALS")] = Field(
        None, ge=1, description="Trials at a time; as many as fit if not given."
    )
    address: Address = None
    results: Results = "results"
    published: FolderName | None = Field(
        None,
        description="Folder of `kdbench report --rows`: trials that succeeded there are copied, not run.",
    )
    keep_detectors: KeepDetectors = Field(True, description="Keep the detectors, for --audit.")
