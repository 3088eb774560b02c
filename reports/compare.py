"""Compare two results folders: code, machines, every metric, and cells that fail now."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import RequestError, number_of
from kdbench.files import written_aside
from kdbench.reports import estimates, statistics
from kdbench.reports.coverage import covered_changes
from kdbench.reports.entries import COLUMNS, MAIN, TITLES
from kdbench.reports.estimates import Estimate
from kdbench.reports.evidence import Evidence, Judged
from kdbench.reports.leave_one_out import IMAGE_METRICS
from kdbench.reports.rows import APART, Group, Rows, differing_keys, load, named, several_draws
from kdbench.reports.significance import OTHER_WAY, p_cells, paired_difference
from kdbench.reports.tables import HOLE, Table, Value, markdown_line, percent, text, to_csv, to_markdown
from kdbench.results.schema import VERSIONS

# Versions and machines of the rows: what a difference may come from.
CODE = ("git_commit", *VERSIONS, "ray_version")
MACHINE = ("device_name", "driver", "num_threads", "precision", "host")
LINE = [*APART, "entry", "category"]  # the key of a line; a mean over the seeds that both folders have
HEAD = ("method", "section", "category", "metric", "before", "after", "difference", "significant", "remark")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two results folders side by side."""

    origins: Table  # versions and machines
    ends: Table  # cells that succeeded before and fail now
    means: Table  # over the categories that both have
    categories: Table  # every difference
    beyond: Table  # those of `categories` beyond the tolerance
    num_compared: int
    num_regressions: int  # worse beyond the tolerance, or failed now
    num_only_before: int  # rows that the other folder lacks
    num_only_after: int

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables, the longest last."""
        return self.origins, self.ends, self.means, self.beyond, self.categories

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        counts = f"{number_of(self.num_compared, 'difference')}, {len(self.beyond.body)} beyond the tolerance"
        before = number_of(self.num_only_before, "row")
        only = f"{before} only before, {self.num_only_after} only after: not compared"
        return f"{counts}; {number_of(self.num_regressions, 'regression')}; {only}"


def compare(before: str | Path, after: str | Path, tolerance: float) -> Comparison:
    """Compare all rows of two results folders; a metric that falls by more than `tolerance` is a regression.

    Raises RequestError for a tolerance out of range, folders without rows, or nothing in common.
    """
    if not 0 <= tolerance < 1:
        raise RequestError([f"--tolerance is {tolerance}: it is a fraction, 0.01 is one point of percent"])
    sides = (_load(before), _load(after))
    pairs, remarks = _paired(sides[0].cells, sides[1].cells)
    there = pairs["_merge"] == "both"
    if not there.any():
        raise RequestError(
            [
                f"{before} and {after} have no row in common: same method, dataset, setting, category, seed, "
                "profile, preset and version of the metrics"
            ]
        )
    both = pairs[there & (pairs["status_a"] == "ok") & (pairs["status_b"] == "ok")]
    both = both.assign(other_images=both["fingerprint_a"].fillna("") != both["fingerprint_b"].fillna(""))
    ended = pairs[there & (pairs["status_a"] == "ok") & (pairs["status_b"] != "ok")]
    lines = [*_lines(both, sides, remarks)]
    beyond = [line for line, difference in lines if abs(difference) > tolerance]
    comparable = [difference for line, difference in lines if not line[-1].text.startswith("other images")]
    return Comparison(
        origins=_origins(sides),
        ends=_ends(ended),
        means=_means(both[~both["other_images"]]),
        categories=_table("Every difference", [line for line, _ in lines]),
        beyond=_table(f"Beyond the tolerance of {100 * tolerance:g} points", beyond),
        num_compared=len(lines),
        num_regressions=sum(d < -tolerance for d in comparable) + len(ended),
        num_only_before=int((pairs["_merge"] == "left_only").sum()),
        num_only_after=int((pairs["_merge"] == "right_only").sum()),
    )


def _load(results: str | Path) -> Rows:
    try:
        return load(results)
    except FileNotFoundError as error:
        raise RequestError([str(error)]) from error


def write_comparison(found: Comparison, folder: Path) -> Path:
    """Write `compare.md` and `compare.csv` with all tables; returns the first."""
    parts = [
        f"## {markdown_line(table.title)}\n\n{to_markdown(table)}" for table in found.tables if table.body
    ]
    written = {
        "compare.md": "\n".join([f"# Comparison\n\n{found.headline}\n", *parts]),
        "compare.csv": to_csv(found.tables),
    }
    for name, content in written.items():
        with written_aside(folder / name) as aside:
            aside.write_text(content, encoding="utf-8")
    return folder / "compare.md"


def _paired(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, dict[tuple[Group, str], str]]:
    """Rows of both folders side by side (`_a`, `_b`, `_merge`), and (section, entry) -> changed keys.

    Entries are named over both folders. If each folder has one recipe of a method that the other lacks, the
    two are paired: a changed default is a change to show, not a new method.
    """
    sides = pd.concat([before.assign(side="a"), after.assign(side="b")], ignore_index=True)
    rows, remarks = named(sides, folder="side"), {}
    for (*section, _), own in rows.groupby([*APART, "method"], dropna=False):
        old, new = (own[own["side"] == side].drop_duplicates("recipe") for side in "ab")
        gone, come = old[~old["recipe"].isin(new["recipe"])], new[~new["recipe"].isin(old["recipe"])]
        if len(gone) == len(come) == 1:
            changed = [gone["recipe"].iloc[0], come["recipe"].iloc[0]]
            name = come["method"].iloc[0] if len(old) == 1 else come["entry"].iloc[0]
            rows.loc[own.index[own["recipe"].isin(changed)], "entry"] = name
            group = _group(dict(zip(APART, section, strict=True)))
            remarks[group, str(name)] = f"other recipe: {', '.join(differing_keys(changed))}"
    keys = [*LINE, "seed"]
    kept = [*keys, *COLUMNS, "cell_id", "status", "fingerprint", "dataset_categories"]
    parts = [rows.loc[rows["side"] == side, kept] for side in "ab"]
    # A category that is there twice for a seed was run on two sets of images: neither row is used.
    single = [part.drop_duplicates(keys, keep=False) for part in parts]
    return single[0].merge(single[1], on=keys, how="outer", suffixes=("_a", "_b"), indicator=True), remarks


def _lines(
    both: pd.DataFrame, sides: tuple[Rows, Rows], remarks: dict[tuple[Group, str], str]
) -> Iterator[tuple[tuple[Value, ...], float]]:
    """A line and its difference for each category and metric that both folders have."""
    evidence = tuple(Evidence(side.scores) for side in sides)
    for key, own in both.groupby(LINE, dropna=False, sort=True):
        facts = dict(zip(LINE, key, strict=True))
        group = _group(facts)
        names = (text(facts["entry"]), text(group.title), text(facts["category"]))
        remark = remarks.get((group, str(facts["entry"])), "")
        if own["other_images"].any():
            remark = "; ".join(("other images", remark)) if remark else "other images"
        before, after = (
            one.of_category(own.rename(columns={f"cell_id_{side}": "cell_id"}))
            for one, side in zip(evidence, "ab", strict=True)
        )
        for metric in COLUMNS:
            pair = own[[f"{metric}_a", f"{metric}_b"]].dropna().to_numpy()
            if not len(pair):
                continue
            # 0.85 - 0.86 is not quite -0.01 in float64, and the tolerance itself is allowed.
            difference = round(float(pair[:, 1].mean() - pair[:, 0].mean()), 9)
            values = [
                percent(pair[:, i].mean(), cell_ids=[*own[f"cell_id_{side}"]]) for i, side in enumerate("ab")
            ]
            changed = Value(text=f"{100 * difference:+.2f}", mean=difference)
            significant = text(_significant(metric, pair[:, 1] - pair[:, 0], before, after))
            yield (*names, text(TITLES[metric]), *values, changed, significant, text(remark)), difference


def _significant(metric: str, differences: np.ndarray, before: Judged | None, after: Judged | None) -> str:
    """Yes or no, and over what: enough seeds, else the same test images and the seeds there are."""
    if len(differences) >= statistics.MIN_PAIRS:
        sure = statistics.signed_rank(differences) < estimates.ALPHA
        other = f", {OTHER_WAY}" if sure and statistics.contradicts(differences) else ""
        return _said(sure, f"seeds{other}")
    if metric in IMAGE_METRICS and before and after and before.images == after.images:
        # A seed's two detectors are a pair.
        change = estimates.mean_over_images([estimates.paired(after.samples[metric], before.samples[metric])])
        sure = change is not None and change.p < estimates.ALPHA
        return _said(sure, "images" if len(differences) == 1 else "images and seeds")
    return "not tested"


def _said(significant: bool, over: str) -> str:
    return f"{'yes' if significant else 'no'} ({over})"


def _means(both: pd.DataFrame) -> Table:
    """Paired means over the categories that both folders have with the same images."""
    body, tested = [], list[tuple[int, int]]()  # of each interval: seeds that detectors share, categories
    keys = [key for key in LINE if key != "category"]
    for key, own in both.groupby(keys, dropna=False):
        facts = dict(zip(keys, key, strict=True))
        by_category = own.groupby("category")[[f"{m}_{side}" for m in MAIN for side in "ab"]].mean()
        for metric in MAIN:
            pair = by_category[[f"{metric}_a", f"{metric}_b"]].dropna()
            if pair.empty:
                continue
            old, new = pair.iloc[:, 0], pair.iloc[:, 1]
            ids = [[*own[f"cell_id_{side}"]] for side in "ab"]
            values = [percent(one.mean(), cell_ids=i) for one, i in zip((old, new), ids, strict=True)]
            names = (text(facts["entry"]), text(_group(facts).title), text(TITLES[metric]))
            found = _change(own, metric, [*pair.index])
            change = paired_difference((new - old).to_numpy(), found, (*ids[0], *ids[1]))
            if found:
                tested.append((own["seed"].nunique() if _shares(own) else 1, len(pair)))
            over = text(f"{len(pair)} of {len(own['dataset_categories_a'].iloc[0])}")
            body.append((*names, *values, change.value, change.within, p_cells([change])[0][0], over))
    return Table(
        title="Means over the categories that both have with the same images",
        head=(
            *("method", "section", "metric", "before", "after"),
            *("difference", "95 % interval", "p", "categories"),
        ),
        body=tuple(body),
        keys=("method", "section", "metric"),
        notes=(covered_changes(*map(min, zip(*tested, strict=True))),) if tested else (),
    )


def _change(own: pd.DataFrame, metric: str, categories: list[str]) -> Estimate | None:
    """The mean change over these categories, each seed's two detectors being a pair."""
    if len(categories) < estimates.MIN_CATEGORIES:
        return None
    changes = (own[f"{metric}_b"] - own[f"{metric}_a"]).groupby([own["seed"], own["category"]]).mean()
    by_seed = changes.unstack()[categories].to_numpy()
    if np.isnan(by_seed).any():  # a seed lacks a category: what its detector shares cannot be told
        by_seed = np.nanmean(by_seed, axis=0, keepdims=True)
    return estimates.mean_over_categories(by_seed, shared=_shares(own))


def _shares(own: pd.DataFrame) -> bool:
    """Whether one detector has several of these categories."""
    return bool((own.groupby("cell_id_b")["category"].nunique() > 1).any())


def _ends(ended: pd.DataFrame) -> Table:
    body = []
    for row in ended.sort_values([*LINE, "seed"]).to_dict("records"):
        names = (text(row["entry"]), text(_group(row).title), text(row["category"]), text(row["seed"]))
        status = Value(text=row["status_b"], hole=row["status_b"], cell_ids=(row["cell_id_b"],))
        body.append((*names, status))
    return Table(
        title="Succeeded before, fail now",
        head=("method", "section", "category", "seed", "status"),
        body=tuple(body),
        keys=("method", "section", "category", "seed"),
    )


def _origins(sides: tuple[Rows, Rows]) -> Table:
    """Versions and machines of the rows; a * marks those that differ."""
    body = []
    for name in (*CODE, *MACHINE):
        values = [_distinct(side.cells, name) for side in sides]
        body.append((text(name), *map(text, values), text("*" if values[0] != values[1] else "")))
    return Table(
        title="Code and machines",
        head=("what", "before", "after", "differs"),
        body=tuple(body),
        keys=("what",),
        notes=several_draws(place for side in sides for place in side.cells["place"]),
    )


def _distinct(cells: pd.DataFrame, name: str) -> str:
    values = cells[name].astype(object).where(cells[name].notna(), HOLE).astype(str)
    if name == "git_commit":
        values = values + cells["git_dirty"].map({True: " (dirty)"}).fillna("")
    return ", ".join(sorted(values.unique()))


def _table(title: str, lines: list[tuple[Value, ...]]) -> Table:
    return Table(title=title, head=HEAD, body=tuple(lines), keys=("method", "section", "category", "metric"))


def _group(facts: dict[str, Any]) -> Group:
    return Group(**{key: facts[key] for key in APART})
