"""The template of a package with a user's method. It has an entry point and runs unchanged."""

import keyword
from pathlib import Path

from kdbench.errors import RequestError, reason
from kdbench.registry import METHOD_ENTRY_POINTS, method_names

PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "kdbench-{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["kdbench"]

[project.entry-points."{group}"]
{name} = "kdbench_{name}"

[tool.setuptools]
py-modules = ["kdbench_{name}"]
"""

MODULE = '''"""{name}: one sentence that says the idea.

Authors: Title, venue, arXiv:0000.00000. Where the defaults come from.
"""

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from kdbench.backbone import FeaturePyramid, pyramid
from kdbench.method import Method, cosine_distance, fuse


class {class_name}(Method):
    """One sentence on the parts that are trained, and on the map in which anomalies are large."""

    name = "{name}"
    paper = "arXiv:0000.00000"
    family = "forward"
    year = 2000
    licence = "of the authors' code, if there is any"
    fidelity = "after the abstract"
    departures = ("say where this file differs from the paper",)

    class Config(Method.Config):
        epochs: int = Field(100, ge=1)
        lr: float = Field(1e-3, gt=0)

    config: Config

    def __init__(self, config: Config, teacher: FeaturePyramid) -> None:
        super().__init__(config, teacher)
        self.student = pyramid(config.backbone, config.levels)

    def distances(self, images: Tensor, taught: list[Tensor]) -> list[Tensor]:
        """Per level, 1 - cosine of teacher and student: [B,h,w]."""
        return [cosine_distance(t, s) for t, s in zip(taught, self.student(images), strict=True)]

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        return torch.stack([d.mean() for d in self.distances(images, taught)]).sum()

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        return fuse(self.distances(images, taught), images.shape[-1])

    def optimizer(self) -> Optimizer:
        return torch.optim.AdamW(self.trained(), lr=self.config.lr)

    # Other parts that the runner knows; add those that the paper has (kdbench/method.py has the types):
    #   needs = "..."               what it needs beyond a usual teacher; then only --methods selects it
    #   multiclass, demo, tiny      changes of Config: for the setting, the demo profile, small tests
    #   parameter_groups(rates)     for an optimizer: parts with rates of their own, then the rest
    #   training_only = ("...",)    parts that only the loss uses: a detector is stored without them
    #   prepare(normals)            once before training, with batches (images, taught) of the training images
    #   calibrate(normals)          once after training, with held-out ones; calibrates = True holds some out
    #   self.step, self.num_steps   how far the training is, in optimizer steps; self.progress from 0 to 1
    #   self.teach(images)          the teacher's levels of images that the loss has changed
    #   scheduler(optimizer)        of the learning rate; scheduler_every = "step" steps it after every step
    #   terms(images, taught)       in place of loss: its parts by name, which the report shows side by side
    #   observed()                  further values of the last batch that the report shows beside them
    #   image_score(anomaly_map)    [B]; the maximum of the map if it is not given


METHOD = {class_name}
'''


def new_method(name: str, parent: Path) -> Path:
    """Write the package `kdbench-NAME` below `parent`; RequestError for an unusable name or folder."""
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise RequestError(
            [f"{name!r} is no name for a method: lower-case letters, digits, _ , like my_method"]
        )
    if name in method_names():
        raise RequestError([f"there is a method {name!r} already. Methods: {', '.join(method_names())}"])
    folder = parent / f"kdbench-{name}"
    if folder.exists():
        raise RequestError([f"{folder} exists already"])
    class_name = "".join(part.capitalize() for part in name.split("_"))
    try:
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name, group=METHOD_ENTRY_POINTS))
        (folder / f"kdbench_{name}.py").write_text(MODULE.format(name=name, class_name=class_name))
    except OSError as error:
        raise RequestError([f"cannot write {folder}: {reason(error)}"]) from error
    return folder
