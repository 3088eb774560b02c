"""The conclusion of a section: one sentence that its paired tests allow, and the ranking in a few columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kdbench.errors import number_of
from kdbench.reports.entries import (
    MAIN,
    TITLES,
    Entry,
    common_categories,
    draws,
    means,
    ranked_by,
    ranks,
    shown,
)
from kdbench.reports.estimates import ALPHA
from kdbench.reports.tables import HOLE, Table, Value, number, text

MOST = 8  # methods that a sentence names
NOTHING = "No two methods could be tested against each other: nothing can be said of which is better."


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A pair that was compared: the difference of their means, and its p after Holm's correction."""

    first: str
    second: str
    difference: float  # first minus second
    p: float | None  # None: it could not be tested

    @property
    def better(self) -> tuple[str, str] | None:
        """(the better one, the other), or None where no difference can be told."""
        if self.p is None or self.p >= ALPHA or self.difference == 0:
            return None
        return (self.first, self.second) if self.difference > 0 else (self.second, self.first)


def conclusion(found: Sequence[Entry], over_categories: Sequence[Table], over_images: Sequence[Table]) -> str:
    """The sentence on a section, from its tables of pairs; those over categories count where they are."""
    if len(found) < 2:
        return "There is one method only: nothing is compared."
    metric, order = TITLES[ranked_by(found)], [entry.name for entry in found]
    for table in over_categories:
        own = [line for line in table.body if _cell(table, line, "metric").text == metric]
        if own:
            return sentence(judged(table, own), order, f"{metric} over the categories")
    method = {entry.name: entry.method for entry in found}
    families: dict[str, list[Judged]] = {}  # p is corrected within each: methods, or the recipes of one
    for pair in (pair for table in over_images for pair in judged(table, table.body)):
        alike = method[pair.first] == method[pair.second]
        families.setdefault(method[pair.first] if alike else "", []).append(pair)
    by = "I-AUROC over the test images"
    sentences = (
        counted(pairs, f"{by}, recipes of {of}") if of else sentence(pairs, order, by)
        for of, pairs in families.items()
    )
    return " ".join(sentences) or NOTHING


def judged(table: Table, lines: Sequence[tuple[Value, ...]]) -> list[Judged]:
    """The pairs in lines of a table of pairs."""
    return [
        Judged(
            first=_cell(table, line, "method").text,
            second=_cell(table, line, "against").text,
            difference=_cell(table, line, "difference").mean or 0.0,
            p=_cell(table, line, "p (Holm)").mean,
        )
        for line in lines
    ]


def sentence(pairs: Sequence[Judged], order: Sequence[str], by: str) -> str:
    """The sentence that the pairs allow: which method is better, which pairs are alike, which are not tested.

    Each pair is named by itself, and nothing is taken as transitive: A may be better than B, B better than
    C, and still A and C may not be told apart. `order` has the names in the order in which they are named.
    """
    tested = [pair for pair in pairs if pair.p is not None]
    if not tested:
        return NOTHING
    told = [pair.better for pair in tested if pair.better]
    if len({name for pair in pairs for name in (pair.first, pair.second)}) > MOST:
        return counted(pairs, by)
    parts = [*_wins(told, order)]
    alike = [(pair.first, pair.second) for pair in tested if not pair.better]
    parts += [
        f"no difference between {'' if len(group) == 2 else 'any two of '}{_listed(group)} can be told"
        for group in _groups(alike, order)
    ]
    left = [f"{pair.first} and {pair.second}" for pair in pairs if pair.p is None]
    parts += [f"not tested: {', '.join(left)}"] if left else []
    return f"{_head(tested, by)}{'; '.join(parts)}."


def counted(pairs: Sequence[Judged], by: str) -> str:
    """The sentence for many methods: how many of the pairs differ, without names."""
    tested = [pair for pair in pairs if pair.p is not None]
    if not tested:
        return NOTHING
    count = sum(pair.better is not None for pair in tested)
    words = {0: "none of them differs", 1: "one of them differs"}.get(count, f"{count} of them differ")
    return f"{_head(tested, by)}{words} at {100 * ALPHA:g} %; the table of pairs says which."


def _head(tested: Sequence[Judged], by: str) -> str:
    return f"By {by}, after Holm's correction over {number_of(len(tested), 'pair')}: "


def _wins(told: Sequence[tuple[str, str]], order: Sequence[str]) -> Iterator[str]:
    """Which methods are better than which; those that are better than the same ones share a clause."""
    worse = {name: tuple(other for other in order if (name, other) in told) for name in order}
    for losers in dict.fromkeys(worse[name] for name in order if worse[name]):
        winners = [name for name in order if worse[name] == losers]
        are = "is" if len(winners) == 1 else "are each"
        of = {1: "", 2: "both "}.get(len(losers), "each of ")
        yield f"{_listed(winners)} {are} better than {of}{_listed(losers)}"


def _groups(alike: Sequence[tuple[str, str]], order: Sequence[str]) -> Iterator[list[str]]:
    """Groups in which every two are a pair of `alike`; together they hold every pair of it."""
    known = {frozenset(pair) for pair in alike}
    left = dict.fromkeys(frozenset(pair) for pair in alike)
    while left:
        group = sorted(next(iter(left)), key=order.index)
        for name in order:
            if name not in group and all(frozenset((name, other)) in known for other in group):
                group.append(name)
        group.sort(key=order.index)
        yield group
        left = {pair: None for pair in left if not pair <= set(group)}


def standing(found: Sequence[Entry], title: str) -> Table:
    """The ranking in a few columns; over the categories that all have, without ranks, if some lack one."""
    common = common_categories(found) if any(entry.holes for entry in found) else []
    places, body = ranks(found, ranked_by(found)), []
    for entry in found:
        values = means(entry.rows[entry.rows["category"].isin(common)]) if common else entry.means
        place = number(places[entry.name]) if entry.name in places else text(HOLE)
        cells = [shown(values[metric], entry.cell_ids) for metric in MAIN]
        body.append((place, text(entry.name), *cells, number(len(entry.seeds))))
    over = [f"Not the dataset's mean: over {', '.join(common)}."] if common else []
    return Table(
        title=title,
        head=("rank", "method", *(TITLES[metric] for metric in MAIN), "seeds"),
        body=tuple(body),
        notes=(*over, *draws(found)),
    )


def _cell(table: Table, line: tuple[Value, ...], column: str) -> Value:
    return line[table.head.index(column)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
