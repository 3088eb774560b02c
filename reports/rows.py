"""All rows of a results folder as pandas: the names of entries, the sections, and what is missing.

An *entry* is a method with one recipe. A *section* of a report holds the rows that agree in all columns of
APART. Costs and latencies are kept apart by `place`, too.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kdbench.cell import Section, recipe_key
from kdbench.errors import number_of
from kdbench.results.attempts import beside
from kdbench.results.schema import ROW_SCHEMA
from kdbench.results.storage import Storage
from kdbench.results.store import (
    AUDITS,
    CELLS,
    DEPLOYED,
    EPOCHS,
    LATENCY,
    NORMALS,
    PROBES,
    SCORES,
    SHORTCUTS,
    TRIALS,
    Kind,
    read,
    read_and_copies,
)
from kdbench.results.superseded import COLUMNS, changes, last_asked

TORCH = "torch"
UNKNOWN = "unknown device"
APART = [*Section._fields, "oracle"]
ROUNDING = 1e-9  # two ways to compute the same AUROC differ by less


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a report, as frames. A frame without rows has its columns all the same."""

    cells: pd.DataFrame  # a row per category of a cell, with `entry`, `oracle` and `place`
    scores: pd.DataFrame  # a row per test image, of cells that have rows
    normals: pd.DataFrame  # a row per normal image that their training held out
    epochs: pd.DataFrame  # a row per category and epoch that was measured before the training ended
    # With `entry`, `machine` and `place` (the machine, and the runtime unless it is torch), of cells that
    # have rows. A row of `untimed` says why a runtime has no times.
    latencies: pd.DataFrame
    untimed: pd.DataFrame
    deployed: pd.DataFrame  # of exported detectors, a row per category, with the same columns
    shortcuts: pd.DataFrame  # a row per trivial number and category of datasets that were audited
    probes: pd.DataFrame  # with `entry`, of cells that have rows
    earlier: pd.DataFrame  # as `cells`, but of images that changed since; they have a table of their own
    copies: tuple[str, ...]  # files whose rows are in another file, too
    of_other_attempts: dict[str, list[str]]  # kind of file -> cells with such rows; they are left out
    contradicted: tuple[str, ...]  # cells whose scores do not give the AUROC of their rows; left out
    trials: pd.DataFrame  # of sweeps
    audits: pd.DataFrame  # of trials, a row per category and seed


@dataclass(frozen=True, kw_only=True)
class Group:
    """The facts that all rows of a section share."""

    dataset: str
    setting: str
    profile: str
    preset: str
    metric_version: int
    oracle: bool  # selected on test images: shown, never ranked

    @property
    def conditions(self) -> str:
        """The conditions that datasets and settings must share to stand in one table, in words."""
        conditions = f"profile {self.profile}, preset {self.preset} (metrics v{self.metric_version})"
        return conditions + (", selected on test images: never ranked" if self.oracle else "")

    def beside(self, other: "Group") -> bool:
        """Whether the two differ in the setting only."""
        return replace(self, setting=other.setting) == other

    @property
    def title(self) -> str:
        """The heading of the section."""
        return f"{self.dataset}, {self.setting}, {self.conditions}"


def load(results: str | Path) -> Rows:
    """Everything in a results folder, also while cells run; FileNotFoundError without cells and trials.

    Scores, timings and probes are those of `cells`. What belongs to cells without rows (they run, or were
    deleted), to earlier images or to another attempt at its cell is left out.
    """
    trials = read(results, TRIALS).to_pandas()
    shortcuts = read(results, SHORTCUTS).to_pandas()
    cells, earlier, copies = _load_cells(results, shortcuts, or_none=len(trials) > 0)
    of_cell = cells.drop_duplicates("cell_id").set_index("cell_id")
    entry, others = of_cell["entry"], dict[str, list[str]]()
    attempts = {str(cell_id): _text(own) for cell_id, own in of_cell["attempt_id"].items()}

    def known(kind: Kind) -> pd.DataFrame:
        table, copied = read_and_copies(results, kind)
        copies.update(copied)
        table, strangers = beside(table, attempts)
        others.update({kind.folder: strangers} if strangers else {})
        return table.drop(["attempt_id"]).to_pandas()

    def measured(rows: pd.DataFrame) -> pd.DataFrame:
        rows = with_runtime(rows)
        return rows.assign(entry=rows["cell_id"].map(entry))

    # How fast a detector is does not depend on the attempt that trained it.
    timings, copied = read_and_copies(results, LATENCY)
    copies.update(copied)
    timings = timings.filter(pc.is_in(timings["cell_id"], pa.array(attempts, pa.string())))
    latencies, probes = measured(timings.to_pandas()), known(PROBES)
    latencies["precision"] = latencies["precision"].astype(object).fillna("unknown precision")
    timed = latencies["why_not"].isna()
    scores = known(SCORES)
    contradicted = contradictions(cells, scores)
    return Rows(
        cells=cells,
        scores=scores[~scores["cell_id"].isin(contradicted)].reset_index(drop=True),
        normals=known(NORMALS),
        epochs=known(EPOCHS),
        latencies=latencies[timed].reset_index(drop=True),
        untimed=latencies[~timed].reset_index(drop=True),
        deployed=measured(known(DEPLOYED)),
        shortcuts=shortcuts,
        probes=probes.assign(entry=probes["cell_id"].map(entry)),
        earlier=earlier,
        copies=tuple(copies),
        of_other_attempts=others,
        contradicted=tuple(contradicted),
        trials=trials,
        audits=read(results, AUDITS).to_pandas(),
    )


def contradictions(cells: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """Ids of cells whose image scores do not give the image AUROC of their rows: one of the two was edited.

    Intervals and paired tests come from scores, so that they would be of another value than the table's.
    """
    key = ["cell_id", "category"]
    ranked = scores[[*key, "label"]].assign(rank=scores.groupby(key)["image_score"].rank())
    groups, defects = ranked.groupby(key), ranked[ranked["label"].astype(bool)].groupby(key)
    num_defects, num_normals = defects.size(), groups.size() - defects.size()
    # The sum of ranks of Mann and Whitney; average ranks count a tie as one half.
    auroc = (defects["rank"].sum() - num_defects * (num_defects + 1) / 2) / (num_defects * num_normals)
    own = cells[cells["status"] == "ok"].set_index(key)["image_auroc"]
    apart = (auroc - own).abs() > ROUNDING
    return sorted({cell_id for (cell_id, _), differs in apart.items() if differs})


def load_rows(results: str | Path) -> pd.DataFrame:
    """The rows that count, with `entry` (method and where recipes differ), `oracle`, `place`, `flagged`."""
    return _load_cells(results, read(results, SHORTCUTS).to_pandas())[0]


def _load_cells(
    results: str | Path, shortcuts: pd.DataFrame, *, or_none: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, bool]]:
    """The rows that count, those of earlier images (with `since`, when the others began), and copies."""
    try:
        table, copies = read_and_copies(results, CELLS)
    except FileNotFoundError:
        if not or_none:
            raise
        table, copies = ROW_SCHEMA.empty_table(), {}
    rows = with_flags(table.to_pandas(), shortcuts)
    # Plain Python strings: a report selects many small parts, which takes ten times as long with Arrow's.
    texts = [name for name in rows if pd.api.types.is_string_dtype(rows[name].dtype)]
    rows = with_place(rows.astype(dict.fromkeys(texts, object)))
    every = rows.drop_duplicates("cell_id")[[*COLUMNS]].to_dict("records")
    changed = changes(every, cache(lambda: last_asked(Storage(results))))
    old = rows["cell_id"].isin(changed.instead)
    own = zip(rows["cell_id"], rows["dataset_categories"], strict=True)
    rows["dataset_categories"] = pd.Series(
        [changed.folders.get(cell_id, names) for cell_id, names in own], rows.index
    )
    cells = named(rows[~old].reset_index(drop=True))
    earlier = named(rows)[old] if old.any() else cells.iloc[:0]
    since = [changed.instead[cell_id].since for cell_id in earlier["cell_id"]]
    return cells, earlier.assign(since=pd.Series(since, earlier.index, dtype=object)), copies


def with_flags(rows: pd.DataFrame, shortcuts: pd.DataFrame) -> pd.DataFrame:
    """The rows with `flagged`: whether a trivial number tells the labels of their category."""
    found = shortcuts[shortcuts["flagged"].astype(bool)]
    pairs = set(zip(found["dataset"], found["category"], strict=True))
    own = zip(rows["dataset"], rows["category"], strict=True)
    return rows.assign(flagged=pd.Series([pair in pairs for pair in own], rows.index, dtype=bool))


def with_place(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `place`, where a cost was measured: the name of the device, and the threads of a CPU."""

    def place(device: object, name: object, threads: float) -> str:
        known = str(name) if isinstance(name, str) and name else UNKNOWN
        if device != "cpu" or threads != threads:
            return known
        return f"{known}, {threads:.0f} thread{'s' if threads > 1 else ''}"

    columns = (rows["device"], rows["device_name"], rows["num_threads"])
    places = [place(*values) for values in zip(*columns, strict=True)]
    return rows.assign(place=pd.Series(places, rows.index, dtype=object))


def several_draws(places: Iterable[str]) -> tuple[str, ...]:
    """The note below numbers that come from several `place`s, which docs/reproducibility.md explains."""
    known = sorted({place for place in places if not place.startswith(UNKNOWN)})
    if len(known) < 2:
        return ()
    return (
        f"The rows come from {'; '.join(known)}. The same seed on another device or with another number of "
        "threads is another draw, so numbers may differ as those of two seeds do.",
    )


def with_runtime(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `machine`, where they were measured, and `place`: the machine and what it ran.

    torch is not named: it is what ran where a row names no runtime.
    """
    rows = with_place(rows)
    runtimes = rows["runtime"].astype(object).fillna(TORCH)
    named = [
        place if runtime == TORCH else f"{place}, {runtime}"
        for place, runtime in zip(rows["place"], runtimes, strict=True)
    ]
    return rows.assign(
        machine=rows["place"], runtime=runtimes, place=pd.Series(named, rows.index, dtype=object)
    )


def is_busy(timings: pd.DataFrame) -> pd.Series:
    """Whether something else ran during each timing; True if that is not known."""
    return timings["busy"].fillna(True).astype(bool)


def with_images(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with all `dataset_categories` of their section, and `other_images`.

    A folder may gain categories between two runs, and the images of a category may change: `other_images`
    says that the section has rows of the same categories with another fingerprint.
    """
    rows = rows.assign(trained_on=["+".join(sorted(own)) for own in rows["categories"]])
    prints = rows.groupby([*APART, "trained_on", "category"], dropna=False)["fingerprint"]
    rows = rows.assign(other_images=prints.transform("nunique") > 1)
    for _, group in rows.groupby(APART, dropna=False):
        known = sorted({tuple(own) for own in group["dataset_categories"]}, key=lambda own: (-len(own), own))
        if len(known) > 1:
            every = list(dict.fromkeys(category for own in known for category in own))
            rows.loc[group.index, "dataset_categories"] = pd.Series([every] * len(group), group.index)
    return rows


def named(rows: pd.DataFrame, *, folder: str | None = None) -> pd.DataFrame:
    """The rows with `entry` and `oracle`; `folder` names the column that tells several folders apart.

    The name of an entry has the keys in which the recipes of its method differ within some section. So it is
    the same in every dataset and setting, and a recipe that only differs between datasets adds no key.
    """
    rows = with_images(rows.assign(oracle=rows["selection"] == "test", flagged=rows.get("flagged", False)))
    rows = rows.assign(entry=rows["method"], recipe=_recipes(rows, folder))
    beside = [key for key in APART if key not in ("dataset", "setting")]
    for (*_, method), group in rows.groupby([*beside, "method"], dropna=False):
        sections = [part["recipe"].unique() for _, part in group.groupby(["dataset", "setting"])]
        keys = sorted({key for recipes in sections for key in differing_keys([*recipes])})
        names = {recipe: _name(str(method), recipe, keys) for recipe in group["recipe"].unique()}
        rows.loc[group.index, "entry"] = group["recipe"].map(names)
    return rows


def differing_keys(recipes: list[str]) -> list[str]:
    """The keys in which recipes (JSON objects) differ; a key that one of them lacks counts, too."""
    read = [json.loads(recipe) for recipe in recipes]
    keys = sorted({key for recipe in read for key in recipe})
    return [key for key in keys if len({json.dumps(recipe.get(key)) for recipe in read}) > 1]


def recipe_differences(a: str, b: str) -> str:
    """The keys in which two recipes differ, with both values, without the categories trained on."""
    ours, theirs = json.loads(a), json.loads(b)
    keys = [key for key in differing_keys([a, b]) if key != "categories"]
    return ", ".join(f"{key} {_plain(ours.get(key))} against {_plain(theirs.get(key))}" for key in keys)


def sections(cells: pd.DataFrame) -> Iterator[tuple[Group, pd.DataFrame]]:
    """Sections with their rows, by name; those selected on test images come last."""
    order = ["oracle", *(key for key in APART if key != "oracle")]
    for values, group in cells.groupby(order, dropna=False):
        facts = dict(zip(order, values, strict=True))
        yield Group(**{key: _python(value) for key, value in facts.items()}), group


def holes(rows: pd.DataFrame) -> tuple[str, ...]:
    """The rows that one entry lacks for a mean over the dataset, in words; empty if it lacks none."""
    expected = list(rows["dataset_categories"].iloc[0])
    num_seeds, tried = rows["seed"].nunique(), rows["category"].nunique()
    found = []
    if tried < len(expected):
        found.append(f"{tried} of {number_of(len(expected), 'category')}")
    failed = rows.loc[rows["status"] != "ok", "status"].value_counts().sort_index()
    found += [f"{count} {status}" for status, count in failed.items()]
    pairs = rows[["category", "seed"]].drop_duplicates()
    if len(pairs) < num_seeds * tried:
        found.append(f"{num_seeds * tried - len(pairs)} not run")
    if len(rows) > len(pairs):
        contents = rows.groupby(["category", "seed"])["fingerprint"].nunique(dropna=False)
        images = "other" if (contents > 1).any() else "the same"
        found.append(f"{len(rows) - len(pairs)} twice, with {images} images")
    elif (rows.groupby(["trained_on", "category"])["fingerprint"].nunique() > 1).any():
        found.append("other images for some seeds")
    return tuple(found)


def _recipes(rows: pd.DataFrame, folder: str | None) -> pd.Series:
    """The recipe of each row as JSON; rows of a method with different recipes are different entries.

    `precision` is the one that the row ran in, if that is known, not the `auto` of the request.
    """

    def recipe(config: str, teacher: object, split: object, trained_on: str, precision: object) -> str:
        return recipe_key(
            config,
            teacher=_text(teacher),
            split=_text(split),
            categories=trained_on,
            precision=_text(precision),
        )

    digests = (rows["teacher_sha256"], rows["split_sha256"])
    columns = (rows["config"], *digests, _trained_on(rows), _precisions(rows, folder))
    return pd.Series([recipe(*values) for values in zip(*columns, strict=True)], rows.index, dtype=object)


def _precisions(rows: pd.DataFrame, folder: str | None) -> pd.Series:
    """The precision of each row; if it failed before that was known, the precision of all similar rows.

    Rows of its own folder come first: another folder may have run in another precision.
    """
    found, alike = rows["precision"], [*APART, "method", "config"]
    for keys in ([*alike, folder], alike) if folder else (alike,):
        known = rows.groupby(keys, dropna=False)["precision"]
        found = found.fillna(known.transform("first").where(known.transform("nunique") == 1))
    return found


def _trained_on(rows: pd.DataFrame) -> list[str]:
    """The categories that a multiclass detector was trained on; "all" for all of them, and for oneclass."""
    names = []
    for setting, own, of_dataset in zip(
        rows["setting"], rows["categories"], rows["dataset_categories"], strict=True
    ):
        everything = setting != "multiclass" or set(own) == set(of_dataset)
        names.append("all" if everything else "+".join(sorted(own)))
    return names


def _name(method: str, recipe: str, keys: list[str]) -> str:
    values = json.loads(recipe)
    recipe_text = ", ".join(f"{key}={_plain(values.get(key))}" for key in keys)
    return f"{method} ({recipe_text})" if recipe_text else method


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: object) -> str | None:
    """The text of a cell of a column; None where it is null."""
    return value if isinstance(value, str) else None


def _python(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
