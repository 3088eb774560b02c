"""A cell, where it runs, how far it is and how it finished: plain data that may go to any process."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from kdbench.metrics.presets import metric_version
from kdbench.weights import Weights

ALL = "all"  # the category of a multiclass cell
SETTINGS = ("oneclass", "multiclass")
PROFILES = ("paper", "demo")
ELSEWHERE = "elsewhere"  # the status of a cell that another process runs
STOPPED = "stopped"  # the status of a cell that was asked to stop: it has no rows

# Where the teacher's levels of training images are kept: wherever there is room, always on the device, or
# nowhere. The latter two are for a cell that shares a GPU: it caches as the measured cells did.
Cache = Literal["auto", "device", "recomputed"]


class Section(NamedTuple):
    """The facts that cells of one section of a report have in common."""

    dataset: str
    setting: str
    profile: str
    preset: str
    metric_version: int


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model to train and evaluate: plain data only, so that it can go to any process."""

    method: str
    config: str  # canonical JSON of the method's resolved configuration
    dataset: str
    setting: str
    category: str  # a category's name, or "all" for one model of every category
    categories: tuple[str, ...]  # it is trained and evaluated on these
    fingerprint: str  # of the content of exactly these categories
    teacher_sha256: str
    seed: int
    preset: str
    profile: str  # a label of the recipe; the recipe itself is in config

    @property
    def id(self) -> str:
        """Hash of everything that can change a number, without the machine and the profile's name."""
        identity = asdict(self) | {"metric_version": metric_version(self.preset)}
        del identity["profile"]
        return digest_of(identity)[:20]

    @property
    def section(self) -> Section:
        """The section of a report that shows this cell."""
        version = metric_version(self.preset)
        return Section(self.dataset, self.setting, self.profile, self.preset, version)

    @property
    def recipe_key(self) -> str:
        """A key that is equal for the cells of a run that make one entry: they differ in seed and category.

        Rows also know the split, of which a run has one for each dataset, and the precision, which follows
        from the config and the device.
        """
        categories = "+".join(sorted(self.categories)) if self.setting == "multiclass" else ALL
        return recipe_key(self.config, teacher=self.teacher_sha256, categories=categories)

    @property
    def label(self) -> str:
        """The name of this cell in a progress line."""
        return f"{self.method} {self.dataset}/{self.category} {self.setting} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """The data, results folder and device of a cell: nothing that identifies the cell."""

    root: str
    weights: Weights
    results: str
    device: str = "cpu"
    num_threads: int | None = None  # of torch on the CPU; None: as many as torch chooses
    gpu_share: float = 1.0  # of the GPU's memory, where cells share one
    cache: Cache = "auto"
    keep_detectors: bool = True
    keep_pictures: bool = True
    large_masks: bool = False  # the user accepted masks that mark more than half of their image
    compile: Literal["auto", "on", "off"] = "auto"  # whether losses are compiled
    checkpoint_every_s: float = 600.0  # 0: never
    measure_every: int = 0  # epochs between two looks at the test images; 0: only the trained detector
    replaces: str | None = None  # the run whose result of this cell is to be replaced
    runtimes: tuple[str, ...] = ("torch",)  # its detector is measured in these, when it is trained
    runtime_precisions: tuple[str, ...] = ()  # empty: fp32 and the precision of the training


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running cell is."""

    cell_id: str
    label: str
    phase: str  # prepare, train, evaluate
    done: int = 0  # images
    total: int = 0
    epoch: int = 0
    epochs: int = 0
    loss: float | None = None
    problem: str = ""  # one that does not stop the cell


Notify = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a cell finished; the numbers are in its rows."""

    cell_id: str
    label: str
    status: str  # that of its rows, or ELSEWHERE or STOPPED
    error: str  # one line, empty if ok
    seconds: float
    summary: str = ""


def outcome_of(cell: Cell, status: str, seconds: float, *, error: str = "", summary: str = "") -> Outcome:
    """The outcome of this cell, with its id and label."""
    return Outcome(
        cell_id=cell.id, label=cell.label, status=status, error=error, seconds=seconds, summary=summary
    )


def recipe_key(
    config: str,
    *,
    teacher: str | None,
    categories: str,
    split: str | None = None,
    precision: str | None = None,
) -> str:
    """A key, JSON, that is equal for results of one entry of a section and differs between entries.

    `config` is the JSON of the configuration; `teacher` and `split` are digests; the detector is trained on
    `categories`; `precision` replaces that of the config.
    """
    facts = {"teacher": (teacher or "")[:8], "split": (split or "")[:8], "categories": categories}
    facts |= {"precision": precision} if precision else {}
    return json.dumps(json.loads(config) | facts, sort_keys=True)


def digest_of(value: Any) -> str:
    """SHA-256 of a value, by its canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON that is the same text for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def groups_of(setting: str, categories: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The models of a setting: (category, the categories it is trained on)."""
    if setting == "multiclass":
        yield ALL, categories
    else:
        yield from ((category, (category,)) for category in categories)
