"""Categories in which a number that sees no defect tells the labels; means with and without them."""

from collections.abc import Iterator, Sequence

import pandas as pd

from kdbench.errors import number_of
from kdbench.reports.accuracy import partial_title
from kdbench.reports.entries import MAIN, TITLES, Entry, common_categories, means, shown
from kdbench.reports.rows import Group, Rows
from kdbench.reports.tables import Table, Value, hole, number, percent, text


def flagged(group: Group, found: Sequence[Entry], rows: Rows) -> Iterator[Table]:
    """The tables of an audit of the dataset by `kdbench datasets audit`; none without an audit."""
    audited = rows.shortcuts[rows.shortcuts["dataset"] == group.dataset]
    expected = found[0].dataset_categories
    audited = audited[audited["category"].isin(expected)]
    if audited.empty:
        return
    own = rows.cells[rows.cells["dataset"] == group.dataset]
    bad = audited[audited["flagged"].astype(bool)]
    there = [category for category in expected if category in set(bad["category"])]
    yield Table(
        title=f"Categories that give their labels away: {group.title}",
        head=("category", "image AUROC", "number", "p (Holm)", "other numbers"),
        body=tuple(_line(category, bad[bad["category"] == category]) for category in there),
        keys=("category",),
        notes=(
            f"Audited: {audited['category'].nunique()} of {number_of(len(expected), 'category')}. "
            f"Flagged: {len(there)}. Of a flagged category a number that sees no defect, such as the mean "
            "brightness, tells normal from defective test images better than chance. An AUROC near 0 tells "
            "as much as one near 100. A flag does not prove that a detector uses the number: large defects "
            "move some by themselves.",
            *_other_images(audited, own),
        ),
    )
    if there:
        yield _with_and_without(group, found, there)


def _line(category: str, numbers: pd.DataFrame) -> tuple[Value, ...]:
    """The number that tells most, then the others."""
    order = (numbers["image_auroc"] - 0.5).abs().sort_values(ascending=False, kind="stable").index
    first, *others = numbers.loc[order].to_dict("records")
    words = ", ".join(f"{one['number']} {100 * one['image_auroc']:.1f}" for one in others)
    strongest = (percent(first["image_auroc"]), text(first["number"]))
    return (text(category), *strongest, number(first["p_holm"], f"{first['p_holm']:.2g}"), text(words))


def _other_images(audited: pd.DataFrame, cells: pd.DataFrame) -> Iterator[str]:
    """Categories whose oneclass cells have other images than the audit; multiclass cells do not tell."""
    known = cells[cells["setting"] == "oneclass"].groupby("category")["fingerprint"].agg(set)
    seen = audited.groupby("category")["fingerprint"].first()
    other = [name for name, one in seen.items() if name in known and one not in known[name]]
    if other:
        yield f"Audited on other images than those of the cells: {', '.join(map(str, other))}."


def _with_and_without(group: Group, found: Sequence[Entry], bad: Sequence[str]) -> Table:
    """The means of every entry over all categories, and over those that are not flagged.

    If an entry lacks categories, both are over those that all entries have.
    """
    common = common_categories(found) if any(entry.holes for entry in found) else []
    over = common or found[0].dataset_categories
    left = len(set(over) - set(bad))
    body = []
    for entry in found:
        every = entry.rows[entry.rows["category"].isin(over)]
        known = bool(common) or not entry.holes
        pair = [_means(rows, known) for rows in (every, every[~every["flagged"]])]
        if not left:
            pair[1] = [hole("none is left")] * len(MAIN)
        values = (value for both in zip(*pair, strict=True) for value in both)
        body.append((text(entry.name), *values, text("; ".join(entry.remarks))))
    return Table(
        title=f"Means with and without these categories: {group.title}",
        head=("method", *(part for m in MAIN for part in (TITLES[m], f"{TITLES[m]} without")), "holes"),
        body=tuple(body),
        notes=(
            *([f"{partial_title(found, common)}."] if common else []),
            f"Without: over the {left} categories that are not flagged. No rank uses it.",
        ),
    )


def _means(rows: pd.DataFrame, known: bool) -> list[Value]:
    """The MAIN means of rows as body cells; holes where they are not known."""
    found, ids = means(rows) if known else dict.fromkeys(MAIN), [*dict.fromkeys(rows["cell_id"])]
    return [shown(found[metric], ids) for metric in MAIN]
