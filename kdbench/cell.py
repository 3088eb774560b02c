"""A cell: the unit that is scheduled, timed, resumed and written; and what identifies it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from kdbench.metrics.exact import METRIC_VERSION

ALL = "all"  # the category of a multiclass cell
SETTINGS = ("oneclass", "multiclass")
PROFILES = ("paper", "demo")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model to train and evaluate: plain data only, so that it can go to any process."""

    method: str
    config: str  # canonical JSON of the method's resolved configuration
    dataset: str
    setting: str
    category: str  # a category's name, or "all" for one model of every category
    categories: tuple[str, ...]  # what it is trained on and evaluated on
    fingerprint: str  # of the content of exactly these categories
    teacher_sha256: str
    seed: int
    preset: str
    profile: str  # a label of the recipe; the recipe itself is in config

    @property
    def id(self) -> str:
        """Hash of everything that can change a number, and of nothing about the machine or the label."""
        identity = asdict(self) | {"metric_version": METRIC_VERSION}
        del identity["profile"]
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:20]

    @property
    def label(self) -> str:
        """How a person calls this cell in a progress line."""
        return f"{self.method} {self.dataset}/{self.category} {self.setting} seed {self.seed}"


def canonical_json(value: Any) -> str:
    """One text for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def groups_of(setting: str, categories: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The models that a setting asks for: (category, the categories it is trained on)."""
    if setting == "multiclass":
        yield ALL, categories
    else:
        yield from ((category, (category,)) for category in categories)
