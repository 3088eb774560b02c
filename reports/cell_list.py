"""The list of cells at the end of the page, with the recipes, machines and errors that cells share."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.errors import last_line
from kdbench.reports.entries import MAIN, TITLES

ENVIRONMENT = (
    *("device", "device_name", "driver", "num_threads", "host", "precision", "teacher_cache"),
    *("git_commit", "git_dirty", "kdbench_version", "python_version", "torch_version"),
    *("torchvision_version", "timm_version", "pillow_version", "ray_version"),
)
RECIPE = (
    *("method", "backbone", "teacher_source", "teacher_sha256", "split_sha256", "fingerprint", "selection"),
    *("preset", "metric_version", "evaluation_size", "mask_rule", "score_pooling", "pro_limit", "sigma"),
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A recipe, a machine or an error that several cells share: a text with an anchor."""

    id: str
    number: int
    title: str
    text: str


class Links:
    """Numbers of the cells on the page, and of the sets of cells from which a value was computed."""

    def __init__(self, cell_ids: Iterable[str]) -> None:
        self.index = {cell_id: i for i, cell_id in enumerate(cell_ids)}
        self.groups: dict[tuple[int, ...], int] = {}

    def anchor(self, cell_id: str) -> str:
        """The id of a cell's line."""
        return f"cell-{self.index[cell_id]}"

    def group(self, cell_ids: Sequence[str]) -> int:
        """The number of a set of cells; equal sets have the same number."""
        indices = tuple(sorted({self.index[cell_id] for cell_id in cell_ids}))
        return self.groups.setdefault(indices, len(self.groups))


def list_cells(cells: pd.DataFrame, links: Links) -> dict[str, Any]:
    """The data of the template: a line per cell, recipes, machines with versions, and errors."""
    recipes, machines, errors = _Facts("recipe"), _Facts("machine"), _Facts("error")
    by_cell = cells.groupby("cell_id", sort=False)
    means = 100 * by_cell[[*MAIN]].mean()
    first = cells.drop_duplicates("cell_id").set_index("cell_id")
    listed = []
    for cell_id, row in zip(first.index, first.to_dict("records"), strict=True):
        config = json.dumps(json.loads(row["config"]), indent=1)
        recipe = recipes.add(row["entry"], f"{_lines(row, RECIPE)}\nconfig {config}")
        title = f"{row['place']}, host {_said(row['host'])}, kdbench {_said(row['kdbench_version'])}"
        machine = machines.add(title, _lines(row, ENVIRONMENT))
        message = "" if pd.isna(row["error"]) else row["error"].strip()
        error = errors.add(last_line(message), message) if message else None
        values = means.loc[cell_id]
        listed.append(
            {
                "anchor": links.anchor(cell_id),
                "cell_id": cell_id,
                "entry": row["entry"],
                "dataset": row["dataset"],
                "setting": row["setting"],
                "category": row["category"]
                if row["setting"] == "oneclass"
                else f"all {len(row['categories'])}",
                "seed": row["seed"],
                "status": row["status"],
                "error": error.id if error else "",
                "metrics": [f"{values[name]:.2f}" if math.isfinite(values[name]) else "-" for name in MAIN],
                "started_at": _said(row["started_at"]),
                "train_s": f"{row['train_s']:.1f}" if math.isfinite(row["train_s"]) else "-",
                "recipe": recipe,
                "machine": machine,
            }
        )
    head = ("cell", "method", "dataset", "setting", "category", "seed", "status")
    numeric = (*(TITLES[name] for name in MAIN), "train s")
    return {
        "cell_head": (*head, *numeric[:-1], "started", "train s", "recipe", "machine"),
        "numeric_heads": ("seed", *numeric),
        "cells": listed,
        "recipes": recipes.all,
        "machines": machines.all,
        "errors": errors.all,
    }


class _Facts:
    """Texts that cells share. Each is there once; they are numbered from 1."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.known: dict[tuple[str, str], Fact] = {}

    @property
    def all(self) -> list[Fact]:
        return list(self.known.values())

    def add(self, title: str, text: str) -> Fact:
        number = len(self.known) + 1
        fact = Fact(
            id=f"{self.kind}-{number}", number=number, title=f"{self.kind} {number}: {title}", text=text
        )
        return self.known.setdefault((title, text), fact)


def _lines(row: dict[str, Any], names: Iterable[str]) -> str:
    return "\n".join(f"{name} {_said(row[name])}" for name in names)


def _said(value: Any) -> str:
    return "-" if value is None or value != value else str(value)
