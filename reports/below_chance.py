"""Cells that rank worse than chance: their maps or scores may be inverted, so that small means anomalous."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdbench.reports.entries import TITLES, Entry
from kdbench.reports.rows import Group
from kdbench.reports.tables import EMPTY, Table, Value, number, percent, text

SHOWN = ("image_auroc", "pixel_auroc")
LEVEL = 0.01  # of the p of an image AUROC
# The pixels of an image depend on one another, so that no p is known. The 270 rows of the published tables
# have no pixel AUROC below 0.309, the worst in an ablation.
PIXELS = 0.3


def p_below_chance(auroc: pd.Series, num_normal: pd.Series, num_defective: pd.Series) -> pd.Series:
    """One-sided p of an AUROC so far below 50 %, by the normal approximation of Mann and Whitney.

    It is corrected for continuity and not for ties: ties can only make it too large.
    """
    from scipy.stats import norm

    pairs = num_normal * num_defective
    spread = np.sqrt((num_normal + num_defective + 1) / (12 * pairs))
    return pd.Series(norm.cdf((auroc - 0.5 + 0.5 / pairs) / spread), auroc.index)


def tables(group: Group, found: Sequence[Entry]) -> Iterator[Table]:
    """A line for each category of a cell that ranks worse than chance; nothing without one."""
    yield from _blind_table(group, found)
    body = [(text(entry.name), *_line(row)) for entry in found for row in _worse(entry)]
    if body:
        yield Table(
            title=f"Worse than chance: {group.title}",
            head=("method", "category", "seed", TITLES[SHOWN[0]], "p", TITLES[SHOWN[1]]),
            body=tuple(body),
            keys=("method", "category", "seed"),
            notes=(
                f"Image AUROC below 50 % with a one-sided p below {LEVEL:g} (Mann and Whitney, each line by "
                f"itself), or pixel AUROC below {100 * PIXELS:g} %. A larger value has to be more anomalous. "
                "Maps and scores of another program may be inverted: negate them, and run `kdbench score` "
                "with --replace. A detector of kdbench takes normal images for defective ones here.",
            ),
        )


def _blind_table(group: Group, found: Sequence[Entry]) -> Iterator[Table]:
    body = [
        (text(entry.name), text(row["category"]), number(row["seed"]), text(row["what"]))
        for entry in found
        for row in _blind(entry)
    ]
    if body:
        yield Table(
            title=f"One value for all: {group.title}",
            head=("method", "category", "seed", "equal"),
            body=tuple(body),
            keys=("method", "category", "seed"),
            notes=(
                "All test images have one score, or all pixels one value. Such a detector sees nothing: its "
                "training collapsed, or it scales each map by its own largest value, which takes the scores "
                "away.",
            ),
        )


def said(found: Sequence[Entry]) -> list[str]:
    """The categories below chance for the terminal, in a line for each entry."""
    lines = []
    for entry in found:
        if blind := _blind(entry):
            first, more = blind[0], f", and {len(blind) - 1} more" if len(blind) > 1 else ""
            where = f"{first['category']} seed {first['seed']}{more}"
            lines.append(f"  {entry.name} gives {first['what']} one value ({where}): it sees nothing")
        if worse := _worse(entry):
            first = worse[0]
            values = [f"{TITLES[m]} {percent(first[m]).text}" for m in SHOWN if first[m] == first[m]]
            more = f", and {len(worse) - 1} more" if len(worse) > 1 else ""
            advice = (
                "Are maps or scores inverted? A larger value has to be more anomalous: negate them and use "
                "--replace"
                if entry.outside
                else "It takes normal images for defective ones"
            )
            where = f"{first['category']} seed {first['seed']}: {', '.join(values)}{more}"
            lines.append(f"  {entry.name} is worse than chance ({where}). {advice}")
    return lines


def _blind(entry: Entry) -> list[dict[Hashable, Any]]:
    """The rows of an entry whose images, or pixels, all have one value, with `what` has it.

    Then the AUROC is 50 %, and the average precision is the share of the defective ones.
    """
    rows, half = entry.ok, 0.5
    share = rows["num_defective"] / rows["num_test"]
    images = (rows["image_auroc"] == half) & np.isclose(rows["image_ap"], share, rtol=0, atol=1e-12)
    pixels = rows["pixel_auroc"] == half  # no chance hits it among so many
    what = np.where(pixels, "all pixels", "all images")
    return rows.assign(what=what)[images | pixels].to_dict("records")


def _worse(entry: Entry) -> list[dict[Hashable, Any]]:
    """The rows of an entry that rank worse than chance, with their `p`."""
    rows = entry.ok
    p = p_below_chance(rows["image_auroc"], rows["num_test"] - rows["num_defective"], rows["num_defective"])
    worse = (p < LEVEL) | (rows["pixel_auroc"] < PIXELS)
    return rows.assign(p=p)[worse].to_dict("records")


def _line(row: dict[Hashable, Any]) -> tuple[Value, ...]:
    image, pixel = (
        percent(row[metric], cell_ids=[row["cell_id"]]) if row[metric] == row[metric] else EMPTY
        for metric in SHOWN
    )
    return text(row["category"]), number(row["seed"]), image, number(row["p"], f"{row['p']:.2g}"), pixel
